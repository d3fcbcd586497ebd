"""What enters the products of an op, and the gradients that leave them, for the kernels of linear, mlp and matmul.

In mixed precision all factors have 16 bits. An activation arrives like that, or is cast; a weight is float32, and its
16-bit copy is shared by all who multiply by it until it is written to (tinygrad2/halves.py).
"""

from ops.kernels.cuda.cublaslt_problem import float_name
from ops.kernels.cuda.products import gemm
from tinygrad2.backend import xp_of
from tinygrad2.deferred import DeferredGradient
from tinygrad2.halves import half_of
from tinygrad2.precision import MIXED, precision


def can_be_factors(*arrays):
    """Are these float32 or, in mixed precision, of its 16-bit dtype? None is no array, and does not matter."""
    here = precision()
    names = ("float32", here) if here in MIXED else ("float32",)
    return all(array is None or float_name(array.dtype) in names for array in arrays)


def weight_as(weight, dtype):
    """A weight, or a bias, in the dtype of factors."""
    return weight if weight.dtype == dtype else half_of(weight, dtype)


def bias_as(bias, dtype):
    """A bias (N,) in the dtype of factors, contiguous, as products want it; None as it is."""
    return None if bias is None else xp_of(bias).ascontiguousarray(weight_as(bias, dtype))


def weight_gradient(op, rows, drows, dtype):
    """rowsT drows for rows (N, I), drows (N, O): a DeferredGradient (I, O), added in float32 to where it belongs."""

    def write_to(out, accumulate):
        gemm(rows.T, drows, out, accumulate, precision=op.precision)

    return DeferredGradient(op.xp, (rows.shape[1], drows.shape[1]), dtype, write_to)
