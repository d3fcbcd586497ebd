"""python -m tinygrad2 profile [flags of train_gpt2.py]: where does the time of a training step go?

Runs some steps of this training, without writing weights, metrics or checkpoints, and prints the time of each op and
each layer, forward and backward, and of all other parts of a step: data, sums over ranks, gradient norm, optimizer. Of
matrix products it shows the speed as a share of the fastest product on this machine, of the rest as a share of the
memory bandwidth; both are measured first. With --data (or --init-from) the training's own data, else random tokens.

    --measure N       measured steps (default: 10); as many without profiling take turns with them
    --warm-up N       steps before that (default: 3)
    --json            print one JSON object instead of tables
    --trace FILE      write one step as a trace for https://ui.perfetto.dev or chrome://tracing; compressed if the name
                      ends in .gz. It shows what each thread and each rank did: mpirun -n 2 python -m tinygrad2 profile

All other flags are those of train_gpt2.py (see its --help).
"""

import contextlib
import json
import math
import socket
import statistics
import sys
import time
from dataclasses import asdict

import numpy as np

import ops
import train_gpt2
from models.pretrained import load_into
from tinygrad2.backend import array_module
from tinygrad2.cli import Parser, PathAction, explanation
from tinygrad2.commands.profile_tables import layer_table, main_table, summarize
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.distributed.clocks import clock_offset
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.gpu.choices import choosing
from tinygrad2.gpu.device import choose_gpu
from tinygrad2.halves import check_dtype
from tinygrad2.io.outputs import check_output
from tinygrad2.monitor.profiler import Profiler
from tinygrad2.monitor.trace import is_trace, rank_events, write_trace
from tinygrad2.precision import computing, precision_of
from tinygrad2.system.bandwidth import bandwidth
from tinygrad2.system.gemm_peak import gemm_peak
from tinygrad2.system.memory import keep_freed_memory
from tinygrad2.system.processor import cpu_name
from tinygrad2.system.threads import planned_threads
from tinygrad2.training import snapshot
from tinygrad2.training.gpu_rules import refuse_graph
from tinygrad2.training.outputs import inputs_of
from tinygrad2.training.run_state import RunState
from tinygrad2.training.tuning import Tuning


def main(argv, world=None):
    world = world or World()
    own, flags = read_flags(argv)
    if own.help:
        world.print(explanation(__doc__))
        return 0
    args = train_gpt2.read_command_line(flags)
    world.require_size(args.ranks)
    if args.resume:
        raise UserError("--resume: a profile starts a training of its own")
    config, model_config, preset = train_gpt2.resolve(args, world.size)
    refuse_graph(config, "a profile times ops one by one, and starts their kernels so")
    world.require_same("flags", asdict(config) | model_config.to_dict() | vars(own))
    world.set_timeout(config.timeout)
    if own.trace:
        check = check_output, "--trace", own.trace, "a trace of tinygrad2", is_trace, list(inputs_of(config))
        world.on_rank_0("checking the file of the trace", *check)
    xp = array_module(config.device)
    choose_gpu(xp, world.host_rank)
    check_dtype(xp, config.dtype)
    ops.describe_attention(config, model_config, xp)              # an error now, if it cannot run
    with computing(config), contextlib.redirect_stdout(sys.stderr) if own.json else contextlib.nullcontext():
        ops.announce_compiling(world.print)
        trainer, loader = prepare(config, model_config, world, args)
        tuning = Tuning(config, ops.products_chosen_for(xp, config.kernels), {}, world)
        with choosing(tuning.choices):
            result, recording = measure(trainer, loader, own)
    products = ops.describe_products(config.device, config.kernels, precision_of(config)), tuning.describe()
    result |= {"model": config.init_from or preset, "parameters": model_config.count_parameters(),
               "kernels": ops.describe_kernels(config.device, config.kernels), "processor": cpu_name(),
               "products": "; ".join(filter(None, products)),
               "threads": planned_threads()}  # fmt: skip
    if own.trace:
        offset, error = clock_offset(world)
        events = rank_events(recording, world.rank, socket.gethostname(), offset)
        events = sum(world.all_gather_object(events, "traces of the ranks"), [])
        about = {"clocks of ranks agree within us": round(1e6 * error, 1), **result}
        world.on_rank_0("writing the trace", write_trace, own.trace, events, about)
    if own.json:
        world.print(json.dumps(result))
        return 0
    for line in report(result):
        world.print(line)
    if own.trace:
        world.print(f"\ntrace     {own.trace}: open it in https://ui.perfetto.dev")
    return 0


