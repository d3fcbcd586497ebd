"""The first value that is not finite is named: op, direction, layer; and a dump reproduces it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from forked import python, train
from test_train import ROOT, TEXT

import ops  # noqa: F401
from models import GPT, GPTConfig
from tinygrad2.dispatch import KERNELS, OPS, kernels
from tinygrad2.errors import UserError
from tinygrad2.function import observe
from tinygrad2.monitor.dump import read_dump
from tinygrad2.monitor.nonfinite import NonFinite, NonFiniteObserver

CONFIG = GPTConfig(block_size=8, vocab_size=50, n_layer=3, n_head=2, n_embd=16)
SEVERAL = {"h.1.attn": ("split_heads", "merge_heads"), "h.1.attn.head": ("attention",), "h.1.mlp": ("mlp",),
           "h.1": ("add_layernorm",), "h.1.ln_1": ("layernorm",), "": ("linear_cross_entropy",),
           "wte": ("embedding",)}  # fmt: skip
PLACES = [(layer, op) for layer, names in SEVERAL.items() for op in names]


@pytest.fixture
def plant(monkeypatch):
    """plant(op, direction, layer): from now on this op, reference and kernels, returns one NaN in this layer."""

    def plant(name, direction, layer, observer):
        for version in {OPS[name], *KERNELS.get((name, "numpy"), ())}:
            original = getattr(version, direction)

            def changed(self, *args, original=original, **kwargs):
                result = original(self, *args, **kwargs)
                here = observer.path[-1] if direction == "forward" else getattr(self, "layer", None)
                if here != layer:
                    return result
                results = list(result) if isinstance(result, (tuple, list)) else [result]
                i = next(i for i, value in enumerate(results) if value is not None)
                spoilt = results[i].copy() if hasattr(results[i], "write_to") else np.array(results[i])
                spoilt.flat[0] = np.nan
                results[i] = spoilt
                return tuple(results) if len(results) > 1 or direction == "backward" else spoilt

            monkeypatch.setattr(version, direction, changed)

    return plant


@pytest.mark.parametrize("mode", ["auto", "reference", "recompute"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("layer, op", PLACES)
def test_a_planted_nan_is_named(plant, layer, op, direction, mode):
    model = GPT(CONFIG, seed=1, recompute=mode == "recompute")
    observer = NonFiniteObserver(model)
    plant(op, direction, layer, observer)
    ids = np.arange(16).reshape(2, 8)
    with kernels("reference" if mode == "reference" else "auto"), pytest.raises(NonFinite) as error, observe(observer):
        model.loss(ids, ids).backward()
    finding = error.value.finding
    assert (finding["phase"], finding["op"], finding["layer"]) == (direction, op, layer)
    assert finding["nan"] >= 1 and finding["inf"] == 0
    assert f"{direction} of {op}" in str(error.value) and json.dumps(finding)


def test_a_sound_step_passes_and_nothing_is_left_behind():
    model = GPT(CONFIG, seed=1)
    ids = np.arange(16).reshape(2, 8)
    grads = []
    for watched in (True, False):
        model.zero_grad()
        if watched:
            with observe(NonFiniteObserver(model)) as observer:
                observer.check_parameters(model)
                model.loss(ids, ids).backward()
        else:
            model.loss(ids, ids).backward()
        grads.append([parameter.grad.copy() for parameter in model.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*grads))


def test_a_bad_parameter_is_named_before_anything_is_computed():
    model = GPT(CONFIG, seed=1)
    model.h[2].mlp.c_fc.weight.data[3, 4] = np.inf
    with pytest.raises(NonFinite, match="update of optimizer: parameter h.2.mlp.c_fc.weight, 0 nan and 1 inf of 1,024"):
        NonFiniteObserver(model).check_parameters(model)


def test_a_diverging_training_stops_with_the_location_a_dump_and_its_checkpoint(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    flags = "--steps 50 --lr 1e30 --warmup-steps 0 --grad-clip 0 --checkpoint-every 1 --eval-every 0 --sample-every 0"
    result = train(tmp_path, flags)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "the training has diverged and was stopped. It began in the" in result.stderr
    assert re.search(r"^first value that is not finite: \w+ of \w+", result.stdout, re.MULTILINE)
    assert re.search(r"^ +x float32 \(.*\) from -?[\d.e+]+ to", result.stdout, re.MULTILINE)
    assert re.search(r"^ +batch +rows from 0 on; the first: '.+'", result.stdout, re.MULTILINE)
    (dump,) = (tmp_path / "run").glob("nonfinite_step_*")
    step = int(dump.name.split("_")[-1])
    (newest, *_) = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    assert newest.name == f"step_{step - 1:08d}"  # the weights before the bad step
    again = python("-m", "tinygrad2", "replay", dump, cwd=ROOT)
    assert again.returncode == 0 and again.stdout.endswith("the same as then\n"), again.stdout + again.stderr
    command = [sys.executable, "-m", "tinygrad2", "replay", str(dump), "--debug"]
    debugged = subprocess.run(command, cwd=ROOT, input="p 6 * 7\nq\n", capture_output=True, text=True, timeout=600)
    assert "(Pdb) 42" in debugged.stdout
    damage(dump)


def damage(dump):
    for name, change, says in (
        ("batch.bin", lambda raw: raw[:-8], "batch.bin: not a valid"),
        ("weights.bin", lambda raw: raw[:100], "weights.bin: not a valid"),
        ("dump.json", lambda raw: raw.replace(b'"seed"', b'"sead"'), "dump.json: field 'seed' is None"),
        ("dump.json", lambda raw: b"[]", "is not a dump"),
        ("dump.json", lambda raw: b"{", "is not valid JSON"),
    ):
        raw = (dump / name).read_bytes()
        (dump / name).write_bytes(change(raw))
        with pytest.raises(UserError, match=says):
            read_dump(str(dump))
        (dump / name).write_bytes(raw)


def test_a_gradient_too_large_to_be_squared_is_called_that(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    (tmp_path / "large.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train_gpt2\n"
        "from tinygrad2.distributed.world import World\n"
        "step = train_gpt2.Trainer.micro_step\n"
        "def large(self, row, x, y):\n    loss = step(self, row, x, y)\n    self.flat.grad *= 1e22\n    return loss\n"
        "train_gpt2.Trainer.micro_step = large\nWorld().run(lambda: train_gpt2.main(World(), sys.argv[1:]))\n"
    )
    result = train(tmp_path, "--steps 3", script=tmp_path / "large.py")
    assert result.returncode == 2 and "Each value of the gradient is finite, but they are so large" in result.stderr


def test_what_is_finite_when_computed_again_is_reported(tmp_path):
    """A step whose loss becomes NaN outside any op."""
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    (tmp_path / "spoilt.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train_gpt2\n"
        "from tinygrad2.distributed.world import World\n"
        "step = train_gpt2.Trainer.step\n"
        "train_gpt2.Trainer.step = lambda self, *args: (float('nan'), step(self, *args)[1])\n"
        "World().run(lambda: train_gpt2.main(World(), sys.argv[1:]))\n"
    )
    result = train(tmp_path, "--steps 3", script=tmp_path / "spoilt.py")
    assert result.returncode == 2 and "Computed again, all values of the step were finite" in result.stderr
