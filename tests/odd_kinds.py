"""Every file that a program reads, replaced by something else: a pipe, a device, a socket, a folder, a link to itself,
a file of a terabyte. None may be waited for, or read without an end.

Each program runs in a forked process, as in command_lines.py; pytest calls this by test_odd_kinds.py, and

    python tests/odd_kinds.py        tries every program, file and replacement
"""

import glob
import os
import shutil
import signal
import socket
import sys
import tempfile

from command_lines import run_forked
from inputs import READS, mains, make_inputs, quick

from tinygrad2.io import pipes
from tinygrad2.system.memory import resident_bytes

SECONDS = 30  # after which a program counts as one that waits
GROWTH = 700 << 20  # bytes that a program may take more than it has at its start
HARMLESS = ("note ", "warning ", "hellaswag ", "perplexity ", "launch ", "tokenizing ")  # lines that are no errors


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(os.path.dirname(path))  # the whole path may be too long for a socket
        try:
            listener.bind(os.path.basename(path))
        finally:
            os.chdir(here)


def _link_to(target):
    return lambda path: os.symlink(target, path)


def _sparse(size, head=b""):
    def make(path):
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(size)

    return make


KINDS = {
    "pipe": _fifo, "socket": _socket, "folder": os.mkdir, "terabyte": _sparse(1 << 40), "empty": _sparse(0),
    "terabyte of JSON": _sparse(1 << 40, b'{"a": "'),
    "link to itself": lambda path: os.symlink(os.path.basename(path), path),
    **{name: _link_to(name) for name in ("/dev/zero", "/dev/urandom", "/dev/full", "/dev/null", "/dev/tty",
                                         "/dev/stdin", "/proc/self/mem", "/proc/kmsg", "/proc/self/fd", "/nowhere")},
}  # fmt: skip


def places():
    """(Read, the path in its folder that is replaced) of everything that is read."""
    return [(read, path) for read in READS for path in read.files]


def attempt(read, path, kind, base, folder, run):
    """The program with this file replaced; returns (Outcome, what is wrong or "")."""
    shutil.copytree(base, folder, symlinks=True)
    found = glob.glob(os.path.join(glob.escape(folder), path)) or [os.path.join(folder, path)]
    for name in found:
        remove(name)
        os.makedirs(os.path.dirname(name), exist_ok=True)
        KINDS[kind](name)
    outcome = run_forked(run[read.program], read.words, folder, seconds=SECONDS)
    for name in found:
        remove(name)  # a terabyte, even if it is none, is in the way of others
    shutil.rmtree(folder)
    return outcome, problem_of(outcome)


def remove(path):
    """Remove whatever has this name."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def problem_of(outcome):
    """What is wrong about an outcome, or ""."""
    if "Traceback" in outcome.err + outcome.out:
        return "a traceback"
    if outcome.code == -signal.SIGALRM:
        return f"has not ended after {SECONDS} s"
    if outcome.code not in (0, 1, 2):
        return f"exit code {outcome.code}"
    if outcome.memory > GROWTH + resident_bytes():
        return f"took {outcome.memory >> 20} MB"
    errors = [line for line in outcome.err.splitlines() if not line.startswith(HARMLESS)]
    if outcome.code and len(errors) != 1 and not (outcome.code == 1 and not errors):
        return f"{len(errors)} lines of errors"
    if not outcome.code and errors:
        return "an error line, but exit code 0"
    if any(len(line) > 1100 for line in errors):
        return "a long line"
    return ""


def main():
    pipes.NO_WRITER = 0.5
    quick()
    counts, run = {}, mains()
    with tempfile.TemporaryDirectory() as top:
        base = os.path.join(top, "base")
        make_inputs(base)
        for read, path in places():
            for kind in KINDS:
                if sys.argv[1:] and not any(word in f"{read} {path} {kind}" for word in sys.argv[1:]):
                    continue
                outcome, problem = attempt(read, path, kind, base, os.path.join(top, "try"), run)
                counts[outcome.code] = counts.get(outcome.code, 0) + 1
                if problem:
                    print(f"{read}\n   {path}: {kind}: {problem}: {outcome.err.strip()[-700:]!r}", flush=True)
    print(counts)


if __name__ == "__main__":
    main()
