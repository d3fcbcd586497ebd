"""The small model of the lessons: seconds to train, made of the same parts as the large one.

`train` is the training script's loop without everything that a long training needs: checkpoints, ranks, validation.
"""

import functools

import numpy as np

from learn import show
from models import GPT, GPTConfig
from tinygrad2 import Tokenizer
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam, clip_scale, grad_norm
from tinygrad2.tokenizers.load import load_tokenizer

VOCAB = 512


@functools.cache
def tokenizer():
    """A tokenizer of 512 tokens, trained on the bundled stories."""
    return Tokenizer.train(show.stories(), VOCAB)


@functools.cache
def gpt2_tokenizer():
    """(GPT-2's tokenizer, True) if its files are in data/gpt2/gpt2, else (the small one, False), and a line says so."""
    if (show.GPT2_FILES / "merges.txt").exists():
        return load_tokenizer(str(show.GPT2_FILES)), True
    print("GPT-2's tokenizer is not on this machine; shown is the small one of the lessons. To get it:")
    print("    python data/gpt2/prepare.py --tokenizer-only")
    return tokenizer(), False


@functools.cache
def tokens():
    """The bundled stories as token ids, (n,)."""
    return np.array(tokenizer().encode(show.stories(), special="allowed"))


def loader(rows=16, block_size=32, seed=1):
    """Batches (x, y) of the stories, both (rows, block_size)."""
    return DataLoader(tokens(), rows, block_size, order="shuffled", seed=seed)


def gpt(seed=1, **changes):
    """A GPT of 85 thousand parameters: one block of width 64, 4 heads, 32 tokens of context."""
    sizes = dict(block_size=32, vocab_size=VOCAB, n_layer=1, n_head=4, n_embd=64) | changes
    return GPT(GPTConfig(**sizes), seed=seed)


def train(model, steps, lr=3e-3, batches=None, weight_decay=0.1, max_norm=1.0, warmup=20, watch=None):
    """Train in place; returns the loss of each step, (steps,).

    lr         the default one serves each of eight seeds; 5e-3 is faster for most and gets stuck for seed 2
    batches    a DataLoader (default: `loader()`)
    watch      watch(step, model, flat) is called between backward and the update
    """
    batches, position = batches or loader(block_size=model.config.block_size), (0, 0)
    flat = FlatBuffers(model)                                     # all parameters in one array, gradients in another
    optimizer = Adam(flat, betas=(0.9, 0.99), weight_decay=weight_decay)
    losses = []
    for step in range(steps):
        x, y = batches.batch(position)                            # (B, T): tokens, and the tokens that follow them
        position = batches.after(position)
        flat.zero_grad()                                          # gradients add up: start from zero
        loss = model.loss(x, y)                                   # forward
        loss.backward()                                           # backward
        if watch:
            watch(step, model, flat)
        scale = clip_scale(grad_norm(flat.grad), max_norm)
        optimizer.step(lr * min(1.0, (step + 1) / warmup), float(scale))      # update
        losses.append(float(loss))
    return np.array(losses)


def text(model, prompt="Once upon a time", length=40, seed=1):
    """A text that the model continues, on one line."""
    ids = tokenizer().encode(prompt)
    model.eval()
    more = list(model.generate(ids, length, np.random.default_rng(seed), n_vocab=tokenizer().n_vocab))
    model.train()
    return tokenizer().decode(ids + more).replace("\n", " ")
