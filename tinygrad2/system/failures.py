"""Exceptions whose cause is the system, not a mistake in the program: no memory, threads, files or disk are left, or a
file cannot be used. Each is one line for the user. Imports nothing of the project.
"""

import errno
import os
import re

_NO_MEMORY = re.compile("failed to map segment|cannot allocate|unable to allocate|out of memory|bad_alloc", re.I)
_NO_FILES = re.compile("too many open files", re.I)
_NO_THREADS = re.compile("can't start new thread|resource temporarily unavailable", re.I)
_PLAN = "python -m tinygrad2 plan, with the same flags, prints what takes how much, and which flag saves how much"
_FEW_FILES = "too many open files for the limit of this process; raise it (ulimit -n 1024)"
_FEW_THREADS = "no more threads or processes can be started; raise the limits (ulimit -u, -v), or use --threads 1"


def is_out_of_memory(error):
    """Has this been raised because no memory is left? Libraries have several exceptions for it."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def is_exhausted(error):
    """Has this, or what it was raised from, been raised because no memory, threads or files are left?"""
    return _resource(error) is not None


def explain(error):
    """A line about an exception that the system has caused, or None.

    What raised it may have wrapped it in an exception of its own. An OSError that nothing has turned into a UserError
    comes with the place in the code: it may be a mistake, after all.
    """
    line = _resource(error)
    if line is None and isinstance(error, OSError) and error.errno:
        path = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        line = f"{path}{error.strerror} ({_place(error)})"
    return line


def _resource(error):
    """Which resource is exhausted, as a line, or None."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        if is_out_of_memory(error):
            reason = str(error).strip().split("\n")[0] or "no more is available"
            return f"out of memory ({reason}); {'raise that limit' if 'ulimit' in reason else _PLAN}"
        if isinstance(error, (OSError, ImportError)) and _NO_FILES.search(str(error)):
            return _FEW_FILES
        if isinstance(error, (OSError, RuntimeError)) and _NO_THREADS.search(str(error)):
            return _FEW_THREADS
        error = error.__cause__ or error.__context__
    return None


def _place(error):
    """File and line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "unknown place"
