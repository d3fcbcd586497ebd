"""python -m tinygrad2.commands.doctor_kernels FAMILY: kernels of the GPU, compiled and run once for the doctor.

Attention by warpgroups is another path of the same op, of compute capability 9.0; other GPUs run their own once more.
Each op of the family runs forward and backward in float32 and in 16 bits, and is compared with its reference
implementation on the host in float64. Prints what differs; exit code 1. In its own process: a kernel that fails leaves
a GPU on which nothing works any more.
"""

import ast
import importlib.util
import sys

import numpy as np

from tinygrad2.backend import xp_of
from tinygrad2.bfloat16 import pack_bfloat16
from tinygrad2.errors import UserError
from tinygrad2.function import Function
from tinygrad2.halves import check_dtype, half_dtype, is_floating

FAMILIES = {  # name -> ops with the shapes of their inputs (see _draw), and options
    "layernorm": ("layernorm 5x72 72 72", "add_layernorm 5x72 5x72 72 72"),
    "gelu": ("gelu 33x40", "gelu_erf 33x40"),
    "attention": ("attention 2x3x70x64 2x3x70x64 2x3x70x64", "attention 2x3x70x64 2x3x70x64 2x3x70x64 p=0.2 key=3"),
    "tf32": ("attention 2x3x70x64 2x3x70x64 2x3x70x64",),  # float32 with TF32 products
    "cudnn": ("attention 2x3x128x64 2x3x128x64 2x3x128x64",),  # NVIDIA's library, if it is there
    "attention by warpgroups": ("attention 2x200x64 2x200x64 2x200x64", "attention 2x40x40 2x90x40 2x90x40"),
    "linear": ("linear 70x64 64x48 48", "mlp 70x64 64x128 128 128x64 64", "matmul 3x17x64 3x64x40"),
    "loss": ("linear_cross_entropy 33x64 104x64 ids/104x33", "cross_entropy 33x104 ids/104x33"),
    "embedding": ("embedding 50x64 ids/50x70",),
    "dropout": ("dropout 33x40 p=0.1 key=5",),
    "softmax": ("softmax 33x104", "log_softmax 33x104"),
    "add": ("add 33x40 33x40",),
    "heads": ("split_heads 2x9x192 n_head=4", "merge_heads 2x4x9x16"),
    "weights": ("linear_int8 3x64 int8/24x64 positive/24 24", "linear_bfloat16 3x64 bits/24x64 24"),
    "one operand": (
        "exp 33x40", "tanh 33x40", "sigmoid 33x40", "relu 33x40", "abs 33x40", "neg 33x40", "log positive/33x40",
        "sqrt positive/33x40",
    ),
    "two operands": (
        "sub 33x40 33x40", "mul 33x40 33x40", "div 33x40 positive/33x40", "maximum 33x40 33x40", "minimum 33x40 33x40",
    ),
    "adam": (),
}  # fmt: skip
SIXTEEN_BITS = {"add": (1,), "add_layernorm": (1,), "attention": (0, 1, 2), "matmul": (0, 1), "embedding": ()}
TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-6, "float16": 2.0**-9}  # of the largest exact value
_TF32 = 2.0**-9
_PRECISIONS = {"float32": "highest", "tf32": "high"}  # of products


def kernel_families():
    """The names of the families of which a kernel exists."""
    import ops  # noqa: F401
    from tinygrad2.dispatch import KERNELS

    names = {name for name, library in KERNELS if library == "cupy"}
    families = [family for family in FAMILIES if not FAMILIES[family] or names & set(ops_of(family))]
    if importlib.util.find_spec("cudnn") is None:                 # nvidia-cudnn-frontend
        families.remove("cudnn")
    return families


def ops_of(family):
    """The names of its ops."""
    return [case.split()[0] for case in FAMILIES[family]]


def check(family):
    """Lines about what differs; none if all is right."""
    import ops  # noqa: F401
    from ops.kernels.cuda.attention_hopper import path
    from tinygrad2.backend import array_module
    from tinygrad2.gpu_library import gpu_library

    xp = array_module("cuda")
    if family == "adam":
        return list(_adam(xp))
    dtypes = [dtype for dtype in TOLERANCE if _is_there(xp, dtype)]
    library = None
    if family == "cudnn":
        library, dtypes = family, dtypes[1:]                      # it takes 16 bits only
    elif family == "tf32":
        dtypes = ["tf32"]
    with gpu_library(library), path(family.partition(" by ")[2] or "warps"):   # the path is that of attention
        return [line for case in FAMILIES[family] for dtype in dtypes for line in _compare(xp, dtype, case)]


def _is_there(xp, dtype):
    """Has this GPU the dtype, and is its library installed?"""
    try:
        check_dtype(xp, dtype)
    except UserError:
        return False
    return True


