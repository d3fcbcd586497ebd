"""Many short trainings, each with a disk that is full, breaks or vanishes: is anything lost, or wrong?

    unshare -rm python tests/broken_disks.py [TRAININGS] [SEED] [FIRST]

Each training writes its run folder, weights, metrics, cache of tokens and standard output to places of their own, and
one of these, or all, is broken: by a small disk, one that is filled (and emptied again) after a random step, unmounted
or made read-only, removed with all that is in it, a limit on the size of files, /dev/full, or one call to the system
that fails (broken_calls.c). A training passes if it ends with exit code 0 (1 if only standard output was broken) and
the bits of an undisturbed one, or with one line and exit code 2; if every checkpoint is intact, and what was there
before is still there; if it is resumed on a sound disk with the same bits; and if no temporary file is left then.

Prints a line per failed training and the counts; exit code 1 if one has failed. test_broken_disks.py runs a few.
"""

import contextlib
import errno
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tinygrad2.distributed.mpirun import environment, find_mpirun  # noqa: E402
from tinygrad2.errors import UserError  # noqa: E402
from tinygrad2.io.weights import load_weights  # noqa: E402
from tinygrad2.training.checkpoint import list_checkpoints, read_checkpoint  # noqa: E402

STEPS = 12
KERNELS = ("reference",) * 4 + ("auto",)  # compiling takes longer than all of the training
FLAGS = f"""--n-layer 1 --n-head 2 --n-embd 32 --block-size 16 --vocab-size 290 --batch-size 4 --threads 1
            --steps {STEPS} --warmup-steps 2 --dropout 0.1 --micro-batch-size 2 --sample-every 5 --sample-tokens 2
            --eval-every 4""".split()
TEXT = "The cat sat on the mat. The dog sat on the log.\n<|endoftext|>\nA bird in a tree sang.\n" * 40
PLACES = ("run", "weights", "metrics", "data", "out")
CALLS = "open write fsync rename mkdir close truncate unlink statvfs flock chmod rmdir".split()
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.EINTR)
KINDS = ("call", "call", "call", "call", "small", "small", "filled", "filled", "unmounted", "read-only", "removed",
         "limit", "dev-full")  # fmt: skip
MOST_SECONDS = 900


