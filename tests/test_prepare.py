"""The prepare scripts: complete files or none, whatever the server does; interrupted work ends with the same bytes."""

import contextlib
import gc
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from forged import NUMBERS, OTHERS, long_values, sign_record
from test_train import ROOT, TEXT

from data import download
from data.download import fetch, hub_files
from data.shards import make_shards
from data.tinystories.prepare import _stories
from tinygrad2.datasets.token_files import TokenFile
from tinygrad2.errors import UserError
from tinygrad2.io.files import read_record, write_record
from tinygrad2.tokenizers.tokenizer import Tokenizer

SHARED = ROOT.parent / "shared" / "data"
CONTENT = np.random.default_rng(0).bytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves {path: bytes}; `behave` defines how: what it does wrong, and how often."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.etag, self.ranges, self.cut_after, self.status, self.asked = files, '"1"', True, [], [], []
        self.slow, self.length = 0, ""
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_):
        """Silence."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        content = server.files.get(self.path)
        status = server.status.pop(0) if server.status else 200 if content is not None else 404
        if status == 416:
            self.send_response(status)
            if server.length:
                self.send_header("Content-Range", server.length)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if status != 200:
            self.send_error(status)
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.split("=")[1].rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + server.cut_after.pop(0) if server.cut_after else len(content)
        for place in range(start, min(end, len(content)), 50_000):
            time.sleep(server.slow)
            self.wfile.write(content[place : min(place + 50_000, end)])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "_pause", lambda attempt: 0)
    server = Server({"/a/file.bin": CONTENT})
    yield server
    server.shutdown()
    server.server_close()


def get(server, folder, **more):
    return fetch("https://example.org/a/file.bin", str(folder / "file.bin"), mirror=server.url, **more)


def test_a_file_is_fetched_checked_and_not_fetched_again(server, tmp_path):
    path = get(server, tmp_path, sha256=SHA256, size=len(CONTENT))
    assert pathlib.Path(path).read_bytes() == CONTENT and os.listdir(tmp_path) == ["file.bin"]
    get(server, tmp_path, sha256=SHA256)
    assert len(server.asked) == 1


def test_a_connection_that_breaks_is_taken_up_where_it_was(server, tmp_path):
    server.cut_after = [100_000, 50_000, 200_000]
    get(server, tmp_path, sha256=SHA256)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=150000-", "bytes=350000-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_always_breaks_ends_in_one_line_and_the_next_run_goes_on(server, tmp_path):
    server.cut_after = [10_000] * 5
    with pytest.raises(UserError, match="no connection .*; run this again to resume"):
        get(server, tmp_path, sha256=SHA256)
    assert (tmp_path / "file.bin.part").stat().st_size == 50_000 and not (tmp_path / "file.bin").exists()
    get(server, tmp_path, sha256=SHA256)
    assert server.asked[-1][1] == "bytes=50000-"


def test_without_ranges_or_with_another_file_it_starts_again(server, tmp_path):
    server.cut_after, server.ranges = [100_000], False
    get(server, tmp_path, sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    (tmp_path / "file.bin").unlink()
    server.ranges, server.cut_after = True, [100_000] * 5
    with pytest.raises(UserError):
        server.files["/a/file.bin"] = CONTENT * 2
        get(server, tmp_path)
    server.etag, server.files["/a/file.bin"] = '"2"', CONTENT
    get(server, tmp_path, sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_more_than_the_file_has_is_not_taken_for_it(server, tmp_path):
    """A server answers 416 to the request for what follows; it tells the length of its file, or the caller knows it."""
    part = tmp_path / "file.bin.part"
    for length, size in (("bytes */400000", None), ("bytes */*", None), ("", None), ("", 400_000)):
        part.write_bytes(CONTENT + b"more")
        write_record(str(part) + ".json", {"etag": '"1"'})
        server.status, server.length = [416], length
        get(server, tmp_path, size=size)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        (tmp_path / "file.bin").unlink()
    part.write_bytes(CONTENT)
    write_record(str(part) + ".json", {"etag": '"1"'})
    server.status, server.length = [416], "bytes */400000"
    get(server, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and server.asked[-1][1] == "bytes=400000-"


def test_forged_notes_of_a_download_do_no_harm(server, tmp_path):
    """Whatever the record of an interrupted download holds, with a right checksum: the file is fetched, and right."""
    part = tmp_path / "file.bin.part"
    record = pathlib.Path(str(part) + ".json")
    write_record(str(record), {"etag": '"1"'})
    texts = [content for _, content in long_values(record)]
    texts += [sign_record(f'{{"etag": {value}}}'.encode()) for value in NUMBERS + OTHERS]
    texts += [sign_record(value.encode()) for value in OTHERS]
    for text in texts:
        part.write_bytes(CONTENT[:1000])
        record.write_bytes(text)
        get(server, tmp_path, sha256=SHA256)
        assert os.listdir(tmp_path) == ["file.bin"] and (tmp_path / "file.bin").read_bytes() == CONTENT
        (tmp_path / "file.bin").unlink()


@pytest.mark.parametrize("wrong", [dict(sha256="0" * 64), dict(size=5)])
def test_another_content_is_refused_and_removed(server, tmp_path, wrong):
    with pytest.raises(UserError, match="the download is another file .*; it has been removed, run this again"):
        get(server, tmp_path, **wrong)
    assert os.listdir(tmp_path) == []


def test_what_the_server_refuses_is_one_line(server, tmp_path):
    with pytest.raises(UserError, match="/nowhere: the server answers 404 Not Found; try --mirror URL"):
        fetch("https://example.org/nowhere", str(tmp_path / "x"), mirror=server.url)
    server.status = [503, 500]
    get(server, tmp_path, sha256=SHA256)
    server.status = [503] * 5
    with pytest.raises(UserError, match="the server answers 503"):
        fetch("https://example.org/a/file.bin", str(tmp_path / "y"), mirror=server.url)
    with pytest.raises(UserError, match="no connection"):
        fetch("https://example.org/x", str(tmp_path / "z"), mirror="http://127.0.0.1:9")


def test_a_server_that_falls_silent_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    monkeypatch.setattr(download, "_TRIES", 2)
    server.slow = 1
    with pytest.raises(UserError, match="no connection .*timed out"):
        get(server, tmp_path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
                                  b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"])  # fmt: skip
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(server, tmp_path, monkeypatch, head):
    """In the status, in a header, in the content, in the length of a chunk; of a file and of a listing."""
    for name, value in (("_PATIENCE", 0.3), ("_LISTING_SECONDS", 0.3), ("_TRIES", 2)):
        monkeypatch.setattr(download, name, value)

    def trickle(handler):
        handler.wfile.write(head)
        with contextlib.suppress(OSError):
            for _ in range(40):
                handler.wfile.write(b"1")
                handler.wfile.flush()
                time.sleep(0.05)
        handler.close_connection = True

    monkeypatch.setattr(Handler, "do_GET", trickle)
    with pytest.raises(UserError, match=r"no connection \((no answer|less than 65,536 bytes) within 0.3 s\)"):
        get(server, tmp_path)
    with pytest.raises(UserError, match=r"cannot be listed \(not complete within 0.3 s\)"):
        hub_files("s/t", "d", "main", server.url, ".parquet")
    assert not (tmp_path / "file.bin").exists()


def test_listings_of_the_hub_are_checked(server):
    entry = {"type": "file", "path": "d/a.parquet", "size": 5, "lfs": {"oid": "ab" * 32}}
    place = "/api/datasets/someone/set/tree/refs%2Fconvert/d"
    server.files[place] = json.dumps([entry, {"type": "directory", "path": "d/x"}]).encode()
    assert hub_files("someone/set", "d", "refs/convert", server.url, ".parquet") == [("d/a.parquet", 5, "ab" * 32)]
    for bad in (b"{", b"[1]", b"[]", b'{"error": "gone"}', b'[{"type": "file"}]'):
        server.files[place] = bad
        with pytest.raises(UserError) as error:
            hub_files("someone/set", "d", "refs/convert", server.url, ".parquet")
        assert "\n" not in str(error.value)


BAD_ENTRIES = {  # what a listing may say instead of a size, a path or a SHA-256
    "size": ["1e999", "NaN", "9" * 400, "9" * 5000, "-1", '"5"', "1.5", "true", "null", "[]", "1e5"],
    "path": ['"../a.parquet"', '"/etc/a.parquet"', '"a//b.parquet"', '"./a.parquet"', '"a/../../b.parquet"', "5",
             '"\\u001b[2J.parquet"', '"a\\n.parquet"', '"\\u0000.parquet"', '"\\ud800.parquet"', '"\\u202e.parquet"',
             '"' + "a" * 100_000 + '.parquet"', "null", "[]"],
    "lfs": ['{"oid": 5}', '{"oid": "ab"}', '{"oid": "' + "Z" * 64 + '"}', "5", "[1]", '"x"'],
}  # fmt: skip


@pytest.mark.parametrize("field", BAD_ENTRIES)
def test_impossible_entries_of_a_listing_are_one_line(server, field):
    place = "/api/datasets/s/t/tree/main/d"
    for value in BAD_ENTRIES[field]:
        entry = {"type": '"file"', "path": '"d/a.parquet"', "size": "5"} | {field: value}
        text = ", ".join(f'"{name}": {value}' for name, value in entry.items())
        server.files[place] = f"[{{{text}}}]".encode()
        with pytest.raises(UserError, match="is not a list of files") as error:
            hub_files("s/t", "d", "main", server.url, ".parquet")
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", [
    b"[" * 2_000_000, b'{"a":' * 500_000, b"<html>sign in</html>", b"null", b"5", b"\xff\xfe", b"",
    b'[{"type": "file", "path": "a.parquet", "size": 5}, {"type": "file", "path": "a.parquet", "size": 6}]',
])  # fmt: skip
def test_a_response_that_is_no_listing_is_one_line(server, text):
    server.files["/api/datasets/s/t/tree/main/d"] = text
    with pytest.raises(UserError, match="is not a list of files"):
        hub_files("s/t", "d", "main", server.url, ".parquet")


RESPONSES = {  # what a server may answer, as the bytes on the wire; {here} is the path that was asked for
    "redirect loop": b"HTTP/1.1 302 Found\r\nLocation: {here}x\r\nContent-Length: 0\r\n\r\n",
    "redirect to itself": b"HTTP/1.1 301 Moved\r\nLocation: {here}\r\nContent-Length: 0\r\n\r\n",
    "redirect to a file": b"HTTP/1.1 301 Moved\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "redirect to no address": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "redirect to no port": b"HTTP/1.1 302 Found\r\nLocation: http://localhost:abc/\r\nContent-Length: 0\r\n\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[",
    "huge length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n[",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n[",
    "too much": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 500_000,
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    "control characters": b"HTTP/1.1 404 \x1b[31mred\x07\r\nContent-Length: 0\r\n\r\n",
    "long reason": b"HTTP/1.1 404 " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "long header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "no HTTP": b"\0\1\2\3" * 100,
    "nothing": b"",
    "nothing missing": b"HTTP/1.1 416 Range\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # urllib leaves the socket of a redirect to the collector
@pytest.mark.parametrize("kind", RESPONSES)
def test_odd_responses_are_one_line(server, tmp_path, monkeypatch, kind):
    """Both of a file and of a listing; no file of another content is left under its name."""
    monkeypatch.setattr(download, "_TRIES", 2)

    def answer(handler):
        handler.wfile.write(RESPONSES[kind].replace(b"{here}", handler.path.encode()))
        handler.close_connection = True

    monkeypatch.setattr(Handler, "do_GET", answer)
    for ask in (lambda: get(server, tmp_path, sha256=SHA256, size=len(CONTENT)),
                lambda: hub_files("s/t", "d", "main", server.url, ".parquet")):  # fmt: skip
        with pytest.raises(UserError) as error:
            ask()
        assert len(str(error.value)) < 1000 and str(error.value).isprintable()
        assert "\\n" not in str(error.value)
    assert not (tmp_path / "file.bin").exists()
    gc.collect()


def test_a_listing_that_never_ends_is_given_up(server, monkeypatch):
    monkeypatch.setattr(download, "_LISTING", 100_000)
    server.files["/api/datasets/s/t/tree/main/d"] = b"[" * 1_000_000
    with pytest.raises(UserError, match="not complete after 100,000 bytes"):
        hub_files("s/t", "d", "main", server.url, ".parquet")


# -- shards ------------------------------------------------------------------------------------------------------------


def documents(position):
    for i in range(position if isinstance(position, int) else 0, 40):
        yield i, [f"document {i} " * (i % 7), "second"] if i % 5 else []


@pytest.mark.parametrize("size", [7, 100, 999, 100_000])
def test_shards_join_to_the_stream_wherever_the_work_is_cut(tmp_path, size):
    tokenizer = Tokenizer.train("document second " * 9, 270)
    expected = [id for _, group in documents(None) for text in group for id in [tokenizer.eot, *tokenizer.encode(text)]]
    n = make_shards(documents, str(tmp_path / "whole"), tokenizer, size)
    stem, before = str(tmp_path / "cut"), None
    for most in range(1, n + 1):  # a process per shard
        assert make_shards(documents, stem, tokenizer, size, most) == most != before
    assert make_shards(documents, stem, tokenizer, size) == n
    for name in ("whole", "cut"):
        paths = sorted(tmp_path.glob(f"{name}_0*.bin"))
        assert len(paths) == n
        shards = [TokenFile(path) for path in paths]
        assert np.array_equal(np.concatenate([shard.read(0, shard.n) for shard in shards]), expected)
        assert all(shard.n == size for shard in shards[:-1])


def go_on(stem, record, tokenizer, expected):
    """What is wrong if the work goes on with a forged record, or "". It is refused in a line and nothing is changed, or
    the record is one that cannot be read, and all shards come out as `expected`, {name: bytes}."""
    before = {path.name: path.read_bytes() for path in record.parent.iterdir()}
    try:
        make_shards(documents, stem, tokenizer, 99)
    except UserError as error:
        after = {path.name: path.read_bytes() for path in record.parent.iterdir()}
        is_line = str(record) in str(error) and "remove" in str(error) and len(str(error)) < 600
        return "" if is_line and after == before else f"changed, or {error}"
    after = {path.name: path.read_bytes() for path in record.parent.glob("*.bin")}
    return "" if after == expected else "other shards"


def test_forged_records_of_shards_are_refused(tmp_path):
    """Each field with a value that no work writes, with a right checksum; then with one that it could have written."""
    tokenizer = Tokenizer.train("document second " * 9, 270)
    make_shards(documents, str(tmp_path / "x"), tokenizer, 99)
    expected = {path.name: path.read_bytes() for path in tmp_path.glob("*.bin")}
    stem, record = str(tmp_path / "cut" / "x"), tmp_path / "cut" / "x_state.json"
    record.parent.mkdir()
    make_shards(documents, stem, tokenizer, 99, most=3)
    right, saved = read_record(record), tmp_path / "saved"
    shutil.copytree(record.parent, saved)

    def try_record(what, text, expected=expected):
        record.write_bytes(text)
        problem = go_on(stem, record, tokenizer, expected)
        assert not problem, (what, problem)
        shutil.rmtree(record.parent)
        shutil.copytree(saved, record.parent)

    for what, text in long_values(record):
        try_record(what, text)
    for name in right:
        try_record(name, sign_record(json.dumps({k: v for k, v in right.items() if k != name}).encode()))
        for value in [*NUMBERS, *OTHERS, "[1, 2]", "[0, -1]", "[0, 1, 2]"]:
            marked = json.dumps(right | {name: "@"}).replace('"@"', value, 1)
            is_possible = value in ("true", "false") if name == "done" else value in ("0", "1", "127", "128")
            if not is_possible:
                try_record((name, value), sign_record(marked.encode()))
    for name in ("x_000001.bin", "x_000002.bin"):
        (record.parent / name).unlink()
        with pytest.raises(UserError, match=f"{name}: is missing, although it was written"):
            make_shards(documents, stem, tokenizer, 99)
        shutil.copy(saved / name, record.parent)


@pytest.mark.parametrize("position", [1, 26, 10**6, 1 << 60, [0, 0], None])
def test_stories_go_on_only_where_one_begins(tmp_path, position):
    path = tmp_path / "stories.txt"
    path.write_bytes(b"One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    begin, stories = next(_stories(str(path), None, position))
    assert begin == 0 and len(stories) == 2
    assert next(_stories(str(path), None, 18)) == (18, [b"Two."])


# -- the scripts -------------------------------------------------------------------------------------------------------


def prepare(name, *flags, **more):
    command = [sys.executable, str(ROOT / "data" / name / "prepare.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, **more)


GOLDEN = {
    ("shakespeare_char", None): {
        "train.bin": "6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f",
        "val.bin": "d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1",
    },
    ("shakespeare", "llmc"): {
        "tiny_shakespeare_train.bin": "8a70606be574040c26d225694f5f9759973b419852d22f7fe5c118e1b359dcc8",
        "tiny_shakespeare_val.bin": "fe99db720dc7c83e694806d4e047a952909411da1daccde4ccc2e55f40882a62",
    },
    ("shakespeare", "llmc-legacy"): {
        "tiny_shakespeare_train.bin": "fe4dddf0265c5cf586e0684534932890dab01a74c358b8378f1a3d41cbdba429",
        "tiny_shakespeare_val.bin": "5dcd79e2f05f2f6cbc3a440565105367c12f148c4e01a3283a4307921f5f9945",
    },
    ("shakespeare", "nanogpt"): {
        "train.bin": "502a2bdc8210d1ac5d5674867cb74467dd31db575d25cf6dbb08c8bdbea8680f",
        "val.bin": "68a53422394c26a655ebe641f5c6f49888e8f4e45fe5d6f02abda63ba3ebd65b",
    },
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the texts in ../shared/data are not here")
@pytest.mark.parametrize("name, form", GOLDEN)
def test_tiny_shakespeare_comes_out_byte_for_byte(server, tmp_path, name, form):
    server.files = {
        "/karpathy/char-rnn/master/data/tinyshakespeare/input.txt": (SHARED / "tinyshakespeare.txt").read_bytes(),
        "/gpt-2/encodings/main/vocab.bpe": (SHARED / "vocab.bpe").read_bytes(),
    }
    flags = ["--mirror", server.url, "--out", tmp_path / "out"] + (["--format", form] if form else [])
    result = prepare(name, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("needs ")
    for file, sha256 in GOLDEN[name, form].items():
        assert hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() == sha256
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_characters_are_prepared_from_any_text_and_trained_on(tmp_path):
    (tmp_path / "my.txt").write_text(TEXT * 20, encoding="utf-8")
    result = prepare("shakespeare_char", "--text", tmp_path / "my.txt", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    n = len(set(TEXT))
    assert f"{n} characters" in result.stdout
    flags = f"--data out --vocab-size {n} --n-layer 1 --n-embd 16 --n-head 2 --block-size 8 --steps 3 --prompt The"
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *flags.split()]
    trained = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=600)
    assert trained.returncode == 0, trained.stderr
    assert "greedy    The" in trained.stdout
    command = [sys.executable, str(ROOT / "inference.py"), "--prompt", "The"]
    written = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=600)
    assert written.returncode == 0 and written.stdout.startswith("The"), written.stderr


def stories_server(server):
    stories = "".join(f"Story {i} of the cat and the dog.\nThe end.\n<|endoftext|>\n" for i in range(3000)).encode()
    files = {"TinyStoriesV2-GPT4-train.txt": stories, "TinyStoriesV2-GPT4-valid.txt": stories[:5000]}
    listing = [{"type": "file", "path": name, "size": len(content), "lfs": {"oid": hashlib.sha256(content).hexdigest()}}
               for name, content in files.items()]  # fmt: skip
    server.files = {f"/datasets/roneneldan/TinyStories/resolve/main/{name}": content for name, content in files.items()}
    server.files["/api/datasets/roneneldan/TinyStories/tree/main"] = json.dumps(listing).encode()
    return stories


def test_tinystories_killed_and_run_again_comes_to_the_same_bytes(server, tmp_path):
    stories_server(server)
    flags = ["--mirror", server.url, "--vocab-size", 300, "--shard-tokens", 5000, "--out"]
    whole = prepare("tinystories", *flags, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    command = [sys.executable, str(ROOT / "data" / "tinystories" / "prepare.py"), *map(str, flags), str(cut)]
    for least in (1, 3, 6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(cut.glob("*_train_*.bin"))) < least:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert prepare("tinystories", *flags, cut).returncode == 0
    made = sorted(path.name for path in (tmp_path / "whole").glob("*.bin"))
    assert made[0] == "tinystories_train_000000.bin" and made[-1] == "tinystories_val_000000.bin" and len(made) > 8
    for name in made + ["tokenizer.json"]:
        assert (tmp_path / "whole" / name).read_bytes() == (cut / name).read_bytes()


@pytest.mark.parametrize("name, repo, revision, folder, stem", [
    ("fineweb_edu", "HuggingFaceFW/fineweb-edu", "main", "sample/10BT", "edu_fineweb"),
    ("openwebtext", "Skylion007/openwebtext", "refs%2Fconvert%2Fparquet", "plain_text/train", "openwebtext"),
])  # fmt: skip
def test_parquet_files_become_shards(server, tmp_path, name, repo, revision, folder, stem):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as parquet

    merges = SHARED / "vocab.bpe"
    if not merges.exists():
        pytest.skip("GPT-2's vocab.bpe is not here")
    texts, listing, server.files = [], [], {}
    for k in range(2):
        column = [f"Page {k}.{i}. The cat sat on the mat. " * (i % 4) for i in range(50)]
        texts += [text for text in column if text]
        parquet.write_table(pa.table({"text": column, "id": list(range(50))}), tmp_path / "p", row_group_size=20)
        content, path = (tmp_path / "p").read_bytes(), f"{folder}/000{k}.parquet"
        sha256 = hashlib.sha256(content).hexdigest()
        listing.append({"type": "file", "path": path, "size": len(content), "lfs": {"oid": sha256}})
        server.files[f"/datasets/{repo}/resolve/{revision}/{path}"] = content
    server.files[f"/api/datasets/{repo}/tree/{revision}/{folder}"] = json.dumps(listing).encode()
    flags = ["--mirror", server.url, "--merges", merges, "--shard-tokens", 500, "--out", tmp_path / "out"]
    first = prepare(name, *flags, "--shards", 2)
    assert first.returncode == 0 and "2 shard(s)" in first.stdout, first.stderr
    rest = prepare(name, *flags)
    assert rest.returncode == 0 and "continuing after shard 2" in rest.stdout, rest.stderr
    paths = [tmp_path / "out" / f"{stem}_val_000000.bin", *sorted((tmp_path / "out").glob(f"{stem}_train_*.bin"))]
    found = np.concatenate([TokenFile(path).read(0, TokenFile(path).n) for path in paths])
    tokenizer = Tokenizer.from_merges_txt(merges)
    assert np.array_equal(found, [id for text in texts for id in [tokenizer.eot, *tokenizer.encode(text)]])
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize("name", ["shakespeare", "shakespeare_char", "tinystories", "openwebtext", "fineweb_edu"])
def test_scripts_explain_themselves_and_refuse_in_one_line(tmp_path, name):
    helped = prepare(name, "--help", cwd=tmp_path)
    assert helped.returncode == 0 and "--mirror" in helped.stdout and "default" in helped.stdout
    wrong = prepare(name, "--colour", "red", cwd=tmp_path)
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    away = prepare(name, "--mirror", "http://127.0.0.1:9", "--out", tmp_path / "out", cwd=tmp_path, env={
        **os.environ, "PYTHONPATH": str(patience(tmp_path))})  # fmt: skip
    assert away.returncode == 2 and len(away.stderr.splitlines()) == 1, away.stderr
    if name.startswith("shakespeare"):  # what to fetch by hand, and where to put it
        lines = list(map(str.strip, away.stdout.splitlines()))
        places = [after.strip("-> ") for line, after in zip(lines, lines[1:]) if line.startswith("https://")]
        names = {"shakespeare": ["input.txt", "vocab.bpe"], "shakespeare_char": ["input.txt"]}[name]
        assert places == [str(tmp_path / "out" / wanted) for wanted in names]


def patience(folder):
    """A folder with a sitecustomize.py that makes waiting short."""
    (folder / "short").mkdir()
    (folder / "short" / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
    return folder / "short"
