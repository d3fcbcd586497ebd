"""Matrix products by CuPy's own `matmul`, where cuBLASLt cannot be loaded; and those that are sums of nothing.

CuPy 14 multiplies two matrices of any float dtype with sums in float32, but the result has the factors' dtype. Batches
of float16 it casts to float32, and batches of bfloat16 it refuses (CuPy's issue 10317); so where a wider result, a
factor or a batch is wanted, 16-bit operands are cast to float32 first: correct, and several times slower.
"""

import functools
import warnings


def multiply_by_cupy(xp, a, b, out, accumulate, bias, scale):
    """out = scale a b + bias, or out += scale a b + bias. Returns out."""
    if not a.shape[-1]:
        if not accumulate:
            out[...] = 0
        if bias is not None:
            out += bias
        return out
    _say_once()
    if a.dtype != xp.float32 and (a.ndim > 2 or b.ndim > 2 or scale != 1 or bias is not None or out.dtype != a.dtype):
        a, b = a.astype(xp.float32), b.astype(xp.float32)
    product = xp.matmul(a, b)
    if scale != 1:
        product *= xp.float32(scale)
    if bias is not None:
        product += bias.astype(product.dtype)
    if accumulate:
        product = product.astype(xp.float32) + out.astype(xp.float32)
    out[...] = product.astype(out.dtype)
    return out


@functools.cache
def _say_once():
    warnings.warn(
        "cuBLASLt cannot be loaded (libcublasLt.so.13 or .12, part of CUDA's cuBLAS): matrix products on the GPU run "
        "through CuPy, with extra passes. pip install nvidia-cublas, or use the extras cuda13 or cuda12",
        RuntimeWarning,
        stacklevel=2,
    )
