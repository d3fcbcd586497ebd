"""Transport: sends NumPy arrays from rank to rank, within a World.collective.

Called outside the main thread (overlap.py), it polls with sleeps in between: MPI itself spins while it waits, and would
take the core from the backward pass.
"""

import threading
import time

_POLL_SECONDS = 2e-4  # short enough that the system's buffers of a connection do not fill up meanwhile


class Transport:
    """comm: a communicator of mpi4py; mpi: the module mpi4py.MPI."""

    def __init__(self, comm, mpi):
        self.comm, self.mpi = comm, mpi

    def all_reduce(self, array):
        """Overwrite `array` with its sum over all ranks, in MPI's order."""
        if threading.current_thread() is threading.main_thread():
            self.comm.Allreduce(self.mpi.IN_PLACE, array, self.mpi.SUM)
        else:
            _poll([self.comm.Iallreduce(self.mpi.IN_PLACE, array, self.mpi.SUM)])

    def sendrecv(self, sent, partner, received):
        """Send the array `sent` to another rank, and overwrite `received` with what that rank sends."""
        if threading.current_thread() is threading.main_thread():
            self.comm.Sendrecv(sent, partner, 1, received, partner, 1)
        else:
            _poll([self.comm.Irecv(received, partner, 1), self.comm.Isend(sent, partner, 1)])

    def all_to_all(self, sent, received):
        """Send row r of `sent` to rank r; overwrite row r of `received` with what rank r sends."""
        self.comm.Alltoall(sent, received)

    def all_gather(self, sent, received):
        """Overwrite row r of `received`, on all ranks, with `sent` of rank r."""
        self.comm.Allgather(sent, received)

    def all_gather_parts(self, array, parts):
        """Rank r has array[parts[r]]: overwrite that part on all other ranks."""
        for rank, part in enumerate(parts):
            self.comm.Bcast(array[part], root=rank)

    def send(self, array, rank):
        """Send `array` to a rank that calls receive."""
        self.comm.Send(array, rank, 2)

    def receive(self, array, rank):
        """Overwrite `array` with what a rank sends that calls send."""
        self.comm.Recv(array, rank, 2)


def _poll(requests):
    while not requests[0].Testall(requests):
        time.sleep(_POLL_SECONDS)
