"""Examples in docstrings run; the documentation names the files there are, and its tables are those of the scripts."""

import doctest
import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PRODUCT = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "tinygrad2/**/*.py", "ops/**/*.py", "models/**/*.py", "data/**/*.py")
    for path in ROOT.glob(pattern)
    if path.name not in ("__init__.py", "__main__.py")
)
MODULES = [name[: -len(".py")].replace("/", ".") for name in PRODUCT if not name.startswith(("data/", "ops/kernels/"))]
LAYOUT = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def files_of_layout():
    """Paths in the first cell of each table row of docs/layout.md, and every path named in the rest of the text."""
    sections = re.split(r"^## (.*)\n", LAYOUT, flags=re.MULTILINE)
    for title, text in zip(sections[1::2], sections[2::2]):
        folder = title if title.endswith("/") else ""
        for line in text.splitlines():
            cells = line.split("|")
            if line.startswith("| `"):
                yield from (folder + name for name in re.findall(r"`([^`]+)`", cells[1]))
                cells = cells[2:]
            yield from re.findall(r"`(\w+(?:/\w+)*/\w+\.py|\w+/)`", "|".join(cells) if title == "Where is ...?" else "")


def test_every_file_in_the_layout_exists():
    assert not [name for name in files_of_layout() if not (ROOT / name).exists()]


def test_every_product_file_is_in_the_layout():
    assert set(PRODUCT) <= set(files_of_layout())


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_of_the_documentation_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, target


PHRASES = (
    "did not finish within",
    "is stopped",
    "is missing: it is a rank of another host, or the",
    "the ranks are in different collectives",
    "the ranks have different",
    "the weights of the ranks differ: first",
    "was killed by ",
    ", without a message",
    "has become another program",
    "is alive, but has done nothing for",
    "tasks were started, but MPI sees",
)


@pytest.mark.parametrize("phrase", PHRASES)
def test_the_messages_in_the_table_of_symptoms_are_those_of_the_program(phrase):
    assert phrase in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert any(phrase in path.read_text(encoding="utf-8") for path in (ROOT / "tinygrad2" / "distributed").glob("*.py"))


def test_the_tables_of_scaling_are_what_the_script_makes_of_the_committed_figures():
    from benchmarks import scaling

    with open(scaling.DOC, encoding="utf-8") as file:
        text = file.read()
    assert " cores, 20" in text and "4,096 ranks" in text
    assert scaling.rewrite(text) == text


def test_the_model_of_scaling_does_what_its_formula_says():
    from benchmarks.scaling import LATENCY, LINE, time_of_sum

    node = dict(ranks=2, bandwidth=10e9, latency=1e-6, adding=20e9)
    assert time_of_sum(1e9, 2, 1, node, 10) == 2 * 1e-6 + 0.5 * 1e9 * (2 / 10e9 + 1 / 20e9)
    between = 2 * 2 * LATENCY + 3 / 4 * 1e9 * 2 / (10e9 / 8 * LINE)
    assert abs(time_of_sum(1e9, 4, 4, node, 10) - between) < 1e-12
