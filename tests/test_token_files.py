"""Token files of every kind: read exactly, recognized by content, refused if incomplete; in bounded memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
from test_train import ROOT

from tinygrad2.datasets.token_files import MemoryTokens, TokenFile, TokenStream, write_raw, write_tokens
from tinygrad2.errors import UserError

IDS = np.random.default_rng(0).integers(1, 50257, 5000)


def header(magic, version, n):
    values = np.zeros(256, "<i4")
    values[:3] = magic, version, n
    return values.tobytes()


def write(path, kind, ids=IDS):
    if kind == "llm.c":
        path.write_bytes(header(20240520, 1, len(ids)) + ids.astype("<u2").tobytes())
    elif kind == "llm.c, llama-3":
        path.write_bytes(header(20240801, 7, len(ids)) + ids.astype("<u4").tobytes())
    elif kind == "llm.c, legacy":
        path.write_bytes(ids.astype("<i4").tobytes())
    elif kind == "nanoGPT":
        path.write_bytes(ids.astype("<u2").tobytes())
    else:
        with open(path, "wb") as file:
            np.save(file, ids.astype(np.uint16))
    return path


KINDS = ("llm.c", "llm.c, llama-3", "llm.c, legacy", "nanoGPT", "npy")


def test_tokens_in_memory_have_the_fingerprint_of_the_file(tmp_path):
    for ids in (np.arange(50_000), np.arange(70_000, dtype=np.int32), np.array([7])):
        write_tokens(tmp_path / "t.bin", ids)
        streams = [TokenStream([tokens]) for tokens in (MemoryTokens(ids), TokenFile(str(tmp_path / "t.bin")))]
        assert len({stream.fingerprint() for stream in streams}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognized_by_content_and_read_exactly(tmp_path, kind):
    file = TokenFile(write(tmp_path / "x.bin", kind))
    assert (file.kind, file.n) == (kind, 5000)
    assert np.array_equal(file.read(0, 5000), IDS) and np.array_equal(file.read(4000, 4003), IDS[4000:4003])
    assert file.read(7, 9).dtype == np.int64


def test_characters_in_uint16_are_not_taken_for_int32(tmp_path):
    """nanoGPT's shakespeare_char: ids below 65, of which 0 (a line break) is frequent."""
    ids = np.random.default_rng(1).integers(0, 65, 4000)
    assert TokenFile(write(tmp_path / "x.bin", "nanoGPT", ids)).kind == "nanoGPT"
    assert TokenFile(write(tmp_path / "x.bin", "llm.c, legacy", ids)).kind == "llm.c, legacy"


def test_ids_of_int64_without_a_header_are_refused(tmp_path):
    """NumPy's default: as int32, every second id would be 0."""
    IDS.astype("<i8").tofile(tmp_path / "x.bin")
    with pytest.raises(UserError, match="ids of int64; write them with ids.astype"):
        TokenFile(tmp_path / "x.bin")
    mixed = np.where(np.arange(5000) % 2, 0, IDS)
    mixed[4001] = 7  # a single odd position is enough
    assert np.array_equal(TokenFile(write(tmp_path / "y.bin", "llm.c, legacy", mixed)).read(0, 5000), mixed)


def test_what_is_written_is_what_llm_c_writes(tmp_path):
    write_tokens(tmp_path / "a.bin", IDS)
    assert (tmp_path / "a.bin").read_bytes() == write(tmp_path / "b.bin", "llm.c").read_bytes()
    large = IDS + 100_000
    write_tokens(tmp_path / "a.bin", large)
    assert (tmp_path / "a.bin").read_bytes() == write(tmp_path / "b.bin", "llm.c, llama-3", large).read_bytes()
    write_raw(tmp_path / "a.bin", IDS)
    assert (tmp_path / "a.bin").read_bytes() == IDS.astype("<u2").tobytes()
    write_raw(tmp_path / "a.bin", IDS, np.int32)
    assert (tmp_path / "a.bin").read_bytes() == IDS.astype("<i4").tobytes()


def test_npy_of_other_shapes_and_types(tmp_path):
    for array, fine in ((IDS.astype(np.int32), True), (IDS.astype(np.uint8), True), (IDS.reshape(50, 100), False),
                        (IDS.astype(np.float32), False), (IDS.astype(">u2"), False), (np.array(5), False)):  # fmt: skip
        np.save(tmp_path / "x.npy", array)
        if fine:
            assert np.array_equal(TokenFile(tmp_path / "x.npy").read(0, 5000), array)
        else:
            with pytest.raises(UserError, match="not one axis of integers"):
                TokenFile(tmp_path / "x.npy")
    with open(tmp_path / "x.npy", "wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError):
        TokenFile(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "it contains no ids"),
        (b"abc", "3 bytes are not a multiple of 2"),
        (header(20240520, 1, 10), "its header says 10 ids, but it is 1,024 bytes long instead of 1,044"),
        (header(20240520, 1, 2**31 - 1) + bytes(20), "says 2,147,483,647 ids"),
        (header(20240520, 1, -5) + bytes(20), "says -5 ids"),
        (header(20240520, 2, 10) + bytes(20), "version is 2, not 1"),
        (header(20240520, 1, 0), "it contains no ids"),
        (header(20240520, 1, 10)[:50], "but it is 50 bytes long"),
        (header(20240801, 1, 10) + bytes(40), "version is 1, not 7"),
        (header(20240326, 3, 1024), "a model of llm.c"),
        (b"\x93NUMPY\x01\x00\xff\xff", "npy header is damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<u2',", "npy header is damaged"),
        (b"\x93NUMPY\x09\x00", "npy header is damaged"),
    ],
)
def test_incomplete_files_are_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError) as error:
        TokenFile(tmp_path / "x.bin")
    text = str(error.value)
    assert says in text and text.startswith(str(tmp_path / "x.bin")) and "\n" not in text


