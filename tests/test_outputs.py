"""Every output of every program: nothing is replaced that tinygrad2 has not written, and nothing that is also read.

What cannot be written is refused before anything is computed. The flags are those of the programs themselves, so that
none is forgotten."""

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_changed_files import FLAGS, write_data
from test_train import ROOT, metrics

import inference
import train_gpt2
from tinygrad2.cli import Parser, PathAction, call
from tinygrad2.commands import COMMANDS
from tinygrad2.distributed.world import World

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs links, pipes and devices")
SCRIPTS = ("gpt2", "hellaswag", "shakespeare", "shakespeare_char", "tinystories", "openwebtext", "fineweb_edu")
TRAIN = [*FLAGS, "--steps", "2", "--checkpoint-every", "0"]
NO_PATHS = {  # text that is no path
    "prompt", "layers", "stop", "dataset", "batch", "preset", "gen", "command", "names", "numbers",
}  # fmt: skip


def prepare_script(name):
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def command(name):
    return importlib.import_module(f"tinygrad2.commands.{name}").main


def run_script(name):
    """main(argv) of a prepare script, which reads the process's command line."""

    def main(argv):
        before, sys.argv = sys.argv, ["prepare.py", *argv]
        try:
            return prepare_script(name)()
        finally:
            sys.argv = before

    return main


PROGRAMS = {
    "train_gpt2": lambda argv: train_gpt2.main(World(), argv),
    "inference": inference.main,
    "eval hellaswag": lambda argv: command("eval")(["hellaswag", *argv]),
    "eval perplexity": lambda argv: command("eval")(["perplexity", *argv]),
    **{name: command(name) for name in COMMANDS if name != "eval"},
    **{f"prepare {name}": run_script(name) for name in SCRIPTS},
}
INHERITED = ("plan", "verify")  # they have train_gpt2.py's flags, and write nothing; profile has its own as well
WITHOUT = ("lm_eval",)          # the harness parses its command line


class Collected(Exception):
    """A program has built its parser."""


@pytest.fixture(scope="module")
def parsers():
    """{program: its Parser}"""

    def collect(self, args=None, namespace=None):
        raise Collected(self)

    found, patch = {}, pytest.MonkeyPatch()
    patch.setattr(Parser, "parse_known_args", collect)
    for name, main in PROGRAMS.items():
        if name not in (*INHERITED, *WITHOUT):
            with pytest.raises(Collected) as error:
                main([])
            found[name] = error.value.args[0]
    patch.undo()
    return found


def paths_of(parsers, role):
    return {
        (program, action.option_strings[0] if action.option_strings else action.metavar)
        for program, parser in parsers.items()
        for action in parser._actions
        if isinstance(action, PathAction) and action.role == role
    }


def test_every_flag_with_text_is_a_path_or_known_to_be_none(parsers):
    text = argparse._StoreAction, argparse._AppendAction
    for program, parser in parsers.items():
        for action in parser._actions:
            if isinstance(action, text) and action.type in (None, str, tuple) and not action.choices:
                remedy = "use PathAction, or input_path or output_path"
                assert action.dest in NO_PATHS, f"{program}: is {action.dest} a path? Then {remedy}"


