"""Each kernel compared with its reference implementation and with PyTorch, in turns.

    python -m benchmarks.ops                              all of them
    python -m benchmarks.ops --only attention,gelu        some
    python -m benchmarks.ops gemm --ladder                the matrix product, rung by rung, with its roofline picture

Forward and backward are timed separately. For ops that consist of matrix products the speed of the kernel is printed in
GFLOP/s, with its share of the best matrix product; for all others in GB/s, with its share of the memory bandwidth. Both
limits are measured in the same run.
"""

import argparse
import math
import statistics

from benchmarks import ladder
from benchmarks.harness import Side, installed, load_average, machine, save
from benchmarks.ops_side import CASES
from tinygrad2.system.threads import available_cores


def flops_of(op, shapes):
    """Floating-point operations of forward and backward together; 0 for ops that do not consist of products."""
    if op in ("linear", "linear_cross_entropy"):
        return 6 * shapes[0][0] * math.prod(shapes[1])
    if op == "mlp":
        return 6 * shapes[0][0] * (math.prod(shapes[1]) + math.prod(shapes[3]))
    if op == "attention":
        B, nh, T, hs = shapes[0]
        return 7 * 2 * B * nh * T * T * hs / 2                    # 2 products forward, 5 backward; half is masked
    return 0


def bytes_of(op, shapes):
    """The fewest bytes that forward and backward must read and write, for ops limited by memory bandwidth."""
    size = 4 * math.prod(shapes[0])
    passes = {"layernorm": 5, "add_layernorm": 8, "gelu": 5, "gelu_erf": 5, "softmax": 5, "dropout": 4,
              "cross_entropy": 4, "adam": 7, "norm": 1}  # fmt: skip
    if op == "embedding":
        return 4 * 768 * (3 * 256 + 50257)                        # rows read, written, added; the table set to zero
    return passes[op] * size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["gemm"], help="gemm: matrix products of our own; needs --ladder")
    parser.add_argument("--ladder", action="store_true", help="the product from three loops to tile registers")
    parser.add_argument("--picture", metavar="PNG", help="of --ladder: write its roofline picture (needs matplotlib)")
    parser.add_argument("--only", default="", help="run the cases whose names start with one of these, comma-separated")
    parser.add_argument("--threads", type=int, default=len(available_cores()), help="default: all cores")
    parser.add_argument("--turns", type=int, default=3, help="turns per side (default: 3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn (default: 0.3)")
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results")
    args = parser.parse_args()
    if bool(args.what) != args.ladder:
        parser.error("gemm and --ladder go together")
    if args.ladder:
        rows, limits = ladder.main(args.turns, args.seconds, args.picture)
        if args.save:
            save("ladder", rows, **{name.replace(" ", "_"): round(value / 1e9, 1) for name, value in limits.items()})
        return
    names = ["ours", "reference"] + (["torch"] if installed("torch") else [])
    sides = [Side(name, "benchmarks.ops_side", name, args.threads) for name in names]
    gemm, memory = machine(args.threads)
    print(f"{gemm / 1e9:.0f} GFLOP/s in matrix products, {memory / 1e9:.1f} GB/s memory bandwidth; "
          f"load {load_average()}\n\n{'':36} {'reference':>15} {'ours':>15} {'torch':>15}   torch/ours   of the limit")
    rows = []
    for case in CASES:
        if not args.only or case.startswith(tuple(args.only.split(","))):
            rows.append(time_case(case, sides, args, gemm, memory))
    for side in sides:
        side.close()
    if args.save:
        save("ops", rows, gemm_gflops=round(gemm / 1e9, 1), memory_gb_s=round(memory / 1e9, 1))


def time_case(case, sides, args, gemm, memory):
    """Times one case on all sides, prints a line and returns it as a row of results."""
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
    row["reference_to_ours"] = round(total["reference"] / total["ours"], 2)
    ratio = row["torch_to_ours"] = round(total["torch"] / total["ours"], 2) if "torch" in total else ""
    if flops := flops_of(op, shapes):
        speed = flops / total["ours"] * 1e3
        row.update(gflops=round(speed / 1e9, 1), share=round(speed / gemm, 2))
        limit = f"{speed / 1e9:5.0f} GFLOP/s {speed / gemm:4.0%}"
    else:
        speed = bytes_of(op, shapes) / total["ours"] * 1e3
        row.update(gb_s=round(speed / 1e9, 1), share=round(speed / memory, 2))
        limit = f"{speed / 1e9:5.1f} GB/s    {speed / memory:4.0%}"
    times = " ".join(
        f"{row[f'{name}_forward_ms']:7.2f} {row[f'{name}_backward_ms']:7.2f}"
        for name in ("reference", "ours", "torch")
        if name in parts
    )
    print(f"{case:36} {times}   {ratio:>10}   {limit}", flush=True)
    return row


if __name__ == "__main__":
    main()
