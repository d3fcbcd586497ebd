"""What a file is, by its first bytes: compressed, an archive, a model, a web page, ..., or written by tinygrad2.

Names say little: a .bin may be tokens, weights or the three lines that git-lfs leaves in place of either. `recognize`
returns a Kind for every content that is neither plain text nor tokens, with what to do to obtain them.
"""

import json
import os
import re
from dataclasses import dataclass

from tinygrad2.errors import UserError
from tinygrad2.io.open_file import open_file

LOOK = 1 << 16  # bytes of a file that decide what it is

LLMC_FILES = {  # llm.c: the first four bytes as an integer
    20240326: "a model of llm.c",
    20240327: "a debug state of llm.c",
    20240328: "a tokenizer of llm.c",
    20240522: "a multiple-choice test of llm.c",
    20240527: "an optimizer state of llm.c",
}


@dataclass(frozen=True)
class Kind:
    """What a file is, and how to obtain the text or the numbers in it.

    role    "ours": an output of tinygrad2; "other": a file that may well lie beside data and is none;
            "stand-in": something in place of data, as a failed download leaves it; "packed": data, compressed or in
            fields; "structured": text to a program, for example JSON; "bytes": of no known sort
    """

    what: str
    remedy: str
    role: str = "other"

    def __str__(self):
        return f"is {self.what}, {self.remedy}" if self.role == "stand-in" else f"is {self.what}; {self.remedy}"


_NO_DATA = "give a text, or a file of tokens"
_AS_TEXT = "save its text as a plain text file (.txt)"
_UNPACK = "unpack it ({})"
_COMPRESSED = {  # signature: name, the program that decompresses it
    b"\x1f\x8b\x08": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"\x1f\x9d\x90": ("compress", "uncompress"),
    b"\x5d\0\0\x80\0" + b"\xff" * 8: ("lzma", "unlzma"),
}
_BINARY = (  # signatures of files that are no text; those of letters alone are checked for bytes that no text has
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format("7z x")),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK.format("unrar x")),
    (b"PAR1", "a parquet table", "write the documents of its text column into a text, <|endoftext|> between them"),
    (b"ARROW1", "an arrow table", "write the documents of its text column into a text, <|endoftext|> between them"),
    (b"SQLite format 3\0", "an SQLite database", "write its texts into a text file, <|endoftext|> between them"),
    (b"\x89HDF\r\n", "an HDF5 file", "write its ids into a .npy file"),
    (b"GGUF", "a model in llama.cpp's format (GGUF)", "give the model's safetensors"),
    (b"\x7fELF", "a program (ELF)", _NO_DATA),
    (b"\xcf\xfa\xed\xfe", "a program (Mach-O)", _NO_DATA),
    (b"\xca\xfe\xba\xbe", "a program (Mach-O or Java)", _NO_DATA),
    (b"\x89PNG", "an image (PNG)", _NO_DATA),
    (b"\xff\xd8\xff", "an image (JPEG)", _NO_DATA),
    (b"GIF8", "an image (GIF)", _NO_DATA),
    (b"II*\0", "an image (TIFF)", _NO_DATA),
    (b"MM\0*", "an image (TIFF)", _NO_DATA),
    (b"RIFF", "a sound, video or image (RIFF)", _NO_DATA),
    (b"OggS", "a sound or video (Ogg)", _NO_DATA),
    (b"fLaC", "a sound (FLAC)", _NO_DATA),
    (b"\x1aE\xdf\xa3", "a video (Matroska)", _NO_DATA),
    (b"\xd0\xcf\x11\xe0", "a document of an office program", _AS_TEXT),
    (b"\0\x05\x16\x07", "attributes that macOS keeps of another file", _NO_DATA),
)
_LONGER = (  # two or three letters alone could also be the first tokens of a file
    (re.compile(rb"MZ.{58}(.{4}).*PE\0\0", re.S), "a program (Windows)"),
    (re.compile(rb"BM.{4}\0{4}.{4}[\x0c\x28\x38\x6c\x7c]\0{3}", re.S), "an image (BMP)"),
    (re.compile(rb"ID3[\2-\4]\0"), "a sound (MP3)"),
    (re.compile(rb"\0\0..ftyp", re.S), "a video or sound (MP4)"),
)
_HTML = re.compile(rb"(?:\s|<!--(?:(?!-->).)*-->|<\?xml[^>]*>)*<(?:!doctype\s+html|html|head)\b", re.I | re.S)
_JSON = re.compile(rb'\s*(?:\{\s*"(?:[^"\\\n]|\\.)*"\s*:|\[\s*(?:"(?:[^"\\\n]|\\.)*"\s*[,\]]|\{\s*"|\[\s*[\["]))')
_LOG = re.compile(rb"(?:(?:note|resume|run|warning) +[^\n]*\n)*config    (?:preset|finetuning of) ")  # as printed
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # bytes that no text has


def recognize(head, path=""):
    """The Kind of a file with these first bytes (LOOK of them, or all), None if it may be plain text or tokens.

    `path` is needed for what a name decides: a web page called .html was meant to be one.
    """
    return recognize_binary(head) or _structured(head, os.path.basename(path).lower())


def recognize_binary(head):
    """The Kind of a file with these first bytes if it is no text of any sort, else None."""
    return _packed(head) or _numbers(head) or _binary(head)


def recognize_file(path):
    """The Kind of the regular file at `path`, or None. Raises UserError if it cannot be read."""
    return recognize(read_head(path), str(path))


