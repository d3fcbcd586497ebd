"""Many short trainings under mpirun, in each of which some process is killed, stopped or asked to end, from outside and
at a random moment: is it named, is the exit code right, is anything left?

    python tests/kill_ranks.py [JOBS] [SEED]

Each job has 2 to 8 ranks. What is done to which of its processes is drawn from KINDS. A job passes if

    exactly one line says which rank died, and it is the right one (where a rank died, and mpirun is alive to show it)
    the exit code is the number of the signal, or 128 more; never 0
    no process is left, and no file in /dev/shm; the newest checkpoint is intact

Prints a line per failed job and the counts; exit code 1 if a job has failed. test_guard.py runs a small number.
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
from tinygrad2.training.checkpoint import newest_checkpoint  # noqa: E402

FLAGS = """--n-layer 1 --n-head 2 --n-embd 32 --block-size 32 --vocab-size 512 --threads 1 --sample-every 0
           --steps 1000000 --micro-batch-size 1 --checkpoint-every 5 --timeout 10
           --kernels reference""".split()
SCRIPT = os.path.join(ROOT, "train_gpt2.py")
MOST_SECONDS = 120
KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
DEADLY = [getattr(signal, f"SIG{name}") for name in
          "KILL KILL KILL ABRT SEGV BUS ILL FPE TRAP SYS ALRM VTALRM PROF USR2 QUIT PWR IO".split()]  # fmt: skip
ASKED = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU]
KINDS = {  # what is done: [(kind of process, signal, None for a random deadly one)]
    "rank": [("rank", None)],
    "guard": [("guard", KILL)],
    "guard, a signal that is passed on": [("guard", signal.SIGABRT)],
    "rank, stopped before": [("rank", STOP), ("rank", KILL)],
    "rank, its guard stopped before": [("guard", STOP), ("rank", None)],
    "rank, the witness killed before": [("witness", KILL), ("rank", None)],
    "rank, the witness stopped before": [("witness", STOP), ("rank", None)],
    "rank, mpirun stopped before": [("mpirun", STOP), ("rank", None)],
    "rank, the proxy stopped before": [("proxy", STOP), ("rank", None)],
    "guard, stopped before": [("guard", STOP), ("guard", KILL)],
    "rank and guard at once": [("guard", KILL), ("rank", KILL)],
    "rank, then its guard": [("witness", STOP), ("guard", STOP), ("rank", KILL), ("guard", KILL), ("witness", CONT)],
    "all ranks at once": [("all ranks", KILL)],
    "all ranks but one at once": [("other ranks", KILL)],
    "mpirun": [("mpirun", KILL)],
    "proxy": [("proxy", KILL)],
    "rank, asked to end": [("rank", "asked")],
    "guard, asked to end": [("guard", "asked")],
    "rank, while it starts": [("rank", None)],
    "guard, while it starts": [("guard", KILL)],
    "rank stopped": [("rank", STOP)],
}


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


def state_of(pid):
    """Linux's letter for the state of a process, and its command line."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat, \
             open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as line:  # fmt: skip
            return stat.read().rpartition(")")[2].split()[0], line.read().replace("\0", " ").strip()
    except OSError:
        return "", ""


def victims(job):
    """{"rank" | "guard" | "witness" | "mpirun" | "proxy": process ids} of a job, those of ranks and guards in order."""
    lines = {pid: state_of(pid)[1] for pid in processes_of(job)}
    found = {"witness": [pid for pid, line in lines.items() if line.startswith("tinygrad2 witness")]}
    for kind, program in (("mpirun", "mpirun"), ("proxy", "hydra_pmi_proxy")):
        found[kind] = [pid for pid, line in lines.items() if os.path.basename(line.split(" ")[0]) == program]
    named = [(re.match(r"tinygrad2 guard of rank (\d+) \(process (\d+)\)", line), pid) for pid, line in lines.items()]
    guards = sorted((int(match[1]), int(match[2]), pid) for match, pid in named if match)
    found["rank"], found["guard"] = [pid for _, pid, _ in guards], [pid for _, _, pid in guards]
    return found


