"""The lessons: each runs, has its six parts, and its notebook is built from it; what it quotes is shipped source."""

import importlib
import inspect
import json
import re

import numpy as np
import pytest

from learn import build, lesson, show
from ops.add import Add
from ops.broadcast import unbroadcast
from tests.marks import slow_but
from tinygrad2.labs.catalog import LABS

LESSONS = lesson.lessons()
NAMES = [path.stem for path in LESSONS]
LONG = {path.stem: path for path in lesson.long_reads()}
PATH_OF = {path.stem: path for path in LESSONS} | LONG
QUICK = {"01_a_number_that_remembers", "03_broadcasting", "04_is_it_right"}
PATHS = re.compile(r"/(home|root|tmp|work|Users|usr)/|[A-Z]:\\\\")


def notebook(name):
    return json.loads(lesson.notebook_of(PATH_OF[name]).read_text(encoding="utf-8"))


def printed(name):
    """What the cells of a committed notebook have printed, one string each."""
    for cell in notebook(name)["cells"]:
        yield "".join(o["text"] for o in cell.get("outputs", []) if o["output_type"] == "stream")


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_has_its_parts(name):
    parsed = lesson.read(lesson.LESSONS / f"{name}.py")
    assert lesson.problems(parsed) == []
    assert lesson.title(parsed).startswith(f"{int(name[:2])} · ")


