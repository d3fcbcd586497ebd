"""What ends a training early: signals, and a reader of its output that exits. After the step, with its state saved."""

import os
import signal
import subprocess
import sys

import pytest
from test_changed_files import FLAGS, STEPS, WHEN, newest_step, train, write_data
from test_train import ROOT

from tinygrad2.io.weights import load_weights
from tinygrad2.system import signals
from tinygrad2.system.signals import StopRequest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pipes")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_data(tmp_path)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def exits(monkeypatch):
    """Exit codes with which the process would have ended at once."""
    codes = []
    monkeypatch.setattr(signals, "leave_now", codes.append)
    monkeypatch.setattr(signals, "_REPEAT_SECONDS", 0.0)
    return codes


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU"])
def test_a_signal_ends_after_the_step_with_its_state_saved(folder, monkeypatch, capsys, exits, name):
    number = getattr(signal, name)
    assert train(monkeypatch, lambda: send(number)) == 128 + number and not exits
    assert newest_step(folder) == WHEN + 1
    assert load_weights("trained_weights.bin").training["steps_done"] == WHEN + 1
    assert f"stopped after {WHEN + 1} of {STEPS} steps; continue with" in capsys.readouterr().out
    assert train(monkeypatch, lambda: None, "--resume") == 0 and newest_step(folder) == STEPS


@pytest.mark.parametrize(
    "numbers, code, signal_number",
    [
        (("SIGINT", "SIGINT"), [130], "SIGINT"),
        (("SIGTERM", "SIGTERM"), [143], "SIGTERM"),
        (("SIGINT", "SIGTERM"), [143], "SIGINT"),
        (("SIGHUP", "SIGHUP", "SIGHUP"), [], "SIGHUP"),
        (("SIGHUP", "SIGTERM"), [], "SIGTERM"),  # as a session ends
        (("SIGHUP", "SIGTERM", "SIGTERM"), [143], "SIGTERM"),
        (("SIGTERM", "SIGHUP"), [], "SIGTERM"),
        (("SIGXCPU", "SIGXCPU", "SIGXCPU"), [], "SIGXCPU"),  # once a second
        (("SIGXCPU", "SIGTERM", "SIGXCPU"), [], "SIGTERM"),
    ],
)
def test_a_second_signal_ends_at_once_but_not_those_of_the_system(exits, numbers, code, signal_number):
    with StopRequest(verbose=False) as stop:
        send(*(getattr(signal, name) for name in numbers))
        assert exits[:1] == code
    assert stop.signal == getattr(signal, signal_number) or exits


def test_two_signals_within_a_moment_are_one(monkeypatch):
    codes = []
    monkeypatch.setattr(signals, "leave_now", codes.append)
    with StopRequest(verbose=False) as stop:  # a Ctrl-C reaches a rank twice
        send(signal.SIGINT, signal.SIGINT)
    assert stop.signal == signal.SIGINT and not codes


@pytest.mark.parametrize("limits, code, text", [
    ((1, -1), 152, "prog: the limit of processor time (ulimit -t) is reached\n"), ((2, 2), 152, "prog: the limit"),
    ((1, 9), 152, "prog: the limit"),
])  # fmt: skip
def test_a_limit_of_processor_time_is_one_line_before_the_system_kills(limits, code, text):
    script = (f"import resource, sys; sys.path.insert(0, {str(ROOT)!r}); from tinygrad2.cli import install_hooks\n"
              f"resource.setrlimit(resource.RLIMIT_CPU, {limits})\ninstall_hooks('prog')\n"
              "while True: pass")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == code and done.stderr.startswith(text) and done.stderr.count("\n") == 1


def test_under_nohup_it_goes_on(folder, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(monkeypatch, lambda: send(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert newest_step(folder) == STEPS


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_exits(folder, monkeypatch, capfd, stream):
    """Standard output: saved as by SIGTERM, after the next step. Messages: the training goes on without them."""
    reader, writer = os.pipe()
    number = {"stdout": 1, "stderr": 2}[stream]
    kept = os.dup(number)
    monkeypatch.setattr(sys, stream, open(number, "w", closefd=False))
    os.dup2(writer, number)

    def leave():
        os.close(reader)
        print("somebody reads this?", file=sys.stderr, flush=True)

    os.close(writer)
    try:
        code = train(monkeypatch, leave)
    finally:
        os.dup2(kept, number)
        os.close(kept)
    errors = capfd.readouterr().err
    if stream == "stderr":
        assert code == 0 and newest_step(folder) == STEPS
        return
    assert code == 128 + signal.SIGPIPE and newest_step(folder) == WHEN + 2
    assert load_weights("trained_weights.bin").training["steps_done"] == newest_step(folder)
    assert "nobody reads the output any more: stopping after this step, and saving" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_head(folder):
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *FLAGS, "--steps", "100000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8") as process:
        for line in process.stdout:
            if line.startswith("step "):
                break
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == 128 + signal.SIGPIPE
    assert errors == "\nnobody reads the output any more: stopping after this step, and saving\n"
    assert newest_step(folder) >= 1 and os.path.exists("trained_weights.bin")

