"""The map of the code holds, file by file: imports point one way and form no cycle, optional libraries stay in their
file, files stay small."""

import ast
import io
import pathlib
import re
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
ENGINE = {"engine", "base"}
LAYERS = {  # what the files of a folder may import besides each other; nothing imports upward
    "base": set(),  # tinygrad2/errors.py, prng.py
    "tinygrad2/system": {"base"},
    "cli": {"base", "tinygrad2/system"},  # tinygrad2/cli.py
    "engine": {"base", "tinygrad2/system"},  # the files at the top of tinygrad2/
    "tinygrad2/gpu": ENGINE | {"tinygrad2/system"},
    "tinygrad2/io": ENGINE | {"tinygrad2/system"},
    "tinygrad2/monitor": ENGINE | {"tinygrad2/io", "tinygrad2/system"},
    "tinygrad2/tokenizers": {"base", "tinygrad2/io", "tinygrad2/system"},
    "tinygrad2/datasets": {"base"} | {f"tinygrad2/{name}" for name in ("io", "monitor", "system", "tokenizers")},
    "tinygrad2/distributed": ENGINE | {"cli", "tinygrad2/gpu", "tinygrad2/io", "tinygrad2/system"},
    "tinygrad2/evaluation": ENGINE | {"tinygrad2/io", "tinygrad2/system", "tinygrad2/tokenizers"},
    "tinygrad2/interop": {"base", "tinygrad2/io", "tinygrad2/tokenizers", "tinygrad2/datasets"},
    "tinygrad2/training": ENGINE
    | {"cli"}
    | {f"tinygrad2/{name}" for name in ("gpu", "io", "system", "monitor", "tokenizers", "datasets", "distributed")},
    "tinygrad2/bugs": {"base"} | {f"tinygrad2/{name}" for name in ("io", "monitor", "system")},
    "tinygrad2/explain": ENGINE | {"tinygrad2/io", "tinygrad2/monitor"},
    "ops": ENGINE | {"tinygrad2/system"},
    "ops/kernels": ENGINE | {"ops", "tinygrad2/gpu", "tinygrad2/system"},
    "tinygrad2/labs": ENGINE
    | {"cli", "ops", "models"}
    | {f"tinygrad2/{name}" for name in ("io", "system", "tokenizers", "distributed", "training")},
    "models": ENGINE
    | {"cli", "ops"}
    | {f"tinygrad2/{name}" for name in ("gpu", "interop", "system", "tokenizers")},
}
ROOF = {"tinygrad2/commands", "top", "data"}  # the programs that users start: they may import everything below
EXCEPTIONS = {  # (file, what it imports all the same): why
    ("tinygrad2/__init__.py", "ops"): "the exports: a Tensor is of use once `+` has an op behind it",
    ("tinygrad2/__init__.py", "tinygrad2/tokenizers"): "the exports",
    ("tinygrad2/__main__.py", "tinygrad2/commands"): "the program behind python -m tinygrad2",
    ("tinygrad2/__main__.py", "cli"): "the same",
    ("tinygrad2/__main__.py", "tinygrad2/distributed"): "the ranks of python -m tinygrad2 profile",
    ("ops/__init__.py", "ops/kernels"): "kernels register themselves",
}
OPTIONAL = {  # library -> the only files that may import it, late
    "cupy": {"tinygrad2/backend.py", "tinygrad2/commands/doctor_gpu.py"},
    "mpi4py": {"tinygrad2/distributed/world.py", "tinygrad2/commands/doctor_checks.py"},
    "tiktoken": {"tinygrad2/tokenizers/tiktoken_encoder.py"},
    "ml_dtypes": {"tinygrad2/halves.py"},
    "cuda": {"ops/kernels/cuda/cublaslt.py"},
    "wandb": {"tinygrad2/monitor/wandb_log.py"},
    "lm_eval": {"tinygrad2/commands/lm_eval.py"},
    "tokenizers": set(),
    "safetensors": set(),
    "transformers": set(),
    "torch": set(),
}
CODE = re.compile(r"(^|[;\n]) *(from (tinygrad2|ops|models)[\w.]* import |import (tinygrad2|ops|models|train_gpt2)\b)")
KERNELS = "ops/kernels/cpu/"  # the folder that is only imported where Numba is


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    """tinygrad2/io/files.py -> tinygrad2.io.files, tinygrad2/io/__init__.py -> tinygrad2.io"""
    return name_of(path)[: -len(".py")].replace("/", ".").removesuffix(".__init__")


