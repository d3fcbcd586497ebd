"""Train a GPT-2 from scratch on a text, and write trained_weights.bin for inference.py.

    python train_gpt2.py --seed 1337                                 the bundled stories, under a minute on two cores
    python train_gpt2.py --data my.txt --model baby --steps 2000     your own text
    mpirun -n 4 python train_gpt2.py --seed 1337                     the same training, shared by four processes

Read it from top to bottom: config, world, data, model, optimizer, loop.
"""

from tinygrad2.distributed import EarlyExit, World
from tinygrad2.threads import threads_flag

if __name__ == "__main__":
    import sys

    world = World.join(threads_flag(sys.argv))  # threads are planned before NumPy is imported, and starts its own

import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields

import numpy as np

import ops
from models import GPT, PRESETS, GPTConfig
from models.dropout import set_dropout
from tinygrad2.backend import DEVICES, array_module, to_host
from tinygrad2.checkpoint import save_weights
from tinygrad2.dataloader import DataLoader, encode_documents, split_documents, split_tokens
from tinygrad2.files import UserError, check_writable, read_bytes
from tinygrad2.flags import Parser, add_flags, flag, from_flags
from tinygrad2.function import use_kernels
from tinygrad2.machine import gemm_peak, keep_freed_memory, train_flops_per_token
from tinygrad2.module import FlatBuffers
from tinygrad2.optim import SCHEDULES, Adam, clip_grad_norm, learning_rate
from tinygrad2.progress import MetricsFile, Progress, duration
from tinygrad2.tensor import no_grad
from tinygrad2.tokenizer import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))

# -- config ------------------------------------------------------------------------------------------------------------


RECIPES = {  # steps, batch size and learning rate depend on the model
    "demo":        dict(steps=1000,   batch_size=16,  lr=6e-3),
    "baby":        dict(steps=2000,   batch_size=12,  lr=1e-3),
    "gpt2":        dict(steps=20000,  batch_size=8,   lr=6e-4),
    "gpt2-medium": dict(steps=20000,  batch_size=8,   lr=3e-4),
    "gpt2-large":  dict(steps=20000,  batch_size=8,   lr=2.5e-4),
    "gpt2-xl":     dict(steps=20000,  batch_size=8,   lr=2e-4),
}  # fmt: skip


def by_model(name, text):
    """A flag whose default comes from RECIPES."""
    kind, values = type(RECIPES["demo"][name]), [f"{recipe[name]} for {model}" for model, recipe in RECIPES.items()]
    return flag(None, text, kind=kind, default=", ".join(values))


