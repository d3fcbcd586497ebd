"""Text files as UTF-8, whatever form they are stored in: compressed by gzip, bzip2 or xz, in UTF-16 or UTF-32, with or
without a byte-order mark. Everything is recognized by content.

Plain UTF-8 is passed on as it is, byte for byte, even where it is not valid; that is looked for in utf8_check.py.
"""

import codecs
import io
import os
import re
import unicodedata
import zlib
from dataclasses import dataclass

from tinygrad2.errors import UserError
from tinygrad2.io.open_file import MOST, open_file, read_bounded
from tinygrad2.io.pipes import open_input
from tinygrad2.io.signatures import LOOK, Kind, compression, is_binary, read_head, recognize, recognize_binary
from tinygrad2.io.utf8_check import Utf8Check, incomplete

COMPRESSED_NAMES = (".gz", ".bz2", ".xz")
_READABLE = ("gzip", "bzip2", "xz")
_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_PIECE = 1 << 20  # bytes that are decoded at a time
_FEW = 64  # bytes from which on chance does not make tokens look like a text
_MOST_CONTROL = 0.01  # fraction of control characters from which on something is not a text


@dataclass(frozen=True)
class TextForm:
    """How a text is stored: compression ("" or "gzip", ...), encoding, and the length of its byte-order mark."""

    compression: str = ""
    encoding: str = "utf-8"
    mark: int = 0

    @property
    def is_plain(self):
        """Are the bytes of the file those of its text in UTF-8?"""
        return self == TextForm()

    def __str__(self):
        parts = [self.compression, "" if self.encoding == "utf-8" else self.encoding.upper()]
        return ", ".join(filter(None, parts)) or ("UTF-8 with a byte-order mark" if self.mark else "UTF-8")


def examine(path):
    """(TextForm, Kind or None, first bytes decompressed) of a file, told by its content.

    The Kind says what it is if it is no text. Raises UserError if the file cannot be read, or is damaged.
    """
    head = read_head(path)
    packing, name = compression(head), str(path)
    if packing not in _READABLE:
        return TextForm("", *_encoding(head)), recognize(head, name) or _binary(head), head
    with open_text(path, TextForm(packing)) as file:
        head = file.read(LOOK)
    kind = recognize(head, os.path.splitext(name)[0]) or _binary(head)
    if kind:
        kind = Kind(f"compressed by {packing}, and inside is {kind.what}", kind.remedy, kind.role)
    return TextForm(packing, *_encoding(head)), kind, head


def open_text(path, form):
    """A binary file, to be read from start to end, with the text of `path` in UTF-8.

    Reading raises UserError for damaged compression, and for bytes that its encoding does not have.
    """
    if form.is_plain:
        return _open(path)
    return io.BufferedReader(_Utf8Reader(path, form), _PIECE)


def read_text(path, refused=("stand-in", "packed")):
    """The text of a file, a pipe, or "-" (standard input), in UTF-8, without a byte-order mark, as bytes. Invalid bytes
    stay as they are.

    Raises UserError, one line that says what it is, if it cannot be read, is binary, or a Kind in a role of `refused`.
    """
    try:
        with open_input(path) as file:
            return text_of(read_bounded(file, path), path, refused)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_valid_text(path):
    """The same, of a text that is to be learned or measured. Raises UserError also if it is in another encoding."""
    text = read_text(path)
    if not _binary(text[:LOOK]):
        check = Utf8Check()
        check.feed(text)
        check.refuse_other_encodings(path)
    return text


def text_of(data, source, refused=("stand-in", "packed")):
    """The same of the content of a file; `source` names it in errors."""
    packing = compression(data)
    if packing in _READABLE:
        data = _read(_decompressor(io.BytesIO(data), packing, source), source, packing, MOST + 1)
        if len(data) > MOST:
            raise UserError(f"{source}: has more than {MOST >> 20:,} MB when it is decompressed; give a shorter text")
    kind = recognize(data[:LOOK], str(source))
    if kind and (kind.role in refused or recognize_binary(data[:LOOK])):
        raise UserError(f"{source}: {kind}")
    encoding, mark = _encoding(data[:LOOK])
    if encoding == "utf-8":
        return data[mark:]
    try:
        return data[mark:].decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise _undecodable(source, encoding, mark + error.start) from None


