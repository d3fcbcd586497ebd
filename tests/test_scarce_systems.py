"""What the system causes is one line: no memory, threads or files. Texts of anywhere are safe to show."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import scarce_systems

from tinygrad2.cli import call
from tinygrad2.errors import UserError, one_line, printable
from tinygrad2.system import memory
from tinygrad2.system.failures import explain
from tinygrad2.system.streams import ERASE, protected_streams
from tinygrad2.system.threads import Pool, require_threads
from tinygrad2.training.checkpoint import CheckpointWriter

ODD = "a\x1b[2J\x07b\nc\r\u202ed\u2028e\x9bf\ud800g\0h"


def wrapped(error):
    try:
        try:
            raise error
        except type(error) as cause:
            raise ValueError("a library's own") from cause
    except ValueError as raised:
        return raised


EXHAUSTED = {
    "out of memory": [MemoryError(), MemoryError("Unable to allocate 4 GiB"), OSError(errno.ENOMEM, "no"),
                      ImportError("x.so: failed to map segment from shared object"), RuntimeError("std::bad_alloc")],
    "too many open files": [OSError(errno.EMFILE, "Too many open files", "a"),
                            OSError(errno.ENFILE, "Too many open files in system"),
                            ImportError("x.so: cannot open shared object file: Too many open files")],
    "no more threads": [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN,
                                                                              os.strerror(errno.EAGAIN))],
}  # fmt: skip


@pytest.mark.parametrize("words", EXHAUSTED)
def test_exhausted_resources_are_one_line(words, capsys):
    for error in EXHAUSTED[words]:
        for raised in (error, wrapped(error)):
            assert words in explain(raised)

            def main(error=raised):
                raise error

            assert call(main, "prog") == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and lines[0].startswith("prog: ") and words in lines[0]


def test_other_errors_of_the_system_name_the_file_and_the_place_and_mistakes_stay_tracebacks(tmp_path):
    path = tmp_path / "missing"
    try:
        open(str(path))
    except OSError as error:
        assert explain(error).startswith(f"{path}: No such file or directory (test_scarce_systems.py:")
    for mistake in (KeyError("x"), RuntimeError("x"), ValueError("x"), OSError("without a number")):
        assert explain(mistake) is None


SCRIPT = """
import sys; sys.path.insert(0, {root!r})
from tinygrad2.cli import install_hooks
install_hooks("prog")
import threading, warnings
warnings.warn("for programmers")
class Odd:
    def __del__(self):
        raise OSError(28, "No space left on device", "x")
def fail():
    raise MemoryError
{body}
"""


@pytest.mark.parametrize("body, code, lines", [
    ("fail()", 2, 1), ("threading.Thread(target=fail).start()", 0, 1), ("Odd()", 0, 1), ("Odd(); Odd(); fail()", 2, 1),
    ("raise KeyboardInterrupt", 130, 2), ("raise ImportError('x.so: failed to map segment')", 2, 1),
    ("from tinygrad2.errors import UserError; raise UserError('a\\nb')", 2, 1),
])  # fmt: skip
def test_what_nobody_catches_is_one_line(body, code, lines):
    script = SCRIPT.format(root=scarce_systems.ROOT, body=body)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, lines), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_without_further_threads_everything_is_computed_here(monkeypatch, tmp_path):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    pool, done = Pool(), np.zeros(1000, int)
    pool.resize(4)

    def count(lo, hi):
        done[lo:hi] += 1

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool.split(count, 1000)
    assert (done == 1).all()
    with pytest.raises(RuntimeError, match="new thread"):
        require_threads(2)
    writer, written = CheckpointWriter(str(tmp_path), 1), []
    writer._write = written.append
    writer.save("checkpoint", print)
    writer.join(print)
    assert written == ["checkpoint"]


def test_limits_of_memory_are_checked_before_libraries_abort(monkeypatch):
    monkeypatch.setattr(memory, "_limits_left", lambda: [(100 << 20, "ulimit -v"), (float("inf"), "ulimit -d")])
    memory.require_limits(100 << 20, 1 << 40, "this")
    with pytest.raises(MemoryError, match="ulimit -v leaves 105 MB; this takes 115 MB"):
        memory.require_limits(110 << 20, 0, "this")
    assert memory.available_bytes() <= 100 << 20


def test_texts_are_cleaned_and_cut():
    assert one_line(ODD).isprintable() and len(one_line("x" * 100_000)) <= 1000
    assert str(UserError("x" * 100_000 + ODD)) == one_line("x" * 100_000 + ODD)
    shown = printable("ünï\t日本\u200d\n" + ODD + "y" * 100_000)
    assert shown.startswith("ünï\t日本\u200d\na\\x1b[2J\\x07b\nc\\r\\u202ed\\u2028e\\x9bf\\ud800g\\x00h")
    assert len(shown) < 4100


def test_what_programs_print_is_cleaned(capsys):
    with protected_streams("prog"):
        print(ODD)
        sys.stdout.write(ERASE + "progress \x1b[31m")
        print(ODD, "z" * 50_000, file=sys.stderr)
    out, err = capsys.readouterr()
    assert not scarce_systems.CONTROLS.search(out.replace(ERASE, "")) and ERASE + "progress \\x1b" in out
    assert not scarce_systems.CONTROLS.search(err) and len(err) < 5000


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("number, seed", [
    pytest.param(4, 1, marks=pytest.mark.slow), pytest.param(100, 2, marks=pytest.mark.long),
])  # fmt: skip
def test_programs_on_scarce_systems(number, seed):
    assert scarce_systems.explore(number, seed, ["train", "inference", "plan", "shards"] if number < 100 else ()) == 0
