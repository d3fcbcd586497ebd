"""Transport: how NumPy arrays get from rank to rank, within a collective.

Called outside the main thread (overlap.py), it sleeps between its looks at what has arrived: MPI itself waits at full
speed, and would take the core from the backward pass.
"""

import threading
import time

_NAP = 2e-4  # seconds between two looks: the system's buffers of a connection must not fill up meanwhile


class Transport:
    """comm: a communicator of mpi4py; mpi: its module."""

    def __init__(self, comm, mpi):
        self.comm, self.mpi = comm, mpi

    def all_reduce(self, array):
        """MPI's own sum over all ranks, in place."""
        if threading.current_thread() is threading.main_thread():
            self.comm.Allreduce(self.mpi.IN_PLACE, array, self.mpi.SUM)
        else:
            _doze([self.comm.Iallreduce(self.mpi.IN_PLACE, array, self.mpi.SUM)])

    def exchange(self, sent, partner, received):
        """Send the array `sent` to another rank, and receive `received` from it."""
        if threading.current_thread() is threading.main_thread():
            self.comm.Sendrecv(sent, partner, 1, received, partner, 1)
        else:
            _doze([self.comm.Irecv(received, partner, 1), self.comm.Isend(sent, partner, 1)])

    def all_to_all(self, sent, received):
        """Row r of `sent` goes to rank r, row r of `received` comes from there."""
        self.comm.Alltoall(sent, received)

    def all_gather(self, sent, received):
        """`sent` of rank r goes to row r of `received`, on all ranks."""
        self.comm.Allgather(sent, received)

    def all_gather_parts(self, array, parts):
        """Rank r has array[parts[r]]: send it to all."""
        for rank, part in enumerate(parts):
            self.comm.Bcast(array[part], root=rank)

    def send(self, array, rank):
        """To one other rank, which receives."""
        self.comm.Send(array, rank, 2)

    def receive(self, array, rank):
        """From one other rank, which sends."""
        self.comm.Recv(array, rank, 2)


def _doze(requests):
    while not requests[0].Testall(requests):
        time.sleep(_NAP)
