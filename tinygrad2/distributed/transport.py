"""Wire: NumPy arrays on their way between ranks.

Called outside the main thread (overlap.py), it sleeps between its looks at what has arrived: MPI itself waits at full
speed, and would take the core from the backward pass.
"""

import threading
import time

_NAP = 2e-4  # seconds between two looks: what the system keeps for a connection meanwhile must not run full


class Wire:
    """comm: a communicator of mpi4py; mpi: its module. Everything here is done by all ranks within a collective."""

    def __init__(self, comm, mpi):
        self.comm, self.mpi = comm, mpi

    def add_up(self, array):
        """MPI's own sum over all ranks, in place."""
        if threading.current_thread() is threading.main_thread():
            self.comm.Allreduce(self.mpi.IN_PLACE, array, self.mpi.SUM)
        else:
            _doze([self.comm.Iallreduce(self.mpi.IN_PLACE, array, self.mpi.SUM)])

    def exchange(self, mine, partner, theirs):
        """Send `mine` to another rank, and receive `theirs` from it."""
        if threading.current_thread() is threading.main_thread():
            self.comm.Sendrecv(mine, partner, 1, theirs, partner, 1)
        else:
            _doze([self.comm.Irecv(theirs, partner, 1), self.comm.Isend(mine, partner, 1)])

    def swap(self, mine, theirs):
        """Row r of `mine` goes to rank r, row r of `theirs` comes from there."""
        self.comm.Alltoall(mine, theirs)

    def gather(self, mine, every):
        """`mine` of rank r goes to row r of `every`, on all ranks."""
        self.comm.Allgather(mine, every)

    def gather_parts(self, array, edges):
        """Rank r has array[edges[r] : edges[r + 1]]: give it to all."""
        for rank in range(self.comm.size):
            self.comm.Bcast(array[edges[rank] : edges[rank + 1]], root=rank)

    def send(self, array, rank):
        """To one other rank, which receives."""
        self.comm.Send(array, rank, 2)

    def receive(self, array, rank):
        """From one other rank, which sends."""
        self.comm.Recv(array, rank, 2)


def _doze(requests):
    while not requests[0].Testall(requests):
        time.sleep(_NAP)
