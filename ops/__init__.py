"""The operations a GPT is made of: one module each, with its formula, the derivation of its gradient, and the code.

Importing the package defines them all (they enter the registry OPS of tinygrad2/dispatch.py) and exports each as a
function of Tensors: `ops.softmax(x)`, `ops.layernorm(x, weight, bias)`.
"""

import ops.kernels.cuda  # noqa: F401
from ops.abs import abs
from ops.add import add
from ops.add_layernorm import add_layernorm
from ops.all import all
from ops.any import any
from ops.argmax import argmax
from ops.argmin import argmin
from ops.attention import attention
from ops.cast import cast
from ops.clip import clip
from ops.clone import clone
from ops.compare import compare
from ops.concatenate import concatenate
from ops.cos import cos
from ops.cross_entropy import cross_entropy
from ops.cumsum import cumsum
from ops.div import div
from ops.dropout import dropout
from ops.embedding import embedding
from ops.exp import exp
from ops.expand import expand
from ops.gelu import gelu
from ops.gelu_erf import gelu_erf
from ops.index import index
from ops.layernorm import layernorm
from ops.linear import linear
from ops.linear_bfloat16 import linear_bfloat16
from ops.linear_cross_entropy import linear_cross_entropy
from ops.linear_int8 import linear_int8
from ops.log import log
from ops.log_softmax import log_softmax
from ops.logical import logical
from ops.matmul import matmul
from ops.max import max
from ops.maximum import maximum
from ops.mean import mean
from ops.merge_heads import merge_heads
from ops.min import min
from ops.minimum import minimum
from ops.mlp import mlp
from ops.mul import mul
from ops.neg import neg
from ops.pow import pow
from ops.relu import relu
from ops.reshape import reshape
from ops.sigmoid import sigmoid
from ops.sin import sin
from ops.softmax import softmax
from ops.split import split
from ops.split_heads import split_heads
from ops.sqrt import sqrt
from ops.stack import stack
from ops.std import std
from ops.sub import sub
from ops.sum import sum
from ops.tanh import tanh
from ops.transpose import transpose
from ops.var import var
from ops.where import masked_fill, where
from tinygrad2.missing import missing_op
from tinygrad2.system.installation import adapt_hint

__all__ = [
    "abs", "add", "add_layernorm", "all", "any", "argmax", "argmin", "attention", "cast", "clip", "clone",
    "compare", "concatenate", "cos", "cross_entropy", "cumsum", "div", "dropout", "embedding", "exp", "expand",
    "gelu", "gelu_erf", "index", "layernorm", "linear", "linear_bfloat16", "linear_cross_entropy", "linear_int8", "log",
    "log_softmax", "logical", "masked_fill", "matmul", "max", "maximum", "mean", "merge_heads", "min", "minimum", "mlp",
    "mul", "neg", "pow", "relu", "reshape", "sigmoid", "sin", "softmax", "split", "split_heads", "sqrt", "stack", "std",
    "sub", "sum", "tanh", "transpose", "var", "where",
]  # fmt: skip


def __getattr__(name):
    """Called for names that are no op: `ops.cat`."""
    raise missing_op(name)


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


def runs_reference(mode):
    """Does `--kernels MODE` run the reference implementations on the CPU?"""
    return mode == "reference" or not have_cpu_kernels()


def must_compile(mode, precision="highest"):
    """Which kernels will be compiled before `--kernels MODE` can run on the CPU, as in the first run on a machine: 0,
    none; 1, those of the ops; 2, also those that multiply matrices, where BLAS does not in this precision."""
    if runs_reference(mode):
        return 0
    from ops.kernels.cpu.kernel_cache import is_compiled

    if is_compiled():
        return 0
    from ops.kernels.cpu.products import uses_gemm_kernels

    return 2 if uses_gemm_kernels(precision) else 1


def describe_kernels(device, mode):
    """One line for the user: what computes on this device."""
    if mode == "reference":
        return "none (--kernels reference): NumPy and the reference implementations in ops/"
    if device == "cpu" and _no_kernels:
        reason, remedy = _no_kernels
        return adapt_hint(f"none, because {reason}: {remedy} makes training about twice as fast")
    if device == "cpu":
        return "compiled loops of ops/kernels/cpu"
    return "none yet for this device: the reference implementations in ops/"


def describe_products(device, mode, precision):
    """One line for the user: what multiplies matrices on this device in this precision (tinygrad2/precision.py)."""
    library = "NumPy" if device == "cpu" else "CuPy"
    if mode == "reference" and precision != "highest":
        return f"{precision}: emulated, slowly, by {library} (--kernels reference)"
    if device != "cpu" or runs_reference(mode):
        missing = " (no kernels for it here)" * (precision != "highest")
        return f"{precision}: {'operands rounded, ' * (precision == 'bfloat16')}float32 through {library}{missing}"
    from ops.kernels.cpu.products import describe

    return describe(precision)
