"""A side of the part `kernels` of benchmarks.gpu: ours, torch; for attention ours-cudnn and torch-BACKEND."""

import contextlib
import math

from benchmarks.gpu_kernels import cases
from benchmarks.gpu_settings import PRECISIONS, torch_device
from benchmarks.gpu_timer import LEAD, CupyTimer, TorchTimer

TIMES = 20
DRAWN = 1_000_003  # random numbers
ROTATING = 256 << 20  # bytes of the sets of inputs together, at least: several times an L2 cache


def kernels(name, config):
    """A function that answers requests (case, products): {"forward": milliseconds, "backward": ...}."""
    table, tiny = cases(**config["sizes"]), config["tiny"]
    is_ours = name.startswith("ours")
    timer = (CupyTimer if is_ours else TorchTimer)(1024 if tiny else LEAD)

    def handle(case, products):
        chosen = table[case]
        sets = 2 if tiny else max(2, min(8, math.ceil(ROTATING / chosen.moved("forward", products))))
        make = our_case if is_ours else torch_case
        forward, backward, version = make(chosen, products, sets, name)
        times, i = 2 if tiny else TIMES, 0

        def run_forward():
            nonlocal i
            i = (i + 1) % sets
            forward(i)

        works = dict(forward=run_forward)
        if chosen.backward:
            works["backward"] = lambda: backward(i)
        ms = timer.measure(list(works.values()), times)
        return dict(ms=dict(zip(works, ms)), version=version)

    return handle


def draw(case, tile):
    """{name: values of the inputs of a case}. tile(values, n) makes n elements on the device of a NumPy array.

    A million random numbers are repeated: to draw all of them would take longer than what is measured.
    """
    import numpy as np

    rng, arrays = np.random.default_rng(0), {}
    normal = rng.standard_normal(DRAWN, dtype=np.float32)
    for name in case.inputs():
        shape, kind = case.shape(name)
        if kind == "i":
            values = rng.integers(0, case.shape("weight")[0][0], DRAWN)
        elif case.op == "adam_update" and name == "v":
            values = np.abs(normal)                               # it has a root
        else:
            values = normal * np.float32(0.02 if name.startswith("w") else 1)
        arrays[name] = tile(values, math.prod(shape)).reshape(shape)
    return arrays


# -- ours --------------------------------------------------------------------------------------------------------------


