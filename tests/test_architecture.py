"""The map of the code holds: arrows point one way, optional libraries stay in their file, files stay small."""

import ast
import io
import pathlib
import subprocess
import sys
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PRODUCT = sorted(
    path
    for pattern in ("*.py", "tinygrad2/**/*.py", "ops/**/*.py", "models/**/*.py", "data/**/*.py")
    for path in ROOT.glob(pattern)
)
LAYERS = {"tinygrad2": set(), "ops": {"tinygrad2"}, "models": {"tinygrad2", "ops"}}  # what each may import but itself
OPTIONAL = {  # library -> the only files that may import it, late
    "cupy": {"tinygrad2/backend.py"},
    "mpi4py": {"tinygrad2/distributed/world.py"},
    "tiktoken": {"tinygrad2/tokenizers/tiktoken_encoder.py"},
    "lm_eval": {"tinygrad2/commands/lm_eval.py"},
    "tokenizers": set(),
    "safetensors": set(),
    "transformers": set(),
    "torch": set(),
}
KERNELS = "ops/kernels/cpu/"  # the folder that is only imported where Numba is


def imports(path):
    """(top-level package, is it at the top of the file?) of every import statement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            yield name.split(".")[0], id(node) in top


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def test_the_files_are_found():
    assert {"train_gpt2.py", "inference.py", "tinygrad2/tensor.py", "ops/layernorm.py"} <= set(map(name_of, PRODUCT))


@pytest.mark.parametrize("path", [p for p in PRODUCT if name_of(p).split("/")[0] in LAYERS], ids=name_of)
def test_arrows_point_one_way(path):
    layer = name_of(path).split("/")[0]
    if name_of(path).startswith("tinygrad2/commands/"):
        return  # the roof: it may import everything
    for package, _ in imports(path):
        assert package not in LAYERS or package == layer or package in LAYERS[layer], f"imports {package}"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_optional_libraries_are_imported_late_and_in_one_file(path):
    for package, at_top in imports(path):
        if package in ("numba", "llvmlite"):
            assert name_of(path).startswith(KERNELS)
        if package in OPTIONAL:
            assert name_of(path) in OPTIONAL[package] and not at_top


@pytest.mark.parametrize("path", [p for p in PRODUCT if name_of(p.parent) == "ops"], ids=name_of)
def test_pages_of_maths_know_no_array_library(path):
    assert not {package for package, _ in imports(path)} & {"numpy", "cupy"}


def test_the_core_needs_numpy_and_regex_only():
    """Imports everything with any other third-party package made unimportable."""
    script = """
import sys

allowed = {"numpy", "regex", "_regex", "tinygrad2", "ops", "models", "inference", "train_gpt2"}

class Gate:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in allowed and not top.startswith("_"):
            raise ImportError(f"{name} is not allowed here")

sys.meta_path.insert(0, Gate())
import inference, train_gpt2, tinygrad2
from tinygrad2 import Function, Module, Parameter, Tensor, Tokenizer, apply, gradcheck, no_grad
try:
    import torch
except ImportError:
    print("fine")
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.stdout == "fine\n", result.stderr


def test_importing_the_face_loads_nothing():
    script = "import sys, tinygrad2.distributed.world; print('numpy' in sys.modules, 'mpi4py' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.stdout == "False False\n", result.stderr


def code_lines(path):
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sorted(lines - {len(text.splitlines()) + 1})


def budget(path):
    """The most lines a file may have, all counted."""
    name = name_of(path)
    if name.startswith("ops/kernels/") or name == "models/gpt.py":
        return 150
    return 120 if name.split("/")[0] in ("ops", "models") else 400


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_files_keep_to_their_budget(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= budget(path)


def test_the_core_keeps_to_its_budget():
    core = [ROOT / "tinygrad2" / name for name in ("backend.py", "function.py", "tensor.py", "module.py", "optim.py")]
    assert sum(len(code_lines(path)) for path in core) <= 600


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_golfing(path):
    """Few statements are longer than a reader's breath: at most 45 tokens on a line, 15 on average."""
    if name_of(path).startswith("data/"):
        return  # tables of words
    per_line = {}
    code = set(code_lines(path))
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.start[0] in code and token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            per_line[token.start[0]] = per_line.get(token.start[0], 0) + 1
    if not per_line:
        return  # a package's __init__ of one docstring
    assert max(per_line.values()) <= 45, max(per_line, key=per_line.get)
    assert sum(per_line.values()) / len(per_line) <= 15


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            is_kernel = name_of(path).startswith("ops/kernels/") and isinstance(node, ast.ClassDef) and node.keywords
            if node.name not in ("main", "parse") and not is_kernel:  # a kernel's text is its page's, and its file's
                assert ast.get_docstring(node), f"{node.name} says nothing"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_nothing_is_pickled_or_evaluated(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"))
            assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords)
    assert not {package for package, _ in imports(path)} & {"pickle", "marshal", "shelve"}
