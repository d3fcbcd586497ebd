r"""Reduction: how the gradients of all micro-batches, on all ranks, become one sum.

Floating-point sums depend on their order, so the order is fixed. The micro-batches of a step are numbered through all
ranks, and summed in a binary tree over these numbers:

    micro-batch   0   1   2   3   4   5   6   7
                   \ /     \ /     \ /     \ /
                    +       +       +       +
                     \     /         \     /                  one rank does all of it; of two ranks each does
                      \   /           \   /                   one half, and they add the halves; of four ...
                        +               +
                          \           /
                            \       /
                                +

Whatever the number of ranks (a power of two), the same pairs of numbers are added: the sum has the same bits.
Where the number of micro-batches is 2^k times something odd, that many neighbours are summed one after the other first.

Within a rank the tree is climbed like a binary counter: a partial sum of 2^i micro-batches waits until the next one of
the same size is there, so log2(micro-batches) of them exist at most. Between ranks it is recursive halving with the
distance doubling (Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
2005, section 4.5): rank r and r xor 1 give each other one half of what they have and add up the other; then r and
r xor 2 one half of that; ... until each rank has the sum of 1 / size of all numbers; then the way back. Each rank sends
and receives 2 (size - 1) / size n numbers, which is the least that is possible.

The buffer travels in buckets of 16 MB (4 MB where they set out early): memory for what arrives is small and kept, and
what travels is in the cache.
Over one host ranks share the memory, and moving data is work of the same cores, so nothing is gained by doing it beside
the backward pass. Over several hosts each bucket sets out as soon as backward has finished with it (overlap.py).
"""

import contextlib
import threading

import numpy as np

from tinygrad2.backend import pinned_empty, xp_of
from tinygrad2.distributed.overlap import Early
from tinygrad2.errors import UserError
from tinygrad2.io.bfloat16 import pack, unpack
from tinygrad2.optim import NORM_BLOCK
from tinygrad2.system.threads import POOL

BUCKET = 4 << 20  # elements, a multiple of NORM_BLOCK
EARLY_BUCKET = 1 << 20  # where buckets set out during backward: the sooner one is full, the better
SUMS = ("tree", "plain")
WIRES = ("float32", "bfloat16")


