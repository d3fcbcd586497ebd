"""Lessons as files: the percent format, read and checked.

A lesson is a Python file that runs by itself. A comment `# %%` begins a cell of code, `# %% [markdown]` a cell of text,
whose lines are comments as well. Tags stand behind it: `# %% tags=["answer"]` is a cell that a notebook folds away.
This is the format of Jupytext, Spyder and Visual Studio Code, which open these files as notebooks.

A long read (`long/`) is made of lessons: in place of a cell tagged `["include", "05_bigram", "Read", "Look"]` stand
these parts of that lesson, as a chapter.
"""

import json
import pathlib
import re
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).resolve().parent
LESSONS = HERE / "lessons"
NOTEBOOKS = HERE / "notebooks"
LONG = HERE / "long"
PARTS = ("Read", "Predict", "Run", "Build", "Break", "Look")  # the headings of every lesson, in this order
_MARKER = re.compile(r"# %%(?P<text> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?\n?")


@dataclass
class Cell:
    """One cell: `kind` is "markdown" or "code", `source` its text without the comment signs of markdown."""

    kind: str
    source: str
    tags: list = field(default_factory=list)


def lessons():
    """The paths of all lessons, in order."""
    return sorted(LESSONS.glob("[0-9][0-9]_*.py"))


def long_reads():
    """The paths of the long reads, in order."""
    return sorted(LONG.glob("[a-z]*.py"))


def notebook_of(path):
    """The notebook that is built from a lesson or a long read."""
    return (HERE if path.parent == LONG else NOTEBOOKS) / f"{path.stem}.ipynb"


def cells(text, name="lesson"):
    """The cells of a lesson's text. Raises ValueError, naming the line, for what is no percent format.

    >>> cells("# %% [markdown]\\n# # Title\\n\\n# %% tags=[\\"answer\\"]\\nx = 1\\n")
    [Cell(kind='markdown', source='# Title', tags=[]), Cell(kind='code', source='x = 1', tags=['answer'])]
    """
    found = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.startswith("# %%"):
            marker = _MARKER.fullmatch(line)
            if not marker:
                raise ValueError(f"{name}, line {number}: {line.strip()!r} is no beginning of a cell")
            kind = "markdown" if marker["text"] else "code"
            found.append(Cell(kind, "", json.loads(marker["tags"] or "[]")))
        elif not found:
            raise ValueError(f"{name}, line {number}: text in front of the first cell")
        elif found[-1].kind == "code" or not line.strip():
            found[-1].source += line
        elif line.startswith("# ") or line == "#\n":
            found[-1].source += line[2:] or "\n"
        else:
            raise ValueError(f"{name}, line {number}: a line of a text cell is a comment, '# ...'")
    for cell in found:
        cell.source = cell.source.strip("\n")
    return found


def read(path):
    """The cells of the file of a lesson, or of a long read with those of its lessons."""
    found = []
    for cell in cells(path.read_text(encoding="utf-8"), path.name):
        if cell.tags[:1] == ["include"]:
            found += chapter(read(LESSONS / f"{cell.tags[1]}.py"), cell.tags[2:])
        else:
            found.append(cell)
    return found


def chapter(parsed, parts):
    """These parts of a lesson's cells, their headings one level lower; without the heading of the first part.

    >>> lesson = [Cell("markdown", "# T\\n\\n## Read\\n\\na\\n\\n## Build\\n\\nb"), Cell("code", "x = 1")]
    >>> chapter(lesson, ["Read"])
    [Cell(kind='markdown', source='## T\\n\\na', tags=[])]
    """
    part, kept = parts[0], []                                     # what stands before the first part belongs to it
    for cell in parsed:
        pieces = [cell.source] if cell.kind == "code" else re.split(r"^(?=## \w)", cell.source, flags=re.MULTILINE)
        for piece in filter(None, pieces):
            heading = re.match(r"## (\w+)", piece) if cell.kind == "markdown" else None
            part = heading[1] if heading else part
            if part not in parts:
                continue
            if heading and part == parts[0]:
                piece = piece[heading.end() :].lstrip("\n")
            if cell.kind == "markdown":
                piece = re.sub(r"^(?=##* \w)", "#", piece, flags=re.MULTILINE).strip("\n")
                if kept and kept[-1].kind == "markdown":
                    kept[-1].source += f"\n\n{piece}"
                    continue
            kept.append(Cell(cell.kind, piece, list(cell.tags)))
    return kept


def title(parsed):
    """The heading of a lesson: its first line without the sign of a heading."""
    return parsed[0].source.splitlines()[0].removeprefix("# ")


def problems(parsed):
    """What a lesson lacks, as a list of sentences: title, the six parts in order, a check and its answer."""
    texts = "\n".join(cell.source for cell in parsed if cell.kind == "markdown")
    code = "\n".join(cell.source for cell in parsed if cell.kind == "code")
    missing = []
    if not parsed or not parsed[0].source.startswith("# "):
        missing.append("the first cell begins with a title, '# ...'")
    parts = re.findall(r"^## (\w+)", texts, re.MULTILINE)
    if tuple(parts) != PARTS:
        missing.append(f"the parts are {parts}, not {list(PARTS)}")
    for call in ("show.guess(", "show.source(", "show.exercise(", "show.answer("):
        if call not in code:
            missing.append(f"no cell calls {call}...)")
    if not any("answer" in cell.tags for cell in parsed):
        missing.append("no cell has the tag 'answer'")
    if "<details>" not in texts:
        missing.append("no text is folded away with <details>")
    return missing
