"""The fastest of several ways to compute something on the GPU, measured when needed first (tinygrad2/gpu/choices.py).

- An algorithm of cuBLASLt. Its heuristic orders them by what it expects; on an H200 the best of the first four was up
  to 13 % faster than the first (docs/gpu.md). Measured are the first 8, on the operands of the call itself.
- A product with GELU in it against a product and a kernel (mlp.py).

What is measured is written over later, or goes to memory that is taken for the time; without it the first way is the
choice. The host waits for the GPU meanwhile. While a CUDA graph is recorded nothing is measured: the steps before it
have done so. Ways that take the GPU less time than the launch takes the host cannot be compared: the first is taken.
"""

import statistics
from functools import partial

from ops.kernels.cuda.cublaslt import CublasError
from tinygrad2.gpu.choices import choices

ANSWERS = 8  # of the heuristic that are tried
LEAST = 1 << 28  # multiplications of a product: below it an H200 takes about a microsecond
GAIN = 0.03  # by which another way than the first must be faster; less may be noise
ROUNDS, CALLS = 5, 4  # measurements of each way, and how often it runs in each
_ALIGNED = 256  # bytes: addresses in memory that is lent


def fastest(xp, ways):
    """The number, from 0, of the fastest of `ways`, functions that start work on the current stream.

    Medians of a few rounds in which they take turns. Ways that raise CublasError are left out.
    """
    if len(ways) < 2:
        return 0
    working = [i for i, way in enumerate(ways) if _can_run(way)]  # the first run also compiles, and chooses algorithms
    times: dict[int, list[float]] = {i: [] for i in working}
    for _ in range(ROUNDS):
        for i in working:
            times[i].append(milliseconds(xp, ways[i]))
    medians = {i: statistics.median(times[i]) for i in working}
    first, best = min(working, default=0), min(working, key=medians.get, default=0)
    return best if medians and medians[best] < (1 - GAIN) * medians[first] else first


def _can_run(way):
    try:
        way()
    except CublasError:
        return False
    return True


def milliseconds(xp, work):
    """What the GPU takes for a few calls of `work`."""
    begin, end = xp.cuda.Event(), xp.cuda.Event()
    begin.record()
    for _ in range(CALLS):
        work()
    end.record()
    end.synchronize()
    return xp.cuda.get_elapsed_time(begin, end)


def way_of(xp, key, multiplications, ways, place):
    """The way to take, of {name: function of the array in which a result goes}: the one that was chosen for this key;
    else, where that is wanted, the fastest; else the first. What is measured goes to an array like `place`."""
    chosen, names = choices().get(key), list(ways)
    if chosen is None and measures_now(xp, multiplications):
        other = _if_possible(lambda: xp.empty_like(place))
        measured = [] if other is None else [partial(way, other) for way in ways.values()]
        chosen = names[fastest(xp, measured)]
        choices().add(key, chosen)
    return ways.get(chosen, ways[names[0]])


def measures_now(xp, multiplications):
    """Is a choice for so many multiplications to be made here, by measuring?"""
    return choices().measures and multiplications >= LEAST and not xp.cuda.get_current_stream().is_capturing()


def choose_algorithm(xp, plan, addresses, scale, beta, workspace, stream):
    """Let a Plan have the fastest of the algorithms that the heuristic returns, for products like this one.

    The arguments are those of Plan.run. A result that is added to (beta = 1) is added to once only: what is measured
    goes to memory of its own.
    """
    a, b, out, bias, aux = addresses
    answers = plan.answers(ANSWERS)
    if beta:
        size = plan.problem.out.bytes(plan.problem.batch) + _ALIGNED
        memory = _if_possible(lambda: xp.empty(size, dtype=xp.uint8))
        answers = answers[:1] if memory is None else answers
        out = 0 if memory is None else memory.data.ptr + -memory.data.ptr % _ALIGNED
    run = partial(plan.run, a, b, out, bias, aux, scale, beta, workspace, stream)
    plan.take(answers[fastest(xp, [partial(run, answer) for answer in answers])])
    choices().add(plan.problem.key, bytes(plan.algorithm).hex())


def _if_possible(allocate):
    """What it returns, None without the memory for it."""
    try:
        return allocate()
    except MemoryError:
        return None
