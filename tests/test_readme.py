"""What README.md and docs/ show is true: Python examples run and print what they show, commands and files exist."""

import pathlib
import re
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest

import inference
import train_gpt2
from tinygrad2.commands import COMMANDS
from tinygrad2.commands.explain import ExplainConfig

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES if path.name != "log.md"}  # a log tells the past


def blocks(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """Every command of the shell blocks as a list of words, comments left out."""
    lines = [
        shlex.split(line.removeprefix("$ "), comments=True)
        for block in blocks("sh", text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in lines:
        while "&&" in line:
            yield line[: line.index("&&")]
            line = line[line.index("&&") + 1 :]
        if line:
            yield line


ALL_COMMANDS = [line for text in TEXTS.values() for line in commands(text)]


def test_the_two_commands_are_there_and_in_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [line[1] for line in commands(README) if line[0] == "make"]
    assert {"train", "test"} <= set(made) <= set(targets)


def test_the_readme_is_short_and_its_pictures_are_there():
    assert len(README.splitlines()) <= 200
    for text, folder in ((README, ROOT), (TEXTS["layout.md"], ROOT / "docs")):
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert len(pictures) == 2 and all((folder / name).exists() for name in pictures)
    assert all((ROOT / name).exists() for name in re.findall(r"\]\((docs/[^)#]+)", README))


@pytest.mark.parametrize("name, examples", [("README.md", 1), ("library.md", 8)])
def test_python_examples_print_what_they_say(name, examples):
    printed = ""
    for block in blocks("python", TEXTS[name]):
        block = block.replace('"--steps", "200"', '"--steps", "3"')  # of the demo: they would take most of a minute
        result = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        printed += result.stdout
    promised = re.findall(r"print\(.*?\)\s+# (.*)", "\n".join(blocks("python", TEXTS[name])))
    promised += [block for block in blocks("text", TEXTS[name]) if block.startswith("gradcheck")]
    assert len(promised) == examples
    for text in promised:
        assert text.strip() in printed


@pytest.mark.parametrize("script, parse", [("train_gpt2.py", train_gpt2.parse), ("inference.py", inference.parse)])
def test_every_command_of_a_script_has_flags_that_exist(script, parse):
    count = 0
    for line in ALL_COMMANDS:
        if script in line:
            flags = [flag for flag in line[line.index(script) + 1 :] if flag != "&"]
            for flag in ("--init-from", "--ranks"):  # the model is yet to be fetched, the ranks to be started
                if flag in flags:
                    del flags[flags.index(flag) : flags.index(flag) + 2]
            parse(flags)
            count += 1
    assert count >= 8


def test_every_command_and_script_that_is_called_exists():
    names = [line[line.index("-m") + 1 :] for line in ALL_COMMANDS if "-m" in line]
    for module, *rest in names:
        if module == "tinygrad2":
            assert rest[0] in COMMANDS
        elif module.startswith("benchmarks."):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists()
    assert len(names) > 15
    scripts = {word for line in ALL_COMMANDS for word in line if word.endswith(".py")}
    assert len(scripts) > 8 and all((ROOT / script).exists() for script in scripts)


def test_every_flag_in_the_text_exists():
    """`--flag` in running text is a flag of a script or of a command here, or one of these of other programs."""
    known = {"--signal", "--dependency", "--init_from"}  # Slurm, Slurm, nanoGPT
    for config in (train_gpt2.TrainConfig, train_gpt2.ModelFlags, inference.InferenceConfig, ExplainConfig):
        known |= {sign + field.name.replace("_", "-") for field in fields(config) for sign in ("--", "--no-")}
    for path in (*ROOT.glob("*.py"), *(ROOT / "tinygrad2" / "commands").glob("*.py"), *ROOT.glob("[bd]*/**/*.py")):
        known |= set(re.findall(r'"(--[a-z][a-z0-9-]+)"', path.read_text(encoding="utf-8")))
    for name, text in TEXTS.items():
        for flag in re.findall(r"`(--[a-z][\w-]+)", text):
            assert flag in known, f"{name}: {flag}"


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "layout.md"])  # test_docs.py has the layout
def test_every_file_that_is_named_exists(name):
    for file in re.findall(r"`([\w/]+/\w+\.(?:py|md|txt))`", TEXTS[name]):
        assert (ROOT / file).exists(), file


def test_extras_that_are_installed_by_the_text_exist():
    extras = [extra for text in TEXTS.values() for extra in re.findall(r"\.\[([\w,]+)\]", text)]
    setup = (ROOT / "setup.cfg").read_text()
    assert extras
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} =$", setup, re.MULTILINE), extra
    for extra in re.findall(r"^(\w+) =$", setup[setup.index("[options.extras_require]") :], re.MULTILINE):
        assert extra in ("addopts", "filterwarnings", "markers") or f".[{extra}" in README or f",{extra}" in README


def test_make_installs_what_the_readme_says():
    assert re.search(r"^EXTRAS \?= fast,mpi,test$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert '-e ".[fast,mpi,test]"' in README
