"""What all benchmarks share: sides that take turns, the limits of the machine, and files of results.

Timings on a shared machine vary by half. So nothing is compared across runs: the sides take turns (A B A B ...) in
separate processes, the limits (matrix products, memory bandwidth) are measured between the turns, and the result is the
ratio of medians, with the spread of the ratios of single turns.
"""

import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys

from tinygrad2.system.processor import cpu_name

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "benchmarks", "results")


def load_average():
    """Mean number of runnable processes over the last minute; timings are worthless if it far exceeds the cores."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peak_rss():
    """The peak resident memory of this process, in bytes."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions(*names):
    """{package: version} of Python and of those packages that are installed."""
    from importlib import metadata

    packages = {"python": platform.python_version()}
    for name in names:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return packages


def installed(name):
    from importlib import util

    return util.find_spec(name) is not None


def dtype_of(side):
    """In which dtype the side of this name computes products: "float32" or "bfloat16"."""
    return "bfloat16" if "bfloat16" in side else "float32"


class Side:
    """One of the sides, in its own process, which waits while the others run.

    It is started as `python -m MODULE ARGS...`, reads one JSON object per line and answers each with one.
    """

    def __init__(self, name, module, *arguments, env=None):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT, env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **request):
        """Send a request and return the answer. Raises SystemExit if the process has ended."""
        self.send(**request)
        return self.receive()

    def send(self, **request):
        """Send a request without waiting for its answer, which `receive` returns."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def receive(self):
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the side {self.name!r} ended with code {self.process.wait()}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def machine(threads):
    """(FLOP/s in matrix products, bytes/s through memory), measured in a separate process."""
    side = Side("machine", "benchmarks.machine_side", threads)
    answer = side.ask()
    side.close()
    return answer["gemm"], answer["bandwidth"]


def memory_read(threads):
    """Bytes/s that are read from memory, measured in a separate process."""
    side = Side("machine", "benchmarks.machine_side", threads)
    answer = side.ask(read=True)
    side.close()
    return answer["reading"]


def answer_requests(handle):
    """In the process of a Side: call handle(**request) for every line on stdin; the dict it returns is the answer."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print to stdout must not become part of an answer
    for line in sys.stdin:
        out.write(json.dumps(handle(**json.loads(line))) + "\n")
        out.flush()


def ratio_of(theirs, ours):
    """(ratio of medians, lowest and highest ratio of the medians of single turns); above 1 means ours is faster."""
    turns = [statistics.median(t) / statistics.median(o) for t, o in zip(theirs, ours)]
    ratio = statistics.median(sum(theirs, [])) / statistics.median(sum(ours, []))
    return ratio, min(turns), max(turns)


def save(name, rows, folder=None, **about):
    """Add rows (dicts of numbers and strings), with machine and versions, to FOLDER/NAME.csv and .json; FOLDER is by
    default benchmarks/results."""
    about = dict(
        date=datetime.date.today().isoformat(), cpu=cpu_name(), load=load_average(),
        versions=versions("numpy", "numba", "regex", "torch", "transformers", "tokenizers", "tiktoken",
                          "cupy-cuda12x", "cupy-cuda13x"), **about,
    )  # fmt: skip
    add_runs(name, [dict(about, rows=rows)], folder)


def add_runs(name, new, folder=None):
    """Add runs, as `save` makes them, to FOLDER/NAME.json, and write FOLDER/NAME.csv again."""
    folder = folder or RESULTS
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    runs = [*read_runs(path + ".json"), *new] if os.path.exists(path + ".json") else new
    with open(path + ".json", "w", encoding="utf-8") as file:
        json.dump(runs, file, indent=1)
        file.write("\n")
    columns = list(dict.fromkeys(key for run in runs for row in run["rows"] for key in row))
    with open(path + ".csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["date", "cpu", "load", *columns], lineterminator="\n")
        table.writeheader()
        for run in runs:
            table.writerows(dict(row, date=run["date"], cpu=run["cpu"], load=run["load"]) for row in run["rows"])
    print(f"rows added to {os.path.relpath(path, ROOT)}.csv and .json")


def read_runs(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)
