"""NVIDIA's library cuDNN, through its front end: the module `cudnn` of the package nvidia-cudnn-frontend, which finds
the library itself (libcudnn.so.9, of nvidia-cudnn-cu13 or -cu12). Both are optional.
"""

import functools
import threading

from tinygrad2.errors import UserError

OLDEST = 91600  # 9.16.0; one before 9.15.1 copies lengths from the host in each call where T is no multiple of 128
INSTALL = 'pip install -e ".[cudnn]" (".[cudnn12]" for CUDA 12)'

_here = threading.local()


@functools.cache
def load_library():
    """The front end. Raises UserError, with the remedy, where it or the library behind it cannot be used."""
    try:
        import cudnn

        version = cudnn.backend_version()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        unusable = f"--gpu-attention cudnn: cuDNN cannot be used ({reason})"
        raise UserError(f"{unusable}: {INSTALL}, or use --gpu-attention own") from error
    if version < OLDEST:
        raise UserError(f"--gpu-attention cudnn: cuDNN {text_of(version)} is too old, {text_of(OLDEST)} is needed: "
                        f"{INSTALL}, or use --gpu-attention own")  # fmt: skip
    return cudnn


def text_of(version):
    """91900 -> "9.19.0"."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def handle(device):
    """This thread's handle for the current device, whose number is `device`."""
    handles = vars(_here).setdefault("handles", {})
    if device not in handles:
        handles[device] = load_library().create_handle()
    return handles[device]
