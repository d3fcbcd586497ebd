"""Evaluation: how good a model is, what it writes, and what a training says at its end."""

import math
import os

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.tensor import no_grad


def validate(model, loader, config, world):
    """The mean loss over the first batches of the validation text, always the same ones, shared out over the ranks."""
    model.eval()
    batches = max(1, min(config.eval_batches, len(loader.stream) // loader.tokens_per_batch))
    losses, position = [], (0, 0)
    for _ in range(batches):
        for _, x, y in loader.micro_batches(position, config.micro_batch_size):
            with no_grad():
                losses.append(model.loss(x, y).item())
        position = loader.after(position)
    model.train()
    every = world.all_gather(np.array(losses), "validation")
    return math.fsum(every.flat) / every.size                     # fsum: the order does not matter


def sample_text(model, tokenizer, config, rng=None, ids=None):
    """The prompt (or the text of `ids`) and what the model makes of it; greedy without `rng`. Without a tokenizer:
    numbers."""
    model.eval()
    ids = ids or (tokenizer.encode(config.prompt) if tokenizer else [])
    eot = tokenizer.eot if tokenizer else None
    start = [*([] if eot is None else [eot]), *ids] or [0]        # every document began after an end-of-text
    n_vocab = tokenizer.n_vocab if tokenizer else None
    new = list(model.generate(start, config.sample_tokens, rng, 0.8, stop=eot, n_vocab=n_vocab))
    model.train()
    return tokenizer.decode([*ids, *new]) if tokenizer else " ".join(map(str, new))


_PLACES, _TOKENS = (1 / 3, 2 / 3), 8  # where in the validation text samples begin, and with how many tokens


def refuse_overwrite(config):
    """Raise UserError where the new weights would be written over the ones to begin with, a file or one in a folder."""
    begin, end = os.path.realpath(config.init_from), os.path.realpath(config.weights_out)
    folder, name = os.path.split(end)
    of_folder = folder == begin and name.startswith(("config.", "model.", "model-", "pytorch_model"))
    if config.init_from and os.path.exists(end) and (end == begin or of_folder):
        raise UserError(f"--weights-out {config.weights_out}: is of the model that --init-from begins with, which "
                        "would be lost; choose another name")


def beginnings(config, tokenizer, stream):
    """Lists of ids that samples begin with: the prompt, and two places of the text."""
    found = [tokenizer.encode(config.prompt)] if tokenizer and config.prompt else []
    for place in _PLACES if len(stream) > 4 * _TOKENS else ():
        found.append(stream.read([int(place * len(stream))], _TOKENS)[0].tolist())
    return found


def report_loss_and_samples(trainer, loader, tokenizer, config, world, say, when):
    """Tell the loss on the new text and the samples, both always the same ones; gives the loss. `when` is a word.

    All ranks take part; `say(line)` is rank 0's.
    """
    loss = validate(trainer.model, loader, config, world)
    say(f"{when:9s} loss on the new text {loss:.4f}")

    def print_samples():
        for n, ids in enumerate(beginnings(config, tokenizer, loader.stream) if config.sample_tokens else ()):
            rng = np.random.default_rng([config.seed, n])
            say(f"{when:9s} sample {n + 1}: {sample_text(trainer.model, tokenizer, config, rng, ids)}\n")

    world.on_rank_0(f"sampling {when} the training", print_samples)
    return loss
