"""Several ranks under mpirun: the same training as with one rank, and no rank waits for one that has ended."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cuda_host import needs_compiler
from marks import slow_but
from test_train import ROOT, SMALL, TEXT, metrics

from tinygrad2.io.weights import load_weights

pytest.importorskip("mpi4py", reason="mpi4py is not installed")
_IN_ENVIRONMENT = pathlib.Path(sys.executable).parent / "mpirun"
MPIRUN = str(_IN_ENVIRONMENT) if _IN_ENVIRONMENT.exists() else shutil.which("mpirun")
if not MPIRUN:
    pytest.skip("there is no mpirun", allow_module_level=True)

CLEAN = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
CLEAN.update(  # what Open MPI needs as root and with more ranks than cores; MPICH ignores it
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
    PYTHONPATH=str(ROOT),
)


_VERSION = subprocess.run([MPIRUN, "--version"], env=CLEAN, capture_output=True, text=True).stdout
needs_mpich = pytest.mark.skipif("HYDRA" not in _VERSION, reason="Open MPI kills the ranks itself (docs/cluster.md)")


def mpirun(n, *command, cwd):
    return subprocess.run(
        [MPIRUN, "-n", str(n), sys.executable, *map(str, command)],
        cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return folder


def train(n, folder, flags):
    arguments = [ROOT / "train_gpt2.py", *SMALL.split(), "--data", "text.txt", *flags.split()]
    if n == 1:
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=600
        )
    return mpirun(n, *arguments, cwd=folder)


FLAGS = "--steps 20 --n-layer 2 --dropout 0.1 --grad-clip 0.3 --eval-every 10 --micro-batch-size 1"


@pytest.fixture(scope="module")
def runs(folder):
    """{ranks: (printed, metrics, tensors)} of the same training by 1, 2 and 4 ranks."""
    return {n: outcome(n, folder, str(n)) for n in (1, 2, 4)}


def outcome(n, folder, name, flags=""):
    flags = f"{FLAGS} --metrics {name}.jsonl --weights-out {name}.bin --run-dir run-{name} {flags}"
    result = train(n, folder, flags)
    assert result.returncode == 0, result.stderr
    return result.stdout, metrics(folder / f"{name}.jsonl"), load_weights(folder / f"{name}.bin").tensors


def curves(run):
    return [[record.get(name) for name in ("step", "loss", "grad_norm", "lr", "val_loss")] for record in run[1]]


def same_bits(one, other):
    weights = one[2].keys() == other[2].keys() and all(one[2][k].tobytes() == other[2][k].tobytes() for k in one[2])
    return weights and curves(one) == curves(other)


def nearly_the_same(one, other, losses):
    for a, b in zip(one[1], other[1], strict=True):
        assert abs(a["loss"] - b["loss"]) < losses
        assert a.get("val_loss", 0) == pytest.approx(b.get("val_loss", 0), abs=losses)
    for name, tensor in one[2].items():
        assert np.abs(tensor - other[2][name]).mean() < 1e3 * losses, name
    return True


@pytest.mark.parametrize("n", [2, 4])
def test_ranks_compute_the_bits_of_one_process(runs, n):
    """On the real GPT, with dropout, accumulation and clipping; 1 rank has more threads than each of 2."""
    alone = runs[1][1]
    assert len(alone) == 20 and alone[-1]["loss"] < alone[0]["loss"] - 0.3
    assert max(record["grad_norm"] for record in alone) > 0.3
    assert same_bits(runs[1], runs[n])
    assert "in a tree over 8 of 8 micro-batches: the same bits for any 2^n ranks" in runs[n][0]


SAME = {
    "ZeRO, 2 ranks": (2, "--zero 1"),
    "ZeRO, 4 ranks": (4, "--zero 1"),
    "overlap, 2 ranks": (2, "--overlap yes"),
    "overlap, 4 ranks, ZeRO": (4, "--overlap yes --zero 1"),
    "overlap, recompute": (2, "--overlap yes --recompute"),
    "one thread": (1, "--threads 1"),
    "four threads": (1, "--threads 4"),
}
NEARLY = {
    "plain, 1 rank": (1, "--reduce-order plain"),
    "plain, 2 ranks, ZeRO": (2, "--reduce-order plain --zero 1"),
    "plain, 4 ranks, overlap": (4, "--reduce-order plain --overlap yes"),
    "bfloat16, 2 ranks": (2, "--comm-dtype bfloat16"),
    "bfloat16, 4 ranks, overlap": (4, "--comm-dtype bfloat16 --overlap yes --zero 1"),
}


@pytest.mark.parametrize("name", slow_but(("overlap, 4 ranks, ZeRO", "four threads"), SAME,
                                          long=("ZeRO, 2 ranks", "overlap, 2 ranks")))  # fmt: skip
def test_however_the_work_is_shared_the_bits_are_the_same(folder, runs, name):
    n, flags = SAME[name]
    assert same_bits(runs[1], outcome(n, folder, "same", flags))


@pytest.mark.parametrize("name", slow_but(("plain, 1 rank", "bfloat16, 2 ranks"), NEARLY,
                                          long=("plain, 2 ranks, ZeRO",)))  # fmt: skip
def test_other_orders_and_dtypes_agree_within_rounding(folder, runs, name):
    n, flags = NEARLY[name]
    other = outcome(n, folder, "nearly", flags)
    assert nearly_the_same(runs[1], other, 1e-6 if "plain" in flags else 2e-3) and not same_bits(runs[1], other)


@pytest.mark.slow
def test_three_ranks_report_that_they_agree_within_rounding(folder):
    flags = "--batch-size 12 --micro-batch-size 2"
    one, three = outcome(1, folder, "one", flags), outcome(3, folder, "three", flags)
    assert nearly_the_same(one, three, 1e-6)
    assert "3 ranks is not a power of 2: other numbers of ranks agree to rounding only" in three[0]


@pytest.mark.slow
def test_numbers_of_micro_batches_that_are_not_a_power_of_two_sum_to_the_same_bits(folder):
    flags = "--batch-size 12 --micro-batch-size 1"
    first, *others = (outcome(n, folder, f"twelve-{n}", flags) for n in (1, 2, 4))
    assert all(same_bits(first, other) for other in others)
    assert "in a tree over 4 of 12 micro-batches" in others[0][0]


@needs_mpich
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
                                    pytest.param(signal.SIGINT, marks=pytest.mark.long)])  # fmt: skip
def test_a_signal_stops_all_ranks_after_one_step_and_any_number_of_ranks_resumes(folder, runs, number):
    flags = f"{FLAGS} --steps 2000 --run-dir cut-{number} --weights-out cut.bin --checkpoint-every 50"
    arguments = [ROOT / "train_gpt2.py", *SMALL.split(), "--data", "text.txt", *flags.split()]
    process = subprocess.Popen(
        [MPIRUN, "-n", "2", sys.executable, *map(str, arguments)],
        cwd=folder, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step   60"):
            process.send_signal(number)
            break
    printed = "".join(lines) + process.communicate(timeout=600)[0]
    stopped = re.search(r"^stopped after (\d+) of 2000 steps; continue with: .*--resume$", printed, re.MULTILINE)
    assert stopped and process.returncode == 128 + number, printed[-2000:]
    more = f"--n-layer 2 --steps {int(stopped[1]) + 5} --resume --run-dir cut-{number} --weights-out cut.bin"
    for n in (4, 1):
        result = train(n, folder, more)
        assert result.returncode == 0, result.stderr
    records = metrics(folder / f"cut-{number}" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(int(stopped[1]) + 5))


@pytest.mark.slow
def test_ranks_resumed_by_other_numbers_of_ranks_learn_the_same(folder, runs):
    for n, steps, zero in ((2, 7, 1), (4, 13, 0), (2, 16, 1), (1, 20, 0)):
        (folder / "stop.py").write_text(  # ends it as a signal would after so many steps, without a race
            "import sys\nfrom tinygrad2.distributed.world import World\nworld = World.join()\nimport train_gpt2\n"
            "step = train_gpt2.Trainer.step\n"
            "def counted(self, loader, *more):\n"
            f"    if self.done == {steps} - 1: stop.signal = 15\n    return step(self, loader, *more)\n"
            "train_gpt2.Trainer.step = counted\n"
            "request = train_gpt2.StopRequest\n"
            "def made(**more):\n    global stop\n    stop = request(**more)\n    return stop\n"
            "train_gpt2.StopRequest = made\n"
            "world.run(lambda: train_gpt2.main(world, sys.argv[1:]))\n"
        )
        flags = f"{SMALL} --data text.txt {FLAGS} --run-dir several --resume --zero {zero}".split()
        result = mpirun(n, "stop.py", *flags, cwd=folder)
        assert result.returncode in (0, 143), result.stderr
    records = metrics(folder / "several" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(20))
    assert curves((None, records)) == curves(runs[1])
    weights = load_weights(folder / "trained_weights.bin").tensors
    assert all(weights[name].tobytes() == tensor.tobytes() for name, tensor in runs[1][2].items())


def test_a_value_that_is_not_finite_stops_all_ranks_in_one_line(folder):
    result = train(2, folder, "--steps 9 --lr 1e30 --warmup-steps 0 --grad-clip 0 --run-dir burst")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.count("the training has diverged and was stopped. It began in the") >= 1
    assert len(list((folder / "burst").glob("nonfinite_step_*/dump.json"))) == 1


def test_only_rank_0_prints(runs):
    for n in (2, 4):
        assert runs[n][0].count("step 20/20") == 1 and f"world     {n} rank(s)" in runs[n][0]


def test_the_ranks_share_out_the_cores_before_numpy_loads(folder):
    (folder / "threads.py").write_text(
        "import os, sys\n"
        "from tinygrad2.distributed.world import World\n"
        "world = World.join()\n"
        "early = 'numpy' in sys.modules\n"
        "names = ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'NUMBA_NUM_THREADS')\n"
        "os.write(1, f'{early} {world.threads} {[os.environ[name] for name in names]}\\n'.encode())\n"
    )
    result = mpirun(2, "threads.py", cwd=folder)
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert result.stdout.splitlines() == [f"False {threads} {[str(threads)] * 3}"] * 2, result.stderr


def test_threads_set_by_the_user_are_kept(folder):
    (folder / "own.py").write_text(
        "import os\nfrom tinygrad2.distributed.world import World\n"
        "world = World.join()\nos.write(1, f'{world.threads}\\n'.encode())\n"
    )
    command = [MPIRUN, "-n", "2", sys.executable, "own.py"]
    environment = {**CLEAN, "OPENBLAS_NUM_THREADS": "7"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.stdout == "7\n7\n"
    (folder / "own.py").write_text(
        "import os\nfrom tinygrad2.distributed.world import World\n"
        "world = World.join(threads=3)\nos.write(1, f'{world.threads}\\n'.encode())\n"
    )
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.stdout == "3\n3\n"  # a flag takes precedence over the environment


ENDINGS = {
    "exception": ("raise ValueError('planted')", "ValueError: planted"),
    "exception in a thread": (
        "import threading\n        threading.Thread(target=lambda: 1 / 0).start()\n        time.sleep(60)",
        "ZeroDivisionError",
    ),
    "sys.exit(3)": ("sys.exit(3)", "SystemExit: 3"),
    "sys.exit(0)": ("sys.exit(0)", "SystemExit: 0"),
    "a UserError": ("raise UserError('fix this')", "fix this"),
}


@pytest.mark.parametrize("ending, message", ENDINGS.values(), ids=ENDINGS.keys())
def test_whatever_ends_one_rank_ends_the_job(folder, ending, message):
    (folder / "ending.py").write_text(
        "import sys, time\n"
        "from tinygrad2.distributed.world import World\n"
        "from tinygrad2.errors import UserError\n"
        "world = World.join()\n"
        "import numpy as np\n"
        "def main():\n"
        "    a = np.ones(10, np.float32)\n"
        "    assert np.all(world.all_gather(a, 'ones') == 1)\n"
        "    if world.rank == 1:\n"
        f"        {ending}\n"
        "    world.all_gather(a, 'ones')\n"  # the others wait here
        "world.run(main)\n"
    )
    begin = time.monotonic()
    result = mpirun(3, "ending.py", cwd=folder)
    assert time.monotonic() - begin < 20
    assert result.returncode != 0
    assert "[rank 1 of 3, " in result.stderr and message in result.stderr
    if "sys.exit(3)" in ending:
        assert result.returncode == 3


def test_a_bad_flag_is_reported_once(folder):
    result = train(4, folder, "--colour red")
    assert result.returncode == 2
    assert result.stderr.count("unrecognized arguments: --colour red") == 1 and "Traceback" not in result.stderr


def test_help_is_shown_once_and_is_not_an_error(folder):
    result = train(2, folder, "--help")
    assert result.returncode == 0 and result.stdout.count("usage: train_gpt2.py") == 1 and result.stderr == ""


def test_a_batch_that_the_ranks_cannot_share_is_refused(folder):
    result = train(3, folder, "--steps 1")
    assert result.returncode == 2
    assert "--batch-size 8 does not split evenly into --micro-batch-size 2 on 3 rank(s)" in result.stderr


def test_ranks_that_do_not_find_each_other_are_refused(folder):
    """As with a wrong srun: two tasks were started, but each sees its own MPI."""
    command = [sys.executable, ROOT / "train_gpt2.py", "--steps", "1"]
    environment = {**CLEAN, "SLURM_STEP_NUM_TASKS": "2"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "2 tasks were started, but MPI sees 1" in result.stderr


def test_mpirun_without_mpi4py_reports_what_to_install(folder):
    blocked = folder / "blocked"
    (blocked / "mpi4py").mkdir(parents=True, exist_ok=True)
    (blocked / "mpi4py" / "__init__.py").write_text("raise ImportError('planted')")
    command = [MPIRUN, "-n", "2", sys.executable, ROOT / "train_gpt2.py"]
    environment = {**CLEAN, "PYTHONPATH": f"{blocked}{os.pathsep}{ROOT}"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2 and result.stderr.count('pip install -e ".[mpi]"') == 1


# -- GPUs, on the stand-in ---------------------------------------------------------------------------------------------

ON_GPUS = {
    "through the host": ("host", "--gpu-allreduce host", True),
    "ZeRO": ("host", "--zero 1", True),
    "overlap": ("host", "--overlap yes", True),
    "NCCL": ("nccl", "", False),
    "NCCL, ZeRO": ("nccl", "--zero 1", False),
    "NCCL after backward": ("nccl", "--overlap no", False),
}


@pytest.fixture(scope="module")
def on_the_cpu(folder):
    return outcome(1, folder, "cpu", "--steps 6 --kernels reference --threads 1")


@pytest.mark.parametrize("name", slow_but(("overlap", "NCCL, ZeRO"), ON_GPUS))
def test_ranks_on_the_stand_in_for_cupy_equal_the_cpu(folder, on_the_cpu, name):
    stand_in, flags, same = ON_GPUS[name]
    flags = f"{SMALL} --data text.txt {FLAGS} --steps 6 --kernels reference --threads 1 {flags}"
    flags += " --metrics gpu.jsonl --weights-out gpu.bin --run-dir run-gpu"
    result = mpirun(2, ROOT / "tests" / "stand_in_ranks.py", stand_in, *flags.split(), cwd=folder)
    assert result.returncode == 0, result.stderr
    run = result.stdout, metrics(folder / "gpu.jsonl"), load_weights(folder / "gpu.bin").tensors
    assert ("in the order of NCCL" in run[0]) == (stand_in == "nccl")
    assert same_bits(on_the_cpu, run) if same else nearly_the_same(on_the_cpu, run, 1e-6)


TINY = "--n-layer 1 --n-embd 8 --n-head 1 --block-size 8 --vocab-size 290 --batch-size 4 --micro-batch-size 2 "
TINY += "--steps 6 --read-every 4 --compare-every 3 --threads 1 --eval-every 0 --sample-every 0 --sample-tokens 0 "
TINY += "--dtype float16 --lr 1e-2 --warmup-steps 2 --data text.txt"


def by_kernels(ranks, spoilt, folder, name):
    files = f"--metrics {name}.jsonl --weights-out {name}.bin --run-dir run-{name}"
    return mpirun(ranks, ROOT / "tests" / "stand_in_ranks.py", f"nccl,{spoilt}", *f"{TINY} {files}".split(), cwd=folder)


@needs_compiler
def test_ranks_that_do_not_wait_for_their_gpus_decide_alike(folder):
    """With NCCL and float16: where the gradient of one rank overflows all leave the step out, where its loss is not
    finite none does (that the weights of the ranks are the same is looked at after steps 3 and 6)."""
    for ranks in (1, 2):
        result = by_kernels(ranks, f"{ranks - 1},2,gradient", folder, f"ranks{ranks}")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("warning   step 2: the gradients overflow float16") == 1
        assert ("in the order of NCCL" in result.stdout) == (ranks > 1)
    one, two = ([(r["loss"], r.get("skipped", False)) for r in metrics(folder / f"ranks{n}.jsonl")] for n in (1, 2))
    assert np.allclose(one, two, rtol=1e-3) and [skipped for _, skipped in two] == [False, True] + 4 * [False]
    result = by_kernels(2, "1,2,loss", folder, "lost")
    assert result.returncode == 2 and "step 2: loss inf" in result.stderr and "overflow" not in result.stdout


def test_nccl_without_nccl_is_one_line(folder):
    flags = f"{SMALL} --data text.txt --steps 2 --gpu-allreduce nccl".split()
    result = mpirun(2, ROOT / "tests" / "stand_in_ranks.py", "host", *flags, cwd=folder)
    assert result.returncode == 2
    assert "--gpu-allreduce nccl needs NCCL in CuPy and a GPU for every rank" in result.stderr
