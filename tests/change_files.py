"""Trainings whose files are changed: at a random step, or between stop and resume, in a random way. Is it noticed?

    python tests/change_files.py [TRAININGS] [SEED] [RANKS]

Each training reads data of a random kind (a text, several, compressed, token files of several formats, a pair, shards;
finetunings of models in four formats), and one of its files, of the cached tokens, of the checkpoints or of the model
that it starts from is changed: one byte, a part, cut off, extended, replaced by another file or by its own copy, by a
folder or by a pipe, removed, touched. It passes if the training ends with the bits of an undisturbed one, or with exit
code 2 and one line; if then, once everything is as it was before, --resume completes it with the same bits. Anything
else fails: other bits, another exit code, a traceback, waiting. Prints a line per failure and the counts;
exit code 1 if one has failed. test_changed_files.py runs a small number.

With RANKS 2 the trainings run under mpirun, else in this process.
"""

import contextlib
import gzip
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_gpt2  # noqa: E402
from tinygrad2.cli import call  # noqa: E402
from tinygrad2.commands.convert import main as convert  # noqa: E402
from tinygrad2.datasets.token_files import write_raw, write_tokens  # noqa: E402
from tinygrad2.distributed.mpirun import environment, find_mpirun  # noqa: E402
from tinygrad2.distributed.world import World  # noqa: E402
from tinygrad2.io.weights import load_weights  # noqa: E402

STEPS = 10
FLAGS = """--batch-size 4 --micro-batch-size 2 --warmup-steps 2 --sample-every 0 --sample-tokens 1 --eval-every 4
           --eval-batches 2 --threads 1 --checkpoint-every 3 --seed 1""".split() + ["--steps", str(STEPS)]
SHAPE = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --vocab-size 300".split()
WORDS = "the cat sat on a mat and the dog saw it run to some other place where birds sing all day".split()


def text(rng, words=4000):
    """A text of random words."""
    return " ".join(rng.choices(WORDS, k=words)).encode() + b"\n<|endoftext|>\n"


def ids(rng, n):
    """Random ids (n,)."""
    return np.random.default_rng(rng.randrange(1 << 30)).integers(0, 300, n)


def make_data(kind, rng):
    """Write data of this kind into the current folder; returns the flags."""
    os.mkdir("d")
    if kind == "text":
        pathlib.Path("d/a.txt").write_bytes(text(rng))
        return ["--data", "d/a.txt"]
    if kind == "texts":
        for name in "abc":
            pathlib.Path(f"d/{name}.txt").write_bytes(text(rng, 1500))
        return ["--data", "d"]
    if kind == "gzip":
        pathlib.Path("d/a.txt.gz").write_bytes(gzip.compress(text(rng)))
        return ["--data", "d/a.txt.gz"]
    if kind == "pair of texts":
        pathlib.Path("d/s_train.txt").write_bytes(text(rng))
        pathlib.Path("d/s_val.txt").write_bytes(text(rng, 1000))
        return ["--data", "d"]
    if kind == "tokens":
        write_tokens("d/a.bin", ids(rng, rng.choice((3000, 200_000))))
        return ["--data", "d/a.bin"]
    if kind == "npy":
        np.save("d/a.npy", ids(rng, 100_000).astype(np.uint16))
        return ["--data", "d/a.npy"]
    if kind == "pair":
        write_raw("d/train.bin", ids(rng, 150_000))
        write_raw("d/val.bin", ids(rng, 20_000))
        return ["--data", "d"]
    for i in range(4):  # "shards"
        write_tokens(f"d/s_train_{i:06d}.bin", ids(rng, rng.choice((100, 5000, 90_000))))
    write_tokens("d/s_val_000000.bin", ids(rng, 9000))
    return ["--data", "d", "--order", rng.choice(("shuffled", "sequential"))]


KINDS = ("text", "texts", "gzip", "pair of texts", "tokens", "npy", "pair", "shards")
MODELS = ("trained", "hf", "llmc", "nanogpt")


