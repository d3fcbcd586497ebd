"""How the threads of a team share a kernel: compiled code that takes parts of its range.

A kernel is a function of a range (numba_jit.py), and its first line is

    if spread(lo, hi):
        return

Called as kernel(0, n, ...) it computes all of the range. Called as kernel(-team, n, ...), where `team` is the address
of the words below, `spread` lets the threads of the team call *the kernel itself*, each time for one part of range(n),
with the same other arguments, and is True when all parts are done. The calling thread takes parts, too. Nobody waits
for a thread that has not begun: whoever is there takes the next part, so a core that is busy with another program costs
no more than its own share of the work. Which thread computes a part has no influence on the result.

A kernel of several steps, each of which needs all of the one before, calls `lead` for each instead (decode_block.py).
"""

from ops.kernels.cpu.atomics import add, exchange, let_others_run, load, pause, store
from ops.kernels.cpu.kernel_address import call, enclosing_kernel
from ops.kernels.cpu.numba_jit import compiled, helper, inlined

# The words of a team. JOB: number of the job in the upper half, parts that nobody has taken yet in the lower one.
JOB, _DONE = 0, 16  # each in a cache line of its own: all threads write them
PARTS, _SIZE, _FUNCTION, _ARGUMENTS, FAILED, WAIT = range(32, 38)
WORDS = 48
HALF = 32
_LOWER, _JOBS = (1 << HALF) - 1, (1 << 31) - 1


@inlined
def spread(lo, hi):
    """The first line of a kernel, see above: has the team done all of it?"""
    if lo >= 0:
        return False
    function, arguments = enclosing_kernel()
    lead(-lo, hi, function, arguments)
    return True


@helper
def lead(team, n, function, arguments):
    """Let the team do this job; returns when it is done."""
    parts = load(team, PARTS)
    store(team, _SIZE, n)
    store(team, _FUNCTION, function)
    store(team, _ARGUMENTS, arguments)
    store(team, _DONE, 0)
    job = ((load(team, JOB) >> HALF) + 1) & _JOBS
    store(team, JOB, (job << HALF) | parts)                       # from here on the others take parts
    _take_parts(team, job)
    waited = 0
    while load(team, _DONE) < parts:                              # some are still at theirs
        pause()
        waited += 1
        if waited > 1000:
            let_others_run()


@helper
def _take_parts(team, job):
    """Do parts of this job until none is left."""
    while True:
        now = load(team, JOB)
        left = now & _LOWER
        if now >> HALF != job or left == 0:
            return
        if exchange(team, JOB, now, now - 1):                    # part `left` - 1 is ours, and the job waits for it
            n, parts = load(team, _SIZE), load(team, PARTS)
            lo, hi = n * (left - 1) // parts, n * left // parts
            if call(load(team, _FUNCTION), load(team, _ARGUMENTS), lo, hi) != 0:
                store(team, FAILED, 1)
            add(team, _DONE, 1)


@compiled
def serve(team, job):
    """Take part in all jobs after this one; returns the last one's number if no other has come for a while."""
    while True:
        waited = 0
        while load(team, JOB) >> HALF == job:
            if waited >= load(team, WAIT):
                return job
            waited += 1
            if waited % 64 == 0:
                let_others_run()
            pause()
        job = load(team, JOB) >> HALF
        _take_parts(team, job)
