"""Train a GPT-2 from scratch on a text, and write trained_weights.bin for inference.py.

    python train_gpt2.py --seed 1337                                 the bundled stories, under a minute on two cores
    python train_gpt2.py --data my.txt --model baby --steps 2000     your own text
    python train_gpt2.py --resume                                    go on where the last run was stopped
    mpirun -n 4 python train_gpt2.py --seed 1337                     the same training, shared by four processes

Read it from top to bottom: config, trainer, and in main world, data, model, loop, results.
"""

from tinygrad2.distributed import EarlyExit, World
from tinygrad2.threads import threads_flag

if __name__ == "__main__":
    import sys

    world = World.join(threads_flag(sys.argv))  # threads are planned before NumPy is imported, and starts its own

import json
import math
import time
from dataclasses import asdict
from functools import partial

import numpy as np

import ops
from models import GPT, PRESETS, GPTConfig
from models.dropout import set_dropout
from tinygrad2.backend import array_module, to_host, xp_of
from tinygrad2.checkpoint import Checkpoint, CheckpointWriter, newest_checkpoint
from tinygrad2.dataloader import DataLoader
from tinygrad2.dataset import open_dataset
from tinygrad2.dump import explain_nonfinite
from tinygrad2.files import UserError, check_writable
from tinygrad2.flags import Parser, add_flags, build, given, saved_values
from tinygrad2.function import use_kernels
from tinygrad2.machine import gemm_peak, give_back_freed_memory, keep_freed_memory, train_flops_per_token
from tinygrad2.memory import advice, available_bytes, forget_peak, megabytes, peak_resident_bytes, plan_memory
from tinygrad2.module import FlatBuffers
from tinygrad2.optim import Adam, clip_grad_norm, learning_rate
from tinygrad2.outliers import Outliers
from tinygrad2.progress import MetricsFile, Progress, duration
from tinygrad2.runfolder import RunFolder
from tinygrad2.signals import StopRequest
from tinygrad2.tensor import no_grad
from tinygrad2.tensorboard import TensorBoard
from tinygrad2.tokenizers import tokenizer_from_json
from tinygrad2.trainconfig import RECIPES, TrainConfig
from tinygrad2.weights import save_weights

# -- config ------------------------------------------------------------------------------------------------------------


