"""What a training prints before its first step and after its last one; run_log.py has what lies between.

Every line starts with its name in a column of ten characters. `log` is world.print: only rank 0 prints.
"""

import os
from dataclasses import asdict, fields, replace
from functools import partial

import numpy as np

from tinygrad2.cli import option
from tinygrad2.gpu.device import describe_gpu
from tinygrad2.monitor.progress import duration
from tinygrad2.system.memory import megabytes
from tinygrad2.system.shell import command_line
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT
from tinygrad2.training.config import OF_THIS_START, RECIPES, TrainConfig, fit_batch
from tinygrad2.training.memory_plan import print_memory

_WIDTH = 110  # columns


def print_field(log, name, *items):
    """One line "name      item, item, ..."; what is too long continues below itself."""
    lines = [f"{name:10s}"]
    for i, item in enumerate(items):
        if i and len(lines[-1]) + len(item) > _WIDTH:
            lines.append(10 * " ")
        lines[-1] += item + ", " * (i < len(items) - 1)
    log("\n".join(map(str.rstrip, lines)))


# -- before the first step ---------------------------------------------------------------------------------------------


def print_setup(config, model_config, preset, world, kernels, products, library, dtype="", attention=""):
    """The flags that differ from the defaults, the model, the ranks, and what computes. A collective.

    kernels, products    what computes (ops.describe_kernels), and what multiplies matrices (ops.describe_products)
    library              the array library
    dtype                what mixed precision means here (halves.check_dtype), "" if there is nothing to say
    attention            whose attention runs on a GPU (ops.describe_attention), "" likewise
    """
    field = partial(print_field, world.print)
    rows = list(_changed_flags(config, model_config, preset, world.size))
    recipe = f"finetuning of {config.init_from}" if preset == "--init-from" else f"preset {preset}"
    changed = " with these changes" if rows else ", unchanged"
    field("config", f"{recipe}{changed} ({config.run_dir}/config.json has the complete configuration)")
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    for name, value, default in rows:
        field("", f"{name:{widths[0]}s}   {value:{widths[1]}s}   instead of {default}")
    field("model", f"{model_config.count_parameters():,} parameters: {model_config.describe()}")
    threads = f" with {world.threads} thread(s) each" if world.threads else ""
    field("world", f"{world.size} rank(s){threads} on {config.device} ({library.__name__} {library.__version__})")
    for line in describe_gpus(world, library):
        field("", line)
    for line in world.describe():
        field("", line)
    field("kernels", kernels)
    field("products", products)
    if attention:
        field("attention", attention)
    if dtype:
        field("dtype", dtype)


def describe_gpus(world, library):
    """Lines that name the GPU of each rank; none on a CPU. A collective."""
    if library is np:
        return []
    lines = world.all_gather_object(describe_gpu(library), "names of GPUs")
    return lines if world.size == 1 else [f"rank {rank}: {line}" for rank, line in enumerate(lines)]


def _changed_flags(config, model_config, preset, ranks):
    """(flag, value, default) as text for each flag that is not as the preset has it."""
    default = fit_batch(TrainConfig(**RECIPES[preset] | {"batch_size": config.batch_size}), ranks)
    default = replace(default, batch_size=RECIPES[preset]["batch_size"])
    pairs = [(f, getattr(config, f.name), getattr(default, f.name)) for f in fields(config) if f.name != "resume"]
    if preset != "--init-from":
        shape = type(model_config).preset(preset)
        pairs += [(f, getattr(model_config, f.name), getattr(shape, f.name)) for f in fields(model_config)]
    for f, value, usual in pairs:
        if value != usual:
            named = "default" in f.metadata and not isinstance(usual, (int, float))
            yield option(f.name), _text(value), f.metadata["default"] if named else _text(usual)


def _text(value):
    return ("no", "yes")[value] if isinstance(value, bool) else str(value) or "none"


def print_data(data, loader, pretrained, config, model_config, world):
    """The model that a finetuning starts from, the tokens, and how they are cut into batches."""
    log, field = world.print, partial(print_field, world.print)
    if pretrained:
        for line in (f"{pretrained.path} ({pretrained.kind})", *pretrained.notes):
            field("start", f"from {line}")
    for line in data.description:
        log(line)
    if data.tokenizer:
        rows = f"{model_config.vocab_size:,} rows for them"
        field("tokenizer", f"{data.tokenizer.n_vocab:,} different tokens; the model has {rows}")
    field("split", f"{len(data.train):,} tokens to train, {len(data.val or ()):,} to validate")
    if loader.repeats > 1:
        field("note", f"the text is shorter than a batch + 1: padded by repeating it {loader.repeats} times")
    if config.overfit_one_batch:
        field("note", "every step trains on the same batch (--overfit-one-batch): the loss should approach 0")
    rows, tokens = config.micro_batch_size, loader.tokens_per_batch
    field("batch", f"{tokens:,} tokens per step = {world.size} rank(s) x {config.batch_size // (rows * world.size)} "
                   f"micro-batch(es) x {rows} rows x {loader.T}; {config.steps * tokens / len(data.train):.1f} epochs")


