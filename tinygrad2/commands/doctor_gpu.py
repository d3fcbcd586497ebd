"""python -m tinygrad2.commands.doctor_gpu NAME: a check of the GPU for the doctor, in its own process, since a broken
driver or library may crash or hang it.

    gpu          driver, CuPy and GPU fit together: a kernel is compiled and runs
    products     cuBLASLt is loaded, and multiplies
    dtypes       16-bit numbers: which can be used
    nccl         the library that adds gradients of several GPUs

Prints one line with its result. Exit codes are those of doctor_checks.py: with UNUSABLE the line is "reason; remedy".
"""

import os
import re
import shutil
import sys
import warnings
from importlib import metadata

from tinygrad2.commands.doctor_checks import NOT_INSTALLED, UNUSABLE
from tinygrad2.errors import UserError

PIP = f"{os.path.basename(sys.executable)} -m pip"
OLDEST = {13: 75, 12: 50}  # CUDA's major version -> the least compute capability for which it compiles (7.5)


class Unusable(Exception):
    """Why the GPU cannot be used, and the command that helps."""

    def __init__(self, reason, remedy):
        super().__init__(f"{reason}; {remedy}")


def extra(driver=0):
    """The command that installs CuPy and CUDA's libraries for a driver of this version; 0: not known."""
    return f'{PIP} install -e ".[cuda{12 if 0 < driver < 13000 else 13}]"'


def text_of(version):
    """13020 -> "13.2"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def first_line(error):
    """Of an error's text, with what CuPy puts in a frame: the line behind "Original error"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =-")]
    behind = [i + 1 for i, line in enumerate(lines) if line.startswith("Original error")]
    return lines[behind[0] if behind and behind[0] < len(lines) else 0] if lines else type(error).__name__


# -- the checks --------------------------------------------------------------------------------------------------------


def gpu():
    """Driver, CuPy, libraries and GPU. Prints what they are. Raises Unusable, or ArithmeticError for wrong values."""
    cupy = import_cupy()
    driver, wheel = require_gpu(cupy)
    number = int(cupy.cuda.Device().compute_capability)
    require_libraries(cupy, driver, wheel, number)
    require_kernel(cupy)
    about = cupy.cuda.runtime.getDeviceProperties(0)
    free, total = cupy.cuda.runtime.memGetInfo()
    count = cupy.cuda.runtime.getDeviceCount()
    several = f"{count} GPUs, the first: " if count > 1 else ""
    print(f"{several}{about['name'].decode()}, compute capability {number // 10}.{number % 10}, {total / 1e9:.0f} GB "
          f"({free / 1e9:.0f} free); driver for CUDA {text_of(driver)}, CuPy {cupy.__version__} with CUDA "
          f"{text_of(wheel)}; a kernel and a matrix product have the right values")  # fmt: skip
    return 0


def import_cupy():
    """CuPy. Raises Unusable where several packages of it are installed, or the one there is cannot be imported."""
    names = {name.lower() for d in metadata.distributions() if (name := d.metadata["Name"])}
    found = sorted(name for name in names if re.fullmatch(r"cupy(-cuda\w+|-rocm.*)?", name))
    if len(found) > 1:
        both = " ".join(found)
        raise Unusable(f"{' and '.join(found)} are installed and overwrite each other",
                       f"{PIP} uninstall -y {both} && {extra()}")  # fmt: skip
    try:
        import cupy
    except ImportError as error:
        raise Unusable(f"CuPy cannot be imported: {first_line(error)}", f"{extra()} --force-reinstall") from error
    return cupy


def require_gpu(cupy):
    """(version of CUDA of the driver, of CuPy). Raises Unusable if CuPy finds no GPU."""
    runtime, error = cupy.cuda.runtime, ""
    driver, wheel = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    try:
        if runtime.getDeviceCount():
            return driver, wheel
    except RuntimeError as found:
        error = first_line(found)
    if not driver:
        see = "nvidia-smi" if shutil.which("nvidia-smi") else "docker run --gpus all ..."
        raise Unusable("this machine, or this container, has no NVIDIA driver", see)
    if "InsufficientDriver" in error or driver // 1000 < wheel // 1000:
        problem = f"the driver is for CUDA {text_of(driver)}, this CuPy for CUDA {text_of(wheel)}"
        if driver < 12000:
            raise Unusable(f"{problem}: it is too old", "nvidia-smi")
        raise Unusable(problem, f"{PIP} uninstall -y cupy-cuda{wheel // 1000}x && {extra(driver)}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        raise Unusable(f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU", "unset CUDA_VISIBLE_DEVICES")
    raise Unusable(f"the driver finds no GPU{f' ({error})' if error else ''}", "nvidia-smi -L")


