"""How many threads a product of BLAS uses: one number for the whole process, which our kernels switch.

Kernels cut products into parts of their own and want one BLAS thread for each (blas_gemm.py). Products of NumPy, those
of the reference implementations, want all threads. The last bits of a product may depend on that number; so, where
several threads compute, no product of the one kind may run while the switch is set for the other:

    with switch.one: ...        a product on the thread that calls for it
    with switch.all: ...        a product of NumPy

Any number of threads may be in blocks of one kind. A thread that wants the other kind waits for them to leave, and then
all that wait for it enter together; nobody of the first kind enters before them. A split over POOL enters after it has
got the pool (`within`), so whoever is in a block never waits for anything but its own product. Outside all blocks the
switch is set to all threads, as any program expects that uses NumPy beside us.
"""

import os
import threading
from functools import partial

from tinygrad2.dispatch import are_products_alone
from tinygrad2.system.threads import POOL


class ThreadSwitch:
    """Two contexts, `one` and `all`, that exclude each other; both are for any number of threads at a time.

    set_threads    a function that sets the number of threads of BLAS
    asked          a context around products of NumPy: `all`, or `one` where products_alone (dispatch.py) asks for that
    """

    def __init__(self, set_threads):
        self.set_threads = set_threads
        self.one, self.all = _Side(self), _Side(self)
        self.one.other, self.all.other = self.all, self.one
        self.asked = _Asked(self)
        self.now = self.all                                       # the side that the switch is set for
        self._empty()
        if hasattr(os, "register_at_fork"):
            # OpenBLAS ends its threads when the process forks, and a product that is using them would never end.
            wait, go_on = partial(self.enter, self.one), partial(self.leave, self.one)
            os.register_at_fork(before=wait, after_in_parent=go_on, after_in_child=self._empty)

    def _empty(self):
        """Nobody is inside: at the start, and in a forked child, which has none of its parent's threads."""
        self.lock, self.inside = threading.Lock(), set()          # inside: threads
        self.one.waiting, self.all.waiting = [], []               # (thread, lock that is released when it may enter)
        self._change_to(self.all)

    def enter(self, side):
        """Wait until no thread is on the other side, then be on this one."""
        me = threading.get_ident()
        with self.lock:
            self.inside.discard(me)                               # left over if Ctrl-C came just before a block
            if not self.inside or (side is self.now and not side.other.waiting):
                self._change_to(side)
                self.inside.add(me)
                return
            gate = threading.Lock()
            gate.acquire()
            side.waiting.append((me, gate))
        try:
            gate.acquire()
        except BaseException:                                     # Ctrl-C
            with self.lock:
                side.waiting[:] = [entry for entry in side.waiting if entry[1] is not gate]
            self.leave(side)
            raise

    def leave(self, side):
        """Be on no side. The last one to leave lets in all who wait for the other side, or else for this one."""
        with self.lock:
            self.inside.discard(threading.get_ident())
            if self.inside:
                return
            following = side.other if side.other.waiting else side
            self._change_to(following if following.waiting else self.all)
            for thread, gate in following.waiting:
                self.inside.add(thread)
                gate.release()
            following.waiting.clear()

    def _change_to(self, side):
        if side is not self.now:
            self.set_threads(1 if side is self.one else POOL.threads or 1)
            self.now = side


class _Side:
    """One side of a ThreadSwitch, as a context that costs no new object."""

    def __init__(self, switch):
        self._enter, self._leave = switch.enter, switch.leave

    def __enter__(self):
        self._enter(self)

    def __exit__(self, *_):
        self._leave(self)


class _Asked:
    """The side that the settings of the caller ask for, as a context."""

    def __init__(self, switch):
        self._switch = switch

    def __enter__(self):
        self._switch.enter(self._switch.one if are_products_alone() else self._switch.all)

    def __exit__(self, *_):
        self._switch.leave(self._switch.now)                      # nobody has changed it: this thread is inside
