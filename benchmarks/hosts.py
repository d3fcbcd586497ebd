"""Gradients between two hosts: sent after backward, during it, and as bfloat16, in turns. Needs Linux and root.

    python -m benchmarks.hosts --rate 1gbit

The hosts are network namespaces of this machine (tests/hosts.sh), one rank with one thread on each, joined by a virtual
link of the given rate, over TCP. The baby GPT is trained; figures are medians over turns of each turn's median step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.harness import ROOT, save
from tinygrad2.distributed.mpirun import environment, find_mpirun

WAYS = {  # name: flags of train_gpt2.py
    "after backward": "--overlap no",
    "overlapped": "--overlap yes",
    "after backward, bfloat16": "--overlap no --comm-dtype bfloat16",
    "overlapped, bfloat16": "--overlap yes --comm-dtype bfloat16",
}
HOSTS = os.path.join(ROOT, "tests", "hosts.sh")


def train(folder, flags, args):
    """Returns {metric: median over the steps} of one training."""
    with open(os.path.join(folder, "hosts.txt"), "w", encoding="utf-8") as file:
        file.write("10.9.7.1:1\n10.9.7.2:1\n")
    data = os.path.join(ROOT, "data", "dummy_data.txt")
    flags = (f"--model baby --vocab-size 512 --batch-size {args.batch_size} --data {data} --steps {args.steps} "
             f"--eval-every 0 --sample-every 0 --checkpoint-every 0 {flags}").split()  # fmt: skip
    command = [find_mpirun(), "-launcher", "ssh", "-launcher-exec", os.path.join(ROOT, "tests", "hosts_ssh.sh"),
               "-f", "hosts.txt", "-n", "2", sys.executable, os.path.join(ROOT, "train_gpt2.py"), *flags]  # fmt: skip
    inside = "hostname tg-h0; exec " + " ".join(f"'{word}'" for word in command)
    subprocess.run(["ip", "netns", "exec", "tg-h0", "unshare", "--uts", "sh", "-c", inside], cwd=folder, check=True,
                   env={**environment(), "UCX_TLS": "tcp,self"}, stdout=subprocess.DEVNULL)  # fmt: skip
    with open(os.path.join(folder, "run", "metrics.jsonl"), encoding="utf-8") as file:
        records = [json.loads(line) for line in file][3:]
    return {name: statistics.median(record[name] for record in records) for name in ("ms", "comm_ms", "wait_ms")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit", help="rate of the link (default: 1gbit)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per step, both ranks (default: 8)")
    parser.add_argument("--steps", type=int, default=12, help="steps per turn (default: 12)")
    parser.add_argument("--turns", type=int, default=3, help="turns per way of sending (default: 3)")
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results")
    args = parser.parse_args()
    subprocess.run([HOSTS, "down"], check=False)
    subprocess.run([HOSTS, "up", args.rate], check=True)
    medians = {way: [] for way in WAYS}
    try:
        for turn in range(args.turns):
            for way, flags in WAYS.items():
                with tempfile.TemporaryDirectory() as folder:
                    medians[way].append(train(folder, flags, args))
            times = ", ".join(f"{way} {medians[way][-1]['ms']:.0f} ms" for way in WAYS)
            print(f"turn {turn + 1}: {times}", flush=True)
    finally:
        subprocess.run([HOSTS, "down"], check=False)
    rows = []
    for way, turns in medians.items():
        row = {name: round(statistics.median(turn[name] for turn in turns), 1) for name in turns[0]}
        rows.append(dict(way=way, rate=args.rate, batch_size=args.batch_size, **row))
        plain = rows[0]["comm_ms"]
        print(f"{way:28} {row['ms']:8.1f} ms a step, {row['comm_ms']:7.1f} ms waiting for gradients "
              f"({1 - row['comm_ms'] / plain:.0%} less), {row['wait_ms']:.1f} ms for the other rank")  # fmt: skip
    if args.save:
        save("hosts", rows)


if __name__ == "__main__":
    main()
