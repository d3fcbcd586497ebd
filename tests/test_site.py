"""The pages of the site: each op has one, what they name exists, their links resolve, what they print is computed.

The pages are made without MkDocs. Where it is installed the site is built as well, which checks links once more.
"""

import html
import importlib.util
import inspect
import json
import os
import posixpath
import re
import subprocess
import sys

import pytest

from learn import build, lesson
from learn.pages import api, example, notebook, op, order, site
from learn.pages.text import ROOT, blocks, document, escaped, fence, signature
from models import GPTConfig
from tests.samples import SAMPLES
from tinygrad2.dispatch import OPS
from tinygrad2.errors import UserError
from tinygrad2.tokenizers.tokenizer import Tokenizer

NAMES = site.names_of_ops()


@pytest.fixture(scope="module")
def files():
    return site.files()


@pytest.fixture(scope="module")
def pages(files):
    return {name: text for name, text in files.items() if name.endswith(".md")}


def without_code(text):
    """Markdown without its fences and code between backticks."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.M | re.S))


def test_every_op_has_a_page(pages):
    assert set(NAMES) == set(SAMPLES)
    assert len({op.page_of(name) for name in NAMES} & set(pages)) == len(NAMES)
    assert sorted(name for names in order.OPS_BY_KIND.values() for name in names) == sorted(NAMES)
    for name in NAMES:
        assert pages[op.page_of(name)].startswith(f"# {name}\n")


def test_a_derivation_is_the_docstring_as_it_stands(pages):
    """No line of a formula is lost or moved, no sign of the prose is markup."""
    for name in NAMES:
        text = pages[op.page_of(name)].split("\n## Code\n")[0]
        text = re.sub(r"\[`([^`]+)`\]\([^)]+\)", r"\1", text)  # names of files, linked
        text = html.unescape(re.sub(r"\\([\\`*_{}\[\]])", r"\1", text))
        for keep, block in blocks(inspect.cleandoc(OPS[name].__doc__)):
            assert f"```text\n{block}\n```" in text or (keep and block in text) or (not keep and block in text), block


def test_the_gradient_of_layernorm_has_its_three_paths(pages):
    gradient = pages["ops/layernorm.md"].split("## The gradient\n")[1].split("\n## ")[0]
    paths = re.search(r"```text\ndirectly:\n(.*?)\n\nthrough mean:\n(.*?)\n\nthrough rstd:\n(.*?)\n```", gradient, re.S)
    terms = [path.splitlines()[-1].rpartition("= ")[2].strip() for path in paths.groups()]
    assert terms == ["rstd * g_j", "-rstd * avg(g)", "-rstd * xhat_j * avg(g * xhat)"]
    assert max(map(len, paths[0].splitlines())) < 52  # what a phone shows of a line
    assert "dx = rstd * (g - avg(g) - xhat * avg(g * xhat))" in gradient


def test_links_lead_to_pages_and_headings(files, pages):
    """Every relative link of every page, with its anchor."""
    checked = 0
    for name, text in pages.items():
        for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", without_code(re.sub(r"\[`[^`]+`\]", "[x]", text))):
            if target.startswith(("http:", "https:")):
                continue
            path, _, anchor = target.partition("#")
            goal = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            assert goal in files, f"{name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", files[goal], re.MULTILINE)
                slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}
                assert anchor in slugs, f"{name}: {target}"
            checked += 1
    assert checked > 1000


def test_what_the_pages_name_exists(pages):
    """Kernels, tests, files of the reading order."""
    tests = {(path, name) for path, name, _ in op.all_tests()}
    for name in NAMES:
        text = pages[op.page_of(name)]
        for test, path in re.findall(r"^- `(test_\w+)` in \[`(tests/\w+\.py)`\]", text, re.M):
            assert (path, test) in tests
        for kernel, path in re.findall(r"^- `(\w+)`, CPU: \[`([\w/]+\.py)`\]", text, re.M):
            assert f"class {kernel}({OPS[name].__name__}, backend=" in (ROOT / path).read_text(encoding="utf-8")
        for test in op.tests_of_every_op():
            assert (op.EVERY, test) in tests and f"`{test}`" in text
    assert len(op.tests_of_every_op()) > 4 and len(op.kernels()["LayerNorm"]) == 1
    for _, _, lessons, names, paths in order.STEPS:
        assert site.lessons_of(lessons) and set(names) <= set(NAMES)
        assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_lesson_is_in_the_reading_order_with_its_figures(files, pages):
    numbers = [number for _, _, lessons, _, _ in order.STEPS for number in lessons]
    assert sorted(numbers) == list(range(25))
    for path in lesson.lessons():
        assert f"(learn/notebooks/{path.stem}.md)" in pages["index.md"]
        page = pages[f"learn/notebooks/{path.stem}.md"]
        title = f"# {lesson.title(lesson.read(path))}\n"
        assert page.startswith(f"{notebook.FIRST_IN_SEARCH}\n{title}")  # in front of the pages that only name a thing
        pictures = re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", page)
        assert pictures and all(files[f"learn/notebooks/{name}"].startswith(b"\x89PNG") for name in pictures)


def test_names_that_the_documents_import_are_in_the_api(pages):
    """What docs/library.md shows, and what lessons 5 and 6 train with, is described under public names."""
    listed = {heading for name, text in pages.items() if name.startswith("api/")
              for heading in re.findall(r"^##+ (\w+)$", text, re.MULTILINE)}  # fmt: skip
    text = "\n".join([(ROOT / "docs" / "library.md").read_text(encoding="utf-8"),
                      *(path.read_text(encoding="utf-8") for path in lesson.lessons()[5:7])])  # fmt: skip
    found = re.findall(r"^from (?:models|tinygrad2)(?:\.(?!distributed|datasets)\w+)* import (.+)$", text, re.MULTILINE)
    names = {name for names in found for name in names.split(", ")}
    assert {"SGD", "RMSprop", "Adam", "FlatBuffers", "GPT", "Tensor"} <= names
    assert names - listed == set()


@pytest.mark.parametrize("name", ["layernorm", "split", "compare", "linear_bfloat16", "concatenate", "index"])
def test_the_program_of_an_op_runs_by_itself(name):
    """It prints in a process of its own what the page shows, and its gradient check passes."""
    text = example.program(name)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    shown = op.page(name, site.first_links())
    assert fence(text, "python") in shown and result.stdout in shown
    assert ("PASS" in result.stdout) == example.has_gradient(OPS[name])


def test_every_gradient_check_on_the_pages_passes(pages):
    for name in NAMES:
        shown = pages[op.page_of(name)].split("\nprints\n")[1].split("\n## ")[0]
        assert ("gradcheck of f: PASS" in shown) == example.has_gradient(OPS[name]) and "FAIL" not in shown


def test_costs_are_those_of_the_operation():
    whose, shapes, _, result, flops, moved = example.costs("matmul")[0]
    assert (whose, shapes, result) == ("tests", "(3, 4), (4, 5)", "(3, 5)")
    assert flops == (2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5)
    assert moved[0] == 4 * (3 * 4 + 4 * 5 + 3 * 5)
    assert [row[4:] for row in example.costs("reshape")][0] == ((0, 0), [0, 0])  # a view moves nothing


def test_ops_of_a_gpt_show_what_they_cost_in_gpt2(pages):
    """The shapes of one text, and the bytes and operations that follow from them."""
    config = GPTConfig.preset("gpt2")
    T, C, V = example.GPT2_TOKENS, config.n_embd, config.vocab_size
    rows = {name: example.costs(name)[0] for name in ("linear", "linear_cross_entropy", "layernorm")}
    assert rows["linear"][:2] == ("GPT-2", f"(1, {T}, {C}), ({C}, {3 * C}), ({3 * C},)")
    assert rows["linear"][4] == (2 * T * C * 3 * C, 2 * 2 * T * C * 3 * C)
    assert rows["linear_cross_entropy"][4][0] == 2 * T * C * V
    assert rows["layernorm"][5][0] == 4 * (2 * T * C + 2 * C)
    shown = pages["ops/layernorm.md"].split("## Shapes and cost\n")[1].split("\n## ")[0]
    assert "| GPT-2 | (1, 64, 768), (768,), (768,) |" in shown and "| tests | (3, 4), (4,), (4,) |" in shown


def test_code_on_a_page_is_the_source_without_docstring_and_marks():
    for name in NAMES:
        code, source = example.code_without_docstring(OPS[name]), inspect.getsource(OPS[name])
        lines = [line for line in code.splitlines() if line.strip()]
        assert all(line in source.splitlines() for line in lines) and lines[0].startswith("class ")
        assert "def forward" in code and '"""' not in code.split("def ")[0] and "# lab:" not in code