@dataclass(frozen=True)
class TrainConfig:
    """How a training goes. The flags of train_gpt2.py, checked; `parse` fills in what depends on the model."""

    seed: int = flag(1337, "fixes the initial weights, the samples and the dropout masks")
    steps: int = by_model("steps", "optimizer steps")
    data: str = flag(os.path.join(HERE, "data", "dummy_data.txt"), "text file to learn from", default="the stories")
    tokenizer: str = flag("", "tokenizer file (JSON) to use instead of training one on the text", default="train one")
    batch_size: int = by_model("batch_size", "sequences per optimizer step, over all ranks together")
    micro_batch_size: int = flag(None, "sequences per forward pass on one rank", kind=int, default="the rank's share")
    lr: float = by_model("lr", "highest learning rate")
    final_lr: float = flag(0.1, "learning rate at the end, as a share of --lr")
    schedule: str = flag("cosine", "how the learning rate falls after the warmup", choices=SCHEDULES)
    warmup_steps: int = flag(100, "steps in which the learning rate rises to --lr")
    weight_decay: float = flag(0.1, "decoupled weight decay, on matrices only")
    beta1: float = flag(0.9, "Adam: memory of the gradient's mean")
    beta2: float = flag(0.99, "Adam: memory of the gradient's square")
    grad_clip: float = flag(1.0, "largest norm of the whole gradient; 0 means no clipping")
    val_fraction: float = flag(0.05, "share of the text, at its end, kept for validation")
    eval_every: int = flag(100, "steps between validations; 0 means none")
    eval_batches: int = flag(4, "batches of one validation (always the same ones)")
    sample_every: int = flag(200, "steps between samples; 0 means none but the last")
    sample_tokens: int = flag(80, "tokens of one sample")
    prompt: str = flag("Once upon a time", "how the samples begin")
    recompute: bool = flag(False, "keep only the inputs of blocks and compute the rest again in backward: less memory, "
                                  "a quarter more time")
    device: str = flag("cpu", "cpu, or cuda (CuPy)", choices=DEVICES)
    threads: int = flag(None, "threads of each rank, for BLAS and kernels", kind=int, default="all cores, shared out")
    kernels: str = flag("auto", "auto: fast kernels where there are any; reference: the pages of maths alone",
                        choices=("auto", "reference"))
    weights_out: str = flag("trained_weights.bin", "where the trained weights go")
    metrics: str = flag("", "also write one JSON object per step to this file", default="none")
    log_every: int = flag(10, "on a terminal, keep the line of every Nth step (a file gets every line)")

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("micro_batch_size", 1), ("warmup_steps", 0),
                            ("eval_every", 0), ("eval_batches", 1), ("sample_every", 0), ("sample_tokens", 0),
                            ("log_every", 1), ("seed", 0), ("threads", 1)):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        for name, low, high in (("lr", 0, math.inf), ("final_lr", 0, 1), ("weight_decay", 0, math.inf), ("beta1", 0, 1),
                                ("beta2", 0, 1), ("grad_clip", 0, math.inf), ("val_fraction", 0, 0.9)):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"--{name.replace('_', '-')} must be in {low} .. {high}, not {getattr(self, name)}")
        if max(self.beta1, self.beta2) == 1:
            raise ValueError("--beta1 and --beta2 must be below 1: at 1 Adam would never take in a gradient")