@pytest.mark.parametrize("name", slow_but(QUICK, NAMES))
def test_a_lesson_runs(name, monkeypatch):
    """Its assertions hold, its blanks are blank, and its answers pass the same checks."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(lesson.NOTEBOOKS)
    said = build.run_lesson(lesson.LESSONS / f"{name}.py")
    assert "is blank. Fill it in" in said and "The answer passes the same check." in said
    assert "not yet" not in said and "is right." not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_long_read_runs(name, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(lesson.HERE)
    assert "not yet" not in build.run_lesson(LONG[name])


@pytest.mark.parametrize("name", PATH_OF)
def test_the_notebook_is_the_lesson_executed(name):
    assert build.stale_cells(PATH_OF[name]) == [], "run: python learn/build.py notebooks"
    code = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [text for text in printed(name) if PATHS.search(text)]
    assert set(notebook(name)["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", PATH_OF)
def test_what_a_notebook_quotes_is_the_shipped_source(name):
    found = [match for text in printed(name) for match in re.finditer(r"^# (\S+)\.py: (\S+)$", text, re.MULTILINE)]
    assert found
    for match in found:
        if match[1].startswith("ops/kernels/"):
            pytest.importorskip("numba")
        thing = importlib.import_module(match[1].replace("/", "."))
        for attribute in match[2].split("."):
            thing = getattr(thing, attribute)
        assert any(show.quoted(thing) in text for text in printed(name)), f"{match[0]}: build the notebooks again"


def test_the_readme_lists_every_lesson():
    table = re.findall(r"^\| \[(.+)\]\(notebooks/(.+)\.ipynb\)", (lesson.HERE / "README.md").read_text("utf-8"), re.M)
    assert table == [(lesson.title(lesson.read(path)), path.stem) for path in LESSONS]


def test_each_lab_is_named_where_its_lesson_builds():
    rows = re.findall(r"^\| `(\w+)` \| `[^`]+` \| (\d+) \|$", (lesson.HERE / "labs.md").read_text("utf-8"), re.M)
    assert sorted(name for name, _ in rows) == sorted(LABS)
    for path in LESSONS:
        own = [name for name, number in rows if int(number) == int(path.name[:2])]
        cells = lesson.chapter(lesson.read(path), ["Build"])
        text = "\n".join(cell.source for cell in cells if cell.kind == "markdown")
        assert re.findall(r"lab start (\w+)`", text) == own[:1], path.name
        assert [name for name in LABS if f"`{name}`" in text] == sorted(own, key=list(LABS).index), path.name


def test_the_readme_names_the_long_reads():
    named = re.findall(r"\]\((\w+)\.ipynb\)", (lesson.HERE / "README.md").read_text("utf-8"))
    assert sorted(named) == sorted(LONG) == ["build_gpt", "tokenization"]


@pytest.mark.parametrize("name, numbers", [("build_gpt", range(5, 12)), ("tokenization", [15])])
def test_a_long_read_has_the_cells_of_its_lessons(name, numbers):
    parsed = lesson.read(LONG[name])
    text = "\n".join(cell.source for cell in parsed if cell.kind == "markdown")
    titles = [lesson.title(lesson.read(path)) for path in LESSONS if int(path.name[:2]) in numbers]
    assert re.findall(r"^## (\d+ · .+)", text, re.MULTILINE) == titles
    assert not re.search(r"^## (Read|Predict|Run|Build|Break|Look)", text, re.MULTILINE)
    code = [cell.source for cell in parsed if cell.kind == "code"]
    assert len(code) == len([cell for cell in build.empty_notebook(LONG[name])["cells"] if cell["cell_type"] == "code"])
    for number in numbers:
        (path,) = (path for path in LESSONS if int(path.name[:2]) == number)
        assert lesson.read(path)[1].source in code
    assert not any("show.exercise(" in source for source in code)


def test_a_chapter_is_some_parts_of_a_lesson():
    parsed = lesson.cells(
        "# %% [markdown]\n# # T\n#\n# about\n#\n# ## Read\n#\n# r\n\n# %%\nread = 1\n\n"
        "# %% [markdown]\n# ### More\n#\n# ## Build\n#\n# b\n\n# %%\nbuild = 1\n\n"
        '# %% [markdown]\n# ## Look\n#\n# l\n\n# %% tags=["answer"]\nlook = 1\n'
    )
    assert [(cell.kind, cell.source, cell.tags) for cell in lesson.chapter(parsed, ["Read", "Look"])] == [
        ("markdown", "## T\n\nabout\n\nr", []),
        ("code", "read = 1", []),
        ("markdown", "#### More\n\n### Look\n\nl", []),
        ("code", "look = 1", ["answer"]),
    ]


def test_cells_of_the_percent_format():
    parsed = lesson.cells('# %% [markdown]\n# # T\n#\n# text\n\n# %% tags=["answer"]\nx = 1  # %% no cell\n')
    assert [(cell.kind, cell.source, cell.tags) for cell in parsed] == [
        ("markdown", "# T\n\ntext", []),
        ("code", "x = 1  # %% no cell", ["answer"]),
    ]
    for text in ("x = 1\n", "# %% [raw]\n", "# %%markdown\n", "# %% [markdown]\nx = 1\n"):
        with pytest.raises(ValueError, match="lesson, line"):
            lesson.cells(text)
    missing = lesson.problems(lesson.cells("# %% [markdown]\n# ## Read\n"))
    assert len(missing) == 8


@pytest.mark.parametrize(
    "function, verdict",
    [(lambda x: None, "blank"), (lambda x: x, "not yet"), (lambda x: 1 / 0, "not yet"), (lambda x: 2 * x, "right")],
)
def test_the_verdicts_of_an_exercise(function, verdict, capsys):
    def check(double):
        np.testing.assert_array_equal(double(np.arange(3)), [0, 2, 4])

    assert show.exercise(function, check) == verdict
    said = capsys.readouterr().out
    assert {"blank": "is blank", "not yet": "not yet:", "right": "is right."}[verdict] in said
    if verdict == "right":
        show.answer(function, check)
    else:
        with pytest.raises((show.Blank, AssertionError, ZeroDivisionError)):
            show.answer(function, check)


def test_a_guess_is_compared(capsys):
    show.guess(5, 6.25, "loss")
    show.guess(None, 6.25, "loss")
    assert capsys.readouterr().out.splitlines()[:3] == ["loss: 6.25", "You wrote 5: 20% off.", "loss: 6.25"]


def test_a_quotation_is_the_source_under_its_name(capsys):
    show.source(Add.backward)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["# ops/add.py: Add.backward", "def backward(self, dout):"]
    assert "# lab:" in inspect.getsource(unbroadcast) and "# lab:" not in show.quoted(unbroadcast)


def test_a_name_that_no_lesson_has_is_refused():
    assert build.chosen(["03"]) == [lesson.LESSONS / "03_broadcasting.py"]
    with pytest.raises(build.UserError, match="^99: no lesson has a name"):
        build.chosen(["99"])