def inputs():
    """The files that a training may read: data, cached tokens, models, checkpoints."""
    found = []
    for top in ("d", "m", "run/checkpoints"):
        found += [path for path in pathlib.Path(top).rglob("*") if path.is_file()]
    return sorted(found)


def change(path, rng):
    """Change a file (or its folder); returns what was done."""
    what = rng.choice(("byte", "byte", "byte", "part", "cut", "empty", "extend", "replace", "swap", "copy", "folder",
                       "pipe", "remove", "remove all", "touch", "forbid", "add"))  # fmt: skip
    raw, date = path.read_bytes(), path.stat().st_mtime_ns
    if what in ("byte", "part") and raw:
        at = rng.randrange(len(raw))
        n = 1 if what == "byte" else rng.randrange(1, len(raw) - at + 1)
        new = bytes(byte ^ rng.randrange(1, 256) for byte in raw[at : at + n])
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(new)
        if rng.random() < 0.5:
            os.utime(path, ns=(date, date))
    elif what in ("cut", "empty"):
        os.truncate(path, rng.randrange(len(raw)) if what == "cut" and raw else 0)
    elif what == "extend":
        with open(path, "ab") as file:
            file.write(raw[: rng.randrange(1, 5000)] or b"more")
    elif what in ("replace", "swap", "copy"):
        others = [other for other in inputs() if other.suffix == path.suffix and other != path]
        other = rng.choice(others).read_bytes() if what == "swap" and others else raw[::-1]
        path.with_name("new.tmp").write_bytes(raw if what == "copy" else other)
        os.replace(path.with_name("new.tmp"), path)
    elif what == "folder":
        path.unlink()
        path.mkdir()
    elif what == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif what == "remove":
        path.unlink()
    elif what == "remove all":
        shutil.rmtree(path.parent)
    elif what == "touch":
        path.touch()
    elif what == "forbid":
        path.chmod(0)
    elif what == "add":
        path.with_name("0" + path.name).write_bytes(raw)
    return what


class Planted:
    """Trainer.step with something done before a step."""

    step = train_gpt2.Trainer.step

    def __init__(self, when, action):
        self.when, self.action = when, action

    def __enter__(self):
        def step(trainer, *args):
            if trainer.done == self.when and trainer.world.rank == 0:
                self.action()
            return Planted.step(trainer, *args)

        train_gpt2.Trainer.step = step

    def __exit__(self, *_):
        train_gpt2.Trainer.step = Planted.step


def train(flags, when=-1, action=None, ranks=1):
    """Run a training with action() before a step; returns (exit code, what was printed). action: a function, or with
    several ranks the seed of a change, or "stop"."""
    if ranks > 1:
        planted = json.dumps({"when": when, "action": action, "flags": flags})
        command = [find_mpirun(), "-n", str(ranks), sys.executable, __file__, "--rank", planted]
        env = {**environment(), "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, env=env, capture_output=True, timeout=120)
        return result.returncode, (result.stdout + result.stderr).decode(errors="replace")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), Planted(when, act(action)):
        code = call(lambda: train_gpt2.main(World(), flags), "prog")
    return code, out.getvalue()


def act(action):
    """The function of an action."""
    if action == "stop":
        return lambda: os.kill(os.getpid(), signal.SIGTERM)
    return lambda: change_one(random.Random(action))


def change_one(rng):
    """Change one of the files; returns what was done to which."""
    path = rng.choice(inputs())
    name = os.fspath(path)
    return f"{change(path, rng)} {name}"


def bits():
    """The trained weights."""
    return {name: array.tobytes() for name, array in load_weights("trained_weights.bin").tensors.items()}


