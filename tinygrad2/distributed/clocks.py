"""The clocks of the ranks, compared: each host counts its time from a moment of its own."""

import time

import numpy as np

_ROUNDS = 20


def clock_offset(world, clock=time.perf_counter):
    """(what to subtract from this rank's clock() to get rank 0's, half the round trip), both in seconds.

    Rank 0 sends a message to each rank in turn, which answers with its time; that time lies between those of sending
    and receiving, and the fastest of some round trips is taken to have its middle there. The error is at most half the
    round trip (Cristian, "Probabilistic clock synchronization", 1989). A collective.
    """
    table = np.zeros((world.size, 2))
    message = np.zeros(1)
    with world.collective("comparing clocks", moves_data=False):
        for rank in range(1, world.size):
            for _ in range(_ROUNDS if world.rank in (0, rank) else 0):
                if world.rank:
                    world.transport.receive(message, 0)
                    world.transport.send(np.array([clock()]), 0)
                    continue
                begin = clock()
                world.transport.send(message, rank)
                world.transport.receive(message, rank)
                half = (clock() - begin) / 2
                if not table[rank, 1] or half < table[rank, 1]:
                    table[rank] = message[0] - begin - half, half
    offset, error = world.all_gather(table, "offsets of clocks")[0][world.rank]
    return float(offset), float(error)
