"""The memory plan is what a training takes: its parts compared with the arrays, its total with the system's figure."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from marks import slow_but
from test_train import ROOT, TEXT, python, train

import ops
import tinygrad2.commands.plan as plan_command
from models import GPT, GPTConfig
from models.dropout import set_dropout
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.mpirun import environment, find_mpirun, have_mpi
from tinygrad2.errors import UserError
from tinygrad2.function import Function
from tinygrad2.mixed_precision import mixed_precision
from tinygrad2.saved16 import Saved16
from tinygrad2.system.memory import available_bytes, megabytes, peak_resident_bytes, resident_bytes
from tinygrad2.tensor import Tensor
from tinygrad2.training import gpu_plan
from tinygrad2.training.memory_plan import MemoryPlan, advice

CONFIG = dict(block_size=32, vocab_size=300, n_head=4, n_embd=64)


def kept_bytes(loss, model):
    """What the graph of a loss holds for backward, each piece of memory once, without parameters."""
    seen, stack, found = set(), [loss.node], {}
    parameters = {address(parameter.data) for parameter in model.parameters()}

    def look(value):
        if isinstance(value, np.ndarray):
            while value.base is not None and isinstance(value.base, np.ndarray):
                value = value.base
            if address(value) not in parameters:
                found[address(value)] = value.nbytes
        elif isinstance(value, (tuple, list)):
            for item in value:
                look(item)
        elif isinstance(value, Function):
            look(value.saved)
        elif isinstance(value, Saved16):
            look(value.bits)
        elif hasattr(value, "array"):  # a Lease
            look(value.array)

    while stack:
        node = stack.pop()
        if node is None or id(node) in seen or isinstance(node, Tensor):
            continue
        seen.add(id(node))
        look(getattr(node, "saved", ()))
        stack.extend(edge[0] for edge in node.parents if edge)
    return sum(found.values())


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"dropout": 0.1}, {"n_head": 1}, {"activation": "gelu_erf"}])
def test_a_layer_keeps_what_the_plan_says(reference, changes, dtype):
    if not reference and not ops.have_cpu_kernels():
        pytest.skip("Numba is not installed")
    ids, kept = np.arange(6 * 32).reshape(6, 32), []
    for n_layer in (1, 3):
        config = GPTConfig(**{**CONFIG, "n_layer": n_layer, **changes})
        with kernels("reference" if reference else "auto"), mixed_precision(dtype):
            model = GPT(config, seed=1)
            set_dropout(model, 1, 0)
            kept.append(kept_bytes(model.loss(ids, ids), model))
    planned = sum(config.kept(6, 32, reference, dtype).values())
    assert (kept[1] - kept[0]) / 2 == pytest.approx(planned, rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recompute_keeps_one_number_per_channel_and_block(dtype):
    ids, kept = np.arange(6 * 32).reshape(6, 32), []
    for n_layer in (1, 3):
        model = GPT(GPTConfig(**CONFIG, n_layer=n_layer), seed=1, recompute=True)
        with mixed_precision(dtype):
            kept.append(kept_bytes(model.loss(ids, ids), model))
    assert (kept[1] - kept[0]) / 2 == pytest.approx(4 * 6 * 32 * 64, rel=0.02)


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"tied_head": False}, {"n_layer": 5, "n_embd": 32}])
def test_parameters_are_counted_without_a_model(changes):
    config = GPTConfig(**{**CONFIG, "n_layer": 2, **changes})
    assert config.count_parameters() == GPT(config).count_parameters()
    sizes = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    for preset, size in sizes.items():
        assert GPTConfig.preset(preset).count_parameters() == size


def measured(folder, flags, **environment):
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    result = train(folder, flags, **environment)
    assert result.returncode == 0, result.stderr
    line = re.search(r"^memory +([\d.,]+) MB at the peak; the plan was ([\d.,]+) MB$", result.stdout, re.MULTILINE)
    return [float(number.replace(",", "")) for number in line.groups()]


MIDDLE = "--n-layer 4 --n-embd 256 --n-head 8 --block-size 256 --batch-size 16 --vocab-size 2000 --steps 2"

LARGE = "--vocab-size 50257 --block-size 64 --steps 2"  # the weights are most of it


@pytest.mark.parametrize("flags", slow_but(("--steps 3",), ["--steps 3", MIDDLE]))
def test_the_peak_is_near_the_plan(tmp_path, flags):
    peak, plan = measured(tmp_path, flags)
    assert plan == pytest.approx(peak, rel=0.15)


@pytest.mark.slow
def test_a_first_run_plans_for_compiling(tmp_path):
    pytest.importorskip("numba", reason="Numba is not installed")
    peak, plan = measured(tmp_path, "--steps 3", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert plan == pytest.approx(peak, rel=0.15)
    peak_again, plan_again = measured(tmp_path, "--steps 3", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert plan_again == pytest.approx(peak_again, rel=0.15) and plan - plan_again > 50


MANY = [
    MIDDLE + " --recompute", MIDDLE + " --dtype bfloat16", MIDDLE + " --micro-batch-size 4", MIDDLE + " --dropout 0.1",
    MIDDLE + " --checkpoint-every 2", f"--n-layer 3 --n-embd 384 --n-head 6 {LARGE} --batch-size 4",
]  # fmt: skip
MORE = [  # combinations of these, the reference implementations, which take minutes, and the real size
    MIDDLE + " --kernels reference", MIDDLE + " --dtype bfloat16 --recompute", MIDDLE + " --tensorboard",
    MIDDLE + " --dtype bfloat16 --kernels reference", MIDDLE + " --kernels reference --dropout 0.1",
    f"--model gpt2 --n-layer 12 --n-embd 768 --n-head 12 {LARGE} --batch-size 4",
]  # fmt: skip


@pytest.mark.parametrize("flags", slow_but((), MANY + MORE, long=MORE))
def test_the_peak_is_near_the_plan_in_many_ways(tmp_path, flags):
    peak, plan = measured(tmp_path, flags)
    print(flags, peak, plan)
    assert plan == pytest.approx(peak, rel=0.15)


@pytest.mark.slow
def test_ranks_keep_to_their_plans_and_zero_takes_less(tmp_path):
    if not have_mpi():
        pytest.skip("there is no mpirun, or no mpi4py")
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    peaks = {}
    for more in (f"--reduce-order {order}{zero}" for order in ("plain", "tree") for zero in ("", " --zero 1")):
        flags = f"{MIDDLE} --n-embd 512 --block-size 64 --micro-batch-size 2 --data text.txt {more}"
        command = [find_mpirun(), "-n", "2", sys.executable, str(ROOT / "train_gpt2.py"), *flags.split()]
        result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        both = [re.search(rf"^{words} the plan was ([\d.,]+) MB$", result.stdout, re.MULTILINE)
                for words in (r"memory +([\d.,]+) MB at the peak;", r" +([\d.,]+) MB at most on other ranks;")]
        for line in both:
            peak, plan = (float(number.replace(",", "")) for number in line.groups())
            assert plan == pytest.approx(peak, rel=0.15)
        peaks[more] = peak  # of rank 1, which has no complete moments at the end
    n = 4e-6 * (4 * 12 * 512 * 512 + 2256 * 512)  # MB of all weights, about
    print(peaks, n)
    plain, plain_zero, tree, tree_zero = peaks.values()
    assert plain - plain_zero == pytest.approx(n, rel=0.2)                    # half of m and v
    assert tree - tree_zero == pytest.approx(n, rel=0.2)
    assert tree - plain == pytest.approx(2 * n, rel=0.2)                      # 4 micro-batches: 2 buffers


def test_advice_names_flags_and_what_they_save():
    plan = MemoryPlan(GPTConfig.preset("gpt2"), rows=8, length=1024, base=100_000_000)
    lines = list(advice(plan, 3e9))
    assert lines[0].startswith("--recompute saves") or lines[0].startswith("--micro-batch-size 1 saves")
    wanted = r"--checkpoint-every 0 saves 1,493 MB \(saves only at the end\): [\d,]+ MB, still too m"
    assert any(re.match(wanted, line) for line in lines)
    assert lines[-1].startswith("--micro-batch-size 1 --recompute --checkpoint-every 0 --reduce-order plain together: ")
    assert lines[-1].endswith("fits")
    assert [line for line in lines if "--block-size 512" in line]
    kept = list(advice(replace(plan, keeps_every=True), 3e9))  # --checkpoint-every 0 alone would not save it
    shorter = [line.replace("--checkpoint-every 0 --keep-every 0", "--checkpoint-every 0") for line in kept]
    assert shorter == lines != kept


def test_fewer_rows_at_a_time_need_more_gradients_in_the_tree():
    plan = MemoryPlan(GPTConfig(**CONFIG), rows=8, length=16, batch_rows=8)
    waiting = [replace(plan, rows=rows).parts["gradients waiting in the tree"] for rows in (8, 4, 2, 1)]
    assert waiting == [n * plan.parts["gradients"] for n in range(4)]


def test_a_training_that_will_not_fit_says_so_before_it_begins(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(
        "import sys\nimport train_gpt2\nfrom tinygrad2.distributed.world import World\n"
        "from tinygrad2.training import memory_plan\nmemory_plan.available_bytes = lambda: 100_000\n"
        "World().run(lambda: train_gpt2.main(World(), sys.argv[1:]))\n"
    )
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    result = train(tmp_path, "--steps 1", script=tmp_path / "small.py", PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert "warning   this machine has 0.1 MB free for 1 rank(s); what helps:" in result.stdout


def test_no_memory_is_one_line(tmp_path):
    (tmp_path / "full.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport numpy as np\n"
        "from tinygrad2.distributed.world import World\n"
        "World().run(lambda: np.empty(1 << 60, np.uint8))\n"
    )
    result = python(tmp_path / "full.py", cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "out of memory (Unable to allocate" in result.stderr and "python -m tinygrad2 plan" in result.stderr


def test_the_system_says_sensible_things():
    array = np.ones(40_000_000, np.uint8)
    assert 20e6 < resident_bytes() <= peak_resident_bytes() < 100e9
    assert available_bytes() is None or 1e6 < available_bytes() < 1e14
    assert megabytes(1234567890) == "1,235 MB" and megabytes(2_160_000) == "2.2 MB"
    del array


# -- the plan of a GPU -------------------------------------------------------------------------------------------------


def test_the_plan_of_a_gpu_without_one(capsys):
    assert plan_command.main(["--device", "cuda", "--dtype", "float16", "--model", "gpt2"]) == 0
    out = capsys.readouterr().out
    assert "weights in 16 bits" in out and "there is no GPU here" in out and "Python and libraries" not in out


def test_what_helps_if_the_memory_of_a_gpu_is_too_small(monkeypatch, capsys):
    monkeypatch.setattr(gpu_plan, "free_memory", lambda: 8 << 30)
    monkeypatch.setattr(plan_command, "gemm_peak", lambda xp: 1e12)
    monkeypatch.setattr(plan_command, "array_module", lambda device: None)
    monkeypatch.setattr(gpu_plan, "count_gpus", lambda: 2)
    plan = gpu_plan.GpuPlan(GPTConfig.preset("demo"), 4, 128)
    assert [plan.of_ranks(ranks) / plan.total for ranks in (1, 2, 3, 4)] == [1, 1, 2, 2]
    flags = ["--device", "cuda", "--model", "gpt2", "--batch-size", "16"]
    assert plan_command.main(flags) == 1
    out = capsys.readouterr().out
    assert "it does NOT fit" in out and "--dtype bfloat16 saves" in out and "--checkpoint-every" not in out
    assert plan_command.main([*flags, "--dtype", "bfloat16", "--micro-batch-size", "4"]) == 0
    assert "it fits" in capsys.readouterr().out


@pytest.mark.parametrize("flags, reason", [
    ("--cuda-graph yes --read-every 1", "--cuda-graph yes: with --read-every 1 each step waits"),
    ("--cuda-graph yes --batch-size 4 --ranks 2", "--cuda-graph yes: a graph is for one rank"),
    ("--tune-products yes --kernels reference", "--tune-products yes: it is for the kernels of --device cuda"),
    ("--gpu-allreduce nccl --comm-dtype bfloat16 --ranks 2", "--gpu-allreduce nccl: --comm-dtype bfloat16 is for sums"),
    ("--resume", "--resume: a plan is made of flags"),
    ("--gpu-attention cudnn", "--gpu-attention cudnn: cuDNN's attention takes 16-bit numbers"),
])  # fmt: skip
def test_the_plan_of_a_gpu_refuses_what_a_training_refuses(flags, reason):
    with pytest.raises(UserError, match=reason):
        plan_command.main(f"--device cuda {flags}".split())


def test_the_plan_of_a_gpu_counts_what_runs_between_steps(capsys):
    """Samples need more than validation where a micro-batch is one short row of many layers."""
    config = GPTConfig(vocab_size=50, block_size=8, n_layer=20, n_head=2, n_embd=16)
    sizes = [gpu_plan.GpuPlan(config, 1, 8, validates=validates, samples=samples).parts["validation and samples"]
             for validates, samples in ((False, False), (True, False), (True, True))]  # fmt: skip
    assert sizes == [0, config.forward_space(1, 8), config.forward_space(1, 8) + 2 * 20 * 8 * 16 * 4]
    assert plan_command.main("--device cuda --model gpt2 --eval-every 0 --sample-tokens 0".split()) == 0
    assert "validation and samples" not in capsys.readouterr().out
    assert plan_command.main("--device cuda --model gpt2 --eval-every 5".split()) == 0
    assert "validation and samples" in capsys.readouterr().out
