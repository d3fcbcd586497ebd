"""--dtype bfloat16: trainings in mixed precision resume, are shared by ranks, and agree with float32 and PyTorch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import strict_cupy
from test_train import ROOT, SMALL, TEXT, metrics

import inference
import train_gpt2
from models import GPT, GPTConfig
from tinygrad2.cli import build
from tinygrad2.commands import eval as eval_command
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.mpirun import environment, find_mpirun, have_mpi
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.halves import check_dtype
from tinygrad2.io.weights import load_weights
from tinygrad2.mixed_precision import TABLE, mixed_precision, table_lines
from tinygrad2.optim import Adam
from tinygrad2.tensor import no_grad
from tinygrad2.training.config import TrainConfig

FLAGS = "--steps 12 --n-layer 2 --dropout 0.1 --lr 1e-2 --eval-every 4 --sample-every 0 --sample-tokens 4 --prompt The"
FLAGS += " --micro-batch-size 2 --checkpoint-every 4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """run(name, flags): a training in this process; the same one only once."""
    done = {}

    def run(name, flags=""):
        if name not in done:
            done[name] = train(folder, name, flags)
        return done[name]

    return run


def names_of(name):
    return f"--data text.txt --metrics {name}.jsonl --weights-out {name}.bin --run-dir run-{name}"


def train(folder, name, flags=""):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_gpt2.main(World(), f"{SMALL} {FLAGS} {names_of(name)} {flags}".split()) == 0
    return outcome(folder, name)


def outcome(folder, name):
    """(losses, bytes of the weights)"""
    records = {record["step"]: record for record in metrics(folder / f"{name}.jsonl")}
    losses = [(record["loss"], record["grad_norm"], record.get("val_loss")) for record in records.values()]
    return losses, {k: t.tobytes() for k, t in load_weights(folder / f"{name}.bin").tensors.items()}


def test_losses_are_near_those_of_float32_and_not_the_same(runs):
    (exact, _), (mixed, _) = runs("float32"), runs("bfloat16", "--dtype bfloat16")
    assert len(mixed) == 12 and mixed[-1][0] < mixed[0][0] - 0.3
    for one, other in zip(exact, mixed, strict=True):
        assert abs(one[0] - other[0]) < 1e-2 and (one[2] is None or abs(one[2] - other[2]) < 1e-2)
    assert exact != mixed


def test_the_reference_implementations_are_the_oracle(runs):
    kernel, reference = runs("bfloat16", "--dtype bfloat16"), runs("oracle", "--dtype bfloat16 --kernels reference")
    for one, other in zip(kernel[0], reference[0], strict=True):
        assert abs(one[0] - other[0]) < 5e-3


@pytest.mark.parametrize("flags", ["--recompute", "--threads 3"])
def test_the_same_bits(runs, flags):
    name = flags.split()[0].strip("-")
    assert runs("bfloat16", "--dtype bfloat16") == runs(name, f"--dtype bfloat16 {flags}")


def test_a_resumed_training_is_the_one_that_was_not_stopped(folder, runs, monkeypatch):
    """Its checkpoint remembers the dtype."""
    whole = runs("bfloat16", "--dtype bfloat16")
    step, calls = train_gpt2.Trainer.step, []

    def step_and_stop(self, *args):
        calls.append(0)
        self.stop.signal = 15 if len(calls) == 6 else None
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train_gpt2.Trainer, "step", step_and_stop)
        assert train_gpt2.main(World(), f"{SMALL} {FLAGS} {names_of('cut')} --dtype bfloat16".split()) == 128 + 15
    monkeypatch.chdir(folder)
    assert train_gpt2.main(World(), "--resume --run-dir run-cut".split()) == 0
    assert outcome(folder, "cut") == whole
    assert json.loads((folder / "run-cut" / "config.json").read_text())["training"]["dtype"] == "bfloat16"


def test_a_training_may_go_on_in_another_dtype(folder, runs, monkeypatch, capsys):
    runs("float32")
    monkeypatch.chdir(folder)
    flags = "--resume --run-dir run-float32 --steps 14 --dtype bfloat16 --metrics more.jsonl --weights-out more.bin"
    assert train_gpt2.main(World(), flags.split()) == 0
    printed = capsys.readouterr().out
    assert "resume    --dtype float32 is now bfloat16" in printed and "products  bfloat16: " in printed


def test_checkpoints_have_float32_weights(folder, runs):
    runs("bfloat16", "--dtype bfloat16")
    weights = load_weights(folder / "bfloat16.bin").tensors["wte.weight"]
    assert weights.dtype == np.float32 and (np.asarray(weights).view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("n", [2, 4])
def test_ranks_compute_the_bits_of_one_process(folder, runs, n):
    if not have_mpi():
        pytest.skip("there is no mpirun, or no mpi4py")
    command = [find_mpirun(), "-n", str(n), sys.executable, str(ROOT / "train_gpt2.py"), *SMALL.split()]
    command += [*FLAGS.split(), *names_of(f"ranks{n}").split(), "--dtype", "bfloat16", "--micro-batch-size", "2"]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert outcome(folder, f"ranks{n}") == runs("bfloat16", "--dtype bfloat16")


def test_other_precisions_are_refused_beside_it():
    with pytest.raises(Exception, match="--matmul-precision high is for float32"):
        build(TrainConfig, dict(steps=1, batch_size=1, lr=1e-3, dtype="bfloat16", matmul_precision="high"))
    with pytest.raises(Exception, match="--matmul-precision medium is for float32"):
        inference.parse(["--dtype", "bfloat16", "--matmul-precision", "medium"])


def test_float16_is_refused_on_the_cpu():
    for refused in (
        lambda: build(TrainConfig, dict(steps=1, batch_size=1, lr=1e-3, dtype="float16")),
        lambda: inference.parse(["--dtype", "float16"]),
        lambda: eval_command.main(["perplexity", "--dtype", "float16"]),
    ):
        with pytest.raises(UserError, match="--dtype float16 is for --device cuda; on the CPU use --dtype bfloat16"):
            refused()
    assert inference.parse(["--dtype", "float16", "--device", "cuda"]).dtype == "float16"


@pytest.mark.parametrize("capability", ["75", "80", "100"])
def test_the_gpu_decides_which_dtype_there_is(monkeypatch, capability):
    xp = strict_cupy.install(monkeypatch)
    monkeypatch.setattr(xp.cuda.Device, "compute_capability", capability)
    assert check_dtype(xp, "float32") == check_dtype(np, "bfloat16") == ""
    line = check_dtype(xp, "float16")
    if capability == "75":
        assert line == "float16 with a scaled loss; this GPU (compute capability 7.5) has no bfloat16"
        with pytest.raises(UserError, match="--dtype bfloat16: this GPU .*7.5. has no bfloat16; use --dtype float16"):
            check_dtype(xp, "bfloat16")
    else:
        assert line.endswith("has bfloat16, which needs no scaling: --dtype bfloat16")
        assert "the loss is not scaled; this GPU (compute capability " in check_dtype(xp, "bfloat16")


def test_inference_computes_as_the_training_did(folder, runs, monkeypatch, capfdbinary):
    runs("bfloat16", "--dtype bfloat16")
    monkeypatch.chdir(folder)
    seen = []
    for flags in ("--dtype bfloat16", "--dtype bfloat16 --kernels reference", ""):
        argv = f"--weights bfloat16.bin --prompt The --greedy --max-new-tokens 6 --json {flags}".split()
        assert inference.main(argv) == 0
        out, err = capfdbinary.readouterr()
        seen.append(json.loads(out.splitlines()[-1])["logprobs"])  # before it, perhaps, what the training has printed
        assert (b"products: bfloat16" in err) == bool(flags)
    assert seen[0] == pytest.approx(seen[1], abs=5e-3) and seen[0] == pytest.approx(seen[2], abs=0.05)
    assert seen[0] != seen[2]


def test_without_gradients_the_results_are_the_same():
    ids = np.random.default_rng(0).integers(0, 97, (2, 16))
    model = GPT(GPTConfig(block_size=16, vocab_size=97, n_layer=2, n_head=2, n_embd=32), seed=1)
    with mixed_precision("bfloat16"):
        recorded = model.loss(ids, ids).item()
        with no_grad():
            assert model.loss(ids, ids).item() == recorded


def test_the_table_names_every_op_once():
    names = [name for row in TABLE for name in row.ops]
    assert len(names) == len(set(names))
    assert max(map(len, table_lines())) <= 180


# -- beside PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_losses_and_gradients_are_as_near_to_float32_as_those_of_pytorch_autocast(mode):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.torch_gpt import TorchGPT

    config = GPTConfig(block_size=32, vocab_size=300, n_layer=3, n_head=4, n_embd=64)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 300, (2, 4, 32))
    theirs = TorchGPT(config.to_dict(), seed=1)
    ours, losses = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = GPT(config, seed=1)
        flat = FlatBuffers(model)
        with kernels(mode), mixed_precision(dtype):
            loss = model.loss(x, y)
            loss.backward()
        ours[dtype], losses[dtype] = flat.grad.copy(), loss.item()
        optimizer = Adam(flat)
        optimizer.step(1e-3)
        assert np.isfinite(flat.data).all()

    exact = {}
    for enabled in (False, True):
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = theirs(torch.from_numpy(x), torch.from_numpy(y))
        loss.backward()
        assert loss.item() == pytest.approx(losses["bfloat16" if enabled else "float32"], abs=1e-2 if enabled else 1e-4)
        gradients = {name: p.grad.clone() for name, p in theirs.named_parameters()}
        if not enabled:
            exact = gradients
    difference = sum(float(((gradients[name] - exact[name]) ** 2).sum()) for name in exact)
    size = sum(float((exact[name] ** 2).sum()) for name in exact)
    own = np.linalg.norm(ours["bfloat16"] - ours["float32"]) / np.linalg.norm(ours["float32"])
    assert own < 1.5 * (difference / size) ** 0.5


def test_the_documentation_has_the_table():
    text = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8").replace("`", "")
    for row in TABLE:
        cells = (", ".join(row.ops), row.operands or "-", row.waits or "-", row.results or "-", row.why)
        assert f"| {' | '.join(cells)} |" in text