def test_prose_and_formulas_are_told_apart():
    doc = "The sum.\n\n    out = a_i * b_i\n\n    more\n\nIn words: a\nsum.\n\nrtol    error\natol    size"
    assert blocks(doc) == [
        (False, "The sum."), (True, "out = a_i * b_i\n\nmore"), (False, "In words: a\nsum."),
        (True, "rtol    error\natol    size"),
    ]  # fmt: skip
    assert blocks("Backward.  x_i goes\non.") == [(False, "Backward.  x_i goes\non.")]
    assert blocks("out = x.reshape(a)        dx = dout") == [(True, "out = x.reshape(a)        dx = dout")]
    assert blocks(">>> f(1)\n2") == [(True, ">>> f(1)\n2")]
    assert escaped("a_i * [b] <c> `d_e`") == r"a\_i \* \[b\] &lt;c&gt; `d_e`"
    assert fence("```\nx\n```").startswith("````text\n")


def test_links_of_a_document_become_those_of_the_site():
    links = site.first_links()
    text = "See [a](training.md#data), [b](../learn/README.md), `ops/add.py`.\n| a |\n|---|\n```\n`ops/add.py`\n```"
    assert document(text, "docs/x.md", links, "docs/x.md") == (
        "See [a](training.md#data), [b](../learn/README.md), [`ops/add.py`](../ops/add.md).\n\n| a |\n|---|\n"
        "```\n`ops/add.py`\n```\n"
    )
    assert document("[n](notebooks/05_bigram.ipynb)", "learn/README.md", links, "learn/README.md") == (
        "[n](notebooks/05_bigram.md)\n"
    )


