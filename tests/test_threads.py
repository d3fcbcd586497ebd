"""The plan for threads, and the pool that runs the kernels."""

import _thread
import os
import subprocess
import sys
import threading
import time

import pytest

from tinygrad2.system.threads import Pool, threads_flag

NAMES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_THREAD_TIMEOUT")


def planned(call, **environment):
    """What the call returns, the variables it sets, and whether it loaded NumPy, printed by a new process."""
    script = (
        "import os, sys\nfrom tinygrad2.system.threads import POOL, plan_threads, planned_threads\n"
        f"print({call}, POOL.threads, [os.environ[name] for name in {NAMES!r}], 'numpy' in sys.modules)"
    )
    clean = {key: value for key, value in os.environ.items() if key not in NAMES}
    command, environment = [sys.executable, "-c", script], {**clean, **environment}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    return result.stdout.strip()


def test_the_plan_is_all_cores_unless_a_flag_or_variable_sets_it():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert planned("plan_threads()") == f"{cores} {cores} {[str(cores)] * 4 + ['14']} False"
    assert planned("plan_threads(default=3)") == f"3 3 {['3'] * 4 + ['14']} False"
    assert planned("plan_threads()", OMP_NUM_THREADS="5") == f"5 5 {['5'] * 4 + ['14']} False"
    assert planned("plan_threads(6)", OMP_NUM_THREADS="5") == f"6 6 {['6'] * 4 + ['14']} False"
    assert planned("plan_threads(6)", OPENBLAS_THREAD_TIMEOUT="20") == f"6 6 {['6'] * 4 + ['20']} False"
    assert planned("plan_threads()", OMP_NUM_THREADS="many").startswith(f"{cores} {cores}")
    assert planned("plan_threads(6) * 10 + planned_threads()").startswith("66 6 ")


@pytest.mark.parametrize(
    "line, threads",
    [("--threads 3", 3), ("--threads=4 --steps 1", 4), ("--steps 3", None), ("--threads", None), ("--threads x", None),
     ("--threads 0", None), ("--threads ²", None), ("--threads 99999999", None), ("--threads " + "9" * 5000, None),
     ("--threads 2 --threads=3", 3), ("--threads 2 --threads", 2)],
)  # fmt: skip
def test_the_flag_is_found_before_the_others_are_parsed(line, threads):
    assert threads_flag(["train_gpt2.py", *line.split()]) == threads


@pytest.fixture
def pool():
    pool = Pool()
    pool.resize(3)
    return pool


def parts_of(pool, n, grain=1):
    parts = []
    pool.split(lambda lo, hi: parts.append((lo, hi)), n, grain=grain)
    return sorted(parts)


def test_the_parts_cover_the_range_and_depend_on_its_size_only(pool):
    assert parts_of(pool, 10) == [(0, 3), (3, 6), (6, 10)]
    assert parts_of(pool, 2) == [(0, 1), (1, 2)]
    assert parts_of(pool, 1) == [(0, 1)] and parts_of(pool, 0) == [(0, 0)]
    assert parts_of(pool, 10, grain=4) == [(0, 5), (5, 10)] and parts_of(pool, 10, grain=11) == [(0, 10)]
    for _ in range(200):
        assert parts_of(pool, 11) == [(0, 3), (3, 7), (7, 11)]


def test_the_parts_run_in_parallel(pool):
    together = threading.Barrier(3, timeout=20)  # breaks unless three threads meet at it
    pool.split(lambda lo, hi: together.wait(), 3)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_a_part_raises_is_raised_after_all_are_done(pool, failing):
    done = []

    def work(lo, hi):
        if lo == failing:
            raise KeyError(lo)
        done.append(lo)

    for _ in range(3):  # and the pool works afterwards
        with pytest.raises(KeyError, match=str(failing)):
            pool.split(work, 3)
    assert len(done) == 6 and parts_of(pool, 3) == [(0, 1), (1, 2), (2, 3)]


def test_the_pool_works_after_ctrl_c_while_waiting(pool):
    def work(lo, hi):
        if hi < 3:
            time.sleep(0.05)  # the caller's own part is done by now: it waits
            if lo == 0:
                _thread.interrupt_main()
            time.sleep(0.05)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pool.split(work, 3)
        assert parts_of(pool, 11) == [(0, 3), (3, 7), (7, 11)]


def test_a_nested_split_runs_in_its_own_thread(pool):
    inner = []
    pool.split(lambda lo, hi: pool.split(lambda a, b: inner.append((a, b)), 5), 3)
    assert inner == [(0, 5)] * 3
    assert len(parts_of(pool, 3)) == 3


def test_two_users_threads_take_turns(pool):
    def use():
        for _ in range(50):
            assert len(parts_of(pool, 9)) == 3

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(timeout=30)
        assert not user.is_alive()


def test_idle_threads_keep_no_arrays_alive(pool):
    import weakref

    import numpy as np

    array = np.zeros(3)
    ref = weakref.ref(array)
    pool.split(lambda lo, hi, a: None, 3, array)
    del array
    assert ref() is None
