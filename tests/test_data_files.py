"""What --data may find: texts in every form, files that are none, folders with links, own outputs, pipes."""

import bz2
import glob
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from test_dataset import ids_of, opened
from test_train import ROOT, SMALL, TEXT, python

import inference
from tinygrad2.commands import eval as evaluate
from tinygrad2.datasets import text_source
from tinygrad2.datasets.find_files import find_files
from tinygrad2.datasets.piped import file_of
from tinygrad2.datasets.token_files import TokenFile
from tinygrad2.errors import UserError
from tinygrad2.io import block_sums
from tinygrad2.io.files import read_json
from tinygrad2.io.text_file import examine, open_text, read_text
from tinygrad2.io.weights import load_weights, save_weights
from tinygrad2.tokenizers.load import load_tokenizer
from tinygrad2.tokenizers.tokenizer import Tokenizer

PROSE = "The cat sat on the mat.\nA “quoted” naïve café.\n" * 30
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 123\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>not here</body></html>\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(call, *arguments, **more):
    with pytest.raises(UserError) as error:
        call(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def text_in(data, **more):
    """The text that a training would read."""
    dataset = opened(data, **more)
    return dataset.tokenizer.decode(ids_of(dataset.train).tolist()).removesuffix("<|endoftext|>")


def tar_of(name, content):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zip_of(name, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def npz():
    stream = io.BytesIO()
    np.savez(stream, ids=np.arange(10))
    return stream.getvalue()


# -- forms of a text ---------------------------------------------------------------------------------------------------

FORMS = {
    "utf-8 with mark": PROSE.encode("utf-8-sig"),
    "utf-16": PROSE.encode("utf-16"),
    "utf-16-be with mark": b"\xfe\xff" + PROSE.encode("utf-16-be"),
    "utf-16-le": PROSE.encode("utf-16-le"),
    "utf-16-be": PROSE.encode("utf-16-be"),
    "utf-32": PROSE.encode("utf-32"),
    "utf-32-le": PROSE.encode("utf-32-le"),
    "utf-32-be": PROSE.encode("utf-32-be"),
    "gzip": gzip.compress(PROSE.encode(), mtime=0),
    "gzip in two members": gzip.compress(PROSE[:99].encode(), mtime=0) + gzip.compress(PROSE[99:].encode(), mtime=0),
    "gzip of utf-16": gzip.compress(PROSE.encode("utf-16"), mtime=0),
    "bzip2": bz2.compress(PROSE.encode()),
    "xz": lzma.compress(PROSE.encode()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["t.txt", "data", "t.bin"])
def test_a_text_in_another_form_is_the_same_text(tmp_path, form, name):
    if name == "t.bin" and not FORMS[form].startswith((b"\xef\xbb", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        pytest.skip("without a mark a .bin is tokens")
    path = put(tmp_path / name, FORMS[form])
    assert text_in(path) == PROSE.strip("\n")
    assert text_in(path) == PROSE.strip("\n")  # from the cache
    assert read_text(path).decode() == PROSE


def test_a_text_of_other_scripts_in_utf_16_without_a_mark(tmp_path):
    for text in ("Жили-были старик со старухой. И вот.\n" * 30, "春眠不覺曉處處聞啼鳥。\n" * 30):
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
            assert text_in(put(tmp_path / "t.txt", text.encode(encoding))) == text.strip("\n")


def test_a_compressed_text_is_read_in_blocks_and_continued(tmp_path, monkeypatch):
    from tinygrad2.datasets import text_cache

    monkeypatch.setattr(text_cache, "BLOCK", 100)
    monkeypatch.setattr(text_cache, "SHARD", 50)
    plain, packed = put(tmp_path / "p.txt", PROSE), put(tmp_path / "t.txt.gz", FORMS["gzip of utf-16"])
    expected, _ = text_cache.tokens_of_text([str(plain)], Tokenizer([]), 300, print)
    encode, left = text_cache.encode_stream, [5]

    def power_cut(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(text_cache, "encode_stream", power_cut)
    for _ in range(50):
        left[0] = 5
        try:
            files, _ = text_cache.tokens_of_text([str(packed)], Tokenizer([]), 300, print)
            break
        except KeyboardInterrupt:
            pass
    ids = [np.concatenate([file.read(0, file.n) for file in some]) for some in (files, expected)]
    assert len(files) > 5 and np.array_equal(*ids)


def test_a_text_that_gets_a_mark_or_loses_it_is_tokenized_again(tmp_path):
    path = put(tmp_path / "t.txt", PROSE)
    plain = ids_of(opened(path).train)
    put(path, FORMS["utf-8 with mark"])
    assert np.array_equal(ids_of(opened(path).train), plain)


@pytest.mark.parametrize(
    "content, says",
    [
        (FORMS["gzip"][:-20], "is not valid gzip data (it ends too early)"),
        (FORMS["gzip"][:40] + b"x" * 40 + FORMS["gzip"][80:], "is not valid gzip data"),
        (FORMS["bzip2"][:-20], "is not valid bzip2 data"),
        (FORMS["xz"][:60] + b"x" * 9 + FORMS["xz"][69:], "is not valid xz data"),
        (FORMS["utf-16"][:500] + b"\x00\xd8a\0" + FORMS["utf-16"][500:], "byte 500 is not valid UTF-16-LE"),
        (FORMS["utf-16"] + b"a", "ends within a character of UTF-16-LE: it is cut off"),
        (FORMS["utf-16"] + "🙂".encode("utf-16-le")[:2], "ends within a character of UTF-16-LE"),
        (lzma.compress(PROSE.encode(), format=lzma.FORMAT_ALONE), "is compressed by lzma; decompress it (unlzma)"),
        (b"\x1f\x9d\x90" + bytes(range(200)), "is compressed by compress; decompress it (uncompress)"),
        (PROSE.encode("cp1252"), "byte 26 (0x93) is not valid UTF-8: the text seems to be in Windows-1252; write it in "
                                 "UTF-8: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"),
        ("naïve café\n".encode("latin-1") * 9, "byte 2 (0xef) is not valid UTF-8: the text seems to be in Latin-1"),
        ("Жили-были старик\n".encode("koi8-r"), "byte 0 (0xf6) is not valid UTF-8: the text is in another encoding"),
        (b"plain " * 50000 + b"caf\xe9s", "byte 300,003 (0xe9) is not valid UTF-8"),
        (b"", "is empty"), (b" \n\n", "is empty"), (b"\xff\xfe", "is empty"), (gzip.compress(b"", mtime=0), "is empty"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_read_is_one_line(tmp_path, content, says):
    path = put(tmp_path / "t.txt", content)
    message = refused(opened, path)
    assert says in message and message.startswith(str(path))


def test_what_is_odd_in_a_text_is_said_and_kept(tmp_path, capsys):
    for content, says in ((PROSE.encode() + b"\xff" + PROSE.encode(), "1 byte(s) are not valid UTF-8, the first"),
                          (PROSE.encode() + b"\0a", f"has 1 zero byte(s), the first at byte {len(PROSE.encode()):,}"),
                          (PROSE.replace("\n", "\r\n").encode(), "its lines end with \\r\\n")):  # fmt: skip
        path = put(tmp_path / "t.txt", content)
        dataset = opened(path)
        assert dataset.tokenizer.decode_bytes(ids_of(dataset.train)[:-1].tolist()) == content.strip(b"\r\n")
        assert says in capsys.readouterr().out
    for content in (bytes(range(256)) * 9, b"\0" * 5000):  # a model of bytes may be wanted, but not by chance
        dataset = opened(put(tmp_path / "t.txt", content))
        assert dataset.tokenizer.decode_bytes(ids_of(dataset.train)[:-1].tolist()) == content
        assert "is binary data, not a text; its bytes are trained on as they are" in dataset.description[-1]
        put(tmp_path / "other.txt", PROSE)
        assert find_files(str(tmp_path)).texts == [str(tmp_path / "other.txt")]
    capsys.readouterr()
    opened(put(tmp_path / "t.txt", PROSE.encode() + "é".encode()[:1]))  # cut off inside its last character
    opened(put(tmp_path / "t.txt", PROSE))
    assert capsys.readouterr().out == ""


# -- what is no text ---------------------------------------------------------------------------------------------------


def database(folder):
    connection = sqlite3.connect(folder / "made.db")
    connection.execute("create table t (x)")
    connection.commit()
    connection.close()
    return (folder / "made.db").read_bytes()


NO_TEXT = {
    "zip": (zip_of("a.txt", b"text"), "is a zip archive; unpack it (unzip)"),
    "npz": (npz(), "is an archive of arrays (.npz); save the array of ids alone"),
    "docx": (zip_of("[Content_Types].xml", b"<?xml"), "is a document of an office program, or a book"),
    "pt": (zip_of("archive/data.pkl", b"\x80\x02}."), "is a file of torch.save"),
    "tar": (tar_of("a", b"text"), "is a tar archive; unpack it (tar xf)"),
    "tar.gz": (gzip.compress(tar_of("a", b"text"), mtime=0), "compressed by gzip, and inside is a tar archive"),
    "npy.gz": (gzip.compress(b"\x93NUMPY\1\0" + bytes(100), mtime=0),
               "is a token file compressed by gzip; decompress it"),
    "zst": (b"\x28\xb5\x2f\xfd" + bytes(range(200)), "is compressed by zstd; decompress it (unzstd)"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(50), "is a 7z archive"),
    "parquet": (b"PAR1\x15\0\x15" + bytes(50) + b"PAR1", "is a parquet table; write the documents of its text column"),
    "lfs": (LFS, "is a pointer of git-lfs, not the file itself; fetch it: git lfs pull"),
    "html": (HTML, "is a web page (HTML), not the file itself; download it in its raw form"),
    "html lower": (b"\n  <html lang=en>\n<body>moved", "is a web page (HTML)"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "is a PDF; save its text"),
    "sqlite": (None, "is an SQLite database"),
    "safetensors": (b"\x40\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(68, b"\0"),
                    "is tensors of a model (safetensors)"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(50), "is a model in llama.cpp's format"),
    "llm.c": ((20240326).to_bytes(4, "little") + bytes(2000), "is a model of llm.c"),
    "elf": (b"\x7fELF\2\1\1\0" + bytes(50), "is a program (ELF)"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is an image (PNG)"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "is an image (JPEG)"),
    "mp4": (b"\0\0\0\x18ftypmp42\0\0\0\0", "is a video or sound (MP4)"),
    "pickle": (pickle.dumps({"a": [1, 2]}), "is a pickle of Python"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "is a document of an office program"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("name", ["t.txt", "t.bin", "t.npy", "data"])
def test_a_file_that_is_no_text_is_named_with_the_remedy(tmp_path, kind, name):
    content, says = NO_TEXT[kind]
    path = put(tmp_path / name, database(tmp_path) if content is None else content)
    message = refused(opened, path)
    assert message.startswith(f"{path}: ") and says in message and len(message) < 300


def test_json_is_named_and_in_a_txt_said_to_be_json(tmp_path):
    for content in ('{"text": "abc"}\n{"text": "b"}\n', json.dumps({"a": ["b"]}, indent=1), '[{"text": "abc"}]'):
        assert "is JSON" in refused(opened, put(tmp_path / "t.jsonl", content))
        dataset = opened(put(tmp_path / "t.txt", content))
        assert any("is JSON" in line for line in dataset.description)
    for text in ("[Chapter 1]\nIt was ...\n" * 9, "{braces} and more\n" * 9, '["no" said the cat]\n' * 9):
        assert opened(put(tmp_path / "t.txt", text)).description[1:] == []
    assert text_in(put(tmp_path / "t.html", HTML)) == HTML.decode().strip()  # a page that is called one is meant


def test_other_flags_name_such_files_too(tmp_path):
    readers = {"w.bin": load_weights, "t.json": load_tokenizer, "t.npy": TokenFile, "c.json": read_json}
    for name, read in readers.items():
        for content, says in ((LFS, "git lfs pull"), (HTML, "web page (HTML)")):
            assert says in refused(read, str(put(tmp_path / name, content))), (name, says)
    folder = tmp_path / "model"
    put(folder / "config.json", LFS)
    put(folder / "model.safetensors", LFS)
    assert "git lfs pull" in refused(inference.load, str(folder))
    assert "decompress it (gunzip)" in refused(inference.load, str(put(tmp_path / "m.safetensors", FORMS["gzip"])))
    assert "is JSON, not a model" in refused(inference.load, str(put(tmp_path / "config.json", '{\n "a": {}\n}\n')))
    for name, content in (("a.npy", b"plain text, not an array "), ("z.bin", bytes(100))):
        assert "does not begin as" in (says := refused(TokenFile, put(tmp_path / name, content))) or "are zero" in says


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "gzip"])
def test_tokenizers_and_prompts_in_other_forms(tmp_path, encoding):
    def store(text):
        return gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding)

    put(tmp_path / "merges.txt", store("#version: 0.2\na b\n" + "ab c\n"))
    assert load_tokenizer(tmp_path / "merges.txt").encode("abc") == [257]
    tokenizer = Tokenizer.train(PROSE, 260)
    assert load_tokenizer(put(tmp_path / "t.json", store(tokenizer.to_json()))).to_json() == tokenizer.to_json()
    put(tmp_path / "p.txt", store("Once upon\n<|endoftext|>\na naïve cat\n"))
    config = inference.parse(["--prompt-file", str(tmp_path / "p.txt")])
    assert inference.read_prompts(config, None) == ["Once upon", "a naïve cat"]


def test_prompt_files_that_are_none(tmp_path):
    for content, says in ((npz(), "is an archive of arrays"), (NO_TEXT["png"][0], "is an image (PNG)")):
        config = inference.parse(["--prompt-file", str(put(tmp_path / "p", content))])
        assert says in refused(inference.read_prompts, config, None)
    for path, says in (("/dev/zero", "is a device"), (tmp_path, "is a folder"), ("/dev/null", "there is no prompt")):
        if os.path.exists(path):
            assert says in refused(inference.read_prompts, inference.parse(["--prompt-file", str(path)]), None)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_texts_of_equal_name_size_and_date_do_not_share_tokens(tmp_path, monkeypatch):
    """In read-only folders, whose tokens are in the user's cache, and next to the text."""
    texts = {"a": "The cat sat.\n" * 40, "b": "A dog barks.\n" * 40}
    for place in ("shared", "own"):
        for folder, text in texts.items():
            path = put(tmp_path / place / folder / "input.txt", text)
            if place == "shared":
                put(path.parent / ".tinygrad2", "in the way of a folder")
            os.utime(path, ns=(1, 1))
            assert text_in(path) == text.strip()
        for folder, text in texts.items():
            assert text_in(tmp_path / place / folder / "input.txt") == text.strip()
    assert len(list((tmp_path / "xdg" / "tinygrad2").glob("input.txt-*/tokens_000000.bin"))) == 2


@pytest.mark.parametrize("always_read", [1 << 20, 0], ids=["small", "large"])
def test_a_text_replaced_by_one_of_equal_size_and_date_is_noticed(tmp_path, monkeypatch, always_read):
    monkeypatch.setattr(text_source, "ALWAYS_READ", always_read)
    monkeypatch.setattr(block_sums, "SETTLED", 0)
    path, texts = tmp_path / "input.txt", ["The cat sat.\n" * 40, "A dog barks.\n" * 40]
    for text in (*texts, *texts):
        put(path, text)
        os.utime(path, ns=(1, 1))
        assert text_in(path) == text.strip()
    for text in texts:  # by renaming another file to its name
        put(tmp_path / "new", text)
        os.utime(tmp_path / "new", ns=(1, 1))
        os.replace(tmp_path / "new", path)
        assert text_in(path) == text.strip()


def test_a_large_text_that_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "ALWAYS_READ", 0)
    monkeypatch.setattr(block_sums, "SETTLED", 0)
    path = put(tmp_path / "input.txt", PROSE)
    expected = text_in(path)

    def never(self):
        raise AssertionError("read a second time")

    monkeypatch.setattr(text_source.TextSource, "sha256", never)
    assert text_in(path) == expected


def test_lists_of_texts_in_one_folder_have_their_own_tokens(tmp_path):
    for name in ("a.txt", "b.txt", "c.md"):
        put(tmp_path / "t" / name, f"{name} {PROSE}")
    first, second = opened(tmp_path / "t" / "*.txt"), opened(tmp_path / "t" / "[bc].*")
    assert ids_of(first.train).tolist() != ids_of(second.train).tolist()
    folders = {os.path.dirname(stream.files[0].path) for stream in (first.train, second.train)}
    assert len(folders) == 2


def test_a_training_is_not_resumed_on_a_text_that_differs_in_its_middle(tmp_path):
    words = " ".join(str(i * 7919 % 10007) for i in range(60_000))
    tokenizer = tmp_path / "t.json"
    Tokenizer([]).save(tokenizer)
    first = opened(put(tmp_path / "a.txt", words), tokenizer=tokenizer)
    second = opened(put(tmp_path / "b.txt", words[:200_000] + "!" + words[200_001:]), tokenizer=tokenizer)
    assert len(first.train) == len(second.train)
    assert not second.has_fingerprint(first.fingerprint) and first.has_fingerprint(first.fingerprint)
    former = "-".join(part.split(".")[0] for part in first.fingerprint.split("-"))
    assert first.has_fingerprint(former) and not first.has_fingerprint("0" * 8)  # of a checkpoint of an earlier version


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with everything that a training, an evaluation and inference leave."""
    folder = tmp_path_factory.mktemp("run")
    put(folder / "text.txt", TEXT * 40)
    flags = f"{SMALL} --steps 3 --eval-every 1 --eval-batches 1 --sample-tokens 2 --tensorboard --weights-out w.bin"
    result = python(ROOT / "train_gpt2.py", *flags.split(), "--data", "text.txt", cwd=folder)
    assert result.returncode == 0, result.stderr
    put(folder / "printed.txt", result.stdout)
    put(folder / "printed2.txt", f"resume    from run/checkpoints\nnote      something\n{result.stdout}")
    result = python(ROOT / "inference.py", "--weights", "w.bin", "--json", "--max-new-tokens", 3, cwd=folder)
    put(folder / "texts.jsonl", result.stdout)
    (folder / "text.txt").unlink()
    return folder


def test_own_outputs_are_not_taken_for_data(tmp_path, run):
    """Under any name that a text or a token file could have."""
    put(tmp_path / "data" / "story.txt", PROSE)
    expected, n = text_in(tmp_path / "data" / "story.txt"), 0
    shutil.rmtree(tmp_path / "data" / ".tinygrad2")
    shutil.copytree(run / ".tinygrad2", tmp_path / "data" / "cache")
    for path in [path for path in run.rglob("*") if path.is_file() and ".tinygrad2" not in path.parts]:
        for ending in (".bin", ".txt", ".npy"):
            if path.stat().st_size and path.name != "texts.jsonl":
                shutil.copy(path, tmp_path / "data" / f"{path.parent.name}-{path.stem}{n}{ending}")
                n += 1
    for name in ("tokenizer.txt", "tokenizer.bin"):
        tokenizer = Tokenizer.train(PROSE, 260).to_json()
        put(tmp_path / "data" / name, tokenizer)
    assert n > 20 and text_in(tmp_path / "data") == expected
    files = find_files(str(tmp_path / "data"))
    assert not files.tokens and len(files.texts) == 1
    for what in ("weights, a checkpoint or a dump", "metrics of a training", "TensorBoard", "tinygrad2 printed",
                 "the flags of a training", "manifest", "tokens that tinygrad2 keeps"):  # fmt: skip
        assert any(what in note for note in files.notes), what
    assert text_in(str(tmp_path / "data" / "*.*")) == expected
    assert "weights" in refused(opened, next((tmp_path / "data").glob("*-w*.bin")))


def test_many_odd_files_are_counted_not_listed(tmp_path, capsys):
    for i in range(20):
        put(tmp_path / f"{i:02d}.txt", PROSE.replace("\n", "\r\n"))
        put(tmp_path / "json" / f"{i:02d}.txt", '{"a": 1}\n{"a": 2}\n')
        put(tmp_path / "w" / f"{i:02d}.bin", LFS.replace(b"version", b"\x89PNG\r\n\x1a\n\0"))
    description = "\n".join(opened(tmp_path).description)
    assert description.count("\n") == 2 and "and 17 more: an image (PNG)" in description
    assert "and 17 more: is JSON lines" in description
    assert capsys.readouterr().out.splitlines()[-1].startswith("note      ... and ")
    assert len(capsys.readouterr().out) < 2000


def test_names_decide_nothing(tmp_path):
    """Neither names of our files nor those of folders in a run."""
    names = ("gpt2_stories.txt", "state_of_the_union.txt", "model_train.md", "checkpoints/a.txt", "previous-1/b.txt")
    for name in names:
        put(tmp_path / name, f"{name} {PROSE}")
    files = find_files(str(tmp_path))
    assert len(files.texts) == len(names) and not files.notes


def test_other_files_in_a_folder_are_left_out_and_said(tmp_path):
    put(tmp_path / "a.txt", PROSE)
    put(tmp_path / "picture.bin", NO_TEXT["png"][0])
    np.save(tmp_path / "vectors.npy", np.zeros((3, 4), np.float32))
    put(tmp_path / "table.csv", "1,2")
    put(tmp_path / ".hidden.txt", "not me")
    put(tmp_path / ".secret" / "b.txt", "nor me")
    put(tmp_path / "._a.txt", b"\0\5\x16\7")
    files = find_files(str(tmp_path))
    assert files.texts == [str(tmp_path / "a.txt")] and not files.tokens
    for says in ("picture.bin: an image (PNG)", "vectors.npy: an array that is not", "table.csv: only .txt",
                 "._a.txt, .hidden.txt, .secret: hidden"):  # fmt: skip
        assert any(says in note for note in files.notes), (says, files.notes)
    assert opened(tmp_path).description[1].startswith("note      not read: ")


@pytest.mark.parametrize("content", [LFS, HTML, NO_TEXT["pdf"][0], FORMS["gzip"][:-9]])
def test_a_file_in_place_of_data_stops_a_training_on_a_folder(tmp_path, content):
    put(tmp_path / "a.txt", PROSE)
    path = put(tmp_path / "b.txt", content)
    assert refused(opened, tmp_path).startswith(f"{path}: is ")


def test_endings_in_capitals_and_compressed_ones(tmp_path):
    put(tmp_path / "A.TXT", "one " * 20)
    put(tmp_path / "B.Txt.GZ", gzip.compress(b"two " * 20))
    put(tmp_path / "c.md.bz2", bz2.compress(b"three " * 20))
    dataset = opened(tmp_path)
    assert dataset.tokenizer.decode(ids_of(dataset.train).tolist()).split("<|endoftext|>")[:3] == [
        "one " * 20, "two " * 20, "three " * 20]  # fmt: skip
    train, val = put(tmp_path / "p" / "x_train.txt.gz", FORMS["gzip"]), put(tmp_path / "p" / "x_VAL.txt", "no")
    assert find_files(str(tmp_path / "p")).texts == [str(val), str(train)]
    os.rename(val, tmp_path / "p" / "x_val.TXT")
    assert len(opened(tmp_path / "p").val) > 1
    os.rename(tmp_path / "p" / "x_val.TXT", tmp_path / "p" / "X_Val.TXT")
    os.rename(train, tmp_path / "p" / "X_TRAIN.TXT.GZ")
    assert len(opened(tmp_path / "p").val) < 20
    ids = np.arange(300, dtype="<u2")
    for name in ("TRAIN.BIN", "train.BIN"):
        ids.tofile(tmp_path / name)
        assert find_files(str(tmp_path / name)).tokens


def test_links_are_followed_and_loops_are_not(tmp_path):
    put(tmp_path / "real" / "a.txt", PROSE)
    put(tmp_path / "real" / "deep" / "b.txt", PROSE[:200])
    data = tmp_path / "data"
    put(data / "own.txt", PROSE[:300])
    (data / "books").symlink_to("../real")
    assert find_files(str(data)).texts == [
        str(data / "own.txt"), str(data / "books" / "a.txt"), str(data / "books" / "deep" / "b.txt")]  # fmt: skip
    for name, target in (("loop", ".."), ("self", "."), ("zz_again", "../real"), ("zz_deep", "../real/deep"),
                         ("none.txt", "nowhere"), ("circle.txt", "circle.txt"), ("zz_own.txt", "own.txt")):  # fmt: skip
        (data / name).symlink_to(target)
    (tmp_path / "real" / "back").symlink_to("../data")
    os.link(tmp_path / "real" / "a.txt", data / "zz_hard.txt")
    for pattern in (str(data), str(data / "**" / "*.txt"), str(data / "**")):
        files = find_files(pattern)
        assert sorted(map(os.path.basename, files.texts)) == ["b.txt", "own.txt", "zz_hard.txt"], pattern
    notes = "; ".join(find_files(str(data)).notes)
    for says in ("loop, self: a link back", "zz_again: the same folder as", "none.txt: a link to nothing",
                 "circle.txt: cannot be read", "zz_own.txt: the same file as", "a.txt: the same file as"):  # fmt: skip
        assert says in notes, notes
    (tmp_path / "link").symlink_to(data)
    assert len(find_files(str(tmp_path / "link")).texts) == 3


def test_many_links_between_folders_do_not_multiply(tmp_path):
    names = [f"f{i}" for i in range(12)]
    for name in names:
        put(tmp_path / name / "t.txt", name)
        for other in names:
            (tmp_path / name / f"to_{other}").symlink_to(f"../{other}")
    for data in (str(tmp_path), str(tmp_path / "**" / "*.txt")):
        assert len(find_files(data).texts) == len(names)


@pytest.mark.parametrize("pattern", ["**", "**/*.txt", "x/**", "*/**/*.txt", "**/y/**/*.md", "./**/*.txt"])
def test_a_pattern_matches_what_glob_matches(tmp_path, monkeypatch, pattern):
    for name in ("a.txt", "x/b.txt", "x/y/c.txt", "x/y/z/d.md", ".h/e.txt", "x/.f.txt", "w/q/a_train_1.txt"):
        put(tmp_path / name, name)
    monkeypatch.chdir(tmp_path)
    expected = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    found = set(map(os.path.normpath, find_files(pattern).texts))
    assert found == expected and found


def test_one_file_as_text_for_both_purposes(tmp_path):
    put(tmp_path / "train.txt", PROSE)
    (tmp_path / "val.txt").symlink_to("train.txt")
    dataset = opened(tmp_path)
    assert np.array_equal(ids_of(dataset.train), ids_of(dataset.val))


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    path = put(tmp_path / "t" / "a.txt", PROSE)
    put(tmp_path / "t" / "closed" / "b.txt", PROSE)
    listdir, real_open = os.listdir, open

    def forbidden(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", forbidden)
    files = find_files(str(tmp_path / "t"))
    assert files.texts == [str(path)] and "closed: cannot be read (Permission denied)" in files.notes[0]
    assert "closed: cannot be read (Permission denied)" in refused(find_files, str(tmp_path / "t" / "closed"))

    def locked(name, *arguments, **more):
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", name)
        return real_open(name, *arguments, **more)

    monkeypatch.setattr("builtins.open", locked)
    assert refused(find_files, str(tmp_path / "t")) == f"{path}: cannot be read (Permission denied)"


def test_folders_and_patterns_without_data(tmp_path):
    (tmp_path / "e").mkdir()
    assert "contains neither texts" in refused(opened, tmp_path / "e")
    save_weights(tmp_path / "e" / "w.bin", {"w": np.zeros((4, 4), np.float32)}, {}, "", {})
    assert "w.bin: weights, a checkpoint or a dump of tinygrad2" in refused(opened, tmp_path / "e")
    assert "matches folders only" in refused(opened, str(tmp_path / "*"))
    for missing in ("nowhere", "nowhere/*.txt", "", "a\0b"):
        assert "cannot be read" in refused(opened, missing)


@pytest.mark.parametrize("name", ["my", "other"])
def test_the_name_of_a_dataset_chooses_among_texts_or_is_refused(tmp_path, name):
    for file in ("my.txt", "other.txt"):
        put(tmp_path / file, f"{file} {PROSE}")
    assert text_in(tmp_path, name=name).startswith(f"{name}.txt")
    assert text_in(tmp_path / f"{name}.txt", name=name).startswith(f"{name}.txt")
    message = refused(opened, tmp_path / "my.txt", "typo")
    assert "there is no dataset 'typo'; choose one with --dataset: my (1 train)" in message


# -- few tokens --------------------------------------------------------------------------------------------------------


def tokens(path, n):
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.arange(1, n + 1) % 290).astype("<u2").tofile(path)
    return path


@pytest.mark.parametrize("order", ["shuffled", "sequential", "llmc"])
@pytest.mark.parametrize("n_train, n_val", [((300,), 1), ((2, 2, 1), 2), ((1, 1, 1), 5), ((300,), 2), ((2,), 300)])
def test_trainings_on_few_tokens_run_or_are_refused_in_one_line(tmp_path, order, n_train, n_val):
    import train_gpt2
    from tinygrad2.distributed.world import World

    for i, n in enumerate(n_train):
        tokens(tmp_path / "d" / f"x_train_{i}.bin", n)
    tokens(tmp_path / "d" / "x_val.bin", n_val)
    flags = [*SMALL.split(), "--steps", 2, "--data", tmp_path / "d", "--order", order, "--sample-tokens", 2,
             "--eval-every", 1, "--run-dir", tmp_path / "run", "--weights-out", tmp_path / "w.bin"]  # fmt: skip
    start = lambda: train_gpt2.main(World(), list(map(str, flags)))  # noqa: E731
    if n_val == 1:
        assert "x_val.bin: 1 token(s) are too few to validate on" in refused(start)
    elif sum(n_train) < 3:
        assert "2 token(s) are too few to train on" in refused(start)
    elif order == "llmc" and max(n_train) <= 128:
        assert "--order llmc: each file must have 129 tokens" in refused(start)
    else:
        assert start() == 0


def test_an_empty_text_for_validation_is_refused(tmp_path):
    put(tmp_path / "a_train.txt", PROSE)
    path = put(tmp_path / "a_val.txt", b"")
    assert refused(opened, tmp_path).startswith(f"{path}: it contains no text")


def test_perplexity_of_few_tokens_and_of_texts_in_other_forms(tmp_path, run, capsys):
    def perplexity(data):
        code = evaluate.main(["perplexity", "--weights", str(run / "w.bin"), "--json", "--data", str(data)])
        return code, json.loads(capsys.readouterr().out)["bytes"]

    for form in ("gzip", "utf-16", "utf-8 with mark"):
        assert perplexity(put(tmp_path / "t.txt", FORMS[form])) == (0, len(PROSE.encode()))
    assert "seems to be in Windows-1252" in refused(perplexity, put(tmp_path / "t.txt", PROSE.encode("cp1252")))
    assert "is weights" in refused(perplexity, run / "w.bin")
    assert "is empty" in refused(perplexity, put(tmp_path / "t.txt", b""))
    assert "contains no ids" in refused(perplexity, put(tmp_path / "t.bin", b""))
    assert perplexity(tokens(tmp_path / "t.bin", 1))[0] == 0


def test_short_files_in_which_every_second_number_is_zero_are_pointed_out(tmp_path):
    np.array([5, 0] * 50, "<u2").tofile(tmp_path / "z.bin")
    lines = opened(tmp_path / "z.bin").description
    assert any("taken for 50 ids of int32; if they are of uint16" in line for line in lines)
    np.arange(5000, dtype="<i4").tofile(tmp_path / "long.bin")
    assert not TokenFile(tmp_path / "long.bin").note


# -- pipes -------------------------------------------------------------------------------------------------------------

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@needs_pipes
def test_a_pipe_is_read_once_and_kept(tmp_path, monkeypatch):
    def piped(content):
        os.makedirs(tmp_path / "p", exist_ok=True)
        path = tmp_path / "p" / f"pipe{len(os.listdir(tmp_path / 'p'))}"
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        try:
            return opened(path)
        finally:
            writer.join()

    first, second = piped(PROSE.encode()), piped(FORMS["gzip"])
    assert first.tokenizer.decode(ids_of(first.train).tolist()).startswith(PROSE[:100])
    assert ids_of(first.train).tolist() == ids_of(second.train).tolist()
    again = piped(PROSE.encode())
    assert again.source == first.source != second.source and opened(first.source).fingerprint == first.fingerprint
    tokens, lines = tmp_path / "fifo.bin", []
    os.mkfifo(tokens)
    writer = threading.Thread(target=tokens.write_bytes, args=(np.arange(300, dtype="<u2").tobytes(),))
    writer.start()
    path = file_of(str(tokens), lines.append)  # the ending of a name says that bytes without a header are tokens
    writer.join()
    assert path.endswith(".bin") and find_files(path).tokens == [path]
    assert "is empty, nothing came through the pipe" in refused(piped, b"")
    assert "is an image (PNG)" in refused(piped, NO_TEXT["png"][0])


@needs_pipes
def test_a_training_reads_standard_input_and_is_resumed_without_it(tmp_path):
    put(tmp_path / "text.txt", TEXT * 40)
    command = [sys.executable, ROOT / "train_gpt2.py", *SMALL.split(), "--steps", "3", "--sample-tokens", "2"]
    text = (TEXT * 40).encode()
    result = subprocess.run([*command, "--data", "-"], cwd=tmp_path, input=text, capture_output=True)
    assert result.returncode == 0 and b"kept in " in result.stdout, result.stderr
    more = [*command, "--resume", "--steps", "5"]
    result = subprocess.run(more, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True)
    assert result.returncode == 0 and b" 5/5 " in result.stdout, result.stderr
    with open(tmp_path / "text.txt", "rb") as file:  # not a pipe: the file itself
        result = subprocess.run([*command, "--data", "/dev/stdin"], cwd=tmp_path, stdin=file, capture_output=True)
    assert result.returncode == 0 and (tmp_path / ".tinygrad2").is_dir(), result.stderr
    empty = subprocess.run([*command, "--data", "-"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True)
    assert (empty.returncode, empty.stderr) == (2, b"train_gpt2.py: -: is empty; give a text, or a file of tokens\n")


@needs_pipes
def test_devices_and_sockets_are_one_line(tmp_path):
    import socket

    for path, says in (("/dev/null", "is empty"), ("/dev/zero", "is a device"), ("/dev/urandom", "is a device")):
        assert says in refused(opened, path)
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(tmp_path)
        listener.bind("s")
        assert "s: is a socket; give a file" in refused(opened, "s")
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refused(load_tokenizer, tmp_path / "pipe")
    assert "give the name of a regular file" in refused(inference.load, str(tmp_path / "pipe"))


def test_what_is_no_pipe_is_passed_on(tmp_path):
    path = str(put(tmp_path / "t.txt", "abc"))
    for data in (path, str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "nowhere")):
        assert file_of(data, print) == data
    form, kind, head = examine(path)
    assert form.is_plain and kind is None and head == b"abc"
    with open_text(path, form) as file:
        assert file.read() == b"abc"
