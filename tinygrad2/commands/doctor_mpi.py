"""python -m tinygrad2 doctor --mpi: how fast are messages between ranks here? The constants of docs/scaling.md.

By itself it starts 2 and 4 ranks on this host. Under mpirun it measures the ranks that are there:

    mpirun -n 8 -f hosts.txt python -m tinygrad2 doctor --mpi

    latency       seconds that an exchange of 4 bytes between two ranks takes
    bandwidth     bytes per second each way, in exchanges of 8 MB (half a bucket) out of 88 MB: more than a cache holds
    adding        bytes per second of `out += arrived`
    watchdog      seconds that comparing names and setting a deadline add to a collective
    sum           all-reduce of a gradient of 11 million elements, measured, and as predicted from latency, bandwidth
                  and adding:
                  2 log2(P) latency + (P - 1) / P n (2 / bandwidth + 1 / adding)

Between neighbours (rank r and r xor 1: with several ranks per host, the same host) and, if there are several hosts,
between ranks of different ones.

By itself it also prints how many ranks of MPICH there is room for in /dev/shm, through which they communicate.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from tinygrad2.distributed import shared_memory
from tinygrad2.distributed.mpirun import environment, find_mpirun
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.system.installation import PROJECT_ROOT
from tinygrad2.system.launcher import ranks_started
from tinygrad2.system.threads import available_cores

SIZE = 11_000_000  # elements of the sum: the gradient of the baby GPT
_PIECE = 2 << 20  # elements: half a bucket
_COUNTS = 2, 4  # ranks


def main(as_json):
    """Exit code 0 if everything could be measured."""
    if ranks_started() > 1:
        world = World.join(1)
        world.run(lambda: _probe(world, as_json))
    rows = []
    if problem := shared_memory.shortage(max(_COUNTS), time.time()):
        raise UserError(problem)
    for n in _COUNTS:
        command = [find_mpirun(), "-n", str(n), sys.executable, "-m", "tinygrad2", "doctor", "--mpi", "--json"]
        paths = os.pathsep.join([PROJECT_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                                  env={**environment(), "PYTHONPATH": paths})  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(f"no answer from {n} ranks within 120 s; try: mpirun -n {n} hostname") from None
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise UserError(f"{n} ranks could not be measured: {''.join(last)}; try: python -m tinygrad2 doctor")
        rows.append(json.loads(done.stdout))
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _show(rows)
        print(shared_memory.describe())
    return 0


def _probe(world, as_json):
    row = dict(ranks=world.size, hosts=world.hosts, cores=len(available_cores()))
    row["neighbours"] = _between(world, 1)
    if world.hosts > 1 and world.size > world.host_size:
        row["hosts apart"] = _between(world, world.host_size)
    row["adding"] = _adding(world)
    row["watchdog"] = _time(world, lambda: world.barrier("nothing"), 200) - _time(world, world.comm.Barrier, 200)
    row["sum"] = _sum(world)
    if world.rank == 0:
        print(json.dumps(row)) if as_json else _show([row])
    return 0


def _time(world, work, count):
    """The median of `count` timings, in seconds, of the slowest rank."""
    times = []
    for _ in range(count):
        world.comm.Barrier()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return max(world.all_gather_object(statistics.median(times)))


def _between(world, distance):
    import numpy as np

    partner = world.rank ^ distance
    values, arrived = np.ones(2 * SIZE, np.float32), np.empty(_PIECE, np.float32)

    def times_of(n, count):
        times = []
        for i in range(count):
            begin = time.perf_counter()
            if partner < world.size:
                start = i * n % (len(values) - n)
                world.transport.sendrecv(values[start : start + n], partner, arrived[:n])
            times.append(time.perf_counter() - begin)
        return times

    with world.collective(f"exchanges over a distance of {distance}"):
        latency, seconds = min(times_of(1, 500)), statistics.median(times_of(_PIECE, 20)[2:])
    latency, seconds = (max(values) for values in zip(*world.all_gather_object((latency, seconds))))
    return dict(latency=latency, bandwidth=4 * _PIECE / seconds)


def _adding(world):
    import numpy as np

    from tinygrad2.distributed.allreduce import add

    values, other = np.ones(2 * SIZE, np.float32), np.ones(_PIECE, np.float32)
    starts = iter(range(0, 20 * _PIECE, _PIECE))

    def work():
        start = next(starts) % (len(values) - _PIECE)
        add(values[start : start + _PIECE], other)

    return other.nbytes / _time(world, work, 20)


def _sum(world):
    import numpy as np

    from tinygrad2.distributed.reducer import Reducer
    from tinygrad2.flat_buffers import FlatBuffers
    from tinygrad2.module import Module, Parameter

    class Weights(Module):
        def __init__(self):
            self.weight = Parameter(np.ones(SIZE, np.float32))

    flat = FlatBuffers(Weights())
    reducer = Reducer(flat, world, 1)

    def work():
        reducer.begin("a sum")
        reducer.finish()

    return _time(world, work, 10)


def predicted(row):
    """Seconds of the sum as predicted from the other measurements of `row`."""
    P, n = row["ranks"], 4 * SIZE
    link = row.get("hosts apart", row["neighbours"])
    rounds = P.bit_length() - 1
    return 2 * rounds * link["latency"] + (P - 1) / P * n * (2 / link["bandwidth"] + 1 / row["adding"])


def _show(rows):
    print("ranks hosts  between          latency     bandwidth       adding   watchdog   sum of 44 MB      predicted")
    for row in rows:
        for name in ("neighbours", "hosts apart"):
            if name in row:
                link = row[name]
                print(f"{row['ranks']:5} {row['hosts']:5}  {name:12} {1e6 * link['latency']:8.1f} us "
                      f"{link['bandwidth'] / 1e9:8.2f} GB/s {row['adding'] / 1e9:7.1f} GB/s "
                      f"{1e6 * row['watchdog']:7.1f} us {1e3 * row['sum']:11.1f} ms "
                      f"{1e3 * predicted(row):11.1f} ms")  # fmt: skip
        if row["ranks"] > row["cores"] * row["hosts"]:
            print(f"      {row['ranks']} ranks on {row['cores']} core(s): they take turns and wait for each other")
