"""Every program with odd command lines: they run properly, or are refused in one line and write nothing."""

import os
import random
import shutil

import pytest
from command_lines import LONG, Flag, build_line, make_folder, problem_of, programs, run_forked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
PROGRAMS = {program.name: program for program in programs()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines") / "base"
    make_folder(folder)
    return folder


@pytest.mark.parametrize("seed, n", [
    (1, 15), pytest.param(2, 20, marks=pytest.mark.slow), pytest.param(3, 300, marks=pytest.mark.long),
])  # fmt: skip
@pytest.mark.parametrize("name", PROGRAMS)
def test_odd_lines_run_properly_or_are_refused(base, tmp_path, name, seed, n):
    program, rng = PROGRAMS[name], random.Random(f"{name} {seed}")
    for i in range(n):
        argv, folder = build_line(program, rng), tmp_path / str(i)
        shutil.copytree(base, folder, symlinks=True)
        outcome = run_forked(program.main, argv, folder)
        assert not problem_of(program, outcome), (argv, outcome)
        shutil.rmtree(folder)


SHARES = [0.02, pytest.param(0.2, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("name", PROGRAMS)
def test_long_values_and_control_characters_of_every_flag(base, tmp_path, name, kind, share):
    program, rng = PROGRAMS[name], random.Random(name)
    for flag in program.flags:
        if rng.random() < share:
            argv = [*program.base, f"{flag.name}={LONG[kind]}"]
            folder = shutil.copytree(base, tmp_path / f"with {flag.name}", symlinks=True)
            outcome = run_forked(program.main, argv, folder)
            assert not problem_of(program, outcome), (flag, outcome.code, outcome.out[-2000:], outcome.err[-2000:])
            shutil.rmtree(folder)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_line_that_is_varied_runs_properly(base, tmp_path, name):
    program = PROGRAMS[name]
    shutil.copytree(base, tmp_path / "run", symlinks=True)
    outcome = run_forked(program.main, program.base, tmp_path / "run", seconds=600)
    answers = {"compare": 2, "replay": 2, "commands": 0}  # the run is no preset's, and it has no dump
    assert outcome.code == answers.get(name, 0), outcome


def test_the_lines_have_every_flag_of_every_program():
    flags = {name: {flag.name for flag in program.flags} for name, program in PROGRAMS.items()}
    assert {"--lr", "--resume", "--n-head", "--no-bias", "--model"} <= flags["train_gpt2.py"]
    assert {"--to", "--batch", "--force", "--threads"} <= flags["convert"] and {"--smooth", "--out"} <= flags["plot"]
    assert {"--debug"} == flags["replay"] and Flag("--smooth", "number") in PROGRAMS["plot"].flags


def test_what_is_wrong_is_seen():
    """The checks themselves: a line of each kind of fault."""
    def outcome(script):
        return run_forked(lambda argv: exec_like(script), [], os.getcwd())

    def exec_like(script):
        return script()

    program = PROGRAMS["train_gpt2.py"]

    def raises():
        raise ValueError("planted")

    def two_lines():
        os.write(2, b"one\ntwo\n")
        return 2

    def silent():
        return 2

    def warns():
        os.write(2, b"warning\n")
        return 0

    problems = [problem_of(program, outcome(script)) for script in (raises, two_lines, silent, warns, lambda: 3)]
    assert problems[0] == "a traceback" and problems[4] == "exit code 3"
    assert problems[1].startswith("2 lines") and problems[2].startswith("0 lines")
    assert problems[3] == "an error line, but exit code 0"