def our_case(case, products, sets, name):
    """(forward(i), backward(i), which version runs: the name of a kernel, or "reference")."""
    import cupy

    import ops  # noqa: F401
    from ops.kernels.cuda.attention_hopper import path, tiles_for
    from tinygrad2.deferred import DeferredGradient
    from tinygrad2.dispatch import OPS, choose, fast_version
    from tinygrad2.gpu_library import gpu_library
    from tinygrad2.halves import half_dtype
    from tinygrad2.optim import adam_update, grad_norm
    from tinygrad2.precision import matmul_precision

    cupy.get_default_memory_pool().free_all_blocks()
    half = half_dtype(products) if products in ("bfloat16", "float16") else None

    def tile(values, n):
        return cupy.tile(cupy.asarray(values), -(-n // len(values)))[:n]

    arrays = []
    for _ in range(sets):
        drawn = {key: array.astype(half) if half and case.shape(key)[1] == "T" else array
                 for key, array in draw(case, tile).items()}  # fmt: skip
        arrays.append(list(drawn.values()))
    if case.op == "adam_update":
        copies = [None if half is None else cupy.empty(arrays[0][0].shape, half) for _ in range(sets)]
        kernel = fast_version("adam_update", cupy, *arrays[0])
        return lambda i: adam_update(*arrays[i], 0.9, 10, 1e-4, 0.9, 0.95, 1e-8, 0.1, copies[i]), None, named(kernel)
    if case.op == "grad_norm":
        return lambda i: grad_norm(*arrays[i]), None, named(fast_version("block_square_sums", cupy, *arrays[0]))
    precision = PRECISIONS[products]
    with matmul_precision(precision), gpu_library("cudnn" if name == "ours-cudnn" else None):
        op = OPS[case.op]
        version = choose(op, cupy, arrays[0])
    needs = [case.shape(key)[1] != "i" for key in case.inputs()]
    buffers = [cupy.zeros(array.shape, dtype=cupy.float32) for array in arrays[0]]
    state = {}

    def forward(i):
        state["node"] = None                                      # frees what the last one has kept
        with matmul_precision(precision), path(case.path):
            state["node"] = version(cupy, needs)
            out = state["node"].forward(*arrays[i], **case.options)
        if "dout" not in state:
            state["dout"] = tuple(map(cupy.ones_like, out)) if isinstance(out, tuple) else cupy.ones_like(out)

    def backward(i):
        with matmul_precision(precision), path(case.path):
            for buffer, gradient in zip(buffers, state["node"].backward(state["dout"])):
                if isinstance(gradient, DeferredGradient):
                    gradient.write_to(buffer, accumulate=True)    # as in a training

    label = named(None if version is op else version)
    if label == "AttentionCUDA":
        with path(case.path):
            q = arrays[0][0]
            label += f", {tiles_for(version, cupy, q.dtype, q.shape[-1], 0, precision).file}.cu"
    return forward, backward, label


def named(kernel):
    return kernel.__name__ if kernel else "reference"


# -- PyTorch's ---------------------------------------------------------------------------------------------------------


def torch_case(case, products, sets, name):
    """The same by PyTorch's ops. In 16 bits weights of products have 16 bits already, which autocast would cast."""
    import torch

    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    device, half = torch_device(), dict(bfloat16=torch.bfloat16, float16=torch.float16).get(products, torch.float32)
    of_products = case.op in ("linear", "mlp", "linear_cross_entropy")
    inputs = []

    def tile(values, n):
        return torch.from_numpy(values).to(device).repeat(-(-n // len(values)))[:n]

    for _ in range(sets):
        tensors = draw(case, tile)
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                narrow = case.shape(key)[1] == "T" or of_products
                tensor = tensor.to(half if narrow else tensor.dtype)
                tensors[key] = tensor.requires_grad_(bool(case.backward))
        inputs.append(tensors)
    if case.op == "adam_update":
        return torch_adam(inputs), None, "AdamW(fused=True)"
    function, state = torch_function(case, half), {}

    @contextlib.contextmanager
    def backend():
        chosen = name.partition("-")[2]
        if not chosen:
            yield
            return
        from torch.nn.attention import SDPBackend, sdpa_kernel

        names = dict(cudnn="CUDNN_ATTENTION", flash="FLASH_ATTENTION", efficient="EFFICIENT_ATTENTION")
        with sdpa_kernel(getattr(SDPBackend, names[chosen])):
            yield

    def forward(i):
        state["outs"] = None
        with backend():
            outs = function(**inputs[i])
        state["outs"] = outs if isinstance(outs, tuple) else (outs,)
        if "douts" not in state:
            state["douts"] = [torch.ones_like(out) for out in state["outs"]]

    def backward(i):
        wanted = [tensor for tensor in inputs[i].values() if tensor.requires_grad]
        torch.autograd.grad(state["outs"], wanted, state["douts"])

    return forward, backward, "torch"


def torch_function(case, half):
    import torch
    from torch.nn import functional as F

    def layernorm(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias).to(half)      # autocast's is float32, and then cast

    def add_layernorm(x, delta, weight, bias):
        total = x + delta
        return total, layernorm(total, weight, bias)

    def mlp(x, w1, b1, w2, b2):
        return torch.addmm(b2, F.gelu(torch.addmm(b1, x, w1), approximate="tanh"), w2)

    return dict(
        layernorm=layernorm, add_layernorm=add_layernorm, mlp=mlp,
        gelu=lambda x: F.gelu(x, approximate="tanh"),
        attention=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        dropout=lambda x: F.dropout(x, case.options["p"]),
        embedding=lambda weight, ids: F.embedding(ids, weight),
        linear=lambda x, weight, bias: torch.addmm(bias, x, weight),
        linear_cross_entropy=lambda x, weight, ids: F.cross_entropy((x @ weight.T).float(), ids),
        grad_norm=lambda g: torch.linalg.vector_norm(g),
        softmax=lambda x: torch.softmax(x, -1),
        add=lambda a, b: a + b,
        mul=lambda a, b: a * b,
        maximum=lambda a, b: torch.maximum(a, b),
        exp=lambda x: x.exp(),
        tanh=lambda x: x.tanh(),
    )[case.op]  # fmt: skip


def torch_adam(inputs):
    import torch

    steps = []
    for tensors in inputs:
        p = torch.nn.Parameter(tensors["p"])
        p.grad = tensors["g"]
        steps.append(torch.optim.AdamW([p], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True).step)
    return lambda i: steps[i]()