def test_signatures_are_short_and_keep_their_defaults():
    assert signature(Tokenizer) == "(merges: Sequence[tuple[int, int]], source: str = 'Tokenizer(merges)')"
    assert signature(api.pages) == "(links)"


def test_the_menu_has_every_page_once(pages):
    def listed(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in listed(part)]

    menu = listed(site.navigation())
    assert len(menu) == len(set(menu))
    assert set(menu) == {name for name in pages if not name.startswith("source/")}


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something that this program has not built"):
        site.build(tmp_path)
    with pytest.raises(UserError, match="does not exist; create it first"):
        site.build(tmp_path / "no" / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(importlib.util.find_spec("material") is not None, reason="mkdocs-material is installed")
def test_without_mkdocs_one_line_says_what_to_install(tmp_path):
    with pytest.raises(UserError, match=r'^the site needs mkdocs and mkdocs-material: pip install -e "\.\[learn\]"$'):
        site.build(tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


def test_the_loop_of_the_lessons_needs_no_more_than_a_browser_has(tmp_path):
    """What learn/README.md says about training in the page: no threads, processes, Numba, fcntl, resource."""
    script = """
import os, subprocess, sys, threading

missing = ("numba", "llvmlite", "mpi4py", "cupy", "fcntl", "resource", "termios", "pwd", "grp", "_multiprocessing")

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(name, name=name)

def refuse(*args, **kwargs):
    raise OSError("not in a browser")

sys.meta_path.insert(0, Gate())
for name in missing:
    sys.modules.pop(name, None)
threading.Thread.start = subprocess.Popen.__init__ = os.fork = refuse
from learn import small
model = small.gpt()
losses = small.train(model, 12)
print(losses[-1] < losses[0] - 0.3, len(small.text(model, length=8)) > 8)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)
    assert result.stdout == "True True\n", result.stderr


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path, monkeypatch, capsys):
    pytest.importorskip("material", reason='needs mkdocs-material: pip install -e ".[learn]"')
    out = tmp_path / "site"
    out.mkdir()
    (out / site.MARK).write_text("")
    (out / "old.html").write_text("of a site that was built before")
    monkeypatch.setattr(sys, "argv", ["build.py", "site", "--out", str(out)])
    assert build.main() == 0
    assert re.match(r"\d+ pages in \d+ s; to read them: ", capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]
    built = sorted(out.glob("**/*.html"))
    assert len(built) > 150 and not (out / "old.html").exists()
    loaded = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")
    assert not [path.name for path in built if loaded.search(path.read_text(encoding="utf-8"))]
    index = (out / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "ops/layernorm.html" in index and "source/ops" not in index
    found = json.loads(index)["docs"]
    texts = [entry["text"] for entry in found if entry["location"].startswith("ops/layernorm.html")]
    assert any("dx = rstd * (g - avg(g)" in text for text in texts) and "∗" not in "".join(texts)  # plain text, once
    boosted = {entry["location"].partition("#")[0] for entry in found if entry.get("boost") == 2}
    assert boosted == {f"learn/notebooks/{path.stem}.html" for path in lesson.lessons()}
    page = (out / "ops" / "layernorm.html").read_text(encoding="utf-8")
    assert page.count("<math ") > 15 and page.count("alttext=") == page.count("<math ")
    assert re.search(r'<details class="?plain"?>\s*<summary>.*?<code>.*?xhat = \(x - mean\) \* rstd', page, re.S)
    for selector in (".language-text", ".output", ".formulas", ".plain"):  # what site.css says is about something
        css = (out / "assets" / "site.css").read_text(encoding="utf-8")
        assert selector in css and re.search(rf'class="[^"]*\b{selector[1:]}\b', page)
