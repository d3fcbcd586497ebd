"""Each kernel against its page and against PyTorch's, in turns.

    python -m benchmarks.ops                              all of them
    python -m benchmarks.ops --only attention,gelu        some

Forward and backward are timed apart. The speed of ours is given in GFLOP/s, with the share of the best matrix product,
where an op is made of products, and in GB/s, with the share of the best trip, where it is a trip through memory;
both limits are measured in the same run.
"""

import argparse
import math
import statistics

from benchmarks.harness import Side, installed, load_average, machine, save
from benchmarks.ops_side import CASES
from tinygrad2.system.threads import available_cores


def flops_of(op, shapes):
    """Floating point operations of forward and backward, for ops made of products."""
    if op in ("linear", "linear_cross_entropy"):
        return 6 * shapes[0][0] * math.prod(shapes[1])
    if op == "mlp":
        return 6 * shapes[0][0] * (math.prod(shapes[1]) + math.prod(shapes[3]))
    if op == "attention":
        B, nh, T, hs = shapes[0]
        return 7 * 2 * B * nh * T * T * hs / 2                    # 2 products forward, 5 backward; half is masked
    return 0


def bytes_of(op, shapes):
    """Bytes that forward and backward must read and write at the least, for the others."""
    size = 4 * math.prod(shapes[0])
    passes = {"layernorm": 5, "add_layernorm": 8, "gelu": 5, "gelu_erf": 5, "softmax": 5, "dropout": 4,
              "cross_entropy": 4, "adam": 7, "norm": 1}  # fmt: skip
    if op == "embedding":
        return 4 * 768 * (3 * 256 + 50257)                        # rows read, written, added; the table set to zero
    return passes[op] * size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="beginnings of the names to run, with commas between")
    parser.add_argument("--threads", type=int, default=len(available_cores()), help="default: all cores")
    parser.add_argument("--turns", type=int, default=3, help="turns per side (default: 3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of one turn (default: 0.3)")
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results")
    args = parser.parse_args()
    names = ["ours", "page"] + (["torch"] if installed("torch") else [])
    sides = [Side(name, "benchmarks.ops_side", name, args.threads) for name in names]
    gemm, memory = machine(args.threads)
    print(f"{gemm / 1e9:.0f} GFLOP/s in matrix products, {memory / 1e9:.1f} GB/s through memory; "
          f"load {load_average()}\n\n{'':36} {'page':>15} {'ours':>15} {'torch':>15}   torch/ours   of the limit")
    rows = []
    for case in CASES:
        if not args.only or case.startswith(tuple(args.only.split(","))):
            rows.append(time_case(case, sides, args, gemm, memory))
    for side in sides:
        side.close()
    if args.save:
        save("ops", rows, gemm_gflops=round(gemm / 1e9, 1), memory_gb_s=round(memory / 1e9, 1))


def time_case(case, sides, args, gemm, memory):
    """A row of figures, printed."""
    op, shapes, _ = CASES[case]
    parts = {side.name: ([], []) for side in sides}
    for _ in range(args.turns):
        for side in sides:
            answer = side.ask(name=case, seconds=args.seconds)
            parts[side.name][0].extend(answer["forward"])
            parts[side.name][1].extend(answer["backward"])
    row = dict(case=case, threads=args.threads)
    for name, (forward, backward) in parts.items():
        row[f"{name}_forward_ms"] = round(statistics.median(forward), 3)
        row[f"{name}_backward_ms"] = round(statistics.median(backward), 3) if backward else 0.0
    total = {name: row[f"{name}_forward_ms"] + row[f"{name}_backward_ms"] for name in parts}
    row["page_to_ours"] = round(total["page"] / total["ours"], 2)
    ratio = row["torch_to_ours"] = round(total["torch"] / total["ours"], 2) if "torch" in total else ""
    if flops := flops_of(op, shapes):
        speed = flops / total["ours"] * 1e3
        row.update(gflops=round(speed / 1e9, 1), share=round(speed / gemm, 2))
        words = f"{speed / 1e9:5.0f} GFLOP/s {speed / gemm:4.0%}"
    else:
        speed = bytes_of(op, shapes) / total["ours"] * 1e3
        row.update(gb_s=round(speed / 1e9, 1), share=round(speed / memory, 2))
        words = f"{speed / 1e9:5.1f} GB/s    {speed / memory:4.0%}"
    shown = " ".join(
        f"{row[f'{name}_forward_ms']:7.2f} {row[f'{name}_backward_ms']:7.2f}"
        for name in ("page", "ours", "torch")
        if name in parts
    )
    print(f"{case:36} {shown}   {ratio:>10}   {words}", flush=True)
    return row


if __name__ == "__main__":
    main()
