"""Command lines of every program, built from all of its flags with odd values, and what each may do with them.

A line is either run properly or refused: one line on stderr, exit code 2, nothing written. Each runs in a forked
process, which has everything imported already; pytest calls this by test_command_lines.py, and

    python tests/command_lines.py 5000 1        tries 5000 lines of each program, beginning with seed 1
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass, fields

import inference
import train_gpt2
from models import GPTConfig
from tinygrad2 import __main__ as commands
from tinygrad2 import cli
from tinygrad2.commands.eval import HellaSwagConfig, PerplexityConfig
from tinygrad2.distributed.world import World
from tinygrad2.system import gemm_peak
from tinygrad2.system.threads import threads_flag
from tinygrad2.training.config import TrainConfig

SECONDS = 5  # after which a line counts as one that runs
MEMORY = 8 << 30  # bytes: a line that asks for more must end in one line, too

NUMBERS = [
    "0", "1", "-1", "2", "3", "7", "16", "-0", "1.5", "-0.5", "0.0", "1e-3", "1e3", "1e400", "-1e400", "1e-400", "nan",
    "inf", "-inf", "NaN", "0x10", "1_0", "+5", " 5 ", "٣", "５", "²", "½", "Ⅳ", "1,000", "1e", "None", "true",
    str(2**31), str(2**32), str(2**63), str(-(2**63)), str(10**30), "9" * 5000, "1e38", "1e-45", "0.999999999999",
]  # fmt: skip
WORDS = [
    "", " ", "\t", "\n", "a\nb", "a\rb", "\x1b[31m", "\0", "a\0b", "\udcff", "é", "日本", "e\u0301", "\u202e", "\ufeff",
    "x" * 300, "y" * 5000, "-", "--", "-x", "--x", "=", "a=b", "%s", "%", "{}", "{0}", "$HOME", "`id`", "~", "*", "[",
    "**", "?", "'", '"', "\\", "<|endoftext|>", ".", "..", "/", "//", "./", "text.txt", "text.txt/", "folder",
    "folder/", "empty", "missing", "missing/file", "missing.bin", "text.txt/x", "/dev/null", "/dev/full", "weights.bin",
    "link", "dangling", "tokens.bin", "run", "tokenizer.json",
]  # fmt: skip
SMALL = [*"--n-layer 1 --n-head 2 --n-embd 8 --block-size 8 --vocab-size 300 --batch-size 4".split(),
         *"--steps 2 --sample-tokens 2 --data text.txt".split()]  # fmt: skip
LONG = {"long": "y" * 100_000, "bytes": "\udcff" * 50,
        "control characters": "\x1b[31m\x1b]0;t\x07\r\n\u202e\u2028\x9b2J" * 20}
_CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
TEXT = "The cat sat on the mat. The dog sat on the log.\n<|endoftext|>\nA bird in a tree sang.\n" * 40


@dataclass
class Flag:
    """A flag of a program: its name, and which values it takes: "number", "word", a tuple of choices, None: none."""

    name: str
    kind: object


@dataclass
class Program:
    """A program: main(argv), its flags, and the words that a line which is run properly begins with."""

    name: str
    main: object
    flags: list
    base: tuple


@dataclass
class Outcome:
    """What a line did: exit code (negative: ended by that signal), what it printed, which files it changed, and the
    most memory it had (bytes)."""

    code: int
    out: str
    err: str
    changed: list
    memory: int = 0


def flags_of(*dataclasses):
    """The flags of dataclasses."""
    for f in [f for kind in dataclasses for f in fields(kind)]:
        kind = f.metadata.get("kind") or type(f.default)
        value = "number" if kind in (int, float) else None if kind is bool else "word"
        yield Flag(cli.option(f.name), f.metadata.get("choices", value))
        if kind is bool and f.default:
            yield Flag("--no-" + f.name.replace("_", "-"), None)


def flags_of_parser(main):
    """The flags that a main passes to its Parser."""
    seen = []

    def stop(self, args=None, namespace=None):
        seen.extend(self._actions)
        raise SystemExit

    with mock(cli.Parser, "parse_args", stop), contextlib.suppress(SystemExit):
        main([])
    for action in seen:
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            kind = "number" if action.type in (int, float) else None if action.nargs == 0 else "word"
            yield Flag(action.option_strings[-1], tuple(action.choices) if action.choices else kind)


@contextlib.contextmanager
def mock(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


def programs():
    """Every program but the test harness of others (lm_eval) and those that only download (data/)."""
    training = [*flags_of(TrainConfig, GPTConfig), Flag("--model", ("demo",))]

    def train(argv):
        world = World.join(threads_flag(argv))
        return cli.call(lambda: train_gpt2.main(world, argv), "train_gpt2.py")

    def generate(argv):
        threads_flag(argv)
        return cli.call(lambda: inference.main(argv), "inference.py")

    def command(*first):
        return lambda argv: commands.main([*first, *argv])

    yield Program("train_gpt2.py", train, training, (*SMALL,))
    yield Program("resume", train, training, (*"--resume --run-dir run --steps 3".split(),))
    short = Flag("--max-new-tokens", ("0", "1", "2", "-1"))
    texts = [short if f.name == short.name else f for f in flags_of(inference.InferenceConfig)]
    yield Program("inference.py", generate, texts, ("--weights", "weights.bin", "--max-new-tokens", "2"))
    yield Program("plan", command("plan"), training, (*SMALL,))
    yield Program("verify", command("verify", "kvcache"), training, (*SMALL,))
    weights = ("--weights", "weights.bin")
    yield Program("eval perplexity", command("eval", "perplexity"), [*flags_of(PerplexityConfig)],
                  (*weights, "--data", "text.txt", "--limit", "50"))  # fmt: skip
    yield Program("eval hellaswag", command("eval", "hellaswag"), [*flags_of(HellaSwagConfig)],
                  (*weights, "--data", "questions.jsonl"))  # fmt: skip
    for name, words in (("convert", ("weights.bin", "out", "--to", "llmc")), ("plot", ("run", "--out", "curves")),
                        ("compare", ("run",)), ("replay", ("run",)),
                        ("explain", (*weights, "--prompt", "The cat"))):  # fmt: skip
        module = __import__(f"tinygrad2.commands.{name}", fromlist=["main"])
        yield Program(name, command(name), [*flags_of_parser(module.main)], words)
    yield Program("commands", commands.main, [Flag(name, "word") for name in ("nothing", "--help", "")], ())


def build_line(program, rng):
    """A line: what runs properly, with one to four flags changed or added, sometimes spoilt as a whole."""
    argv = list(program.base)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        flag = rng.choice(program.flags)
        value = _value(flag, rng)
        if value is None:
            words = [flag.name]
        else:
            words = [f"{flag.name}={value}"] if rng.random() < 0.5 else [flag.name, value]
        where = rng.choice([0, len(argv), len(argv)])
        argv[where:where] = words
    kind = rng.random()
    if kind < 0.03:
        argv.append(rng.choice(WORDS))
    elif kind < 0.06:
        argv.append(rng.choice(program.flags).name[:-1])          # an abbreviation
    elif kind < 0.08 and argv:
        del argv[rng.randrange(len(argv))]
    elif kind < 0.10:
        argv.append(rng.choice(program.flags).name)               # perhaps without its value
    return argv


def _value(flag, rng):
    if flag.kind is None:
        return rng.choice(WORDS) if rng.random() < 0.1 else None
    if isinstance(flag.kind, tuple) and rng.random() < 0.6:
        return str(rng.choice(flag.kind))
    pools = [NUMBERS, NUMBERS, NUMBERS, WORDS] if flag.kind == "number" else [WORDS, WORDS, WORDS, NUMBERS]
    return rng.choice(rng.choice(pools))


def make_folder(folder):
    """The files that the lines name: a text, a trained model, a run, tokens, folders, links."""
    os.makedirs(os.path.join(folder, "folder"))
    os.makedirs(os.path.join(folder, "empty"))
    for name in ("text.txt", "folder/a.txt"):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(TEXT)
    with open(os.path.join(folder, "tokens.bin"), "wb") as file:
        file.write(bytes(range(0, 250)) * 4)
    question = '{"ind": 1, "ctx": "The cat", "label": 0, "endings": ["sat", "ran", "is", "on"], "split": "val"}\n'
    with open(os.path.join(folder, "questions.jsonl"), "w", encoding="utf-8") as file:
        file.write(question * 3)
    os.symlink("text.txt", os.path.join(folder, "link"))
    os.symlink("nowhere", os.path.join(folder, "dangling"))
    train_and_plot(folder)


def train_and_plot(folder):
    """Train the model of the folder, in this process: forked ones then have Numba's part of it, the kernels and
    matplotlib, each of which would take longer to load than the line to run."""
    here, flags = os.getcwd(), [*SMALL, "--weights-out", "weights.bin", "--checkpoint-every", "1"]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as elsewhere:
            assert train_gpt2.main(World(), flags) == 0
            assert commands.main(["plot", "run", "--out", os.path.join(elsewhere, "curves")]) == 0
    finally:
        os.chdir(here)


def contents(folder):
    """{path: (size, time of change)} of everything in a folder."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in folders + files:
            status = os.lstat(os.path.join(path, name))
            is_folder = os.path.isdir(os.path.join(path, name))
            found[os.path.relpath(os.path.join(path, name), folder)] = 0 if is_folder else status.st_mtime_ns
    return found


