"""What the GPU path does on this machine's GPU: is it right, how fast is it, what are the limits.

    python -m benchmarks.gpu --minutes 8

In order of worth, as far as the minutes reach; each part is added to benchmarks/results/gpu.csv when it ends:

    tests        tests/test_gpu.py
    doctor       python -m tinygrad2 doctor
    demo         the demo's training, --device cuda against --device cpu
    inference    a text by the trained model, on both
    steps        training steps of GPT-2 124M against PyTorch, in turns, in float32 and with TF32 products; and the
                 limits of the GPU: matrix products in float32, TF32 and bfloat16, copying

PyTorch is needed for the steps only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

from benchmarks.harness import ROOT, Side, installed, ratio_of, save
from tinygrad2.backend import array_module
from tinygrad2.cli import run as run_as_program
from tinygrad2.monitor.metrics import read_metrics

PARTS = ("tests", "doctor", "demo", "inference", "steps")
SIDES = ("ours", "ours-tf32", "torch", "torch-compile", "torch-tf32", "torch-compile-tf32")
WARMUP = 2  # steps before the first turn


class Clock:
    """The minutes that the parts share."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    def left(self):
        return self.end - time.monotonic()


def describe_gpu():
    """{"gpu": its name, "driver", "cuda": versions}. Raises UserError, one line, if there is none."""
    cuda = array_module("cuda").cuda
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    version = cuda.runtime.runtimeGetVersion()
    name = cuda.runtime.getDeviceProperties(0)["name"].decode()
    return dict(gpu=name, driver=driver, cuda=f"{version // 1000}.{version % 1000 // 10}")


def run_python(clock, *arguments):
    """Run `python ARGUMENTS...`: (exit code, or None if the minutes ended first; its output; seconds)."""
    start = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              encoding="utf-8", errors="replace", timeout=max(1, clock.left()))  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = None, (error.stdout or b"").decode("utf-8", "replace")
    return code, output, time.perf_counter() - start


# -- the parts ---------------------------------------------------------------------------------------------------------


def tests(args, clock, folder):
    """How many tests of the GPU passed, and the first errors."""
    report = os.path.join(folder, "tests.xml")
    code, output, seconds = run_python(clock, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
                                       "tests/test_gpu.py")  # fmt: skip
    if code != 0:
        print(output[-4000:])
    if not os.path.exists(report):
        return [dict(part="tests", exit_code=code, seconds=round(seconds, 1), errors=last_line(output))]
    counts, errors = read_junit(report)
    print("\n".join(errors))
    return [dict(part="tests", exit_code=code, seconds=round(seconds, 1), **counts, errors=" | ".join(errors[:5]))]


def read_junit(path):
    """({"passed", "failed", "skipped": numbers of tests}, a line for each that failed) of a JUnit file of pytest."""
    counts, errors = dict(passed=0, failed=0, skipped=0), []
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        problems = [child for child in case if child.tag in ("failure", "error")]
        kind = "failed" if problems else "skipped" if case.find("skipped") is not None else "passed"
        counts[kind] += 1
        errors += [f"{case.get('name')}: {' '.join((p.get('message') or '').split())[:300]}" for p in problems[:1]]
    return counts, errors


def doctor(args, clock, folder):
    code, output, seconds = run_python(clock, "-m", "tinygrad2", "doctor")
    print(output)
    line = next((line for line in output.splitlines() if line.split()[1:2] == ["gpu"]), "")
    return [dict(part="doctor", exit_code=code, seconds=round(seconds, 1), answer=" ".join(line.split()))]


def demo(args, clock, folder):
    """The demo's training on both devices: seconds, milliseconds a step, losses."""
    rows, losses = [], {}
    for device in ("cuda", "cpu"):
        metrics, weights = (os.path.join(folder, f"{device}.{kind}") for kind in ("jsonl", "bin"))
        code, output, seconds = run_python(
            clock, "train_gpt2.py", "--seed", "1337", "--steps", str(args.steps), "--device", device, "--run-dir",
            os.path.join(folder, device), "--metrics", metrics, "--weights-out", weights,
        )  # fmt: skip
        row = dict(part="demo", device=device, exit_code=code, seconds=round(seconds, 1))
        if code != 0:
            print(output[-4000:])
            row["errors"] = last_line(output)
        if os.path.exists(metrics):
            curves = {name: values for name, (_, values) in read_metrics(metrics).items()}
            losses[device] = curves["loss"]
            row.update(steps=len(curves["loss"]), loss=round(curves["loss"][-1], 4),
                       median_ms=round(statistics.median(curves["ms"]), 2))  # fmt: skip
            if "val_loss" in curves:
                row["val_loss"] = round(curves["val_loss"][-1], 4)
        rows.append(row)
    if len(losses) == 2:
        apart = [abs(a - b) for a, b in zip(losses["cuda"], losses["cpu"])]
        rows[0].update(losses_apart=float(f"{max(apart):.2g}"), first_50_apart=float(f"{max(apart[:50]):.2g}"))
    return rows


