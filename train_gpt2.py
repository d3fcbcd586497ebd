"""Train a GPT-2 from scratch on a text, and write trained_weights.bin for inference.py.

    python train_gpt2.py --seed 1337                                 the bundled stories, under a minute on two cores
    python train_gpt2.py --data my.txt --model baby --steps 2000     your own text
    python train_gpt2.py --resume                                    go on where the last run was stopped
    mpirun -n 4 python train_gpt2.py --seed 1337                     the same training, shared by four processes

Read it from top to bottom: config, trainer, and in main world, data, model, loop, results.
"""

from tinygrad2.distributed.launch import leave
from tinygrad2.distributed.world import World
from tinygrad2.errors import EarlyExit
from tinygrad2.installation import refuse_name_clash
from tinygrad2.system.threads import threads_flag

if __name__ == "__main__":
    import sys

    refuse_name_clash(leave)
    world = World.join(threads_flag(sys.argv))  # threads are planned before NumPy is imported, and starts its own

import json
import math
import time
from dataclasses import asdict
from functools import partial

import numpy as np

import ops
from models import GPT, PRESETS, GPTConfig
from models.config import train_flops_per_token
from models.dropout import set_dropout
from models.pretrained import config_for_training, load_into
from tinygrad2.backend import array_module, choose_gpu, to_host
from tinygrad2.cli import Parser, add_flags, build, given, saved_values
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.datasets.dataset import open_dataset
from tinygrad2.distributed.nccl import nccl_of
from tinygrad2.distributed.reducer import Reducer, compare_weights
from tinygrad2.errors import UserError
from tinygrad2.evaluation.hellaswag import accuracy, load_examples
from tinygrad2.function import fastest, use_kernels
from tinygrad2.interop.pretrained import open_model
from tinygrad2.io.files import check_writable
from tinygrad2.io.weights import save_weights
from tinygrad2.module import FlatBuffers
from tinygrad2.monitor.dump import explain_nonfinite
from tinygrad2.monitor.metrics import MetricsFile
from tinygrad2.monitor.outliers import Outliers
from tinygrad2.monitor.progress import Progress
from tinygrad2.monitor.tensorboard import TensorBoard
from tinygrad2.optim import Adam, clip_scale, learning_rate, norm_of, square_sums
from tinygrad2.system.machine import gemm_peak
from tinygrad2.system.memory import forget_peak, give_back_freed_memory, keep_freed_memory, peak_resident_bytes
from tinygrad2.system.signals import StopRequest
from tinygrad2.tokenizers.load import tokenizer_from_json
from tinygrad2.training.checkpoint import CheckpointWriter, newest_checkpoint
from tinygrad2.training.config import RECIPES, TrainConfig
from tinygrad2.training.memory_plan import plan_for, tell_memory
from tinygrad2.training.report import print_changes, print_next_commands, print_results
from tinygrad2.training.run_dir import RunFolder
from tinygrad2.training.snapshot import Snapshots
from tinygrad2.training.validation import refuse_overwrite, report_loss_and_samples, sample_text, validate

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
    if args.init_from and not saved:
        preset = "--init-from"
        if args.model:
            raise UserError(f"--model {args.model}: --init-from brings the shape of its model; leave one of them out")
    values = RECIPES[preset]
    if saved:
        preset, values = saved["preset"], saved_values(TrainConfig, saved["training"])
        model_flags = saved["model"] | model_flags
        if args.init_from not in (None, saved["training"].get("init_from", "")):
            raise UserError(f"--resume --init-from {args.init_from}: this training has begun already; leave one out")
        if args.model not in (None, preset):
            raise UserError(f"--resume: the training to go on with is of --model {preset}, not {args.model}")
    config = build(TrainConfig, values | flags)
    if config.init_from and not saved:
        gpt_config = config_for_training(config.init_from, model_flags, config.tokenizer)
    else:
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


