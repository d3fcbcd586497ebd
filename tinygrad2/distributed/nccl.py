"""NCCL: sums and copies between GPUs, if every rank has one. NVIDIA's library, through CuPy."""

from tinygrad2.backend import array_module, nccl_library
from tinygrad2.errors import UserError


class Nccl:
    """The communicator of the ranks' GPUs.

    broadcast_object(value) returns rank 0's value on every rank.
    """

    def __init__(self, rank, size, broadcast_object):
        nccl = nccl_library()
        unique = broadcast_object(nccl.get_unique_id() if rank == 0 else None)
        self.comm = nccl.NcclCommunicator(size, unique, rank)
        self.float32, self.plus = nccl.NCCL_FLOAT32, nccl.NCCL_SUM

    def all_reduce(self, array):
        """Overwrite a float32 array on every rank with the sum over all ranks."""
        address, stream = array.data.ptr, array_module("cuda").cuda.get_current_stream()
        self.comm.allReduce(address, address, array.size, self.float32, self.plus, stream.ptr)

    def broadcast(self, array, root):
        """Overwrite a float32 array on every rank with that of rank `root`."""
        address, stream = array.data.ptr, array_module("cuda").cuda.get_current_stream()
        self.comm.broadcast(address, address, array.size, self.float32, root, stream.ptr)

    def wait(self):
        """Return when the GPU has finished, so that a missing rank is noticed in the collective it is missing from."""
        array_module("cuda").cuda.get_current_stream().synchronize()


def connect_gpus(world, device, method, comm_dtype):
    """The Nccl of these ranks, or None if gradients go through the host.

    method: the value of --gpu-allreduce, "host", "nccl" or "auto".

    Raises UserError if it is "nccl", and NCCL or a GPU for each rank is missing.
    """
    if device == "cpu" or world.size == 1 or method == "host":
        return None
    if comm_dtype != "float32":  # values are packed to bfloat16 on the host
        return None
    if all(world.all_gather_object(_have_nccl(world.host_size), "who has NCCL")):
        return Nccl(world.rank, world.size, world.broadcast_object)
    if method == "nccl":
        raise UserError("--gpu-allreduce nccl needs NCCL in CuPy and a GPU for every rank of a host; "
                        "use --gpu-allreduce host")  # fmt: skip
    return None


def _have_nccl(host_size):
    return nccl_library() is not None and host_size <= array_module("cuda").cuda.runtime.getDeviceCount()
