"""Standard output and error as programs find them: closed, on a full disk, a notebook's, another encoding, none."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import redirect_stdout

import pytest
from test_train import ROOT, SMALL, TEXT

import inference
import train_gpt2
from tinygrad2 import __main__ as commands
from tinygrad2.cli import WITHOUT_OUTPUT, call
from tinygrad2.distributed.world import World
from tinygrad2.errors import EarlyExit, UserError, printable
from tinygrad2.monitor.progress import Meter, Progress
from tinygrad2.system import streams
from tinygrad2.system.signals import StopRequest
from tinygrad2.system.streams import protected_streams, write

FLAGS = [*SMALL.split(), "--data", "text.txt", "--steps", "12", "--sample-tokens", "4", "--log-every", "5"]
TEXTS = ["--max-new-tokens", "3", "--prompt", "né"]


@pytest.fixture(scope="module")
def trained_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_gpt2.main(World(), FLAGS) == 0
    return folder


@pytest.fixture
def here(trained_in, monkeypatch):
    monkeypatch.chdir(trained_in)
    return trained_in


class Full(io.TextIOBase):
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    flush = isatty = lambda self: False


class Notebook:
    """What ipykernel puts in the place of sys.stdout has: no bytes underneath, no encoding to change."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return False


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "/run/kernel-1.json"])
    return Notebook()


# -- real descriptors --------------------------------------------------------------------------------------------------


def shell(program, redirections, folder, **environment):
    """A program of ours in a shell, with these redirections."""
    command = f'exec "{sys.executable}" "{ROOT / program[0]}" "$@" {redirections}'
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", command, "bash", *program[1:]], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=600)  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_training_goes_on_without_a_disk_for_its_output(here):
    result = shell(["train_gpt2.py", *FLAGS, "--weights-out", "full.bin"], ">/dev/full", here)
    first, last, lost = result.stderr.splitlines()
    assert result.returncode == 1 and first.startswith(
        "train_gpt2.py: standard output cannot be written (No space left on device)"
    )
    assert re.fullmatch(r"train_gpt2.py: \d\d line\(s\) of standard output were lost", lost)
    assert last == f"train_gpt2.py: {WITHOUT_OUTPUT}" and (here / "full.bin").exists()


