"""Lab tree_allreduce: the sum over all ranks, by halving what is exchanged in every round."""

from types import SimpleNamespace

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab, Wrong
from tinygrad2.labs.ranks import Ranks

LAB = Lab(
    "tree_allreduce", "tinygrad2/distributed/allreduce.py", "the sum over all ranks as a tree",
    "Two holes. In _reduce_scatter, host (n,) is this rank's array. self._rounds(len(host), self.rank) yields for "
    "each round (partner, keep, send): the rank to exchange with, the slice of host to go on with and the slice to "
    "give away. self.transport.sendrecv(sent, partner, received) sends an array and overwrites `received` with the "
    "partner's; self._received is memory for it, and add(out, other) adds in place. In the end host[self.part(n, "
    "rank)] must be the sum over all ranks. In _all_gather every rank has that part, and needs all the others: the "
    "same rounds backwards.",
    (
        "Draw four ranks and an array of four parts. After round one, rank 0 has the lower half of two ranks, and so "
        "has rank 2; who must exchange what in round two?",
        "In a round the partner keeps what you send, and you keep what the partner sends: what you receive is as "
        "long as host[keep], and is added to it.",
        "Backwards, what you have is host[keep], and what you lack is host[send]: sendrecv(host[keep], partner, "
        "host[send]), over reversed(list(self._rounds(...))).",
    ),
)  # fmt: skip


def _all_reduce(student, arrays, block=4, only=None):
    """(results of all ranks, Ranks): RecursiveHalving on these arrays; parts begin at multiples of `block`."""
    student.NORM_BLOCK = block
    ranks = Ranks(len(arrays))

    def work(rank, transport):
        world = SimpleNamespace(rank=rank, size=len(arrays), transport=transport)
        algorithm = student.RecursiveHalving(world, len(arrays[rank]))
        host = arrays[rank].copy()
        getattr(algorithm, only or "all_reduce")(host)
        return host, algorithm.part(len(host), rank)

    return ranks.run(work), ranks


def _check(student, rng, size, n, block=4):
    arrays = [rng.standard_normal(n).astype(np.float32) for _ in range(size)]
    results, _ = _all_reduce(student, arrays, block)
    total = np.sum([array.astype(np.float64) for array in arrays], 0)
    replaced = total.copy()
    for rank, (_, part) in enumerate(results):
        replaced[part] = arrays[rank ^ (size - 1)][part]
    for rank, (found, part) in enumerate(results):
        mine = np.where(np.isin(np.arange(n), np.arange(n)[part]), total, arrays[rank])
        pair = arrays[rank] + arrays[rank ^ 1]
        sizes = {f"{size}, the number of ranks": size}
        compare(f"the array of rank {rank} of {size}, {n} elements,", found, total, 1e-5, sizes=sizes, suspects={
            "nothing was exchanged": arrays[rank],
            "the parts of the other ranks were not gathered": mine,
            "only one round was made: two ranks are in the sum": pair if size > 2 else np.full(n, np.inf),
            "what was received has replaced what was there, in place of being added": replaced,
        })  # fmt: skip


@LAB.case(2, "2 ranks")
def _(student, rng):
    _check(student, rng, 2, 16)


@LAB.case(2, "4 and 8 ranks")
def _(student, rng):
    _check(student, rng, 4, 32)
    _check(student, rng, 8, 64)


@LAB.case(1, "lengths that cannot be halved, and arrays with fewer blocks than ranks")
def _(student, rng):
    for size, n in ((2, 7), (4, 37), (8, 50), (4, 3)):
        _check(student, rng, size, n)


@LAB.case(2, "the reduce-scatter alone: each rank has the sum of its own part")
def _(student, rng):
    arrays = [rng.standard_normal(32).astype(np.float32) for _ in range(4)]
    for rank, (found, part) in enumerate(_all_reduce(student, arrays, only="reduce_scatter")[0]):
        pair = arrays[rank] + arrays[rank ^ 1]
        suspects = {"nothing was added": arrays[rank][part], "the second round adds the pair again": 2 * pair[part]}
        what = f"the part {part.start}:{part.stop} of rank {rank} of 4"
        compare(what, found[part], sum(arrays)[part], 1e-5, suspects=suspects)


@LAB.case(1, "the all-gather alone: every part comes from the rank that has it")
def _(student, rng):
    arrays = [np.full(32, float(rank), np.float32) for rank in range(4)]
    results, _ = _all_reduce(student, arrays, only="all_gather")
    right = np.zeros(32)
    for rank, (_, part) in enumerate(results):
        right[part] = rank
    for rank, (found, _) in enumerate(results):
        compare(f"rank {rank} of 4 after the all-gather (each part holds the number of its rank)", found, right)


@LAB.case(1, "the order of the sum is the same on every rank, and that of a tree, bit for bit")
def _(student, rng):
    arrays = [(rng.standard_normal(64) * 10.0 ** rng.integers(-6, 6, 64)).astype(np.float32) for _ in range(4)]
    right = (arrays[0] + arrays[1]) + (arrays[2] + arrays[3])
    for rank, (found, _) in enumerate(_all_reduce(student, arrays)[0]):
        if not np.array_equal(found, right):
            raise Wrong(f"rank {rank} of 4: {(found != right).sum()} of 64 sums have other bits than (0 + 1) + (2 + "
                        "3): a result would depend on the number of ranks")  # fmt: skip


@LAB.case(1, "no rank sends more than it must: 2 (ranks - 1) / ranks of the array")
def _(student, rng):
    _, ranks = _all_reduce(student, [rng.standard_normal(64).astype(np.float32) for _ in range(4)])
    if max(ranks.sent) > 96:
        raise Wrong(f"a rank of 4 sends {max(ranks.sent)} elements for an array of 64; 2 * 3 / 4 * 64 = 96 are enough")
    if not any(ranks.sent):
        raise Wrong("nothing is sent")