def _open(path):
    try:
        return open_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _decompressor(file, packing, path):
    """A binary file with the decompressed content of an open one."""
    try:
        if packing == "gzip":
            import gzip as library  # late: some builds of Python lack these, and few texts need them
        elif packing == "bzip2":
            import bz2 as library
        else:
            import lzma as library
        return library.open(file)
    except ImportError:
        raise UserError(f"{path}: is compressed by {packing}, which this Python cannot read; decompress it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _read(file, path, packing, n=-1):
    """n bytes of a file that may be compressed."""
    try:
        return file.read(n)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, packing, error) from None
    except Exception as error:  # lzma has an error of its own, and need not be there to be imported
        if type(error).__name__ != "LZMAError":
            raise
        raise _damaged(path, packing, error) from None


def _damaged(path, packing, error):
    reason = "it ends too early" if isinstance(error, EOFError) else str(error).lower() or "damaged"
    return UserError(f"{path}: is not valid {packing} data ({reason}); download it or compress it again")


def _undecodable(path, encoding, position):
    return UserError(f"{path}: byte {position:,} is not valid {encoding.upper()}, which it seems to be in; write it in "
                     "UTF-8 (iconv -t UTF-8)")


# -- encodings ---------------------------------------------------------------------------------------------------------


def _encoding(sample):
    """(encoding, bytes of its mark) of a text that begins like this."""
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            return encoding, len(mark)
    if b"\0" in sample:
        for width, encodings in ((4, ("utf-32-le", "utf-32-be")), (2, ("utf-16-le", "utf-16-be"))):
            for encoding in encodings:
                if _is_encoded(sample, encoding, width):
                    return encoding, 0
    return "utf-8", 0


def _is_encoded(sample, encoding, width):
    """Is this text in UTF-16 or UTF-32 without a mark? Spaces and line breaks have zeros where letters have none."""
    if len(sample) % width or not sample:
        return False
    upper, lower = (sample[width - 1 :: width], sample[::width])[:: 1 if encoding.endswith("le") else -1]
    if upper.count(0) * 16 < len(upper) or lower.count(0) * 100 > len(lower):
        return False
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return not any(unicodedata.category(c) in ("Cc", "Cn", "Cs", "Co") and c not in "\t\n\r\f\x1b" for c in set(text))


def looks_like_text(sample):
    """Is this beginning of a file certainly a text? Tokens without a header are not, nor are files of a few bytes."""
    encoding, mark = _encoding(sample)
    if mark:
        return encoding == "utf-8" or _is_encoded(sample[mark : mark + (len(sample) - mark) // 4 * 4], encoding, mark)
    if len(sample) < _FEW or is_binary(sample) or encoding != "utf-8":
        return False
    try:
        sample[: len(sample) - incomplete(sample)].decode()
    except UnicodeDecodeError:
        return False
    return True


def _binary(sample):
    """The Kind of what is not a text in any encoding, None for a text."""
    if not is_binary(sample) or _encoding(sample) != ("utf-8", 0):
        return None
    controls = len(re.findall(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", sample))
    if controls <= _MOST_CONTROL * len(sample):
        return None
    return Kind("binary data, not a text", "a file of tokens without a header must be called .bin", "bytes")


class _Utf8Reader(io.RawIOBase):
    """The text of a file in UTF-8, decompressed and decoded while it is read."""

    def __init__(self, path, form):
        self.path, self.form, self.position = path, form, form.mark
        self.raw = self.file = _open(path)
        if form.compression:
            self.file = _decompressor(self.raw, form.compression, path)
        self.decoder = None if form.encoding == "utf-8" else codecs.getincrementaldecoder(form.encoding)()
        self.rest = b""
        _read(self.file, path, form.compression or "file", form.mark)

    def readable(self):
        """Yes."""
        return True

    def readinto(self, buffer):
        """Fills a part of the buffer; returns how many bytes, 0 at the end."""
        while not self.rest:
            data = _read(self.file, self.path, self.form.compression or "file", _PIECE)
            if not data:
                if self.decoder is not None and self.decoder.getstate()[0]:
                    raise UserError(f"{self.path}: ends within a character of {self.form.encoding.upper()}: it is cut "
                                    "off; download or write it again")  # fmt: skip
                return 0
            self.rest = data if self.decoder is None else self._decode(data)
        n = min(len(buffer), len(self.rest))
        buffer[:n], self.rest = self.rest[:n], self.rest[n:]
        return n

    def _decode(self, data):
        pending = len(self.decoder.getstate()[0])
        try:
            text = self.decoder.decode(data)
        except UnicodeDecodeError as error:
            position = self.position - pending + error.start
            raise _undecodable(self.path, self.form.encoding, position) from None
        self.position += len(data)
        return text.encode()

    def close(self):
        """Close the file."""
        self.file.close()
        self.raw.close()
        super().close()