def _compare(xp, dtype, case):
    """Lines: which results and gradients of an op differ from the reference by how much."""
    from tinygrad2.dispatch import OPS, choose
    from tinygrad2.precision import matmul_precision

    name, *words = case.split()
    arrays = _draw([word for word in words if "=" not in word])
    options = {key: ast.literal_eval(value) for key, _, value in (word.partition("=") for word in words) if value}
    if dtype not in _PRECISIONS:
        narrow = SIXTEEN_BITS.get(name, (0,))
        arrays = [a.astype(half_dtype(dtype)) if i in narrow else a for i, a in enumerate(arrays)]
    needs = [is_floating(a.dtype) for a in arrays]
    with matmul_precision(_PRECISIONS.get(dtype, dtype)):
        boxed = [xp.asarray(a) for a in arrays]
        kernel = choose(OPS[name], xp, boxed)
        if kernel is OPS[name]:                                   # there is none for these arrays
            return
        node = kernel(xp, needs)
        results = _several(node.forward(*boxed, **options))
        douts = [np.random.default_rng(1).standard_normal(r.shape).astype(r.dtype) for r in results]
        got = [_host(value) for value in [*results, *_gradients(node, map(xp.asarray, douts))]]
    node = OPS[name](np, needs)
    exact = _several(node.forward(*(a.astype(np.float64) if need else a for a, need in zip(arrays, needs)), **options))
    exact += _gradients(node, (d.astype(np.float64) for d in douts))
    for i, (values, expected) in enumerate(zip(got, map(_settled, exact), strict=True)):
        expected = np.asarray(expected)
        off = float(np.abs(values - expected).max() / np.abs(expected).max())
        if not off <= TOLERANCE.get(dtype, _TF32):
            what = f"result {i}" if i < len(results) else f"gradient {i - len(results)}"
            yield f"{name} in {dtype}: {what} differs from the reference implementation by {off:.1e}"


def _draw(words):
    """Arrays: "3x4" normal numbers of this shape; "ids/50x7" 7 integers below 50, "bits/3x4" bfloat16 as uint16."""
    rng = np.random.default_rng(0)
    return [_one(rng, kind, tuple(map(int, shape.split("x")))) for kind, _, shape in (w.rpartition("/") for w in words)]


def _one(rng, kind, shape):
    if kind == "ids":
        return rng.integers(0, shape[0], shape[1])
    if kind == "int8":
        return rng.integers(-127, 128, shape).astype(np.int8)
    if kind == "positive":
        return rng.random(shape, np.float32) + np.float32(0.5)
    values = rng.standard_normal(shape, np.float32)
    return pack_bfloat16(values) if kind == "bits" else values


def _gradients(node, douts):
    """Those of the inputs that need one; none of an op without backward."""
    if type(node).backward is Function.backward:
        return []
    douts = tuple(douts)
    gradients = node.backward(douts if len(douts) > 1 else douts[0])
    return [gradient for gradient, need in zip(gradients, node.needs_grad) if need]


def _several(results):
    return list(results) if isinstance(results, tuple) else [results]


def _settled(gradient):
    return gradient.copy() if hasattr(gradient, "write_to") else gradient


def _host(value):
    return _settled(value).get().astype(np.float64)


def _adam(xp):
    """The same for a step of Adam, one by numbers of the GPU, and the gradient norm."""
    from tinygrad2.gpu.step_numbers import adam_update_by_numbers, bias_corrections, decide_step
    from tinygrad2.optim import adam_update, grad_norm

    rng = np.random.default_rng(0)
    arrays = [rng.random(1000, np.float32) for _ in range(4)]
    boxed = [xp.asarray(a) for a in arrays]
    norms = [float(grad_norm(boxed[1])), float(grad_norm(arrays[1]))]
    for p, g, m, v in (boxed, arrays):
        xp = xp_of(p)                                             # of the GPU, and then NumPy
        adam_update(p, g, m, v, 0.5, 3, 1e-2, 0.9, 0.95, 1e-8, 0.1)
        numbers = xp.asarray(np.array([1e-2, 4, 1, 0, 0, 0, 0, 0], np.float32))
        decide_step(xp.asarray(np.array([3, 2], np.float32)), numbers, 1.0, 4, False)
        corrections = xp.asarray(bias_corrections((0.9, 0.95), 9))
        adam_update_by_numbers(p, g, m, v, numbers, corrections, 0, 0.9, 0.95, 1e-8, 0.1)
    for name, got, expected in zip(("weights", "gradient", "m", "v"), boxed, arrays):
        if not np.allclose(got.get(), expected, rtol=1e-5, atol=1e-6):
            yield f"adam: {name} differ from the reference implementation's"
    if abs(norms[0] / norms[1] - 1) > 1e-5:
        yield f"gradient norm: {norms[0]}, but {norms[1]} on the host"


if __name__ == "__main__":
    lines = check(sys.argv[1])
    print("\n".join(lines))
    sys.exit(1 if lines else 0)
