"""Matrix products on a GPU: by cuBLASLt, and by CuPy where that library cannot be loaded.

    factors             precision            product                             sums
    float32             highest              float32                             float32
    float32             high, medium         TF32: 11 significant bits           float32
    bfloat16, float16   any                  of 16-bit numbers                   float32

Against CuPy's own product: a result of 16-bit factors can be float32, and can be added to what is there (a weight's
gradient); a bias costs no pass of its own; batches of 16-bit matrices are multiplied as such, where CuPy 14 casts
float16 to float32 and refuses bfloat16; transposed views and rows with a distance are read in place, also in batches.
"""

import math

import numpy as np

from ops.kernels.cuda import cublaslt
from ops.kernels.cuda.aligned_parts import cut, where_to_cut
from ops.kernels.cuda.cublaslt_plan import WORKSPACE, plan
from ops.kernels.cuda.cublaslt_problem import Problem, check_operands, epilogue_of, largest_alignment, matrix_of
from ops.kernels.cuda.cupy_products import multiply_by_cupy
from ops.kernels.cuda.tuning import choose_algorithm, measures_now
from tinygrad2.backend import xp_of
from tinygrad2.gpu.choices import choices

_workspaces: dict = {}  # (device, stream) -> memory that products on it may use


def gemm(a, b, out=None, accumulate=False, bias=None, dtype=None, precision="highest", scale=1.0, gelu="", aux=None):
    """out = scale a b + bias, or out += scale a b + bias: (M, K), (K, N), (M, N). Returns out.

    a, b        of one dtype, float32, float16 or bfloat16; rows or columns contiguous, else they are copied
    out         of that dtype, or float32; None: a new array of `dtype`, by default that of a
    bias        contiguous (N,), of out's dtype
    gelu, aux   "forward": out = gelu(h), and h = scale a b + bias is written to aux, (M, N) of out's dtype; "backward":
                out = scale a b gelu'(aux), no bias. GELU's tanh form. aux has contiguous rows, a multiple of 8 apart

    Raises TypeError or ValueError for operands that do not fit, CublasError if the library refuses.
    """
    xp = xp_of(a)
    (M, K), (inner, N) = a.shape, b.shape
    out = xp.empty((M, N), dtype=dtype or a.dtype) if out is None else out
    check_operands(a, b, out, bias, K == inner and out.shape == (M, N))
    if not out.size:
        return out
    epilogue = epilogue_of(bias, gelu, aux, out)
    if not K or cublaslt.load_library() is None:
        if gelu:
            raise ValueError("gelu in a product needs cuBLASLt, and K > 0")
        return multiply_by_cupy(xp, a, b, out, accumulate, bias, scale)
    _multiply(xp, a, b, out, accumulate, bias, precision, scale, epilogue, aux)
    return out


def batched_gemm(a, b, out=None, accumulate=False, dtype=None, precision="highest", scale=1.0):
    """The same for batches: (..., M, K), (..., K, N), (..., M, N), whose leading axes broadcast. Returns out.

    A batch is read in place if its matrices are equally far apart; else an operand is copied.
    """
    xp = xp_of(a)
    if b.ndim == 2 and a.ndim > 2 and (out is None or out.flags.c_contiguous):
        rows = a.reshape(-1, a.shape[-1])                         # one large product
        flat = None if out is None else out.reshape(-1, out.shape[-1])
        flat = gemm(rows, b, flat, accumulate, None, dtype, precision, scale)
        return flat.reshape(*a.shape[:-1], b.shape[1]) if out is None else out
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    M, K, N = *a.shape[-2:], b.shape[-1]
    out = xp.empty((*batch, M, N), dtype=dtype or a.dtype) if out is None else out
    check_operands(a, b, out, None, K == b.shape[-2] and out.shape == (*batch, M, N))
    if not out.size:
        return out
    if not K or cublaslt.load_library() is None:
        return multiply_by_cupy(xp, a, b, out, accumulate, None, scale)
    a, b = (_stack(xp.broadcast_to(x, (*batch, *x.shape[-2:]))) for x in (a, b))
    stack = _stack(out)
    _multiply(xp, a, b, stack, accumulate, None, precision, scale)
    if stack.data.ptr != out.data.ptr:                            # a copy
        out[...] = stack.reshape(out.shape)
    return out


def _multiply(xp, a, b, out, accumulate, bias, precision, scale, epilogue="DEFAULT", aux=None):
    """The product by cuBLASLt, of matrices or of three-dimensional batches of one length; nothing is empty."""
    result = matrix_of(out)
    if result is not None and result.transposed and epilogue == "DEFAULT":
        a, b, out = b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2)
        result = matrix_of(out)                                   # outT = bT aT
    if result is None or result.transposed:
        product = xp.empty(out.shape, dtype=out.dtype)
        _multiply(xp, a, b, product, False, bias, precision, scale, epilogue, aux)
        out[...] = out + product if accumulate else product
        return
    left, right = matrix_of(a), matrix_of(b)
    if left is None:
        a = xp.ascontiguousarray(a)
        left = matrix_of(a)
    if right is None:
        b = xp.ascontiguousarray(b)
        right = matrix_of(b)
    place = where_to_cut(left, right, result) if out.ndim == 2 and aux is None else None
    if place:
        for *part, part_bias in cut(a, b, out, accumulate, bias, *place):
            part_epilogue = "DEFAULT" if part_bias is None else "BIAS"
            _multiply(xp, *part, part_bias, precision, scale, part_epilogue)
        return
    device, stream = xp.cuda.runtime.getDevice(), xp.cuda.get_current_stream().ptr
    problem = Problem(
        left, right, result,
        batch=out.shape[0] if out.ndim > 2 else 1,
        compute="32F_FAST_TF32" if precision in ("high", "medium") and left.dtype == "float32" else "32F",
        epilogue=epilogue,
        bias=0 if bias is None else largest_alignment(bias.data.ptr),
        aux=0 if aux is None else largest_alignment(aux.data.ptr),
        aux_distance=0 if aux is None else matrix_of(aux).distance,
        device=device,
    )  # fmt: skip
    chosen = plan(problem, choices())
    later = None                                                  # a bias that the library cannot add itself
    if chosen.algorithm is None and epilogue == "BIAS":
        problem = problem._replace(epilogue="DEFAULT", bias=0)
        chosen, bias, later = plan(problem, choices()), None, bias
    if chosen.algorithm is None:
        raise cublaslt.CublasError(f"cuBLASLt has no algorithm for {problem}")
    addresses = [0 if x is None else x.data.ptr for x in (a, b, out, bias, aux)]
    how = scale, float(accumulate), _workspace(xp, device, stream).data.ptr, stream
    if not chosen.is_measured and measures_now(xp, problem.multiplications):
        choose_algorithm(xp, chosen, addresses, *how)
    chosen.run(*addresses, *how)
    if later is not None:
        out += later


def _stack(x):
    """x (..., R, C) as (n, R, C): a view if the matrices are equally far apart, else a copy."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _workspace(xp, device, stream):
    """Memory for the parts of sums, which products on one stream use in turn."""
    workspace = _workspaces.get((device, stream))
    if workspace is None:                                         # of two threads, both get the first one's
        workspace = _workspaces.setdefault((device, stream), xp.empty(WORKSPACE, dtype=xp.uint8))
    return workspace
