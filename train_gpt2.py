"""Train a GPT-2 from scratch on a text, and write trained_weights.bin for inference.py.

    python train_gpt2.py --seed 1337                                 the bundled stories, 1 to 2 minutes on two cores
    python train_gpt2.py --data my.txt --model baby --steps 2000     your own text
    python train_gpt2.py --resume                                    continue where the last run was stopped
    mpirun -n 4 python train_gpt2.py --seed 1337                     the same training, shared by four processes

Trainer.step is one step of the training, and main right after it the whole: configuration, data, model, loop, results.
"""

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

from tinygrad2.distributed.launch import exit_with_line
from tinygrad2.distributed.world import World
from tinygrad2.errors import EarlyExit, UserError
from tinygrad2.system.installation import refuse_name_clash, require_libraries
from tinygrad2.system.threads import threads_flag

refuse_name_clash(exit_with_line if __name__ == "__main__" else None)
if __name__ == "__main__":
    import sys

    world = World.join(threads_flag(sys.argv))  # before NumPy is imported: its BLAS then starts the planned threads
    require_libraries(exit_with_line)

import math
import time
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial

import numpy as np

import ops
from models import PRESETS
from models.dropout import dropout_keys, set_dropout
from models.families import ModelFlags, make_config, make_model
from models.pretrained import config_for_training, load_into
from tinygrad2.backend import array_module, to_host
from tinygrad2.cli import Parser, add_flags, build, callable_main, given, summary
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.datasets.dataset import open_dataset
from tinygrad2.distributed.nccl import connect_gpus
from tinygrad2.distributed.reducer import Reducer, compare_weights
from tinygrad2.evaluation import hellaswag
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.gpu.choices import choosing
from tinygrad2.gpu.device import choose_gpu, peak_memory
from tinygrad2.halves import check_dtype
from tinygrad2.interop.pretrained import open_model
from tinygrad2.io.files import first_bytes
from tinygrad2.io.weights import save_weights
from tinygrad2.loss_scale import LossScale
from tinygrad2.monitor.dump import raise_nonfinite
from tinygrad2.optim import Adam, clip_scale
from tinygrad2.precision import computing, precision_of
from tinygrad2.system.gemm_peak import gemm_peak
from tinygrad2.system.memory import forget_peak, give_back_freed_memory, keep_freed_memory
from tinygrad2.system.signals import SIGXCPU, StopRequest
from tinygrad2.tokenizers.load import tokenizer_from_json
from tinygrad2.training import report, snapshot, validation
from tinygrad2.training.checkpoint import CheckpointWriter
from tinygrad2.training.config import OF_THIS_START, RECIPES, TrainConfig, fit_batch, learning_rate_at
from tinygrad2.training.disk_plan import check_disk
from tinygrad2.training.gpu_plan import plan_for
from tinygrad2.training.gpu_rules import refuse_gpu_flags
from tinygrad2.training.lookahead import Lookahead, is_read
from tinygrad2.training.outputs import check_outputs
from tinygrad2.training.run_dir import RunDir
from tinygrad2.training.run_log import RunLog
from tinygrad2.training.run_state import RunState
from tinygrad2.training.tuning import choose_products

# -- trainer -----------------------------------------------------------------------------------------------------------


