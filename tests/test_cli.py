"""The error boundary of every program: what is printed, and the exit code. Flags: test_train.py, test_commands.py."""

import os
import subprocess
import sys

import pytest
from test_train import ROOT, python

import inference
import tinygrad2
from tinygrad2 import __main__ as commands
from tinygrad2.cli import Parser, call, exit_code, run
from tinygrad2.commands import COMMANDS
from tinygrad2.commands.verify import environment
from tinygrad2.errors import EarlyExit, UserError
from tinygrad2.system.launcher import own_rank, ranks_started
from tinygrad2.system.shell import command_line, quote


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


# -- NumPy ------------------------------------------------------------------------------------------------------------

PROGRAMS = [["train_gpt2.py"], ["inference.py"], ["-m", "tinygrad2", "plan"], ["data/shakespeare_char/prepare.py"]]
BROKEN = {
    "raise ModuleNotFoundError(\"No module named 'numpy'\")": "numpy cannot be imported (No module named 'numpy'): ",
    "raise ImportError('\\n\\nREAD THIS\\n\\nOriginal error was: x.so\\n\\n')": "numpy cannot be imported (x.so): ",
    "raise SystemError": "numpy cannot be imported (SystemError): ",
    "__version__ = '1.26.4'": "NumPy 1.26.4 is too old, 2.0 or newer is needed: ",
}


@pytest.mark.parametrize("program, code", [*((p, list(BROKEN)[0]) for p in PROGRAMS),
                                           *((PROGRAMS[0], code) for code in list(BROKEN)[1:])])  # fmt: skip
def test_without_numpy_there_is_one_line(tmp_path, program, code):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(code)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run([sys.executable, *program], cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert BROKEN[code] in result.stderr and 'pip install -U "numpy>=2.0" regex' in result.stderr


@pytest.mark.parametrize("error", [UserError("a"), ValueError("b"), OSError("c"), ImportError("d"), SystemError("e")])
def test_hasattr_of_the_package_gets_an_import_error(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(tinygrad2, "_import_all", fail)
    monkeypatch.delitem(vars(tinygrad2), "Tensor", raising=False)
    with pytest.raises(ImportError, match=str(error)):
        hasattr(tinygrad2, "Tensor")
    assert not hasattr(tinygrad2, "nothing")


# -- processes of mpirun ----------------------------------------------------------------------------------------------

LAUNCHERS = [("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
             ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")]  # fmt: skip


@pytest.mark.parametrize("size, rank", LAUNCHERS)
def test_what_one_process_does_is_done_once_under_mpirun(monkeypatch, capsys, size, rank):
    for name in [name for pair in LAUNCHERS for name in pair]:
        monkeypatch.delenv(name, raising=False)
    outputs = []
    for number in range(3):
        monkeypatch.setenv(size, "3")
        monkeypatch.setenv(rank, str(number))
        assert (ranks_started(), own_rank()) == (3, number)
        with pytest.raises(SystemExit) as ended:
            run(lambda: print("text"), "prog")
        assert not ended.value.code
        with pytest.raises(SystemExit) if number else pytest.raises(UserError):
            commands._dispatch("compare", ["nowhere"])
        outputs.append(capsys.readouterr())
        assert not {size, rank} & set(environment())  # a training that `verify` starts is no rank of this job
    assert [out for out, _ in outputs] == ["text\n", "", ""]
    line = "note      prog uses one process: of the 3 that were started the others have ended"
    assert outputs[0].err.splitlines()[0] == line and outputs[1].err == outputs[2].err == ""


@pytest.mark.parametrize("text", ["", "²", "-1", "x", "9" * 5000])
def test_odd_variables_of_a_launcher_are_none(monkeypatch, text):
    for name in [name for pair in LAUNCHERS for name in pair]:
        monkeypatch.setenv(name, text)
    assert (ranks_started(), own_rank()) == (0, 0)


# -- commands to paste ------------------------------------------------------------------------------------------------

WORDS = ["plain", "two words", "", "`id`", "$(id) $HOME", "it's \"so\"", "a\nb", "tab\t\x1b[31m", "back\\slash",
         "-dash", "é日\u3000本", "\udcff", "*?[a]", "!!", "a;b|c&d>e", "~", "#x", "\\\n'", "{a,b}", "=x",
         "<|endoftext|>"]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="there is no bash")
@pytest.mark.parametrize("word", WORDS)
def test_a_pasted_word_is_that_word(word):
    command = command_line("printf '%s\\0'", prompt=word, n_embd=8, resume=True, top_k=None)
    assert command.isprintable() or "\u3000" in command
    printed = subprocess.run(["bash", "-c", command], capture_output=True).stdout
    flag = [f"--prompt={word}"] if word.startswith("-") else ["--prompt", word]
    assert printed.split(b"\0")[:-1] == [os.fsencode(w) for w in [*flag, "--n-embd", "8", "--resume"]]


def test_a_file_name_that_looks_like_a_flag_stays_a_file_name():
    assert command_line("python -m tinygrad2 plot", "-run", "b c") == "python -m tinygrad2 plot ./-run 'b c'"


def test_what_the_output_cannot_show_is_escaped(monkeypatch):
    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    assert quote("né") == "$'n\\xc3\\xa9'"


# -- the parser -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--name", "a\0b"], "has a NUL character"),
        (["--kind=--"], "invalid choice: '--'"),
        (["--nam", "a"], "unrecognized arguments: --nam a"),  # no abbreviations: they change when a flag is added
        (["--threads", "0"], "--threads must be in 1 .. 4,096, not 0"),
        (["--threads", "99999"], "--threads must be in 1 .. 4,096, not 99999"),
        (["--threads", "²"], "invalid int value: '²'"),
    ],
)
def test_the_parser_refuses(argv, says):
    parser = Parser(prog="prog")
    parser.add_argument("--name")
    parser.add_argument("--kind", choices=("a", "b"))
    assert parser.parse_args(["--name=--"]).name == "--"
    parser.add_argument("--threads", type=int)
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        parser.parse_args(argv)


def test_switches_have_a_form_that_takes_them_back():
    assert inference.parse(["--greedy"]).greedy and not inference.parse(["--greedy", "--no-greedy"]).greedy


def test_a_program_may_give_paths_and_numbers_as_words(tmp_path):
    config = inference.parse(["--weights", tmp_path / "a.bin", "--max-new-tokens", 5])
    assert (config.weights, config.max_new_tokens) == (str(tmp_path / "a.bin"), 5)
    with pytest.raises(UserError, match=r"give a list of its words: \['--greedy', '--seed', '3'\]"):
        inference.parse("--greedy --seed 3")
