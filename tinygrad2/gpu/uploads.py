"""Copies from the host to a GPU that the host starts and does not wait for.

A GPU fetches memory of the host by itself if that is pinned, while the program goes on; until the copy is done it must
stay as it is. So there are two such buffers, used in turn: one is filled while the GPU may still read the other.

    uploads = Uploads(xp)
    uploads.start([(tokens, place), (targets, other_place)])      NumPy arrays, and arrays of the GPU like them
"""

import time

import numpy as np

from tinygrad2.gpu.device import pinned_empty

_ALIGN = 16                                                       # bytes


class Uploads:
    """The two buffers, each with an event behind the last copy from it, of the library xp.

    waited    seconds that the host has waited, since it was two calls of `start` ahead of the GPU
    """

    def __init__(self, xp):
        self.xp, self.waited, self._turns = xp, 0.0, 0
        self._events = [xp.cuda.Event() for _ in range(2)]
        self._buffers = [np.empty(0, np.uint8) for _ in range(2)]

    def start(self, pairs):
        """Copy each NumPy array to its place on the GPU, on the current stream. The arrays may change afterwards.

        Only if the GPU has not yet done the copies of the call before the last one, the host waits for it.
        """
        turn, stream = self._turns % 2, self.xp.cuda.get_current_stream()
        self._turns += 1
        event, end = self._events[turn], 0
        if not event.done:
            begin = time.perf_counter()
            event.synchronize()
            self.waited += time.perf_counter() - begin
        sizes = [-(-place.nbytes // _ALIGN) * _ALIGN for _, place in pairs]
        if sum(sizes) > self._buffers[turn].size:
            self._buffers[turn] = pinned_empty(sum(sizes), np.uint8)
        for (values, place), size in zip(pairs, sizes):
            part = self._buffers[turn][end : end + place.nbytes].view(place.dtype).reshape(place.shape)
            part[...] = values
            place.set(part, stream=stream)
            end += size
        event.record(stream)