class Trainer:
    """Model, optimizer and the position in the data; `step` moves all three on.

    done       optimizer steps done
    position   where the next batch starts, two integers (see DataLoader)
    stopping   the signal after which all ranks stop, or 0
    skipped    the gradients of the last step overflowed float16: the weights are as before (loss_scale.py)
    finished   all steps are done, or a signal has come
    """

    def __init__(self, config, model_config, world, stop=None):
        self.config, self.world, self.stop = config, world, stop
        self.model = make_model(model_config, None if config.init_from else config.seed, config.recompute)
        self.flat = FlatBuffers(self.model, config.device)        # all weights in one array, all gradients in another
        self.micro_batches = config.batch_size // config.micro_batch_size                  # of all ranks together
        nccl = connect_gpus(world, config.device, config.gpu_allreduce, config.comm_dtype)
        overlap = world.hosts > 1 or nccl is not None if config.overlap == "auto" else config.overlap == "yes"
        self.reducer = Reducer(
            self.flat, world, self.micro_batches // world.size, order=config.reduce_order,
            comm_dtype=config.comm_dtype, shard=config.zero > 0, overlap=overlap, nccl=nccl,
        )  # fmt: skip
        betas, parts = (config.beta1, config.beta2), self.reducer.parts
        self.optimizer = Adam(self.flat, betas=betas, weight_decay=config.weight_decay, parts=parts)
        self.loss_scale = LossScale(dynamic=config.dtype == "float16")
        self.done, self.position, self.stopping, self.skipped = 0, (0, 0), 0, False

    @property
    def finished(self):
        return self.done >= self.config.steps or self.stopping > 0

    def lr(self):
        """The learning rate of the next step."""
        return learning_rate_at(self.done, self.config)

    def dropout_keys(self):
        """Integers of 64 bits which choose the masks of the next step, one for each layer; none without dropout."""
        has_dropout = getattr(self.model.config, "dropout", 0)
        return dropout_keys(self.model, self.config.seed, self.done) if has_dropout else []

    def micro_step(self, first_row, x, y, scale=None, keys=None):
        """Forward and backward of some rows of the batch; returns their loss. Gradients add up.

        scale    of the loss, by default loss_scale.value: 1, except with --dtype float16
        keys     of the masks of dropout, by default those of dropout_keys
        """
        set_dropout(self.model, self.config.seed, self.done, first_row, keys)
        loss = self.model.loss(x, y)
        loss.backward(self.loss_scale.value if scale is None else scale)
        return loss.data

    def gather_losses(self, losses, norm):
        """(mean loss over the micro-batches of all ranks, gradient norm, stop signal or 0), the same on every rank."""
        row = to_host(array_module(self.config.device).stack([*losses, norm])).tolist()    # waits for the device: once
        row.append(self.stop.signal or 0 if self.stop else 0)
        rows = self.world.all_gather(np.array(row), f"losses of step {self.done + 1}")     # (ranks, micro-batches + 2)
        losses, norms, signals = rows[:, :-2], rows[:, -2], rows[:, -1]
        return math.fsum(losses.flat) / self.micro_batches, float(norms[0]), int(signals.max())

    @np.errstate(over="ignore", invalid="ignore")                 # the caller checks loss and norm
    def step(self, loader, is_outlier=None):
        """One optimizer step; returns its loss and gradient norm. Where they are not finite, and the step was not
        `skipped`, nothing has changed.

        is_outlier    is_outlier(loss, norm): should the weights stay as they are? (--skip-outliers)
        """
        losses = []
        self.reducer.begin(f"gradients of step {self.done + 1}")
        for first_row, x, y in loader.micro_batches(self.position, self.config.micro_batch_size):
            with self.reducer.micro_batch():
                losses.append(self.micro_step(first_row, x, y))   # forward, backward; gradients add up
        self.reducer.finish()                                     # now they are the sum over all ranks

        norm = self.reducer.grad_norm() / self.micro_batches      # of the mean over micro-batches, as is the loss
        loss, norm, self.stopping = self.gather_losses(losses, norm)
        loss_scale, norm = self.loss_scale.value, norm / self.loss_scale.value
        self.skipped = self.loss_scale.overflows(loss, norm)
        if not (math.isfinite(loss + norm) or self.skipped):
            return loss, norm
        self.loss_scale.update(self.skipped)
        if not (self.skipped or is_outlier and is_outlier(loss, norm)):
            scale = clip_scale(self.flat.data.dtype.type(norm), self.config.grad_clip) / self.micro_batches
            self.optimizer.step(self.lr(), float(scale) / loss_scale)  # clipped, and from sum to mean, in one factor
            self.reducer.all_gather_weights(f"weights of step {self.done + 1}")                # only with --zero 1
        if not self.config.overfit_one_batch:
            self.position = loader.after(self.position)
        self.done += 1
        return loss, norm


# -- the training ------------------------------------------------------------------------------------------------------