class Reducer:
    """Sums the gradients of a step.

    flat      FlatBuffers
    world     World
    count     micro-batches of each rank in a step
    sum       "tree": the same bits for any number of ranks that is a power of two, at the cost of log2(count) more
              gradient buffers; "plain": gradients add up in place, and between ranks MPI chooses the order
    wire      what travels between ranks: "float32", or "bfloat16", half the bytes and 8 bits of precision
    shards    True: each rank looks after a part of the parameters only, `parts` (ZeRO stage 1, Rajbhandari et al.,
              "ZeRO: memory optimizations toward training trillion parameter models", SC 2020, section 5.1)
    early     True: buckets travel while backward is still at work
    nccl      an Nccl, where the ranks have a GPU each: it takes the sums, in an order of its own
    """

    def __init__(self, flat, world, count, sum="tree", wire="float32", shards=False, early=False, nccl=None):
        self.flat, self.world, self.count = flat, world, count
        self.rank, self.size = world.rank, world.size
        self.nccl = nccl
        self.is_tree = sum == "tree" and self.size & (self.size - 1) == 0 and not nccl
        self.wire, self.shards = wire if self.size > 1 else "float32", shards and self.size > 1
        self.bucket = EARLY_BUCKET if early and self.size > 1 and not nccl else BUCKET
        self.buckets = [slice(i, min(i + self.bucket, flat.size)) for i in range(0, flat.size, self.bucket)]
        self.parts = self.parts_of(self.rank) if self.shards else [slice(0, flat.size)]
        self.run = self._odd_part(count) if self.is_tree else count           # micro-batches that add up in place
        self.done, self._waiting, self._spare = 0, [], []                     # _waiting: (level, partial sum)
        self._arrived = self._staging = None
        self.name = "gradients"
        self.early = Early(self) if early and self.size > 1 and not nccl else None

    @staticmethod
    def _odd_part(n):
        while n % 2 == 0:
            n //= 2
        return n

    def parts_of(self, rank):
        """The slices of the buffers that a rank looks after: of each bucket the part whose sum it is first to have."""
        parts = []
        for bucket in self.buckets:
            n = bucket.stop - bucket.start
            if self.is_tree:
                own = list(self._path(n, rank))[-1][1]
            else:
                own = slice(self._edge(n, rank), self._edge(n, rank + 1))
            parts.append(slice(bucket.start + own.start, bucket.start + own.stop))
        return parts

    def _edge(self, n, i):
        """Where part i of `size` equal parts of n elements begins."""
        return min(n, -(-(n * i // self.size) // NORM_BLOCK) * NORM_BLOCK) if i < self.size else n

    def _path(self, n, rank):
        """(partner, the half to keep, the half to give) for each round of halving an array of n elements."""
        lo, hi, distance = 0, n, 1
        while distance < self.size:
            middle = min(hi, lo + -(-(hi - lo) // (2 * NORM_BLOCK)) * NORM_BLOCK)  # so that norms have whole blocks
            low, high = slice(lo, middle), slice(middle, hi)
            keep, give = (high, low) if rank & distance else (low, high)
            yield rank ^ distance, keep, give
            lo, hi, distance = keep.start, keep.stop, 2 * distance

    def describe(self):
        """Lines about how sums are taken."""
        if self.size == 1:
            return []
        total = self.count * self.size
        lines = []
        if self.is_tree:
            order = f"in a tree over {total // self.run} of {total} micro-batches: the same bits for any 2^n ranks"
        else:
            order = f"in the order of {'NCCL' if self.nccl else 'MPI'}: the last bits depend on the number of ranks"
        when = "while backward is at work" if self.early else "after backward"
        kind = f", {self.wire}" if self.wire != "float32" else ""
        lines.append(f"sums      {order}; {len(self.buckets)} bucket(s){kind}, {when}")
        if self.size & (self.size - 1):
            lines.append(f"note      {self.size} ranks are no power of 2: other ranks agree with them to rounding only")
        if self.shards:
            lines.append("sums      each rank keeps Adam's moments of its own part (--zero 1)")
        return lines

    # -- a step --------------------------------------------------------------------------------------------------------

    def begin(self, name="gradients"):
        """A new step: no micro-batch has been done. `name` is what the others are told this rank is at."""
        self.name = name
        self._spare += [buffer for _, buffer in self._waiting]  # of a step that was broken off
        self.done, self._waiting = 0, []

    @contextlib.contextmanager
    def micro_batch(self):
        """Around forward and backward of each of the `count` micro-batches."""
        if self.done % self.run == 0:
            self.flat.zero_grad()
        with self.early.watching() if self.early and self.done == self.count - 1 else contextlib.nullcontext():
            yield
        self.done += 1
        if self.done % self.run == 0 and self.done < self.count:
            self._carry()

    def _carry(self):
        """Climb the tree, as far as partial sums of the same size are there; what comes then needs another buffer."""
        level, buffer = 0, self.flat.grad
        while self._waiting and self._waiting[-1][0] == level:
            _, earlier = self._waiting.pop()
            add(earlier, buffer)
            self._spare.append(buffer)
            level, buffer = level + 1, earlier
        self._waiting.append((level, buffer))
        self.flat.use_grad(self._spare.pop() if self._spare else xp_of(buffer).zeros_like(buffer))

    def finish(self):
        """All micro-batches are done: sum up all that is there, and leave it in flat.grad.

        With shards each rank then has the sum of its own `parts` only.
        """
        grad = self.flat.grad                                                 # with the zeros of unused parameters
        if self.early and self.early.order is not None:
            self.early.finish()
        else:
            with self.travelling():
                for bucket in self.buckets:
                    self.sum_bucket(grad, bucket)
                if self.nccl:
                    self.nccl.wait()
            if self.early:
                self.early.learn()
        if self._waiting:
            self._spare.append(grad)
            self.flat.use_grad(self._waiting[0][1])
            self._spare += [buffer for _, buffer in self._waiting[1:]]
            self._waiting = []

    def travelling(self, is_moving=True):
        """The collective in which all buckets of a step travel."""
        how = "tree" if self.is_tree else "plain sum"
        what = f"{how} of {self.flat.size} {self.wire} in {len(self.buckets)}"
        return self.world.collective(self.name, what, is_moving)

    def sum_bucket(self, grad, bucket):
        """The sum of one bucket over all micro-batches of this rank, then over all ranks."""
        total = grad[bucket]
        for _, earlier in reversed(self._waiting):
            add(earlier[bucket], total)
            total = earlier[bucket]
        if self.nccl:
            self.nccl.sum(total)
        elif self.size > 1:
            with self._on_host(total) as host:
                self._sum_over_ranks(host)

    @contextlib.contextmanager
    def _on_host(self, array):
        """The array itself on the CPU; from a GPU a copy in pinned memory, which is brought back at the end."""
        if xp_of(array) is np:
            yield array
            return
        if self._staging is None:
            self._staging = pinned_empty(min(self.bucket, self.flat.size), array.dtype)
        host = self._staging[: array.size]
        array.get(out=host)
        yield host
        array.set(host)

    def _sum_over_ranks(self, host):
        if self.wire == "bfloat16":
            self._sum_packed(host)
        elif self.is_tree:
            path = self._halve(host)
            if not self.shards:
                self._spread(host, path)
        else:
            self.world.wire.add_up(host)

    def _halve(self, host):
        """Recursive halving: afterwards the part that this rank kept last is summed over all ranks."""
        if self._arrived is None:
            self._arrived = np.empty(min(self.bucket, self.flat.size), host.dtype)
        path = list(self._path(len(host), self.rank))
        for partner, keep, give in path:
            arrived = self._arrived[: keep.stop - keep.start]
            self.world.wire.exchange(host[give], partner, arrived)
            add(host[keep], arrived)
        return path

    def _spread(self, host, path):
        """The way back: what each rank has is given to all."""
        for partner, keep, give in reversed(path):
            self.world.wire.exchange(host[keep], partner, host[give])

    def _sum_packed(self, host):
        """Each rank rounds its numbers to bfloat16, sums up its own part of all ranks' in float32, and rounds that."""
        n, P = len(host), self.size
        share = -(-n // P)
        packed = np.zeros((P, share), np.uint16)
        packed.reshape(-1)[:n] = pack(host)
        every = np.empty_like(packed)
        self.world.wire.swap(packed, every)                       # every[r]: rank r's version of our part
        parts = [unpack(row) for row in every]
        while len(parts) > 1:                                     # the same tree
            pairs = [a + b for a, b in zip(parts[::2], parts[1::2])]
            parts = pairs + parts[len(parts) // 2 * 2 :]
        self.world.wire.gather(pack(parts[0]), packed)
        host[...] = unpack(packed.reshape(-1)[:n])

    # -- with shards ---------------------------------------------------------------------------------------------------

    def square_sums(self, square_sums):
        """square_sums (optim.py) of the whole gradient, a part of which only is here."""
        grad = self.flat.grad
        if not self.shards:
            return square_sums(grad)
        sums = np.zeros(-(-self.flat.size // NORM_BLOCK))
        for part in self.parts:
            if part.start < part.stop:
                own = square_sums(grad[part])
                sums[part.start // NORM_BLOCK :][: len(own)] = own if xp_of(own) is np else own.get()
        return self.world.all_gather(sums, "norms of the parts").sum(0)   # each block is zero on all ranks but one

    def spread_weights(self, name):
        """Each rank has updated its own parts of flat.data: give them to all."""
        if not self.shards:
            return
        with self.world.collective(name, f"{self.flat.size} weights"):
            if self.nccl:
                for rank in range(self.size):
                    for part in self.parts_of(rank):
                        self.nccl.broadcast(self.flat.data[part], rank)
                self.nccl.wait()
                return
            for bucket in self.buckets:
                with self._on_host(self.flat.data[bucket]) as host:
                    if self.is_tree:
                        self._spread(host, list(self._path(len(host), self.rank)))
                    else:
                        self._spread_parts(host)

    def _spread_parts(self, host):
        edges = [self._edge(len(host), i) for i in range(self.size + 1)]
        self.world.wire.gather_parts(host, edges)

    def whole(self, own, name, out=None):
        """On rank 0: the array of which each rank has its parts, `own`, as (flat.size,) NumPy; None on the others."""
        if not self.shards:
            return own
        if self.rank == 0 and out is None:
            out = np.empty(self.flat.size, own.dtype)
        own = own if xp_of(own) is np else own.get()
        with self.world.collective(name, f"{self.flat.size} {own.dtype}"):
            for rank in range(self.size) if self.rank == 0 else (self.rank,):
                for part, here in self._places(rank):
                    if rank:
                        self.world.wire.send(own[here], 0) if self.rank else self.world.wire.receive(out[part], rank)
                    else:
                        out[part] = own[here]
        return out

    def scatter(self, whole, own, name):
        """The other way round: every rank gets its parts of what rank 0 has."""
        host = own if xp_of(own) is np else np.empty(own.shape, own.dtype)
        with self.world.collective(name, f"{self.flat.size} {own.dtype}"):
            for rank in range(self.size) if self.rank == 0 else (self.rank,):
                for part, here in self._places(rank):
                    if rank:
                        self.world.wire.receive(host[here], 0) if self.rank else self.world.wire.send(whole[part], rank)
                    else:
                        host[here] = whole[part]
        if host is not own:
            own.set(host)

    def _places(self, rank):
        """(its place in the buffers, its place in what the rank keeps) for each part of a rank."""
        end = 0
        for part in self.parts_of(rank):
            yield part, slice(end, end + part.stop - part.start)
            end += part.stop - part.start


def compare_weights(flat, step, world):
    """Raises UserError on all ranks, naming the first parameter, where they do not have the same weights."""
    sums = _checksums([flat.data], world)
    if (sums == sums[0]).all():
        return
    sums = _checksums([flat.data[part] for part in flat.slices.values()], world)
    ranks, places = (sums != sums[0]).nonzero()
    name = list(flat.slices)[places.min()] if len(places) else "nothing that is in use"
    rank = ranks[places.argmin()] if len(places) else "?"
    raise UserError(f"after step {step} the ranks do not have the same weights any more: the first to differ is "
                    f"{name}, on rank {rank}. Ranks with different libraries or processors, or faulty memory; the "
                    "checkpoints are of before")


def _checksums(arrays, world):
    """(ranks, arrays) integers that are equal where the arrays have the same bits."""
    sums = [int(array.view("uint32").sum(dtype="uint64")) for array in arrays]
    return world.all_gather(np.array(sums, np.uint64), "comparing weights")


def add(out, other):
    """out += other, on arrays of one dimension; by all threads where the main one asks."""
    if xp_of(out) is not np or threading.current_thread() is not threading.main_thread():
        out += other
    else:
        POOL.split(_add, len(out), out, other, grain=1 << 16)


def _add(lo, hi, out, other):
    out[lo:hi] += other[lo:hi]
