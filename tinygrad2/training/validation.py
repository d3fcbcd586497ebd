"""Evaluation: how good a model is, what it writes, and what a training says at its end."""

import math
import time

import numpy as np

from tinygrad2.monitor.progress import duration
from tinygrad2.tensor import no_grad
from tinygrad2.training.config import TrainConfig
from tinygrad2.training.memory_plan import megabytes


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
    every = world.collect_numbers(np.array(losses), "validation")
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


def tell_results(trainer, config, tokenizer, plan, peaks, tokens, seconds, begin):
    """What a training has done: so many tokens in `seconds`; `begin` is when the program began, `peaks` the ranks'."""
    steps = tokens // (config.batch_size * trainer.model.config.block_size)
    print(f"\ntrained   {steps} steps, {tokens:,} tokens in {duration(seconds)} "
          f"({tokens / seconds:,.0f} tokens/s with validation and samples); "
          f"{duration(time.perf_counter() - begin)} in all")
    if config.device == "cpu" and peaks[0]:
        print(f"memory    {megabytes(peaks[0])} at the peak; the plan was {megabytes(plan.total)}")
        if len(peaks) > 1:
            others = plan.of_ranks(2) - plan.of_ranks(1) + plan.parts["Python and libraries"]
            print(f"          {megabytes(max(peaks[1:]))} at most on other ranks; the plan was {megabytes(others)}")
    print(f"greedy    {sample_text(trainer.model, tokenizer, config)}")


def tell_what_next(done, config):
    """The commands that go on from here."""
    weights = "" if config.weights_out == TrainConfig.weights_out else f" --weights {config.weights_out}"
    print(f'\nweights in {config.weights_out}; now: python inference.py{weights} --prompt "{config.prompt}"')
    if done < config.steps:
        where = "" if config.run_dir == TrainConfig.run_dir else f" --run-dir {config.run_dir}"
        print(f"stopped after {done} of {config.steps} steps; go on with: python train_gpt2.py{where} --resume")
