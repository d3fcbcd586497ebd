"""The threads that run compiled kernels: they take parts of a kernel's range, and between two kernels they stay inside
compiled code, waiting for the next one. So a kernel is started in about a microsecond, without Python's lock.

A kernel is a function of a range (numba_jit.py), and its first line is

    if spread(lo, hi):
        return

Called as kernel(0, n, ...) it computes all of the range. Called as kernel(-team, n, ...), where `team` is the address
of the words below, `spread` lets the threads of the team call *the kernel itself*, each time for one part of range(n),
with the same other arguments, and is True when all parts are done. The calling thread takes parts, too. Nobody waits
for a thread that has not begun: whoever is there takes the next part, so a core that is busy with another program costs
no more than its own share of the work. Which thread computes a part has no influence on the result.

A thread that has waited in vain for `_PATIENCE` seconds sleeps, on a queue of Python, until it is called.
"""

import atexit
import os
import queue
import threading
import time

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ops.kernels.cpu.atomics import add, exchange, let_others_run, load, pause, store
from ops.kernels.cpu.numba_jit import compiled, helper, inlined
from tinygrad2.system.threads import POOL, available_cores, planned_threads

# The words of a team. _JOB: number of the job in the upper half, parts that nobody has taken yet in the lower one.
_JOB, _DONE = 0, 16  # each in a cache line of its own: all threads write them
_PARTS, _SIZE, _FUNCTION, _ARGUMENTS, _FAILED, _WAIT = range(32, 38)
_WORDS = 48
_HALF = 32
_LOWER, _JOBS = (1 << _HALF) - 1, (1 << 31) - 1
_I64 = ir.IntType(64)

_PATIENCE = 100e-6  # seconds: longer than what Python does between two kernels, shorter than anybody would notice


@inlined
def spread(lo, hi):
    """The first line of a kernel, see above: has the team done all of it?"""
    if lo >= 0:
        return False
    function, arguments = _enclosing_kernel()
    _lead(-lo, hi, function, arguments)
    return True


@intrinsic
def _enclosing_kernel(typingctx):
    """(address of a function (arguments, lo, hi) that calls the kernel whose code this is, address of the values of the
    kernel's arguments after lo and hi in this call). The function returns 0, or another number if the kernel raised."""

    def codegen(context, builder, signature, _):
        kernel = builder.function
        result, error, _, _, *rest = kernel.args                  # first: where Numba puts what it returns, raises
        values = cgutils.alloca_once(builder, ir.LiteralStructType([value.type for value in rest]))
        for i, value in enumerate(rest):
            builder.store(value, cgutils.gep_inbounds(builder, values, 0, i))
        call = ir.Function(builder.module, ir.FunctionType(_I64, [_I64] * 3), kernel.name + ".part")
        call.linkage = "internal"
        inner = ir.IRBuilder(call.append_basic_block())
        saved = inner.inttoptr(call.args[0], values.type)
        code = inner.call(kernel, [
            cgutils.alloca_once(inner, result.type.pointee, zfill=True),
            cgutils.alloca_once(inner, error.type.pointee, zfill=True),
            *call.args[1:],
            *(inner.load(cgutils.gep_inbounds(inner, saved, 0, i)) for i in range(len(rest))),
        ])  # fmt: skip
        inner.ret(inner.sext(code, _I64))
        addresses = [builder.ptrtoint(pointer, _I64) for pointer in (call, values)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, 2)(), codegen


@intrinsic
def _call(typingctx, function, arguments, lo, hi):
    """Call a function by the address that `_enclosing_kernel` gave."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.PointerType(ir.FunctionType(_I64, [_I64] * 3)))
        return builder.call(pointer, args[1:])

    i = types.int64
    return i(i, i, i, i), codegen


@helper
def _lead(team, n, function, arguments):
    """Let the team do this job; returns when it is done."""
    parts = load(team, _PARTS)
    store(team, _SIZE, n)
    store(team, _FUNCTION, function)
    store(team, _ARGUMENTS, arguments)
    store(team, _DONE, 0)
    job = ((load(team, _JOB) >> _HALF) + 1) & _JOBS
    store(team, _JOB, (job << _HALF) | parts)                     # from here on the others take parts
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
        now = load(team, _JOB)
        left = now & _LOWER
        if now >> _HALF != job or left == 0:
            return
        if exchange(team, _JOB, now, now - 1):                    # part `left` - 1 is ours, and the job waits for it
            n, parts = load(team, _SIZE), load(team, _PARTS)
            lo, hi = n * (left - 1) // parts, n * left // parts
            if _call(load(team, _FUNCTION), load(team, _ARGUMENTS), lo, hi) != 0:
                store(team, _FAILED, 1)
            add(team, _DONE, 1)


@compiled
def _serve(team, job):
    """Take part in all jobs after this one; returns the last one's number if no other has come for a while."""
    while True:
        waited = 0
        while load(team, _JOB) >> _HALF == job:
            if waited >= load(team, _WAIT):
                return job
            waited += 1
            if waited % 64 == 0:
                let_others_run()
            pause()
        job = load(team, _JOB) >> _HALF
        _take_parts(team, job)


class Team:
    """The compiled side of POOL, which calls `run`, one thread at a time."""

    def __init__(self):
        self._forget()
        atexit.register(self._rest)                               # no thread may be in compiled code while Python ends
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self):
        memory = np.zeros(_WORDS + 16, np.int64)
        start = -memory.ctypes.data % 128 // 8                    # the words begin with a cache line
        self.words = memory[start : start + _WORDS]
        self.address = self.words.ctypes.data
        self.threads, self.asleep = 0, []                         # queues, one of each thread that sleeps

    def run(self, kernel, n, args, parts):
        """kernel(lo, hi, *args) for all parts of range(n). Raises MemoryError if a part of it had no memory."""
        while self.threads < parts - 1:
            self._start()
        self.words[_PARTS] = parts
        for _ in range(min(parts - 1, len(self.asleep))):
            self.asleep.pop().put(None)
        kernel(-self.address, n, *args)
        if self.words[_FAILED]:
            self.words[_FAILED] = 0
            raise MemoryError(f"no memory left for the work space of {kernel.__name__}")

    def _start(self):
        if not self.threads:
            self._choose_wait()
        threading.Thread(target=self._loop, args=(self.words,), name="tinygrad2 kernels", daemon=True).start()
        self.threads += 1

    def _choose_wait(self):
        """Set how often a thread looks for work before it sleeps: for _PATIENCE seconds, if it has a core."""
        self.words[_WAIT], times = 1000, []
        for _ in range(5):
            begin = time.perf_counter()
            _serve(self.address, self.words[_JOB] >> _HALF)
            times.append((time.perf_counter() - begin) / 1000)
        has_core = planned_threads() <= len(available_cores())
        self.words[_WAIT] = int(_PATIENCE / min(times)) if has_core else 0

    def _loop(self, words):
        bell, job = queue.SimpleQueue(), int(words[_JOB]) >> _HALF
        address = words.ctypes.data
        while True:
            job = _serve(address, job)
            self.asleep.append(bell)
            bell.get()

    def _rest(self):
        self.words[_WAIT] = 0
        for _ in range(100):
            if len(self.asleep) >= self.threads:
                return
            time.sleep(0.001)


POOL.team = Team()