def shim(folder):
    """Compile broken_calls.c; returns the path of the library."""
    library = os.path.join(folder, "broken_calls.so")
    source = os.path.join(ROOT, "tests", "broken_calls.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Training:
    """One folder with all places, and the training that writes there."""

    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        for place in PLACES:
            os.makedirs(os.path.join(folder, place))
        self.fill_data()
        self.ranks = 2 if rng.random() < 0.1 else 1
        self.kernels, every = rng.choice(KERNELS), rng.choice((1, 1, 2, 3, 5, 0))
        self.flags = [
            *FLAGS, "--kernels", self.kernels, "--data", self.at("data/my.txt"), "--run-dir", self.at("run/r"),
            "--weights-out", self.at("weights/w.bin"), "--checkpoint-every", str(every),
            "--keep-checkpoints", str(rng.choice((1, 2, 4))), "--keep-every", str(rng.choice((0, 0, 4))),
        ]  # fmt: skip
        if rng.random() < 0.6:
            self.flags += ["--metrics", self.at("metrics/m.jsonl")]
        if rng.random() < 0.2:
            self.flags += ["--tensorboard"]
        if self.ranks > 1 and rng.random() < 0.5:
            self.flags += ["--zero", "1"]

    def at(self, name):
        return os.path.join(self.folder, name)

    def fill_data(self):
        with open(self.at("data/my.txt"), "w", encoding="utf-8") as file:
            file.write(TEXT)

    def command(self, more=()):
        mpi = [find_mpirun(), "-n", str(self.ranks)] if self.ranks > 1 else []
        return [*mpi, sys.executable, os.path.join(ROOT, "train_gpt2.py"), *self.flags, *more]

    def run(self, more=(), prefix="", variables=(), out="", at_step=None):
        """Returns (exit code, stdout, stderr). at_step: (step, function) called when that step has been reported."""
        env = {**environment(), "PYTHONPATH": ROOT, "XDG_CACHE_HOME": self.at("data/cache"), **dict(variables)}
        command = shlex.join(self.command(more))
        redirect = f" > {out}" if out else ""
        process = subprocess.Popen(
            ["bash", "-c", f"{prefix} exec {command} {redirect}"], env=env, cwd=self.folder, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        with tempfile.TemporaryFile() as said:
            reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=said)
            lines, timer = [], threading.Timer(MOST_SECONDS, os.killpg, [process.pid, signal.SIGKILL])
            timer.start()
            for line in process.stdout:
                lines.append(line.decode("utf-8", "replace"))
                step = re.match(rb"step +(\d+)/", line)
                if at_step and step and int(step[1]) >= at_step[0]:
                    at_step[1]()
                    at_step = None
            code = process.wait()
            timer.cancel()
            reader.wait()
            said.seek(0)
            return code, "".join(lines), said.read().decode("utf-8", "replace")


def contents(folder):
    """What is in the files of all checkpoints in it, at any depth."""
    paths = [os.path.join(here, name) for here, _, names in os.walk(folder) for name in names if "/step_" in here]
    return [pathlib.Path(path).read_bytes() for path in paths]


def temporary(folder):
    """What killed or failed writes have left."""
    left = []
    for here, folders, names in os.walk(folder):
        hidden = [name for name in names if name.startswith(".") and name not in (".lock", ".owner")]
        unfinished = [name for name in folders if name.startswith((".writing", ".deleting"))]
        ended = [name for name in names + folders if name.endswith(".tmp")]
        left += [os.path.join(here, name) for name in {*hidden, *unfinished, *ended}]
    return left


def tensors(path):
    weights = load_weights(path)
    return {name: array.tobytes() for name, array in weights.tensors.items()}


def losses(path):
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row["step"]: (row["loss"], row["grad_norm"], row.get("val_loss")) for row in rows}


