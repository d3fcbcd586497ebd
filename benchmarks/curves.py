"""Make the reference curves of a preset: python -m benchmarks.curves --preset demo

Trains it with five seeds and writes tinygrad2/monitor/curves/<preset>.json. With --first N each training ends after N
steps (its schedule stays that of the complete training), for presets whose training takes days.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.harness import cpu_name
from tinygrad2.io.files import atomic_write
from tinygrad2.monitor.metrics import read_metrics, read_run_config
from tinygrad2.monitor.reference_curves import FOLDER, FORMAT, VERSION

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def train(preset, seed, first, folder, flags):
    """Runs one training and returns (losses, config)."""
    run = os.path.join(folder, f"seed-{seed}")
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), "--model", preset, "--seed", str(seed),
               "--run-dir", run, "--weights-out", os.path.join(folder, "w.bin"), "--checkpoint-every", "0",
               "--sample-every", "0", "--sample-tokens", "1", *flags]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        for line in process.stdout:
            if line.startswith("step"):
                done = int(line[4:].split("/")[0])
                if done % 50 == 0 or done == first:
                    print(f"seed {seed}: {line.rstrip()}", flush=True)
                if done == first:
                    process.send_signal(signal.SIGKILL)
    steps, losses = read_metrics(run)["loss"]
    assert steps == list(range(len(steps)))
    return [round(loss, 4) for loss in losses], read_run_config(run)


def main():
    """Run the trainings and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--first", type=int, default=0, help="end each after N steps (default: train to the end)")
    parser.add_argument("--out", default="", help="file to write (default: tinygrad2/monitor/curves/PRESET.json)")
    parser.add_argument("flags", nargs="*", help="more flags for train_gpt2.py, after --")
    args = parser.parse_args()
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds.split(","):
            losses[seed], config = train(args.preset, int(seed), args.first, folder, args.flags)
    result = {
        "format": FORMAT, "version": VERSION, "preset": args.preset, "date": datetime.date.today().isoformat(),
        "machine": cpu_name(), "numpy": np.__version__,
        "config": {name: config[name] for name in ("training", "model", "data")}, "losses": losses,
    }  # fmt: skip
    for name in ("data", "run_dir", "weights_out", "metrics"):  # paths on the machine that made them
        result["config"]["training"].pop(name)
    with atomic_write(args.out or os.path.join(FOLDER, f"{args.preset}.json")) as file:
        file.write(json.dumps(result, separators=(",", ":")).encode() + b"\n")


if __name__ == "__main__":
    main()
