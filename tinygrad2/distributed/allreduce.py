"""All-reduce: an array on every rank becomes, on every rank, the sum over all ranks. One class for each algorithm.

    RecursiveHalving   a binary tree over the ranks, in fixed order: the same bits for 1, 2, 4, ... ranks
    MpiSum             MPI chooses the order
    PackedSum          values are sent as bfloat16
    NcclSum            NCCL sums on the GPUs, in its own order

An all-reduce is a reduce-scatter, after which each rank has the sum of its own part of the array, followed by an
all-gather, in which the ranks send each other these parts. ZeRO sharding (zero.py) uses the two separately.
"""

import contextlib
import threading

import numpy as np

from tinygrad2.backend import xp_of
from tinygrad2.bfloat16 import pack_bfloat16, unpack_bfloat16
from tinygrad2.gpu.device import pinned_empty
from tinygrad2.optim import NORM_BLOCK
from tinygrad2.system.threads import POOL


def choose_all_reduce(world, largest, is_tree, comm_dtype, nccl):
    """The AllReduce that the flags ask for. `largest`: elements of the largest array."""
    if nccl:
        return NcclSum(world, nccl)
    exact = (RecursiveHalving if is_tree else MpiSum)(world, largest)
    return PackedSum(world, largest, exact) if comm_dtype == "bfloat16" else exact


