"""One side of benchmarks.train, in its own process: python -m benchmarks.train_side SIDE CONFIG_JSON."""

import json
import os
import sys
import time

from benchmarks.harness import answer_requests, dtype_of, peak_rss

LR, BETAS, WEIGHT_DECAY, GRAD_CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0


def tokens(config, step):
    """Returns the random batch of a step, x and y, both (B, T) int64, the same on every side."""
    import numpy as np

    rng = np.random.default_rng([config["seed"], step])
    ids = rng.integers(0, config["model"]["vocab_size"], (config["batch_size"], config["seq_len"] + 1))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def our_trainer(config, kernels, precision="highest"):
    """Returns a function (x, y) -> loss that does one step of train_gpt2.py on config["device"] (default: the CPU).
    `precision` is that of products, in the words of tinygrad2/precision.py."""
    from models import GPT, GPTConfig
    from tinygrad2.dispatch import use_kernels
    from tinygrad2.flat_buffers import FlatBuffers
    from tinygrad2.optim import Adam, clip_scale, grad_norm
    from tinygrad2.precision import matmul_precision
    from tinygrad2.system.memory import keep_freed_memory

    use_kernels(kernels)
    model = GPT(GPTConfig(**config["model"]), seed=config["seed"], recompute=config["recompute"])
    flat = FlatBuffers(model, config.get("device", "cpu"))
    optimizer = Adam(flat, BETAS, weight_decay=WEIGHT_DECAY)
    keep_freed_memory()

    def step(x, y):
        flat.zero_grad()
        with matmul_precision(precision):
            loss = model.loss(x, y)
            loss.backward()
        optimizer.step(LR, clip_scale(grad_norm(flat.grad), GRAD_CLIP))
        return loss.item()

    return step


def torch_trainer(config, compiled, dtype="float32"):
    import torch

    from benchmarks.torch_gpt import trainer

    torch.set_num_threads(config["threads"])
    device = config.get("device", "cpu")
    return trainer(config["model"], config["seed"], compiled, LR, BETAS, WEIGHT_DECAY, GRAD_CLIP, device=device,
                   dtype=dtype)  # fmt: skip


def main():
    side, config = sys.argv[1], json.loads(sys.argv[2])
    if side.startswith("torch"):
        if "high" in side:
            import torch

            torch.set_float32_matmul_precision("high")
        step = torch_trainer(config, "compile" in side, dtype_of(side))
    else:
        from tinygrad2.precision import ROUNDED
        from tinygrad2.system.threads import plan_threads

        plan_threads(config["threads"])
        precision = "high" if side == "high" else ROUNDED if dtype_of(side) == "bfloat16" else "highest"
        step = our_trainer(config, "reference" if side == "reference" else "auto", precision)
    done = 0

    def handle(steps):
        nonlocal done
        ms, losses = [], []
        for _ in range(steps):
            x, y = tokens(config, done)
            start = time.perf_counter()
            losses.append(step(x, y))
            ms.append((time.perf_counter() - start) * 1e3)
            done += 1
        return dict(ms=ms, losses=losses, peak_rss=peak_rss(), pid=os.getpid())

    answer_requests(handle)


if __name__ == "__main__":
    main()
