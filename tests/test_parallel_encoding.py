"""Documents to one stream of ids: any number of processes returns the same ids, and none is left running."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrad2.datasets.text_cache import encode_documents
from tinygrad2.errors import UserError
from tinygrad2.system.threads import POOL
from tinygrad2.tokenizers import parallel
from tinygrad2.tokenizers.parallel import EncodingError, encode_stream, shares
from tinygrad2.tokenizers.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
PROSE = "She sells sea shells by the sea shore; naïve\u2003café, 日本語。\n It's  \u3000 \n\t 12 \x1c\x85 🙂. "
TOKENIZER = Tokenizer.train(PROSE * 2, 320)
GREET = "import sys; sys.stdin.readline(); print('ready', flush=True); sys.stdin.readline(); "


@pytest.fixture
def small_shares(monkeypatch):
    """Shares of 200 bytes, and parallel work from 1,000 bytes on."""
    monkeypatch.setattr(parallel, "SHARE", 200)
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 1000)


def some_documents(seed=0):
    """Empty ones, short ones, long ones with and without white space, invalid bytes, str and bytes."""
    rng = random.Random(seed)
    documents = [b"", "", PROSE, (PROSE * 30).encode(), "x" * 3000, b"\xff\xfe \xe2\x80" * 99, "<|endoftext|>" * 50]
    for size in range(0, 2000, 97):
        documents.append("".join(rng.choices(PROSE, k=size)))
        documents.append(rng.randbytes(size))
    rng.shuffle(documents)
    return documents


def by_hand(documents):
    return [id for document in documents for id in [*TOKENIZER.encode(document), TOKENIZER.eot]]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_returns_the_same_ids(workers, small_shares):
    for documents in (some_documents(), [PROSE * 50], [b""] * 500 + [b"a"] * 500, [b""], []):
        assert encode_stream(documents, TOKENIZER, workers).tolist() == by_hand(documents)


def test_the_stream_is_an_array_of_numpy(small_shares):
    for documents in ([], [PROSE * 50]):
        ids = encode_documents(iter(documents), TOKENIZER, workers=2)
        assert ids.dtype == np.int32 and ids.flags.writeable and ids.tolist() == by_hand(documents)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
def test_a_long_document_is_cut_where_no_chunk_is(size, monkeypatch):
    monkeypatch.setattr(parallel, "SHARE", size)
    for seed in range(20):
        documents = some_documents(seed)[:10]
        ids = []
        for texts, last_is_whole in shares(documents):
            ids += parallel._encode_texts(map(bytes, texts), True, TOKENIZER)
            if not last_is_whole:
                ids.pop()
        assert ids == by_hand(documents)


def test_shares_are_about_equal_and_only_long_documents_are_cut(monkeypatch):
    monkeypatch.setattr(parallel, "SHARE", 4)
    cut = [(list(map(bytes, texts)), whole) for texts, whole in shares([b"one", b"two", b"one two three", b"", b"x"])]
    assert cut == [([b"one", b"two"], True), ([b"one two"], False), ([b" three"], True), ([b"", b"x"], True)]
    monkeypatch.setattr(parallel, "SHARE", 100)
    sizes = [sum(map(len, texts)) for texts, _ in shares([PROSE * 100])]
    assert len(sizes) > 50 and max(sizes) < 300


def test_large_texts_use_the_planned_threads(small_shares, monkeypatch):
    made = []
    monkeypatch.setattr(POOL, "threads", 2)
    monkeypatch.setattr(parallel, "_encode_in_parallel", lambda documents, tokenizer, workers: made.append(workers))
    encode_stream([b"a" * 999], TOKENIZER)
    assert made == []
    encode_stream([b"a" * 1000], TOKENIZER)
    encode_stream([b"a" * 1000], TOKENIZER, workers=4)
    assert made == [2, 4]
    monkeypatch.setattr(POOL, "threads", 1)  # a rank's share under mpirun, say
    assert encode_stream([b"a" * 1000], TOKENIZER).tolist() == by_hand([b"a" * 1000])
    assert made == [2, 4]


@pytest.mark.parametrize("code", ["sys.exit(1)", "sys.stdin.readline(); print('what?')", "import no_such_module", "1+"])
def test_where_workers_cannot_start_one_process_does_it_all(code, small_shares, monkeypatch):
    monkeypatch.setattr(parallel, "_START", f"import sys; {code}")
    assert encode_stream([PROSE * 50], TOKENIZER, workers=2).tolist() == by_hand([PROSE * 50])


@pytest.mark.parametrize("python", [None, "", "/no/such/python"])
def test_where_there_is_no_python_to_start_one_process_does_it_all(python, small_shares, monkeypatch):
    monkeypatch.setattr(sys, "executable", python)
    assert encode_stream([PROSE * 50], TOKENIZER, workers=2).tolist() == by_hand([PROSE * 50])


@pytest.mark.parametrize(
    "code, reason",
    [
        ("sys.exit('Traceback ...\\nMemoryError\\n')", "MemoryError"),
        ("sys.exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("print(100, 'too short', sep='\\n')", "exit code 0"),
    ],
)
def test_a_worker_that_dies_is_one_clear_error(code, reason, small_shares, monkeypatch):
    monkeypatch.setattr(parallel, "_START", GREET + code)
    with pytest.raises(EncodingError) as error:
        encode_stream([PROSE * 50], TOKENIZER, workers=2)
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
    assert f"a worker process ended before its work was done ({reason})" in str(error.value)


def test_ctrl_c_ends_the_workers_too():
    """The workers here hang; each writes its process number into a file that the parent prints."""
    script = f"""
import os, sys
from tinygrad2.tokenizers import parallel
from tinygrad2.tokenizers.tokenizer import Tokenizer
parallel.SHARE = 10
parallel._START = {GREET!r} + "import os, time; os.write(int({{}}), b'%d ' % os.getpid()); time.sleep(600)"
out = os.dup(1)
os.set_inheritable(out, True)
parallel._START = parallel._START.format(out)
start = parallel.subprocess.Popen
parallel.subprocess.Popen = lambda *args, **pipes: start(*args, close_fds=False, **pipes)
parallel.encode_stream([b"one two three four"] * 10, Tokenizer([]), workers=2)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with parent:
        numbers = b""
        while numbers.count(b" ") < 2:
            read = os.read(parent.stdout.fileno(), 100)
            assert read, parent.stderr.read().decode()
            numbers += read
        parent.send_signal(signal.SIGINT)
        _, errors = parent.communicate(timeout=600)
    assert errors.decode().strip().endswith("KeyboardInterrupt") and parent.returncode
    for number in numbers.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(number), 0)


def test_workers_do_not_load_numpy():
    script = "import sys, tinygrad2.tokenizers.parallel\n"
    script += "print('numpy' in sys.modules, 'multiprocessing' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.stdout == "False False\n", result.stderr
