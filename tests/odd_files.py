"""Trainings in folders whose file system behaves as some of a network do, in random combinations.

    python tests/odd_files.py [TRIALS [SEED]]

Every file of a training (text, cache, run folder, weights) is in one folder, in which odd_files.c changes what the
calls to the system do, by rules chosen at random. The training is a new one, one in a folder in which another was
completed, or one that is resumed. It must end complete, with exit code 0 and the bits of an undisturbed one, or with
one line that names a path in the folder, and exit code 2. After it all checkpoints must be intact, nothing of the
earlier training lost, and a training that resumes it on an ordinary file system must end with the same bits.

Each trial is a process forked from this one, in which everything has been imported. Needs Linux and gcc.
"""

import ctypes
import errno
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
STEPS = 6
FLAGS = (f"--steps {STEPS} --checkpoint-every 2 --keep-checkpoints 2 --eval-every 3 --n-layer 1 --n-head 1 --n-embd 16 "
         "--block-size 16 --vocab-size 300 --batch-size 2 --threads 1 --kernels reference --sample-every 0 --seed 5")
LIBRARY = "ODD_LIBRARY"  # environment variable with the path of the compiled odd_files.c

_PASSING = [errno.ESTALE, errno.EIO, errno.EBUSY, errno.ETIMEDOUT]
_NONE = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]
ERRORS = {  # call: errors that file systems report for it
    "open": [*_PASSING, errno.EACCES, errno.EMFILE], "stat": _PASSING, "list": _PASSING, "read": _PASSING,
    "write": [errno.EIO, errno.EDQUOT, errno.ESTALE, errno.ENOSPC], "close": [errno.EDQUOT, errno.EIO, errno.ENOSPC],
    "fsync": [errno.EIO, errno.EDQUOT, *_NONE], "fsyncdir": [errno.EIO, *_NONE],
    "rename": [errno.EBUSY, errno.EEXIST, errno.ETXTBSY, errno.EACCES, errno.ESTALE, errno.EIO],
    "mkdir": [errno.ESTALE, errno.EIO, errno.EDQUOT], "unlink": [errno.EBUSY, errno.EIO, errno.ESTALE, errno.ENOENT],
    "rmdir": [errno.ENOTEMPTY, errno.EBUSY, errno.EIO], "chmod": _NONE, "utime": _NONE,
    "flock": [errno.ENOLCK, errno.EIO, errno.ESTALE, *_NONE], "link": [*_NONE, errno.EMLINK], "symlink": _NONE,
    "truncate": [errno.EIO, *_NONE],
}  # fmt: skip
DONE = ("rename", "mkdir", "unlink", "rmdir", "close", "fsync", "truncate")  # may be done, and report an error
ALWAYS = ("flock:ok", "stat:ino", "stat:net", "stat:coarse", "stat:future", "stat:past", "unlink:silly", "statvfs:zero",
          "read:half", "write:half", "fsync:~60", "fsyncdir:~60", "rename:~30")  # fmt: skip
ONCE = ("stat:empty", "read:half", "write:half")


def rules(rng):
    """Some rules of odd_files.c, as text."""
    chosen = [f"{rule}:0:-1" for rule in rng.sample(ALWAYS, rng.choice((0, 1, 2)))]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        call = rng.choice(sorted(ERRORS))
        error = rng.choice(ERRORS[call])
        what = f"+{error}" if call in DONE and rng.random() < 0.3 else str(error)
        often = -1 if rng.random() < 0.3 else rng.choice((1, 1, 2, 5, 20))
        chosen.append(f"{call}:{what}:{int(10 ** rng.uniform(0, 2.3)) - 1}:{often}")
    if rng.random() < 0.2:
        chosen.append(f"{rng.choice(ONCE)}:{rng.randrange(60)}:{rng.choice((1, 2, 5))}")
    return " ".join(chosen) or "unlink:silly:0:-1"


def build(folder):
    """Compile odd_files.c; returns the path of the library, None if there is no gcc or the system is not Linux."""
    if not sys.platform.startswith("linux") or not shutil.which("gcc"):
        return None
    library = os.path.join(folder, "odd_files.so")
    command = ["gcc", "-O1", "-w", "-shared", "-fPIC", "-o", library, str(HERE / "odd_files.c"), "-ldl", "-lpthread"]
    return library if subprocess.run(command).returncode == 0 else None


