"""The kernels are registered here, those for the CPU where Numba can be imported; and the lines that tell the user what
will compute.
"""

from ops.kernels.cuda import product_library
from ops.kernels.cuda.attention_cudnn import describe_attention, refuse_attention  # noqa: F401
from tinygrad2.missing_kernels import watch_missing_kernels
from tinygrad2.system.installation import adapt_hint

_no_kernels: tuple[str, ...] = ()  # why the compiled kernels are not used, and what to do about it
try:
    import ops.kernels.cpu  # noqa: F401
    from ops.kernels.cpu.kernel_cache import announce_compiling
except ModuleNotFoundError as error:
    _no_kernels = f"{error.name} is missing", 'pip install -e ".[fast]"'
except ImportError as error:
    _no_kernels = str(error), getattr(error, "remedy", "pip install -U numba llvmlite")
if _no_kernels:

    def announce_compiling(log):
        """Nothing is compiled here."""


def have_cpu_kernels():
    """Can the compiled kernels be used?"""
    return not _no_kernels


def why_no_cpu_kernels():
    """(reason, remedy) where the compiled kernels cannot be used, else ()."""
    return _no_kernels


def runs_reference(mode, device="cpu"):
    """Does `--kernels MODE` run the reference implementations on this device?"""
    return mode == "reference" or (device == "cpu" and not have_cpu_kernels())


def must_compile(mode, precision="highest", device="cpu"):
    """Which kernels will be compiled before `--kernels MODE` can run on the CPU, as in the first run on a machine: 0,
    none; 1, those of the ops; 2, also those that multiply matrices, where BLAS does not in this precision. On a GPU, 0:
    that takes no memory worth counting."""
    if device != "cpu" or runs_reference(mode):
        return 0
    from ops.kernels.cpu.kernel_cache import is_compiled

    if is_compiled():
        return 0
    from ops.kernels.cpu.products import uses_gemm_kernels

    return 2 if uses_gemm_kernels(precision) else 1


def announce_missing_kernels(log):
    """From now on `log` gets one line for each op that computes on a GPU without a kernel of its own."""
    watch_missing_kernels(
        lambda name, exists: log(
            f"kernels   {name}: {'its kernel does not take these arrays' if exists else 'it has no kernel'} on this "
            "device, so the reference implementation runs: one launch per operator"
        )
    )


def describe_kernels(device, mode):
    """One line for the user: what computes on this device."""
    if mode == "reference":
        return "none (--kernels reference): NumPy and the reference implementations in ops/"
    if device != "cpu":
        return "CUDA C++ of ops/kernels/cuda, compiled when they are needed first"
    if _no_kernels:
        reason, remedy = _no_kernels
        return adapt_hint(f"none, because {reason}: {remedy} makes training about twice as fast")
    return "compiled loops of ops/kernels/cpu"


def describe_products(device, mode, precision):
    """One line for the user: what multiplies matrices on this device in this precision (tinygrad2/precision.py)."""
    library = "NumPy" if device == "cpu" else "CuPy"
    if mode == "reference" and precision != "highest":
        return f"{precision}: emulated, slowly, by {library} (--kernels reference)"
    if device != "cpu" and mode != "reference":
        return product_library.describe(precision)
    if runs_reference(mode):
        missing = " (no kernels for it here)" * (precision != "highest")
        return f"{precision}: {'operands rounded, ' * (precision == 'bfloat16')}float32 through {library}{missing}"
    from ops.kernels.cpu.products import describe

    return describe(precision)


def products_chosen_for(xp, mode):
    """What measured choices of algorithms for products are good for: GPU, driver and library in a dict; None where
    there is nothing to choose."""
    return None if xp.__name__ == "numpy" or mode == "reference" else product_library.chosen_for(xp)
