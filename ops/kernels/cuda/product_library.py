"""Which library multiplies matrices on this GPU: for the user, and for what is kept about its algorithms."""

from ops.kernels.cuda import cublaslt
from tinygrad2.precision import MIXED


def describe(precision):
    """One line for the user: what multiplies matrices on a GPU in this precision."""
    how = "TF32" if precision in ("high", "medium") else precision if precision in MIXED else "float32"
    if cublaslt.load_library() is not None:
        major, minor = divmod(cublaslt.load_library().cublasLtGetVersion() // 100, 100)
        return f"{precision}: {how} through cuBLASLt {major}.{minor}"
    how = "float32" if how == "TF32" else how
    return f"{precision}: {how} through CuPy, with extra passes: cuBLASLt cannot be loaded (pip install nvidia-cublas)"


def chosen_for(xp):
    """What the choice of an algorithm is good for: the current GPU's name, and the versions of driver and library. None
    without cuBLASLt, which alone has a choice."""
    library, runtime = cublaslt.load_library(), xp.cuda.runtime
    if library is None:
        return None
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return {"gpu": name, "driver": runtime.driverGetVersion(), "cublaslt": library.cublasLtGetVersion()}
