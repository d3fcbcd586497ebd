"""One side of benchmarks.gpu, in its own process: python -m benchmarks.gpu_side ROLE NAME CONFIG_JSON.

    limits     FLOP/s in matrix products, bytes/s of a copy
    text       a text by trained weights
    decode     a text by a model with random weights: NAME is ours or transformers, with -bfloat16
    steps      training steps: NAME is ours, ours-tuned (which measures algorithms of products in its first steps),
               ours-cudnn, torch or torch-compile, with -tf32, -bfloat16 or -float16
    kernels    single ops (gpu_kernels_side.py)
"""

import json
import os
import statistics
import subprocess
import sys
import time
import traceback

from benchmarks.gpu_settings import PRECISIONS, products_of, torch_device
from benchmarks.harness import ROOT, answer_requests, installed
from benchmarks.train_side import BETAS, GRAD_CLIP, LR, WEIGHT_DECAY, tokens, torch_trainer

# -- memory ------------------------------------------------------------------------------------------------------------


class OurMemory:
    """What CuPy's pools have taken from the device.

    lookahead    the Lookahead that trains now, whose steps lie in an arena; None before it trains
    plan         the GpuPlan for it
    """

    lookahead = plan = None

    def peak(self):
        import cupy

        from tinygrad2.gpu.device import bytes_of_pools

        return bytes_of_pools(cupy)

    def compared(self):
        """{"arena": bytes of the block, "bound": of its arrays at one time, "pool": of all arrays when each came from
        CuPy's pool, "plan": of all arrays as python -m tinygrad2 plan has it}; {} while there is no arena."""
        arena = self.lookahead and self.lookahead.arena
        if not (arena and arena.plan):
            return {}
        return dict(arena=arena.plan.bytes, bound=arena.plan.bound, pool=arena.taken_before, plan=self.plan.arrays)

    def give_back(self):
        import cupy

        steps = self.lookahead and self.lookahead.steps
        if self.lookahead and not (steps and steps.graph):        # which has recorded addresses
            self.lookahead.arena.let_go()
        cupy.get_default_memory_pool().free_all_blocks()


