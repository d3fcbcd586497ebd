"""Guards, the witness, shared memory, progress of rank 0: the parts, and jobs in which they are needed."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from marks import slow_but
from test_distributed import CLEAN, MPIRUN, mpirun, needs_mpich
from test_failures import no_process_is_left, start
from test_train import ROOT

from tinygrad2.distributed import shared_memory, status, witness
from tinygrad2.distributed.guard import start_guard
from tinygrad2.distributed.status import Status, StatusTable, describe_death
from tinygrad2.distributed.work import work_done
from tinygrad2.errors import to_bytes
from tinygrad2.system.process import kill_marked, started_at

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    "code, text",
    [
        (-9, "was killed by SIGKILL, in #7 'sum': out of memory (see dmesg), or killed from outside"),
        (-11, "was killed by SIGSEGV, in #7 'sum': a library crashed"),
        (-7, "was killed by SIGBUS, in #7 'sum': a mapped file was truncated, or /dev/shm is full"),
        (-15, "was killed by SIGTERM, in #7 'sum'"),
        (-63, "was killed by signal 63, in #7 'sum'"),
        (0, "ended with exit code 0, without a message, in #7 'sum': a library called exit"),
        (None, "was killed from outside, in #7 'sum'"),
    ],
)
def test_how_a_rank_has_ended(code, text):
    assert describe_death(code, Status(7, 1, 0.0, 0.0, 1, 0, 0, b"sum\0", b"")) == text
    assert describe_death(code) == text.replace(", in #7 'sum'", "")


# -- a guard alone -----------------------------------------------------------------------------------------------------

GUARDED = """
import ctypes, os, signal, sys, time
from tinygrad2.distributed.guard import start_guard
guard = start_guard(3, 8)
assert guard.pid == os.getppid() != 1
print(os.getpid(), flush=True)
{}
"""


def guarded(tmp_path, code):
    """Start a guarded process that runs `code`, in a session of its own; returns it and the pid of the guarded one."""
    script = tmp_path / "guarded.py"
    script.write_text(GUARDED.format(code))
    environment = {name: value for name, value in CLEAN.items() if not name.startswith(("PMI", "HYDI"))}
    process = subprocess.Popen([sys.executable, script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    return process, int(process.stdout.readline())


ENDS = {
    "sys.exit(5)  # without a word": (5, r"ended with exit code 5, without a message"),
    "os._exit(0)": (1, r"ended with exit code 0, without a message"),
    "guard.ending(); os._exit(0)": (0, None),
    "guard.ending(); os._exit(7)": (7, None),
    "os.kill(os.getpid(), signal.SIGKILL)": (-9, r"was killed by SIGKILL: out of memory"),
    "guard.ending(); os.kill(os.getpid(), signal.SIGKILL)": (-9, None),
    "os.abort()": (-6, r"was killed by SIGABRT: a library crashed"),
    "os.execv('/bin/true', ['true'])": (1, r"ended with exit code 0, without|has become another program \(true\)"),
    "os.execv('/bin/sleep', ['sleep', '999'])": (1, r"has become another program \(sleep 999\); ending the job"),
}


@pytest.mark.parametrize("code", ENDS)
def test_a_guard_reports_how_its_rank_has_ended(tmp_path, code):
    expected, pattern = ENDS[code]
    process, pid = guarded(tmp_path, code)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == expected
    if pattern:
        assert re.fullmatch(rf"\[rank 3 of 8, \S+ pid {pid}\] ({pattern}).*\n", errors)
    else:
        assert errors == ""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
def test_a_guard_passes_signals_on_once_and_kills_its_rank_with_itself(tmp_path):
    code = "signal.signal(signal.SIGUSR1, lambda *_: print('taken', flush=True))\nprint('ready', flush=True)\n"
    process, pid = guarded(tmp_path, code + "while True: time.sleep(0.05)")
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGUSR1)  # to its group, as mpirun does
    assert process.stdout.readline() == "taken\n"
    title = pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert title.startswith(b"tinygrad2 guard of rank 3")
    os.kill(pid, signal.SIGSTOP)
    process.kill()
    assert process.communicate(timeout=60)[0] == "" and process.returncode == -9
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or " Z " in pathlib.Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the rank is still there")


def test_a_guard_that_was_stopped_goes_on_when_its_rank_ends(tmp_path):
    process, _ = guarded(tmp_path, "sys.stdin.readline(); guard.ending(); os._exit(4)")
    os.kill(process.pid, signal.SIGSTOP)
    process.stdin.close()
    process.stdout.read()
    assert process.wait(timeout=60) == 4 and process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()


def test_no_guard_beside_threads():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert start_guard(0, 2) is None
    finally:
        done.set()
        thread.join()


# -- jobs --------------------------------------------------------------------------------------------------------------


def script(folder, code):
    path = folder / "job.py"
    path.write_text("import os, signal, sys, threading, time\nfrom tinygrad2.distributed.world import World\n"
                    f"world = World.join()\n{code}\n", encoding="utf-8")  # fmt: skip
    return path


IDLE = {
    "asleep": "time.sleep(1000)",
    "a lock": "threading.Event().wait()",
    "busy": "while True: pass",
    "a file": "open('fifo')",
}


@pytest.mark.parametrize("kind", ["asleep", pytest.param("a lock", marks=pytest.mark.slow),
                                  pytest.param("busy", marks=pytest.mark.slow), "a file"])  # fmt: skip
def test_rank_0_alone_must_do_something(tmp_path, kind):
    os.mkfifo(tmp_path / "fifo")
    path = script(tmp_path, f"world.set_timeout(0.5)\ndef work():\n    {IDLE[kind]}\n"
                            "world.run(lambda: world.on_rank_0('some work', work))")  # fmt: skip
    result = mpirun(2, path, cwd=tmp_path)
    assert result.returncode == 124
    assert re.search(r"^\[rank 0 of 2, \S+ pid \d+\] rank 0 is alive, but has done nothing for \d+ s in collective "
                     r"#\d+ 'on rank 0: some work'; it is at job.py:\d+ in work. Ending the job \(exit code 124\); "
                     r"the limit is 10 times --timeout$", result.stderr, re.MULTILINE)  # fmt: skip


def test_rank_0_alone_may_take_its_time(tmp_path):
    path = script(tmp_path, "world.set_timeout(0.2)\ndef work():\n    for _ in range(30):\n"
                            "        open('written', 'w').write('x')\n        time.sleep(0.2)\n"
                            "world.run(lambda: world.on_rank_0('some work', work))")  # fmt: skip
    result = mpirun(2, path, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""


@pytest.mark.parametrize(
    "code, printed",
    [
        ("raise ValueError('caf\\udce9 \\udcff')", "ValueError: caf\\udce9 \\udcff"),
        ("raise world_error('caf\\udce9: cannot be read')", "caf\\udce9: cannot be read"),
        ("world.barrier('loading caf\\udce9')\n    os.kill(os.getpid(), 9)", "after #3 'loading caf\\udce9'"),
    ],
)
def test_messages_take_any_bytes(tmp_path, code, printed):
    others = "world.barrier('loading caf\\udce9')\n" if "barrier" in code else ""
    path = script(tmp_path, "from tinygrad2.errors import UserError as world_error\ndef main():\n"
                            f"  if world.rank == 1:\n    {code}\n  {others}  world.barrier('more')\n"
                            "world.run(main)")  # fmt: skip
    begin = time.monotonic()
    result = mpirun(2, path, cwd=tmp_path)
    assert result.returncode in (1, 2, 9) and printed in result.stderr
    assert result.stderr.count("Traceback") <= 1 and time.monotonic() - begin < 60
    assert to_bytes("é\udce9\n") == "é\\udce9\n".encode()


ALONE = {
    "ctypes.CDLL(None).exit(0)": (1, "ended with exit code 0, without a message: a library called exit"),
    "os._exit(0)": (1, "ended by os._exit(0) at job.py:"),
    "sys.exit(0)": (1, "ended by sys.exit(0) before it was complete"),
    "os.execv('/bin/sh', ['sh', '-c', 'sleep 100'])": (1, "has become another program (sh -c sleep 100)"),
    "os.kill(os.getpid(), 9)": (9, "was killed by SIGKILL"),
    "subprocess.run(['true'], preexec_fn=lambda: None, check=True)": (0, ""),
    "multiprocessing.get_context('fork').Process(target=int).start()": (0, ""),
}


@pytest.mark.parametrize("code", ALONE)
def test_a_job_of_one_rank_that_is_not_complete_never_ends_with_0(tmp_path, code):
    path = script(tmp_path, f"import ctypes, multiprocessing, subprocess\nworld.run(lambda: {code} and None)")
    result = mpirun(1, path, cwd=tmp_path)
    expected, line = ALONE[code]
    assert result.returncode == expected and line in result.stderr
    assert result.stderr.count("\n") == (line > "")


ENDED_BY_MPI = {
    "exit": "leave_now(143)",
    "MPI_Abort": "world._mpi.COMM_WORLD.Abort(143)",
    "an exception": "raise world._mpi.Exception(5)",
}


@needs_mpich
@pytest.mark.parametrize("how", slow_but(("exit",), ENDED_BY_MPI))
def test_a_rank_that_mpi_ends_because_another_has_died_is_not_named(tmp_path, how):
    """MPI may see a death before that rank's guard has reported it: here by half a second."""
    path = script(tmp_path, "from tinygrad2.system.signals import leave_now\ndef main():\n"
                            f"    world.barrier('ready')\n    if world.rank == 0:\n        {ENDED_BY_MPI[how]}\n"
                            "    time.sleep(0.5)\n    os.kill(os.getpid(), 9)\nworld.run(main)")  # fmt: skip
    result = mpirun(2, path, cwd=tmp_path)
    assert result.returncode == 9
    assert re.findall(r"^\[rank (\d) of 2, \S+ pid \d+\] (.{10})", result.stderr, re.MULTILINE) == [("1", "was killed")]