class Trainer(Snapshots):
    """Model, optimizer and the place in the data; `step` moves all three on. (Snapshots: to a checkpoint and back.)

    done       optimizer steps done
    position   where the next batch begins, two integers (see DataLoader)
    stopping   the signal because of which all ranks stop after the last step, or 0
    """

    def __init__(self, config, gpt_config, world, stop=None):
        self.config, self.world, self.stop = config, world, stop
        self.model = GPT(gpt_config, seed=None if config.init_from else config.seed)
        self.model.recompute = config.recompute
        self.flat = FlatBuffers(self.model, config.device)
        self.micro_batches = config.batch_size // config.micro_batch_size      # of all ranks together
        count, early = self.micro_batches // world.size, config.overlap == "yes"
        if config.overlap == "auto":
            early = world.hosts > 1                                            # over one host there is nothing to gain
        self.reducer = Reducer(
            self.flat, world, count, config.sum, config.wire, config.zero > 0, early, nccl_of(config, world)
        )
        betas, parts = (config.beta1, config.beta2), self.reducer.parts
        self.optimizer = Adam(self.flat, betas=betas, weight_decay=config.weight_decay, parts=parts)
        self.done, self.position, self.stopping = 0, (0, 0), 0

    def lr(self):
        """The learning rate of the next step."""
        c = self.config
        return learning_rate(self.done, c.schedule, c.lr, c.final_lr * c.lr, c.warmup_steps, c.steps)

    @np.errstate(over="ignore", invalid="ignore")                 # the loop looks at the loss itself
    def step(self, loader):
        """One optimizer step; gives its loss and gradient norm. Where they are not finite, nothing is changed."""
        self.reducer.begin(f"gradients of step {self.done + 1}")
        losses = []
        for first_row, x, y in loader.micro_batches(self.position, self.config.micro_batch_size):
            with self.reducer.micro_batch():
                losses.append(self.micro_step(first_row, x, y))
        self.reducer.finish()
        xp, dtype = array_module(self.config.device), self.flat.data.dtype
        sums = self.reducer.square_sums(fastest("square_sums", xp, square_sums))
        norm = xp.asarray(norm_of(sums, dtype)) / self.micro_batches           # of the mean over micro-batches
        own = to_host(xp.stack([*losses, norm])).tolist()         # the one place that waits for the device
        own.append(self.stop.signal or 0 if self.stop else 0)
        every = self.world.all_gather(np.array(own), f"losses of step {self.done + 1}")
        loss, norm = math.fsum(every[:, :-2].flat) / self.micro_batches, float(every[0, -2])  # all take rank 0's norm
        self.stopping = int(every[:, -1].max())
        if math.isfinite(loss + norm):
            scale = clip_scale(dtype.type(norm), self.config.grad_clip) / self.micro_batches
            self.optimizer.step(self.lr(), float(scale))          # here the sum becomes the mean, once
            self.reducer.spread_weights(f"weights of step {self.done + 1}")
            self.position = loader.after(self.position)
            self.done += 1
        return loss, norm

    def micro_step(self, first_row, x, y):
        """Forward and backward of some rows of the batch; gives their loss. Gradients add up."""
        set_dropout(self.model, self.config.seed, self.done, first_row)
        loss = self.model.loss(x, y)
        loss.backward()
        return loss.data