def attempt(seed, ranks=1):
    """One training in the current, empty folder; returns (what was done, what is wrong or "")."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    flags = [*make_data(kind, rng), *FLAGS]
    shape = SHAPE
    if rng.random() < 0.25:
        form, shape = rng.choice(MODELS), []
        start = [*flags, *SHAPE, "--steps", "1", "--run-dir", "first", "--weights-out", "w.bin"]
        assert train(start)[0] == 0
        os.mkdir("m")
        target = "m/hf" if form == "hf" else "m/model"
        assert call(lambda: convert(["w.bin", target, "--to", form]), "prog") == 0
        flags += ["--init-from", target]
        if form != "trained" and not os.path.isdir(target):
            shutil.copytree("first", "m/first")
        kind += f", from {form}"
        if form in ("llmc", "nanogpt") and "text" in kind or form in ("llmc", "nanogpt") and "gzip" in kind:
            assert call(lambda: convert(["w.bin", "m/tokenizer", "--to", "hf"]), "prog") == 0
            flags += ["--tokenizer", "m/tokenizer/tokenizer.json"]
    shutil.copytree("d", "saved d")
    if os.path.exists("m"):
        shutil.copytree("m", "saved m")
    code, printed = train([*flags, *shape])
    assert code == 0, printed
    expected = bits()
    shutil.rmtree("run")
    os.remove("trained_weights.bin")

    when, how = rng.randrange(1, STEPS), rng.choice(("running", "between"))
    what = f"{kind}, {how}, step {when}"
    change_seed = rng.randrange(1 << 30)
    if how == "running":
        code, printed = train([*flags, *shape], when, change_seed, ranks)
        what += f", {describe(change_seed)}" if code == 0 else ""
    else:
        code, printed = train([*flags, *shape], when, "stop", ranks)
        if code != 128 + signal.SIGTERM:
            return what, f"stopping: exit code {code}\n{printed}"
        shutil.copytree("run", "saved run")
        what += ", " + change_one(random.Random(change_seed))
        code, printed = train([*flags, *shape, "--resume"], ranks=ranks)
    if problem := judge(code, printed, expected):
        return what, problem
    if code == 0:
        return f"{what}: same bits", ""
    for name in ("d", "m", "run") if how == "between" else ("d", "m"):
        if os.path.exists(f"saved {name}"):
            shutil.rmtree(name, ignore_errors=True)
            shutil.copytree(f"saved {name}", name)
    code, printed = train([*flags, *shape, "--resume"])
    if code or bits() != expected:
        return what, f"as before again, but --resume: exit code {code}\n{printed}"
    return f"{what}: one line", ""


def describe(seed):
    """What a change has done cannot be repeated afterwards; its seed can."""
    return f"change {seed}"


def judge(code, printed, expected):
    """What is wrong with this end of a training, or ""."""
    errors = re.findall(r"(?m)^(?:\[rank .*?\] change_files.py|prog): .*$", printed)
    if "Traceback" in printed:
        return printed
    if code == 0:
        return "" if bits() == expected else f"other bits, and exit code 0\n{printed}"
    if code != 2 or len(errors) != 1:
        return f"exit code {code}, {len(errors)} lines of error\n{printed}"
    return ""


def attempt_in(folder, seed, ranks=1):
    """attempt() in a folder that is removed afterwards; an exception is a failure."""
    here = os.getcwd()
    path = os.path.join(folder, str(seed))
    os.mkdir(path)
    os.chdir(path)
    try:
        return attempt(seed, ranks)
    except Exception as error:  # the harness goes on
        return f"seed {seed}", f"{type(error).__name__}: {error}"
    finally:
        os.chdir(here)
        shutil.rmtree(path, ignore_errors=True)


def late(*_):
    """A training that waits for ever."""
    raise TimeoutError("waited for 240 seconds")


def main(count=100, seed=1, ranks=1):
    """Run them all; returns the exit code."""
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = os.path.join(folder, "cache")
        for i in range(seed, seed + count):
            signal.signal(signal.SIGALRM, late)
            signal.alarm(240)
            what, problem = attempt_in(folder, i, ranks)
            signal.alarm(0)
            counts["failed" if problem else what.rpartition(": ")[2]] += 1
            if problem:
                print(f"seed {i}: {what}: {problem}", flush=True)
    print(dict(counts))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        task = json.loads(sys.argv[2])
        world = World.join()
        with Planted(task["when"], act(task["action"])):
            world.run(lambda: train_gpt2.main(world, task["flags"]))
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
