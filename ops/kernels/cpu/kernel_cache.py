"""Compiled kernels on disk, where Numba keeps them for the next run, and what the user is told about compiling."""

import contextlib
import copy
import functools
import glob
import hashlib
import os
import pathlib

from numba.core import event

from ops.kernels.cpu.load_numba import with_enough_memory
from tinygrad2.system.temporary import replacing, sweep

_cached = []  # the kernels that are kept on disk


def set_up(kernel):
    """Returns the kernel, compiled with cache=True: valid as long as no kernel's source changes, and usable if the disk
    is full. Without enough memory for LLVM, which would abort the process, calling it raises MemoryError."""
    kernel.compile = with_enough_memory(kernel.compile)
    with contextlib.suppress(AttributeError):  # another Numba may keep it elsewhere; then its own stamp counts
        kernel._cache._cache_file._source_stamp = _stamp()
        kernel._cache.save_overload = _save_if_possible(kernel._cache.save_overload)
        kernel._cache._cache_file._open_for_write = replacing     # what a killed process leaves is swept away later
        _sweep(kernel._cache.cache_path)
        _one_pair_per_key(kernel._cache._cache_file)
    _cached.append(kernel)
    return kernel


_sweep = functools.cache(sweep)  # most kernels share a folder


def _one_pair_per_key(file):
    """Let Numba's IndexDataCacheFile keep each piece of machine code in files of its own, named after its key: the
    types of the arguments, and the processor.

    By itself it has one index per kernel, and numbers the pieces. Several processes that compile at once, on hosts that
    share the folder, may then give one number to two pieces: machine code for another processor, or for other types.
    And of a file that is damaged, or not visible yet, the code is compiled again.
    """
    save, load = type(file).save, type(file).load

    def load_if_possible(key):
        with contextlib.suppress(Exception):                      # whatever reading such a file raises
            return load(_file_of(file, key), key)

    file.load = load_if_possible
    file.save = lambda key, data: save(_file_of(file, key), key, data)


def _file_of(file, key):
    own, digest = copy.copy(file), hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    base = f"{_base(file)}-{digest}"
    own._index_path = base + ".nbi"
    own._data_name_pattern = os.path.basename(base).replace("{", "{{") + ".{number:d}.nbc"
    return own


def _base(file):
    return os.path.splitext(file._index_path)[0]


def _save_if_possible(save):
    """Numba's method that writes machine code to its cache, without the exception for a full disk."""

    def save_or_report(*args):
        try:
            save(*args)
        except OSError as error:
            _announcer.report(f"note      compiled kernels cannot be kept ({error}): every start will compile them")

    return save_or_report


def explain_missing():
    """There is no folder that can be written: note why kernels are compiled at every start, and what helps."""
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__pycache__")
    places = [*filter(None, [os.environ.get("NUMBA_CACHE_DIR")]), here, "the home directory"]
    _announcer.not_kept = (f"at every start: none of {', '.join(places)} can be written; the environment variable "
                           "NUMBA_CACHE_DIR names another folder")


def is_compiled():
    """Is there machine code on disk from an earlier run for most of the kernels? (No run needs them all.)"""
    found = 0
    for kernel in _cached:
        with contextlib.suppress(Exception):  # Numba's private names, and whatever is in its files
            found += _has_code(kernel._cache._cache_file)
    return found > len(_cached) // 3


def _has_code(file):
    for path in glob.glob(glob.escape(_base(file)) + "-*.nbi"):
        own = copy.copy(file)
        own._index_path = path
        if own._load_index():
            return True
    return False


@functools.cache
def _stamp():
    """A hash of the sources of all kernels. Numba itself would look at a kernel's own file only, and miss that exp32
    has changed."""
    folder = pathlib.Path(__file__).parent
    files = sorted(folder.rglob("*.py")) + [folder.parents[1] / "erf.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest(), 0


# -- a message to the user -------------------------------------------------------------------------------------------


class _Announcer(event.Listener):
    """Reports once that kernels are being compiled, when Numba finds one that is not in its cache.

    not_kept    why kernels are not kept on disk, "" if they are
    """

    def __init__(self):
        self.log, self.reported, self.not_kept = None, set(), ""

    def on_start(self, _):
        self.report(f"compiling CPU kernels ({self.not_kept or 'once'})")

    def on_end(self, _):
        pass

    def report(self, line):
        """Pass a line to the user's log, the first time only."""
        log, kind = self.log, line.split()[0]
        if log and kind not in self.reported:
            self.reported.add(kind)                               # first this: several threads may compile
            log(line)


_announcer = _Announcer()
event.register("numba:compile", _announcer)


def announce_compiling(log):
    """Call log(text) if, from now on, a kernel has to be compiled, and if it cannot be kept; at most once each."""
    _announcer.log, _announcer.reported = log, set()