def main(world, argv=None):
    begin = time.perf_counter()
    config, gpt_config, preset = parse(argv, world)
    world.set_timeout(config.timeout)
    world.require_size(config.ranks)
    world.require_same("flags", asdict(config) | gpt_config.to_dict())
    folder, checkpoint, damaged, state = RunFolder(config.run_dir), None, [], None
    with world.alone("looking for a checkpoint") as mine:
        if mine:
            folder.check()
        if mine and config.resume:
            folder.open()
            checkpoint, damaged = newest_checkpoint(folder.checkpoints, world.print)
            state = checkpoint and checkpoint.state | {"tokenizer": checkpoint.tokenizer}
            world.print(f"resume    from {checkpoint.path}" if checkpoint else "resume    nothing here yet: beginning")
    state = world.broadcast_object(state)
    if state:
        config, gpt_config, preset = parse(argv, world, state)
        print_changes(state["training"], config, world)
    use_kernels(config.kernels)
    xp = array_module(config.device)
    choose_gpu(xp, world.host_rank)
    check_writable(config.weights_out)
    if not state:
        refuse_overwrite(config)

    # -- world ---------------------------------------------------------------------------------------------------------

    accumulation = config.batch_size // (config.micro_batch_size * world.size)
    world.print("config   ", json.dumps(asdict(config)))
    world.print("model    ", json.dumps(gpt_config.to_dict()))
    threads = f" with {world.threads} thread(s) each" if world.threads else ""
    world.print(f"world     {world.size} rank(s){threads} on {config.device} ({xp.__name__} {xp.__version__})")
    for line in world.describe():
        world.print(f"          {line}")
    world.print(f"kernels   {ops.describe_kernels(config.device, config.kernels)}")
    ops.announce_compiling(world.print)

    # -- data ----------------------------------------------------------------------------------------------------------

    V, T = gpt_config.vocab_size, gpt_config.block_size
    known = tokenizer_from_json(state["tokenizer"], config.run_dir) if state and state["tokenizer"] else None
    found = open_model(config.init_from, config.tokenizer) if config.init_from and not state else None
    if found:
        found.crop(T)
        known = found.tokenizer
        for line in (f"{found.path} ({found.kind})", *found.notes):
            world.print(f"begin     with {line}")
    flags = config.data, config.dataset, config.tokenizer, V, config.val_fraction
    data = open_dataset(*flags, world, known, may_train=not config.init_from)
    tokenizer = data.tokenizer
    if state and state["data"] != data.fingerprint:
        raise UserError(f"{config.data}: these are not the data that the training in {config.run_dir} began with; "
                        "bring them back, or begin a new training with another --run-dir")
    if config.hellaswag:
        examples = load_examples(config.hellaswag, tokenizer, config.hellaswag_examples)
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
    reference = ops.runs_reference(config.kernels)
    plan = plan_for(config, gpt_config, reference, world.size)
    stop = StopRequest(talk=world.rank == 0)
    trainer = Trainer(config, gpt_config, world, stop)
    if checkpoint:
        trainer.restore(checkpoint)
    with world.alone("reading the model to begin with") as mine:
        if mine and found:
            load_into(trainer.model, found)
    trainer.synchronize()
    for line in trainer.reducer.describe():
        world.print(line)
    if world.size > 1 and reference:
        world.print("note      BLAS rounds otherwise with other numbers of threads: the same bits need equal --threads")
    keep_freed_memory()
    model = trainer.model
    peak = gemm_peak(xp) * world.size
    flops_per_step = train_flops_per_token(gpt_config) * loader.tokens_per_batch
    world.print(f"model     {model.count_parameters():,} parameters")
    if config.device == "cpu":
        changed = partial(plan_for, config, gpt_config, reference, world.size, plan.parts["Python and libraries"])
        tell_memory(plan, changed, config, gpt_config, world)
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
    before = state.get("before") if state else None
    look = partial(report_loss_and_samples, trainer, val_loader or loader, tokenizer, config, world, progress.note)
    if found:
        before = look("before")
    first, training_begin = trainer.done, time.perf_counter()
    with stop:
        while trainer.done < config.steps and not trainer.stopping:
            step, lr = trainer.done, trainer.lr()
            times = np.array([time.perf_counter(), world.comm_seconds, world.wait_seconds])
            loss, norm = trainer.step(loader)
            seconds, moved, waited = (time.perf_counter(), world.comm_seconds, world.wait_seconds) - times
            if not math.isfinite(loss + norm):
                writer.join(progress.note)
                explain_nonfinite(trainer, loader, loss, norm, folder, tokenizer, progress.note)
            done, last = trainer.done, trainer.done == config.steps
            ms, tokens_per_s = seconds * 1e3, loader.tokens_per_batch / seconds
            if step == 0 and not config.init_from:
                progress.note(f"expected first loss ln({V}) = {math.log(V):.4f}, measured {loss:.4f}")
            share = f" | comm {moved / seconds:.1%}, wait {waited / seconds:.1%}" if world.size > 1 else ""
            progress.step(done, f"loss {loss:.4f} | lr {lr:.2e} | norm {norm:.3f} | {ms:.0f} ms | "
                                f"{tokens_per_s:,.0f} tok/s | {flops_per_step / seconds / peak:4.0%} of peak{share}")
            record = dict(step=step, loss=loss, lr=lr, grad_norm=norm, ms=ms, tokens_per_s=tokens_per_s)
            if world.size > 1:
                record |= dict(comm_ms=moved * 1e3, wait_ms=waited * 1e3)
            if last or trainer.stopping or (config.compare_every and done % config.compare_every == 0):
                compare_weights(trainer.flat, done, world)
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
            if config.hellaswag and config.eval_every and (last or done % config.eval_every == 0):
                record["hellaswag"], n = accuracy(model, examples, world)
                progress.note(f"HellaSwag {record['hellaswag']:.3f} of {n} examples after {done} steps")
            if config.sample_every and done % config.sample_every == 0 and not last:
                with world.alone(f"sampling after step {done}") as mine:
                    if mine:
                        rng = np.random.default_rng([config.seed, step])
                        progress.note(f"sample: {sample_text(model, tokenizer, config, rng)}\n")
            metrics.append(record)
            board.append(record)
            every, goes_on = config.checkpoint_every, not (last or trainer.stopping)
            if not goes_on or (every and (is_best or done % every == 0)):
                state = dict(
                    training=asdict(config), model=gpt_config.to_dict(), preset=preset, data=data.fingerprint,
                    loss=loss, best=best, val_loss=record.get("val_loss"), before=before,
                    windows={name: list(window.values) for name, window in windows.items()},
                )  # fmt: skip
                with world.alone("writing the last checkpoint") as mine:
                    if mine:
                        writer.join(progress.note)                # its copies are needed again
                arrays = trainer.gather(copy=goes_on)
                with world.alone(f"beginning a checkpoint after step {done}") as mine:
                    if mine:
                        whole = partial(trainer.checkpoint, arrays, state, data.tokenizer_json, metrics.content())
                        writer.save(whole(), progress.note)
                del arrays

        # -- results ---------------------------------------------------------------------------------------------------

        if before is not None:
            after = look("after")
            world.print(f"finetuned loss on the new text {before:.4f} before, {after:.4f} after {trainer.done} steps")
        peaks = world.all_gather_object(peak_resident_bytes(), "peaks of memory")
        with world.alone("writing the results") as mine:
            if mine:
                seconds, steps = time.perf_counter() - training_begin, trainer.done - first
                print_results(trainer, config, tokenizer, plan, peaks, steps * loader.tokens_per_batch, seconds, begin)
                run = dict(asdict(config), steps_done=trainer.done, loss=loss, ranks=world.size)
                weights = model.state_dict(copy=False)
                save_weights(config.weights_out, weights, gpt_config.to_dict(), data.tokenizer_json, run)
                writer.join(print)
                print_next_commands(trainer.done, config)
    board.close()
    return 128 + trainer.stopping if trainer.stopping else 0


if __name__ == "__main__":
    world.run(lambda: main(world))
