"""One side of benchmarks.ops, in its own process: python -m benchmarks.ops_side ours|reference|torch THREADS."""

import json
import sys
import time

from benchmarks.harness import answer_requests

# case -> (op, shapes of the inputs, options); most shapes are those of GPT-2 124M with 4 x 64 tokens
# or of the baby with 12 x 256. ("ids", V, N): N integers below V.
CASES = {
    "layernorm 256x768": ("layernorm", [(256, 768), (768,), (768,)], {}),
    "layernorm 3072x384": ("layernorm", [(3072, 384), (384,), (384,)], {}),
    "add_layernorm 3072x384": ("add_layernorm", [(3072, 384), (3072, 384), (384,), (384,)], {}),
    "gelu 256x3072": ("gelu", [(256, 3072)], {}),
    "gelu 3072x1536": ("gelu", [(3072, 1536)], {}),
    "gelu_erf 3072x1536": ("gelu_erf", [(3072, 1536)], {}),
    "softmax 3072x1024": ("softmax", [(3072, 1024)], {}),
    "dropout 3072x384": ("dropout", [(3072, 384)], dict(p=0.1, key=1)),
    "attention 4x12x64x64": ("attention", [(4, 12, 64, 64)] * 3, {}),
    "attention 12x6x256x64": ("attention", [(12, 6, 256, 64)] * 3, {}),
    "attention 1x12x1024x64": ("attention", [(1, 12, 1024, 64)] * 3, {}),
    "attention 16x8x128x16": ("attention", [(16, 8, 128, 16)] * 3, {}),
    "linear 256x768x2304": ("linear", [(256, 768), (768, 2304), (2304,)], {}),
    "linear 3072x384x1152": ("linear", [(3072, 384), (384, 1152), (1152,)], {}),
    "mlp 256x768": ("mlp", [(256, 768), (768, 3072), (3072,), (3072, 768), (768,)], {}),
    "mlp 3072x384": ("mlp", [(3072, 384), (384, 1536), (1536,), (1536, 384), (384,)], {}),
    "embedding 50257x768": ("embedding", [(50257, 768), ("ids", 50257, 256)], {}),
    "cross_entropy 256x50257": ("cross_entropy", [(256, 50257), ("ids", 50257, 256)], {}),
    "head and loss 256x768x50257": ("linear_cross_entropy", [(256, 768), (50257, 768), ("ids", 50257, 256)], {}),
    "head and loss 1024x768x50257": ("linear_cross_entropy", [(1024, 768), (50257, 768), ("ids", 50257, 1024)], {}),
    "adam 32M": ("adam", [(1 << 25,)] * 4, {}),
    "grad norm 32M": ("norm", [(1 << 25,)], {}),
}  # fmt: skip


def draw(shapes):
    import numpy as np

    rng = np.random.default_rng(0)
    return [
        rng.integers(0, shape[1], shape[2]) if shape[0] == "ids" else rng.standard_normal(shape, dtype=np.float32)
        for shape in shapes
    ]


def our_case(name, mode):
    """(forward, backward) as functions without arguments; backward needs forward to have run before."""
    import numpy as np

    import ops  # noqa: F401
    from tinygrad2.deferred import DeferredGradient
    from tinygrad2.dispatch import OPS, choose, use_kernels
    from tinygrad2.optim import adam_update, grad_norm

    use_kernels(mode)
    op, shapes, options = CASES[name]
    arrays = draw(shapes)
    if op == "adam":
        arrays[3] = np.abs(arrays[3])
        return lambda: adam_update(*arrays, 0.9, 10, 1e-4, 0.9, 0.95, 1e-8, 0.1), None
    if op == "norm":
        norm = grad_norm
        return lambda: norm(arrays[0]), None
    needs = [a.dtype.kind == "f" for a in arrays]
    buffers = [np.zeros_like(a) for a in arrays]                  # a parameter has one for its gradient
    cls = choose(OPS[op], np, arrays)
    state = {}

    def forward():
        state["node"] = cls(np, needs)
        out = state["node"].forward(*arrays, **options)
        if "dout" not in state:
            state["dout"] = tuple(np.ones_like(o) for o in out) if isinstance(out, tuple) else np.ones_like(out)

    def backward():
        for buffer, gradient in zip(buffers, state["node"].backward(state["dout"])):
            if isinstance(gradient, DeferredGradient):
                gradient.write_to(buffer, accumulate=False)

    return forward, backward


def torch_case(name, threads):
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    op, shapes, options = CASES[name]
    x = [torch.from_numpy(a).requires_grad_(a.dtype.kind == "f") for a in draw(shapes)]
    if op == "adam":
        x[0].grad = x[1].detach()
        optimizer = torch.optim.AdamW([x[0]], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        return optimizer.step, None
    if op == "norm":
        return lambda: torch.linalg.vector_norm(x[0].detach()), None
    C = x[0].shape[-1]
    run = {
        "layernorm": lambda: F.layer_norm(x[0], (C,), x[1], x[2]),
        "add_layernorm": lambda: (s := x[0] + x[1], F.layer_norm(s, (C,), x[2], x[3])),
        "gelu": lambda: F.gelu(x[0], approximate="tanh"),
        "gelu_erf": lambda: F.gelu(x[0]),
        "softmax": lambda: torch.softmax(x[0], -1),
        "dropout": lambda: F.dropout(x[0], 0.1),
        "attention": lambda: F.scaled_dot_product_attention(*x, is_causal=True),
        "linear": lambda: F.linear(x[0], x[1].T, x[2]),
        "mlp": lambda: F.linear(F.gelu(F.linear(x[0], x[1].T, x[2]), approximate="tanh"), x[3].T, x[4]),
        "embedding": lambda: F.embedding(x[1], x[0]),
        "cross_entropy": lambda: F.cross_entropy(x[0], x[1]),
        "linear_cross_entropy": lambda: F.cross_entropy(F.linear(x[0], x[1]), x[2]),
    }[op]
    wanted = [t for t in x if t.requires_grad]
    state = {}

    def forward():
        out = run()
        state["out"] = out if isinstance(out, tuple) else (out,)
        if "dout" not in state:
            state["dout"] = tuple(torch.ones_like(o) for o in state["out"])

    def backward():
        torch.autograd.grad(state["out"], wanted, state["dout"])

    return forward, backward


def main():
    side, threads = sys.argv[1], json.loads(sys.argv[2])
    if side != "torch":
        from tinygrad2.system.threads import plan_threads

        plan_threads(threads)
        from tinygrad2.system.memory import keep_freed_memory

        keep_freed_memory()

    def handle(name, seconds):
        mode = "auto" if side == "ours" else "reference"
        forward, backward = torch_case(name, threads) if side == "torch" else our_case(name, mode)
        times, begin = ([], []), time.perf_counter()
        rounds = 0
        while rounds < 4 or time.perf_counter() - begin < seconds and rounds < 200:
            for part, function in zip(times, (forward, backward)):
                if function:
                    start = time.perf_counter()
                    function()
                    part.append((time.perf_counter() - start) * 1e3)
            rounds += 1
        return dict(forward=times[0][2:], backward=times[1][2:])  # the first two warm up

    answer_requests(handle)


if __name__ == "__main__":
    main()