def start(library, *arguments):
    """This program as a process in which the calls can be changed; returns its CompletedProcess."""
    environment = {**os.environ, "LD_PRELOAD": library, LIBRARY: library, "ODD_PATH": "", "ODD_RULES": "",
                   "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)


class Trials:
    """Trainings in `folder`, each in a child of this process."""

    def __init__(self, folder):
        import train_gpt2  # noqa: F401   imported once, here
        from tinygrad2.system import gemm_peak

        gemm_peak._fastest_product = lambda xp, n, seconds: 1.0   # a tenth of a second, which nobody looks at
        self.folder, self.calls = folder, ctypes.CDLL(os.environ[LIBRARY])
        self.files = os.path.join(folder, "files")
        self.text = " ".join(f"Tom saw {i % 97} of the {i * i % 89} red birds." for i in range(400))
        self.fresh()
        code, output = self.train("")
        assert code == 0, output
        self.losses, self.weights = self.result()
        for kind in ("again", "resume"):
            shutil.copytree(self.files, os.path.join(folder, kind))
        cut = os.path.join(folder, "resume", "run")
        shutil.rmtree(os.path.join(cut, "checkpoints", f"step_{STEPS:08d}"))
        with open(os.path.join(cut, "metrics.jsonl"), "r+b") as file:
            file.truncate(len(b"".join(file.readlines()[: STEPS - 1])))

    def fresh(self, kind="new"):
        """The folder as it is before a training: with a text only, with all of another training, or of half of one."""
        shutil.rmtree(self.files, ignore_errors=True)
        if kind != "new":
            shutil.copytree(os.path.join(self.folder, kind), self.files)
            return
        os.mkdir(self.files)
        with open(self.path("text.txt"), "w", encoding="utf-8") as file:
            file.write(self.text)

    def path(self, name):
        return os.path.join(self.files, name)

    def train(self, text, more=""):
        """A training under these rules; returns (exit code, everything that it printed)."""
        log = os.path.join(self.folder, "log")
        flags = f"{FLAGS} --data {self.path('text.txt')} --run-dir {self.path('run')} {more}"
        child = os.fork()
        if child == 0:
            try:
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1), os.dup2(out, 2)
                os.environ["XDG_CACHE_HOME"] = self.path("cache")
                self.calls.odd_set(self.files.encode(), text.encode())
                code = _call([*flags.split(), "--weights-out", self.path("weights.bin")])
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
            except BaseException:
                traceback.print_exc()
                os._exit(99)
        end = time.monotonic() + 120
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.01)
            if time.monotonic() > end:
                os.kill(child, 9)
        with open(log, encoding="utf-8", errors="replace") as file:
            return os.waitstatus_to_exitcode(ended[1]), file.read()

    def result(self):
        """(losses, the bytes of all tensors) of the training that has ended."""
        from tinygrad2.io.weights import load_weights
        from tinygrad2.monitor.metrics import read_metrics

        tensors = load_weights(self.path("weights.bin")).tensors
        curves = read_metrics(self.path("run"))
        return curves, b"".join(tensors[name].tobytes() for name in sorted(tensors))

    def lost(self):
        """The names of files of the earlier training that are nowhere in the run folder any more."""
        before, places = os.path.join(self.folder, "again", "run"), ["", "previous-1", "previous-2"]
        paths = [os.path.join(folder, name) for folder, _, files in os.walk(before) for name in files]
        names = [os.path.relpath(path, before) for path in paths]
        names = [name for name in names if not name.startswith(".") and name != "config.json"]
        return [name for name in names if not any(_same(os.path.join(before, name), self.path(f"run/{place}/{name}"))
                                                  for place in places)]  # fmt: skip

    def problem(self, text, kind="new"):
        """What is wrong with a training of this kind under these rules; "" if nothing is."""
        from tinygrad2.training.checkpoint import list_checkpoints, read_checkpoint

        self.fresh(kind)
        code, output = self.train(text, "--resume" if kind == "resume" else "")
        errors = [line for line in output.splitlines() if line.startswith("train_gpt2.py: ")]
        if code not in (0, 2) or "Traceback" in output:
            return f"exit code {code}: {output[-3000:]}"
        if code == 2 and (len(errors) != 1 or self.files not in errors[0]):
            return f"not one line with a path: {output[-1500:]}"
        if code == 0 and not self.is_right():
            return f"exit code 0, but other bits: {output[-1500:]}"
        if kind == "again" and self.lost():
            return f"lost: {self.lost()}: {output[-1500:]}"
        checkpoints = list_checkpoints(self.path("run/checkpoints"))
        for path in checkpoints:
            read_checkpoint(path)
        if kind == "resume" and not checkpoints:
            return f"the checkpoint is lost: {output[-1500:]}"
        code, output = self.train("", "--resume")
        if code != 0 or not self.is_right():
            return f"resumed: exit code {code}, or other bits: {output[-1500:]}"
        return ""

    def is_right(self):
        curves, weights = self.result()
        mine, right = (c["loss"] for c in (curves, self.losses))
        return weights == self.weights and dict(zip(*mine)).items() <= dict(zip(*right)).items()


def _same(path, other):
    """Does the other file have the same bytes, at its beginning at least?"""
    if not os.path.isfile(other):
        return False
    with open(path, "rb") as first, open(other, "rb") as second:
        content = first.read()
        return second.read(len(content)) == content


def _call(argv):
    import train_gpt2
    from tinygrad2.cli import call
    from tinygrad2.distributed.world import World

    return call(lambda: train_gpt2.main.__wrapped__(World(), argv), "train_gpt2.py") or 0


def main(trials, seed):
    """In the process that was started with odd_files.c."""
    with tempfile.TemporaryDirectory(prefix="odd-files-") as folder:
        harness, wrong = Trials(folder), 0
        for n in range(trials):
            text = rules(random.Random(f"{seed} {n}"))
            kind = ("new", "again", "resume")[n % 3]
            problem = harness.problem(text, kind)
            wrong += bool(problem)
            if problem:
                print(f"trial {n} of seed {seed}, {kind}: {text}\n    {problem}\n", flush=True)
        print(f"{trials} trials, seed {seed}: {wrong} wrong")
    return wrong > 0


if __name__ == "__main__":
    count, seed = (int(word) for word in (sys.argv[1:] + ["100", "1"][len(sys.argv) - 1 :]))
    if LIBRARY in os.environ:
        sys.exit(main(count, seed))
    with tempfile.TemporaryDirectory() as place:
        built = build(place)
        if built is None:
            sys.exit("needs Linux and gcc")
        ended = start(built, str(count), str(seed))
    print(ended.stdout + ended.stderr, end="")
    sys.exit(ended.returncode)
