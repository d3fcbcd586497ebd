"""Programs on systems that lack something: memory, files, threads, time, disk, a home; odd variables and streams.

    python tests/scarce_systems.py [TRIES] [SEED] [PROGRAM...]

Each try draws a program, at least one limit (ulimit) or oddity of the environment, and now and then an odd path. It
passes if the program ends by itself, properly or with exactly one line of its own on stderr and a sound exit code: no
traceback, no message of a library, no process left, no temporary file left. Prints a line per try that does not, and
the counts; exit code 1 if there was one. test_scarce_systems.py runs a small number.
"""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tinygrad2.distributed.mpirun import environment, find_mpirun  # noqa: E402

MOST_SECONDS = 150
CAPABILITIES = "+dac_override,+dac_read_search"
NOBODY = [*"setpriv --reuid 65534 --clear-groups".split(), f"--inh-caps={CAPABILITIES}",
          f"--ambient-caps={CAPABILITIES}"]  # the limit of processes does not hold for root
SHAPE = """--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --vocab-size 300 --sample-tokens 4
           --steps 3""".split()
TEXT = "The cat sat on the mat. The dog sat on the log.\n<|endoftext|>\nA bird in a tree sang.\n" * 40
NOISE = re.compile("Traceback|Exception ignored|Fatal Python|Segmentation|LLVM ERROR|OpenBLAS blas|OpenBLAS w|"
                   "Aborted|Warning:")
CONTROLS = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LOST = "what is printed is lost, all else goes on"
NOTES = ("note ", "warning ", "stopping after", "nobody reads", "hellaswag ", "perplexity ", "launch ")


@dataclass
class Try:
    """A command line and the system on which it runs."""

    words: list
    limits: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    python: list = field(default_factory=list)
    streams: dict = field(default_factory=dict)
    without_folder: bool = False


def command_lines():
    """{name: words} of programs that end properly in a few seconds."""
    train, infer, command = ["train_gpt2.py"], ["inference.py"], ["-m", "tinygrad2"]
    weights = ["--weights", "weights.bin"]
    programs = {
        "train": [*train, "--data", "text.txt", *SHAPE],
        "shards": [*train, "--data", "shards", *SHAPE, "--steps", "60"],
        "saving": [*train, "--data", "text.txt", *SHAPE, "--checkpoint-every", "1", "--steps", "6"],
        "resume": [*train, "--resume", "--steps", "5"],
        "inference": [*infer, *weights, "--max-new-tokens", "5"],
        "prompts": [*infer, *weights, "--max-new-tokens", "5", "--prompt-file", "text.txt"],
        "plan": [*command, "plan", "--data", "text.txt", *SHAPE],
        "perplexity": [*command, "eval", "perplexity", *weights, "--data", "text.txt", "--limit", "50"],
        "hellaswag": [*command, "eval", "hellaswag", *weights, "--data", "questions.jsonl"],
        "convert": [*command, "convert", "weights.bin", "converted", "--to", "hf"],
        "plot": [*command, "plot", "run"],
        "compare": [*command, "compare", "run"],
        "verify": [*command, "verify", "kvcache", "--data", "text.txt", *SHAPE],
    }
    if find_mpirun():
        programs["mpirun"] = [*train, "--data", "text.txt", *SHAPE, "--timeout", "20"]
        programs["launch"] = [*command, "launch", "-n", "2", "--", *programs["mpirun"]]
    return programs


def draw(name, rng):
    """A Try of this program."""
    attempt = Try(list(command_lines()[name]))
    for _ in range(rng.choice([1, 1, 1, 2])):
        rng.choice([_limit, _limit, _limit, _variable, _variable, _python_flag, _stream, _path, _folder])(attempt, rng)
    return attempt


def _limit(attempt, rng):
    name, values = rng.choice([
        ("RLIMIT_NOFILE", (6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)),
        ("RLIMIT_AS", [n << 20 for n in (60, 90, 100, 120, 150, 200, 250, 300, 350, 400, 500, 600, 700, 800, 1000)]),
        ("RLIMIT_DATA", [n << 20 for n in (10, 20, 40, 60, 100, 150, 200, 250, 300, 400, 500, 700)]),
        ("RLIMIT_NPROC", (2, 3, 4, 6, 8)),
        ("RLIMIT_FSIZE", (0, 1, 100, 1000, 4096, 10_000, 50_000, 100_000, 500_000)),
        ("RLIMIT_CPU", (1, 2, 3, 5)),
        ("RLIMIT_STACK", [n << 10 for n in (128, 256, 512, 1024, 4096, 65536, 1 << 20)]),
    ])  # fmt: skip
    if name == "RLIMIT_NPROC" and "--timeout" in attempt.words:
        return                                                    # mpirun itself hangs if it cannot start anything
    attempt.limits[name] = rng.choice(values)
    if name in ("RLIMIT_NPROC", "RLIMIT_AS") and "--threads" not in attempt.words:
        attempt.words += ["--threads", str(rng.choice([1, 2, 4, 16]))] if "plot" not in attempt.words else []


