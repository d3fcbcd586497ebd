"""Many short trainings under mpirun, each with one process killed at a random moment: is the rank named?

    python tests/kill_ranks.py [JOBS] [SEED]

Each job has 2 to 8 ranks. Killed is the rank, or its guard (the process that mpirun knows), by SIGKILL, SIGABRT or
SIGSEGV, from outside. A job passes if exactly one line says which rank died, and it is the right one, the exit code is
that signal's number (9 for a guard), no process is left, and /dev/shm is as it was before. Prints a line per failed job
and the counts; exit code 1 if a job has failed. test_guard.py runs a small number.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tinygrad2.distributed.mpirun import environment, find_mpirun  # noqa: E402

FLAGS = """--n-layer 1 --n-head 2 --n-embd 32 --block-size 32 --vocab-size 512 --threads 1 --sample-every 0
           --steps 1000000 --micro-batch-size 1 --checkpoint-every 5""".split()
SCRIPT = os.path.join(ROOT, "train_gpt2.py")
MOST_SECONDS = 120


def processes_of(job):
    """The ids of all processes that have this job's variable in their environment, zombies aside."""
    pids = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if job.encode() in file.read():
                    pids.append(int(name))
        except OSError:
            pass
    return pids


def shared_memory(pids):
    """The files in /dev/shm that these processes have mapped."""
    found = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
                found |= set(re.findall(r"(/dev/shm/\S+)", file.read()))
        except OSError:
            pass
    return found


def parent_of(pid):
    """The parent of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def kill_one(rng):
    """Run one job and kill one of its processes; returns (what was killed, what is wrong or "", what was printed)."""
    n, victim, steps = rng.randint(2, 8), rng.choice(("rank", "rank", "guard")), rng.randrange(1, 6)
    number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV))
    if victim == "guard":
        number = signal.SIGKILL
    what = f"{victim} {number.name}"
    job = f"TINYGRAD2_TEST_JOB={uuid.uuid4()}"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [find_mpirun(), "-n", str(n), sys.executable, SCRIPT, *FLAGS, "--batch-size", str(n)],
            cwd=folder, env={**environment(), "PYTHONPATH": ROOT, "TINYGRAD2_TEST_JOB": job.partition("=")[2]},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(MOST_SECONDS, os.killpg, [process.pid, signal.SIGKILL])
        timer.start()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= steps:
                break
        pids = dict(re.findall(r"(\d) is (\d+)", "".join(lines).partition("processes: ")[2].partition("\n")[0]))
        rank = rng.randrange(n)
        problems = ["it did not start"]
        if str(rank) in pids:
            files = shared_memory(processes_of(job))
            time.sleep(rng.random())
            pid = int(pids[str(rank)])
            os.kill(parent_of(pid) if victim == "guard" else pid, number)
            lines += process.stdout.readlines()
            code = process.wait()
            named = re.findall(r"^\[rank (\d) of \d, \S+ pid (\d+)\] was killed ", "".join(lines), re.MULTILINE)
            for _ in range(50):
                if not processes_of(job):
                    break
                time.sleep(0.1)
            problems = [
                f"named {named}" * (named != [(str(rank), str(pid))]),
                f"exit code {code}" * (code not in (number, 128 + number)),
                "a process is left" * bool(processes_of(job)),
                "shared memory is left" * any(map(os.path.exists, files)),
            ]
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    wrong = ", ".join(filter(None, problems))
    return what, f"{what}, rank {rank} of {n}: {wrong}" if wrong else "", "".join(lines)


def main(jobs, seed):
    """Run so many jobs; returns the exit code."""
    rng, counts, failed = random.Random(seed), Counter(), 0
    for i in range(jobs):
        what, wrong, printed = kill_one(rng)
        counts[what] += 1
        if wrong:
            failed += 1
            print(f"job {i}: {wrong}\n{printed[-800:]}", flush=True)
    print(f"{jobs - failed} of {jobs} jobs as expected; load {os.getloadavg()[0]:.1f}; killed: {dict(counts)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
