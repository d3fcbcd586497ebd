"""Two ranks with one thread each against one rank with two threads, and against PyTorch's DDP (gloo), in turns.

    python -m benchmarks.ranks --model baby --batch-size 12 --seq-len 256

All sides train on the same global batches of random tokens from the same initial weights; the losses must agree. For
tinygrad2's ranks it also prints the shares of a step spent in communication (moving gradients), in waiting for the
other rank, and in the watchdog (comparing names, sizes and operations, deadlines).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys

from benchmarks.harness import ROOT, Side, installed, load_average, machine, ratio_of, save
from tinygrad2.distributed.mpirun import environment, find_mpirun
from tinygrad2.system.threads import available_cores


class Ranks(Side):
    """A side with several ranks under mpirun."""

    def __init__(self, name, ranks, config):
        self.name = name
        launcher = [find_mpirun(), "-n", str(ranks)] if ranks > 1 else []
        command = [*launcher, sys.executable, "-m", "benchmarks.ranks_side", "ours", json.dumps(config)]
        clean = {k: v for k, v in environment().items() if not k.endswith("_NUM_THREADS")}
        clean["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )


def products_by():
    """Name of the library that computes tinygrad2's matrix products."""
    from ops.kernels.cpu import blas_gemm

    return blas_gemm.vendor or "NumPy"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="baby", help="preset (default: baby)")
    parser.add_argument("--batch-size", type=int, default=12, help="sequences per step, all ranks (default: 12)")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens per sequence (default: 256)")
    parser.add_argument("--micro-batch-size", type=int, help="of tinygrad2 (default: the rank's share of the batch)")
    parser.add_argument("--ranks", type=int, default=2, help="number of ranks (default: 2)")
    parser.add_argument("--turns", type=int, default=6, help="turns per side (default: 6)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per turn, after a warmup step (default: 4)")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--flags", default="{}", help="further flags of tinygrad2 as JSON, such as {\"zero\": 1}")
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results")
    args = parser.parse_args()

    from models.config import GPTConfig

    model = GPTConfig.preset(args.model)
    model = GPTConfig.preset(args.model, block_size=max(args.seq_len, model.block_size))
    cores = len(available_cores())
    config = dict(model=model.to_dict(), batch_size=args.batch_size, seq_len=args.seq_len, seed=args.seed,
                  micro_batch_size=args.micro_batch_size, ranks=args.ranks, flags=json.loads(args.flags))  # fmt: skip
    each = max(1, cores // args.ranks)
    names = {"ours": f"ours, {args.ranks} ranks x {each}", "alone": f"ours, 1 rank x {cores}",
             "ddp": f"torch DDP, {args.ranks} x {each}"}  # fmt: skip
    sides = [Ranks(names["ours"], args.ranks, dict(config, threads=each)),
             Ranks(names["alone"], 1, dict(config, threads=cores))]  # fmt: skip
    if installed("torch"):
        text = json.dumps(dict(config, threads=each, port=free_port()))
        sides.append(Side(names["ddp"], "benchmarks.ranks_side", "ddp", text))
    print(f"{args.model}, B={args.batch_size} T={args.seq_len}, {cores} cores, load {load_average()}")
    losses = {side.name: side.ask(steps=3)["losses"] for side in sides}
    ms, peaks, shares = {side.name: [] for side in sides}, [], {side.name: [] for side in sides}
    for turn in range(args.turns):
        for side in sides:
            answer = side.ask(steps=1 + args.steps)
            ms[side.name].append(answer["ms"][1:])
            losses[side.name] += answer["losses"]
            seconds = sum(answer["ms"]) / 1e3
            collectives = 2                                       # per step: gradients, losses
            watchdog = collectives * len(answer["ms"]) * answer["watchdog_us"] / 1e6
            parts = answer.get("comm_seconds", 0), answer.get("wait_seconds", 0), watchdog
            shares[side.name].append([part / seconds for part in parts])
        print(f"turn {turn + 1}: " + ", ".join(f"{s} {statistics.median(ms[s][-1]):.1f} ms" for s in ms), flush=True)
        peaks.append(machine(cores))
    for side in sides:
        side.close()
    report(args, model, losses, ms, shares, [max(peak) for peak in zip(*peaks)], sides[0].name)


def report(args, model, losses, ms, shares, limits, first):
    gemm, memory = limits
    tokens = args.batch_size * args.seq_len
    C, V, L = model.n_embd, model.vocab_size, model.n_layer
    flops = (6 * (12 * L * C * C + V * C) + 12 * L * C * args.seq_len) * tokens
    print(f"\nmachine: {gemm / 1e9:.0f} GFLOP/s in matrix products, {memory / 1e9:.1f} GB/s through memory; "
          f"a step is {flops / 1e9:.0f} GFLOP; load {load_average()}")
    rows = []
    for name, times in ms.items():
        flat = sum(times, [])
        median = statistics.median(flat)
        ratio, low, high = ratio_of(times, ms[first])
        apart = max(abs(a - b) for a, b in zip(losses[name], losses[first]))
        comm, wait, watchdog = (statistics.median(column) for column in zip(*shares[name]))
        row = dict(
            model=args.model, batch_size=args.batch_size, seq_len=args.seq_len, side=name, flags=args.flags,
            products="PyTorch's own" if name.startswith("torch") else products_by(),
            min_ms=round(min(flat), 2), median_ms=round(median, 2), tokens_per_s=round(tokens / median * 1e3, 1),
            ranks_are_faster_by=round(ratio, 3), lowest=round(low, 3), highest=round(high, 3),
            communication=round(comm, 4), waiting=round(wait, 4), guard=round(watchdog, 5),
            share_of_gemm_peak=round(flops / median * 1e3 / gemm, 3), losses_apart=float(f"{apart:.2g}"),
            gemm_gflops=round(gemm / 1e9, 1), memory_gb_s=round(memory / 1e9, 1),
        )  # fmt: skip
        rows.append(row)
        print(f"{name:22} min {row['min_ms']:9.2f}  median {row['median_ms']:9.2f} ms  {row['tokens_per_s']:8.1f} "
              f"tok/s  x{ratio:.2f} ({low:.2f} .. {high:.2f})  {row['share_of_gemm_peak']:.0%} of peak  "
              f"comm {comm:.1%} wait {wait:.1%} watchdog {watchdog:.3%}  losses apart {apart:.1e}")
    if max(row["losses_apart"] for row in rows) > 1e-3:
        raise SystemExit("the losses differ: the sides did not do the same work, so the figures are invalid")
    if args.save:
        save("ranks", rows)


if __name__ == "__main__":
    main()
