"""Two hosts: network namespaces of one machine, with their own addresses and a link that can be cut (hosts.sh)."""

import os
import pathlib
import re
import subprocess
import sys
import time
import uuid

import pytest
from test_distributed import CLEAN, MPIRUN, curves
from test_failures import no_process_is_left
from test_train import ROOT, SMALL, TEXT, metrics

from tinygrad2.io.weights import load_weights
from tinygrad2.training.checkpoint import newest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.alone]
HERE = pathlib.Path(__file__).parent
FLAGS = f"{SMALL} --n-layer 2 --n-embd 128 --batch-size 8 --micro-batch-size 1 --data text.txt --dropout 0.1"


def hosts(*command):
    return subprocess.run([HERE / "hosts.sh", *command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def link():
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("two hosts on one machine need Linux and root")
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, env=CLEAN).stdout
    if "HYDRA" not in version:
        pytest.skip("written for MPICH's mpirun (Open MPI: see docs/cluster.md)")
    hosts("down")
    made = hosts("up", "1gbit")
    if made.returncode:
        hosts("down")
        pytest.skip(f"no network namespaces here: {made.stderr.strip().splitlines()[-1]}")
    yield
    hosts("down")


@pytest.fixture
def folder(link, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    (tmp_path / "hosts.txt").write_text("10.9.7.1:2\n10.9.7.2:2\n")
    yield tmp_path
    hosts("mend")


def start(folder, flags, script=ROOT / "train_gpt2.py", *words):
    """4 ranks, 2 on each host; UCX must not notice that the hosts share memory."""
    name, value = "TINYGRAD2_TEST_JOB", str(uuid.uuid4())
    command = [MPIRUN, "-launcher", "ssh", "-launcher-exec", HERE / "hosts_ssh.sh", "-f", "hosts.txt", "-n", "4",
               sys.executable, script, *words, *FLAGS.split(), *flags.split()]  # fmt: skip
    inside = " ".join(f"'{word}'" for word in map(str, command))
    process = subprocess.Popen(
        ["ip", "netns", "exec", "tg-h0", "unshare", "--uts", "sh", "-c", f"hostname tg-h0; exec {inside}"],
        cwd=folder, env={**CLEAN, "UCX_TLS": "tcp,self", name: value}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    return process, f"{name}={value}"


def read_until(process, prefix, lines):
    for line in process.stdout:
        lines.append(line)
        if line.startswith(prefix):
            return
    raise AssertionError("".join(lines)[-3000:])


def test_two_hosts_compute_the_bits_of_one_process(folder):
    alone = subprocess.run([sys.executable, ROOT / "train_gpt2.py", *FLAGS.split(), "--steps", "20", "--run-dir", "one",
                            "--weights-out", "one.bin"], cwd=folder, env=CLEAN, capture_output=True)  # fmt: skip
    assert alone.returncode == 0
    before = int(hosts("sent").stdout)
    process, job = start(folder, "--steps 20")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and no_process_is_left(job), printed[-3000:]
    assert "during backward" in printed and "tg-h1: 2 rank(s)" in printed
    one, four = (load_weights(folder / name).tensors for name in ("one.bin", "trained_weights.bin"))
    assert all(one[name].tobytes() == four[name].tobytes() for name in one)
    records = [metrics(folder / name / "metrics.jsonl") for name in ("one", "run")]
    assert curves((None, records[0])) == curves((None, records[1]))
    sent = int(hosts("sent").stdout) - before
    assert sent > 20 * 4 * sum(tensor.size for tensor in one.values())  # the gradients went over the link


def test_a_cut_link_ends_the_job_in_time_and_loses_nothing(folder):
    process, job = start(folder, "--steps 100000 --timeout 3 --checkpoint-every 5")
    lines = []
    with process:
        read_until(process, "step     12", lines)
        hosts("cut")
        begin = time.monotonic()
        lines += process.stdout.readlines()
    assert time.monotonic() - begin < 3 + 10 and process.returncode == 124, "".join(lines)[-3000:]
    assert re.search(r"collective #\d+ '.*' did not finish within 3 s; no rank of tg-h\d is missing: it is a rank of "
                     "another host, or the network", "".join(lines))  # fmt: skip
    hosts("mend")
    assert no_process_is_left(job)
    checkpoint, damaged = newest_checkpoint(str(folder / "run" / "checkpoints"), print)
    assert checkpoint.step >= 5 and not damaged


def test_a_link_restored_in_time_changes_nothing(folder):
    outcomes = []
    for cut in (False, True):
        process, job = start(folder, f"--steps 60 --timeout 30 --run-dir run-{cut} --weights-out {cut}.bin")
        with process:
            lines = []
            read_until(process, "step 20", lines)
            if cut:
                hosts("cut")
                time.sleep(2)
                hosts("mend")
            lines += process.stdout.readlines()
        assert process.returncode == 0, "".join(lines)[-3000:]
        weights = load_weights(folder / f"{cut}.bin").tensors
        outcomes.append({name: tensor.tobytes() for name, tensor in weights.items()})
    assert outcomes[0] == outcomes[1]


def test_a_stopped_rank_of_another_host_is_named(folder):
    words = (ROOT / "tests" / "planted.py", "stopped", "3", "4")
    process, job = start(folder, "--steps 100 --timeout 4", *words)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 124 and no_process_is_left(job), printed[-3000:]
    assert re.search(r"missing: rank 3 \(pid \d+\) .* and is stopped", printed), printed[-3000:]


def test_a_killed_rank_of_another_host_ends_the_job(folder):
    words = (ROOT / "tests" / "planted.py", "killed", "3", "4")
    process, job = start(folder, "--steps 100 --timeout 4", *words)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode not in (0, None) and no_process_is_left(job), printed[-3000:]
