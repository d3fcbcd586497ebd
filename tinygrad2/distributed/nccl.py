"""NCCL: sums and copies from GPU to GPU, where every rank has one. NVIDIA's library, through CuPy."""

from tinygrad2.backend import array_module, nccl_library
from tinygrad2.errors import UserError


class Nccl:
    """The ranks' GPUs, joined.

    share(value) gives every rank what rank 0 has.
    """

    def __init__(self, rank, size, share):
        nccl = nccl_library()
        unique = share(nccl.get_unique_id() if rank == 0 else None)
        self.comm, self.float32, self.plus = nccl.NcclCommunicator(size, unique, rank), nccl.NCCL_FLOAT32, nccl.NCCL_SUM

    def sum(self, array):
        """Overwrite a float32 array on every rank with the sum over all ranks."""
        place, stream = array.data.ptr, array_module("cuda").cuda.get_current_stream()
        self.comm.allReduce(place, place, array.size, self.float32, self.plus, stream.ptr)

    def broadcast(self, array, root):
        """Overwrite a float32 array on every rank with that of one."""
        place, stream = array.data.ptr, array_module("cuda").cuda.get_current_stream()
        self.comm.broadcast(place, place, array.size, self.float32, root, stream.ptr)

    def wait(self):
        """Until the GPU has done it: so that what never arrives is noticed where it was sent for."""
        array_module("cuda").cuda.get_current_stream().synchronize()


def nccl_of(config, world):
    """The Nccl of these ranks where the flags and the machine want one, else None. Raises UserError where the flags
    want one that cannot be."""
    if config.device == "cpu" or world.size == 1 or config.gpu_sum == "host":
        return None
    if config.wire != "float32":  # that is packed on the host
        return None
    if all(world.all_gather_object(_have_nccl(world.host_size), "who has NCCL")):
        return Nccl(world.rank, world.size, world.broadcast_object)
    if config.gpu_sum == "nccl":
        raise UserError("--gpu-sum nccl needs NCCL in CuPy and a GPU for every rank of a host; take --gpu-sum host")
    return None


def _have_nccl(host_size):
    return nccl_library() is not None and host_size <= array_module("cuda").cuda.runtime.getDeviceCount()
