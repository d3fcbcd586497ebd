"""An arena: one block of a GPU's memory, in which every array of a training step has its place.

All steps of a training make arrays of the same sizes in the same order, and free them in the same order. So after a few
steps it is known where each could lie, and one block takes all of them:

    array      0    1    2    3    4         which array a step makes as its n-th; sizes upwards
    |          +-------------------+
    |          |         0         |         0 lives as long as the step
    |          +----+    +---------+
    |          | 1  |    |    3    |         3 is made after 1 was freed: the same place
    |          +----+----+----+----+
    |               |    2    | 4  |         4 is made after 2 was freed
    |               +---------+----+

    sizes[n]    bytes of array n
    ends[n]     array n is freed when ends[n] arrays have been made: it lives from n to ends[n]
    offsets     such that of any two arrays that live at the same time one ends below the other in the block

The block is at least as large as the arrays that live at one moment: that is the lower bound. Which offsets need the
smallest block is an NP-hard question (dynamic storage allocation; Garey and Johnson, 1979, problem SR2); largest first,
each into the smallest gap that takes it, comes near the bound (Pisarchyk and Lee, "Efficient Memory Management for Deep
Neural Net Inference", 2020, compare such orders). CuPy's pool decides array by array, in the order in which they are
made, and keeps gaps. Besides, the places are the same in each step, which a CUDA graph needs.

An array gets its place only if it is the planned one and no other array is there; otherwise, and if it outlives the
step, it comes from CuPy's pool. So a step that is different takes more memory, and no other values come out.

A kernel may still be running when its arrays are freed. The next one in their place is on the same stream, and so runs
after it; arrays that are made while another stream is the current one come from the pool.
"""

import contextlib

import numpy as np

from tinygrad2.gpu.device import give_back
from tinygrad2.system.failures import is_out_of_memory
from tinygrad2.system.memory import megabytes

UNIT = 512  # bytes: sizes and offsets are multiples of it, as in CuPy's pool
_ALIKE = 2  # steps in a row must have made the same arrays before there is an arena
_OTHER = 3  # steps in a row that were different, after which it is planned again
_PATIENCE = 20  # steps that are not alike, after which there is no arena any more

# -- the plan ----------------------------------------------------------------------------------------------------------


def most_alive(sizes, ends):
    """Bytes of the arrays that live at the same time, at most: no block can be smaller."""
    changes = np.zeros(len(sizes) + 1, np.int64)
    changes[:-1] += np.asarray(sizes, np.int64)
    np.subtract.at(changes, np.asarray(ends, np.int64), sizes)    # what is freed before array n is made
    return int(changes.cumsum().max(initial=0))


def plan_places(sizes, ends):
    """(offsets, bytes of the block) for arrays of these sizes, array n of which lives from n to ends[n]."""
    sizes, ends, offsets, block = np.asarray(sizes, np.int64), np.asarray(ends), np.zeros(len(sizes), np.int64), 0
    for part in _apart(ends):
        begin = part.start
        some, end = _best_order(sizes[part], ends[part] - begin)
        offsets[part], block = some, max(block, end)
    return offsets, block


def _apart(ends):
    """Slices of the arrays, between which none lives: each may use the whole block (as may each micro-batch)."""
    last = np.maximum.accumulate(ends)
    borders = [n + 1 for n in range(len(ends)) if last[n] == n + 1]
    return [slice(*pair) for pair in zip([0, *borders], borders)]


def _best_order(sizes, ends):
    """Of two orders in which to choose the places the one with the smaller block: largest first, or the most bytes
    times life first."""
    lives, best = ends - np.arange(len(ends)), None
    for weight in (sizes, sizes * lives):
        found = _place_in_order(np.argsort(-weight, kind="stable"), sizes, ends)
        if best is None or found[1] < best[1]:
            best = found
        if best[1] == most_alive(sizes, ends):
            break
    return best