@pytest.mark.slow
def test_a_rank_that_is_killed_with_its_guard_is_named():
    """The rank ends first, and its guard, which is stopped, has no time to report that."""
    result = subprocess.run([sys.executable, ROOT / "tests" / "kill_ranks.py", "1", "5", "rank, then its guard"],
                            env=CLEAN, capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_ranks_that_are_killed_are_named():
    """A short form of the measurement in docs/robustness.md."""
    result = subprocess.run([sys.executable, ROOT / "tests" / "kill_ranks.py", "6", "3"], env=CLEAN,
                            capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("6 of 6 jobs as expected")


@pytest.mark.long  # MPICH's mpirun itself may return 0 after two signals at once, seldom: docs/cluster.md
def test_a_job_that_is_interrupted_never_ends_with_0(tmp_path):
    from test_failures import read_until, training

    for n, gap in ((2, 0.0), (4, 0.001), (2, 0.7)):
        process, job = training(tmp_path, n, "--steps 100000")
        with process:
            read_until(process, "step     5", [])
            process.send_signal(signal.SIGINT)
            time.sleep(gap)
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        assert process.returncode != 0 and no_process_is_left(job)


# -- /dev/shm ----------------------------------------------------------------------------------------------------------


def test_memory_of_mpi_is_unlinked(tmp_path):
    for name in ("mpich_shm_1a2b_0", "mpich_shm_ffff_0", "other"):
        (tmp_path / name).write_bytes(b"x")
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 rw-s 00000000 00:19 12   {tmp_path}/mpich_shm_1a2b_0\n7f02-7f03 r-xp 0 08:01 13\n"
                    f"7f04-7f05 rw-s 00000000 00:19 14   {tmp_path}/other\n")  # fmt: skip
    shared_memory.unlink_mpi_memory(str(maps), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps", "mpich_shm_ffff_0", "other"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")
def test_files_of_ucx_that_nobody_has_opened_are_removed(tmp_path):
    now = time.time()
    for name, age in (("ucx_shm_posix_1a2b", 0), ("ucx_shm_posix_3c4d", 100), ("ucx_shm_posix_5e6f", 0), ("other", 0)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now - age, now - age))
    with open(tmp_path / "ucx_shm_posix_5e6f", "rb"):
        shared_memory.unlink_abandoned_files(now - 10, str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {"ucx_shm_posix_3c4d", "ucx_shm_posix_5e6f", "other"}
    shared_memory.unlink_abandoned_files(now - 10, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"ucx_shm_posix_3c4d", "other"}


def test_the_status_table_of_a_rank_that_was_killed_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(status.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(status.os, "access", lambda *_: False)  # not in /dev/shm
    path = StatusTable.create_file(2)
    StatusTable.remove_file(os.getpid() + 1)
    assert os.path.exists(path)
    StatusTable.remove_file(os.getpid())
    assert not os.path.exists(path)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_any_guard_tells_the_witness_what_it_has_learned(monkeypatch):
    monkeypatch.setattr(witness, "launcher_process", os.getpid)  # a number that no other test uses
    lifeline = witness.Lifeline(3, 99)
    assert not lifeline.tell(b"job kvs_1")  # there is no witness yet
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(witness._address())
        listener.listen()
        assert lifeline.tell(b"job kvs_1")
        connection, _ = listener.accept()
        assert connection.recv(100) == b"3 99 %d" % os.getpid() and connection.recv(100) == b"job kvs_1"
        while lifeline.tell(b"job kvs_1"):
            pass  # until the queue of a stopped witness is full
        connection.close()
    assert not lifeline.tell(b"reported")  # it was killed
    lifeline._socket.close()


@needs_mpich
@pytest.mark.parametrize("rank, size", [(0, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_a_guard_that_is_killed_before_mpi_starts_is_named(tmp_path, rank, size):
    path = tmp_path / "job.py"
    path.write_text("import os, time\nfrom tinygrad2.distributed import world\nstart_mpi = world._start_mpi\n"
                    "def start_late(*more):\n    time.sleep(1.5)\n"
                    f"    if os.environ['PMI_RANK'] == '{rank}':\n        os.kill(os.getppid(), 9)\n"
                    "    return start_mpi(*more)\nworld._start_mpi = start_late\nworld.World.join()\n")  # fmt: skip
    result = mpirun(size, path, cwd=tmp_path)
    assert result.returncode != 0
    line = r"^\[rank (\d) of \d, \S+ pid \d+\] was killed from outside \(its guard, process \d+, was killed\)$"
    assert re.findall(line, result.stderr, re.MULTILINE) == [str(rank)]


@needs_mpich
def test_a_job_ends_in_order_although_the_proxy_of_mpirun_is_stopped(tmp_path):
    path = script(tmp_path, "from tinygrad2.system.process import parents\ndef main():\n    world.barrier('ready')\n"
                            "    os.kill(parents(os.getpid())[1], signal.SIGSTOP)\n    time.sleep(0.5)\n"
                            "    return 152\nworld.run(main)")  # fmt: skip
    assert mpirun(2, path, cwd=tmp_path).returncode == 152


@needs_mpich
@pytest.mark.parametrize("limit, line", [
    ("-n 20", r"26 more open files are needed than the limit of this process leaves; raise it \(ulimit -n 1024\)"),
    pytest.param("-v 200000", r"out of memory \(ulimit -v leaves \d+ MB; starting MPI .*\); raise that limit",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_limits_that_are_too_small_for_mpi_are_one_line(tmp_path, limit, line):
    path = script(tmp_path, "world.run(lambda: None)")
    words = [MPIRUN, "-n", "2", "sh", "-c", f"ulimit {limit}; exec {sys.executable} {path}"]
    result = subprocess.run(words, env=CLEAN, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2 and re.fullmatch(f"job.py: {line}\n", result.stderr)


def test_too_little_shared_memory_is_named(tmp_path, monkeypatch):
    blocks = [2_500]

    def statvfs(folder):
        return os.statvfs_result((1000, 1000, 64_000, blocks[0], blocks[0], 0, 0, 0, 0, 255))

    monkeypatch.setattr(shared_memory.os, "statvfs", statvfs)
    folder = str(tmp_path)
    assert shared_memory.shortage(2, 0.0, folder) == ""
    assert shared_memory.shortage(4, 0.0, folder).startswith(
        f"{folder} has 2.5 MB free, and 4 ranks need 4.4 MB; make it larger (docker run --shm-size 1g"
    )
    (tmp_path / "mpich_shm_ab_0").write_bytes(b"x" * 2_000_000)
    before = os.stat(tmp_path / "mpich_shm_ab_0").st_mtime + 10
    assert "1 file(s) of MPI jobs, 2.0 MB, are there: if those jobs have ended, rm" in shared_memory.shortage(
        4, before, folder
    )
    assert shared_memory.shortage(4, 0.0, folder) == ""  # they may be this job's own
    assert "enough for 2 ranks of MPICH; 1 file(s)" in shared_memory.describe(folder)
    blocks[0] = 60_000
    assert shared_memory.describe(folder) == f"{folder}: 60.0 MB of 64.0 MB are free, enough for 54 ranks of MPICH"


def in_small_shm(size, *command):
    """Run a command in a mount namespace with a /dev/shm of this size; then list what is left there."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a /dev/shm of its own needs Linux and root")
    words = " ".join(f"'{word}'" for word in command)
    inside = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && {words}; code=$?; ls /dev/shm; exit $code"
    return subprocess.run(["unshare", "-m", "sh", "-c", inside], env=CLEAN, capture_output=True, text=True)


@pytest.mark.slow
def test_a_small_or_filling_dev_shm(tmp_path):
    command = (MPIRUN, "-n", "4", sys.executable, str(ROOT / "train_gpt2.py"), "--run-dir", str(tmp_path / "run"))
    if "HYDRA" not in subprocess.run([MPIRUN, "--version"], env=CLEAN, capture_output=True, text=True).stdout:
        pytest.skip("measured for MPICH")
    result = in_small_shm("2m", *command)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("train_gpt2.py: /dev/shm has 2.1 MB free, and 4 ranks need 4.4 MB; make it larger")
    assert len(result.stderr.splitlines()) == 1
    for _ in range(3):  # two times the file would not fit
        result = in_small_shm("6m", *command, "--data", "mistyped.txt")
        assert result.returncode == 2 and "mpich_shm" not in result.stdout
        assert "mistyped.txt: cannot be read" in result.stderr


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="counted by Linux only")
def test_work_is_counted_for_the_main_thread_and_not_for_others(tmp_path):
    counts, step = [], threading.Barrier(2)

    def count():
        for _ in range(3):
            step.wait()
            counts.append(work_done())
            step.wait()

    counter = threading.Thread(target=count, name="tinygrad2 counter")
    counter.start()
    library = threading.Thread(target=lambda: (tmp_path / "other").write_bytes(b"x" * 5_000_000), name="library")
    step.wait(), step.wait()
    library.start()
    library.join()
    step.wait(), step.wait()
    (tmp_path / "own").write_bytes(b"x" * 5_000_000)
    step.wait(), step.wait()
    counter.join()
    assert counts[1] - counts[0] < 4_000_000 < counts[2] - counts[1]


def test_processes_are_found_by_their_environment(tmp_path):
    process, job = start(tmp_path, 1, "-c", "import time; time.sleep(1000)")
    try:
        assert abs(started_at(process.pid) - time.time()) < 60
        time.sleep(0.5)
        kill_marked(job, 0.0)
        process.wait(timeout=60)
        assert no_process_is_left(job)
    finally:
        process.kill()
        process.communicate()
