"""ZeRO stage 1: each rank keeps Adam's moments of its own parts of the parameters only, and updates only these.

    gradients   reduce-scatter: each rank has the sum of its own parts
    norm        of all parts, from each rank's sums of squares
    weights     each rank updates its own parts, then all-gather

As many bytes are sent as in an all-reduce, and the weights have the same bits; the moments take 1 / size of the memory.
Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC 2020, section 5.1.
"""

import numpy as np

from tinygrad2.backend import to_host, xp_of
from tinygrad2.optim import NORM_BLOCK, block_square_sums


class Shards:
    """Which rank owns which parts of the flat buffers, (size,) arrays; of the moments a rank keeps only its parts.

    buckets     the slices in which the buffers are sent
    algorithm   the AllReduce that sums them
    parts       the slices of this rank: of each bucket the part whose sum it has after the reduce-scatter
    """

    def __init__(self, buckets, algorithm, world):
        self.buckets, self.algorithm, self.world = buckets, algorithm, world
        self.size = buckets[-1].stop
        self.parts = self.parts_of(world.rank)

    def parts_of(self, rank):
        """The slices of the buffers that a rank owns."""
        parts = []
        for bucket in self.buckets:
            own = self.algorithm.part(bucket.stop - bucket.start, rank)
            parts.append(slice(bucket.start + own.start, bucket.start + own.stop))
        return parts

    def block_square_sums(self, grad):
        """optim.block_square_sums of the gradient of all parameters: (blocks,) float64, NumPy, on every rank."""
        sums = np.zeros(-(-self.size // NORM_BLOCK))
        for part in self.parts:
            if part.start < part.stop:
                own = to_host(block_square_sums(grad[part]))
                sums[part.start // NORM_BLOCK :][: len(own)] = own
        return self.world.all_gather(sums, "norms of the parts").sum(0)   # each block is zero on all ranks but one

    def all_gather(self, data, name):
        """After each rank has updated its own parts of `data`: overwrite the others with their owners' values."""
        with self.world.collective(name, f"{self.size} weights"):
            for bucket in self.buckets:
                self.algorithm.all_gather(data[bucket])
            self.algorithm.wait()

    def gather(self, own, name, out=None):
        """On rank 0: the array (size,), NumPy, of which each rank has its parts, `own`; None on the other ranks."""
        world = self.world
        if world.rank == 0 and out is None:
            out = np.empty(self.size, own.dtype)
        own = to_host(own)
        with world.collective(name, f"{self.size} {own.dtype}"):
            if world.rank:
                for _, kept in self._slices(world.rank):
                    world.transport.send(own[kept], 0)
                return None
            for part, kept in self._slices(0):
                out[part] = own[kept]
            for rank in range(1, world.size):
                for part, _ in self._slices(rank):
                    world.transport.receive(out[part], rank)
        return out

    def scatter(self, full, own, name):
        """The reverse: overwrite every rank's `own` with its parts of `full`, which only rank 0 has."""
        world = self.world
        host = own if xp_of(own) is np else np.empty(own.shape, own.dtype)
        with world.collective(name, f"{self.size} {own.dtype}"):
            for part, kept in self._slices(world.rank):
                if world.rank:
                    world.transport.receive(host[kept], 0)
                else:
                    host[kept] = full[part]
            for rank in range(1, world.size) if world.rank == 0 else ():
                for part, _ in self._slices(rank):
                    world.transport.send(full[part], rank)
        if host is not own:
            own.set(host)

    def _slices(self, rank):
        """Yields (slice of the buffers, slice of what the rank keeps) for each part of a rank."""
        end = 0
        for part in self.parts_of(rank):
            yield part, slice(end, end + part.stop - part.start)
            end += part.stop - part.start
