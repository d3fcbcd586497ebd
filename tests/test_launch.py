"""python -m tinygrad2 launch: a training that is started again when a rank has died."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_distributed import CLEAN, needs_mpich
from test_train import ROOT, SMALL, TEXT, metrics

from tinygrad2.cli import WITHOUT_OUTPUT
from tinygrad2.commands import hosts, launch
from tinygrad2.errors import UserError
from tinygrad2.io.weights import load_weights

pytestmark = pytest.mark.alone

STAND_IN = """#!{python}
import os, sys, time
if "--version" in sys.argv: sys.exit(print("HYDRA"))
starts = len(open("starts").readlines()) if os.path.exists("starts") else 0
hosts = open(sys.argv[sys.argv.index("-f") + 1]).read().split() if "-f" in sys.argv else []
print(sys.argv[1:], hosts, file=open("starts", "a"))
code, *lines = {ends}[starts]
print(*lines, sep="\\n", file=sys.stderr, flush=True)
if code == "wait": time.sleep(60)
sys.exit(code)
"""


@pytest.fixture
def mpirun(tmp_path, monkeypatch):
    """mpirun(ends): each start of the stand-in for mpirun ends with the next of [(exit code, lines on stderr ...)]."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text("")

    def stand_in(*ends):
        path = tmp_path / "mpirun"
        path.write_text(STAND_IN.format(python=sys.executable, ends=repr(ends)))
        path.chmod(0o755)
        monkeypatch.setattr(launch, "find_mpirun", lambda: str(path))

    return stand_in


def starts(tmp_path):
    return (tmp_path / "starts").read_text().splitlines()


DIED = "[rank 1 of 4, vm pid 77] was killed by SIGKILL"


def test_after_a_death_it_resumes_until_it_is_complete(mpirun, tmp_path, capfd):
    mpirun((9, "noise", DIED, "[rank 2 of 4, vm pid 78] also"), (1, "Traceback"), (0,))
    assert launch.main("-n 4 --log log.jsonl -- program.py --steps 5".split()) == 0
    assert [line.count("'--resume'") for line in starts(tmp_path)] == [0, 1, 1]
    assert all("'-n', '4'" in line and "'--steps', '5'" in line for line in starts(tmp_path))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("launch")]
    died = re.escape(DIED)
    assert re.fullmatch(rf"launch    exit code 9 after \d+ s: {died}; restart 1 of 3, with 4 rank\(s\)", said[0])
    assert re.fullmatch(r"launch    exit code 1 after \d+ s; restart 2 of 3, with 4 rank\(s\)", said[1])
    assert said[2:] == ["launch    complete, after 2 restart(s)"]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["start"], row["ranks"], row["exit_code"], row["report"]) for row in rows] == [
        (1, 4, 9, DIED), (2, 4, 1, ""), (3, 4, 0, "")
    ]  # fmt: skip


@pytest.mark.parametrize("flags, code, count", [("--max-restarts 2", 9, 3), ("--max-restarts 0", 9, 1), ("", 9, 4)])
def test_it_gives_up_after_so_many_restarts(mpirun, tmp_path, flags, code, count):
    mpirun(*[(9, DIED)] * 9)
    assert launch.main([*f"-n 2 {flags}".split(), "program.py"]) == code
    assert len(starts(tmp_path)) == count


def test_starts_that_end_alike_at_the_same_step_are_enough(mpirun, tmp_path, capfd):
    for flags in ([], ["--run-dir", "other"], ["--run-dir=other"]):
        (tmp_path / "starts").unlink(missing_ok=True)
        ends = [(9, f"[rank 1 of 4, vm pid {pid}] was killed by SIGSEGV, in #{12 if pid else 8}") for pid in range(9)]
        mpirun(*ends)
        assert launch.main(["-n", "2", "--max-restarts", "100", "--", "program.py", *flags]) == 9
        assert len(starts(tmp_path)) == 5  # the first one ended elsewhere
        assert "not started again: the last 4 starts have ended in this way" in capfd.readouterr().err


def test_an_error_in_flags_is_not_tried_again(mpirun, tmp_path):
    mpirun((2, "program.py: --lr must be positive"))
    assert launch.main(["-n", "2", "--", "program.py"]) == 2
    assert len(starts(tmp_path)) == 1


def test_a_training_that_has_only_lost_its_output_is_complete(mpirun, tmp_path, capfd):
    mpirun((1, "program.py: 3 line(s) of standard output were lost", f"program.py: {WITHOUT_OUTPUT}"), (0,))
    assert launch.main(["-n", "2", "--", "program.py"]) == 1
    assert len(starts(tmp_path)) == 1
    assert "complete, except that standard output could not be written: not started" in capfd.readouterr().err


def test_with_the_ranks_that_are_left(mpirun, tmp_path):
    mpirun((9,), (9,), (9,), (0,))
    assert launch.main("-n 6 --after-death left -- program.py --resume".split()) == 0
    assert [line[:20] for line in starts(tmp_path)] == [f"['-n', '{n}', '{sys.executable}"[:20] for n in (6, 4, 2, 1)]
    assert all(line.count("'--resume'") == 1 for line in starts(tmp_path))