@pytest.mark.parametrize("redirections", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(here, redirections):
    flags = ["--weights-out", "closed.bin", "--metrics", "closed.jsonl"]
    result = shell(["train_gpt2.py", *FLAGS, *flags], redirections, here)
    assert result.returncode == 0 and result.stderr == ""
    records = [json.loads(line) for line in (here / "closed.jsonl").read_text().splitlines()]
    assert len(records) == 12  # none of what would have been printed is in a file of the training
    (here / "closed.bin").unlink()
    (here / "closed.jsonl").unlink()
    refused = shell(["train_gpt2.py", "--lr", "-1"], redirections, here)
    assert refused.returncode == 2 and refused.stdout == ""  # an error line never becomes output


@pytest.mark.parametrize(
    "redirections, code", [(">/dev/full", 2), (">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), (">/dev/full 2>&-", 2)]
)
def test_a_text_that_cannot_be_written_is_an_error(here, redirections, code):
    result = shell(["inference.py", *TEXTS], redirections, here, PYTHONIOENCODING="ascii")
    assert result.returncode == code
    assert result.stdout.startswith("né") or ">/dev/full" in redirections or ">&-" in redirections
    line = "inference.py: standard output cannot be written (No space left on device); write it elsewhere\n"
    assert result.stderr == (line if redirections == ">/dev/full" else "")


def test_missing_descriptors_are_opened():
    """Otherwise a file that the program opens would get their numbers, and with them what is printed."""
    script = ("import os; from tinygrad2.cli import call\n"
              "call(lambda: os.write(1, str(os.open('/dev/null', os.O_RDONLY)).encode()), 'p')")  # fmt: skip
    command = ["bash", "-c", 'exec "$0" -c "$1" <&- 2>&-', sys.executable, script]
    assert int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout) > 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and /dev/full")
@pytest.mark.parametrize("output, printed", [("/dev/full", False), ("/dev/null", True), ("log", True)])
def test_ranks_print_nothing_that_mpirun_could_not_write(tmp_path, output, printed):
    """MPICH's ends the job if it cannot. It reads what ranks print from a pipe, here cat's."""
    (tmp_path / "mpirun").symlink_to(shutil.which("bash"))
    (tmp_path / "rank.py").write_text(
        "from tinygrad2.cli import call\ncode = call(lambda: print('step 1', flush=True))\n"
        "open('code', 'w').write(str(code))"
    )
    command = f'"{sys.executable}" rank.py 2> errors | cat > piped; true'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PMI_SIZE": "2", "PMI_RANK": "0"}
    with open(tmp_path / "log", "w") as log:
        stdout = log if output == "log" else open(output, "w")
        subprocess.run([tmp_path / "mpirun", "-c", command], cwd=tmp_path, env=environment, stdout=stdout, check=True)
        stdout.close()
    assert (tmp_path / "piped").read_text() == "step 1\n" * printed
    assert (tmp_path / "code").read_text() == ("None" if printed else "1")
    assert ("1 line(s) of standard output were lost" in (tmp_path / "errors").read_text()) == (not printed)


# -- stand-ins ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_printed_is_reported_once_and_by_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())

    def main(code):
        print("one", flush=True)
        print("two")
        return code

    assert [call(lambda code=code: main(code), "prog") for code in (0, None, 3)] == [1, 1, 3]
    reason = "No space left on device"
    line = f"prog: standard output cannot be written ({reason}): what is printed is lost, all else goes on"
    said, complete = [line, "prog: 2 line(s) of standard output were lost"], [f"prog: {WITHOUT_OUTPUT}"]
    assert capsys.readouterr().err.splitlines() == said + complete + said + complete + said
    assert isinstance(sys.stdout, Full)  # what was there is back


def test_a_broken_pipe_is_still_noticed(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    assert call(lambda: print("text"), "prog") == 1


@pytest.mark.parametrize("stream", [None, io.StringIO(), Notebook(), Full()], ids=lambda s: type(s).__name__)
def test_programs_print_into_any_stream(here, monkeypatch, stream):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    lost = isinstance(stream, Full)
    assert train_gpt2.main(World(), [*FLAGS, "--run-dir", "stream"]) == lost
    assert commands.main(["eval", "perplexity", "--data", "text.txt"]) == lost
    assert commands.main(["plan"]) == lost and commands.main(["plan", "--lr", "-1"]) == 2
    assert commands.main(["verify", "kvcache", *FLAGS]) == lost
    if not lost:
        assert inference.main(TEXTS) == inference.main([*TEXTS, "--json"]) == 0
        return
    with pytest.raises(UserError, match="standard output cannot be written"):
        inference.main(TEXTS)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16", "utf-8"])
def test_a_stream_that_lacks_characters(here, monkeypatch, encoding):
    """print replaces them, and shows bytes that are not text. Texts are written in UTF-8 whatever the encoding."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    assert not call(lambda: print("日本 \udcff"), "prog")
    sys.stdout.flush()
    assert raw.getvalue().decode(encoding, "strict").strip() in (r"?? \udcff", r"日本 \udcff")
    raw.seek(0)
    raw.truncate()
    write("日\udcff")
    assert raw.getvalue().endswith("日".encode() + b"\xff")


def test_a_text_cannot_give_orders_to_a_terminal(monkeypatch):
    """A prompt from somewhere, or what a model has learnt: its escape sequences are shown. A file gets all bytes."""
    text, raw = "a\tb\r\n\x1b[2J\x1b]0;title\x07\u202e\udcff é" + "x" * 9000, io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    write(text)
    assert raw.getvalue() == text.encode("utf-8", "surrogateescape")
    raw.seek(0)
    raw.truncate()
    monkeypatch.setattr(streams, "is_terminal", lambda stream: True)
    write(text)
    assert raw.getvalue().decode() == "a\tb\n" + r"\x1b[2J\x1b]0;title\x07\u202e\udcff é" + "x" * 9000


def test_text_in_a_notebook_has_no_invalid_characters(notebook):
    with redirect_stdout(notebook):
        write("日\udcff\udce6\n")
    assert notebook.text == "日\ufffd\ufffd\n"


def test_errors_are_on_one_line(capsys):
    def main():
        raise UserError("a\nb\x1b[2J\0\udcff é 日 " + "x" * 5000 + "end")

    assert call(main, "prog") == 2
    line = capsys.readouterr().err
    assert line.startswith(r"prog: a\nb\x1b[2J\x00\udcff é 日 xx") and line.endswith("xend\n") and len(line) < 1010


# -- notebooks and threads ---------------------------------------------------------------------------------------------


def test_every_program_runs_in_a_notebook(here, notebook):
    """sys.argv is the kernel's, and nothing may end the session."""
    with redirect_stdout(notebook):
        _run_everything(notebook)


def _run_everything(notebook):
    world = World()
    assert world.run(lambda: train_gpt2.main(world, FLAGS)) == 0
    assert train_gpt2.main(World(), FLAGS) == inference.main(TEXTS) == inference.main([*TEXTS, "--json"]) == 0
    assert commands.main(["plan"]) == commands.main(["eval", "perplexity", "--data", "text.txt"]) == 0
    for main in (inference.main, lambda argv: train_gpt2.main(World(), argv), commands.main):
        assert main(["--help"]) == 0
    assert "usage: inference.py" in notebook.text and "\x1b" not in notebook.text and "\r" not in notebook.text
    assert inference.parse(None).prompt == () and train_gpt2.parse(None)[0].steps == 1000
    with pytest.raises(UserError, match="--lr must be"):
        world.run(lambda: train_gpt2.main(world, ["--lr", "-1"]))
    assert commands.main(["plan", "--lr", "-1"]) == 2


def test_a_notebook_shows_a_line_now_and_then(notebook):
    with redirect_stdout(notebook):
        progress = Progress(100, keep_every=40)
        assert not Meter("x", 1).live
    for done in range(1, 101):
        progress.step(done, "loss")
    shown = [int(line.split("/")[0][4:]) for line in notebook.text.splitlines()]
    assert shown == [1, 40, 80, 100]
    progress._last -= 11  # as after steps of many seconds
    progress.step(7, "slow")
    assert "step   7/100" in notebook.text


@pytest.mark.parametrize("name, value", [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_terminal_without_escapes_gets_none(monkeypatch, name, value):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert Progress(9).live and Meter("x", 9).live
    monkeypatch.setenv(name, value)
    progress = Progress(9, keep_every=4)
    for done in range(1, 10):
        progress.step(done, "loss")
    assert "\x1b" not in sys.stdout.getvalue() and len(sys.stdout.getvalue().splitlines()) == 4


def test_a_second_interrupt_in_a_notebook_does_not_end_its_kernel(notebook):
    with StopRequest(verbose=False) as stop:
        stop._take(2, None)
        stop._when -= 1
        with pytest.raises(KeyboardInterrupt):
            stop._take(2, None)


def test_a_notebook_that_cannot_ask(here, notebook, monkeypatch):
    def no_input(prompt):
        raise NotImplementedError

    monkeypatch.setattr("builtins.input", no_input)
    with redirect_stdout(notebook), pytest.raises(UserError, match="this notebook cannot ask"):
        inference.main(["--interactive"])


def test_programs_run_in_a_thread(here, capsys):
    codes = []

    def work():
        codes.extend([train_gpt2.main(World(), FLAGS), inference.main(TEXTS), commands.main(["plan"])])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [0, 0, 0]


def test_threads_leave_the_streams_as_they_were(monkeypatch):
    """The one that entered first may leave last, or first."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    before = sys.stdout
    first, second = protected_streams("a"), protected_streams("b")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert sys.stdout is before


def test_early_exit_is_code_0_also_for_a_main_that_is_called(notebook):
    def main():
        raise EarlyExit

    assert train_gpt2.callable_main(main)() == 0 and streams.arguments() == []


def _missing(*names):
    return [name for name in names if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(_missing("nbclient", "ipykernel")), reason="nbclient or ipykernel is not installed")
def test_a_real_notebook(here):
    import nbclient
    import nbformat

    cells = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})",
        "import inference, train_gpt2, tinygrad2.__main__\nfrom tinygrad2.distributed.world import World",
        f"world = World()\nworld.run(lambda: train_gpt2.main(world, {FLAGS}))",
        f"inference.main({TEXTS}), inference.main({[*TEXTS, '--json']}), inference.main(['--help'])",
        "tinygrad2.__main__.main(['plan']), tinygrad2.__main__.main(['plan', '--lr', '-1'])",
        "try:\n    world.run(lambda: inference.main(['--top-k', '-1']))\nexcept Exception as error:\n"
        "    print(type(error).__name__, error)",
    ]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    where = {"metadata": {"path": str(here)}}
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where)
    client.execute()  # raises if a cell does
    printed = ["".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells]
    results = [[out.data["text/plain"] for out in cell.outputs if "data" in out] for cell in notebook.cells]
    steps = [line for line in printed[2].splitlines() if line.startswith("step ")]
    assert [line.split("/")[0] for line in steps] == ["step  1", "step  5", "step 10", "step 12"]
    assert "\x1b" not in printed[2] and results[2:5] == [["0"], ["(0, 0, 0)"], ["(0, 2)"]]
    assert printed[5] == "UserError --top-k must be at least 0, not -1\n"


def test_a_line_of_json_is_not_cut():
    line = '{"rows": [' + "1, " * 3000 + "1]}"
    assert printable(line) == line and len(printable(line.replace("{", "x"))) < 4000
