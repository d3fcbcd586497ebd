"""What the GPU path does on this machine's GPU: is it right, how fast is it, what are the limits.

    python -m benchmarks.gpu --minutes 25
    python -m benchmarks.gpu --quick                  five minutes: B = 16, bfloat16, without the last parts
    python -m benchmarks.gpu --results FOLDER         write there; --merge FOLDER adds them to benchmarks/results later

In order of worth, as far as the minutes reach; each part is added to benchmarks/results/gpu.csv when it ends:

    tests        tests/test_gpu.py, tests/test_gpu_products.py
    doctor       python -m tinygrad2 doctor
    limits       matrix products in float32, TF32, bfloat16 and float16; copying
    demo         the demo's training on the GPU in float32, bfloat16 and float16 against the CPU; a text by the result
    steps        training steps of GPT-2 124M against PyTorch, in turns, in bfloat16, TF32, float32; float16
                 at one batch size
    losses       200 steps on a text in each precision, against float32
    kernels      each kernel of a training step against the limits, and against PyTorch's op
    decode       milliseconds a token of 124M against transformers
    trace        python -m tinygrad2 profile --trace

Each part is a process of its own with a time limit: its share of the time that is left, and what earlier parts did not
need. A part that fails or hangs leaves the rows that it had written and one with its error. PyTorch, and transformers
for `decode`, are compared with where they are installed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks.gpu_kernels import ORDER as KERNELS
from benchmarks.harness import RESULTS, ROOT, add_runs, read_runs, save
from tinygrad2.backend import array_module
from tinygrad2.cli import Parser, option
from tinygrad2.cli import run as run_as_program
from tinygrad2.errors import UserError

PARTS = {  # and the share of the time that each may take
    "tests": 0.22, "doctor": 0.05, "limits": 0.03, "demo": 0.10, "steps": 0.28, "losses": 0.06, "kernels": 0.16,
    "decode": 0.06, "trace": 0.04,
}  # fmt: skip
TESTS = "tests/test_gpu.py,tests/test_gpu_products.py"
PRODUCTS = ("bfloat16", "tf32", "float32", "float16")
DEMO = ("cuda", "cuda-bfloat16", "cuda-float16", "cpu")
AGAINST = ("torch", "torch-compile")
MODELS = ("demo", "baby", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
QUICK = dict(minutes=5.0, parts="tests,doctor,limits,demo,steps,kernels", batch_sizes="16", products="bfloat16",
             kernel_batch=16, steps=300, demo="cuda,cuda-bfloat16,cpu", turns=3)  # fmt: skip
LEAST = 30  # seconds that a part gets
OWN_SHARE = 0.95  # of them, in which it may end by itself
LARGEST_TRACE = 120


class Clock:
    """The seconds that some work may take."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


def describe_gpu():
    """{"gpu": its name, "driver", "cuda": versions}. Raises UserError, one line, if there is none."""
    cuda = array_module("cuda").cuda
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    version = cuda.runtime.runtimeGetVersion()
    name = cuda.runtime.getDeviceProperties(0)["name"].decode()
    return dict(gpu=name, driver=driver, cuda=f"{version // 1000}.{version % 1000 // 10}")


def limit_of(part, wanted, left):
    """Seconds for a part, when `left` are left for it and all that are `wanted` after it."""
    later = wanted[wanted.index(part) :]
    seconds = max(LEAST, left * PARTS[part] / sum(PARTS[name] for name in later))
    return min(seconds, LARGEST_TRACE) if part == "trace" else seconds


def run_part(part, args, seconds, folder):
    """The rows of a part, also of one that failed or took longer."""
    path = os.path.join(folder, f"{part}.rows")
    request = json.dumps(vars(args) | dict(part=part, folder=folder, seconds=OWN_SHARE * seconds, rows=path))
    start, error = time.monotonic(), ""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu_parts", request], cwd=ROOT,
                               start_new_session=True)  # fmt: skip
    try:
        code = process.wait(timeout=seconds)
        if code:
            error = f"ended with code {code}"
    except subprocess.TimeoutExpired:
        error = f"no end within {seconds:.0f} s"
    finally:
        if process.poll() is None or error:
            end(process)                                          # and all that it has started
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.endswith("\n")]
    if error and not any(row.get("errors") for row in rows):
        rows.append(dict(part=part, seconds=round(time.monotonic() - start, 1), errors=error))
        print(f"{part}: {error}")
    return rows