class Job:
    """One training under mpirun. lines: what it has printed."""

    def __init__(self, folder, n):
        self.lines, value = [], str(uuid.uuid4())
        self.mark = f"TINYGRAD2_TEST_JOB={value}"
        self.process = subprocess.Popen(
            [find_mpirun(), "-n", str(n), sys.executable, SCRIPT, *FLAGS, "--batch-size", str(n)],
            cwd=folder, env={**environment(), "PYTHONPATH": ROOT, "TINYGRAD2_TEST_JOB": value}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.timer = threading.Timer(MOST_SECONDS, self.kill)
        self.timer.start()

    def read(self, steps=None):
        """Read what it prints until so many steps are done; None: until it ends."""
        for line in self.process.stdout:
            self.lines.append(line)
            if steps is not None and line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= steps:
                return

    def kill(self):
        for pid in processes_of(self.mark):
            try:
                os.kill(pid, KILL)
            except ProcessLookupError:
                pass

    def is_gone(self):
        for _ in range(80):
            if not processes_of(self.mark):
                return True
            time.sleep(0.1)
        return False


def strike(rng, kind, found, rank):
    """Do what KINDS says; returns the last signal, SIGCONT aside."""
    last = 0
    for which, number in KINDS[kind]:
        if number is None or number == "asked":
            number = rng.choice(ASKED if number else DEADLY)
        if which in ("rank", "guard"):
            pids = found[which][rank : rank + 1]
        elif which in ("all ranks", "other ranks"):
            pids = found["rank"][which == "other ranks" :]
        else:
            pids = found[which]
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        if number == STOP or which == "witness":
            time.sleep(0.5 * rng.random())
        last = last if number == CONT else number
    return last


def kill_one(rng, kind):
    """Run one job and strike; returns (what was done, what is wrong or "", what was printed)."""
    n = rng.randint(2, 8)
    rank = rng.randrange(n)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(folder, n)
        if kind.endswith("while it starts"):
            end = time.monotonic() + 30
            while len(victims(job.mark)["guard"]) < n and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(rng.random())
        else:
            job.read(rng.randrange(1, 12))
            time.sleep(0.3 * rng.random())
        found, files = victims(job.mark), shared_memory(processes_of(job.mark))
        number = strike(rng, kind, found, rank)
        job.read()
        code, printed = job.process.wait(), "".join(job.lines)
        problems = ["a process is left"] * (not job.is_gone())
        job.timer.cancel()
        job.kill()
        job.process.stdout.close()
        problems += [f"{path} is left" for path in files if os.path.exists(path)]
        problems += wrong_report(kind, found["rank"], rank, number, code, printed)
        said = []
        checkpoint, damaged = newest_checkpoint(os.path.join(folder, "run", "checkpoints"), said.append)
        problems += [f"{checkpoint and checkpoint.step} {said}"] * bool(damaged or said)
    what = f"{kind}: {signal.Signals(number).name}"
    return f"{what}, rank {rank} of {n}: {', '.join(problems)}" if problems else "", printed


def wrong_report(kind, ranks, rank, number, code, printed):
    """What is wrong with the exit code and the lines about a death."""
    named = re.findall(r"^\[rank (\d) of \d, \S+ pid (\d+)\] (?:was killed |ended )", printed, re.MULTILINE)
    who, right = [(str(rank), str(ranks[rank]))] if rank < len(ranks) else [], (number, 128 + number)
    if kind in ("mpirun", "proxy"):  # nobody is left whom the ranks could tell
        return [f"exit code {code}"] * (code == 0)
    if "asked" in kind:
        return [f"exit code {code}"] * (code != 128 + number) + [f"named {named}"] * bool(named)
    if kind == "rank stopped":
        missing = re.search(rf"missing: rank {rank} \(pid {ranks[rank]}\) .* is stopped", printed)
        return [f"exit code {code}"] * (code != 124) + ["not named"] * (not missing)
    if "at once" in kind:
        killed = [(str(i), str(pid)) for i, pid in enumerate(ranks)] if "rank and" not in kind else who
        return [f"exit code {code}"] * (code not in right) + [f"named {named}"] * (not {*named} & {*killed})
    return [f"exit code {code}"] * (code not in right) + [f"named {named}, not {who}"] * (named != who)


def main(jobs, seed, kinds=tuple(KINDS)):
    """Run so many jobs; returns the exit code."""
    rng, counts, failed = random.Random(seed), Counter(), 0
    with tempfile.TemporaryDirectory() as folder:  # compiles the kernels, which may take long
        words = [sys.executable, SCRIPT, *FLAGS, "--steps", "1"]
        subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    for i in range(jobs):
        kind = kinds[i % len(kinds)]
        wrong, printed = kill_one(rng, kind)
        counts[kind] += 1
        if wrong:
            failed += 1
            print(f"job {i}: {wrong}\n{printed[-800:]}", flush=True)
    print(f"{jobs - failed} of {jobs} jobs as expected; load {os.getloadavg()[0]:.1f}; {dict(counts)}")
    return int(failed > 0)


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(int(words[0]) if words else 100, int(words[1]) if words[1:] else 1, words[2:] or tuple(KINDS)))