def read_flags(argv):
    """(the command's own flags, the others, which are train_gpt2.py's). Raises UserError."""
    parser = Parser(prog="tinygrad2 profile", add_help=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trace", action=PathAction, role="output", default="")
    parser.add_argument("--measure", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    own, flags = parser.parse_known_args(argv)
    for name, value, least in (("--measure", own.measure, 1), ("--warm-up", own.warm_up, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")
    return own, flags


def prepare(config, model_config, world, args):
    """(Trainer, DataLoader) as train_gpt2.py makes them; random tokens if no data is given."""
    pretrained = None
    if args.data or args.init_from:
        _, loader, _, _, pretrained = train_gpt2.open_data(config, model_config, RunState(""), world)
    else:
        T, V = model_config.block_size, model_config.vocab_size
        tokens = np.random.default_rng(config.seed).integers(0, V, max(1 << 16, 8 * config.batch_size * T + 1))
        loader = DataLoader(tokens, config.batch_size, T, world.rank, world.size, config.order, config.seed)
    trainer = train_gpt2.Trainer(config, model_config, world)
    if pretrained:
        world.on_rank_0("loading the pretrained weights", load_into, trainer.model, pretrained)
    snapshot.synchronize(trainer, None)
    keep_freed_memory()
    return trainer, loader


def measure(trainer, loader, own):
    """(a dict of JSON values, the Recording of the step whose duration is the median).

    Steps with and without profiling and the limits of the machine take turns, so that all see the same machine.
    """
    world, xp = trainer.world, array_module(trainer.config.device)
    world.barrier("measuring the machine")
    limits = [(gemm_peak(xp, seconds=0.3), bandwidth(0.3, xp=xp))]
    profiler, losses, plain = Profiler(trainer), [], []
    for _ in range(own.warm_up):
        _checked_step(trainer, trainer.step, loader, losses)
    for _ in range(own.measure):
        begin = time.perf_counter()
        _checked_step(trainer, trainer.step, loader, losses)
        plain.append(1e3 * (time.perf_counter() - begin))
        _checked_step(trainer, profiler.step, loader, losses)
        limits.append((gemm_peak(xp), bandwidth(0.1, xp=xp)))      # again: a shared machine is not always as fast
    peak, memory = map(max, zip(*limits))
    size, n = trainer.flat.data.nbytes, trainer.optimizer.m.size / trainer.flat.size
    summary = summarize(profiler.steps, 7 * n * size, size)       # Adam reads p, g, m, v and writes p, m, v
    times = [1e3 * recording.step.seconds for recording in profiler.steps]
    middle = world.broadcast_object(times.index(statistics.median_low(times)), "the step of the trace")
    overhead = statistics.median(times) / statistics.median(plain) - 1
    result = {**summary, "steps": own.measure, "profiled_ms": times, "plain_ms": plain, "overhead": overhead,
              "peak_gflops": peak / 1e9, "bandwidth_gbs": memory / 1e9, "losses": losses,
              "batch": [trainer.config.batch_size, trainer.model.config.block_size],
              "micro_batch": trainer.config.micro_batch_size}  # fmt: skip
    wait, comm = _sum_of(summary, "waiting"), _sum_of(summary, "communication")
    own_times = {"step_ms": summary["step_ms"], "wait_ms": wait, "comm_ms": comm}
    result["ranks"] = world.all_gather_object(own_times, "times of the ranks")
    return result, profiler.steps[middle]


def _checked_step(trainer, step, loader, losses):
    loss, norm = step(loader)
    if not (math.isfinite(loss + norm) or trainer.skipped):
        raise UserError(f"step {trainer.done + 1}: the loss is {loss}, the gradient norm {norm}; choose a lower --lr")
    losses.append(loss)


def _sum_of(summary, beginning):
    return sum(row["ms"] for row in summary["rows"] if row["name"].startswith(beginning))


def report(result):
    """Lines for the user."""
    peak, memory, step_ms = 1e9 * result["peak_gflops"], 1e9 * result["bandwidth_gbs"], result["step_ms"]
    (B, T), ranks = result["batch"], result["ranks"]
    of = f" on each of {len(ranks)} ranks; the tables are rank 0's" if len(ranks) > 1 else ""
    yield (f"model     {result['model']}: {result['parameters']:,} parameters; a step has {B} x {T} tokens, in "
           f"micro-batches of {result['micro_batch']}{of}")  # fmt: skip
    yield f"kernels   {result['kernels']}; {result['threads']} thread(s)"
    yield f"products  {result['products']}"
    limits = f"{peak / 1e9:.0f} GFLOP/s in matrix products, {memory / 1e9:.1f} GB/s through memory"
    yield f"machine   {result['processor']}; {limits} (measured now)"
    gflop = sum(row["gflop"] for row in result["rows"])
    low, high = min(result["profiled_ms"]), max(result["profiled_ms"])
    yield (f"step      {step_ms:,.1f} ms ({low:,.1f} to {high:,.1f} in {result['steps']} steps), "
           f"{1e3 * B * T / step_ms:,.0f} tokens/s; {gflop:,.1f} GFLOP of matrix products, "
           f"{1e12 * gflop / step_ms / peak:.0%} of the peak")  # fmt: skip
    yield (f"overhead  steps without profiling take {statistics.median(result['plain_ms']):,.1f} ms: profiling changes "
           f"that by {result['overhead']:+.1%}\n")  # fmt: skip
    yield from main_table(result, peak, memory)
    yield ""
    yield from layer_table("layer", result["layers"], step_ms)
    if parts := {name: times for name, times in result["parts"].items() if name}:
        yield ""
        yield from layer_table("part of a block, all blocks", parts, step_ms)
    if any(row["gflop"] > 1.05 * peak / 1e9 * row["ms"] / 1e3 for row in result["rows"]):
        yield "\nnote      above 100 % of the peak: other programs were running while the peak was measured"
    busy = ", ".join(f"{name} {share:.0%}" for name, share in result["busy"].items())
    if busy:                                                      # not where NumPy or a GPU computes alone
        yield f"\nthreads   computing parts of kernels: {busy} of the step"
    if len(ranks) > 1:
        for rank, times in enumerate(ranks):
            yield (f"rank {rank:<5d}step {times['step_ms']:,.1f} ms, of which waiting {times['wait_ms']:,.1f}, "
                   f"communication {times['comm_ms']:,.1f}")  # fmt: skip