# -- streams -----------------------------------------------------------------------------------------------------------


def stream_of(tmp_path, sizes, **more):
    files, start = [], 0
    for i, size in enumerate(sizes):
        files.append(TokenFile(write(tmp_path / f"{i}.bin", KINDS[i % 2], IDS[start : start + size])))
        start += size
    return TokenStream(files, **more)


def test_several_files_are_one_stream_and_it_is_a_ring(tmp_path):
    stream = stream_of(tmp_path, [10, 1, 500, 7])
    assert len(stream) == 518
    ring = np.tile(IDS[:518], 3)
    starts = [0, 5, 9, 10, 11, 505, 517, 518 + 3]
    assert np.array_equal(stream.read(starts, 600), [ring[s % 518 : s % 518 + 600] for s in starts])
    part = stream.part(8, 14)
    assert len(part) == 6 and np.array_equal(part.read([4], 4), [IDS[[12, 13, 8, 9]]])


def test_more_files_than_may_be_open(tmp_path):
    stream = stream_of(tmp_path, [3] * 200)
    assert np.array_equal(stream.read([0], 600)[0], IDS[:600])
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    stream.read(range(0, 600, 3), 3)
    assert not opened or len(os.listdir("/proc/self/fd")) - opened < 40


def test_an_id_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    ids = IDS.copy()
    ids[17] = 50300
    stream = TokenStream([TokenFile(write(tmp_path / "x.bin", "llm.c", ids))], vocab_size=50257)
    assert stream.read([0], 17).shape == (1, 17)
    with pytest.raises(UserError, match="x.bin: id 50300 at position 17 is outside a vocabulary of 50,257: the"):
        stream.read([10], 20)
    negative = TokenStream([MemoryTokens(np.array([1, -1, 1]))], vocab_size=10)
    with pytest.raises(UserError, match="id -1 at position 1"):
        negative.read([0], 3)


def test_fingerprints_of_different_streams_differ(tmp_path):
    stream = stream_of(tmp_path, [400, 600])
    prints = {stream.fingerprint(), stream.part(0, 900).fingerprint(), stream.part(1, 901).fingerprint()}
    raw = bytearray((tmp_path / "1.bin").read_bytes())
    raw[1024 + 9] ^= 1
    (tmp_path / "1.bin").write_bytes(raw)
    prints.add(TokenStream([TokenFile(tmp_path / f"{i}.bin") for i in (0, 1)]).fingerprint())
    assert len(prints) == 4
    assert stream_of(tmp_path, [400, 600]).fingerprint() in prints


BOUNDED = """
import sys, numpy as np
from tinygrad2.system.memory import peak_resident_bytes, resident_bytes
from tinygrad2.datasets.token_files import TokenFile, TokenStream
from tinygrad2.datasets.dataloader import DataLoader
stream = TokenStream([TokenFile(sys.argv[1])])
before = resident_bytes()
loader, position = DataLoader(stream, 16, 1024, order="shuffled"), (0, 0)
for _ in range(int(sys.argv[2])):
    loader.batch(position)
    position = loader.after(position)
print(len(stream), peak_resident_bytes() - before)
"""


def grown(path, batches):
    """Bytes by which a process has grown that read so many batches."""
    command = [sys.executable, "-c", BOUNDED, str(path), str(batches)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return list(map(int, result.stdout.split()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux does")
def test_a_large_file_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "large.bin"
    n = 100_000_000
    path.write_bytes(header(20240520, 1, n))
    os.truncate(path, 1024 + 2 * n)  # full of holes: 200 MB that take no room on the disk
    assert grown(path, 150) == [n, pytest.approx(0, abs=40e6)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux does")
def test_two_gigabytes_of_tokens_in_bounded_memory(tmp_path):
    path, n = tmp_path / "large.bin", 1_000_000_000
    with open(path, "wb") as file:
        file.write(header(20240520, 1, n))
        block = np.random.default_rng(0).integers(0, 50257, 10_000_000).astype("<u2").tobytes()
        for _ in range(n // 10_000_000):
            file.write(block)
    tokens, growth = grown(path, 3000)  # 49 million tokens, all over the file
    assert tokens == n and growth < 60e6
    path.unlink()
