"""What pip installs works without the checkout, and another `ops` or `models` in the way is refused in one line."""

import importlib.machinery
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

from tinygrad2.system import installation

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = {
    "train_gpt2": ["-m", "train_gpt2", "--steps", "1"],
    "inference": ["-m", "inference"],
    "tinygrad2": ["-m", "tinygrad2", "plan"],
    "import": ["-c", "from tinygrad2 import Tensor"],
}


def run(command, folder, timeout=600, **environment):
    """The finished process of a command that sees only what is installed, and `folder`."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = list(map(str, command))
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, env=clean | environment)


def install(command, folder):
    """Run a command that needs the package index; skips the test if that cannot be reached."""
    result = run(command, folder)
    if result.returncode and "No matching distribution found" in result.stdout + result.stderr:
        pytest.skip("the package index cannot be reached")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


# -- name clashes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name, file", [("models", "models.py"), ("ops", "ops/__init__.py"), ("numpy", "numpy.py")])
def test_a_module_of_the_users_in_the_way_is_named_in_one_line(program, name, file, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    result = run([sys.executable, *PROGRAMS[program]], tmp_path, PYTHONPATH=str(ROOT))
    if (program, name) == ("import", "models"):  # the exports of tinygrad2 do without
        assert result.returncode == 0, result.stderr
        return
    last = result.stderr.splitlines()[-1]
    assert f"{tmp_path / file.removesuffix('/__init__.py')} is in the way" in last and f"{name!r}" in last
    if program == "import":
        assert result.returncode == 1 and last.startswith("tinygrad2.system.installation.NameClash: ")
    else:
        assert result.returncode == 2 and result.stderr.count("\n") == 1


def test_a_module_that_is_from_no_file_is_not_in_the_way(monkeypatch):
    spec = importlib.machinery.ModuleSpec("numba", None)
    monkeypatch.setitem(sys.modules, "numba", importlib.util.module_from_spec(spec))
    installation.refuse_name_clash()


def test_the_clash_is_an_import_error():
    assert issubclass(installation.NameClash, ImportError)


def test_folders_that_are_no_packages_are_not_in_the_way(tmp_path):
    """A folder models/ full of weights is common."""
    (tmp_path / "models").mkdir()
    (tmp_path / "ops").mkdir()
    result = run([sys.executable, *PROGRAMS["import"]], tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr


def test_a_clash_with_an_installed_package_asks_for_an_environment(monkeypatch, tmp_path):
    folder = tmp_path / "site-packages"
    (folder / "ops").mkdir(parents=True)
    (folder / "ops" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "ops"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="an environment of its own"):
        installation.refuse_name_clash()


# -- files and hints ---------------------------------------------------------------------------------------------------


def test_every_folder_of_code_is_a_package():
    """`packages = find:` leaves out a folder without __init__.py."""
    for package in ("tinygrad2", "ops", "models"):
        assert (ROOT / package / "py.typed").is_file()
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path


def test_hints_in_a_checkout():
    assert pathlib.Path(installation.bundled("dummy_data.txt")) == ROOT / "data" / "dummy_data.txt"
    assert pathlib.Path(installation.data_folder("gpt2")) == ROOT / "data" / "gpt2"
    hint = 'python train_gpt2.py, python data/gpt2/prepare.py, pip install -e ".[fast]"'
    assert installation.adapt_hint(hint) == hint


# -- distributions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(source distribution, wheel made of it), by `python -m build` on a copy of the files that git does not ignore."""
    pytest.importorskip("build", reason="the front end of builds is not installed (pip install build)")
    folder = tmp_path_factory.mktemp("build")
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT)
    if listed.returncode:
        pytest.skip("not in a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    install([sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source"], folder)
    return next((folder / "dist").glob("*.tar.gz")), next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """The Python of a fresh environment in which the wheel and its two requirements are installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install([python, "-m", "pip", "install", "--quiet", distributions[1]], folder)
    return python


@pytest.mark.slow
def test_the_wheel_contains_the_packages_and_what_they_read(distributions):
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    for package in ("tinygrad2", "ops", "models"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in names
    assert {"train_gpt2.py", "inference.py", "tinygrad2/bundled/data/dummy_data.txt"} <= names
    assert {"tests", "benchmarks", "docs", "data"}.isdisjoint(name.split("/")[0] for name in names)


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(installed, tmp_path):
    for command in (
        ["-m", "train_gpt2", "--steps", "5", "--eval-every", "0", "--sample-every", "0"],
        ["-m", "inference", "--max-new-tokens", "5"],
        ["-m", "tinygrad2", "plan"],
        ["-m", "tinygrad2", "plot", "run"],
        ["-m", "tinygrad2.bundled.data.gpt2.prepare", "--help"],
        ["-c", "from tinygrad2 import Tensor; from models import GPT"],
    ):
        result = run([installed, *command], tmp_path)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    assert (tmp_path / "trained_weights.bin").exists()


@pytest.mark.slow
def test_hints_of_the_wheel_name_what_is_there(installed, tmp_path):
    script = """
from tinygrad2.system.installation import adapt_hint, bundled, data_folder
print(open(bundled("dummy_data.txt")).read(4), data_folder("gpt2"), adapt_hint('pip install -e ".[mpi]", or stop'))
print(adapt_hint("python -m pip install -e ."))
"""
    result = run([installed, "-c", script], tmp_path)
    assert result.stdout.splitlines() == [
        f"Once {os.path.join('data', 'gpt2')} pip install mpi4py mpich, or stop",
        "python -m pip install --force-reinstall tinygrad2",
    ], result.stderr
    result = run([installed, "-m", "inference"], tmp_path)
    assert result.returncode == 2 and "(python -m train_gpt2)" in result.stderr
    assert "(python -m tinygrad2.bundled.data.gpt2.prepare)" in result.stderr
    (tmp_path / "models.py").write_text("")
    result = run([installed, *PROGRAMS["tinygrad2"]], tmp_path)
    assert result.returncode == 2 and "models.py is in the way" in result.stderr
    result = run([installed, "-P", *PROGRAMS["tinygrad2"]], tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_source_distribution_passes_its_own_tests(distributions, tmp_path):
    with tarfile.open(distributions[0]) as archive:
        archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    for name in ("docs/kernels.md", "benchmarks/results/ops.csv", "data/gpt2/prepare.py", "CHANGELOG.md", ".ci/run"):
        assert (source / name).is_file(), name
    tests = ["tests/test_dummy_data.py", "tests/test_gradcheck.py"]
    result = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests], source, PYTHONPATH=str(source))
    assert result.returncode == 0, result.stdout[-3000:]
