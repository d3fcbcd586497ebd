"""Training steps of tinygrad2 and of PyTorch, in turns.

    python -m benchmarks.train --model gpt2 --batch-size 4 --seq-len 64 --against torch,torch-compile

Sides to compare with: torch (eager), torch-compile, torch-tuned and torch-compile-tuned (the same, with
environment variables that make glibc keep freed memory), reference (our reference implementations). In mixed precision:
bfloat16 (ours), torch-bfloat16 and torch-bfloat16-tuned (autocast), torch-bfloat16-compile(-tuned). With the matmul
precision "high": high (ours), torch-high, torch-high-tuned, torch-high-compile(-tuned). All other sides compute in
float32. Every side trains on the same synthetic tokens from the same initial weights with the same number of
threads; the losses must agree.
"""

import argparse
import json
import statistics

from benchmarks.harness import Side, dtype_of, installed, load_average, machine, ratio_of, save
from tinygrad2.system.threads import available_cores

TORCH = [f"torch{precision}{how}" for precision in ("", "-bfloat16", "-high")
         for how in ("", "-compile", "-tuned", "-compile-tuned")]  # fmt: skip
SIDES = (*TORCH, "bfloat16", "high", "reference")
SHAPE = ("vocab_size", "n_layer", "n_head", "n_embd")
LOSSES_APART = {"float32": 1e-3, "bfloat16": 3e-2}  # at most
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(16 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2", help="preset (default: gpt2)")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences per step (default: 4)")
    parser.add_argument("--seq-len", type=int, default=64, help="tokens per sequence (default: 64)")
    for flag in SHAPE:
        parser.add_argument(f"--{flag.replace('_', '-')}", type=int, help="instead of the preset's")
    parser.add_argument("--against", default="torch,torch-compile", help=f"some of {', '.join(SIDES)}")
    parser.add_argument("--threads", type=int, default=len(available_cores()), help="default: all cores")
    parser.add_argument("--turns", type=int, default=5, help="turns per side (default: 5)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per turn, after an untimed one (default: 3)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first turn (default: 3)")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--recompute", action="store_true", help="ours keeps only the inputs of blocks")
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results")
    args = parser.parse_args()
    others = [name for name in args.against.split(",") if name]
    if unknown := set(others) - set(SIDES):
        parser.error(f"unknown side(s) {', '.join(sorted(unknown))}; available: {', '.join(SIDES)}")
    if not installed("torch"):
        print("torch is not installed, its sides are left out: pip install torch==2.13.0")
        others = [name for name in others if not name.startswith("torch")]
    run(args, others)


def run(args, others):
    from models.config import GPTConfig

    changes = {name: value for name in SHAPE if (value := getattr(args, name))}
    model = GPTConfig.preset(args.model, **changes)
    model = GPTConfig.preset(args.model, block_size=max(args.seq_len, model.block_size), **changes)
    config = dict(model=model.to_dict(), batch_size=args.batch_size, seq_len=args.seq_len, seed=args.seed,
                  threads=args.threads, recompute=args.recompute)  # fmt: skip
    config_json = json.dumps(config)
    sides = [
        Side(name, "benchmarks.train_side", name, config_json, env=TUNED if name.endswith("tuned") else None)
        for name in ["ours", *others]
    ]
    print(f"{named(args)}, B={args.batch_size} T={args.seq_len}, {args.threads} thread(s), "
          f"load {load_average()}")
    losses = {side.name: side.ask(steps=args.warmup)["losses"] for side in sides}
    ms, rss, peaks = {side.name: [] for side in sides}, {}, []
    for turn in range(args.turns):
        first = turn % len(sides)                                 # a side may be slower after some of the others
        for side in sides[first:] + sides[:first]:
            answer = side.ask(steps=1 + args.steps)
            ms[side.name].append(answer["ms"][1:])                # the first step after a pause has cold caches
            losses[side.name] += answer["losses"]
            rss[side.name] = answer["peak_rss"]
        print(f"turn {turn + 1}: " + ", ".join(f"{s} {statistics.median(ms[s][-1]):.1f} ms" for s in ms), flush=True)
        peaks.append(machine(args.threads))
    for side in sides:
        side.close()
    report(args, config, losses, ms, rss, [max(peak) for peak in zip(*peaks)])


def named(args):
    """The preset, with what is changed: "demo n_layer=4"."""
    changes = [f" {name}={value}" for name in SHAPE[1:] if (value := getattr(args, name))]
    return args.model + "".join(changes)


def report(args, config, losses, ms, rss, limits):
    gemm, memory = limits
    model, tokens = config["model"], args.batch_size * args.seq_len
    C, V, L = model["n_embd"], model["vocab_size"], model["n_layer"]
    flops = (6 * (12 * L * C * C + V * C) + 12 * L * C * args.seq_len) * tokens
    print(f"\nmachine: {gemm / 1e9:.0f} GFLOP/s in matrix products, {memory / 1e9:.1f} GB/s memory bandwidth; "
          f"a step is {flops / 1e9:.0f} GFLOP; load {load_average()}")
    ours = ms["ours"]
    rows = []
    for name, turns in ms.items():
        all_ms = sum(turns, [])
        median = statistics.median(all_ms)
        ratio, low, high = ratio_of(turns, ours)
        difference = max(abs(a - b) for a, b in zip(losses[name], losses["ours"]))
        row = dict(
            model=named(args), batch_size=args.batch_size, seq_len=args.seq_len, threads=args.threads, side=name,
            recompute=args.recompute and name == "ours",
            min_ms=round(min(all_ms), 2), median_ms=round(median, 2), tokens_per_s=round(tokens / median * 1e3, 1),
            ours_is_faster_by=round(ratio, 3), lowest=round(low, 3), highest=round(high, 3),
            peak_rss_mb=round(rss[name] / 1e6), share_of_gemm_peak=round(flops / median * 1e3 / gemm, 3),
            losses_apart=float(f"{difference:.2g}"), gemm_gflops=round(gemm / 1e9, 1),
            memory_gb_s=round(memory / 1e9, 1),
        )  # fmt: skip
        rows.append(row)
        print(f"{name:20} min {row['min_ms']:9.2f}  median {row['median_ms']:9.2f} ms  "
              f"{row['tokens_per_s']:9.1f} tok/s  x{ratio:.2f} ({low:.2f} .. {high:.2f})  {row['peak_rss_mb']:5} MB  "
              f"{row['share_of_gemm_peak']:.0%} of peak  losses differ by {difference:.1e}")
    worst = max(row["losses_apart"] / LOSSES_APART[dtype_of(row["side"])] for row in rows)
    if worst > 1:
        raise SystemExit(f"the losses differ by {worst:.1f} times what they may: the sides did not do the same work, "
                         "ignore the timings")  # fmt: skip
    if args.save:
        save("train", rows)


if __name__ == "__main__":
    main()