def print_costs(trainer, plan, peak, flops):
    """How gradients are summed, and what memory and arithmetic a step takes.

    plan           MemoryPlan
    peak           floating-point operations per second in matrix products, on all ranks together
    flops          floating-point operations of a step
    """
    world, field = trainer.world, partial(print_field, trainer.world.print)
    for line in trainer.reducer.describe():
        world.print(line)
    if frozen := trainer.flat.frozen:
        trained, total = (trainer.model.count_parameters(trainable_only) for trainable_only in (True, False))
        field("frozen", f"{total - trained:,} of {total:,} parameters stay as they are", *frozen)
    if world.size > 1 and plan.reference:
        field("note", "BLAS rounds differently with other numbers of threads: the same bits need equal --threads")
    print_memory(plan, world.host_size, field)
    field("machine", f"{peak / 1e9:.0f} GFLOP/s in matrix products; a step is {flops / 1e9:.1f} GFLOP")
    world.print()


def print_changes(saved, config, model_config, log):
    """The flags of a resumed training that are not what they were: from here on it is another training."""
    now = {"training": asdict(config), "model": model_config.to_dict()}
    for part, values in (("training", saved.training), ("model", saved.model)):
        for name, value in values.items():
            if name not in OF_THIS_START and value != now[part].get(name, value):
                log(f"resume    {option(name)} {value} is now {now[part][name]}")


# -- after the last step -----------------------------------------------------------------------------------------------


def print_finetuned(before, after, done, log):
    """The loss on the new text before and after a finetuning of `done` steps."""
    log(f"finetuned loss on the new text {before:.4f} before, {after:.4f} after {done} steps")


def print_results(config, steps, tokens, seconds, total_seconds, plan, peaks, sample, skipped=0, overflows=0):
    """What a training has done and what it took.

    steps, tokens, seconds   of this process; total_seconds: since it started
    peaks                    bytes of memory at the peak, of each rank
    sample                   what the model writes, "" if there was no time for it
    skipped                  updates left out by --skip-outliers, since the training began
    overflows                updates left out because gradients overflowed float16
    """
    print(f"\ntrained   {steps} steps, {tokens:,} tokens in {duration(seconds)} "
          f"({tokens / (seconds or 1):,.0f} tokens/s with validation and samples); {duration(total_seconds)} in all")
    if skipped:
        print(f"skipped   the updates of {skipped} steps with outliers (--skip-outliers)")
    if overflows:
        print(f"skipped   the updates of {overflows} steps whose gradients overflowed float16")
    if config.device == "cpu" and peaks[0]:
        print(f"memory    {megabytes(peaks[0])} at the peak; the plan was {megabytes(plan.total)}")
        if len(peaks) > 1:
            others = plan.of_ranks(2) - plan.of_ranks(1) + plan.parts["Python and libraries"]
            print(f"          {megabytes(max(peaks[1:]))} at most on other ranks; the plan was {megabytes(others)}")
    if config.device != "cpu":
        print(f"memory    {megabytes(max(peaks))} of the GPU for arrays at the peak; the plan was "
              f"{megabytes(plan.arrays)}")
    if sample:
        print(f"greedy    {sample}")


def where_the_weights_are(checkpoint):
    """For the error that they could not be written: `checkpoint` is the path of the last one, None if there is none."""
    if checkpoint is None:
        return "there is no checkpoint of this training either"
    return f"the last checkpoint has weights that inference.py reads: {os.path.join(checkpoint, 'weights.bin')}"


def print_next_commands(done, config, ranks, tokenizer, knows_prompt=True):
    """The commands that use the weights, and that resume a training which was stopped.

    tokenizer       the one that is in the weights, or None
    knows_prompt    can it encode the prompt of the samples?
    """
    generate = dict(
        weights=config.weights_out if config.weights_out != TrainConfig.weights_out else None,
        tokenizer=None if tokenizer else "FILE",
        prompt=(config.prompt or None) if knows_prompt else "TEXT",
        special="ordinary" if END_OF_TEXT in config.prompt else None,
    )
    print(f"\nweights in {config.weights_out}; now: {command_line('python inference.py', **generate)}")
    if done < config.steps:
        launcher = f"mpirun -n {ranks} " if ranks > 1 else ""
        run_dir = None if config.run_dir == TrainConfig.run_dir else config.run_dir
        print(f"stopped after {done} of {config.steps} steps; continue with: "
              f"{launcher}{command_line('python train_gpt2.py', run_dir=run_dir, resume=True)}")
