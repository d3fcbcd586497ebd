"""The error boundary of every program: what is printed, and the exit code. Flags: test_train.py, test_commands.py."""

import subprocess
import sys

import pytest
from test_train import ROOT, python

from tinygrad2.cli import call, exit_code
from tinygrad2.commands import COMMANDS
from tinygrad2.errors import EarlyExit, UserError


def raising(error):
    def main():
        raise error

    return main


ENDINGS = [
    (UserError("--lr must be positive"), 2, "prog: --lr must be positive\n"),
    (MemoryError("Unable to allocate 8 TiB"), 2, "prog: out of memory (Unable to allocate 8 TiB); "),
    (MemoryError(), 2, "prog: out of memory (no more is available); python -m tinygrad2 plan"),
    (EarlyExit(), 0, ""),
    (KeyboardInterrupt(), 130, "\ninterrupted\n"),
]


@pytest.mark.parametrize("error, code, line", ENDINGS)
def test_errors_become_one_line_and_an_exit_code(capsys, error, code, line):
    assert call(raising(error), "prog") == code
    printed = capsys.readouterr().err
    assert printed.startswith(line) and bool(printed) == bool(line) and len(printed.strip().splitlines()) < 2


@pytest.mark.parametrize("error", [ValueError("planted"), SystemExit(3)])
def test_other_exceptions_are_raised_again(error):
    with pytest.raises(type(error)):
        call(raising(error))


@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("correct this"), 2, "prog: correct this\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ValueError("planted"), 1, "ValueError: planted\n"),
        (SystemExit(0), 1, "SystemExit: 0\n"),
        (SystemExit(3), 3, "SystemExit: 3\n"),
    ],
)
def test_a_rank_ends_the_job(error, code, text):
    class Aborted(Exception):
        pass

    def abort(*arguments):
        raise Aborted(*arguments)

    with pytest.raises(Aborted) as aborted:
        call(raising(error), "prog", abort)
    assert aborted.value.args[0].endswith(text) and aborted.value.args[1] == code
    assert call(lambda: 7, "prog", abort) == 7 and call(raising(EarlyExit()), "prog", abort) == 0


def test_a_reader_that_exits_is_no_error():
    script = "from tinygrad2.cli import run\nrun(lambda: [print(i) for i in range(10**6)])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_the_exit_code_of_a_job_is_never_0():
    errors = SystemExit(0), SystemExit("text"), SystemExit(5), KeyError()
    assert [exit_code(error) for error in errors] == [1, 1, 5, 1]


def test_it_loads_no_numpy():
    script = "import sys, tinygrad2.cli; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


COMMANDS_ONE_BY_ONE = f"""
from tinygrad2.__main__ import main
for name in {list(COMMANDS)}:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
"""


@pytest.mark.parametrize(
    "program, times",
    [
        (["train_gpt2.py", "--help"], 1),
        (["data/gpt2/prepare.py", "--help"], 1),
        (["-c", COMMANDS_ONE_BY_ONE], len(COMMANDS)),
    ],
)
def test_help_without_docstrings(program, times):
    """python -OO removes docstrings."""
    result = python("-OO", *program, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("(python -OO removes this explanation") == times
