"""A whole training with the CUDA kernels, on the stand-in for CuPy: in each precision near the CPU's, without a wait,
with a known number of launches."""

import json
from collections import Counter

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running

import train_gpt2
from models import GPT, GPTConfig
from models.dropout import set_dropout
from ops.kernels.cuda import attention_hopper, attention_tiles
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.missing_kernels import watch_missing_kernels
from tinygrad2.precision import matmul_precision
from tinygrad2.training.gpu_plan import GpuPlan

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

LAYERS = 2
MODEL = f"--n-layer {LAYERS} --n-embd 32 --n-head 2 --block-size 16 --vocab-size 270 --batch-size 4"
QUIET = "--eval-every 0 --sample-every 0 --checkpoint-every 0 --compare-every 0 --sample-tokens 0"


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    monkeypatch.setattr(train_gpt2, "gemm_peak", lambda xp: 1e12)
    yield cupy
    watch_missing_kernels(None)


@pytest.fixture
def train(tmp_path, capsys):
    """train(device, flags) -> (records of the steps, what was printed)."""
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. The dog sat on the cat.\n" * 20)

    def run_it(device, flags):
        files = f"--weights-out {tmp_path / 'w.bin'} --metrics {tmp_path / 'm.jsonl'} --run-dir {tmp_path / 'run'}"
        argv = f"--data {text} --device {device} {MODEL} {QUIET} {files} {flags}".split()
        with running(check=False) as launches:
            assert train_gpt2.main(World(), argv) == 0
        return list(map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())), capsys.readouterr().out, launches

    return run_it


PRECISIONS = {"": 2e-6, "--matmul-precision high": 1e-3, "--dtype bfloat16": 1e-2, "--dtype float16": 2e-3}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("more", ["", "--dropout 0.1 --micro-batch-size 2", "--recompute"])
def test_a_training_is_near_that_of_the_cpu(cupy, train, precision, more):
    flags = f"--steps 6 --lr 1e-2 --warmup-steps 2 {more}"
    cpu, _, _ = train("cpu", flags)
    gpu, printed, launches = train("cuda", f"{flags} {precision}")
    assert len(gpu) == len(cpu) == 6 and len(launches) > 6 * 20
    for name, tolerance in (("loss", PRECISIONS[precision]), ("grad_norm", 10 * PRECISIONS[precision])):
        assert np.allclose([r[name] for r in cpu], [r[name] for r in gpu], rtol=tolerance, atol=tolerance)
    assert "GPU 0 of 1, stand-in, compute capability 8.0, 86 GB" in printed and "CUDA, its libraries and" in printed
    assert "MB of the GPU for arrays at the peak; the plan was" in printed
    assert "it has no kernel" not in printed and "does not take these arrays" not in printed, printed


@pytest.mark.slow
def test_a_training_on_an_h100_has_attention_by_warpgroups(cupy, train, monkeypatch):
    flags = "--steps 6 --lr 1e-2 --warmup-steps 2 --read-every 3 --dtype bfloat16"
    cpu, _, _ = train("cpu", flags)
    _, _, other = train("cuda", flags)
    monkeypatch.setattr(attention_hopper, "_right", {})
    monkeypatch.setattr(type(cupy.cuda.Device()), "compute_capability", "90")
    attention_tiles.capability.cache_clear()
    try:
        gpu, printed, launches = train("cuda", flags)
    finally:
        attention_tiles.capability.cache_clear()
    assert np.allclose([r["loss"] for r in cpu], [r["loss"] for r in gpu], rtol=1e-2)
    assert "compute capability 9.0" in printed and "without products of warpgroups" not in printed
    for name in ("forward", "dkdv", "dq"):                        # and once more, to be compared
        count = launches.count(f"attention_hopper_{name}")
        assert count == other.count(f"attention_{name}") + 1 and launches.count(f"attention_{name}") == 1


@pytest.mark.parametrize("precision", ["", "--dtype bfloat16"])
def test_the_host_waits_only_to_read_the_losses(cupy, train, precision):
    counts = []
    for steps in (6, 14):
        with strict_cupy.count_syncs() as counted:
            train("cuda", f"--steps {steps} --read-every 4 {precision}")
        counts.append(counted.count)
    assert counts[1] - counts[0] == 2  # after steps 8 and 12