def _place_in_order(order, sizes, ends):
    """Each array in turn gets the smallest gap, between those that have a place and live at the same time."""
    placed = np.zeros((4, len(sizes)), np.int64)                  # begin, end of life; first, last byte + 1
    offsets = np.zeros(len(sizes), np.int64)
    for count, n in enumerate(order):
        begin, end, first, last = placed[:, :count]
        others = (begin < ends[n]) & (end > n)
        first, last = first[others], last[others]
        up = np.argsort(first)
        below = np.maximum.accumulate(np.append(0, last[up]))     # where each gap begins, the last above all others
        gaps = np.append(first[up], np.iinfo(np.int64).max) - below
        fits = np.flatnonzero(gaps >= sizes[n])
        offsets[n] = below[fits[gaps[fits].argmin()]]
        placed[:, count] = n, ends[n], offsets[n], offsets[n] + sizes[n]
    return offsets, int(placed[3].max(initial=0))


# -- a step ------------------------------------------------------------------------------------------------------------


class _Record:
    """The arrays that a step has made so far.

    sizes    of each, a multiple of UNIT
    ends     {n: how many had been made when array n was freed}; what outlived the step is not in it
    """

    def __init__(self):
        self.sizes, self.ends, self.is_open = [], {}, True

    def ended(self, n):
        if self.is_open:
            self.ends[n] = len(self.sizes)


class _Plan:
    """Where the arrays of a step belong.

    sizes     of all of them
    places    the offset of each in the block, None for what outlives the step
    freed     freed[n]: which arrays are freed after array n - 1 was made, and before array n is
    bytes     of the block; bound: of the arrays that live at the same time, at most
    """

    def __init__(self, record):
        self.sizes = record.sizes
        inside = np.array(sorted(record.ends), np.int64)          # the numbers of those that die within the step
        sizes = np.array(record.sizes, np.int64)[inside]
        ends = np.array([record.ends[n] for n in inside.tolist()], np.int64)
        numbered = np.searchsorted(inside, ends)                  # counted without what outlives the step
        offsets, self.bytes = plan_places(sizes, numbered)
        self.bound = most_alive(sizes, numbered)
        self.count, self.outliving = len(inside), len(self.sizes) - len(inside)
        self.places, self.freed = [None] * len(self.sizes), [[] for _ in range(len(self.sizes) + 1)]
        for n, offset, end in zip(inside.tolist(), offsets.tolist(), ends.tolist()):
            self.places[n] = offset
            self.freed[end].append(n)


class _Owner:
    """Behind the memory of an array; tells when the array, and all views of it, are gone.

    number    which array
    memory    what it lies in, a MemoryPointer
    tell      called with the number in the end
    """

    __slots__ = ("number", "memory", "tell")

    def __init__(self, number, memory, tell):
        self.number, self.memory, self.tell = number, memory, tell

    def __del__(self):
        self.tell(self.number)