def require_libraries(cupy, driver, wheel, number):
    """Raises Unusable where a library is missing, or has no compiler for this GPU."""
    least = OLDEST.get(wheel // 1000, 0)
    if number < least:
        old = f"CUDA {wheel // 1000} does not compile for compute capability {number // 10}.{number % 10}"
        raise Unusable(old, f"{PIP} uninstall -y cupy-cuda{wheel // 1000}x && {extra(12000)}")
    for name, load in (("NVRTC", lambda: cupy.cuda.nvrtc.getVersion()), ("cuBLAS", lambda: cupy.cuda.cublas)):
        try:
            load()
        except (ImportError, RuntimeError) as error:
            reason = f"CUDA's library {name} is missing ({first_line(error)})"
            raise Unusable(reason, extra(12000 if wheel < 13000 else 0)) from error


def require_kernel(cupy):
    """A kernel is compiled and runs, and CuPy multiplies; else ArithmeticError."""
    import numpy as np

    source = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }'
    x = cupy.arange(32, dtype=cupy.float32)
    cupy.RawModule(code=source).get_function("twice")((1,), (32,), (x,))
    if not np.array_equal(x.get(), 2 * np.arange(32)):
        raise ArithmeticError("a kernel computed wrong values")
    a = x.reshape(4, 8)
    if not np.array_equal((a @ a.T).get(), a.get() @ a.get().T):  # integers: exact in any order
        raise ArithmeticError("a matrix product has wrong values")


def products():
    """cuBLASLt multiplies small matrices. Prints its version. Raises Unusable, or ArithmeticError."""
    from ops.kernels.cuda import cublaslt
    from ops.kernels.cuda.products import gemm
    from tinygrad2.backend import array_module

    xp = array_module("cuda")
    wheel = xp.cuda.runtime.runtimeGetVersion()
    if cublaslt.load_library() is None:
        reason = "cuBLASLt cannot be loaded: products run through CuPy, slower"
        raise Unusable(reason, extra(12000 if wheel < 13000 else 0))
    a = xp.arange(128 * 64, dtype=xp.float32).reshape(128, 64) % 7                # integers, exact also in 16 bits
    b = xp.arange(64 * 32, dtype=xp.float32).reshape(64, 32) % 5
    expected = a.get() @ b.get()
    for dtype in ("float32", "float16"):
        got = gemm(a.astype(dtype), b.astype(dtype), dtype=xp.float32)
        if not (got.get() == expected).all():
            raise ArithmeticError(f"a product of {dtype} has wrong values")
    version = cublaslt.load_library().cublasLtGetVersion()                              # 130101 is 13.1.1
    print(f"cuBLASLt {version // 10000}.{version // 100 % 100}.{version % 100}")
    return 0


def dtypes():
    """Which --dtype the GPU and the libraries have. Raises Unusable where a library is missing."""
    from tinygrad2.backend import array_module
    from tinygrad2.halves import check_dtype

    xp = array_module("cuda")
    try:
        line = check_dtype(xp, "bfloat16")
    except UserError as error:
        if "ml_dtypes" not in str(error):
            print(f"float32, float16; {error}")
            return 0
        raise Unusable("ml_dtypes is missing: --dtype bfloat16 cannot be used, float16 and float32 can",
                       f"{PIP} install ml_dtypes") from None  # fmt: skip
    print(f"float32, float16, bfloat16: {line}")
    return 0


def nccl():
    """NCCL's version, if it is there. Returns NOT_INSTALLED if it is not."""
    from tinygrad2.backend import nccl_library

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                           # CuPy's, of many lines
        library = nccl_library()
    if library is None:
        print("NCCL is not installed: gradients of several GPUs are added on the host")
        return NOT_INSTALLED
    print(f"NCCL {library.get_version()}")
    return 0


CHECKS = {"gpu": gpu, "products": products, "dtypes": dtypes, "nccl": nccl}


def main(name):
    try:
        return CHECKS[name]()
    except Unusable as error:
        print(error)
        return UNUSABLE
    except UserError as error:
        print(f"{error}; nvidia-smi")
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