@callable_main
def main(world, argv=None):
    """Train a model and write its weights; returns the exit code. Every rank runs this.

    argv    the flags; by default the process's, in a notebook none
    """
    start = time.perf_counter()
    config, model_config, state, run_dir, checkpoint = configure(argv, world)
    tokenizer, loader, val_loader, examples, pretrained = open_data(config, model_config, state, world)

    plan = plan_memory(config, model_config, world)
    chosen_for = ops.products_chosen_for(array_module(config.device), config.kernels)
    tuning = choose_products(config, chosen_for, state, world)
    stop = StopRequest(verbose=world.rank == 0)
    trainer = Trainer(config, model_config, world, stop)
    lookahead = Lookahead(trainer)
    if checkpoint:
        snapshot.restore(trainer, checkpoint)                     # on rank 0, the only one that reads it
    if pretrained:
        world.on_rank_0("loading the pretrained weights", load_into, trainer.model, pretrained)
        world.on_rank_0("checking the weights", snapshot.refuse_useless_start, trainer.flat, config.init_from)
    snapshot.synchronize(trainer, checkpoint)                     # now all ranks have what rank 0 has

    ideal_seconds = measure_costs(trainer, plan, loader)
    world.on_rank_0("opening the run directory", run_dir.begin, state, world.print)
    log = RunLog(config, run_dir, state, world, loader.tokens_per_batch, ideal_seconds, checkpoint)
    del checkpoint                                                # its arrays have been copied
    writer = CheckpointWriter(run_dir.checkpoints, config.keep_checkpoints, run_dir.damaged, config.keep_every)
    report_loss = partial(validation.report_loss_and_samples, trainer, val_loader or loader, tokenizer, log.note)
    if pretrained:
        with computing(config):
            state.before = report_loss("before")

    saved_if_data_changes = snapshot.saved_if_data_changes(trainer, writer, state, log)
    with closing(run_dir), closing(log), computing(config), choosing(tuning.choices), stop, saved_if_data_changes:
        while not trainer.finished:                               # a signal ends the loop after a step
            with log.timing():
                is_outlier = log.is_outlier if config.skip_outliers else None
                steps = lookahead.step(loader, is_outlier, is_read(config, trainer.done + 1))
            for step in steps:                                    # one, on a CPU
                if not (math.isfinite(step.loss + step.norm) or step.overflow):
                    log.flush()                                   # the steps before it
                    writer.join(log.note)
                    raise_nonfinite(trainer, loader, step.loss, step.norm, run_dir.path, tokenizer, log.note)
                log.step(step, notices(loader, val_loader), len(steps))
            if not steps:
                continue

            done, is_last = trainer.done, trainer.done == config.steps      # a signal makes finished true, not is_last
            if trainer.finished or due(config.compare_every, done):
                compare_weights(trainer.flat, done, world)
            if val_loader and (is_last or due(config.eval_every, done)):
                log.validation(validation.validate(trainer.model, val_loader, config, world))
            if examples and (is_last or due(config.eval_every, done)):
                log.hellaswag(*hellaswag.accuracy(trainer.model, examples, world))
            if not is_last and due(config.sample_every, done):
                world.on_rank_0(f"sampling after step {done}", validation.print_sample, trainer, tokenizer, log.note)
            log.flush()
            wanted = due(config.checkpoint_every, done) or (config.checkpoint_every and log.is_best)
            if trainer.finished or wanted or due(config.keep_every, done):
                snapshot.save(trainer, writer, state, log)

        if state.before is not None:
            report.print_finetuned(state.before, report_loss("after"), trainer.done, world.print)
        peaks = world.all_gather_object(peak_memory(config.device), "peaks of memory")
        world.on_rank_0("writing the results", write_results, trainer, log, writer, tokenizer, plan, peaks, start)
    return 128 + trainer.stopping if trainer.stopping else 0


def notices(*loaders):
    """Lines for the user: what has happened to the files of data since the last call."""
    return [line for loader in loaders if loader for line in loader.stream.notices()]


def due(interval, done):
    """Is it time, after `done` steps, for what happens every `interval` steps? Never, if the interval is 0."""
    return interval > 0 and done % interval == 0


# -- before the loop ---------------------------------------------------------------------------------------------------