class TorchMemory:
    """The same of PyTorch's allocator; nothing where PyTorch has no GPU."""

    def peak(self):
        import torch

        return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0

    def compared(self):
        return {}

    def give_back(self):
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def memory_of_process():
    """Bytes of the GPU that this process holds, all libraries together; None if the driver does not say."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
        used = [line.split(", ")[1] for line in lines if line.split(", ")[0] == str(os.getpid())]
        return int(used[0]) << 20 if used else None
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


# -- the roles ---------------------------------------------------------------------------------------------------------


def steps(name, config):
    """A function that answers requests (batch_size, steps): milliseconds and loss of each step, peak memory."""
    make = torch_steps if name.startswith("torch") else our_steps
    run, memory = make(name, config)
    text = read_text(config) if config.get("text") else None
    done = 0

    def handle(batch_size, steps, ask_driver=False):
        """The first step, and then the others with one waiting at their end: milliseconds of the first, and of the
        others the mean. What they have taken from the device is given back, for the other sides."""
        nonlocal done
        here = config | {"batch_size": batch_size}
        batches = [tokens(here, i) if text is None else text_batch(text, here, i) for i in range(done, done + steps)]
        ms, losses = [], []
        for some in filter(None, (batches[:1], batches[1:])):
            start = time.perf_counter()
            losses += run(some)                                   # waits for the device
            ms += [(time.perf_counter() - start) * 1e3 / len(some)] * len(some)
        done += steps
        of_process = memory_of_process() if ask_driver else None
        answer = dict(ms=ms, losses=losses, peak=memory.peak(), of_process=of_process, memory=memory.compared())
        answer["gelu"] = gelu_of(getattr(run, "choices", {}), batch_size * config["seq_len"])
        memory.give_back()
        return answer

    return handle


def gelu_of(choices, rows):
    """Where GELU is computed in each direction, of measured choices for so many rows: "forward fused, ..."; "" without
    any."""
    found = [(*key.split(": "), way) for key, way in choices.items() if key.startswith("GELU")]
    return ", ".join(f"{kind.split()[1]} {way}" for kind, shapes, way in found if shapes.startswith(f"({rows}, "))


def torch_steps(name, config):
    """(a function of batches: the losses of a step on each, the memory)."""
    import torch

    products = products_of(name)
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    dtype = products if products in ("bfloat16", "float16") else "float32"
    step = torch_trainer(config | {"device": torch_device()}, compiled="compile" in name, dtype=dtype)

    def run(batches):
        return [loss.item() for loss in [step(x, y, read=False) for x, y in batches]]

    return run, TorchMemory()


def our_steps(name, config):
    """The same by the Trainer of train_gpt2.py, as it trains on a GPU; run.choices is its Choices.made."""
    from dataclasses import replace

    import train_gpt2
    from models.config import GPTConfig
    from tinygrad2.distributed.world import World
    from tinygrad2.gpu.choices import Choices, choosing
    from tinygrad2.precision import computing
    from tinygrad2.training.config import RECIPES, TrainConfig
    from tinygrad2.training.gpu_plan import GpuPlan
    from tinygrad2.training.lookahead import Lookahead

    products = products_of(name)
    mixed = products in ("bfloat16", "float16")
    flags = TrainConfig(**RECIPES["gpt2"] | dict(
        device="cuda", dtype=products if mixed else "float32", steps=1 << 20, seed=config["seed"],
        matmul_precision="highest" if mixed else PRECISIONS[products], beta1=BETAS[0], beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY, grad_clip=GRAD_CLIP, kernels=config.get("kernels", "auto"),
        gpu_attention="cudnn" if name.startswith("ours-cudnn") else "own", eval_every=0, sample_tokens=0,
    ))  # fmt: skip
    flags = replace(flags, micro_batch_size=flags.batch_size)     # all in one
    trainer = train_gpt2.Trainer(flags, GPTConfig(**config["model"]), World())
    trainer.lr = lambda: LR
    given, memory = Batches(), OurMemory()
    choices = Choices(measures="tuned" in name)                   # none are kept: each visit measures for itself

    def run(batches):
        size = len(batches[0][0])
        if memory.lookahead is None or size != trainer.config.batch_size:
            trainer.config = replace(flags, batch_size=size, micro_batch_size=size)
            memory.plan = GpuPlan.of(trainer.config, trainer.model.config, False, 0)
            memory.lookahead = None                               # with its graph: the memory is free for the next one
            memory.lookahead = Lookahead(trainer)
        given.batches, trainer.position, found = batches, (0, 0), []
        with computing(trainer.config), choosing(choices):
            for i in range(len(batches)):
                found += memory.lookahead.step(given, None, i == len(batches) - 1)
        return [step.loss for step in found]

    run.choices = choices.made
    return run, memory


class Batches:
    """What a Trainer takes for a DataLoader: these batches, one after the other."""

    def micro_batches(self, position, size):
        yield 0, *self.batches[position[1]]

    def after(self, position):
        return position[0], position[1] + 1


def read_text(config):
    """The bytes of a text as ids, (n,) int64: something that a model can learn."""
    import numpy as np

    with open(os.path.join(ROOT, "data", "dummy_data.txt"), "rb") as file:
        return np.frombuffer(file.read(), np.uint8).astype(np.int64) % config["model"]["vocab_size"]


def text_batch(text, config, step):
    """The batch of a step from anywhere in the text, x and y, both (B, T) int64, the same on every side."""
    import numpy as np

    B, T = config["batch_size"], config["seq_len"]
    starts = np.random.default_rng([config["seed"], step]).integers(0, len(text) - T - 1, B)
    rows = np.stack([text[start : start + T + 1] for start in starts])
    return rows[:, :-1].copy(), rows[:, 1:].copy()


def limits(name, config):
    """FLOP/s in products of two random n x n matrices, bytes/s of a copy; by PyTorch, or without it by cuBLASLt.

    A copy moves every byte twice, read and written; both count. Medians of single calls, with events of the device.
    """
    from benchmarks.gpu_timer import CupyTimer, TorchTimer

    n, copied = (64, 1 << 10) if config["tiny"] else (8192, 1 << 30)
    products = {}
    if installed("torch"):
        import torch

        library, timer, device = "torch", TorchTimer(4 * n), torch_device()
        a, b = (torch.randn(n, n, device=device) for _ in range(2))
        source = torch.randn(copied, device=device)
        target = torch.empty_like(source)

        def copy():
            target.copy_(source)

        def product(kind):
            torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
            dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
            x, y = a.to(dtype), b.to(dtype)
            return lambda: torch.matmul(x, y)
    else:
        import cupy
        import numpy as np

        from ops.kernels.cuda.products import gemm
        from tinygrad2.halves import half_dtype

        library, timer = "cuBLASLt", CupyTimer(4 * n)
        a, b = (cupy.asarray(np.random.default_rng(i).standard_normal((n, n), dtype=np.float32)) for i in range(2))
        source = cupy.ones(copied, dtype=cupy.float32)
        target = cupy.empty_like(source)

        def copy():
            target[...] = source

        def product(kind):
            dtype = half_dtype(kind) if kind in ("bfloat16", "float16") else np.float32
            x, y = a.astype(dtype), b.astype(dtype)
            return lambda: gemm(x, y, precision=PRECISIONS[kind])

    for kind in PRECISIONS:
        (times,) = timer.measure([product(kind)], 5)
        products[kind] = 2 * n**3 / statistics.median(times) * 1e3
    (times,) = timer.measure([copy], 5)
    answer = dict(library=library, limits=products | dict(bandwidth=2 * 4 * copied / statistics.median(times) * 1e3))
    return lambda: answer


def text(name, config):
    """A greedy text of so many tokens, the second one: its ids and the milliseconds of each token after the first."""
    from models.pretrained import load_pretrained

    def handle(weights, device, tokens):
        model, tokenizer, _ = load_pretrained(weights, device=device)
        for _ in range(2):
            ids, times = generate(model, [tokenizer.eot], tokens, tokenizer.n_vocab)
        return dict(ids=ids, ms=differences(times))

    return handle


def generate(model, prompt, tokens, n_vocab):
    """(ids, the time of the start and of each token)."""
    ids, times = [], [time.perf_counter()]
    for token in model.generate(prompt, tokens, n_vocab=n_vocab):
        ids.append(token)
        times.append(time.perf_counter())
    return ids, times


def differences(times):
    """Milliseconds of each token but the first, whose time is that of the prompt."""
    return [1e3 * (b - a) for a, b in zip(times[1:], times[2:])]


def decode(name, config):
    """A function that answers requests (prompt: its length, tokens: of the text): milliseconds of prompt and tokens."""
    config = config | {"threads": 1}
    dtype = products_of(name)
    V = config["model"]["vocab_size"]
    if name.startswith("transformers"):
        from benchmarks.decode_side import transformers_generator

        generator = transformers_generator(config | {"device": torch_device(), "dtype": dtype}, use_generate=False)
    else:
        from models import GPT, GPTConfig
        from tinygrad2.flat_buffers import FlatBuffers
        from tinygrad2.mixed_precision import mixed_precision

        model = GPT(GPTConfig(**config["model"]), seed=config["seed"])
        FlatBuffers(model, "cuda")
        model.eval()

        def generator(prompts, n):
            with mixed_precision(dtype):
                ids, times = generate(model, prompts[0], n, V)
            return times[1] - times[0], [ms / 1e3 for ms in differences(times)], ids

    def handle(prompt, tokens):
        prefill, seconds, ids = generator([[(7 * i + 3) % V for i in range(prompt)]], tokens)
        return dict(prefill_ms=1e3 * prefill, ms=[1e3 * second for second in seconds], ids=ids)

    return handle


def main():
    role, name, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if role == "kernels":
        from benchmarks.gpu_kernels_side import kernels as make
    else:
        make = dict(limits=limits, text=text, decode=decode, steps=steps)[role]
    handle = None

    def answer(**request):
        nonlocal handle
        try:
            handle = handle or make(name, config)
            return handle(**request)
        except Exception as error:
            traceback.print_exc()
            return dict(error=f"{type(error).__name__}: {error}"[:300])

    answer_requests(answer)


if __name__ == "__main__":
    main()
