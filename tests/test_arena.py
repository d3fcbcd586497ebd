"""The arena of a training's steps: places that never overlap, near the lower bound, and the pool for all that differs.

The memory here is numbers only: a pool that counts, and pointers that end as CuPy's do.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from tinygrad2.gpu import device
from tinygrad2.gpu.arena import UNIT, Arena, most_alive, plan_places
from tinygrad2.gpu.device import give_back, peak_memory


class Memory:
    """UnownedMemory: it ends when the array over it does."""

    def __init__(self, ptr, size, owner, device_id=-1):
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class Pointer:
    """MemoryPointer."""

    def __init__(self, mem, offset):
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id


class Pool:
    """A pool that never gives an address twice."""

    def __init__(self, room=1 << 40):
        self.sizes, self.end, self.room = [], 1 << 20, room

    def malloc(self, size):
        if size > self.room:
            raise MemoryError(f"Out of memory allocating {size:,} bytes")
        self.sizes.append(size)
        begin, self.end = self.end, self.end + -(-size // UNIT) * UNIT
        return Pointer(Memory(begin, size, None, 0), 0)

    def total_bytes(self):
        return sum(self.sizes)

    def free_all_blocks(self):
        self.sizes.clear()


class Cuda:
    """The part of cupy.cuda that an arena uses."""

    UnownedMemory, MemoryPointer = Memory, Pointer

    def __init__(self, pool):
        self.allocator, self.stream = pool.malloc, 0

    def get_allocator(self):
        return self.allocator

    def get_current_stream(self):
        return SimpleNamespace(ptr=self.stream)

    def using_allocator(self, allocator):
        before, self.allocator = self.allocator, allocator
        leave = SimpleNamespace(__exit__=lambda *_: setattr(self, "allocator", before))
        return Using(leave)


class Using:
    def __init__(self, leave):
        self.leave = leave

    def __enter__(self):
        pass

    def __exit__(self, *_):
        self.leave.__exit__()


@pytest.fixture
def machine(monkeypatch):
    """(arena, alloc(bytes), pool, lines for the user)."""
    pool, lines = Pool(), []
    cuda = Cuda(pool)
    xp = SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool)
    monkeypatch.setattr(device, "_before", [])
    return Arena(xp, lines.append), lambda size: cuda.allocator(size), pool, lines


def step(arena, alloc, sizes=(1000, 3000, 500)):
    """Arrays of these sizes, of which each one frees the one before the last; returns their addresses."""
    found, arrays = [], []
    with arena.step():
        for size in sizes:
            arrays = arrays[-1:]
            arrays.append(alloc(size))
            found.append(arrays[-1].ptr)
        del arrays
    return found


def alive_together(ends):
    return [(m, n) for n in range(len(ends)) for m in range(n) if ends[m] > n]


@pytest.mark.parametrize("seed", range(20))
def test_places_never_overlap_and_are_near_the_bound(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 80))
    sizes = UNIT * rng.integers(1, 40, n)
    ends = np.minimum(np.arange(n) + 1 + rng.geometric(0.15, n), n)
    offsets, block = plan_places(sizes, ends)
    for m, k in alive_together(ends):
        assert offsets[m] + sizes[m] <= offsets[k] or offsets[k] + sizes[k] <= offsets[m]
    bound = max(sum(sizes[m] for m in range(k + 1) if ends[m] > k) for k in range(n))
    assert most_alive(sizes, ends) == bound <= block == max(offsets + sizes) <= 1.25 * bound
    assert not (offsets % UNIT).any() and (offsets >= 0).all()


def test_forward_and_backward_need_no_more_than_the_bound():
    """A stack: what was made last is freed first, with work space in between; 40 micro-batches of it."""
    sizes, ends = [], []
    for _ in range(40):
        layers = []
        for layer in range(6):
            layers.append(len(sizes))
            sizes += [4096, 1024, 512 * (layer + 1)]
            ends += [None, len(sizes) - 1, len(sizes)]
        for first in reversed(layers):
            sizes += [2048, 8192]
            ends += [len(sizes) - 1, len(sizes)]
            ends[first] = len(sizes) - 1
    offsets, block = plan_places(sizes, ends)
    assert block == most_alive(sizes, ends) and len(set(zip(offsets[:30], sizes[:30]))) > 10
    assert (offsets[:30] == offsets[30:60]).all()  # the same places for each micro-batch


def test_nothing_to_plan():
    assert most_alive([], []) == 0 and plan_places([], [])[1] == 0


def test_from_the_third_step_on_each_array_has_its_place(machine):
    arena, alloc, pool, lines = machine
    first, second = step(arena, alloc), step(arena, alloc)
    assert arena.block is not None and not set(first) & set(second)
    n = len(pool.sizes)
    found = [step(arena, alloc) for _ in range(3)]
    assert len(pool.sizes) == n and arena.requests == 0 and arena.is_planned
    assert found[0] == found[1] == found[2] and min(found[0]) == arena.block.ptr
    assert lines == ["arena     0.0 MB for the 3 arrays of a step, 0.0% more than are in use at once"]
    assert pool.sizes[-1] == arena.plan.bytes == arena.plan.bound == 1024 + 3072


def test_steps_that_are_not_alike_have_no_plan(machine):
    arena, alloc, _, lines = machine
    for size in (100, 1000, 2000, 3000):
        step(arena, alloc, (size, 100))
    assert arena.plan is None and not lines
    step(arena, alloc, (3000, 50))  # the same once rounded
    assert arena.plan is not None


def test_an_arena_is_given_up_where_no_two_steps_are_alike(machine):
    arena, alloc, pool, lines = machine
    for size in range(1000, 30_000, 1000):
        step(arena, alloc, (size,))
    assert arena.given_up and lines == ["arena     none: steps make other arrays each time; they come from CuPy's pool "
                                        "one by one"]  # fmt: skip
    assert len(pool.sizes) == 29 and pool.sizes[-1] == 29_000


def test_a_step_that_differs_comes_from_the_pool_and_the_next_is_as_planned(machine):
    arena, alloc, pool, _ = machine
    for _ in range(2):
        step(arena, alloc)
    planned = step(arena, alloc)
    inside = range(arena.block.ptr, arena.block.ptr + arena.plan.bytes)
    other = step(arena, alloc, (1000, 9000, 500, 700))  # another size, and one more
    assert other[0] == planned[0] and other[2] == planned[2] and arena.requests == 2 and not arena.is_planned
    assert other[1] not in inside and other[3] not in inside
    assert step(arena, alloc) == planned and arena.requests == 0
    assert step(arena, alloc, (1000,)) == planned[:1] and step(arena, alloc) == planned
    assert pool.sizes.count(9000) == 1


def test_other_shapes_get_a_plan_of_their_own(machine):
    arena, alloc, _, lines = machine
    for _ in range(3):
        step(arena, alloc)
    block = arena.block
    for _ in range(5):
        step(arena, alloc, (50_000, 60_000))
    assert arena.block is not block and arena.plan.sizes == [50_176, 60_416] and len(lines) == 2
    found = step(arena, alloc, (50_000, 60_000))
    assert arena.requests == 0 and min(found) == arena.block.ptr


def test_an_array_that_lives_too_long_keeps_its_place(machine):
    arena, alloc, _, _ = machine
    for _ in range(2):
        step(arena, alloc)
    planned, kept = step(arena, alloc), []
    with arena.step():
        kept += [alloc(1000), alloc(3000)]
        late = alloc(500)  # 0 should be gone, and so it lies where 0 is
    assert planned[2] == planned[0] == kept[0].ptr and late.ptr != kept[0].ptr and arena.requests == 1
    found = step(arena, alloc)  # while arrays of the last one live
    assert not {*found} & {kept[0].ptr, kept[1].ptr, late.ptr} and arena.requests == 3
    kept.clear()
    assert step(arena, alloc) == planned and arena.requests == 0


@pytest.mark.parametrize("other", [True, False])
def test_an_array_in_an_earlier_block_keeps_nobody_away(machine, other):
    """It has the number and the bytes of one of this block; here it goes while that one lives, and should be gone."""
    arena, alloc, _, _ = machine
    sizes = (50_000, 60_000, 70_000) if other else (1000, 3000, 500)
    for _ in range(2):
        step(arena, alloc)
    with arena.step():
        kept = [alloc(1000)]
    before = arena.block
    arena.let_go()
    for _ in range(6):
        step(arena, alloc, sizes)
    assert arena.block is not before and arena.requests == 0 and arena.is_planned
    with arena.step():
        late = alloc(sizes[0])
        kept.clear()
        arrays = [alloc(size) for size in sizes[1:]]              # the last one's place is that of the first
    assert arena.plan.places[2] == arena.plan.places[0] == late.ptr - arena.block.ptr
    assert arrays[1].ptr != late.ptr and arena.requests == 1


def test_what_outlives_the_step_comes_from_the_pool(machine):
    arena, alloc, pool, _ = machine
    kept = []

    def one():
        with arena.step():
            kept.append(alloc(700))
            alloc(100)

    for _ in range(3):
        one()
    assert arena.plan.places[0] is None and arena.plan.places[1] == 0 and arena.requests == 1 and arena.is_planned
    assert len({memory.ptr for memory in kept}) == 3 and pool.sizes[-1] == 700


def test_other_streams_and_empty_arrays_come_from_the_pool(machine):
    arena, alloc, pool, _ = machine

    def one():
        with arena.step():
            arrays = [alloc(1000)]
            arena.cuda.stream = 7
            arrays.append(alloc(2000))
            arena.cuda.stream = 0
            found = [memory.ptr for memory in [*arrays, alloc(0)]]
            del arrays
        return found

    for _ in range(3):
        found = one()
    assert found[0] == arena.block.ptr and pool.sizes[-2:] == [2000, 0] and arena.plan.count == 1
    with arena.step():
        arena.cuda.stream = 7
        assert alloc(1000).ptr != arena.block.ptr                 # nor does one that is planned lie there
        arena.cuda.stream = 0


def test_a_step_that_is_broken_off_is_not_planned(machine):
    arena, alloc, _, _ = machine
    step(arena, alloc)
    with pytest.raises(ZeroDivisionError), arena.step():
        alloc(1000)
        raise ZeroDivisionError
    assert arena.plan is None and arena.cuda.allocator.__func__ is Pool.malloc
    step(arena, alloc)
    assert arena.plan is not None


def test_an_arena_that_does_not_fit_is_none_and_said_once(machine):
    arena, alloc, pool, lines = machine
    pool.room = 4000
    for _ in range(6):
        step(arena, alloc, (2000, 2000, 2000))
    assert arena.block is None and not arena.is_planned and arena.given_up
    reason = "the GPU has no 0.0 MB in one piece for the arrays of a step; they come from CuPy's pool one by one"
    assert lines == [f"arena     none: {reason}"]


def test_a_block_that_was_let_go_is_taken_again(machine):
    arena, alloc, pool, lines = machine
    for _ in range(3):
        found = step(arena, alloc)
    first = arena.block.ptr
    arena.let_go()
    assert not arena.is_planned  # the next step takes memory, which no graph may do
    again = step(arena, alloc)
    assert arena.block.ptr != first and [a - arena.block.ptr for a in again] == [a - first for a in found]
    assert arena.is_planned and arena.requests == 0 and len(lines) == 1 and arena.taken_before == arena.plan.bytes
    arena.let_go()
    pool.room = 4000
    assert step(arena, alloc) != again and arena.given_up and arena.plan is None and len(lines) == 2


def test_an_error_of_the_gpu_is_not_taken_for_missing_memory(machine):
    arena, alloc, pool, _ = machine
    step(arena, alloc)

    def broken():
        raise RuntimeError("cudaErrorIllegalAddress")

    pool.free_all_blocks = broken
    with pytest.raises(RuntimeError, match="IllegalAddress"):
        step(arena, alloc)


def test_the_peak_is_known_after_memory_was_given_back(machine, monkeypatch):
    arena, alloc, pool, _ = machine
    monkeypatch.setattr(device, "array_module", lambda device: arena.xp)
    monkeypatch.setattr(device, "_pools", [])                        # other tests' trainings have had memory, too
    monkeypatch.setattr(device, "_before", [])
    kept = alloc(10_000)
    give_back(arena.xp)
    alloc(300)
    assert peak_memory("cuda") == 10_000 and pool.total_bytes() == 300
    alloc(20_000)
    assert peak_memory("cuda") == 20_300 and kept.ptr
