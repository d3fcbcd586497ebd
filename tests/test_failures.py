"""Failures planted in one rank of a training under mpirun: the job ends in time, reports why, and loses nothing."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest
from kill_ranks import processes_of
from marks import slow_but
from test_distributed import CLEAN, MPIRUN, needs_mpich
from test_train import ROOT, SMALL, TEXT

from tinygrad2.training.checkpoint import newest_checkpoint

pytestmark = pytest.mark.alone
TIMEOUT = 4  # seconds that a collective may take
GRACE = 10   # seconds after the deadline within which the job must have ended

# failure: (exit codes, 9 if mpirun reports a rank that it killed itself; patterns of what is printed);
# {rank} is the rank that failed
LATE = r"collective #\d+ '(gradients|losses) of step {number}' did not finish within 4 s"
MISSING = r"missing: rank {rank} \(pid \d+\) .* and is "
DIFFERENT = r"the ranks are in different collectives: "
TRACEBACK = r"\[rank {rank} of \d, [^]]*\] Traceback[\s\S]*"
WHO = r"^\[rank {rank} of \d, \S+ pid \d+\] "
DIED = WHO + r"was killed by {signal}, (in|after) #\d+ '(?!the start)"
CRASHED = DIED.replace("{signal}", "SIGSEGV")
OTHERS = r"at #\d+ 'gradients of step {number}' \((tree|plain sum) of \d+ float32"
KINDS = {
    "killed": ((9, 137), [DIED.replace("{signal}", "SIGKILL")]),
    "crashed": ((11, 139), [r"planted.py\", line \d+ in fail", CRASHED]),
    "stopped": ((124,), [LATE, MISSING + r"stopped \(as by SIGSTOP"]),
    "raised": ((1,), [TRACEBACK + "RuntimeError: planted"]),
    "raised in a thread": ((1,), [TRACEBACK + "KeyError: 'planted'"]),
    "exit 3": ((3,), [TRACEBACK + "SystemExit: 3"]),
    "exit 0": ((1,), [TRACEBACK + "SystemExit: 0"]),
    "aborted": ((6, 134), [r"planted.py\", line \d+ in fail", DIED.replace("{signal}", "SIGABRT")]),
    "its guard killed": ((9, 137), [DIED.replace("killed by {signal}", "killed from outside")]),
    "killed, its guard stopped": ((9, 137), [DIED.replace("{signal}", "SIGKILL")]),
    "its guard aborted": ((6, 134), [DIED.replace("{signal}", "SIGABRT")]),
    "its guard stopped and killed": ((9, 137), [DIED.replace("killed by {signal}", "killed from outside")]),
    **{f"signal {number}": ((number, 128 + number), [DIED.replace("{signal}", signal.Signals(number).name)])
       for number in (signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGALRM, signal.SIGUSR2)},
    "stack overflow": ((11, 139), [CRASHED]),
    "recursion": ((1,), [TRACEBACK + "RecursionError"]),
    "memory": ((2, 124), [WHO + "planted.py: out of memory"]),
    "cpu time": ((9, 137, 24, 152), [WHO + r"was killed by SIG(KILL|XCPU), (in|after) #"]),
    "no more files": ((2,), [WHO + "planted.py: too many open files"]),
    "files closed": ((1, 2), [WHO + "(has closed its files; ending the job|Traceback|Bad file descriptor)"]),
    "all files closed": ((1, 2), [WHO + "(has closed its files; ending the job|ended with exit code [12], without)"]),
    "signals blocked": ((124,), [LATE, MISSING + r"at planted.py:\d+ in block_signals"]),
    "asleep in a library": ((124,), [LATE, MISSING.removesuffix("is ") + r"does not answer \(state [SR]\)"]),
    "child exited hard": ((9, 137), [DIED.replace("{signal}", "SIGKILL")]),
    "child exited": ((9, 137), [DIED.replace("{signal}", "SIGKILL")]),
    "child killed": ((9, 137), [DIED.replace("{signal}", "SIGKILL")]),
    "exit 256": ((1,), [TRACEBACK + "SystemExit: 256"]),
    "exit -1": ((255,), [TRACEBACK + "SystemExit: -1"]),
    "exit 2**40": ((1,), [TRACEBACK + "SystemExit: 1099511627776"]),
    "exit text": ((1,), [TRACEBACK + "SystemExit: planted"]),
    "exited hard with 256": ((1,), [r"\[rank {rank} of \d\] ended by os._exit\(256\) at planted.py:\d+"]),
    "exited in a library with 77": ((77,), [WHO + r"ended with exit code 77, without a message, (in|after) #\d+ '"]),
    "MPI_Abort 0": ((1,), [r"Abort\(0\) on node {rank} \(rank {rank} in comm 0\)"]),
    "MPI_Abort 7": ((7,), [r"Abort\(7\) on node {rank} \(rank {rank} in comm 0\)"]),
    "MPI_Abort 256": ((1,), [r"Abort\(256\) on node {rank} \(rank {rank} in comm 0\)"]),
    "MPI_Finalize": ((124,), [LATE, r"missing: rank {rank} \(pid \d+\) .* and (is at|does not answer)"]),
    "communicator freed": ((1,), [TRACEBACK + "Invalid communicator"]),
    "exited in a library by exit": ((1,), [WHO + r"ended with exit code 0, without a message, (in|after) #\d+ '"]),
    "exited hard": ((5,), [r"\[rank {rank} of \d\] ended by os._exit\(5\) at planted.py:\d+"]),
    "exited hard with 0": ((1,), [r"\[rank {rank} of \d\] ended by os._exit\(0\) at planted.py:\d+"]),
    "exited in a library": ((1,), [WHO + r"ended with exit code 0, without a message, after #\d+ '"]),
    "another program": ((1,), [WHO + r"(ended with exit code 0, without|has become another program \(true\))"]),
    "another program that lasts": ((1,), [WHO + r"has become another program \(sleep 1000\); ending the job"]),
    "asleep": ((124,), [LATE, MISSING + r"at planted.py:\d+ in <lambda>"]),
    "busy": ((124,), [LATE, MISSING + r"at planted.py:\d+ in run_forever"]),
    "returned": ((1,), [DIFFERENT, OTHERS, r"rank {rank} is at #\d+ 'the end of the program'"]),
    "skipped": ((1,), [DIFFERENT, OTHERS, r"rank {rank} is at #\d+ 'losses of step {number}'"]),
    "other size": ((1,), [DIFFERENT, r"rank {rank} is at #\d+ 'gradients of step {number}' \(tree of 77 float32"]),
    "other dtype": ((1,), [DIFFERENT, OTHERS, r"rank {rank} is at .*tree of \d+ float64"]),
    "other operation": ((1,), [DIFFERENT, r"rank {rank} is at .*largest of \d+"]),
    "other collective": ((1,), [DIFFERENT, r"rank {rank} is at #\d+ 'broadcast'"]),
}
MORE = [f"signal {number:d}" for number in (signal.SIGILL, signal.SIGFPE, signal.SIGALRM)]  # as others of KINDS
MORE += ["exit 2**40", "MPI_Abort 7", "exited hard with 256", "exited in a library with 77", "child exited hard"]
FLAGS = f"--steps 1000 --dropout 0.1 --checkpoint-every 2 --eval-every 3 --sample-every 4 --timeout {TIMEOUT}"


def start(folder, n, *command):
    job = f"TINYGRAD2_TEST_JOB={uuid.uuid4()}"
    name, _, value = job.partition("=")
    process = subprocess.Popen(
        [MPIRUN, "-n", str(n), sys.executable, *map(str, command)], cwd=folder, env={**CLEAN, name: value},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    return process, job


def no_process_is_left(job):
    for _ in range(30):
        if not processes_of(job):
            return True
        time.sleep(0.1)
    return False


def plant(folder, kind, n, rank, step):
    """Run one job with one failure; returns its seconds after the last step, and what is wrong (or "")."""
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    flags = [*SMALL.split(), "--batch-size", "12", "--micro-batch-size", "1", "--data", "text.txt", *FLAGS.split()]
    flags += ["--kernels", "reference"]  # loading the kernels would take most of the time
    process, job = start(folder, n, ROOT / "tests" / "planted.py", kind, rank, step, *flags)
    lines, last = [], time.monotonic()
    with process:
        watchdog = threading.Timer(90, os.killpg, [process.pid, signal.SIGKILL])
        watchdog.start()
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("step ", "compiling", "sample:")):
                last = time.monotonic()
        code = process.wait()
        watchdog.cancel()
    lived = time.monotonic() - last
    printed = "".join(lines)
    codes, patterns = KINDS[kind]
    patterns = [text.replace("{rank}", str(rank)).replace("{number}", str(step + 1)) for text in patterns]
    pids = dict(re.findall(r"(\d) is (\d+)", printed.partition("processes: ")[2].partition("\n")[0]))
    checkpoint, damaged = newest_checkpoint(str(folder / "run" / "checkpoints"), lambda line: None)
    problems = {
        f"exit code {code}": code not in codes,
        "the cause is not named": not all(re.search(pattern, printed, re.MULTILINE) for pattern in patterns),
        "the killed pid is not printed": kind == "killed" and "PID" in printed and pids[str(rank)] not in printed,
        f"it lived another {lived:.1f} s": lived > (TIMEOUT if 124 in codes else 0) + GRACE,
        "a process is left": not no_process_is_left(job),
        "a checkpoint is damaged": bool(damaged),
        "no checkpoint": step >= 4 and (checkpoint is None or checkpoint.step < step - step % 2 - 2),
    }
    wrong = [text for text, is_wrong in problems.items() if is_wrong]
    return lived, f"{kind}, rank {rank} of {n}, step {step}: {', '.join(wrong)}\n{printed[-1500:]}" if wrong else ""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see which processes are left")
@pytest.mark.parametrize("kind", slow_but(("killed", "stopped", "raised", "skipped", "other size"), KINDS, long=MORE))
def test_one_rank_fails(tmp_path, kind):
    rng = random.Random(kind)
    n = rng.choice((2, 2, 3))
    _, wrong = plant(tmp_path / "job", kind, n, rng.randrange(n), rng.randrange(1, 8))
    assert not wrong


@pytest.mark.long
def test_two_hundred_failures(tmp_path):
    rng = random.Random(5)
    longest, kinds = {}, list(KINDS)
    for i in range(200):
        kind, n = kinds[i % len(kinds)], rng.choice((2, 3, 4))
        lived, wrong = plant(tmp_path / f"{i}", kind, n, rng.randrange(n), rng.randrange(1, 30))
        assert not wrong
        longest[kind] = max(longest.get(kind, 0), lived)
    print({kind: f"{seconds:.1f} s" for kind, seconds in longest.items()})


# -- signals -----------------------------------------------------------------------------------------------------------


def training(folder, n, flags, script=ROOT / "train_gpt2.py", *more):
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    flags = [*SMALL.split(), "--batch-size", "8", "--micro-batch-size", "1", "--data", "text.txt", *flags.split()]
    return start(folder, n, script, *more, *flags)


def read_until(process, prefix, lines):
    for line in process.stdout:
        lines.append(line)
        if line.startswith(prefix):
            return
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("n", slow_but((2,), (1, 2)))
def test_sigusr1_saves_and_ends(tmp_path, n):
    process, job = training(tmp_path, n, "--steps 100000")
    lines = []
    with process:
        read_until(process, "step    20", lines)
        process.send_signal(signal.SIGUSR1)
        lines += process.stdout.readlines()
    printed = "".join(lines)
    assert process.returncode == 128 + signal.SIGUSR1, printed[-2000:]
    stopped = re.search(r"^stopped after (\d+) of 100000 steps; continue with: .*--resume$", printed, re.MULTILINE)
    checkpoint, damaged = newest_checkpoint(str(tmp_path / "run" / "checkpoints"), print)
    assert checkpoint.step == int(stopped[1]) and not damaged and no_process_is_left(job)


@needs_mpich
@pytest.mark.slow
def test_a_rank_that_waits_in_mpi_obeys_a_signal(tmp_path):
    """Rank 1 sleeps indefinitely; rank 0 cannot run Python's handler, because it waits inside MPI."""
    process, job = training(tmp_path, 2, "--steps 1000 --timeout 0", ROOT / "tests" / "planted.py", "asleep", "1", "3")
    lines = []
    with process:
        read_until(process, "step    3", lines)
        time.sleep(1)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        lines += process.stdout.readlines()
    assert time.monotonic() - begin < 20 and process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM received, but this rank has been in collective #" in "".join(lines) and no_process_is_left(job)