def run_forked(main, argv, folder, seconds=SECONDS):
    """main(argv) in a forked process, in this folder."""
    before = contents(folder)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)   # a fork of a process with threads
            child = os.fork()
        if child == 0:
            _run_child(main, argv, folder, seconds, out, err)
        _, status, usage = os.wait4(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    after = contents(folder)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return Outcome(os.waitstatus_to_exitcode(status), *texts, changed, usage.ru_maxrss << 10)


def _address_space():
    """Bytes of addresses that this process has: tests before this one may have taken many."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _run_child(main, argv, folder, seconds, out, err):
    code = 70
    try:
        import resource

        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((null, out.fileno(), err.fileno())):
            os.dup2(descriptor, number)
        sys.stdin, sys.stdout, sys.stderr = (open(n, "rw"[n > 0], encoding="utf-8", closefd=False) for n in range(3))
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        os.chdir(folder)
        signal.alarm(seconds)
        most = MEMORY + _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        gemm_peak._fastest_product = lambda xp, n, seconds: 1.0   # a tenth of a second, which nobody looks at
        code = main(argv)
        code = 0 if code is None else code
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 71
    except BaseException:
        traceback.print_exc()
        code = 70
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def problem_of(program, outcome):
    """What is wrong about an outcome, or ""."""
    code, lines = outcome.code, outcome.err.splitlines()
    if _CONTROL.search(outcome.err if program.name == "inference.py" else outcome.out + outcome.err):  # a text stays
        return "control characters"
    if "Traceback" in outcome.err or "Traceback" in outcome.out:
        return "a traceback"
    if code == 2:
        if len(lines) != 1 or len(lines[0]) > 1100:
            return f"{len(lines)} lines of {len(outcome.err)} characters on stderr"
        if "diverged" in lines[0] or "scores for the next token are nan" in lines[0]:  # found out while it ran
            return ""
        return f"refused, but it has written {outcome.changed[:4]}" if outcome.changed else ""
    if code == 1 and program.name in ("plan", "compare", "verify", "replay"):
        return ""  # an answer: it does not fit, ...
    if code == -signal.SIGALRM:
        return ""  # much to do
    if code != 0:
        return f"exit code {code}"
    if any(not line.startswith(("note ", "hellaswag ", "perplexity ")) for line in lines):  # the latter two: progress
        return "an error line, but exit code 0"
    return ""


def explore(number, seed, names=()):
    """Try `number` lines of each program and print what is wrong."""
    with tempfile.TemporaryDirectory() as top:
        make_folder(os.path.join(top, "base"))
        for program in programs():
            if names and program.name not in names:
                continue
            rng, counts = random.Random(f"{program.name} {seed}"), {}
            for _ in range(number):
                argv = build_line(program, rng)
                folder = os.path.join(top, "try")
                shutil.copytree(os.path.join(top, "base"), folder, symlinks=True)
                outcome = run_forked(program.main, argv, folder)
                shutil.rmtree(folder)
                counts[outcome.code] = counts.get(outcome.code, 0) + 1
                problem = problem_of(program, outcome)
                if problem or outcome.code == -signal.SIGALRM:
                    short = [word if len(word) < 60 else word[:20] + "..." for word in argv]
                    print(f"{program.name}: {problem}\n    {short}\n    {outcome.err.strip()[-600:]!r}", flush=True)
            print(program.name, counts, flush=True)


if __name__ == "__main__":
    explore(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