class AllReduce:
    """What the algorithms share. Arrays are float32 (n,), NumPy or CuPy; call it within a World.collective.

    A rank's part of an array begins at a multiple of NORM_BLOCK, so that norms of parts have complete blocks.
    """

    def __init__(self, world, largest):
        self.rank, self.size, self.transport, self.largest = world.rank, world.size, world.transport, largest
        self._staging = None

    def part(self, n, rank):
        """The slice of an array of n elements that a rank owns: one of `size` parts of nearly equal length."""
        return slice(self._edge(n, rank), self._edge(n, rank + 1))

    def _edge(self, n, i):
        return min(n, -(-(n * i // self.size) // NORM_BLOCK) * NORM_BLOCK) if i < self.size else n

    def all_reduce(self, array):
        """Overwrite `array` with the sum over all ranks."""
        with self._on_host(array) as host:
            self._all_reduce(host)

    def reduce_scatter(self, array):
        """Overwrite this rank's part of `array` with its sum over all ranks; the other parts become undefined.

        By default a complete all-reduce.
        """
        self.all_reduce(array)

    def all_gather(self, array):
        """Each rank has its own part of `array`: overwrite the other parts with their owners' values."""
        with self._on_host(array) as host:
            self._all_gather(host)

    def _all_gather(self, host):
        self.transport.all_gather_parts(host, [self.part(len(host), rank) for rank in range(self.size)])

    def wait(self):
        """Return when all of the above is complete. By default nothing to wait for."""

    @contextlib.contextmanager
    def _on_host(self, array):
        """The array itself if it is on the CPU; of one on a GPU a copy in pinned memory, copied back at the end."""
        if xp_of(array) is np:
            yield array
            return
        if self._staging is None:
            self._staging = pinned_empty(self.largest, array.dtype)
        host = self._staging[: array.size]
        array.get(out=host)
        yield host
        array.set(host)


class MpiSum(AllReduce):
    """MPI's own sum."""

    def _all_reduce(self, host):
        self.transport.all_reduce(host)


class RecursiveHalving(AllReduce):
    """Recursive halving with the distance doubling, for 2^k ranks (Thakur, Rabenseifner and Gropp, "Optimization of
    collective communication operations in MPICH", 2005, section 4.5).

    Ranks r and r xor 1 send each other one half of the array and add up the other half; then r and r xor 2 do so with
    that half; ... until each rank has the sum of 1 / size of all elements: the reduce-scatter. The all-gather does the
    same rounds backwards. Each rank sends and receives 2 (size - 1) / size n elements, which is the minimum.
    """

    def __init__(self, world, largest):
        super().__init__(world, largest)
        self._received = None

    def part(self, n, rank):
        """The slice that a rank keeps in the last round."""
        return list(self._rounds(n, rank))[-1][1]

    def _rounds(self, n, rank):
        """Yields (partner, the half to keep, the half to send) for each round of halving an array of n elements."""
        lo, hi, distance = 0, n, 1
        while distance < self.size:
            middle = min(hi, lo + -(-(hi - lo) // (2 * NORM_BLOCK)) * NORM_BLOCK)
            low, high = slice(lo, middle), slice(middle, hi)
            keep, send = (high, low) if rank & distance else (low, high)
            yield rank ^ distance, keep, send
            lo, hi, distance = keep.start, keep.stop, 2 * distance

    def reduce_scatter(self, array):
        """Overwrite this rank's part of `array` with its sum over all ranks; the other parts become undefined."""
        with self._on_host(array) as host:
            self._reduce_scatter(host)

    def _all_reduce(self, host):
        self._reduce_scatter(host)
        self._all_gather(host)

    def _reduce_scatter(self, host):
        if self._received is None:
            self._received = np.empty(self.largest, host.dtype)
        # lab: begin tree_allreduce
        for partner, keep, send in self._rounds(len(host), self.rank):
            received = self._received[: keep.stop - keep.start]
            self.transport.sendrecv(host[send], partner, received)
            add(host[keep], received)
        # lab: end tree_allreduce

    def _all_gather(self, host):
        # lab: begin tree_allreduce
        for partner, keep, send in reversed(list(self._rounds(len(host), self.rank))):
            self.transport.sendrecv(host[keep], partner, host[send])
        # lab: end tree_allreduce


class PackedSum(AllReduce):
    """Each rank rounds its values to bfloat16, sums its share of all ranks' values in float32, and rounds that sum.

    Weights stay float32: the parts, and the all-gather, are those of `exact`, another AllReduce.
    """

    def __init__(self, world, largest, exact):
        super().__init__(world, largest)
        self.part, self.all_gather = exact.part, exact.all_gather

    def _all_reduce(self, host):
        n, P = len(host), self.size
        share = -(-n // P)
        packed = np.zeros((P, share), np.uint16)
        packed.reshape(-1)[:n] = pack_bfloat16(host)
        shares = np.empty_like(packed)
        self.transport.all_to_all(packed, shares)                 # shares[r]: rank r's values of our share
        sums = [unpack_bfloat16(row) for row in shares]
        while len(sums) > 1:                                      # in a tree as well
            pairs = [a + b for a, b in zip(sums[::2], sums[1::2])]
            sums = pairs + sums[len(sums) // 2 * 2 :]
        self.transport.all_gather(pack_bfloat16(sums[0]), packed)
        host[...] = unpack_bfloat16(packed.reshape(-1)[:n])


class NcclSum(AllReduce):
    """Sums on the GPUs, by NCCL. The GPU may not have finished when a method returns: see wait."""

    def __init__(self, world, nccl):
        super().__init__(world, 0)
        self.nccl = nccl

    def all_reduce(self, array):
        """Overwrite `array` with the sum over all ranks."""
        self.nccl.all_reduce(array)

    def all_gather(self, array):
        """Each rank has its own part of `array`: overwrite the other parts with their owners' values."""
        for rank in range(self.size):
            self.nccl.broadcast(array[self.part(array.size, rank)], rank)

    def wait(self):
        """Return when the GPU has finished."""
        self.nccl.wait()


def add(out, other):
    """out += other, arrays (n,); the main thread uses all threads of POOL."""
    if xp_of(out) is not np or threading.current_thread() is not threading.main_thread():
        out += other
    else:
        POOL.split(_add, len(out), out, other, grain=1 << 16)


def _add(lo, hi, out, other):
    out[lo:hi] += other[lo:hi]
