"""What the README shows is true: its Python runs and prints what it says, its commands exist, its files are there."""

import contextlib
import io
import pathlib
import re
import shlex

import pytest

import inference
import train_gpt2
from tinygrad2.dispatch import OPS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every command line of the README's shell blocks, comments left out."""
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_two_commands_are_there_and_in_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [line[1] for line in commands() if line[0] == "make"]
    assert {"train", "test"} <= set(made) <= set(targets)


def test_python_examples_print_what_they_say():
    before = dict(OPS)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks("python"):
            exec(block, {})
    OPS.clear()
    OPS.update(before)
    promised = re.findall(r"print\(.*?\)\s+# (.*)", "\n".join(blocks("python")))
    promised += [block for block in blocks("text") if block.startswith("gradcheck")]
    assert len(promised) == 2
    for text in promised:
        assert text.strip() in printed.getvalue()


@pytest.mark.parametrize("script, parse", [("train_gpt2.py", train_gpt2.parse), ("inference.py", inference.parse)])
def test_every_command_of_a_script_has_flags_that_exist(script, parse):
    found = 0
    for line in commands():
        if script in line:
            flags = line[line.index(script) + 1 :]
            if "--init-from" in flags:  # the model that it names is yet to be fetched
                del flags[flags.index("--init-from") : flags.index("--init-from") + 2]
            parse(flags)
            found += 1
    assert found >= 3


def test_every_file_that_is_named_exists():
    names = re.findall(r"`([\w/]+\.(?:py|md|txt))`", README)
    assert len(names) > 15
    for name in names:
        places = [ROOT, ROOT / "models"]  # the table names the files of models/ shortly
        assert any((place / name).exists() for place in places), name


def test_extras_that_are_installed_by_the_readme_exist():
    extras = re.findall(r"\.\[([\w,]+)\]", README)
    setup = (ROOT / "setup.cfg").read_text()
    assert extras
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} =$", setup, re.MULTILINE), extra


def test_make_installs_what_the_readme_says():
    assert re.search(r"^EXTRAS \?= fast,mpi,test$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert '-e ".[fast,mpi,test]"' in README