def read_command_line(argv, log=print):
    """The flags as argparse's namespace, None for those not given. --help prints with `log` and raises EarlyExit."""
    after = "With the same flags, python -m tinygrad2 plan estimates memory and time, and profile measures a step."
    parser = Parser(prog="train_gpt2.py", description=summary(__doc__), epilog=after, add_help=False)
    parser.add_argument("--help", "-h", action="store_true", help="show this text")
    training = parser.add_argument_group("training")
    add_flags(training, TrainConfig)
    shape = parser.add_argument_group("model")
    shape.add_argument("--model", choices=PRESETS, metavar="NAME",
                       help=f"preset: one of {', '.join(PRESETS)} (default: demo); the flags below change parts of it")
    add_flags(shape, ModelFlags, default_text="the preset's")
    args = parser.parse_args(argv)
    if args.help:
        log(parser.format_help())
        raise EarlyExit
    return args


def parse(argv, ranks=None, saved=None, log=print):
    """(TrainConfig, ModelConfig, preset) from the command line: the preset and its recipe, overridden by flags.

    ranks   how many share the batch; None: as many as --ranks says, or one
    saved   RunState of a checkpoint: its flags hold if the command line has none
    """
    return resolve(read_command_line(argv, log), ranks, saved)


def resolve(args, ranks=None, saved=None):
    """The same, from the flags that were given."""
    flags, model_flags = given(TrainConfig, args), given(ModelFlags, args)
    if saved:
        saved.refuse_changes(args.model, flags, model_flags)
        preset, model_config = saved.preset, build(make_config, saved.model | model_flags)
        flags = saved.flags_of_resumed(flags)
    elif args.init_from:
        if args.model:
            raise UserError(f"--model {args.model}: --init-from sets the model's shape; use only one of the two")
        preset, model_config = "--init-from", config_for_training(args.init_from, model_flags, args.tokenizer or "")
    else:
        preset = args.model or "demo"
        model_config = build(make_config, PRESETS[preset] | model_flags)
    config = build(TrainConfig, RECIPES[preset] | flags)
    if config.recompute or config.dtype != "float32":
        model_config.require_gpt("--recompute" if config.recompute else f"--dtype {config.dtype}")
    ranks = ranks or config.ranks or 1
    refuse_gpu_flags(config, ranks)
    ops.refuse_attention(config, model_config)
    return fit_batch(config, ranks, args.micro_batch_size is not None), model_config, preset


def configure(argv, world):
    """(config, model_config, RunState, RunDir, Checkpoint); the checkpoint on rank 0 with --resume, else None.

    Rank 0 reads the newest intact checkpoint, and all ranks continue with its flags.
    """
    args = read_command_line(argv, world.print)
    world.require_size(args.ranks)
    run_dir, checkpoint, saved = RunDir(TrainConfig.run_dir if args.run_dir is None else args.run_dir), None, None
    world.on_rank_0("checking the run directory", run_dir.check)
    if args.resume:
        checkpoint = world.on_rank_0("looking for a checkpoint", run_dir.find_checkpoint, world.print)
        saved = world.broadcast_object(checkpoint and RunState.from_checkpoint(checkpoint))
    config, model_config, preset = resolve(args, world.size, saved)
    world.require_same("flags", asdict(config) | model_config.to_dict())
    world.set_timeout(config.timeout)
    if saved:
        report.print_changes(saved, config, model_config, world.print)
    xp = array_module(config.device)
    choose_gpu(xp, world.host_rank)
    dtype = check_dtype(xp, config.dtype)
    attention = ops.describe_attention(config, model_config, xp)
    world.on_rank_0("checking what will be written", check_outputs, config, run_dir, world.print)
    parameters, done = model_config.count_parameters(), saved.step if saved else 0
    world.on_rank_0("checking the room on the disk", check_disk, config, parameters, run_dir, done)
    described = ops.describe_kernels(config.device, config.kernels)
    products = ops.describe_products(config.device, config.kernels, precision_of(config))
    report.print_setup(config, model_config, preset, world, described, products, xp, dtype, attention)
    ops.announce_compiling(world.print)
    ops.announce_missing_kernels(world.print)
    state = replace(saved or RunState(preset), training=asdict(config), model=model_config.to_dict())
    return config, model_config, state, run_dir, checkpoint