def parse(argv, world):
    """(TrainConfig, GPTConfig) from the command line: the preset and its recipe, overridden by flags."""
    parser = Parser(prog="train_gpt2.py", description=__doc__.split("\n\n")[0], add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true", help="show this text")
    training = parser.add_argument_group("training")
    add_flags(training, TrainConfig)
    shape = parser.add_argument_group("model")
    shape.add_argument("--model", choices=PRESETS, default="demo", metavar="NAME",
                       help=f"preset: one of {', '.join(PRESETS)} (default: demo); the flags below change parts of it")
    add_flags(shape, GPTConfig, default_text="the preset's")
    args = parser.parse_args(argv)
    if args.help:
        world.print(parser.format_help())
        raise EarlyExit
    chosen = {f.name: getattr(args, f.name) for f in fields(GPTConfig) if getattr(args, f.name) is not None}
    try:
        gpt_config = GPTConfig.preset(args.model, **chosen)
    except ValueError as error:
        raise UserError(str(error)) from None
    for name, value in RECIPES[args.model].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.micro_batch_size is None:
        args.micro_batch_size = max(1, args.batch_size // world.size)
    config = from_flags(TrainConfig, args)
    if config.batch_size % (config.micro_batch_size * world.size):
        raise UserError(
            f"--batch-size {config.batch_size} does not split evenly into --micro-batch-size {config.micro_batch_size} "
            f"on {world.size} rank(s); make it a multiple of {config.micro_batch_size * world.size}"
        )
    return config, gpt_config


def main(world, argv=None):
    begin = time.perf_counter()
    config, gpt_config = parse(argv, world)
    use_kernels(config.kernels)
    xp = array_module(config.device)
    check_writable(config.weights_out)

    # -- world ---------------------------------------------------------------------------------------------------------

    accumulation = config.batch_size // (config.micro_batch_size * world.size)
    world.print("config   ", json.dumps(asdict(config)))
    world.print("model    ", json.dumps(gpt_config.to_dict()))
    threads = f" with {world.threads} thread(s) each" if world.threads else ""
    world.print(f"world     {world.size} rank(s){threads} on {config.device} ({xp.__name__} {xp.__version__})")
    world.print(f"kernels   {ops.describe_kernels(config.device, config.kernels)}")
    ops.announce_compiling(world.print)

    # -- data ----------------------------------------------------------------------------------------------------------

    text = read_bytes(config.data)
    if not text.strip():
        raise UserError(f"{config.data}: the file is empty; give a text to learn from with --data FILE")
    documents, V = split_documents(text), gpt_config.vocab_size
    tokenizer = Tokenizer.load(config.tokenizer) if config.tokenizer else Tokenizer.train(documents, V)
    if tokenizer.n_vocab > V:
        raise UserError(f"{config.tokenizer}: its {tokenizer.n_vocab} tokens do not fit --vocab-size {V}")
    tokens = encode_documents(documents, tokenizer)
    train_tokens, val_tokens = split_tokens(tokens, config.val_fraction)
    if len(train_tokens) < 2:
        raise UserError(f"{config.data}: {len(tokens)} token(s) are too few to learn from; give a longer text")
    loader = DataLoader(train_tokens, config.batch_size, gpt_config.block_size, world.rank, world.size)
    val_loader = None
    if config.eval_every and len(val_tokens) > 1:
        val_loader = DataLoader(val_tokens, config.batch_size, gpt_config.block_size, world.rank, world.size)

    world.print(f"data      {config.data}: {len(text):,} bytes, {len(documents):,} document(s), {len(tokens):,} tokens")
    world.print(f"tokenizer {tokenizer.n_vocab:,} different tokens; the model has {V:,} rows for them")
    world.print(f"split     {len(train_tokens):,} tokens to train, {len(val_tokens):,} to validate")
    if loader.repeats > 1:
        world.print(f"note      the text is shorter than a batch + 1: padded by repeating it {loader.repeats} times")
    epochs = config.steps * loader.tokens_per_batch / len(train_tokens)
    world.print(f"batch     {loader.tokens_per_batch:,} tokens per step = {world.size} rank(s) x {accumulation} micro-"
                f"batch(es) x {config.micro_batch_size} rows x {gpt_config.block_size}; {epochs:.1f} epochs")

    # -- model ---------------------------------------------------------------------------------------------------------

    model = GPT(gpt_config, seed=config.seed)
    model.recompute = config.recompute
    flat = FlatBuffers(model, config.device)
    world.broadcast(flat.data)
    world.print(f"model     {model.count_parameters():,} parameters")

    # -- optimizer -----------------------------------------------------------------------------------------------------

    optimizer = Adam(flat, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)
    keep_freed_memory()
    peak = gemm_peak(xp) * world.size
    flops_per_step = train_flops_per_token(model) * loader.tokens_per_batch
    world.print(f"machine   {peak / 1e9:.0f} GFLOP/s in matrix products; a step is {flops_per_step / 1e9:.1f} GFLOP\n")

    # -- loop ----------------------------------------------------------------------------------------------------------

    @np.errstate(over="ignore", invalid="ignore")                 # the loop looks at the loss itself
    def train_step(step):
        """One optimizer step; gives its loss and gradient norm, read from the device together."""
        flat.zero_grad()
        share = config.micro_batch_size / config.batch_size       # of a micro-batch in the mean over the batch
        total = 0.0
        for first_row, x, y in loader.micro_batches(step, config.micro_batch_size):
            set_dropout(model, config.seed, step, first_row)
            loss = model.loss(x, y) * share
            loss.backward()
            total = total + loss.data
        world.sum(flat.grad)
        norm, scale = clip_grad_norm(flat.grad, config.grad_clip)   # after the sum, so all ranks clip alike
        optimizer.step(lr(step), scale)
        loss, norm = to_host(xp.stack([total, norm])).tolist()      # the one place that waits for the device
        return world.sum_number(loss), norm

    def lr(step):
        final = config.final_lr * config.lr
        return learning_rate(step, config.schedule, config.lr, final, config.warmup_steps, config.steps)

    progress = Progress(config.steps, config.log_every, enabled=world.rank == 0)
    metrics = MetricsFile(config.metrics if world.rank == 0 else "")
    done = 0
    training_begin = time.perf_counter()
    try:
        for step in range(config.steps):
            start = time.perf_counter()
            loss, norm = train_step(step)
            seconds = time.perf_counter() - start
            if not math.isfinite(loss + norm):
                raise UserError(f"step {step + 1}: loss {loss}, gradient norm {norm}: the training has diverged and "
                                "was stopped, nothing is saved; try a smaller --lr or a longer --warmup-steps")
            done = step + 1
            ms, tokens_per_s = seconds * 1e3, loader.tokens_per_batch / seconds
            if step == 0:
                progress.note(f"expected first loss ln({V}) = {math.log(V):.4f}, measured {loss:.4f}")
            progress.step(done, f"loss {loss:.4f} | lr {lr(step):.2e} | norm {norm:.3f} | {ms:.0f} ms | "
                                f"{tokens_per_s:,.0f} tok/s | {flops_per_step / seconds / peak:4.0%} of peak")
            record = dict(step=step, loss=loss, lr=lr(step), grad_norm=norm, ms=ms, tokens_per_s=tokens_per_s)
            last = done == config.steps
            if val_loader and (last or done % config.eval_every == 0):
                record["val_loss"] = validate(model, val_loader, config, world)
                progress.note(f"validation loss {record['val_loss']:.4f} after {done} steps")
            if config.sample_every and done % config.sample_every == 0 and not last and world.rank == 0:
                rng = np.random.default_rng([config.seed, step])
                progress.note(f"sample: {sample_text(model, tokenizer, config, rng)}\n")
            metrics.append(record)
    except KeyboardInterrupt:
        if world.size > 1 or not done:
            raise
        progress.note(f"\nstopped by Ctrl-C after {done} of {config.steps} steps; saving what has been learned so far")

    # -- results -------------------------------------------------------------------------------------------------------

    if world.rank == 0:
        seconds = time.perf_counter() - training_begin
        print(f"\ntrained   {done} steps, {done * loader.tokens_per_batch:,} tokens in {duration(seconds)} "
              f"({done * loader.tokens_per_batch / seconds:,.0f} tokens/s with validation and samples); "
              f"{duration(time.perf_counter() - begin)} in all")
        print(f"greedy    {sample_text(model, tokenizer, config)}")
        run = dict(asdict(config), steps_done=done, loss=loss, ranks=world.size)
        save_weights(config.weights_out, model.state_dict(), gpt_config.to_dict(), tokenizer.to_json(), run)
        weights = "" if config.weights_out == TrainConfig.weights_out else f" --weights {config.weights_out}"
        print(f'\nweights in {config.weights_out}; now: python inference.py{weights} --prompt "{config.prompt}"')
    return 0


def validate(model, loader, config, world):
    """The mean loss over the first batches of the validation text, always the same ones, shared out over the ranks."""
    model.eval()
    batches = max(1, min(config.eval_batches, len(loader.tokens) // loader.tokens_per_batch))
    total = 0.0
    for step in range(batches):
        for _, x, y in loader.micro_batches(step, config.micro_batch_size):
            with no_grad():
                loss = model.loss(x, y)
            total += loss.item() * len(x)
    model.train()
    return world.sum_number(total) / (batches * config.batch_size)


def sample_text(model, tokenizer, config, rng=None):
    """The prompt and what the model makes of it; greedy without `rng`."""
    model.eval()
    ids = tokenizer.encode(config.prompt)
    new = model.generate(                                         # every document began after an end-of-text
        [tokenizer.eot, *ids], config.sample_tokens, rng, 0.8, stop=tokenizer.eot, n_vocab=tokenizer.n_vocab
    )
    text = tokenizer.decode([*ids, *new])
    model.train()
    return text


if __name__ == "__main__":
    world.run(lambda: main(world))
