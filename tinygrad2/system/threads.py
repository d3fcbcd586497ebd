"""Threads: one plan for the whole process, and the small pool that runs our own kernels.

Two kinds of threads do the work: those of NumPy's BLAS (matrix products) and those of `POOL` (our compiled loops).
They take turns, so both may use all cores; but one kind must not keep its cores busy *waiting* while the other
computes. OpenBLAS's threads do so by default, for a tenth of a second after each product, hence the variable below. The
pool's threads sleep on a queue.

Both numbers are set before NumPy is imported, because BLAS starts its threads when it is loaded. This file imports
nothing that loads NumPy.
"""

import contextlib
import contextvars
import os
import queue
import threading

_COUNTS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
MOST_THREADS = 4096  # of --threads: more can only be a mistake, and the system may refuse to start them
_WAIT = "OPENBLAS_THREAD_TIMEOUT"  # an idle BLAS thread goes to sleep after 2^this cycles
PLANNED = set()  # environment variables set by this process, not by its user: child processes plan for themselves


def available_cores():
    """The cores this process may run on, as a frozenset of their numbers."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def core_quota(root="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """CPU time that the system grants this process (containers, batch systems), in cores; None: no limit."""
    quotas = []
    with contextlib.suppress(OSError, ValueError):
        with open(own, encoding="ascii") as file:
            path = next(line.strip()[3:] for line in [*file, "0::/"] if line.startswith("0::"))  # version 2
        while True:  # the limits of all enclosing groups also apply
            with contextlib.suppress(OSError, ValueError):
                with open(os.path.join(root, path.strip("/"), "cpu.max"), encoding="ascii") as file:
                    quota, period = map(int, file.read().split())
                    quotas.append(quota / period)
            if path in ("/", ""):
                break
            path = os.path.dirname(path)
    with contextlib.suppress(OSError, ValueError):  # version 1
        numbers = []
        for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
            with open(os.path.join(root, "cpu", name), encoding="ascii") as file:
                numbers.append(int(file.read()))
        quotas += [numbers[0] / numbers[1]] if min(numbers) > 0 else []
    return min(quotas, default=None)


def usable_cores(cores=None, ranks=1):
    """How many of these cores (default: all of this process's) each of the `ranks` that share them should use."""
    share = len(available_cores() if cores is None else cores) // ranks
    quota = core_quota()
    return max(1, share if quota is None else min(share, int(quota / ranks)))


def plan_threads(threads=None, default=None):
    """Decide how many threads BLAS and kernels use; returns that number. Call it before NumPy is imported.

    threads    the value of the user's flag, which takes precedence, or None
    default    used if neither a flag nor an environment variable sets it; None: all that the system grants

    If NumPy has been imported already, the number still applies to the pool, but not to BLAS.
    """
    PLANNED.update(name for name in (*_COUNTS, _WAIT) if name not in os.environ)
    if threads is None:
        asked = os.environ.get(_COUNTS[0]) or os.environ.get(_COUNTS[1]) or ""
        threads = int(asked) if asked.isdecimal() and int(asked) else default or usable_cores()
        for name in _COUNTS:
            os.environ.setdefault(name, str(threads))
    else:
        for name in _COUNTS:
            os.environ[name] = str(threads)
    os.environ.setdefault(_WAIT, "14")
    POOL.resize(threads)
    return threads


def require_threads(number):
    """Raises RuntimeError, as Thread.start does, if this process cannot have so many threads. For OpenBLAS, which goes
    on without those that it could not start, and crashes at its end."""
    gate, started = threading.Event(), []
    try:
        for _ in range(number - 1):
            thread = threading.Thread(target=gate.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        gate.set()
        for thread in started:
            thread.join()


def threads_flag(argv):
    """The value of --threads in a command line, the last one as for the parser, or None: it is needed before the flags
    are parsed. Values that the parser will refuse count as None."""
    threads = None
    for word, following in zip(argv, [*argv[1:], ""]):
        name, equals, value = word.partition("=")
        if name == "--threads":
            with contextlib.suppress(ValueError):
                number = int(value if equals else following)
                threads = number if 1 <= number <= MOST_THREADS else threads
    return threads


_thread = threading.local()  # is_part: this thread is working on a part of a split
_NOTHING = contextlib.nullcontext()


def in_part():
    """Is this thread working on a part of a split?"""
    return getattr(_thread, "is_part", False)


class Pool:
    """Threads that sleep until there is work, which must be such that releases Python's lock: NumPy on large arrays.

    team    runs compiled kernels, which need neither Python's lock nor these threads (ops/kernels/cpu/team.py); None
            without Numba
    """

    def __init__(self):
        self.threads = None  # including the calling one; None: not planned yet
        self.team = None
        self._workers = []
        self._busy = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def resize(self, threads):
        """Use this number of threads from now on, including the calling one."""
        self.threads = threads

    def split(self, function, n, *args, grain=1, within=_NOTHING):
        """Call function(lo, hi, *args) on parts of range(n), in parallel; returns when all are done.

        A part has at least `grain` items (the calling thread alone is faster for work of less than about 50 us). The
        parts depend on n, grain and the number of threads only, never on timing. The settings of the caller
        (contextvars) hold in all of them. Any number of threads may call this; those with several parts take turns.

        within    a context that is entered once it is our turn, and left when all parts are done
        Raises what a part raises.
        """
        if self.threads is None:
            plan_threads()
        parts = min(self.threads, max(1, n // grain))
        if parts == 1 or in_part():  # a nested split runs in its own thread
            with within:
                function(0, n, *args)
            return
        with self._busy:
            _thread.is_part = True
            try:
                with within:
                    if self.team and getattr(function, "spreads", False):
                        self.team.run(function, n, args, parts)
                    else:
                        self._split(parts, function, n, args)
            finally:
                _thread.is_part = False

    def _split(self, parts, function, n, args):
        with contextlib.suppress(RuntimeError):  # the system refuses more threads: the rest is done here, in turn
            while len(self._workers) < parts - 1:
                self._workers.append(_Worker())
        done = queue.SimpleQueue()  # of this job only: one interrupted by Ctrl-C leaves no results to later jobs
        workers = self._workers[: parts - 1]
        for i, worker in enumerate(workers):
            context = contextvars.copy_context()  # one for each: two threads cannot be in the same
            worker.jobs.put((context, function, n * i // parts, n * (i + 1) // parts, args, done))
        error = None
        try:
            for i in range(len(workers), parts):
                function(n * i // parts, n * (i + 1) // parts, *args)
        except BaseException as own_error:
            error = own_error
        for _ in workers:
            error = done.get() or error
        if error:
            raise error

    def _forget(self):
        self._workers = []  # a forked child has none of its parent's threads
        self._busy = threading.Lock()


class _Worker:
    """One thread that sleeps until a job is put into `jobs`."""

    def __init__(self):
        self.jobs = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="tinygrad2 kernels", daemon=True).start()

    def _loop(self):
        _thread.is_part = True
        while True:
            context, function, lo, hi, args, done = self.jobs.get()
            error = None
            try:
                context.run(function, lo, hi, *args)
            except BaseException as part_error:
                error = part_error
            del context, function, args  # an idle thread must not keep arrays alive
            done.put(error)
            del done, error


POOL = Pool()


def planned_threads():
    """Number of threads planned for this process, or of all usable cores if nothing has been planned."""
    return POOL.threads or usable_cores()
