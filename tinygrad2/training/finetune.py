"""Finetuning: what a model makes of a new text, before it has learned from it and after."""

import os

import numpy as np

from tinygrad2.io.files import UserError
from tinygrad2.training.validation import sample_text, validate

_PLACES, _TOKENS = (1 / 3, 2 / 3), 8  # where in the validation text samples begin, and with how many tokens


def keep_first_model(config):
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


def look_at(trainer, loader, tokenizer, config, world, say, when):
    """Tell the loss on the new text and the samples, both always the same ones; gives the loss. `when` is a word.

    All ranks take part; `say(line)` is rank 0's.
    """
    loss = validate(trainer.model, loader, config, world)
    say(f"{when:9s} loss on the new text {loss:.4f}")
    with world.alone(f"sampling {when} the training") as mine:
        for n, ids in enumerate(beginnings(config, tokenizer, loader.stream) if mine and config.sample_tokens else ()):
            rng = np.random.default_rng([config.seed, n])
            say(f"{when:9s} sample {n + 1}: {sample_text(trainer.model, tokenizer, config, rng, ids)}\n")
    return loss