def read_head(path):
    """The first LOOK bytes of a file. Raises UserError if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(LOOK)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def compression(head):
    """"gzip", "bzip2", "xz", "zstd", ... if the bytes begin such a file, else ""."""
    for magic, (name, _) in _COMPRESSED.items():
        if head.startswith(magic) and (name != "bzip2" or re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", head)):
            return name
    return ""


def is_binary(sample):
    """Has the sample bytes that no text has? (Tabs, line breaks, form feeds and escape sequences are text.)"""
    return bool(_CONTROL.search(sample))


def _packed(head):
    name = compression(head)
    if name:
        tool = dict(_COMPRESSED.values())[name]
        return Kind(f"compressed by {name}", f"decompress it ({tool})", "packed")
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip(head)
    if head[257:262] == b"ustar":
        return Kind("a tar archive", _UNPACK.format("tar xf"), "packed")
    return None


def _zip(head):
    """The Kind of a zip file, by the name of its first member."""
    member = head[30 : 30 + int.from_bytes(head[26:28], "little")].decode("utf-8", "replace")
    if member.endswith(".npy"):
        return Kind("an archive of arrays (.npz)", "save the array of ids alone, with numpy.save", "packed")
    if member.endswith(("/data.pkl", "/byteorder", "/.format_version", "/version")):
        return Kind("a file of torch.save, a model or tensors", _NO_DATA)
    if member in ("[Content_Types].xml", "mimetype", "_rels/.rels"):
        return Kind("a document of an office program, or a book (EPUB)", _AS_TEXT, "packed")
    return Kind("a zip archive", _UNPACK.format("unzip"), "packed")


def _numbers(head):
    """Containers of weights, of tinygrad2 or others, and what llm.c writes."""
    magic = int.from_bytes(head[:4], "little")
    if magic in LLMC_FILES:
        return Kind(LLMC_FILES[magic], _NO_DATA)
    length = int.from_bytes(head[:8], "little")
    if len(head) > 10 and 2 <= length <= 100_000_000 and re.match(rb'\{\s*["}]', head[8:]) and head[7] == 0:
        if b'"tinygrad2"' in head[8:1000]:
            return Kind("weights, a checkpoint or a dump of tinygrad2", _NO_DATA, "ours")
        return Kind("tensors of a model (safetensors)", _NO_DATA)
    if b"brain.Event:" in head[:64]:
        return Kind("a TensorBoard file", _NO_DATA, "ours")
    return None


def _binary(head):
    for magic, what, remedy in _BINARY:
        if head.startswith(magic) and (not magic.isalnum() or is_binary(head)):
            return Kind(what, remedy)
    for pattern, what in _LONGER:
        if pattern.match(head):
            return Kind(what, _NO_DATA)
    if re.match(rb"\x80[\2-\5](\x95|\x8a\n|[}\](Xc])", head):
        return Kind("a pickle of Python", "save the ids with numpy.save, a text as plain text")
    return None


def _structured(head, name):
    """Files that are text to a program, but not what a model should learn."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return Kind("a pointer of git-lfs", "not the file itself; fetch it: git lfs pull", "stand-in")
    if text.startswith(b"%PDF-"):
        return Kind("a PDF", "save its text as a plain text file (pdftotext)", "packed")
    if text.startswith(b"{\\rtf"):
        return Kind("a document of an office program (RTF)", _AS_TEXT, "packed")
    if not name.endswith((".html", ".htm", ".xhtml")) and _HTML.match(text[:4096]):
        problem = "not the file itself; download it in its raw form (to train on web pages, call them .html)"
        return Kind("a web page (HTML)", problem, "stand-in")
    if _LOG.match(text):
        return Kind("what a training of tinygrad2 printed", _NO_DATA, "ours")
    if text.startswith(b"#version: 0.") and b"\n" in text:
        return Kind("the merges of a tokenizer", "give it with --tokenizer")
    return _json(text) if text[:64].lstrip()[:1] in (b"{", b"[") else None


def _json(text):
    """The Kind of JSON, or of JSON lines: outputs of tinygrad2, tokenizers, or any other."""
    first = _object(text.lstrip().split(b"\n", 1)[0])
    if first is None and not _JSON.match(text):
        return None
    if re.match(rb'\s*\{\s*"format":\s*"tinygrad2-', text):
        return Kind("a tokenizer or a manifest of tinygrad2", _NO_DATA, "ours")
    if first and type(first.get("step")) is int and {"loss", "val_loss", "hellaswag"} & set(first):
        return Kind("the metrics of a training", _NO_DATA, "ours")
    if first and isinstance(first.get("facts"), dict) and "task" in first["facts"]:
        return Kind("answers of an evaluation of tinygrad2", _NO_DATA, "ours")
    if re.match(rb'\s*\{\s*"(?:training|preset)":', text) and b'"weight_decay":' in text:
        return Kind("the flags of a training of tinygrad2", _NO_DATA, "ours")
    if re.match(rb'\s*\{\s*"(?:dates|identity)":', text):
        return Kind("a record of tinygrad2's token cache", _NO_DATA, "ours")
    if first and isinstance(first.get("prompt_ids"), list):
        return Kind("texts that inference.py wrote as JSON", "take their field \"text\"", "structured")
    remedy = "write the texts of its fields into a text, <|endoftext|> between them (or call it .txt, to train on JSON)"
    return Kind("JSON" if first is None or text.lstrip().count(b"\n") < 2 else "JSON lines", remedy, "structured")


def _object(line):
    """The dict that a line of JSON is, or None."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
