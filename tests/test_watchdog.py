"""The parts of the watchdog, and cores granted by the system. Complete jobs: test_failures.py."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_train import ROOT

from tinygrad2.distributed.status import StatusTable
from tinygrad2.distributed.watchdog import Watchdog, location_of_main_thread, process_state
from tinygrad2.system.threads import core_quota, usable_cores

pytestmark = pytest.mark.alone


def test_the_status_table_shows_each_rank_what_the_others_do():
    path = StatusTable.create_file(2)
    try:
        first, second = StatusTable(path, 2, 0), StatusTable(path, 2, 1)
    finally:
        os.unlink(path)
    first.write(7, 1, 12.5, "gradients of step 3")
    second.write(6, 0, 11.0, "é" * 300)  # too long, and cut in the middle of a character
    row = second.read(0)
    assert (row.number, row.inside, row.since, row.pid, row.name) == (7, 1, 12.5, os.getpid(), "gradients of step 3")
    assert first.read(1).name.startswith("é" * 50)
    assert not second.beat()
    first.ask(1)
    assert second.beat() and second.read(1).beat == pytest.approx(time.monotonic(), abs=1)
    second.answer("train_gpt2.py:131 in step")
    assert not second.beat() and first.read(1).location == "train_gpt2.py:131 in step"
    assert first.read(0).name == "gradients of step 3"


def test_the_watchdog_ends_what_takes_too_long_and_nothing_else():
    ended = threading.Event()
    aborts = []
    watchdog = Watchdog(0, 2, lambda text, code: (aborts.append((text, code)), ended.set(), time.sleep(60)), 0.5)
    watchdog.start()
    for i in range(4):  # each in time, although all together are not
        watchdog.enter(f"sum of step {i}")
        time.sleep(0.25)
        watchdog.leave()
    time.sleep(0.8)  # no collective: no rank waits
    assert not ended.is_set()
    watchdog.enter("a sum that hangs")
    assert ended.wait(5)
    text, code = aborts[0]
    assert code == 124 and "collective #5 'a sum that hangs' did not finish within 0.5 s" in text
    assert "no rank of" in text and "is missing: it is a rank of another host, or the network" in text
    watchdog.leave()
    signal.set_wakeup_fd(-1)


def test_a_watchdog_that_was_suspended_itself_does_not_count_that_time():
    """All ranks of a job may be suspended and resumed: then none was late."""
    ended = []
    watchdog = Watchdog(0, 1, lambda text, code: ended.append(code), timeout=8)
    watchdog.start()
    watchdog.enter("a sum")
    since = watchdog.since
    watchdog.last_poll -= 100  # as if this thread had not run for 100 s
    watchdog.since -= 100
    time.sleep(0.5)
    assert not ended and watchdog.since == pytest.approx(since, abs=1)
    watchdog.leave()
    signal.set_wakeup_fd(-1)


@pytest.mark.parametrize(
    "path, location",
    [
        ("tinygrad2/tensor.py", "tensor.py:[23] in wait"),
        ("tinygrad2/distributed/allreduce.py", r"test_watchdog.py:\d+ in test_the_location"),
        ("tinygrad2/cli.py", r"test_watchdog.py:\d+ in test_the_location"),
    ],
)
def test_the_location_of_a_waiting_rank_is_outside_of_what_waits(path, location):
    namespace, locations = {}, []
    exec(compile("def wait(thread):\n    thread.start()\n    thread.join()\n", ROOT / path, "exec"), namespace)
    namespace["wait"](threading.Thread(target=lambda: locations.append(location_of_main_thread())))
    assert re.match(location, locations[0])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
def test_the_state_of_a_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert process_state(process.pid) in ("R", "S", "D")
        process.send_signal(signal.SIGSTOP)
        for _ in range(50):
            if process_state(process.pid) == "T":
                break
            time.sleep(0.02)
        assert process_state(process.pid) == "T"
    finally:
        process.kill()
        process.wait()
    assert process_state(process.pid) == ""


# -- cores that the system grants --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, quota",
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"jobs/cpu.max": "400000 100000", "jobs/mine/cpu.max": "max 100000"}, 4.0),
        ({"jobs/cpu.max": "100000 100000", "jobs/mine/cpu.max": "800000 100000"}, 1.0),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "rubbish"}, None),
    ],
)
def test_limits_of_containers_and_batch_systems_are_read(tmp_path, files, quota):
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/x\n0::/jobs/mine\n")
    root = tmp_path / "root"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    assert core_quota(str(root), str(own)) == quota


def test_ranks_share_cores_and_quota(monkeypatch):
    from tinygrad2.system import threads

    monkeypatch.setattr(threads, "core_quota", lambda: None)
    assert usable_cores(range(8)) == 8 and usable_cores(range(8), 3) == 2 and usable_cores(range(2), 4) == 1
    monkeypatch.setattr(threads, "core_quota", lambda: 4.0)
    assert usable_cores(range(64)) == 4 and usable_cores(range(64), 2) == 2 and usable_cores(range(64), 8) == 1


@pytest.mark.slow
def test_messages_between_ranks_are_measured():
    from tinygrad2.distributed.mpirun import have_mpi

    if not have_mpi():
        pytest.skip("there is no mpirun, or no mpi4py")
    result = subprocess.run([sys.executable, "-m", "tinygrad2", "doctor", "--mpi"], cwd=ROOT, capture_output=True,
                            text=True, timeout=600)  # fmt: skip
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert [line.split()[:3] for line in lines if "neighbours" in line] == [[n, "1", "neighbours"] for n in "24"]
