"""Where tinygrad2 is, in a checkout or installed by pip: its bundled data, its commands in messages, and name clashes.

Imports nothing that loads NumPy, until `require_libraries` is called.
"""

import importlib.util
import os
import re
import sys

from tinygrad2.errors import UserError
from tinygrad2.system.failures import is_exhausted
from tinygrad2.system.memory import require_limits
from tinygrad2.system.threads import planned_threads, require_threads

PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # of tinygrad2/, ops/
_BUNDLED = os.path.join(PROJECT_ROOT, "tinygrad2", "bundled")  # only in a wheel: setup.py puts data/ there
PACKAGES = "ops", "models"
_NUMPY_MEMORY = 200 << 20  # bytes of address space, measured: 115 MB with one thread, and 40 MB for each further one
LIBRARIES = "numpy", "regex", "numba", "cupy", "mpi4py"  # folders; a file of that name is another program


class NameClash(UserError, ImportError):
    """Python would import another `ops` or `models` instead of ours, or a file instead of a library."""


class MissingLibrary(UserError, ImportError):
    """A library without which nothing works is missing, broken or too old."""


def is_checkout():
    """True in a checkout of the project (an editable install included), False where pip installed a wheel."""
    return not os.path.isdir(_BUNDLED)


def bundled(name):
    """The path of a file of data/ that comes with tinygrad2: bundled("dummy_data.txt"), the default of --data."""
    return os.path.join(PROJECT_ROOT if is_checkout() else _BUNDLED, "data", name)


def data_folder(name):
    """Where data/NAME/prepare.py writes by default: next to itself; installed, into data/NAME of the working folder."""
    return os.path.join(PROJECT_ROOT, "data", name) if is_checkout() else os.path.join("data", name)


def adapt_hint(text):
    """A message for the user, with its commands as they are here: in a checkout the text itself, when installed

        python train_gpt2.py             becomes    python -m train_gpt2
        python data/gpt2/prepare.py                 python -m tinygrad2.bundled.data.gpt2.prepare
        pip install -e ".[mpi]"                     pip install mpi4py mpich
        pip install -e .                            pip install --force-reinstall tinygrad2
    """
    if is_checkout():
        return text
    text = re.sub(r"\bpython (train_gpt2|inference)\.py", r"python -m \1", text)
    text = re.sub(r"\bpython data/(\w+)/prepare\.py", r"python -m tinygrad2.bundled.data.\1.prepare", text)
    text = re.sub(r"-e \.(?!\[)", "--force-reinstall tinygrad2", text)
    return re.sub(r'(?:-e )?"?\.\[(\w+)\]"?', lambda match: " ".join(_libraries(match[1])), text)


def _libraries(extra):
    """The names of the libraries that an extra of setup.cfg consists of."""
    import importlib.metadata  # takes longer to load than all else that a start needs

    lines = [line for line in importlib.metadata.requires("tinygrad2") or [] if f'extra == "{extra}"' in line]
    return [re.match(r"[\w.-]+", line).group() for line in lines]


def refuse_name_clash(leave=None, packages=PACKAGES):
    """Where Python finds a file or folder of somebody else's before our `ops` or `models`, raises NameClash, one line.

    The same for a file such as numpy.py in the working folder. Call it before they are imported; it imports none of
    them. A program that has just been started passes leave(line), which prints the line and exits.
    """
    for name in (*packages, *LIBRARIES):
        spec = _spec_of(name)
        if spec is None or (name in LIBRARIES and spec.submodule_search_locations is not None):
            continue  # not found at all: the import itself says so
        where = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        if not where:
            continue  # not from a file: put there by a program
        if os.path.basename(where) == "__init__.py":
            where = os.path.dirname(where)
        if name in LIBRARIES or os.path.realpath(where) != os.path.realpath(os.path.join(PROJECT_ROOT, name)):
            error = NameClash(_describe(name, os.path.abspath(where)))
            if leave:
                leave(str(error))
            raise error


def require_libraries(leave=None):
    """Raises MissingLibrary, one line, if NumPy or regex cannot be imported, or NumPy is older than 2.

    Call it after the threads have been planned: it imports them. `leave` as in refuse_name_clash.
    """
    for name, load in (("numpy", _load_numpy), ("regex", _load_regex)):
        try:
            problem = load()
        except Exception as error:  # a broken installation raises anything
            if is_exhausted(error):
                raise  # nothing is wrong with the library
            cause = re.search(r"Original error was: (.*)", str(error))  # NumPy's own message has 30 lines
            text = cause[1] if cause else (str(error).strip() or type(error).__name__).splitlines()[0]
            problem = f"{name} cannot be imported ({text})"
        if problem:
            remedy = f'{os.path.basename(sys.executable or "python")} -m pip install -U "numpy>=2.0" regex'
            line = f"{problem}: {remedy}; python -m tinygrad2 doctor checks everything that is needed"
            if leave:
                leave(line)
            raise MissingLibrary(line)


def _load_numpy():
    require_limits(_NUMPY_MEMORY, _NUMPY_MEMORY // 2, "starting NumPy and its BLAS")
    require_threads(planned_threads())
    import numpy

    is_old = int(numpy.__version__.split(".")[0]) < 2
    return f"NumPy {numpy.__version__} is too old, 2.0 or newer is needed" if is_old else ""


def _load_regex():
    import regex  # noqa: F401

    return ""


def _spec_of(name):
    """Where Python finds a module, as an importlib ModuleSpec; None: nowhere."""
    if name in sys.modules:  # None in there, or a module without a spec, is a stand-in put there by a program
        return getattr(sys.modules[name], "__spec__", None)
    try:
        return importlib.util.find_spec(name)
    except ImportError:  # an import hook that forbids it
        return None


def _describe(name, path):
    whose = "of a package of tinygrad2" if name in PACKAGES else "of a library that tinygrad2 uses"
    remedy = "rename it, or start Python from another folder"
    if os.path.dirname(path) == os.getcwd() and not is_checkout() and sys.version_info >= (3, 11):
        remedy += ", or with python -P, which does not look for packages in the working folder"
    if "site-packages" in path or "dist-packages" in path:
        remedy = "install tinygrad2 into an environment of its own"
    return f"{path} is in the way: Python imports it as {name!r}, the name {whose}; {remedy}"