def parse(argv, world, saved=None):
    """(TrainConfig, GPTConfig, preset) from the command line: the preset and its recipe, overridden by flags.

    With `saved`, the state of a checkpoint, its flags hold where the command line says nothing.
    """
    parser = Parser(prog="train_gpt2.py", description=__doc__.split("\n\n")[0], add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true", help="show this text")
    training = parser.add_argument_group("training")
    add_flags(training, TrainConfig)
    shape = parser.add_argument_group("model")
    shape.add_argument("--model", choices=PRESETS, metavar="NAME",
                       help=f"preset: one of {', '.join(PRESETS)} (default: demo); the flags below change parts of it")
    add_flags(shape, GPTConfig, default_text="the preset's")
    args = parser.parse_args(argv)
    if args.help:
        world.print(parser.format_help())
        raise EarlyExit
    preset, flags, model_flags = args.model or "demo", given(TrainConfig, args), given(GPTConfig, args)
    values = RECIPES[preset]
    if saved:
        preset, values = saved["preset"], saved_values(TrainConfig, saved["training"])
        model_flags = saved["model"] | model_flags
        if args.model not in (None, preset):
            raise UserError(f"--resume: the training to go on with is of --model {preset}, not {args.model}")
    config = build(TrainConfig, values | flags)
    gpt_config = build(GPTConfig, PRESETS.get(preset, {}) | model_flags)
    for name in () if saved is None else ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias"):
        if getattr(gpt_config, name) != saved["model"].get(name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"--resume: {flag} was {saved['model'].get(name)} when this training began, and must stay")
    return fit_batch(config, world.size, "micro_batch_size" in flags), gpt_config, preset


def fit_batch(config, ranks, micro_is_fixed):
    """The config with a micro batch size, checked: the batch must split evenly."""
    micro = config.micro_batch_size
    if micro is None or (not micro_is_fixed and config.batch_size % (micro * ranks)):
        micro = max(1, config.batch_size // ranks)
    if config.batch_size % (micro * ranks):
        raise UserError(
            f"--batch-size {config.batch_size} does not split evenly into --micro-batch-size {micro} "
            f"on {ranks} rank(s); make it a multiple of {micro * ranks}"
        )
    return build(TrainConfig, asdict(config) | {"micro_batch_size": micro})


# -- trainer -----------------------------------------------------------------------------------------------------------


class Trainer:
    """Model, optimizer and the place in the data; `step` moves all three on.

    done       optimizer steps done
    position   where the next batch begins, two integers (see DataLoader)
    """

    def __init__(self, config, gpt_config, world):
        self.config, self.world = config, world
        self.model = GPT(gpt_config, seed=config.seed)
        self.model.recompute = config.recompute
        self.flat = FlatBuffers(self.model, config.device)
        self.optimizer = Adam(self.flat, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)
        self.done, self.position = 0, (0, 0)
        self.copies = None                                        # of weights and moments, for the writer

    def lr(self):
        """The learning rate of the next step."""
        c = self.config
        return learning_rate(self.done, c.schedule, c.lr, c.final_lr * c.lr, c.warmup_steps, c.steps)

    @np.errstate(over="ignore", invalid="ignore")                 # the loop looks at the loss itself
    def step(self, loader):
        """One optimizer step; gives its loss and gradient norm. Where they are not finite, nothing is changed."""
        self.flat.zero_grad()
        total = 0.0
        for first_row, x, y in loader.micro_batches(self.position, self.config.micro_batch_size):
            total = total + self.micro_step(first_row, x, y)
        self.world.sum(self.flat.grad)
        norm, scale = clip_grad_norm(self.flat.grad, self.config.grad_clip)    # after the sum, so all ranks clip alike
        loss, norm = to_host(xp_of(norm).stack([total, norm])).tolist()        # the one place that waits for the device
        loss = self.world.sum_number(loss)
        if math.isfinite(loss + norm):
            self.optimizer.step(self.lr(), scale)
            self.position = loader.after(self.position)
            self.done += 1
        return loss, norm

    def micro_step(self, first_row, x, y):
        """Forward and backward of some rows of the batch; gives their part of the loss. Gradients add up."""
        set_dropout(self.model, self.config.seed, self.done, first_row)
        loss = self.model.loss(x, y) * (len(x) / self.config.batch_size)       # their part of the mean over the batch
        loss.backward()
        return loss.data

    def checkpoint(self, state, tokenizer, history, copy=True):
        """Everything; a copy of it where the training goes on. `state` is what the loop wants back besides."""
        state = state | {"step": self.done, "position": list(self.position)}
        arrays = [to_host(array) for array in (self.flat.data, self.optimizer.m, self.optimizer.v)]
        if copy:  # into the same memory each time: fresh memory costs ten times as much as the copying
            self.copies = self.copies or [np.empty_like(array) for array in arrays]
            for kept, array in zip(self.copies, arrays):
                np.copyto(kept, array)
            arrays = self.copies
        weights, m, v = map(self.flat.named_views, arrays)
        moments = {f"m.{name}": array for name, array in m.items()} | {f"v.{name}": array for name, array in v.items()}
        return Checkpoint(weights, moments, self.optimizer.t, state, tokenizer, self.model.config.to_dict(), history)

    def restore(self, checkpoint):
        """Go back to where the checkpoint was made."""
        try:
            self.model.load_state_dict(checkpoint.weights)
            self.optimizer.load_state_dict(checkpoint.moments, checkpoint.t)
        except ValueError as error:
            raise UserError(f"{checkpoint.path}: {error}") from None
        self.done, self.position = checkpoint.step, tuple(checkpoint.state["position"])

    def synchronize(self):
        """Every rank takes over what rank 0 has: it alone reads checkpoints."""
        self.optimizer.t, self.done, self.position = self.world.share((self.optimizer.t, self.done, self.position))
        for array in (self.flat.data, self.optimizer.m, self.optimizer.v) if self.done else (self.flat.data,):
            self.world.broadcast(array)


def main(world, argv=None):
    begin = time.perf_counter()
    config, gpt_config, preset = parse(argv, world)
    folder, checkpoint, damaged, state = RunFolder(config.run_dir), None, [], None
    if world.rank == 0:
        folder.check()
        if config.resume:
            folder.open()
            checkpoint, damaged = newest_checkpoint(folder.checkpoints, world.print)
            state = checkpoint and checkpoint.state | {"tokenizer": checkpoint.tokenizer}
            world.print(f"resume    from {checkpoint.path}" if checkpoint else "resume    nothing here yet: beginning")
    state = world.share(state)
    if state:
        config, gpt_config, preset = parse(argv, world, state)
        tell_changes(state["training"], config, world)
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

    V, T = gpt_config.vocab_size, gpt_config.block_size
    known = tokenizer_from_json(state["tokenizer"], config.run_dir) if state and state["tokenizer"] else None
    data = open_dataset(config.data, config.dataset, config.tokenizer, V, config.val_fraction, world, known)
    tokenizer = data.tokenizer
    if state and state["data"] != data.fingerprint:
        raise UserError(f"{config.data}: these are not the data that the training in {config.run_dir} began with; "
                        "bring them back, or begin a new training with another --run-dir")
    loader = DataLoader(data.train, config.batch_size, T, world.rank, world.size, config.order, config.seed)
    val_loader = None
    if config.eval_every and data.val:
        val_loader = DataLoader(data.val, config.batch_size, T, world.rank, world.size, "sequential")

    for line in data.description:
        world.print(line)
    if tokenizer:
        world.print(f"tokenizer {tokenizer.n_vocab:,} different tokens; the model has {V:,} rows for them")
    world.print(f"split     {len(data.train):,} tokens to train, {len(data.val or ()):,} to validate")
    if loader.repeats > 1:
        world.print(f"note      the text is shorter than a batch + 1: padded by repeating it {loader.repeats} times")
    epochs = config.steps * loader.tokens_per_batch / len(data.train)
    world.print(f"batch     {loader.tokens_per_batch:,} tokens per step = {world.size} rank(s) x {accumulation} micro-"
                f"batch(es) x {config.micro_batch_size} rows x {T}; {epochs:.1f} epochs")

    # -- model ---------------------------------------------------------------------------------------------------------

    give_back_freed_memory()                                      # of making tokens; the plan is about the training
    forget_peak()
    plan = plan_for(config, gpt_config)
    trainer = Trainer(config, gpt_config, world)
    if checkpoint:
        trainer.restore(checkpoint)
    trainer.synchronize()
    keep_freed_memory()
    model = trainer.model
    peak = gemm_peak(xp) * world.size
    flops_per_step = train_flops_per_token(gpt_config) * loader.tokens_per_batch
    world.print(f"model     {model.count_parameters():,} parameters")
    if config.device == "cpu":
        tell_memory(plan, config, gpt_config, world)
    world.print(f"machine   {peak / 1e9:.0f} GFLOP/s in matrix products; a step is {flops_per_step / 1e9:.1f} GFLOP\n")

    # -- loop ----------------------------------------------------------------------------------------------------------

    if world.rank == 0:
        folder.open()
        if not trainer.done:
            folder.set_aside(world.print)
        folder.write_config(training=asdict(config), model=gpt_config.to_dict(), preset=preset, data=data.fingerprint)
    history = checkpoint.history if checkpoint else b""
    del checkpoint                                                # its arrays have been copied
    metrics = MetricsFile((config.metrics or folder.metrics) if world.rank == 0 else "", trainer.done > 0, history)
    board = TensorBoard(folder.path if config.tensorboard and world.rank == 0 else "")
    progress = Progress(config.steps, config.log_every, enabled=world.rank == 0, start=trainer.done)
    writer = CheckpointWriter(folder.checkpoints, config.keep_checkpoints, damaged)
    windows = {name: Outliers(state["windows"][name] if state else ()) for name in ("loss", "grad_norm")}
    best, loss = (state["best"], state["loss"]) if state else (None, None)
    first, training_begin = trainer.done, time.perf_counter()
    with StopRequest(talk=world.rank == 0) as stop:
        stopping = False
        while trainer.done < config.steps and not stopping:
            step, lr, start = trainer.done, trainer.lr(), time.perf_counter()
            loss, norm = trainer.step(loader)
            seconds = time.perf_counter() - start
            if not math.isfinite(loss + norm):
                writer.join(progress.note)
                explain_nonfinite(trainer, loader, loss, norm, folder, tokenizer, progress.note)
            done, last = trainer.done, trainer.done == config.steps
            ms, tokens_per_s = seconds * 1e3, loader.tokens_per_batch / seconds
            if step == 0:
                progress.note(f"expected first loss ln({V}) = {math.log(V):.4f}, measured {loss:.4f}")
            progress.step(done, f"loss {loss:.4f} | lr {lr:.2e} | norm {norm:.3f} | {ms:.0f} ms | "
                                f"{tokens_per_s:,.0f} tok/s | {flops_per_step / seconds / peak:4.0%} of peak")
            record = dict(step=step, loss=loss, lr=lr, grad_norm=norm, ms=ms, tokens_per_s=tokens_per_s)
            for name, window in windows.items():
                z = window.z_score(record[name])
                if 0 < config.outlier_z < z:
                    progress.note(f"warning   step {done}: {name} {record[name]:.4f} lies {z:.1f} standard deviations "
                                  f"above the last {len(window.values)}")
            is_best = False
            if val_loader and (last or done % config.eval_every == 0):
                record["val_loss"] = validate(model, val_loader, config, world)
                progress.note(f"validation loss {record['val_loss']:.4f} after {done} steps")
                is_best = best is None or record["val_loss"] < best
                best = record["val_loss"] if is_best else best
            if config.sample_every and done % config.sample_every == 0 and not last and world.rank == 0:
                rng = np.random.default_rng([config.seed, step])
                progress.note(f"sample: {sample_text(model, tokenizer, config, rng)}\n")
            metrics.append(record)
            board.append(record)
            stopping = world.any(stop.signal)
            every = config.checkpoint_every
            if world.rank == 0 and (last or stopping or (every and (is_best or done % every == 0))):
                state = dict(
                    training=asdict(config), model=gpt_config.to_dict(), preset=preset, data=data.fingerprint,
                    loss=loss, best=best, val_loss=record.get("val_loss"),
                    windows={name: list(window.values) for name, window in windows.items()},
                )  # fmt: skip
                goes_on = not last and not stopping               # then the writer needs a copy, one at a time
                writer.join(progress.note)
                whole = partial(trainer.checkpoint, state, data.tokenizer_json, metrics.content())
                writer.save(whole(copy=goes_on), progress.note)

        # -- results ---------------------------------------------------------------------------------------------------

        if world.rank == 0:
            seconds, steps = time.perf_counter() - training_begin, trainer.done - first
            tokens = steps * loader.tokens_per_batch
            print(f"\ntrained   {steps} steps, {tokens:,} tokens in {duration(seconds)} "
                  f"({tokens / seconds:,.0f} tokens/s with validation and samples); "
                  f"{duration(time.perf_counter() - begin)} in all")
            if config.device == "cpu" and (most := peak_resident_bytes()):
                print(f"memory    {megabytes(most)} at the peak; the plan was {megabytes(plan.total)}")
            print(f"greedy    {sample_text(model, tokenizer, config)}")
            run = dict(asdict(config), steps_done=trainer.done, loss=loss, ranks=world.size)
            weights = model.state_dict(copy=False)
            save_weights(config.weights_out, weights, gpt_config.to_dict(), data.tokenizer_json, run)
            writer.join(print)
            weights = "" if config.weights_out == TrainConfig.weights_out else f" --weights {config.weights_out}"
            print(f'\nweights in {config.weights_out}; now: python inference.py{weights} --prompt "{config.prompt}"')
            if trainer.done < config.steps:
                where = "" if config.run_dir == TrainConfig.run_dir else f" --run-dir {config.run_dir}"
                print(f"stopped after {trainer.done} of {config.steps} steps; go on with: python train_gpt2.py{where} "
                      "--resume")
    board.close()
    return 128 + stop.signal if stop.signal and stopping else 0


def plan_for(config, gpt_config, base=None, **changes):
    """The MemoryPlan of this training on the CPU; `changes` replace rows, length, recompute or keeps_copies."""
    pages = config.kernels == "reference" or not ops.have_cpu_kernels()
    saves = 0 < config.checkpoint_every < config.steps
    values = dict(rows=config.micro_batch_size, length=gpt_config.block_size, recompute=config.recompute)
    values |= dict(keeps_copies=saves) | changes
    return plan_memory(gpt_config, gpt_config.count_parameters(), pages=pages, base=base, **values)


def tell_memory(plan, config, gpt_config, world):
    """One line about the plan; where it does not fit, what would help."""
    kinds = {name: f"{megabytes(size)} {name}" for name, size in plan.parts.items() if size}
    layer = f"{megabytes(sum(plan.layer.values()))} a layer{', one at a time' if config.recompute else ''}"
    kinds["activations kept for backward"] += f" ({layer})"
    world.print(f"memory    {megabytes(plan.total)} planned: {', '.join(kinds.values())}")
    available = available_bytes()
    needed = world.size * (plan.total - plan.parts["Python and libraries"])
    if available is not None and needed > available:
        world.print(f"warning   this machine has {megabytes(available)} left for {world.size} rank(s); what helps:")
        base = plan.parts["Python and libraries"]
        changed = partial(plan_for, config, gpt_config, base)
        for line in advice(changed, available / world.size, config.micro_batch_size, gpt_config.block_size):
            world.print(f"          {line}")


def tell_changes(before, config, world):
    """What is not as it was when the training began: then its rest is not what it would have been."""
    now = asdict(config)
    for name in now:
        if name in before and before[name] != now[name] and name not in ("resume", "run_dir"):
            world.print(f"resume    --{name.replace('_', '-')} {before[name]} is now {now[name]}")


def validate(model, loader, config, world):
    """The mean loss over the first batches of the validation text, always the same ones, shared out over the ranks."""
    model.eval()
    batches = max(1, min(config.eval_batches, len(loader.stream) // loader.tokens_per_batch))
    total, position = 0.0, (0, 0)
    for _ in range(batches):
        for _, x, y in loader.micro_batches(position, config.micro_batch_size):
            with no_grad():
                loss = model.loss(x, y)
            total += loss.item() * len(x)
        position = loader.after(position)
    model.train()
    return world.sum_number(total) / (batches * config.batch_size)


def sample_text(model, tokenizer, config, rng=None):
    """The prompt and what the model makes of it; greedy without `rng`. Without a tokenizer: numbers."""
    model.eval()
    ids = tokenizer.encode(config.prompt) if tokenizer else []
    eot = tokenizer.eot if tokenizer else None
    start = [*([] if eot is None else [eot]), *ids] or [0]        # every document began after an end-of-text
    n_vocab = tokenizer.n_vocab if tokenizer else None
    new = list(model.generate(start, config.sample_tokens, rng, 0.8, stop=eot, n_vocab=n_vocab))
    model.train()
    return tokenizer.decode([*ids, *new]) if tokenizer else " ".join(map(str, new))


if __name__ == "__main__":
    world.run(lambda: main(world))