def test_no_rank_stays_when_mpirun_is_killed(tmp_path):
    process, job = training(tmp_path, 2, "--steps 100000")
    with process:
        read_until(process, "step    20", [])
        process.kill()
    time.sleep(1)
    assert no_process_is_left(job)
    checkpoint, damaged = newest_checkpoint(str(tmp_path / "run" / "checkpoints"), print)
    assert not damaged


def test_other_flags_on_one_rank_are_reported(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import sys\nfrom tinygrad2.distributed.world import World\nworld = World.join()\nimport train_gpt2\n"
        "flags = sys.argv[1:] + ['--lr', '0.5'] * world.rank\nworld.run(lambda: train_gpt2.main(world, flags))\n"
    )
    process, job = training(tmp_path, 2, "--steps 10", tmp_path / "odd.py")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 2 and no_process_is_left(job)
    assert "the ranks have different flags: lr is 0.006 on rank 0, 0.5 on rank 1" in printed


def test_weights_that_drift_apart_are_reported_by_name(tmp_path):
    (tmp_path / "drift.py").write_text(
        "import sys\nfrom tinygrad2.distributed.world import World\nworld = World.join()\nimport train_gpt2\n"
        "step = train_gpt2.Trainer.step\n"
        "def drifting(self, loader, *more):\n"
        "    if self.done == 3 and world.rank == 1: self.model.h[0].mlp.c_fc.weight.data[0, 0] += 1e-7\n"
        "    return step(self, loader, *more)\n"
        "train_gpt2.Trainer.step = drifting\nworld.run(lambda: train_gpt2.main(world, sys.argv[1:]))\n"
    )
    process, job = training(tmp_path, 2, "--steps 10 --compare-every 1 --checkpoint-every 1", tmp_path / "drift.py")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 2 and no_process_is_left(job)
    assert "after step 4 the weights of the ranks differ: first h.0.mlp.c_fc.weight, on rank 1" in printed
    checkpoint, _ = newest_checkpoint(str(tmp_path / "run" / "checkpoints"), print)
    assert checkpoint.step == 3


def test_another_number_of_ranks_than_expected_is_refused(tmp_path):
    for n, ranks in ((1, 2), (2, 4)):
        process, _ = training(tmp_path, n, f"--steps 10 --ranks {ranks}")
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 2 and f"--ranks {ranks}: there are {n}; start them by mpirun -n {ranks}" in printed
