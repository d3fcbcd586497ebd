"""Scaling of data parallelism: constants measured on this machine, and a model that extrapolates. Writes the tables of
docs/scaling.md.

    python -m benchmarks.scaling              write the tables from the committed constants (results/mpi.json)
    python -m benchmarks.scaling --measure    measure again first (python -m tinygrad2 doctor --mpi, three times)

The model: a step is computation, then the sum of n bytes of gradients over P ranks on N hosts of g = P / N ranks each:

    T_host = 2 log2(g) a_host + (g - 1) / g n (2 / b_host + 1 / s)         within the hosts
    T_net  = 2 log2(N) a_net  + (N - 1) / N n (2 / b_net)                  between them: n bytes leave each host
    step   = compute + max(T - h compute 2/3, 0)                           h of the backward pass hides communication

with a latency, b bandwidth, s the speed of adding, h the part of backward that hides communication. If the ranks of a
host have consecutive numbers, recursive halving sends between hosts only what is left after the sum within each: n / g
bytes per rank, n per host, so the g ranks share the host's link without loss.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys

from benchmarks.harness import RESULTS, ROOT, save

DOC = os.path.join(ROOT, "docs", "scaling.md")
HIDDEN = 0.8          # fraction of the backward pass; measured: docs/scaling.md
LATENCY = 20e-6       # s, TCP between hosts: assumed
LINE = 0.9            # fraction of a link's nominal rate: assumed
MODELS = {"124M": 124.4e6, "1.5B": 1557.6e6}
NODES = {  # ranks per host, FLOP/s of a rank, bytes/s and latency within the host, tokens per rank and step by model
    "CPU node": dict(ranks=2, flops=1e12, bandwidth=25e9, latency=2e-6, adding=50e9, tokens=(8192, 2048)),
    "8-GPU node": dict(ranks=8, flops=350e12, bandwidth=200e9, latency=3e-6, adding=2e12, tokens=(65536, 32768)),
}  # fmt: skip
NETWORKS = {"CPU node": (10, 25, 100), "8-GPU node": (25, 100, 400)}  # Gbit/s of a host
RANKS = 8, 16, 64, 512, 4096


def time_of_sum(n, ranks, hosts, node, gigabits):
    """Seconds that the sum of n bytes takes."""
    g = max(1, ranks // hosts)
    within = 2 * math.log2(g) * node["latency"] + (g - 1) / g * n * (2 / node["bandwidth"] + 1 / node["adding"])
    between = 2 * math.log2(hosts) * LATENCY + (hosts - 1) / hosts * n * 2 / (gigabits * 1e9 / 8 * LINE)
    return within + between


def efficiency(model, kind, ranks, gigabits, hidden, bytes_per_element=4):
    """Computation's share of a step, 0 to 1."""
    node = NODES[kind]
    parameters = MODELS[model]
    compute = 6 * parameters * node["tokens"][list(MODELS).index(model)] / node["flops"]
    hosts = max(1, ranks // node["ranks"])
    sum_time = time_of_sum(bytes_per_element * parameters, min(ranks, hosts * node["ranks"]), hosts, node, gigabits)
    return compute / (compute + max(0.0, sum_time - hidden * compute * 2 / 3))


def modelled():
    """Returns the lines of the table of predictions."""
    lines = ["| model | hosts | link of a host | " + " | ".join(f"{P:,} ranks" for P in RANKS) + " |",
             "|---|---|---|" + "---|" * len(RANKS)]  # fmt: skip
    for model in MODELS:
        for kind, node in NODES.items():
            for gigabits in NETWORKS[kind]:
                cells = []
                for P in RANKS:
                    after, overlapped = (efficiency(model, kind, P, gigabits, hidden) for hidden in (0, HIDDEN))
                    cells.append(f"{after:.0%} / {overlapped:.0%}")
                tokens = node["tokens"][list(MODELS).index(model)]
                what = f"{model}, {tokens:,} tokens a rank", f"{kind}, {node['ranks']} ranks", f"{gigabits} Gbit/s"
                lines.append("| " + " | ".join([*what, *cells]) + " |")
    return lines


def measured():
    """Returns the lines of the table of constants, from results/mpi.json."""
    with open(os.path.join(RESULTS, "mpi.json"), encoding="utf-8") as file:
        runs = json.load(file)
    columns = "machine, date|ranks|latency|bandwidth each way|adding|watchdog|sum of 44 MB|by the model".split("|")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for run in runs:
        for row in run["rows"]:
            units = {"latency_us": "us", "bandwidth_gb_s": "GB/s", "adding_gb_s": "GB/s", "guard_us": "us",
                     "sum_ms": "ms", "predicted_ms": "ms"}  # fmt: skip
            figures = " | ".join(f"{row[name]} {unit}" for name, unit in units.items())
            lines.append(f"| {run['cpu']}, {run['date']} | {row['ranks']} | {figures} |")
    return lines


def measure(times=3):
    """Run doctor --mpi several times and save the medians."""
    from tinygrad2.commands.doctor_mpi import predicted

    by_ranks = {}
    for _ in range(times):
        command = [sys.executable, "-m", "tinygrad2", "doctor", "--mpi", "--json"]
        for row in json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout):
            link = row["neighbours"]
            figures = dict(latency_us=1e6 * link["latency"], bandwidth_gb_s=link["bandwidth"] / 1e9,
                           adding_gb_s=row["adding"] / 1e9, guard_us=1e6 * row["watchdog"], sum_ms=1e3 * row["sum"],
                           predicted_ms=1e3 * predicted(row))  # fmt: skip
            by_ranks.setdefault(row["ranks"], []).append(figures)
    rows = []
    for ranks, runs in by_ranks.items():
        medians = {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}
        rows.append(dict(ranks=ranks, **medians))
    save("mpi", rows)


def rewrite(text):
    """Returns the document with its tables replaced."""
    for name, table in (("measured", measured()), ("modelled", modelled())):
        start, end = f"<!-- {name}: written by benchmarks/scaling.py -->", "<!-- end -->"
        pattern = re.escape(start) + r".*?" + re.escape(end)
        text = re.sub(pattern, lambda _, s=start, t=table, e=end: "\n".join([s, *t, e]), text, count=1, flags=re.DOTALL)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the constants here first")
    if parser.parse_args().measure:
        measure()
    with open(DOC, encoding="utf-8") as file:
        text = rewrite(file.read())
    with open(DOC, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"tables of {os.path.relpath(DOC, ROOT)} written")


if __name__ == "__main__":
    main()