def test_the_scripts_are_all_here():
    assert set(SCRIPTS) == {path.parent.name for path in (ROOT / "data").glob("*/prepare.py")}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_what_programs_write_without_a_path_is_ignored_by_git(parsers):
    defaults = [
        name
        for parser in parsers.values()
        for action in parser._actions
        if isinstance(action, PathAction) and action.role == "output"
        for names in re.findall(r"\(default: ([^)]*)\)", action.help or "")
        for name in names.replace("%(default)s", str(action.default)).split(", ")
        if " " not in name and name != "none"
    ]
    paths = {path for name in defaults for path in ([f"{name}.html", f"{name}.png"] if name == "curves" else [name])}
    assert {"trained_weights.bin", "run", "explain_step.html", "report.json", "curves.png", "labs", "bugs"} <= paths
    inside = [f"{path}/file" if "." not in path else path for path in sorted(paths)]
    ignored = subprocess.run(["git", "check-ignore", *inside], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout.split() == inside, ignored.stderr


# -- empty paths -------------------------------------------------------------------------------------------------------


def snapshot():
    """{path: content} of all that is in this folder."""
    tree = {}
    for folder, folders, names in os.walk("."):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            content = pathlib.Path(path).read_bytes() if os.path.isfile(path) else os.path.isdir(path)
            tree[path] = os.readlink(path) if os.path.islink(path) else content
    return tree


def refused(capsys, program, argv):
    """Run it: it must end with one line and exit code 2, and leave every file as it is. Returns the line."""
    capsys.readouterr()
    before = snapshot()
    assert call(lambda: PROGRAMS[program](list(map(str, argv))), "prog") == 2, capsys.readouterr()
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("prog: "), error
    assert snapshot() == before
    return error


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_data(tmp_path)


@pytest.mark.parametrize("value", ["", " ", "\t\n"], ids=repr)
def test_empty_paths_are_refused_by_every_flag_of_every_program(here, capsys, parsers, value):
    paths = paths_of(parsers, "input") | paths_of(parsers, "output")
    paths |= {(program, flag) for program in (*INHERITED, "profile") for name, flag in paths if name == "train_gpt2"}
    assert len(paths) > 40
    for program, flag in sorted(paths):
        actions = [] if program in (*INHERITED, "profile") else parsers[program]._actions
        positionals = [action for action in actions if not action.option_strings]
        argv = [value if action.metavar == flag else "x" for action in positionals]
        argv += ["--to", "hf"] if program == "convert" else []
        argv = [flag, value, *argv] if flag.startswith("-") else argv  # first: launch takes the rest as it is
        assert f"{flag}: the path is empty; give one" in refused(capsys, program, argv), (program, flag)
    assert "MODEL: the path is empty" in refused(capsys, "verify", ["hf", value])
    assert "DEBUG_STATE: the path is empty" in refused(capsys, "verify", ["llmc", "x", value])
    for argv in (["--output_path", value], [f"--include_path={value}"]):
        assert "_path: the path is empty" in refused(capsys, "lm_eval", ["--tasks", "x", *argv])
    from tinygrad2.commands.lm_eval import Adapter

    for name in ("pretrained", "tokenizer"):
        line = refused_call(capsys, lambda name=name: Adapter(**{name: value}))
        assert f"model_args: {name}: the path is empty" in line


def refused_call(capsys, function):
    assert call(function, "prog") == 2
    return capsys.readouterr().err


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a file of each kind that the programs read and write."""
    folder = write_data(tmp_path_factory.mktemp("made"))
    before = os.getcwd()
    os.chdir(folder)
    assert call(lambda: train_gpt2.main(World(), [*TRAIN, "--data", "text.txt"]), "prog") == 0
    (folder / "hosts.txt").write_text("localhost\n")
    assert call(lambda: command("lab")(["start", "unbroadcast"]), "prog") == 0
    (folder / "questions.jsonl").write_text('{"not": "read"}\n')
    os.chdir(before)
    return folder


@pytest.fixture
def work(tmp_path, made, monkeypatch):
    """A copy of it, which is the working folder."""
    import shutil

    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


FILES = {  # (program, flag): its command line for the path of a file, and what else it reads
    ("train_gpt2", "--weights-out"): (lambda p: [*TRAIN, "--weights-out", p], ["train.bin"]),
    ("train_gpt2", "--metrics"): (lambda p: [*TRAIN, "--metrics", p], ["train.bin"]),
    ("eval hellaswag", "--results"): (
        lambda p: ["--data", "questions.jsonl", "--results", p],
        ["questions.jsonl", "trained_weights.bin"],
    ),
    ("profile", "--trace"): (lambda p: [*FLAGS, "--measure", "1", "--trace", p], []),
    ("launch", "--log"): (lambda p: ["-n", "1", "--log", p, "-f", "hosts.txt", "--", "-c", "pass"], ["hosts.txt"]),
    ("plot", "--out"): (lambda p: ["run", "--out", p], ["run/metrics.jsonl"]),
    ("lab", "--out"): (lambda p: ["report", "--out", p], ["labs/unbroadcast.py"]),
    ("explain", "--out"): (lambda p: ["--prompt", "the", "--out", p], ["trained_weights.bin"]),
    ("convert", "OUT"): (lambda p: ["trained_weights.bin", p, "--to", "llmc", "--force"], ["trained_weights.bin"]),
}
FOLDERS = {  # (program, flag): its command line for the path of a folder, and a name that it writes there
    ("train_gpt2", "--run-dir"): (lambda p: [*TRAIN, "--run-dir", p], "config.json"),
    ("lab", "--folder"): (lambda p: ["start", "unbroadcast", "--folder", p], "unbroadcast.py"),
    ("bug", "--folder"): (lambda p: ["plant", "7", "--folder", p], "07"),
    **{(f"prepare {name}", "--out"): (lambda p: ["--out", p], "") for name in SCRIPTS},
    ("prepare shakespeare", "--out"): (lambda p: ["--text", "text.txt", "--out", p], "tiny_shakespeare_train.bin"),
    ("prepare shakespeare_char", "--out"): (lambda p: ["--text", "text.txt", "--out", p], "train.bin"),
}


def test_every_output_flag_has_a_case_here(parsers):
    assert paths_of(parsers, "output") == set(FILES) | set(FOLDERS)


def make_folder(path):
    os.mkdir(path)


def make_text(path):
    with open(path, "w") as file:
        file.write("what somebody has written, with care\n" * 100)


def make_json(path):
    with open(path, "w") as file:
        json.dump({"step": 0, "loss": 1.0, "model_type": "gpt2", "facts": {}}, file)


def make_protected(path):
    with open(path, "w"):
        os.chmod(path, 0o444)


TARGETS = {
    "a folder": (make_folder, ["this is a folder", "is a folder"]),
    "a text": (make_text, ["exists and is not", "exists and has no checkpoints"]),
    "JSON": (make_json, ["exists and is not"]),
    "a pipe": (os.mkfifo, ["this is a device, pipe or socket"]),
    "write-protected": (make_protected, ["this file is write-protected"]),
    "a link to a text": (lambda path: (make_text("mine.txt"), os.symlink("mine.txt", path)), ["exists and is not"]),
    "a link to itself": (lambda path: os.symlink(path, path), ["cannot be written (Too many levels"]),
    "a link to nowhere": (lambda path: os.symlink("no/x", path), ["does not exist"]),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("program, flag", FILES, ids=str)
def test_what_is_not_ours_is_not_replaced(work, capsys, program, flag, target):
    path = "target.html"
    make, says = TARGETS[target]
    make(path)
    line = refused(capsys, program, FILES[program, flag][0](path))
    assert path in line and any(words in line for words in says)


@pytest.mark.parametrize(
    "path, says",
    [
        ("no/such/target.html", "no/such does not exist; create it, or choose another path"),
        ("text.txt/target.html", "(Not a directory)"),
        ("x" * 300 + ".html", "the name is too long for a file"),
        ("/".join(["x" * 200] * 30), "the name is too long for a file"),
        ("new/", ""),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("program, flag", FILES, ids=str)
def test_where_nothing_can_be_written(work, capsys, program, flag, path, says):
    assert says in refused(capsys, program, FILES[program, flag][0](path))


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "/dev/stdout", "/proc/self/fd/1"])
@pytest.mark.parametrize("program, flag", [key for key in FILES if key[0] != "plot"], ids=str)
def test_devices(work, capsys, program, flag, path):
    assert "this is a device, pipe or socket" in refused(capsys, program, FILES[program, flag][0](path))


@pytest.mark.parametrize("form", ["itself", "relative", "absolute", "symbolic link", "hard link"])
@pytest.mark.parametrize("program, flag", FILES, ids=str)
def test_inputs_are_not_replaced(work, capsys, program, flag, form):
    line_of, inputs = FILES[program, flag]
    for i, read in enumerate(inputs):
        path = f"target-{i}.html"
        if form == "symbolic link":
            os.symlink(read, path)
        elif form == "hard link":
            os.link(read, path)
        elif program == "plot":
            continue  # it writes .html and .png only
        else:
            path = {"itself": read, "relative": f"run/../{read}", "absolute": os.path.abspath(read)}[form]
        assert " reads, and would be replaced" in refused(capsys, program, line_of(path))


@pytest.mark.parametrize("target", ["a file", "a pipe", "/dev/null", "text.txt/below", "a long name", "a file of it"])
@pytest.mark.parametrize("program, flag", FOLDERS, ids=str)
def test_folders(work, capsys, program, flag, target):
    line_of, name = FOLDERS[program, flag]
    path = {"/dev/null": target, "text.txt/below": target, "a long name": "x" * 300}.get(target, "out")
    if target == "a file":
        make_text(path)
    elif target == "a pipe":
        os.mkfifo(path)
    elif target == "a file of it":
        os.mkdir(path)
        if not name:
            return
        make_text(os.path.join(path, name))
    assert refused(capsys, program, line_of(path))


# -- a training --------------------------------------------------------------------------------------------------------


def train(*flags):
    return call(lambda: train_gpt2.main(World(), [*TRAIN, *map(str, flags)]), "prog")


def test_what_is_replaced_is_said_and_metrics_are_kept(work, capsys):
    weights = (work / "trained_weights.bin").read_bytes()
    assert train("--metrics", "m.jsonl") == 0
    assert "note      trained_weights.bin: the weights after 2 steps that are there will be replaced\n" in \
        capsys.readouterr().out
    assert (work / "trained_weights.bin").read_bytes() != weights
    kept = (work / "m.jsonl").read_bytes()
    for n in (1, 2):
        assert train("--metrics", "m.jsonl") == 0
        line = f"m.jsonl: what an earlier training wrote is now in {work}/m.previous-{n}.jsonl"
        assert line in capsys.readouterr().out
    assert (work / "m.previous-1.jsonl").read_bytes() == kept
    assert train("--metrics", "m.jsonl", "--resume", "--steps", "4") == 0  # continued, not moved
    assert [record["step"] for record in metrics(work / "m.jsonl")] == [0, 1, 2, 3]
    (work / "empty.bin").write_bytes(b"")
    assert train("--weights-out", "empty.bin") == 0 and "empty.bin: the weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--weights-out run", "--weights-out run: this is a folder"),
        ("--run-dir new --weights-out new", "--weights-out new: --run-dir new needs a folder there"),
        ("--run-dir a/b --weights-out a", "--weights-out a: --run-dir a/b needs a folder there"),
        ("--run-dir new --metrics new", "--metrics new: --run-dir new needs a folder there"),
        ("--weights-out x.bin --metrics x.bin", "--metrics x.bin: --weights-out is the same file"),
        ("--weights-out x.bin --metrics ./run/../x.bin", "--weights-out is the same file"),
        ("--weights-out run/config.json", "exists and is not weights of tinygrad2"),
        ("--run-dir new --weights-out new/config.json", "--run-dir new keeps something else there"),
        ("--run-dir new --weights-out new/metrics.jsonl", "--run-dir new keeps something else there"),
        ("--run-dir new --weights-out new/.lock", "--run-dir new keeps something else there"),
        ("--run-dir new --metrics new/checkpoints", "--run-dir new keeps something else there"),
        ("--metrics run/config.json", "exists and is not metrics of tinygrad2"),
        ("--weights-out run/checkpoints/step_00000002/weights.bin", "belongs to a checkpoint"),
        ("--run-dir other --weights-out run/checkpoints/step_00000002/weights.bin", "belongs to a checkpoint"),
        ("--run-dir other --metrics run/checkpoints/step_00000002/metrics.jsonl", "belongs to a checkpoint"),
        ("--init-from trained_weights.bin", "trained_weights.bin: is what --init-from reads"),
        ("--data train.* --weights-out train.bin", "train.bin: is what --data reads"),
        ("--data . --metrics text.txt", "text.txt: exists and is not metrics of tinygrad2"),
        ("--resume --weights-out text.txt", "text.txt: exists and is not weights of tinygrad2"),
        ("--resume --run-dir new --weights-out text.txt", "text.txt: exists and is not weights of tinygrad2"),
        ("--resume --metrics text.txt", "text.txt: exists and is not metrics of tinygrad2"),
    ],
)
def test_outputs_of_a_training_that_exclude_each_other(work, capsys, flags, says):
    flags = flags.split()
    argv = TRAIN[len(TRAIN) - 2 :] + ["--steps", "2"] if "--init-from" in flags else TRAIN
    line = refused(capsys, "train_gpt2", [*argv, *flags])
    assert says in line, line


def test_weights_may_lie_in_the_run_folder(work, capsys):
    assert train("--run-dir", "new", "--weights-out", "new/weights.bin", "--metrics", "new/metrics.jsonl") == 0
    assert train("--run-dir", "new/", "--weights-out", "new/weights.bin") == 0
    assert "new/weights.bin: the weights after 2 steps that are there will be replaced" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_of_somebody_else_is_no_run_folder(work, capsys, name):
    os.mkdir("model")
    make_json(f"model/{name}")
    for resume in ([], ["--resume"]):
        line = refused(capsys, "train_gpt2", [*TRAIN, "--run-dir", "model", *resume])
        assert f"--run-dir: model/{name}: exists and is not of a training of tinygrad2" in line
    os.remove(f"model/{name}")
    os.mkdir("model/checkpoints")
    make_text("model/checkpoints/pytorch.ckpt")
    line = refused(capsys, "train_gpt2", [*TRAIN, "--run-dir", "model"])
    assert "model/checkpoints: exists and has no checkpoints of tinygrad2" in line


def test_a_training_that_was_killed_at_its_first_step_can_be_started_again(work):
    (work / "run" / "metrics.jsonl").write_bytes(b'{"step": 0, "lo')
    assert train() == 0 and train("--resume", "--steps", "3") == 0


def test_a_second_dump_of_a_step_does_not_replace_the_first(tmp_path):
    from tinygrad2.monitor.dump import _free_path

    path = str(tmp_path / "nonfinite_step_00000003")
    assert _free_path(path) == path
    os.mkdir(path)
    assert _free_path(path) == path + ".2"
    os.symlink("nowhere", path + ".2")
    assert _free_path(path) == path + ".3"


# -- the other programs ------------------------------------------------------------------------------------------------


def test_plot_knows_its_own_files_and_endings(work, capsys):
    for out in ("curves", "curves.html", "curves.PNG"):
        assert call(lambda out=out: PROGRAMS["plot"](["run", "--out", out]), "prog") == 0
        assert sorted(name for name in os.listdir() if name.startswith("curves")) in (
            ["curves.html"], ["curves.html", "curves.png"]
        )  # fmt: skip
        printed = capsys.readouterr().out
        assert ("note      curves.html: the plot that was there is replaced" in printed) == (out != "curves")
    assert "--out run/: is a folder; give a name in it" in refused(capsys, "plot", ["run", "--out", "run/"])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    make_text("curves.png")
    assert "curves.png: exists and is not a plot of tinygrad2" in refused(capsys, "plot", ["run"])


@pytest.mark.parametrize(
    "to, source, other",
    [
        ("hf", "trained_weights.bin", "text"),
        ("llmc", "trained_weights.bin", "tokens.bin"),
        ("nanogpt", "trained_weights.bin", "tokens.bin"),
        ("trained", "trained_weights.bin", "out.llmc"),
        ("llmc", "train.bin", "trained_weights.bin"),
        ("llmc-legacy", "train.bin", "trained_weights.bin"),
        ("tiktoken", "tokenizer.json", "train.bin"),
        ("llmc", "tokenizer.json", "train.bin"),
        ("trained", "tokenizer.json", "trained_weights.bin"),
    ],
)
def test_convert_replaces_only_the_same_format_and_only_if_forced(work, capsys, to, source, other):
    import shutil

    shutil.copy("train.bin", "tokens.bin")
    assert call(lambda: PROGRAMS["convert"](["trained_weights.bin", "out.llmc", "--to", "llmc"]), "prog") == 0
    from tinygrad2.io.weights import load_weights

    (work / "tokenizer.json").write_text(load_weights("trained_weights.bin").tokenizer)
    line = [source, "new", "--to", to]
    run = lambda *more: call(lambda: PROGRAMS["convert"]([*line, *more]), "prog")  # noqa: E731
    assert run() == 0
    assert "exists already; name another OUT, or overwrite it with --force" in refused(capsys, "convert", line)
    if to == "llmc-legacy":  # ids without a header look like anything
        refused(capsys, "convert", [*line, "--force"])
    else:
        assert run("--force") == 0 and "what was there is replaced (--force)" in capsys.readouterr().out
    if to == "hf":
        make_text("text")
    shutil.copy(other, "wrong")
    assert refused(capsys, "convert", [source, "wrong", "--to", to, "--force"])


def test_convert_does_not_write_over_what_it_reads(work, capsys):
    assert call(lambda: PROGRAMS["convert"](["trained_weights.bin", "m", "--to", "hf"]), "prog") == 0
    for line in (
        ["m", "m", "--to", "hf"],
        ["m/model.safetensors", "m", "--to", "hf"],
        ["m", "m/model.safetensors", "--to", "trained"],
        ["m", "./m/../m", "--to", "hf"],
        ["trained_weights.bin", "m/tokenizer.json", "--to", "trained", "--tokenizer", "m"],
        ["m", "train.bin", "--to", "llmc-debug", "--tokens", "train.bin"],
    ):
        line = refused(capsys, "convert", [*line, "--force"])
        assert " reads, and would be replaced" in line, line


def test_answers_are_not_written_into_another_file(work, capsys):
    for name in ("run/metrics.jsonl", "run/config.json", "trained_weights.bin"):
        line = refused(capsys, "eval hellaswag", ["--data", "questions.jsonl", "--results", name])
        assert "exists and is not a file of answers" in line or "is what --weights reads" in line


def test_a_prepare_script_replaces_what_it_has_written_and_nothing_else(work, capsys):
    run = lambda: call(lambda: PROGRAMS["prepare shakespeare_char"](["--text", "text.txt", "--out", "d"]), "prog")  # noqa: E731
    assert run() == 0 and run() == 0
    (work / "text.txt").write_text("another text, shorter\n" * 30)
    assert run() == 0
    np.arange(50, dtype="<u2").tofile("d/val.bin")  # somebody's own
    line = refused(capsys, "prepare shakespeare_char", ["--text", "text.txt", "--out", "d"])
    assert "--out: d/val.bin: exists and is not what this script has written" in line
    os.remove("d/val.bin")
    os.remove("d/train.bin")
    os.symlink("../text.txt", "d/train.bin")
    line = refused(capsys, "prepare shakespeare_char", ["--text", "text.txt", "--out", "d"])
    assert "d/train.bin: is what --text reads, and would be replaced" in line


def test_files_that_were_put_there_by_hand_are_not_removed(tmp_path):
    from data.download import fetch
    from tinygrad2.errors import UserError

    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(UserError, match="is not the expected file .*; move it away"):
        fetch("http://127.0.0.1:9/x.txt", str(tmp_path / "x.txt"), size=5)
    assert (tmp_path / "x.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["mine", None])
def test_the_bundled_texts_are_not_written_over_others(tmp_path, text):
    from data import make_dummy_data

    if text:
        (tmp_path / "dummy_data.txt").write_text(text)
        with pytest.raises(SystemExit, match="exists, and is another text"):
            make_dummy_data.write(str(tmp_path / "dummy_data.txt"), "ours\n")
        assert (tmp_path / "dummy_data.txt").read_text() == text
    else:
        for _ in range(2):
            make_dummy_data.write(str(tmp_path / "dummy_data.txt"), "ours\n")


# -- files that a rename cannot replace --------------------------------------------------------------------------------


@pytest.fixture(params=["chattr +i", "chattr +a", "mount --bind"])
def fixed(request, tmp_path):
    """Makes a file one that cannot be replaced by a rename, as this system can."""
    undo = []

    def fix(path):
        how = request.param.split()
        if how[0] == "chattr":
            commands = [*how, path], ["chattr", how[1].replace("+", "-"), path]
        else:
            (tmp_path / "source").write_bytes(pathlib.Path(path).read_bytes())
            commands = [*how, tmp_path / "source", path], ["umount", path]
        if not shutil.which(how[0]) or subprocess.run(commands[0], capture_output=True).returncode:
            pytest.skip(f"{how[0]} is not possible here")
        undo.append(commands[1])

    yield fix
    for command in undo:
        subprocess.run(command, check=True)


def test_a_file_that_cannot_be_replaced_is_refused_before_the_first_step(tmp_path, monkeypatch, capsys, fixed):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    assert PROGRAMS["train_gpt2"](TRAIN) == 0
    fixed("trained_weights.bin")
    line = refused(capsys, "train_gpt2", [*TRAIN, "--run-dir", "other"])
    assert "--weights-out" in line and "cannot be replaced" in line
    assert not os.path.exists("other")


def test_the_weights_of_a_resumed_training_are_the_same_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    train = [*FLAGS, "--steps", "3", "--checkpoint-every", "1"]
    assert PROGRAMS["train_gpt2"](train) == 0
    before = pathlib.Path("trained_weights.bin").read_bytes()
    shutil.rmtree("run/checkpoints/step_00000003")
    os.remove("trained_weights.bin")
    assert PROGRAMS["train_gpt2"]([*train, "--resume"]) == 0
    assert "resume    from" in capsys.readouterr().out
    assert pathlib.Path("trained_weights.bin").read_bytes() == before
