"""A CUDA graph: what was started once on a stream of a GPU, to be started again by one call.

What is recorded are addresses, and numbers that the host passes to kernels. So arrays that change lie in the same place
each time, and those that are made during the recording have a place in an arena (arena.py), or come from a pool of
memory of their own: it gives them to nobody else as long as the graph is used.
"""

import contextlib
import functools

from tinygrad2.backend import array_module


class NotRecorded(Exception):
    """Something cannot be part of a graph, such as a product by CuPy or a read of the GPU."""


def graph_stream():
    """The stream of the current GPU on which graphs are recorded: always the same, since products keep memory for each
    stream that they have run on."""
    return _stream(array_module("cuda"), array_module("cuda").cuda.runtime.getDevice())


@functools.cache
def _stream(xp, device):
    return xp.cuda.Stream(non_blocking=True)


def record(stream, pool, compute):
    """(graph, the result of compute()). Nothing is computed until graph.launch(stream).

    stream    the current stream, of graph_stream()
    pool      the MemoryPool of the arrays that `compute` makes. Raises NotRecorded, with the reason
    """
    with array_module("cuda").cuda.using_allocator(pool.malloc):
        try:
            return _captured(stream, compute)
        except (NotImplementedError, RuntimeError) as error:
            raise NotRecorded(str(error)) from error


def _captured(stream, compute):
    stream.begin_capture()
    try:
        result = compute()
    except BaseException:                                         # also Ctrl-C: the stream is used again
        with contextlib.suppress(RuntimeError):                   # CUDA has ended it already
            stream.end_capture()
        raise
    return stream.end_capture(), result