def test_reading_seldom_changes_no_bit(cupy, train):
    each, _, _ = train("cuda", "--steps 7 --read-every 1 --cuda-graph no")
    for more in ("--read-every 3", "--read-every 100", "--read-every 3 --cuda-graph yes",
                 "--read-every 2 --eval-every 3"):  # fmt: skip
        seldom, _, _ = train("cuda", f"--steps 7 {more}")
        assert [(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in each] == [
            (r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in seldom
        ]


@pytest.mark.parametrize("read", [1, 3, 5])
def test_the_steps_before_one_that_is_not_finite_are_in_the_metrics(cupy, train, read, tmp_path, monkeypatch):
    micro_step = train_gpt2.Trainer.micro_step

    def spoilt(self, *args):
        return micro_step(self, *args) * (np.nan if self.done == 4 else 1)

    monkeypatch.setattr(train_gpt2.Trainer, "micro_step", spoilt)
    with pytest.raises(UserError, match="step 5: loss nan"):
        train("cuda", f"--steps 9 --cuda-graph no --read-every {read}")
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0, 1, 2, 3]


def test_the_launches_of_a_step_are_known(cupy, train):
    """No launch slips in: what one more step adds, kernel by kernel; products of cuBLASLt are counted on their own."""
    found = []
    for steps in (3, 4):
        before = fake_cublaslt.products_since_install()
        _, _, launches = train("cuda", f"--steps {steps} --dtype bfloat16")
        found.append((Counter(launches), fake_cublaslt.products_since_install() - before))
    (first, products_first), (second, products_second) = found
    L = LAYERS
    assert products_second - products_first == 3 * (4 * L + 1)
    per_layer = "attention_forward attention_delta attention_dkdv attention_dq gelu_forward gelu_backward cast_to_half"
    expected = dict.fromkeys(per_layer.split(), L)  # cast_to_half: the residual stream's gradient, for the MLP
    expected |= {"layernorm_forward": 2 * L + 1, "layernorm_backward": 2 * L + 1, "add": L + 1, "embedding_forward": 2,
                 "embedding_backward": 2, "sort_runs": 2, "softmax_loss": 1, "mean_loss": 1, "scale": 2,
                 "sum_blocks_of_rows": 4 * L + 1, "sum_rows": 2 * (2 * L + 1) + 4 * L + 1,
                 "square_sums": 1, "norm_of": 1, "decide_step": 1, "adamw": 2}  # fmt: skip
    assert dict(second - first) == expected


@pytest.mark.parametrize("flags", [*PRECISIONS, "--dtype bfloat16 --dropout 0.1 --micro-batch-size 2"])
def test_cupy_computes_nothing_large_in_a_step(cupy, train, flags):
    """Its own kernels pass by an array for each operator, and do not read 16 bytes at a time."""
    found = []
    for steps in (3, 4):
        with strict_cupy.computed() as computed:
            train("cuda", f"--steps {steps} {flags}")
        found.append(Counter(computed))
    batch = 4 * 16
    assert max(size for _, size in found[1] - found[0]) <= batch, found[1] - found[0]


def kept_bytes(loss, model):
    """What the graph of a loss holds for backward on the stand-in, each piece of memory once, without parameters."""
    found, seen, stack = {}, set(), [loss.node]
    own = {id(owner(parameter.data)) for parameter in model.parameters()}

    def look(value):
        if isinstance(value, strict_cupy.ndarray):
            memory = owner(value)
            found[id(memory)] = 0 if id(memory) in own else memory.nbytes
        elif isinstance(value, (tuple, list)):
            for item in value:
                look(item)

    while stack:
        node = stack.pop()
        if node is None or id(node) in seen or node.is_leaf:
            continue
        seen.add(id(node))
        look(node.saved)
        stack.extend(edge[0] for edge in node.parents if edge)
    return sum(found.values())


def owner(box):
    array = box._a
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"dropout": 0.1}, {"n_head": 1}, {"activation": "gelu_erf"}])
def test_a_layer_keeps_what_the_plan_of_a_gpu_says(cupy, changes, dtype):
    ids, kept = np.arange(6 * 32).reshape(6, 32), []
    for n_layer in (1, 3):
        shape = dict(block_size=32, vocab_size=300, n_head=4, n_embd=64, n_layer=n_layer) | changes
        model = GPT(GPTConfig(**shape), seed=1)
        FlatBuffers(model, "cuda")
        set_dropout(model, 1, 0)
        with running(check=False), matmul_precision("highest" if dtype == "float32" else dtype):
            kept.append(kept_bytes(model.loss(ids, ids), model))
    plan = GpuPlan(model.config, 6, 32, dtype=dtype)
    assert (kept[1] - kept[0]) / 2 == pytest.approx(sum(plan.layer.values()), rel=0.02)
