r"""Reducer: sums the gradients of all micro-batches on all ranks.

Floating-point sums depend on their order, so the order is fixed. The micro-batches of a step are numbered across all
ranks, and summed in a binary tree over these numbers:

    micro-batch   0   1   2   3   4   5   6   7
                   \ /     \ /     \ /     \ /
                    +       +       +       +
                     \     /         \     /                  one rank does all of it; two ranks do one half
                      \   /           \   /                   each, and add the halves; four ranks ...
                        +               +
                          \           /
                            \       /
                                +

For every number of ranks that is a power of two the same pairs of values are added: the sum has the same bits. If the
number of micro-batches is 2^k times an odd number, each leaf of the tree is that many micro-batches, summed one after
the other.

Within a rank the tree is evaluated like a binary counter: a partial sum of 2^i leaves waits for the next one of the
same size, so at most log2(leaves) of them exist. Between ranks the tree is an all-reduce (allreduce.py), with ZeRO
sharding only its first half (zero.py).

The buffer is sent in buckets of 16 MB (4 MB with overlap): receive buffers are small and reused, and the data stays in
cache. Within one host ranks share the memory, and the cores that compute also move the data, so overlapping it with
the backward pass gains nothing. Between hosts each bucket is sent as soon as backward has finished with it
(overlap.py).
"""

import contextlib
import zlib

import numpy as np

from tinygrad2.backend import xp_of
from tinygrad2.distributed.allreduce import add, choose_all_reduce
from tinygrad2.distributed.overlap import OverlappedNccl, OverlappedReduction
from tinygrad2.distributed.zero import Shards
from tinygrad2.errors import UserError
from tinygrad2.optim import grad_norm, norm_of
from tinygrad2.writes import wrote

BUCKET = 4 << 20  # elements, a multiple of NORM_BLOCK
OVERLAP_BUCKET = 1 << 20  # with overlap: smaller ones can be sent earlier
REDUCE_ORDERS = ("tree", "plain")
COMM_DTYPES = ("float32", "bfloat16")


