"""One side of benchmarks.gpu, in its own process: python -m benchmarks.gpu_side SIDE CONFIG_JSON.

SIDE is "limits", "text", or one of benchmarks.gpu.SIDES, which trains a model on the GPU.
"""

import json
import os
import statistics
import sys
import time
from functools import partial

from benchmarks.harness import answer_requests


class OurMemory:
    """What CuPy's pool has taken from the device since the last `give_back`."""

    def __init__(self):
        import cupy

        self.pool = cupy.get_default_memory_pool()

    def peak(self):
        return self.pool.total_bytes()

    def give_back(self):
        self.pool.free_all_blocks()


class TorchMemory:
    """The same of PyTorch's allocator."""

    def peak(self):
        import torch

        return torch.cuda.max_memory_reserved()

    def give_back(self):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def trainer(side, config):
    """Returns (a function (x, y) -> loss that does one step on the GPU, the memory of its library)."""
    from benchmarks.train_side import our_trainer, torch_trainer

    if side.startswith("torch"):
        import torch

        torch.set_float32_matmul_precision("high" if side.endswith("tf32") else "highest")
        return torch_trainer(config, compiled="compile" in side), TorchMemory()
    if side.endswith("tf32"):
        os.environ["CUPY_TF32"] = "1"  # read when CuPy is imported
    return our_trainer(config, "auto"), OurMemory()


def limits(n=8192, copied=1 << 30, times=5):
    """Measured with PyTorch: FLOP/s in products of two random n x n matrices, bytes/s of a copy of `copied` floats.

    A copy moves every byte twice, read and written; both count. Medians of single calls, with events of the device.
    """
    import torch

    def seconds(work):
        work()
        times_ms = []
        for _ in range(times):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            times_ms.append(begin.elapsed_time(end))
        return statistics.median(times_ms) / 1e3

    a, b = (torch.randn(n, n, device="cuda") for _ in range(2))
    answer = {}
    for name, precision, dtype in (("float32", "highest", torch.float32), ("tf32", "high", torch.float32),
                                   ("bfloat16", "highest", torch.bfloat16)):  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        answer[name] = 2 * n**3 / seconds(partial(torch.matmul, a.to(dtype), b.to(dtype)))
    source = torch.randn(copied, device="cuda")
    target = torch.empty_like(source)
    answer["bandwidth"] = 2 * 4 * copied / seconds(lambda: target.copy_(source))
    return answer


def text(weights, device, tokens):
    """A greedy text of so many tokens, the second one: its ids and the milliseconds of each token after the first."""
    from models.pretrained import load_pretrained

    model, tokenizer, _ = load_pretrained(weights, device=device)
    for _ in range(2):
        ids, times = [], []
        for token in model.generate([tokenizer.eot], tokens, n_vocab=tokenizer.n_vocab):
            ids.append(token)
            times.append(time.perf_counter())
    return dict(ids=ids, ms=[1e3 * (b - a) for a, b in zip(times, times[1:])])


def main():
    from benchmarks.train_side import tokens

    side, config = sys.argv[1], json.loads(sys.argv[2])
    if side == "limits":
        return answer_requests(limits)
    if side == "text":
        return answer_requests(text)
    step, memory = trainer(side, config)
    done = 0

    def handle(batch_size, steps):
        """`steps` steps; what they have taken from the device is given back, for the other sides."""
        nonlocal done
        ms, losses = [], []
        for _ in range(steps):
            x, y = tokens(config | {"batch_size": batch_size}, done)
            start = time.perf_counter()
            losses.append(step(x, y))  # waits for the device
            ms.append((time.perf_counter() - start) * 1e3)
            done += 1
        peak = memory.peak()
        memory.give_back()
        return dict(ms=ms, losses=losses, peak=peak)

    answer_requests(handle)


if __name__ == "__main__":
    main()
