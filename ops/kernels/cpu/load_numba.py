"""Importing Numba, or one line about why this process cannot use it. Imported before every file that needs Numba.

Raises ImportError where Numba is missing or broken, or where one of its environment variables switches compiling off or
cannot be read. ops/__init__.py catches it: then the reference implementations run.
"""

import os
import re
import warnings
from contextlib import contextmanager

from tinygrad2.system.failures import is_exhausted
from tinygrad2.system.memory import require_limits

_ADDRESS_SPACE, _DATA = 450 << 20, 300 << 20  # bytes; measured: 420 and 265 MB for the kernels of a training
_COMPILING = 128 << 20  # bytes; measured: 80 MB for the first kernel, which loads Numba's own functions, then less
_FEATURES = re.compile(r"([+-][\w.-]+(,[+-][\w.-]+)*)?")  # LLVM aborts the process if this has another form


def _setting(name):
    return f"the environment variable {name}={os.environ[name]}"


class UnusableNumba(ImportError):
    """Numba is installed, but this process cannot use it; `remedy` is what to do about it."""

    def __init__(self, reason, remedy):
        super().__init__(reason)
        self.remedy = remedy

    @classmethod
    def by_setting(cls, name, effect):
        """An environment variable is to blame."""
        return cls(f"{_setting(name)} {effect}", f"unset {name}")


def load_numba():
    """The module numba. Raises ImportError."""
    if not _FEATURES.fullmatch(os.environ.get("NUMBA_CPU_FEATURES", "")):
        raise UnusableNumba.by_setting("NUMBA_CPU_FEATURES", "is not a list like +avx2,-fma")
    if not re.fullmatch(r"[\w.-]{0,40}", os.environ.get("NUMBA_CPU_NAME", "")):
        raise UnusableNumba.by_setting("NUMBA_CPU_NAME", "is not the name of a processor")
    require_limits(_ADDRESS_SPACE, _DATA, "compiling kernels")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with _without_colours():
                import numba
    except ModuleNotFoundError as error:
        if error.name in ("numba", "llvmlite"):
            raise
        raise _broken(error) from None
    except Exception as error:
        if is_exhausted(error):  # nothing is wrong with the library
            raise MemoryError(str(error)) if isinstance(error, ImportError) else error from None
        threads = os.environ.get("NUMBA_NUM_THREADS", "1")
        if not threads.isdecimal() or int(threads) == 0:
            raise UnusableNumba.by_setting("NUMBA_NUM_THREADS", "is not a number of threads") from None
        raise _broken(error) from None
    for warning in caught:
        unread = re.match(r"Environment variable '(\w+)' is defined", str(warning.message))
        if unread:
            raise UnusableNumba.by_setting(unread[1], "has a value that Numba cannot read")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not hasattr(numba, "njit"):
        raise UnusableNumba(f"{numba.__file__} is in the way of the library numba", "renaming it")
    if numba.config.DISABLE_JIT:
        name = "NUMBA_DISABLE_JIT"
        if name in os.environ:
            raise UnusableNumba.by_setting(name, "switches compiling off")
        raise UnusableNumba("Numba's configuration file switches compiling off", "remove disable_jit from it")
    return numba


@contextmanager
def _without_colours():
    """Where colorama is installed, importing Numba replaces sys.stdout, and writes an escape sequence at exit."""
    name = "NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _broken(error):
    text = " ".join(str(error).split())
    return UnusableNumba(f"Numba cannot be imported ({type(error).__name__}: {text})", "pip install -U numba llvmlite")


def with_enough_memory(method):
    """Numba's method that compiles a kernel, or loads it from the cache."""

    def compile_or_raise(signature):
        require_limits(_COMPILING, _COMPILING, "compiling a kernel")
        return method(signature)

    return compile_or_raise


load_numba()