def end(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def parse(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=25, help="end the parts after about so many (default: 25)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, a,b,... (default: all)")
    parser.add_argument("--steps", type=int, default=1000, help="of the demo's training (default: 1000, all of it)")
    parser.add_argument("--demo", default=",".join(DEMO), help=f"its trainings (default: {','.join(DEMO)})")
    parser.add_argument("--tokens", type=int, default=100, help="of the texts (default: 100)")
    parser.add_argument("--model", default="gpt2", choices=MODELS, metavar="NAME", help="preset of steps, losses, "
                        f"decode and trace: {', '.join(MODELS)} (default: gpt2)")  # fmt: skip
    parser.add_argument("--vocab-size", type=int, default=50304, help="of the training steps, a multiple of 64 as in "
                        "nanoGPT: some products are several times faster so (default: 50304)")  # fmt: skip
    parser.add_argument("--batch-sizes", default="64,16,4", help="of the training steps (default: 64,16,4)")
    parser.add_argument("--products", default=",".join(PRODUCTS), help="of steps and kernels (default: "
                        f"{','.join(PRODUCTS)})")  # fmt: skip
    parser.add_argument("--against", default=",".join(AGAINST), help="other sides of the training steps; '' is none "
                        f"(default: {','.join(AGAINST)})")  # fmt: skip
    parser.add_argument("--kernel-batch", type=int, default=64, help="B of the kernels' shapes (default: 64)")
    parser.add_argument("--kernels", default=",".join(KERNELS), help=f"some of {', '.join(KERNELS)} (default: all)")
    parser.add_argument("--turns", type=int, default=5, help="most turns per side (default: 5)")
    parser.add_argument("--timed", type=int, default=4, help="timed steps per turn, after an untimed one (default: 4)")
    parser.add_argument("--quick", action="store_true", help="a visit of five minutes")
    parser.add_argument("--results", default=RESULTS, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--merge", metavar="FOLDER", help="add the results in this folder to those of --results")
    parser.add_argument("--tests", default=TESTS, help=f"their files (default: {TESTS})")
    parser.add_argument("--quiet", type=float, default=90, help="seconds after which a test that does not end is given "
                        "up (default: 90)")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # tests: does every part run?
    args = parser.parse_args(argv)
    if args.quick:
        given = parser.parse_args(argv, argparse.Namespace(**{name: None for name in QUICK}))
        vars(args).update({name: value for name, value in QUICK.items() if getattr(given, name) is None})
    check(args)
    return args


def check(args):
    """Raises UserError for values that a part would stumble over, minutes later."""
    for name, known in (("parts", PARTS), ("products", PRODUCTS), ("demo", DEMO), ("kernels", KERNELS),
                        ("against", ("", *AGAINST))):  # fmt: skip
        if unknown := set(getattr(args, name).split(",")) - set(known):
            known = ", ".join(filter(None, known))
            raise UserError(f"{option(name)}: unknown: {', '.join(sorted(unknown)) or repr('')}; available: {known}")
    for name in ("steps", "tokens", "vocab_size", "kernel_batch", "turns", "timed"):
        if getattr(args, name) < 1:
            raise UserError(f"{option(name)} must be at least 1, not {getattr(args, name)}")
    for name in ("minutes", "quiet"):
        if not 0 < getattr(args, name) < 1e6:
            raise UserError(f"{option(name)} must be above 0, and below 1e6, not {getattr(args, name)}")
    if not all(size.isdecimal() and int(size) > 0 for size in args.batch_sizes.split(",")):
        raise UserError(f"--batch-sizes must be numbers such as 64,16,4, not {args.batch_sizes!r}")


def main(argv=None):
    args = parse(argv)
    if args.merge:
        return add_runs("gpu", read_runs(os.path.join(args.merge, "gpu.json")), args.results)
    clock, about = Clock(60 * args.minutes), describe_gpu()
    print(", ".join(about.values()))
    args.results = os.path.abspath(args.results)
    wanted = [part for part in PARTS if part in args.parts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for part in wanted:
            if clock.left() <= 0:
                print(f"no time is left for {part}")
                continue
            seconds = limit_of(part, wanted, clock.left())
            print(f"-- {part}, {seconds:.0f} s at most", flush=True)
            rows = run_part(part, args, seconds, folder)
            for row in rows:
                print({key: value for key, value in row.items() if key != "part"}, flush=True)
            save("gpu", [about | row for row in rows], args.results)


if __name__ == "__main__":
    run_as_program(main, "benchmarks.gpu")