MODULES = {module_of(path): path for path in PRODUCT}


def imports(path):
    """(dotted name, is it at the top of the file?) of every import statement, also of those inside functions.

    `from a.b import c` is a.b.c where that is one of our files, else a.b.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow goes"
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            names = {name if name in MODULES else node.module for name in whole}
        for name in names:
            yield name, id(node) in top


def packages(path):
    """The first components of what is imported."""
    return {name.split(".")[0] for name, _ in imports(path)}


def layer_of(path):
    name = name_of(path)
    parts = name.split("/")
    if name in ("tinygrad2/errors.py", "tinygrad2/prng.py"):
        return "base"
    if name == "tinygrad2/cli.py":
        return "cli"
    if parts[0] == "tinygrad2":
        return "/".join(parts[:2]) if len(parts) > 2 else "engine"
    if parts[:2] == ["ops", "kernels"]:
        return "ops/kernels"
    return parts[0] if len(parts) > 1 else "top"


def test_the_files_are_found():
    names = set(map(name_of, PRODUCT))
    assert {"train_gpt2.py", "inference.py", "tinygrad2/tensor.py", "ops/layernorm.py", "data/gpt2/prepare.py"} <= names
    assert set(map(layer_of, PRODUCT)) == set(LAYERS) | ROOF


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_imports_point_one_way(path):
    layer = layer_of(path)
    for name, _ in imports(path):
        if name in MODULES and layer not in ROOF:
            other = layer_of(MODULES[name])
            allowed = LAYERS[layer] | {layer}
            assert other in allowed or (name_of(path), other) in EXCEPTIONS, f"{layer} imports {name} of {other}"


def test_no_file_imports_a_program():
    """Commands may import train_gpt2.py: they plan and verify trainings. Nothing else that users start is imported."""
    for path in PRODUCT:
        for name, _ in imports(path):
            program = layer_of(MODULES[name]) if name in MODULES else None
            if program in ROOF and program != layer_of(path) and (name_of(path), program) not in EXCEPTIONS:
                assert (layer_of(path), name) == ("tinygrad2/commands", "train_gpt2"), f"{name_of(path)} imports {name}"


def test_the_exceptions_are_needed():
    arrows = {(name_of(path), name) for path in PRODUCT for name, _ in imports(path) if name in MODULES}
    assert set(EXCEPTIONS) <= {(path, layer_of(MODULES[name])) for path, name in arrows}


def cycles(edges):
    """The groups of names that reach each other (Tarjan's strongly connected components of more than one)."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
            low[name] = min(low[name], low[other] if other in stack else low[name])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            found.extend([sorted(group)] if len(group) > 1 or name in edges[name] else [])

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_no_file_imports_itself_by_way_of_others():
    assert cycles({"a": ["b"], "b": ["c"], "c": ["b"], "d": []}) == [["b", "c"]]  # the search finds what it looks for
    edges = {module: {n for n, _ in imports(path) if n in MODULES} for module, path in MODULES.items()}
    assert sum(map(len, edges.values())) > 400
    assert cycles(edges) == []


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_import_is_hidden_in_a_string(path):
    """Only `python -m tinygrad2 COMMAND` imports by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            assert not CODE.search(node.value), f"line {node.lineno}: {node.value[:60]!r}"
        called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
        if called in ("import_module", "__import__") and name_of(path) != "tinygrad2/__main__.py":
            library = node.args[0].value if isinstance(node.args[0], ast.Constant) else "tinygrad2"
            assert library.split(".")[0] not in ("tinygrad2", "ops", "models"), f"line {node.lineno} imports by name"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_optional_libraries_are_imported_late_and_in_one_file(path):
    for name, at_top in imports(path):
        package = name.split(".")[0]
        if package in ("numba", "llvmlite"):
            assert name_of(path).startswith(KERNELS)
        if package in OPTIONAL:
            assert name_of(path) in OPTIONAL[package] and not at_top


@pytest.mark.parametrize("path", [p for p in PRODUCT if name_of(p.parent) == "ops"], ids=name_of)
def test_reference_ops_know_no_array_library(path):
    assert not packages(path) & {"numpy", "cupy"}


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


def test_importing_the_package_loads_nothing():
    script = "import sys, tinygrad2.distributed.world; print('numpy' in sys.modules, 'mpi4py' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.stdout == "False False\n", result.stderr


def code_lines(path):
    """Lines that contain code: no blank ones, no comments, no docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sorted(lines - {len(text.splitlines()) + 1})


MATHS = [path for path in PRODUCT if name_of(path).split("/")[0] in ("ops", "models")]


@pytest.mark.parametrize("path", MATHS, ids=name_of)
def test_an_op_or_a_part_of_the_model_is_read_in_one_sitting(path):
    """All lines counted. Elsewhere no number decides where code lives."""
    long = name_of(path).startswith("ops/kernels/") or name_of(path) in ("models/gpt.py", "ops/__init__.py")
    most = 150 if long else 120
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("path", sorted((ROOT / "ops/kernels/cuda").glob("*.cu*")), ids=name_of)
def test_lines_of_cuda_are_as_long_as_those_of_python(path):
    """The linter, which checks the latter, does not read them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


def test_the_core_stays_small():
    names = ("backend.py", "function.py", "dispatch.py", "autograd.py", "tensor.py", "module.py", "optim.py")
    assert sum(len(code_lines(ROOT / "tinygrad2" / name)) for name in names) <= 690


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
            if node.name not in ("main", "parse") and not is_kernel:  # a kernel's text is its op's, and its file's
                assert ast.get_docstring(node), f"{node.name} says nothing"


OPENED = {"open", "os.open", "io.open", "codecs.open", "fileinput.input", "os.fdopen", "mmap.mmap", "MappedFile",
          "np.load", "np.fromfile", "np.loadtxt", "np.genfromtxt", "np.memmap", "np.lib.format.open_memmap",
          "gzip.open", "bz2.open", "lzma.open", "tarfile.open", "zipfile.ZipFile", "shutil.copyfile",
          "shutil.copy"}  # fmt: skip
OPENERS = {  # the files that open what they are told to, or what no user can name
    "tinygrad2/io/open_file.py": "the rule itself",
    "tinygrad2/io/pipes.py": "what is no regular file, with a limit to waiting",
    "tinygrad2/system/huge_pages.py": "memory without a file",
    "tinygrad2/io/files.py": "temporary files",
    "tinygrad2/io/file_systems.py": "folders to be synced, locks",
    "tinygrad2/system/temporary.py": "files that it creates, and regular ones that it removes",
    "tinygrad2/datasets/piped.py": "a temporary file",
    "tinygrad2/commands/verify_models.py": "what its own process has written",
    "ops/kernels/cpu/kernel_cache.py": "the source of the kernels",
    "ops/kernels/cuda/launch.py": "the source of the kernels",
    "tinygrad2/distributed/guard.py": "memory shared with the ranks, descriptors it has been given",
    "tinygrad2/distributed/status.py": "the same memory",
    "tinygrad2/distributed/shared_memory.py": "/proc/self/maps",
    "tinygrad2/distributed/work.py": "/proc",
    "tinygrad2/system/threads.py": "cgroups",
    "tinygrad2/system/memory.py": "cgroups",
    "data/make_dummy_data.py": "writes the bundled texts, from files beside it",
}


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_files_are_opened_in_one_place(path):
    """Any name may be that of a pipe, a device or a file without end: io/open_file.py looks before it reads."""
    calls = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).replace("numpy.", "np.")
        fixed = node.args and re.match(r"""f?['"]/(proc|sys|dev)/|os.devnull|_TEMPLATE""", ast.unparse(node.args[0]))
        if name in OPENED and not fixed or name.endswith((".read_bytes", ".read_text", ".write_bytes", ".write_text")):
            calls.add(f"{name}, line {node.lineno}")
    if name_of(path) not in OPENERS:
        assert not calls
    else:
        assert calls, "needs no exception"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_nothing_is_pickled_or_evaluated(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"))
            assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords)
    assert not packages(path) & {"pickle", "marshal", "shelve"}