class Reducer:
    """Sums the gradients of a step.

    flat            FlatBuffers
    world           World
    micro_batches   of each rank in a step
    order           "tree": the same bits for any number of ranks that is a power of two, at the cost of
                    log2(micro_batches) more gradient buffers; "plain": gradients add up in place, and between ranks MPI
                    chooses the order
    comm_dtype      of what is sent between ranks: "float32", or "bfloat16", half the bytes and 8 bits of precision
    shard           True: each rank updates only its own `parts` of the parameters (ZeRO stage 1, zero.py)
    overlap         True: buckets are sent while backward is still running
    nccl            an Nccl, if the ranks have a GPU each: it computes the sums, in its own order

    parts           the slices of the flat buffers that this rank updates
    shards          Shards, or None without sharding
    """

    def __init__(self, flat, world, micro_batches, *, order="tree", comm_dtype="float32", shard=False, overlap=False,
                 nccl=None):  # fmt: skip
        self.flat, self.world, self.micro_batches = flat, world, micro_batches
        several = world.size > 1
        overlap = overlap and several
        self.is_tree = order == "tree" and world.size & (world.size - 1) == 0 and not nccl
        self.is_nccl = bool(nccl)
        self.comm_dtype = comm_dtype if several else "float32"
        self.bucket = OVERLAP_BUCKET if overlap and not nccl else BUCKET                   # elements
        self.buckets = [slice(i, min(i + self.bucket, flat.size)) for i in range(0, flat.size, self.bucket)]
        self.algorithm = self.shards = None
        if several:
            largest = min(self.bucket, flat.size)
            self.algorithm = choose_all_reduce(world, largest, self.is_tree, self.comm_dtype, nccl)
        if several and shard:
            self.shards = Shards(self.buckets, self.algorithm, world)
        self.parts = self.shards.parts if self.shards else [slice(0, flat.size)]
        self.micro_batches_per_leaf = _odd_part(micro_batches) if self.is_tree else micro_batches  # summed in place
        self.done, self._waiting, self._spare = 0, [], []                     # _waiting: (level, partial sum)
        self.name = "gradients"
        self.overlap = (OverlappedNccl if nccl else OverlappedReduction)(self) if overlap else None

    def describe(self):
        """Lines for the log about how the sums are computed."""
        size = self.world.size
        if size == 1:
            return []
        total = self.micro_batches * size
        lines = []
        if self.is_tree:
            leaves = total // self.micro_batches_per_leaf
            order = f"in a tree over {leaves} of {total} micro-batches: the same bits for any 2^n ranks"
        else:
            order = f"in the order of {'NCCL' if self.is_nccl else 'MPI'}: the last bits depend on the number of ranks"
        when = "during backward" if self.overlap else "after backward"
        dtype = f", {self.comm_dtype}" if self.comm_dtype != "float32" else ""
        lines.append(f"sums      {order}; {len(self.buckets)} bucket(s){dtype}, {when}")
        if size & (size - 1):
            lines.append(f"note      {size} ranks is not a power of 2: other numbers of ranks agree to rounding only")
        if self.shards:
            lines.append("sums      each rank keeps Adam's moments of its own part (--zero 1)")
        return lines

    # -- a step --------------------------------------------------------------------------------------------------------

    def begin(self, name="gradients"):
        """Begin a step. `name` is that of its collective, for messages of the watchdog."""
        self.flat.require_trainable()
        self.name = name
        self._spare += [buffer for _, buffer in self._waiting]  # of an interrupted step
        self.done, self._waiting = 0, []

    @contextlib.contextmanager
    def micro_batch(self):
        """Wrap forward and backward of each of the `micro_batches` in this."""
        if self.done % self.micro_batches_per_leaf == 0:
            self.flat.zero_grad()
        is_last = self.done == self.micro_batches - 1
        with self.overlap.watching() if self.overlap and is_last else contextlib.nullcontext():
            yield
        self.done += 1
        if self.done % self.micro_batches_per_leaf == 0 and not is_last:
            self.carry()

    def carry(self):
        """Add partial sums of the same size up the tree; the next micro-batch gets another buffer."""
        level, buffer = 0, self.flat.grad
        while self._waiting and self._waiting[-1][0] == level:
            _, earlier = self._waiting.pop()
            self._add(earlier, buffer, slice(0, self.flat.size))
            self._spare.append(buffer)
            level, buffer = level + 1, earlier
        self._waiting.append((level, buffer))
        self.flat.use_grad(self._spare.pop() if self._spare else xp_of(buffer).zeros(buffer.size, buffer.dtype))

    def _add(self, out, other, part):
        """out += other in a slice of the buffers, except for what is frozen: zeros."""
        for own in self.flat.trainable(part):
            add(out[own], other[own])

    def finish(self):
        """After all micro-batches: sum all partial sums of all ranks into flat.grad.

        With shards each rank then has the sum of its own `parts` only.
        """
        grad = self.flat.grad                                                 # with the zeros of unused parameters
        if self.overlap and self.overlap.order is not None:
            self.overlap.finish()
        else:
            with self.collective():
                for bucket in self.buckets:
                    self.sum_bucket(grad, bucket)
                if self.algorithm:
                    self.algorithm.wait()
            if self.overlap:
                self.overlap.learn()
        if self._waiting:
            self._spare.append(grad)
            self.flat.use_grad(self._waiting[0][1])
            self._spare += [buffer for _, buffer in self._waiting[1:]]
            self._waiting = []

    def collective(self, moves_data=True):
        """The collective (World.collective) in which all buckets of a step are summed."""
        order = "tree" if self.is_tree else "plain sum"
        what = f"{order} of {self.flat.size} {self.comm_dtype} in {len(self.buckets)}"
        if frozen := self.flat.frozen:  # the ranks must agree which
            what += f", frozen {len(frozen)}: {zlib.crc32(' '.join(frozen).encode()):08x}"
        return self.world.collective(self.name, what, moves_data)

    def sum_bucket(self, grad, bucket):
        """Sum one bucket over all micro-batches of this rank, then over all ranks. One that is frozen is left out."""
        if not self.flat.trainable(bucket):
            return
        for _, earlier in reversed(self._waiting):
            self._add(earlier, grad, bucket)
            grad = earlier
        if self.algorithm:
            reduce = self.algorithm.reduce_scatter if self.shards else self.algorithm.all_reduce
            reduce(grad[bucket])

    def grad_norm(self):
        """After finish(): the 2-norm of the gradient of all parameters, a 0-d array, the same bits on every rank."""
        grad = self.flat.grad
        if not self.shards:
            return grad_norm(grad)
        return xp_of(grad).asarray(norm_of(self.shards.block_square_sums(grad), grad.dtype))

    # -- sharded state -------------------------------------------------------------------------------------------------

    def all_gather_weights(self, name):
        """After each rank has updated its own parts of flat.data: send them to all ranks (without shards: no-op)."""
        if self.shards:
            self.shards.all_gather(self.flat.data, name)
            wrote(self.flat.data)                                 # also what the other ranks have updated

    def gather(self, own, name, out=None):
        """On rank 0: the array (flat.size,), NumPy, of which each rank has its parts, `own`; None on the others.
        `out`: the array to write to, default: a new one. Without shards: `own` itself."""
        return self.shards.gather(own, name, out) if self.shards else own

    def scatter(self, full, own, name):
        """The reverse: every rank's `own` is overwritten with its parts of `full` (flat.size,), which rank 0 has."""
        self.shards.scatter(full, own, name)


def _odd_part(n):
    while n % 2 == 0:
        n //= 2
    return n


def compare_weights(flat, step, world):
    """Raises UserError on all ranks, naming the first parameter that differs, if their weights differ."""
    sums = _checksums([flat.data], world)
    if (sums == sums[0]).all():
        return
    sums = _checksums([flat.data[part] for part in flat.slices.values()], world)
    ranks, parameters = (sums != sums[0]).nonzero()
    name = list(flat.slices)[parameters.min()] if len(parameters) else "padding that no parameter uses"
    rank = ranks[parameters.argmin()] if len(parameters) else "?"
    raise UserError(f"after step {step} the weights of the ranks differ: first {name}, on rank {rank}. The ranks "
                    "have different libraries or processors, or faulty memory; the checkpoints are older: use --resume")


def _checksums(arrays, world):
    """(ranks, arrays) uint64, equal if the arrays have the same bits."""
    sums = [int(array.view("uint32").sum(dtype="uint64")) for array in arrays]
    return world.all_gather(np.array(sums, np.uint64), "comparing weights")
