"""The team of threads that runs compiled kernels: each part once, whoever does it, and nobody waits for ever."""

import ast
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tinygrad2.system.threads import POOL

pytest.importorskip("numba")

from ops.kernels.cpu.numba_jit import jit  # noqa: E402
from ops.kernels.cpu.spread import _JOBS, JOB, PARTS, WAIT, spread  # noqa: E402
from ops.kernels.cpu.team import Team  # noqa: E402

HERE = pathlib.Path(__file__).parent


@jit
def count(lo, hi, times, row, factor):
    """times (n,) counts how often each element was visited; row (3, n) shows that arguments of all kinds arrive."""
    if spread(lo, hi):
        return
    for i in range(lo, hi):
        times[i] += 1
        row[1, i] = row[0, i] * factor


@jit
def claim_memory(lo, hi, sizes, out):
    if spread(lo, hi):
        return
    for i in range(lo, hi):
        out[i] = np.empty(sizes[i], np.float32).size


def visited(split, n):
    times, row = np.zeros(n, np.int64), np.arange(3.0 * n).reshape(3, n)[:, ::-1]
    split(count, n, times, row, np.float64(2))
    assert np.array_equal(row[1], 2 * row[0])
    return times


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = POOL.threads
    POOL.resize(request.param)
    yield request.param
    POOL.resize(before)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 1000])
def test_every_element_is_visited_once(threads, n):
    for _ in range(50):
        assert (visited(POOL.split, n) == 1).all()


def test_many_jobs_of_many_threads(threads):
    """Jobs follow each other at once, so that threads of the last job meet the next one."""
    failures = []

    def work():
        for n in list(range(1, 40)) * 25:
            if not (visited(POOL.split, n) == 1).all():
                failures.append(n)

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_threads_that_sleep_or_never_come_are_not_waited_for(monkeypatch):
    team = Team()
    monkeypatch.setattr(team, "_start", lambda: setattr(team, "threads", team.threads + 1))  # none will come
    for n in (1, 5, 100):
        assert (visited(lambda kernel, n, *args: team.run(kernel, n, args, 4), n) == 1).all()
    assert team.words[PARTS] == 4


def test_where_the_system_refuses_threads_the_others_do_all_parts(monkeypatch):
    team, start = Team(), threading.Thread.start
    allowed = iter([start, start])

    def refuse(thread):
        if (begin := next(allowed, None)) is None:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for n in (1, 5, 100):
        assert (visited(lambda kernel, n, *args: team.run(kernel, n, args, 8), n) == 1).all()
    assert team.threads == 2


def test_threads_sleep_when_nothing_comes_and_are_called_again():
    team = Team()
    for _ in range(3):
        assert (visited(lambda kernel, n, *args: team.run(kernel, n, args, 3), 50) == 1).all()
        deadline = time.monotonic() + 60
        while len(team.asleep) < 2:
            assert time.monotonic() < deadline, "the threads do not go to sleep"
            time.sleep(0.001)
    assert team.threads == 2


def test_numbers_of_jobs_begin_again():
    team = Team()
    team.words[JOB] = (_JOBS - 3) << 32
    for n in range(1, 12):
        assert (visited(lambda kernel, n, *args: team.run(kernel, n, args, 3), n) == 1).all()
    assert team.words[JOB] >> 32 < 10


def test_a_part_without_memory_is_an_error_and_the_next_job_is_sound():
    team, sizes = Team(), np.full(8, 10)
    for place in range(8):
        bad, out = sizes.copy(), np.zeros(8, np.int64)
        bad[place] = 1 << 50
        with pytest.raises(MemoryError, match="work space of claim_memory"):
            team.run(claim_memory, 8, (bad, out), 3)
        team.run(claim_memory, 8, (sizes, out), 3)
        assert (out == 10).all()


def test_a_process_that_has_more_threads_than_cores_does_not_spin(monkeypatch):
    before = POOL.threads
    POOL.resize(1 + (os.cpu_count() or 1))
    try:
        team = Team()
        assert (visited(lambda kernel, n, *args: team.run(kernel, n, args, 2), 9) == 1).all()
        assert team.words[WAIT] == 0
    finally:
        POOL.resize(before)


def run_python(script):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


ENDS = {"": 0, "sys.exit(3)": 3, "raise ValueError('end')": 1, "os._exit(4)": 4,
        "os.kill(os.getpid(), 15)": -signal.SIGTERM}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_while_its_threads_wait_in_compiled_code(end):
    script = f"""
import os, sys
from test_team import POOL, visited
POOL.resize(2)
visited(POOL.split, 100)
POOL.team.words[{WAIT}] = 10**12  # for ever
visited(POOL.split, 100)
print("done", flush=True)
{end}
"""
    result = run_python(script)
    assert (result.returncode, result.stdout) == (ENDS[end], "done\n"), result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_team_of_its_own():
    script = """
import os
from test_team import POOL, visited
POOL.resize(3)
for _ in range(20):
    assert (visited(POOL.split, 100) == 1).all()
    if not os.fork():
        assert POOL.team.threads == 0
        assert (visited(POOL.split, 100) == 1).all()
        assert POOL.team.threads == 2
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
print("done")
"""
    result = run_python(script)
    assert result.stdout == "done\n", result.stderr


def test_every_kernel_begins_with_spread():
    """But for one of several steps, which leads the team through each."""
    found, of_steps = 0, []
    for path in sorted((HERE.parent / "ops" / "kernels" / "cpu").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "jit" in map(ast.unparse, node.decorator_list):
                body = node.body[ast.get_docstring(node) is not None :]
                if "lead(-lo, " in ast.unparse(node):
                    of_steps.append(path.name)
                else:
                    assert ast.unparse(body[0]) == "if spread(lo, hi):\n    return", f"{path.name}: {node.name}"
                assert [argument.arg for argument in node.args.args[:2]] == ["lo", "hi"]
                found += 1
    assert found > 15 and of_steps == ["decode_block.py"]