class Arena:
    """The memory of the steps of one training, `with arena.step(): ...`.

    log          called with lines for the user
    block        a MemoryPointer, None until steps have been alike
    plan         what lies where in it, or None
    requests     how many arrays of the last step came from the pool
    is_planned   there is a block, and the last step was as planned
    given_up     there will be none: it does not fit, or no two steps are alike
    taken_before bytes of all pools, before the block was taken from one
    """

    def __init__(self, xp, log=print):
        self.xp, self.cuda, self.log = xp, xp.cuda, log
        self.block, self.plan, self.requests, self.is_planned, self.given_up = None, None, 0, False, False
        self._stream, self._pool, self.taken_before = None, None, 0           # the first two: within a step
        self._n = 0                                               # arrays made in this step
        self._alive, self._late = {}, set()                       # number -> (first, last byte + 1); who should be gone
        self._record, self._before, self._alike, self._others, self._unlike = None, None, 1, 0, 0

    @contextlib.contextmanager
    def step(self):
        """Within the block, new arrays of this thread lie in the arena, or are recorded while there is none. Others
        come from where arrays come from outside of it."""
        self._pool = self.cuda.get_allocator()
        if self.plan and not self.block:
            self._begin(self.plan)
        if self.given_up:
            yield
            return
        self._stream = self.cuda.get_current_stream().ptr
        self._n = self.requests = 0
        self._record = None if self.plan else _Record()
        self._late = set(self._alive)                             # of the steps before
        try:
            with self.cuda.using_allocator(self._place if self.plan else self._recorded):
                yield
        finally:
            if self._record:
                self._record.is_open = False
        self._end_step()

    def _end_step(self):
        """A step has been completed: is there to be a plan, or another one?"""
        self.is_planned = self.plan is not None and self.requests == self.plan.outliving
        if self.plan:
            self._others = self._others + 1 if self.requests > self.plan.outliving else 0
            if self._others == _OTHER:
                self.plan = self.block = self._before = None
            return
        same = self._before is not None and self._before.sizes == self._record.sizes
        self._alike = self._alike + 1 if same else 1
        self._unlike += not same
        self._before = self._record
        if self._alike >= _ALIKE and self._record.ends:
            self._begin(_Plan(self._record))
        elif self._unlike > _PATIENCE:
            self._give_up("steps make other arrays each time")

    def let_go(self):
        """Give the block back to the pool until the next step. Not while a CUDA graph writes to it, and no graph can be
        recorded before that step."""
        self.block, self.is_planned = None, False

    def _begin(self, plan):
        self.taken_before = give_back(self.xp)                    # where the arrays have been until now
        try:
            self.block, self._alive = self._pool(plan.bytes), {}  # what lives in an earlier block keeps nobody away
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._give_up(f"the GPU has no {megabytes(plan.bytes)} in one piece for the arrays of a step")
            return
        if plan is self.plan:
            return
        self.plan, self.is_planned, self._others, self._unlike = plan, True, 0, 0
        more = plan.bytes / max(plan.bound, 1) - 1
        self.log(f"arena     {megabytes(plan.bytes)} for the {plan.count:,} arrays of a step, {more:.1%} more than are "
                 "in use at once")  # fmt: skip

    def _give_up(self, reason):
        self.given_up, self.plan, self._before, self._record = True, None, None, None
        self.log(f"arena     none: {reason}; they come from CuPy's pool one by one")

    # -- an array ------------------------------------------------------------------------------------------------------

    def _recorded(self, size):
        """While there is no plan: from the pool, noted."""
        memory = self._from_pool(size)
        if not size:
            return memory
        n, self._n = self._n, self._n + 1
        self._record.sizes.append(_rounded(size))
        if not self._is_on_stream():                              # the pool's: as if it outlived the step
            return memory
        return self._pointer(memory, memory.ptr, size, n, self._record.ended)

    def _place(self, size):
        """By the plan, if the place is free."""
        if not size:
            return self._pool(size)
        n, plan = self._n, self.plan
        self._n += 1
        if n >= len(plan.sizes):
            return self._from_pool(size)
        for earlier in plan.freed[n]:
            if earlier in self._alive:
                self._late.add(earlier)
        first = plan.places[n]
        if first is None or plan.sizes[n] != _rounded(size) or not self._is_on_stream():
            return self._from_pool(size)
        last = first + plan.sizes[n]
        if self._late and self._is_taken(first, last):
            return self._from_pool(size)
        self._alive[n] = first, last
        return self._pointer(self.block, self.block.ptr + first, size, n, self._alive.pop)

    def _is_taken(self, first, last):
        """Does one lie there that should have been freed?"""
        self._late &= self._alive.keys()
        others = [self._alive.get(number, (0, 0)) for number in self._late]
        return any(start < last and first < stop for start, stop in others)

    def _from_pool(self, size):
        memory = self._pool(size)
        self.requests += 1
        return memory

    def _pointer(self, memory, address, size, number, tell):
        owner = _Owner(number, memory, tell)
        return self.cuda.MemoryPointer(self.cuda.UnownedMemory(address, size, owner, memory.device_id), 0)

    def _is_on_stream(self):
        return self.cuda.get_current_stream().ptr == self._stream


def _rounded(size):
    return -(-size // UNIT) * UNIT
