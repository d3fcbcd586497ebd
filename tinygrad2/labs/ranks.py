"""Ranks as threads of one process, for labs about collectives: no MPI, and a deadlock is named at once."""

import threading

import numpy as np

from tinygrad2.labs.lab import Wrong


class Ranks:
    """The messages between `size` ranks. A sendrecv waits for its partner's, as MPI's does."""

    def __init__(self, size):
        self.size = size
        self.sent = [0] * size  # elements that each rank has sent
        self._mail = {}  # (from, to): the arrays on their way
        self._waiting = {}  # rank: the rank whose message it waits for
        self._done = 0
        self._changed = threading.Condition()
        self._errors = {}

    def run(self, work):
        """work(rank, transport) on every rank; returns their results. Raises what a rank has raised: of several errors
        the one that is no deadlock."""
        results = [None] * self.size

        def run_one(rank):
            try:
                with np.errstate(all="ignore"):
                    results[rank] = work(rank, _Transport(self, rank))
            except BaseException as error:  # raised again below, in the thread that has started these
                self._errors[rank] = error
            finally:
                with self._changed:
                    self._done += 1
                    self._changed.notify_all()

        threads = [threading.Thread(target=run_one, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise min(self._errors.values(), key=lambda error: isinstance(error, _Deadlock))
        if left := [pair for pair, arrays in self._mail.items() if arrays]:
            raise Wrong(f"rank {left[0][0]} has sent something to rank {left[0][1]} that was never received")
        return results

    def exchange(self, rank, sent, partner, received):
        """Transport.sendrecv of `rank`."""
        if not isinstance(partner, (int, np.integer)) or not 0 <= partner < self.size or partner == rank:
            raise Wrong(f"rank {rank} exchanges with rank {partner}, which is not another rank of 0 .. {self.size - 1}")
        with self._changed:
            self._mail.setdefault((rank, partner), []).append(np.array(sent))
            self.sent[rank] += np.size(sent)
            self._waiting[rank] = partner
            self._changed.notify_all()
            while not self._mail.get((partner, rank)):
                if self._is_stuck():
                    raise _Deadlock(self._describe())
                self._changed.wait()
            del self._waiting[rank]
            array = self._mail[partner, rank].pop(0)
        if array.shape != np.shape(received):
            raise Wrong(f"rank {partner} sends {array.shape} elements to rank {rank}, which has room for "
                        f"{np.shape(received)}: what one sends is what the other keeps")  # fmt: skip
        received[...] = array

    def _is_stuck(self):
        """Does every rank wait for one that will not send, or has it ended?"""
        if len(self._waiting) + self._done < self.size:
            return False
        return not any(self._mail.get((partner, rank)) for rank, partner in self._waiting.items())

    def _describe(self):
        waits = ", ".join(f"rank {rank} waits for rank {partner}" for rank, partner in sorted(self._waiting.items()))
        return f"a deadlock: {waits}, and nobody sends"


class _Deadlock(Wrong):
    """Nothing would ever happen again."""


class _Transport:
    """What a rank has of it: the one method that these labs use."""

    def __init__(self, ranks, rank):
        self.ranks, self.rank = ranks, rank

    def sendrecv(self, sent, partner, received):
        self.ranks.exchange(self.rank, sent, partner, received)