def _variable(attempt, rng):
    names = ("TMPDIR", "HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "LC_ALL", "LANG", "PYTHONIOENCODING", "COLUMNS",
             "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMBA_DISABLE_JIT", "NUMBA_OPT", "TERM",
             "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "PYTHONWARNINGS", "PYTHONUTF8", "PATH", "TZ", "NO_COLOR",
             "PMI_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "MPI_LOCALNRANKS", "PYTHONHASHSEED")  # fmt: skip
    values = ("", " ", "/nowhere", "/proc", "/dev/null", "text.txt", "C", "POSIX", "xx_YY", "ascii", "latin-1", "abc",
              "utf-16", "0", "-1", "1", "2", "99999", "1e9", "10" * 20, "error", "\x1b[31m", "y" * 5000, "1" + "\n2",
              "caf\udce9", "None", "3.5")  # fmt: skip
    name = rng.choice(names)
    value = rng.choice(values)
    if name in ("PYTHONIOENCODING", "PYTHONUTF8", "PYTHONHASHSEED") and value not in ("ascii", "latin-1", "0", "1"):
        value = {"PYTHONIOENCODING": "ascii"}.get(name, "0")      # Python itself refuses others
    if name == "PYTHONWARNINGS":
        value = "error"
    if name in ("PMI_SIZE", "OMPI_COMM_WORLD_RANK") and value.strip().isdecimal():
        value = "abc"                                             # a job whose other ranks never come
    attempt.environment[name] = value


def _python_flag(attempt, rng):
    attempt.python += rng.choice([["-W", "error"], ["-O"], ["-OO"], ["-B"], ["-E"], ["-s"], ["-u"], ["-bb"], ["-q"],
                                  ["-X", "utf8=0"], ["-X", "dev"], ["-W", "always"]])  # fmt: skip


def _stream(attempt, rng):
    attempt.streams[rng.choice([0, 1, 2])] = rng.choice(["closed", "closed", "/dev/full", "text.txt"])


def _path(attempt, rng):
    odd = ["/proc/self/mem", "/proc/kmsg", "/proc/self/fd/0", "/proc/self/environ", "/proc/self", "/proc/1/mem", "/sys",
           "/sys/kernel/notes", "/dev/zero", "/dev/full", "/dev/random", "/dev/tty", "/dev/fd/9", "fifo", "/proc/0",
           "text.txt/x", "/dev/mem", "/sys/class/net/lo/carrier", "n" * 300, "a/" * 3000, "\x1b[2Jx", "a\nb\u202e",
           "/dev/shm", "/", "caf\udce9", "socket"]  # fmt: skip
    words = attempt.words
    flags = [word for word in ("--data", "--weights", "--prompt-file") if word in words]
    if flags and rng.random() < 0.6:
        words[words.index(rng.choice(flags)) + 1] = rng.choice(odd)
    elif words[0] == "train_gpt2.py":
        flag = rng.choice(["--metrics", "--weights-out", "--run-dir", "--tokenizer", "--hellaswag", "--init-from"])
        words += [flag, rng.choice(odd)]


def _folder(attempt, rng):
    attempt.without_folder = True


def make_folder(folder):
    """What the command lines read: a text, 100 files of tokens, weights, a run, questions, a pipe, a socket."""
    os.makedirs(os.path.join(folder, "shards"))
    with open(os.path.join(folder, "text.txt"), "w", encoding="utf-8") as file:
        file.write(TEXT)
    for i in range(100):
        ids = np.random.default_rng(i).integers(1, 250, 300)
        np.save(os.path.join(folder, "shards", f"train_{i:03d}.npy"), ids.astype(np.uint16))
    question = '{"ind": 1, "ctx": "The cat", "label": 0, "endings": ["sat", "ran", "is", "on"], "split": "val"}\n'
    with open(os.path.join(folder, "questions.jsonl"), "w", encoding="utf-8") as file:
        file.write(question * 3)
    os.mkfifo(os.path.join(folder, "fifo"))
    attempt = Try(["train_gpt2.py", "--data", "text.txt", *SHAPE, "--weights-out", "weights.bin"])
    code, _, err = run(attempt, folder)[:3]
    assert code == 0, err


def run(attempt, folder):
    """(exit code, stdout, stderr, processes left)."""
    mark = f"SCARCE={uuid.uuid4().hex}"
    words = [sys.executable, *attempt.python, *attempt.words]
    if words[len(attempt.python) + 1].endswith(".py"):
        words[len(attempt.python) + 1] = os.path.join(ROOT, words[len(attempt.python) + 1])
    env = dict(os.environ, PYTHONPATH=ROOT, PYTHONDONTWRITEBYTECODE="1") | dict([mark.split("=")])
    if "--timeout" in attempt.words and attempt.words[0] == "train_gpt2.py":
        words = [find_mpirun(), "-n", "2", *words]
        env = environment() | env
    env |= attempt.environment
    if "RLIMIT_NPROC" in attempt.limits and os.getuid() == 0:
        words = [*NOBODY, *words]

    def prepare():
        for number, kind in attempt.streams.items():
            if kind == "closed":
                os.close(number)
            else:
                os.dup2(os.open(kind, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
        if attempt.without_folder:
            gone = tempfile.mkdtemp()
            os.chdir(gone)
            os.rmdir(gone)
        for name, value in attempt.limits.items():
            hard = resource.RLIM_INFINITY if name == "RLIMIT_CPU" else value
            resource.setrlimit(getattr(resource, name), (value, hard))

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   preexec_fn=prepare, start_new_session=True)  # fmt: skip
        try:
            code = process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            code = "endless"
        left = _left(mark, 0 if code == "endless" else 8)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return code, *texts, left


def _left(mark, seconds):
    """How many processes of this job are left after so many seconds; they are killed."""
    end = time.monotonic() + seconds
    while True:
        pids = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if mark.encode() in file.read().split(b"\0"):
                    pids.append(int(name))
        if not pids or time.monotonic() > end:
            break
        time.sleep(0.05)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def problem_of(name, attempt, outcome, folder):
    """What is wrong about the outcome of a try, or ""."""
    code, out, err, left = outcome
    is_job = name in ("mpirun", "launch")
    lines = [line for line in err.splitlines() if not line.startswith(NOTES) and line.strip() and LOST not in line]
    if is_job and any("mpirun" in line or "HYD" in line or "[mpiexec" in line or "[proxy" in line for line in lines):
        lines = []                                                # hydra's own words
    if noise := NOISE.search(err) or NOISE.search(out):
        return f"{noise[0]} in the output"
    if left:
        return f"{left} processes left"
    if code == "endless":
        return "has not ended"
    if "RLIMIT_CPU" in attempt.limits and code in (-24, 152, 24):
        return ""
    temporary = [path for path, _, files in os.walk(folder) for file in files if file.endswith((".tmp", ".part"))]
    if temporary:
        return f"temporary files left: {temporary}"
    if code == 0 and lines and 2 not in attempt.streams:
        return "an error line, but exit code 0"
    if code in (1, 2) and len(lines) > 1 and not is_job:
        return f"{len(lines)} lines on stderr"
    if code in (1, 2) and len(lines) == 0 and not (attempt.streams or is_job or name in ("plan", "compare", "verify")):
        return f"exit code {code} without a line"
    if code not in (0, 1, 2) and not is_job:
        return f"exit code {code}"
    if any(len(line) > 1100 for line in lines):
        return "a line of more than 1,100 characters"
    if CONTROLS.search(err + out):
        return "control characters in the output"
    return ""


def explore(number, seed, names=(), log=print):
    """Try `number` of them; returns how many were wrong."""
    rng, counts, wrong = random.Random(seed), Counter(), 0
    names = names or list(command_lines())
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o777)
        base, folder = os.path.join(top, "base"), os.path.join(top, "try")
        os.makedirs(base)
        make_folder(base)
        for _ in range(number):
            name = rng.choice(names)
            attempt = draw(name, rng)
            subprocess.run(["cp", "-a", base, folder], check=True)
            subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
            outcome = run(attempt, folder)
            problem = problem_of(name, attempt, outcome, folder)
            counts[name, outcome[0]] += 1
            if problem:
                wrong += 1
                shown = [word[:60] for word in attempt.words]
                log(f"{name}: {problem}: {attempt.limits} {attempt.environment} {attempt.python} {attempt.streams} "
                    f"{'no folder' * attempt.without_folder}\n    {shown}\n    exit code {outcome[0]}: "
                    f"{outcome[2].strip()[-900:]!r}", flush=True)  # fmt: skip
            shutil.rmtree(folder, ignore_errors=True)
    log(f"{number} tries, {wrong} wrong: {dict(sorted(counts.items(), key=str))}")
    return wrong


if __name__ == "__main__":
    number, seed = int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 1
    sys.exit(1 if explore(number, seed, sys.argv[3:]) else 0)
