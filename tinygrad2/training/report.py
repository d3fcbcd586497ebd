"""What a training prints: at its start, at its end."""

import time
from dataclasses import asdict

from tinygrad2.installation import adapt_hint
from tinygrad2.monitor.progress import duration
from tinygrad2.system.memory import megabytes
from tinygrad2.training.config import TrainConfig
from tinygrad2.training.validation import sample_text


def print_results(trainer, config, tokenizer, plan, peaks, tokens, seconds, begin):
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


def print_next_commands(done, config):
    """The commands that go on from here."""
    weights = "" if config.weights_out == TrainConfig.weights_out else f" --weights {config.weights_out}"
    next_command = f'python inference.py{weights} --prompt "{config.prompt}"'
    print(f"\nweights in {config.weights_out}; now: {adapt_hint(next_command)}")
    if done < config.steps:
        where = "" if config.run_dir == TrainConfig.run_dir else f" --run-dir {config.run_dir}"
        print(f"stopped after {done} of {config.steps} steps; go on with: "
              f"{adapt_hint('python train_gpt2.py')}{where} --resume")


def print_changes(before, config, world):
    """What is not as it was when the training began: then its rest is not what it would have been."""
    now = asdict(config)
    for name in now:
        if name in before and before[name] != now[name] and name not in ("resume", "run_dir"):
            world.print(f"resume    --{name.replace('_', '-')} {before[name]} is now {now[name]}")
