"""A training under `launch`, with one of its processes killed or stopped every 20 seconds: does it end with the bits of
one that nothing has disturbed?

    python tests/soak_launch.py [MINUTES] [SEED] [SECONDS]        (30, 1 and 20)

A victim is drawn every SECONDS: a rank, two ranks, a guard, the witness, mpirun, its proxy, `launch` itself (it is then
started again with --resume), by SIGKILL; or a rank, a guard, mpirun or the proxy is stopped for good. After MINUTES
`launch` gets SIGTERM, and the training saves. One process then does as many steps alone. Compared are loss and
gradient norm of each step, and the weights, bit for bit; no process and no file in /dev/shm may be left.
Prints a line per victim and the result; exit code 1 if something differs.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter

from kill_ranks import ROOT, SCRIPT, processes_of, shared_memory, state_of, victims

sys.path.insert(0, ROOT)

from tinygrad2.distributed.mpirun import environment  # noqa: E402
from tinygrad2.io.weights import load_weights  # noqa: E402
from tinygrad2.training.checkpoint import list_checkpoints  # noqa: E402

FLAGS = """--n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --vocab-size 512 --threads 1 --dropout 0.1 --batch-size 4
           --micro-batch-size 1 --schedule constant --warmup-steps 10 --sample-every 0 --eval-every 50 --eval-batches 1
           --checkpoint-every 20 --timeout 5""".split()
KINDS = ("rank", "rank", "rank", "two ranks", "guard", "guard", "witness", "mpirun", "proxy", "launch", "rank stopped",
         "guard stopped", "mpirun stopped", "proxy stopped")  # fmt: skip


def start(folder, job, *more):
    """launch with 4 ranks, whose output goes to the end of the file `log`."""
    command = [sys.executable, "-m", "tinygrad2", "launch", "-n", "4", "--max-restarts", "100000", "--log",
               "launch.jsonl", "--", SCRIPT, *FLAGS, "--steps", "100000000", *more]  # fmt: skip
    with open(os.path.join(folder, "log"), "ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True,
                                env={**environment(), "PYTHONPATH": ROOT, "TINYGRAD2_TEST_JOB": job})  # fmt: skip


def disturb(rng, job, launch):
    """Kill or stop one process of the job; returns (kind, process) or ("", 0) if there was no such process."""
    kind = rng.choice(KINDS)
    name, stopped, _ = kind.partition(" stopped")
    if kind == "launch":
        pids = [launch.pid]
    else:
        pids = victims(job).get("rank" if kind == "two ranks" else name, [])
    if len(pids) < 1 + (kind == "two ranks"):
        return "", 0
    for pid in rng.sample(pids, 1 + (kind == "two ranks")):
        try:
            os.kill(pid, signal.SIGSTOP if stopped else signal.SIGKILL)
        except ProcessLookupError:
            return "", 0
    return kind, pid


def wait_until_gone(job, seconds):
    """Returns whether all processes of the job have ended in that time."""
    end = time.monotonic() + seconds
    while processes_of(job) and time.monotonic() < end:
        time.sleep(0.1)
    return not processes_of(job)


def records(folder, name):
    """{step: (loss, gradient norm)} of a metrics file, and problems: a step that was done twice must be alike."""
    found, problems = {}, []
    with open(os.path.join(folder, name, "metrics.jsonl"), encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if "loss" in row:
                kept = row["loss"], row["grad_norm"]
                if found.setdefault(row["step"], kept) != kept:
                    problems.append(f"step {row['step']} was done twice, with different bits")
    return found, problems


def main(minutes, seed, seconds):
    """Returns the exit code."""
    rng, counts, files, problems = random.Random(seed), Counter(), set(), []
    with tempfile.TemporaryDirectory() as folder:
        job, end = str(uuid.uuid4()), time.monotonic() + 60 * minutes
        launch = start(folder, job)
        while time.monotonic() < end:
            time.sleep(seconds)
            if launch.poll() is not None:
                problems.append(f"launch ended with exit code {launch.returncode}")
                break
            files |= shared_memory(processes_of(job))
            kind, pid = disturb(rng, job, launch)
            counts[kind] += 1
            saved = list_checkpoints(os.path.join(folder, "run", "checkpoints"))
            newest = os.path.basename(saved[0]) if saved else "no checkpoint"
            print(f"{time.strftime('%H:%M:%S')} {kind or 'nothing to kill'} {pid}; {newest}", flush=True)
            if kind == "launch":
                launch.wait()
                if not wait_until_gone(job, 30):
                    left = [(pid, state_of(pid)) for pid in processes_of(job)]
                    problems.append(f"30 s after launch was killed there are {left}")
                    for pid, _ in left:
                        os.kill(pid, signal.SIGKILL)
                launch = start(folder, job, "--resume")
        time.sleep(20)  # for it to be in the middle of the training
        launch.send_signal(signal.SIGTERM)
        code = launch.wait(timeout=300)
        if code != 128 + signal.SIGTERM:
            problems.append(f"exit code {code} after SIGTERM")
        if not wait_until_gone(job, 10):
            problems.append(f"a process is left: {[(pid, state_of(pid)) for pid in processes_of(job)]}")
        if left := list(filter(os.path.exists, files)):
            problems.append(f"shared memory is left: {left}")
        many, found = records(folder, "run")
        problems += found
        steps = max(many) + 1
        alone = [sys.executable, SCRIPT, *FLAGS, "--steps", str(steps), "--run-dir", "alone",
                 "--weights-out", "one.bin"]  # fmt: skip
        variables = {**environment(), "PYTHONPATH": ROOT}
        subprocess.run(alone, cwd=folder, env=variables, stdout=subprocess.DEVNULL, check=True)
        one, _ = records(folder, "alone")
        if different := [step for step in one if one[step] != many.get(step)]:
            problems.append(f"{len(different)} of {len(one)} steps differ, the first is {different[0]}")
        a, b = (load_weights(os.path.join(folder, path)).tensors for path in ("one.bin", "trained_weights.bin"))
        if a.keys() != b.keys() or any(a[name].tobytes() != b[name].tobytes() for name in a):
            problems.append("the weights differ")
        with open(os.path.join(folder, "log"), encoding="utf-8", errors="replace") as file:
            text = file.read()
        if problems:
            print("\n".join(re.findall(r"^(?:launch|\[rank).*", text, re.MULTILINE)), text[-2000:])
    restarts = text.count("; restart ")
    print(f"{minutes:g} min, {sum(counts.values())} victims: {dict(counts)}; {restarts} restarts, {steps} steps: "
          f"{'; '.join(problems) or 'the bits of a training that nothing has disturbed'}")  # fmt: skip
    return int(bool(problems))


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:4]]
    sys.exit(main(*given, *(30, 1, 20)[len(given) :]))