def open_data(config, model_config, state, world):
    """(tokenizer, loader, validation loader, HellaSwag examples, Pretrained); all except the loader may be None.

    Fills in `state.data` and `state.tokenizer`. Raises UserError if a training is resumed on other data.
    """
    V, T = model_config.vocab_size, model_config.block_size
    pretrained, tokenizer, examples, val_loader = None, None, None, None
    if config.hellaswag:
        first_bytes(config.hellaswag)                             # an error now, not after the text was tokenized
    if config.init_from and not state.step:
        pretrained = open_model(config.init_from, config.tokenizer)
        pretrained.crop(T)
        tokenizer = pretrained.tokenizer
    elif state.tokenizer:
        tokenizer = tokenizer_from_json(state.tokenizer, config.run_dir)
    data = open_dataset(
        config.data, name=config.dataset, tokenizer=config.tokenizer, vocab_size=V, val_fraction=config.val_fraction,
        world=world, known_tokenizer=tokenizer, may_train=not config.init_from, is_resumed=state.step > 0,
    )  # fmt: skip
    files = world.broadcast_object(world.on_rank_0("reading the data", data.file_sums))
    state.refuse_other_data(data, files, config)
    state.data, state.files, state.tokenizer = data.fingerprint, files, data.tokenizer_json
    state.training["data"] = data.source                          # of a pipe: the file that a resumed training reads
    loader = DataLoader(data.train, config.batch_size, T, world.rank, world.size, config.order, config.seed)
    if config.eval_every and data.val:
        val_loader = DataLoader(data.val, config.batch_size, T, world.rank, world.size, "sequential")
    if config.hellaswag:
        examples = hellaswag.load_examples(config.hellaswag, data.tokenizer, config.hellaswag_examples)
        if line := state.note_questions(hellaswag.checksum(examples), config.hellaswag):
            world.print(line)
    report.print_data(data, loader, pretrained, config, model_config, world)
    if problem := validation.check_prompt(data.tokenizer, config):
        world.print(f"note      {problem}")
    return data.tokenizer, loader, val_loader, examples if config.eval_every else None, pretrained


def plan_memory(config, model_config, world):
    """The MemoryPlan of a rank, or its GpuPlan. What opening the data took is returned to the system first."""
    give_back_freed_memory()
    forget_peak()
    compiles = ops.must_compile(config.kernels, precision_of(config), config.device)
    reference = ops.runs_reference(config.kernels, config.device)
    return plan_for(config).of(config, model_config, reference, compiles, world.size)


def measure_costs(trainer, plan, loader):
    """Report what a step takes; returns the seconds of its arithmetic at this machine's peak."""
    keep_freed_memory()
    peak = gemm_peak(array_module(trainer.config.device)) * trainer.world.size
    flops = trainer.model.config.train_flops_per_token() * loader.tokens_per_batch
    report.print_costs(trainer, plan, peak, flops)
    return flops / peak


# -- after the loop ----------------------------------------------------------------------------------------------------


def write_results(trainer, log, writer, tokenizer, plan, peaks, start):
    """On rank 0: report what was done, write the weights, and wait until the last checkpoint is written."""
    config, model, state = trainer.config, trainer.model, log.state
    steps = trainer.done - state.step                             # of this process
    seconds, total_seconds = log.seconds(), time.perf_counter() - start
    in_time = trainer.stopping != SIGXCPU                         # if not, the system kills it soon
    sample = validation.sample_text(model, tokenizer, config) if in_time else ""
    overflows = trainer.loss_scale.skipped
    skipped = trainer.done - trainer.optimizer.t - overflows      # by --skip-outliers, from the first step on
    tokens = steps * log.tokens
    report.print_results(config, steps, tokens, seconds, total_seconds, plan, peaks, sample, skipped, overflows)
    flags = {name: value for name, value in asdict(config).items() if name not in OF_THIS_START}
    run = dict(flags, steps_done=trainer.done, loss=state.loss)  # the same file after any restart, by any ranks
    writer.join(print)
    try:
        save_weights(config.weights_out, model.state_dict(copy=False), model.config.to_dict(), state.tokenizer, run)
    except UserError as error:                                    # a full disk, for example
        raise UserError(f"{error}; {report.where_the_weights_are(writer.path)}") from None
    knows_prompt = not validation.check_prompt(tokenizer, config)
    report.print_next_commands(trainer.done, config, trainer.world.size, tokenizer, knows_prompt)


if __name__ == "__main__":
    world.run(lambda: main(world, sys.argv[1:]))
