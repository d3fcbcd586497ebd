"""Validation: the loss on text that is not trained on, and samples of what the model writes."""

import math

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.tensor import no_grad
from tinygrad2.tokenizers.mapped import DecodeOnlyTokenizer
from tinygrad2.tokenizers.tokenizer import TokenizerError
from tinygrad2.training.config import TrainConfig

_STARTS, _TOKENS = (1 / 3, 2 / 3), 8  # where in the validation text samples start, and from how many of its tokens


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
    all_losses = world.all_gather(np.array(losses), "validation")
    return math.fsum(all_losses.flat) / all_losses.size           # fsum: the order does not matter


def sample_text(model, tokenizer, config, rng=None, ids=None):
    """The prompt (or the text of `ids`) and how the model continues it; greedy without `rng`. Without a tokenizer: ids
    as text."""
    model.eval()
    ids = ids or _prompt_ids(tokenizer, config)
    eot = tokenizer.eot if tokenizer else None
    start = [*([] if eot is None else [eot]), *ids] or [0]        # in training every document follows an end-of-text
    n_vocab = tokenizer.n_vocab if tokenizer else None
    new = list(model.generate(start, config.sample_tokens, rng, 0.8, stop=eot, n_vocab=n_vocab))
    model.train()
    return tokenizer.decode([*ids, *new]) if tokenizer else " ".join(map(str, new))


def check_prompt(tokenizer, config):
    """Raises UserError for a prompt with a character that the tokenizer lacks: before the training, not at its first
    sample. If it is only the default one, returns a note: samples then start without it."""
    if config.sample_tokens == 0 or tokenizer is None or isinstance(tokenizer, DecodeOnlyTokenizer):
        return ""
    try:
        tokenizer.encode(config.prompt)
    except TokenizerError as error:
        if config.prompt != TrainConfig.prompt:
            raise UserError(f"--prompt {short(config.prompt)}: {error}") from None
        return f"samples start without a prompt, give one with --prompt: in {config.prompt!r}, {error}"
    return ""


def _prompt_ids(tokenizer, config):
    """The ids of the prompt; none without a tokenizer, or with one that cannot read it."""
    if tokenizer is None or isinstance(tokenizer, DecodeOnlyTokenizer):
        return []
    try:
        return tokenizer.encode(config.prompt)
    except TokenizerError:  # see check_prompt
        return []


def print_sample(trainer, tokenizer, log):
    """A sample drawn after the last step, by log(text); a function of the seed and the step."""
    rng = np.random.default_rng([trainer.config.seed, trainer.done - 1])
    log(f"sample: {sample_text(trainer.model, tokenizer, trainer.config, rng)}\n")


# -- finetuning --------------------------------------------------------------------------------------------------------


def report_loss_and_samples(trainer, loader, tokenizer, log, when):
    """Report by log(text) the loss on the new text and samples, always on the same passages; returns the loss.

    A collective: every rank calls it. `when` is "before" or "after".
    """
    config, world = trainer.config, trainer.world
    loss = validate(trainer.model, loader, config, world)
    log(f"{when:9s} loss on the new text {loss:.4f}")
    if config.sample_tokens:
        world.on_rank_0(f"sampling {when} the training", _report_samples, trainer, loader.stream, tokenizer, log, when)
    return loss


def _report_samples(trainer, stream, tokenizer, log, when):
    config = trainer.config
    for n, ids in enumerate(_sample_starts(config, tokenizer, stream)):
        rng = np.random.default_rng([config.seed, n])
        log(f"{when:9s} sample {n + 1}: {sample_text(trainer.model, tokenizer, config, rng, ids)}\n")


def _sample_starts(config, tokenizer, stream):
    """Lists of ids that samples start with: the prompt, and two passages of the text."""
    starts = [ids] if (ids := _prompt_ids(tokenizer, config)) else []
    for fraction in _STARTS if len(stream) > 4 * _TOKENS else ():
        starts.append(stream.read([int(fraction * len(stream))], _TOKENS)[0].tolist())
    return starts
