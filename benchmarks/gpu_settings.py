"""What the parts and sides of benchmarks.gpu agree on: precisions, the model, the limits that were measured."""

import json
import os

TINY = dict(block_size=16, vocab_size=320, n_layer=1, n_head=2, n_embd=32)
PRECISIONS = {"float32": "highest", "tf32": "high", "bfloat16": "bfloat16", "float16": "float16"}


def products_of(name):
    """In what a side of this name computes products: float32, tf32, bfloat16 or float16."""
    last = name.rpartition("-")[2]
    return last if last in PRECISIONS else "float32"


def model_flags(args):
    """Those of train_gpt2.py for the model of the steps."""
    tiny = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", value)]
    return tiny if args.tiny else ["--model", args.model]


def config_of(args, **more):
    """What the sides of steps, losses and decode are told of the model."""
    from models.config import GPTConfig

    model = GPTConfig(**TINY) if args.tiny else GPTConfig.preset(args.model, vocab_size=args.vocab_size)
    return dict(model=model.to_dict(), seq_len=model.block_size, seed=1337, threads=1, recompute=False, **more)


def read_limits(folder):
    """{kind of product: FLOP/s, "bandwidth": bytes/s} as the part `limits` has measured; {} if it has not."""
    path = os.path.join(folder, "limits.json")
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"         # the CPU: in tests