def fill(path):
    """Fill the disk to its last byte; returns the file that does."""
    balloon = os.path.join(path, "balloon")
    with open(balloon, "wb", buffering=0) as file:
        for size in (1 << 16, 4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return balloon


class Fault:
    """What is done to one place of a training.

    prefix, variables, out    of its command line; where standard output goes, "" for a pipe
    at_step                   (step, function), called while it runs; None
    vanishes                  what is in the place is removed, or no longer visible
    """

    def __init__(self, rng, training, library):
        self.rng, self.training, self.kind = rng, training, rng.choice(KINDS)
        self.place = "out" if self.kind == "dev-full" else rng.choice(PLACES + ("run",) * 3)
        self.root, self.step = training.at(self.place), rng.randrange(1, STEPS)
        self.prefix, self.variables, self.out, self.at_step, self.what = "", {}, "", None, f"{self.kind} {self.place}"
        self.vanishes = self.kind in ("removed", "unmounted")
        if self.kind in ("small", "filled", "unmounted", "read-only"):
            self._mount(rng.choice((4, 8, 16, 100, 200, 400, 600, 900, 1500)) if self.kind == "small" else 4000)
        if self.kind == "call":
            self._break_call(library)
        elif self.kind == "limit":
            size = rng.choice((1, 2, 4, 20, 60, 100, 200, 300))
            self.prefix, self.what = f"ulimit -f {size};", f"ulimit -f {size}"
        elif self.kind == "dev-full":
            self.out = "/dev/full"
        elif self.kind != "small":
            action = {"filled": self._fill, "unmounted": self._unmount, "read-only": self._make_read_only,
                      "removed": lambda: shutil.rmtree(self.root, ignore_errors=True)}[self.kind]  # fmt: skip
            self.at_step, self.empties = (self.step, action), self.kind == "filled" and rng.random() < 0.5
            self.what += f" at step {self.step}" + ", emptied again" * self.empties

    def _mount(self, size):
        """A disk of so many KB, with what was in the folder."""
        with tempfile.TemporaryDirectory() as kept:
            shutil.copytree(self.root, kept, dirs_exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", self.root], check=True)
            shutil.copytree(kept, self.root, dirs_exist_ok=True)
        if self.place == "out":
            self.out = os.path.join(self.root, "log")

    def _break_call(self, library):
        rng, call = self.rng, self.rng.choice(CALLS)
        error = rng.choice(ERRORS + (0,) * 3 * (call == "write"))
        after = rng.choice((0, rng.randrange(5), rng.randrange(20), rng.randrange(100)))
        times = rng.choice((1, 1, 5, 5 if error in (0, errno.EINTR) else 10**6))
        self.variables = {
            "LD_PRELOAD": library, "BROKEN_PATH": "fd:1" if self.place == "out" else self.root,
            "BROKEN_CALLS": f",{call},", "BROKEN_AFTER": str(after), "BROKEN_TIMES": str(times),
            "BROKEN_ERRNO": str(error), "BROKEN_LOG": self.training.at("broken"),
        }  # fmt: skip
        how = os.strerror(error) if error else "short"
        self.what += f": {call} fails after {after}, {times} times, {how}"

    def _fill(self):
        balloon = fill(self.root)
        if self.empties:
            time.sleep(self.rng.random() / 5)
            os.remove(balloon)

    def _unmount(self):
        subprocess.run(["umount", "-l", self.root], check=True)

    def _make_read_only(self):
        subprocess.run(["mount", "-o", "remount,ro", self.root])      # refused while a file is open for writing

    def mend(self):
        """A sound disk again."""
        if os.path.ismount(self.root):
            subprocess.run(["mount", "-o", "remount,rw,size=100m", self.root], check=True)
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.root, "balloon"))
        for place in PLACES:
            os.makedirs(self.training.at(place), exist_ok=True)
        if not os.path.exists(self.training.at("data/my.txt")):
            self.training.fill_data()

    def close(self):
        while os.path.ismount(self.root):
            subprocess.run(["umount", "-l", self.root], check=True)


def one(rng, library, references, folder):
    """Run one training; returns (what was done, what is wrong or "", what was printed). references: {kernels: what
    `reference` has returned}, filled in."""
    training = Training(folder, rng)
    if training.kernels not in references:
        os.mkdir(folder + "-reference")
        references[training.kernels] = reference(training.kernels, folder + "-reference")
    expected = references[training.kernels]
    fault, older = Fault(rng, training, library), None
    if rng.random() < 0.4:                                        # there are results of an earlier training
        code, *printed = training.run(["--steps", "3"])
        if code == 0:
            older = contents(training.at("run")), tensors(training.at("weights/w.bin"))
        elif fault.kind != "small":
            fault.close()
            return fault.what, f"the earlier training ended with {code}", "".join(printed)
    if fault.kind == "filled" and fault.place == "out":
        fill(fault.root)
    code, *printed = training.run((), fault.prefix, fault.variables, fault.out, fault.at_step)
    problems = list(end_problems(training, fault, code, *printed, expected))
    problems += loss_problems(training, fault, older, expected)
    fault.mend()
    checkpoints = list_checkpoints(training.at("run/r/checkpoints"))
    has_begun = code != 2 or not older or any(int(os.path.basename(path)[5:13]) > 3 for path in checkpoints)
    problems += again_problems(training, "".join(printed), has_begun, expected)
    fault.close()
    flags = " ".join(training.flags[training.flags.index("--checkpoint-every") :])
    nothing = fault.kind == "call" and not os.path.exists(training.at("broken"))
    what = f"{fault.what}; {flags}, {training.ranks} rank(s), older {bool(older)} -> {code}"
    what += " (no such call)" * nothing
    return what, "; ".join(problems), "".join(printed)


