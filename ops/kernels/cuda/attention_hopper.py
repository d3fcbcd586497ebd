"""Attention by products of warpgroups: 16 bits, heads of up to 64 channels, no dropout; GPUs of compute capability 9.0
(H100, H200). The formulas, arguments and results are those of attention.py's other kernels; what changes, and why:

- A product is that of 4 warps, (64, 64) at once (wgmma): only so do the tensor cores of these GPUs reach full speed. It
  is asynchronous, and reads one or both operands from shared memory (warpgroup.cuh).
- Tiles are copied as before, by cp.async; rows of 128 bytes, swizzled as these products expect them.

(FlashAttention-3, Shah et al. 2024, has the same products; there tiles come by TMA, and warps of a block specialise.)

Counts for B = 64, nh = 12, T = 1024, hs = 64: forward has products of 103 GFLOP, dk and dv of 206, dq of 155, without
what the mask leaves out, of which a sixteenth is computed. Each of the three reads 0.9 GB from the L2 cache: the
rows of a head once for each 128 queries or keys. Per block, as NVRTC 13.0 compiles it for sm_90a (bfloat16):

              threads    registers    bytes of shared memory
    forward   256        110          66,560
    dk, dv    256        180          67,584
    dq        256        122          66,560

Before these kernels are used in a process, what they compute is compared with what the others compute, once for each
GPU and type. If it differs, or they do not compile, the others are used, and a warning says so.
What the comparison cannot mend: an access outside of memory ends CUDA's context, and with it the process, and products
that never end are waited for. Then --gpu-attention warps leaves these kernels out.
"""

import warnings

import numpy as np

from ops.kernels.cuda.attention_tiles import TENSOR_CORES, Block, Tiles, capability
from ops.kernels.cuda.attention_tiles import tiles_for as usual_tiles
from tinygrad2.context import Setting
from tinygrad2.gpu_library import gpu_library_in_use
from tinygrad2.precision import matmul_precision

_ALIGNMENT, _TILE = 1024, 64 * 128                                # bytes; a tile is (64, 64), an element has 2 bytes
HOPPER = Tiles(
    "attention_hopper",
    "attention_hopper",
    {
        "forward": Block(256, 128, _ALIGNMENT + 8 * _TILE),       # q: 2 tiles, k and v: 3 each
        "dkdv": Block(256, 128, _ALIGNMENT + 8 * _TILE + 1024),   # k, v, q, dout: 2 each; logsum and delta
        "dq": Block(256, 128, _ALIGNMENT + 8 * _TILE),            # q, dout, k, v: 2 each
    },
)
_SHAPE = (2, 200, 3, 2, 64)                                       # B, T, (q, k, v), nh, hs of the comparison
_TOLERANCE = {"bfloat16": 2.0**-6, "float16": 2.0**-9}            # of the largest value

_chosen = Setting("attention_path", "")
_right = {}                                                       # (GPU, type) -> are the results right?


def path(name):
    """A block in which attention runs by "warpgroups", or by "warps", wherever both can; "": as if there were none."""
    assert name in ("warpgroups", "warps", ""), name
    return _chosen.set(name)


def tiles_for(op, xp, dtype, hs, p, precision="highest"):
    """The kernels for heads of this size on this GPU. op: the class that launches them; p: of dropout; precision: of
    products of float32 numbers."""
    tiles = usual_tiles(xp, dtype, hs, p, precision)
    if tiles is TENSOR_CORES[64, False] and capability(xp) == 90:
        name = "warps" if gpu_library_in_use() == "warps" else _chosen.get()
        if name == "warpgroups" or (not name and _is_right(op, xp, dtype)):
            return HOPPER
    return tiles


def _is_right(op, xp, dtype):
    key = xp.cuda.runtime.getDevice(), np.dtype(dtype).name
    if key not in _right:
        if xp.cuda.get_current_stream().is_capturing():           # it cannot wait for results: the next call will
            return False
        reason = _fault(op, xp, *key)
        _right[key] = not reason
        if reason:
            text = f"attention in {key[1]} on GPU {key[0]} runs without products of warpgroups: {reason}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    return _right[key]


def _fault(op, xp, device, dtype):
    """What is wrong with these kernels, in a few words; "" if nothing is."""
    try:
        results = [_computed(op, xp, dtype, name) for name in ("warps", "warpgroups")]
    except Exception as error:                                    # of the compiler, or of a launch
        return str(error).strip().partition("\n")[0] or type(error).__name__
    for what, right, other in zip(("out", "dq", "dk", "dv"), *results):
        off = np.abs(other - right).max() / np.abs(right).max()
        if not off <= _TOLERANCE[dtype]:
            return f"their {what} differs by {off:.1e} from that of the other kernels"
    return ""


def _computed(op, xp, dtype, name):
    """out, dq, dk, dv of a small problem, float32 on the host."""
    values = np.random.default_rng(0).standard_normal(_SHAPE, np.float32)
    with path(name), matmul_precision(dtype):
        node = op(xp, [True] * 3)
        q, k, v = xp.asarray(values).transpose(2, 0, 3, 1, 4)
        out = node.forward(q, k, v)
        results = [out, *node.backward(out)]
    return [result.astype(np.float32).get() for result in results]
