"""The cases of a lab, run on a student's file: in this process, or in another one with a limit of time."""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np

from tinygrad2.io.files import read_bytes
from tinygrad2.labs.lab import Result, Wrong, generator
from tinygrad2.system.installation import PROJECT_ROOT

NOT_RUN = "not run"


def run_cases(lab, path, seed, note=lambda result: None):
    """The Results of all cases; note(result) is called after each. Nothing that the file raises is raised here."""
    from tinygrad2.labs.load import explain_error, loaded  # and with it all ops: not for the process that only waits

    results = []

    def add(case, points, message=""):
        results.append(Result(case.title, points, case.points, message))
        note(results[-1])

    try:
        with loaded(path) as student:
            for case in lab.cases:
                add(case, *_outcome(case, student, generator(seed, case), partial(explain_error, path=path)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the file itself, SystemExit too: none of its cases can run
        for case in lab.cases[len(results) :]:
            add(case, 0, explain_error(error, path))
    return results


def _outcome(case, student, rng, explain):
    try:
        with np.errstate(all="ignore"):  # values that are not finite are reported in our words
            note = case.check(student, rng)
    except Wrong as wrong:
        return 0, str(wrong)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return 0, explain(error)
    return case.points, note or ""


def run_apart(lab, path, seed, limit):
    """The same in another process, which is ended after `limit` seconds; returns (results, seconds).

    What the student's code prints appears on standard output.
    """
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": _first(PROJECT_ROOT, os.environ.get("PYTHONPATH")), "PYTHONUTF8": "1"}
    with tempfile.TemporaryDirectory(prefix="tinygrad2-lab-") as folder:
        notes = os.path.join(folder, "results.jsonl")
        command = [sys.executable, "-m", "tinygrad2.labs.worker", lab.name, os.path.abspath(path), str(seed), notes]
        sys.stdout.flush()
        try:
            code = subprocess.run(command, env=environment, timeout=limit, stdin=subprocess.DEVNULL).returncode
            problem = f"the process has ended here, with exit code {code}: sys.exit, os._exit, or too much memory?"
        except subprocess.TimeoutExpired:
            problem = f"no end within {limit:g} s (--time-limit): a loop whose condition never becomes false?"
        lines = read_bytes(notes).splitlines() if os.path.exists(notes) else []
    results = [Result(**json.loads(line)) for line in lines]
    for case in lab.cases[len(results) :]:
        results.append(Result(case.title, 0, case.points, problem))
        problem = NOT_RUN
    return results, time.perf_counter() - start


def _first(path, more):
    return os.pathsep.join([path, more]) if more else path
