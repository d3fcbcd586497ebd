"""train_gpt2.py --device cuda under mpirun on the stand-in for CuPy, for test_distributed.py. With a first argument
"nccl" there is a stand-in for NCCL, too: it finds arrays by their addresses, and MPI does its work."""

import ctypes
import sys
from types import SimpleNamespace

from tinygrad2.distributed.world import World

world = World.join()

import numpy as np  # noqa: E402
import strict_cupy  # noqa: E402
from mpi4py import MPI  # noqa: E402

import train_gpt2  # noqa: E402


class Communicator:
    def __init__(self, size, unique, rank):
        assert unique == "unique" and (size, rank) == (world.size, world.rank)
        self.comm = MPI.COMM_WORLD.Dup()

    @staticmethod
    def array(address, count):
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))

    def allReduce(self, send, receive, count, dtype, operation, stream):
        assert send == receive and (dtype, operation, stream) == (7, 0, 99)
        self.comm.Allreduce(MPI.IN_PLACE, self.array(send, count), MPI.SUM)

    def broadcast(self, send, receive, count, dtype, root, stream):
        assert send == receive and (dtype, stream) == (7, 99)
        self.comm.Bcast(self.array(send, count), root)


class Patches:
    @staticmethod
    def setitem(mapping, key, value):
        mapping[key] = value


cupy = strict_cupy.install(Patches)
sys.modules["cupy"] = cupy
if sys.argv[1] == "nccl":
    cupy.cuda.nccl = SimpleNamespace(
        available=True, NcclCommunicator=Communicator, get_unique_id=lambda: "unique", NCCL_FLOAT32=7, NCCL_SUM=0
    )
    cupy.cuda.runtime.getDeviceCount = lambda: 8
    strict_cupy.ndarray.data = property(lambda array: SimpleNamespace(ptr=array._a.ctypes.data))
    strict_cupy._Queue.ptr = 99
world.run(lambda: train_gpt2.main(world, [*sys.argv[2:], "--device", "cuda"]))