def end_problems(training, fault, code, out, errors, expected):
    """Yields what is wrong with the way in which a training has ended."""
    if code not in ((0, 1, 2) if fault.place == "out" or fault.kind == "limit" else (0, 2)):
        yield f"exit code {code}"
    if "Traceback" in out + errors:
        yield "a traceback"
    lines = [line for line in errors.splitlines() if line.strip()]
    if code == 2 and training.ranks == 1 and not 1 <= len(lines) <= (3 if fault.place == "out" else 1):
        yield f"{len(lines)} lines on stderr"
    if code == 0 and not (fault.vanishes and fault.place == "weights"):
        try:
            if tensors(training.at("weights/w.bin")) != expected[0]:
                yield "exit code 0 and other weights"
        except UserError as error:
            yield f"exit code 0 and no weights: {error}"


def loss_problems(training, fault, older, expected):
    """Yields what has been lost or damaged."""
    for path in list_checkpoints(training.at("run/r/checkpoints")):
        try:
            read_checkpoint(path)
        except UserError as error:
            yield str(error)
    if older and not (fault.vanishes and fault.place == "run"):
        if not set(older[0]) <= set(contents(training.at("run"))):
            yield "the earlier training's checkpoint is gone"
    if older and not (fault.vanishes and fault.place == "weights"):
        try:
            if tensors(training.at("weights/w.bin")) not in (older[1], expected[0]):
                yield "weights are neither the old nor the new ones"
        except UserError as error:
            yield f"weights are gone: {error}"


def again_problems(training, printed, has_begun, expected):
    """Continue on a sound disk; yields what is wrong then."""
    code, out, errors = training.run(["--resume"] * has_begun)
    if code:
        yield f"resumed: exit code {code}: {errors[-600:]}"
        return
    if tensors(training.at("weights/w.bin")) != expected[0]:
        yield "resumed: other weights"
    curve = losses(training.at("metrics/m.jsonl" if "--metrics" in training.flags else "run/r/metrics.jsonl"))
    if any(expected[1][step] != row for step, row in curve.items()):
        yield "resumed: other losses"
    if len(curve) < STEPS and not re.search("lost|without what was in it", printed + out):
        yield f"{len(curve)} steps in metrics, and nothing says so"
    if left := temporary(training.folder):
        yield f"left: {left}"


def reference(kernels, folder):
    """(tensors, curve) of a training that nothing disturbs."""
    training = Training(folder, random.Random(0))
    training.flags[training.flags.index("--kernels") + 1] = kernels
    training.ranks, training.flags = 1, [flag for flag in training.flags if flag not in ("--zero", "--tensorboard")]
    training.flags += ["--metrics", training.at("metrics/m.jsonl")]
    code, out, errors = training.run()
    assert code == 0, errors
    return tensors(training.at("weights/w.bin")), losses(training.at("metrics/m.jsonl"))


def main(trainings, seed, first=0):
    """Run so many; returns the exit code."""
    failed, counts = 0, Counter()
    with tempfile.TemporaryDirectory() as place:
        library = shim(place)
        references = {}
        for i in range(first, first + trainings):
            folder = os.path.join(place, str(i))
            os.mkdir(folder)
            what, wrong, printed = one(random.Random(f"{seed}-{i}"), library, references, folder)
            counts[what.split()[0] + " -> " + what.rpartition("-> ")[2]] += 1
            if "-v" in sys.argv:
                print(f"training {i}: {what}", flush=True)
            if wrong:
                failed += 1
                print(f"training {i}: {what}\n    WRONG: {wrong}\n{printed[-1500:]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{trainings - failed} of {trainings} as expected; {dict(counts)}")
    return int(failed > 0)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    sys.exit(main(*(numbers + [100, 1][len(numbers) :])))
