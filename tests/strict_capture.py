"""CUDA graphs of the stand-in for CuPy: what is captured is not run, but remembered, and run by each launch.

While a stream captures, calls must return arrays of the right shapes, so they do run here; at the end all arrays that
were there before get back what they held. A launch runs the same calls again, into the same memory: what was computed
from memory that has been given to others, or is now a different array, comes out wrong, as on a GPU.

`counts` has what was started: graphs, calls outside of graphs, copies to given places on the device.
"""

import gc
from types import SimpleNamespace

import numpy as np

counts = SimpleNamespace(graphs=0, calls=0, uploads=0)
_calls = None  # of the capture that is under way: [(function without arguments, its result)]


def recorded(run, box=None):
    """box(run()), or run(), remembered while a stream captures. Of device arrays a graph knows the memory only: they
    are gone when the program lets go of them."""
    result = run() if box is None else box(run())
    if _calls is not None:
        _calls.append((run, _bare(result)))
    else:
        counts.calls += 1
    return result


def kept(array):
    """The array, of whose memory NumPy makes no other one as long as the graph lives."""
    if _calls is not None:
        memory = _bare(array)
        _calls.append((lambda: memory, memory))
    return array


def _bare(result):
    """The NumPy arrays in the boxes of strict_cupy.py, also within lists and tuples."""
    return [_bare(item) for item in result] if isinstance(result, (list, tuple)) else getattr(result, "_a", result)


def refused(call):
    """`call` copies between host and device, or waits: RuntimeError while a stream captures."""
    if _calls is not None:
        raise RuntimeError(f"{call} is not permitted while a stream is capturing")


def is_capturing():
    return _calls is not None


class Capturing:
    """A stream's methods. `array` is the class of device arrays."""

    array: type

    def begin_capture(self, mode=None):
        global _calls
        assert _calls is None, "a stream is capturing already"
        gc.collect()
        self.before = [(box, box._a.copy()) for box in gc.get_objects() if type(box) is self.array and box.base is None]
        _calls = []

    def is_capturing(self):
        return _calls is not None

    def end_capture(self):
        global _calls
        graph, _calls = Graph(_calls), None
        for box, values in self.before:
            box._a[...] = values
        del self.before
        return graph


class Graph:
    def __init__(self, calls):
        self.calls = calls

    def launch(self, stream=None):
        counts.graphs += 1
        for run, result in self.calls:
            self._overwrite(result, _bare(run()))

    def upload(self, stream=None):
        pass

    def _overwrite(self, old, new):
        """The memory of the results of the capture gets those of this launch; views have theirs already."""
        if isinstance(old, (list, tuple)):
            for one, other in zip(old, new):
                self._overwrite(one, other)
        elif isinstance(old, np.ndarray) and not np.shares_memory(old, new):
            old[...] = new