def inference(args, clock, folder):
    """inference.py with the trained model on the GPU, and a greedy text on both devices: milliseconds a token."""
    weights = os.path.join(folder, "cuda.bin")
    if not os.path.exists(weights):
        return [dict(part="inference", errors="no weights: the demo has not been trained")]
    code, output, seconds = run_python(clock, "inference.py", "--weights", weights, "--device", "cuda")
    print(output)
    rows, texts = [dict(part="inference", device="cuda", exit_code=code, seconds=round(seconds, 1))], []
    for device in ("cuda", "cpu"):
        side = Side(device, "benchmarks.gpu_side", "text", "{}")
        answer = side.ask(weights=weights, device=device, tokens=args.tokens)
        side.close()
        texts.append(answer["ids"])
        rows.append(dict(part="inference", device=device, tokens=len(texts[-1]), min_ms=round(min(answer["ms"]), 2),
                         median_ms=round(statistics.median(answer["ms"]), 2)))  # fmt: skip
    rows[1]["same_text"] = texts[0] == texts[1]
    return rows


def steps(args, clock, folder):
    """Training steps of each side, in turns, at each batch size; and the limits of the GPU."""
    from models.config import GPTConfig

    names = [name for name in args.sides.split(",") if name.startswith("ours") or installed("torch")]
    config = GPTConfig.preset(args.model)
    T = config.block_size
    described = dict(model=config.to_dict(), seq_len=T, seed=1337, threads=1, recompute=False, device="cuda")
    peaks = measure_limits(described) if installed("torch") else {}
    rows = [dict(part="limits", **{f"{k}_tflops": round(v / 1e12, 1) for k, v in peaks.items() if k != "bandwidth"},
                 bandwidth_gb_s=round(peaks["bandwidth"] / 1e9))] if peaks else []  # fmt: skip
    sides = {name: Side(name, "benchmarks.gpu_side", name, json.dumps(described)) for name in names}
    for B in map(int, args.batch_sizes.split(",")):
        for side in sides.values():                       # all compile at the same time
            side.send(batch_size=B, steps=WARMUP)
        losses = {name: side.receive()["losses"] for name, side in sides.items()}
        ms, memory = {name: [] for name in sides}, {}
        for turn in range(args.turns):
            if turn and clock.left() < 0:
                break
            for name, side in sides.items():
                answer = side.ask(batch_size=B, steps=1 + args.timed)
                ms[name].append(answer["ms"][1:])         # the first step asks the device for its memory again
                losses[name] += answer["losses"]
                memory[name] = answer["peak"]
            print(f"B={B} turn {turn + 1}: "
                  + ", ".join(f"{s} {statistics.median(ms[s][-1]):.1f} ms" for s in ms), flush=True)  # fmt: skip
        flops = config.train_flops_per_token() * B * T
        for name in sides:
            rows.append(step_row(name, B, T, ms, losses, memory, flops, peaks))
        if clock.left() < 0:
            break
    for side in sides.values():
        side.close()
    return rows


def measure_limits(config):
    side = Side("limits", "benchmarks.gpu_side", "limits", json.dumps(config))
    answer = side.ask()
    side.close()
    return answer


def step_row(name, B, T, ms, losses, memory, flops, peaks):
    """What one side took. `torch_over_ours`: its median over that of ours with the same products."""
    tf32 = name.endswith("tf32")
    ours = ms.get("ours-tf32" if tf32 else "ours")
    times = sum(ms[name], [])
    median = statistics.median(times)
    first = next(iter(losses))
    row = dict(part="steps", side=name, batch_size=B, seq_len=T, products="tf32" if tf32 else "float32",
               min_ms=round(min(times), 2), median_ms=round(median, 2), tokens_per_s=round(B * T / median * 1e3),
               peak_memory_mb=round(memory[name] / 1e6),
               losses_apart=float(f"{max(abs(a - b) for a, b in zip(losses[name], losses[first])):.2g}"))  # fmt: skip
    if ours:
        ratio, low, high = ratio_of(ms[name], ours)
        row.update(torch_over_ours=round(ratio, 3), lowest=round(low, 3), highest=round(high, 3))
    for kind, peak in peaks.items():
        if kind in ("float32", "tf32"):
            row[f"share_of_{kind}_peak"] = round(flops / median * 1e3 / peak, 3)
    return row


def last_line(output):
    return next((line.strip()[:300] for line in reversed(output.splitlines()) if line.strip()), "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="end the parts after about so many (default: 10)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them (default: all)")
    parser.add_argument("--steps", type=int, default=1000, help="of the demo's training (default: 1000, all of it)")
    parser.add_argument("--tokens", type=int, default=100, help="of the text (default: 100)")
    parser.add_argument("--model", default="gpt2", help="preset of the training steps (default: gpt2, 124M)")
    parser.add_argument("--batch-sizes", default="4,16", help="of the training steps (default: 4,16)")
    parser.add_argument("--sides", default=",".join(SIDES), help="of the training steps (default: all)")
    parser.add_argument("--turns", type=int, default=5, help="turns per side (default: 5)")
    parser.add_argument("--timed", type=int, default=4, help="timed steps per turn, after an untimed one (default: 4)")
    args = parser.parse_args()
    for given, known in ((args.parts, PARTS), (args.sides, SIDES)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; available: {', '.join(known)}")
    clock, about = Clock(args.minutes), describe_gpu()
    print(", ".join(about.values()))
    with tempfile.TemporaryDirectory() as folder:
        for name in args.parts.split(","):
            if clock.left() <= 0:
                print(f"no time is left for {name}")
                continue
            print(f"-- {name}", flush=True)
            rows = globals()[name](args, clock, folder)
            for row in rows:
                print(row, flush=True)
            save("gpu", [about | row for row in rows])


if __name__ == "__main__":
    run_as_program(main, "benchmarks.gpu")
