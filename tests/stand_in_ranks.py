"""train_gpt2.py --device cuda under mpirun on the stand-in for CuPy, for test_distributed.py. With a first argument
"nccl" there is a stand-in for NCCL, too: it finds arrays by their addresses, and MPI does its work. With
"nccl,RANK,STEP,loss" or "nccl,RANK,STEP,gradient" that of one rank is not finite in one step."""

import ctypes
import sys
from types import SimpleNamespace

from tinygrad2.distributed.world import World

world = World.join()

import fake_cublaslt  # noqa: E402
import numpy as np  # noqa: E402
import strict_cupy  # noqa: E402
from cuda_host import running  # noqa: E402
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
    setattr = staticmethod(setattr)

    @staticmethod
    def setitem(mapping, key, value):
        mapping[key] = value


cupy = strict_cupy.install(Patches)
sys.modules["cupy"] = cupy
stand_in, *spoilt = sys.argv[1].split(",")
if stand_in == "nccl":
    cupy.cuda.nccl = SimpleNamespace(
        available=True, NcclCommunicator=Communicator, get_unique_id=lambda: "unique", NCCL_FLOAT32=7, NCCL_SUM=0
    )
    cupy.cuda.runtime.getDeviceCount = lambda: 8
    strict_cupy.ndarray.data = property(lambda array: SimpleNamespace(ptr=array._a.ctypes.data))
    strict_cupy._Queue.ptr = 99
if spoilt and int(spoilt[0]) == world.rank:
    micro_step = train_gpt2.Trainer.micro_step

    def spoilt_step(trainer, first_row, x, y, scale=None, keys=None):
        now = trainer.done + 1 == int(spoilt[1])
        if now and spoilt[2] == "gradient":
            scale = scale.data * np.float32(np.inf)
        loss = micro_step(trainer, first_row, x, y, scale, keys)
        return loss * np.float32(np.inf) if now and spoilt[2] == "loss" else loss

    train_gpt2.Trainer.micro_step = spoilt_step
if "reference" not in sys.argv:
    fake_cublaslt.install(Patches)
with running(check=False):
    world.run(lambda: train_gpt2.main(world, [*sys.argv[2:], "--device", "cuda"]))