def test_hosts_that_do_not_answer_are_left_out(mpirun, tmp_path, monkeypatch, capfd):
    (tmp_path / "hosts.txt").write_text("a:2\nb:2  # fast\n\nc slots=4\n")
    mpirun((9,), (9,), (9,))
    dead = [{"b"}, {"a", "b", "c"}]
    monkeypatch.setattr(launch, "answers", lambda host: host not in dead[len(starts(tmp_path)) - 1])
    assert launch.main("-f hosts.txt -- program.py".split()) == 9
    assert [line.split("] ", 1)[1] for line in starts(tmp_path)] == ["['a:2', 'b:2', 'c:4']", "['a:2', 'c:4']"]
    assert [re.search(r"'-n', '(\d)'", line)[1] for line in starts(tmp_path)] == ["8", "4"]
    said = capfd.readouterr().err
    assert "launch    b does not answer: left out\n" in said and "not started again: no host answers" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_it(mpirun, tmp_path, number):
    mpirun(("wait",), (0,))

    def send():
        while not (tmp_path / "starts").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    code = launch.main(["-n", "2", "program.py"])
    thread.join()
    assert code in (128 + number, 1)  # 1: Python's traceback after Ctrl-C, in the stand-in
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize(
    "words, message",
    [
        ("-n 0 -- program.py", "-n 0: give the number of ranks"),
        ("-- program.py", "-n: give the number of ranks"),
        ("-n 2 --max-restarts -1 -- program.py", "--max-restarts -1: give 0 or more"),
        ("-n 2", "no program is given"),
        ("-n 2 --", "no program is given"),
        ("-n 2 -- missing.py", "missing.py: there is no such program here"),
        ("-n 2 -- program.py --ranks 2", "--ranks: launch starts the ranks itself"),
        ("-f missing.txt -- program.py", "-f missing.txt: cannot be read"),
        ("-f program.py -- program.py", "-f program.py: names no host"),
    ],
)
def test_flags_that_cannot_be_right_are_refused(mpirun, words, message):
    mpirun((0,))
    with pytest.raises(UserError, match=re.escape(message)):
        launch.main(words.split())


@pytest.mark.parametrize("line", ["a b", "a:0", "a:x", "-oProxyCommand=x", "a:1:", "a;rm", "a slots=", "a:9999999"])
def test_lines_that_name_no_host(tmp_path, line):
    (tmp_path / "hosts").write_text(f"ok:1\n{line}\n")
    with pytest.raises(UserError, match="line 2: .* is not HOST or HOST:RANKS"):
        hosts.read_hostfile(str(tmp_path / "hosts"))


FLAGS = ("--steps 60 --n-layer 2 --dropout 0.1 --micro-batch-size 1 --checkpoint-every 5 --metrics m.jsonl "
         "--kernels reference")


@needs_mpich
@pytest.mark.slow
@pytest.mark.parametrize("after", ["all", "left"])
def test_a_training_whose_ranks_are_killed_has_the_bits_of_an_undisturbed_one(tmp_path, after):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    program = [ROOT / "train_gpt2.py", *SMALL.split(), "--data", "text.txt", *FLAGS.split()]
    alone = subprocess.run([sys.executable, *program, "--run-dir", "alone", "--weights-out", "alone.bin"], cwd=tmp_path,
                           env=CLEAN, capture_output=True, text=True)  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    expected = metrics(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").unlink()
    command = [sys.executable, "-m", "tinygrad2", "launch", "-n", "4", "--max-restarts", "3", "--after-death", after,
               "--", *program]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    rng, steps, pids, killed = random.Random(after), iter((12, 33, 10**9)), {}, 0
    victim_step = next(steps)
    with process:
        for line in process.stdout:
            if "processes: " in line:
                pids = re.findall(r"\d is (\d+)", line)
            found = re.match(r"step +(\d+)/", line)
            if found and int(found[1]) >= victim_step:
                os.kill(int(rng.choice(pids)), signal.SIGKILL)
                victim_step, killed = next(steps), killed + 1
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert killed == 2 and "launch    complete, after 2 restart(s)\n" in errors
    ranks = re.findall(r"restart \d of 3, with (\d) rank", errors)
    assert ranks == (["4", "4"] if after == "all" else ["2", "1"])
    assert len(re.findall(r"^\[rank \d of \d, \S+ pid \d+\] was killed by SIGKILL", errors, re.MULTILINE)) == 2
    same = {row["step"]: (row["loss"], row["grad_norm"]) for row in metrics(tmp_path / "m.jsonl")}
    assert same == {row["step"]: (row["loss"], row["grad_norm"]) for row in expected}
    one, other = (load_weights(tmp_path / name).tensors for name in ("alone.bin", "trained_weights.bin"))
    assert one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)
