"""Record what the bugs of `python -m tinygrad2 bug` do to the demo: python -m benchmarks.bug_curves

The demo is trained with each bug, one seed, for its first steps (the schedule is that of all 1,000), and without one.
Losses and the validation loss after the last of these steps go to tinygrad2/bugs/curves/demo.json. The compiled kernels
run, except those in whose place the line with the bug is. Bugs that the file has already are left out, but for
those of --again.
"""

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.harness import cpu_name
from tinygrad2.bugs.patch import patches
from tinygrad2.bugs.signatures import CURVES, FORMAT, VERSION
from tinygrad2.io.files import atomic_write
from tinygrad2.monitor.metrics import read_metrics

SIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bug_side.py")
DROPOUT = "--dropout 0.2"


def train(patch, flags, seed, first, folder):
    """One training, of the shipped source where patch is None: {"flags", "losses", "validation"}."""
    run, planted = os.path.join(folder, "run"), os.path.join(folder, "planted.py")
    module = "-"
    if patch:
        module = patch.file.removesuffix(".py").replace("/", ".")
        with atomic_write(planted) as file:
            file.write(patch.apply(patch.shipped()).encode())
    command = [sys.executable, SIDE, module, planted, ",".join(patch.kernels) if patch else "", str(first),
               "--seed", str(seed), "--run-dir", run, "--weights-out", os.path.join(folder, "w.bin"),
               "--checkpoint-every", "0", "--sample-every", "0", "--sample-tokens", "1", "--eval-every", str(first),
               *flags.split()]  # fmt: skip
    result = subprocess.run(command, capture_output=True, encoding="utf-8")
    metrics = read_metrics(run) if os.path.isdir(run) else {}
    steps, losses = metrics.get("loss", ([], []))
    if result.returncode and not losses:
        raise SystemExit(result.stdout + result.stderr)
    assert steps == list(range(len(steps)))
    validation = metrics.get("val_loss", ([], []))[1]
    losses = [round(loss, 4) for loss in losses if math.isfinite(loss)]
    value = round(validation[-1], 4) if validation and math.isfinite(validation[-1]) else None
    return {"flags": flags, "losses": losses, "validation": value}


def main():
    """Run the trainings; the file is written after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=150, help="steps of each training (default: 150)")
    parser.add_argument("--again", default="", help="record these again: names with commas between them, or all")
    parser.add_argument("--only", default="", help="record these, in this order: names with commas between them")
    parser.add_argument("--out", default=CURVES, help=f"file to write (default: {CURVES})")
    args = parser.parse_args()
    curves = {}
    if os.path.exists(args.out) and args.again != "all":
        with open(args.out, encoding="utf-8") as file:
            curves = json.load(file)["curves"]
    jobs = {"none": (None, ""), "none, dropout": (None, DROPOUT)}
    jobs |= {patch.name: (patch, patch.flags) for patch in patches().values()}
    for name in filter(None, args.only.split(",")) if args.only else jobs:
        patch, flags = jobs[name]
        if name in curves and name not in args.again.split(","):
            continue
        with tempfile.TemporaryDirectory() as folder:
            curves[name] = train(patch, flags, args.seed, args.first, folder)
        shown = " ".join(f"{loss:.3f}" for loss in curves[name]["losses"][:: max(1, args.first // 6)])
        print(f"{name:24s} {shown}  validation {curves[name]['validation']}", flush=True)
        head = {
            "format": FORMAT, "version": VERSION, "preset": "demo", "seed": args.seed, "first": args.first,
            "date": datetime.date.today().isoformat(), "machine": cpu_name(), "numpy": np.__version__,
        }  # fmt: skip
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in curves.items())
        with atomic_write(args.out) as file:
            file.write(f'{json.dumps(head)[:-1]},\n"curves": {{\n{rows}\n}}}}\n'.encode())


if __name__ == "__main__":
    main()
