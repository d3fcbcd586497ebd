"""Compiled kernels on disk, where Numba keeps them for the next run, and what the user is told about compiling."""

import contextlib
import functools
import hashlib
import os
import pathlib

from numba.core import event

from tinygrad2.system.temporary import replacing, sweep

_cached = []  # the kernels that are kept on disk


def set_up(kernel):
    """Returns the kernel, compiled with cache=True: valid as long as no kernel's source changes, and usable if the disk
    is full."""
    with contextlib.suppress(AttributeError):  # another Numba may keep it elsewhere; then its own stamp counts
        kernel._cache._cache_file._source_stamp = _stamp()
        kernel._cache.save_overload = _save_if_possible(kernel._cache.save_overload)
        kernel._cache._cache_file._open_for_write = replacing     # what a killed process leaves is swept away later
        _sweep(kernel._cache.cache_path)
    _cached.append(kernel)
    return kernel


_sweep = functools.cache(sweep)  # most kernels share a folder


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
            found += bool(kernel._cache._cache_file._load_index())
    return found > len(_cached) // 3


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
