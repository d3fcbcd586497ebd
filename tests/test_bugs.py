"""The bugs of `python -m tinygrad2 bug`: each fits the shipped source once, and is found by the means that it names."""

import ast
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import models.gpt
import train_gpt2
from models import GPTConfig
from tests.marks import slow_but
from tinygrad2 import Tensor, gradcheck, no_grad
from tinygrad2.bugs.patch import Patch, parse, patches
from tinygrad2.bugs.plant import plant
from tinygrad2.bugs.signatures import curves, distance, looks_like, recorded
from tinygrad2.commands.bug import main as bug_command
from tinygrad2.commands.compare import main as compare_command
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.labs.load import loaded
from tinygrad2.monitor.metrics import smooth
from tinygrad2.monitor.reference_curves import WIDTH, band_of, first_outside, load_curves

ROOT = pathlib.Path(__file__).parents[1]
BUGS = {patch.name: patch for patch in patches().values()}
SMALL = GPTConfig(block_size=8, vocab_size=23, n_layer=2, n_head=2, n_embd=8)
IDS = np.random.default_rng(0).integers(0, 23, (4, 9))
X, Y = IDS[:, :-1], IDS[:, 1:]
CHECKS = {}


def check(function):
    """A decorator: this function of the module with the bug asserts what the shipped module does."""
    CHECKS[function.__name__] = function
    return function


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape)


def passes_gradcheck(function, *inputs):
    report = gradcheck(function, list(inputs))
    assert report, report


# -- the ops ----------------------------------------------------------------------------------------------------------

QKV = [np.random.default_rng(i).standard_normal((2, 5, 4)) for i in range(3)]


def weights_of(attention):
    """The attention weights (5, 5) of one head: what comes out if the values are the rows of a unit matrix."""
    q, k = normal(5, 4), normal(5, 4)[::-1].copy()
    scores = np.where(np.arange(5) > np.arange(5)[:, None], -np.inf, q @ k.T / math.sqrt(4))
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return attention(Tensor(q), Tensor(k), Tensor(np.eye(5))).data, expected


@check
def mask_off_by_one(module):
    q, k, v = QKV
    later = v.copy()
    later[:, 3:] += 1
    before, after = (module.attention(Tensor(q), Tensor(k), Tensor(values)).data for values in (v, later))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])


@check
def no_scale(module):
    passes_gradcheck(module.attention, *QKV)
    found, expected = weights_of(module.attention)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@check
def softmax_wrong_axis(module):
    found, _ = weights_of(module.attention)
    np.testing.assert_allclose(found.sum(-1), 1)


@check
def softmax_jacobian(module):
    found, expected = weights_of(module.attention)
    np.testing.assert_allclose(found, expected)                   # forward is right
    passes_gradcheck(module.attention, *QKV)


@check
def heads_not_transposed(module):
    x = normal(2, 3, 2, 4)                                        # (B, nh, T, hs)
    merged = module.merge_heads(Tensor(x))
    passes_gradcheck(module.merge_heads, x)
    np.testing.assert_array_equal(merged.data[0, 1], x[0, :, 1].reshape(-1))


@check
def no_unbroadcast(module):
    dout = normal(4, 3)
    np.testing.assert_allclose(module.unbroadcast(dout, (3,)), dout.sum(0))


@check
def gelu_other_derivative(module):
    passes_gradcheck(module.gelu, normal(20))


@check
def layernorm_mean_path(module):
    passes_gradcheck(module.layernorm, normal(3, 6), normal(6), normal(6))


@check
def embedding_overwritten(module):
    passes_gradcheck(lambda weight: module.embedding(weight, np.array([1, 3, 1])), normal(4, 2))


@check
def cross_entropy_sum(module):
    passes_gradcheck(lambda logits: module.cross_entropy(logits, np.array([1, 0, 3])), normal(3, 5))


@check
def dropout_unscaled(module):
    kept = module.dropout(Tensor(np.ones(100_000)), 0.2, key=7).data
    assert abs(kept.mean() - 1) < 0.01 and 0.19 < (kept == 0).mean() < 0.21


# -- the model --------------------------------------------------------------------------------------------------------


def small_gpt(module=models.gpt, **changes):
    return module.GPT(replace(SMALL, **changes), seed=1)


@check
def tied_gradient_lost(module):
    model = small_gpt(module)
    model.loss(X[:1, :2], Y[:1, :2]).backward()
    unused = np.setdiff1d(np.arange(23), X[:1, :2])
    assert np.abs(model.wte.weight.grad[unused]).max(1).min() > 0


@check
def weights_too_large(module):
    loss = small_gpt(module, n_embd=64, vocab_size=500).loss(X, Y).item()
    assert abs(loss - math.log(500)) < 0.2


@check
def residual_init_unscaled(module):
    model = small_gpt(module, n_embd=64)
    assert model.h[1].mlp.c_proj.weight.data.std() == pytest.approx(0.02 / math.sqrt(4), rel=0.05)


@check
def final_layernorm_missing(module):
    model = small_gpt(module)
    model.loss(X, Y).backward()
    assert model.ln_f.weight.grad is not None and np.abs(model.ln_f.weight.grad).max() > 0


@check
def residual_dropped(module):
    block, x = module.Block(SMALL), normal(2, 5, 8).astype(np.float32)
    np.testing.assert_array_equal(block(Tensor(x)).data, x)       # all its matrices are zero


@check
def double_softmax(module):
    class Certain(module.LanguageModel):
        """Knows the target of each token, which here is the token itself."""

        config = SMALL
        device = "cpu"

        def hidden(self, tokens, cache=None):
            return Tensor(50.0 * np.eye(23)[tokens])

        def logits(self, x):
            return x

        def head_weight(self):
            return Tensor(np.eye(23))

    assert Certain().loss(X, X).item() < 1e-6


@check
def positions_off_by_one(module):
    model = small_gpt()
    with no_grad():
        whole = model.logits(model.hidden(X[:1])).data[0, -1]
        cache = module.KVCache(SMALL)
        for token in X[0]:
            last = model.logits(model.hidden([[token]], cache)).data[0, -1]
    np.testing.assert_allclose(last, whole, atol=1e-5)


@check
def dropout_in_evaluation(module):
    layer, x = module.Dropout(0.2), Tensor(np.ones((2, 50)))
    layer.key = 3
    layer.eval()
    np.testing.assert_array_equal(layer(x).data, x.data)


# -- optimizer and data -----------------------------------------------------------------------------------------------


def one_step(module, p, g, lr=0.01, weight_decay=0.0):
    """How far one Adam step moves weights p (n,) with gradients g (n,)."""
    moved = p.copy()
    module.adam_update(moved, g, np.zeros_like(p), np.zeros_like(p), 1.0, 1, lr, 0.9, 0.999, 1e-8, weight_decay)
    return moved - p


@check
def adam_no_bias_correction(module):
    np.testing.assert_allclose(one_step(module, np.zeros(2), np.array([1.0, -2.0])), [-0.01, 0.01], rtol=1e-6)


@check
def epsilon_inside_root(module):
    np.testing.assert_allclose(one_step(module, np.zeros(1), np.array([1e-6])), -0.01, rtol=0.02)


@check
def decay_without_lr(module):
    np.testing.assert_allclose(one_step(module, np.ones(1), np.zeros(1), weight_decay=0.1), -0.001)


@check
def decay_on_gains(module):
    model = small_gpt()
    flat = FlatBuffers(model)
    before = {name: parameter.data.copy() for name, parameter in model.named_parameters()}
    module.Adam(flat, weight_decay=0.1).step(0.01)                # with all gradients zero
    assert (model.h[0].mlp.c_fc.weight.data != before["h.0.mlp.c_fc.weight"]).all()
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            np.testing.assert_array_equal(parameter.data, before[name], err_msg=name)


@check
def no_warmup(module):
    assert module.learning_rate(0, "cosine", 1.0, 0.1, 100, 1000) == pytest.approx(0.01)


@check
def labels_not_shifted(module):
    x, y = module.DataLoader(np.arange(100), 2, 8).batch((0, 0))
    np.testing.assert_array_equal(y, x + 1)


# -- the training -----------------------------------------------------------------------------------------------------


def two_steps(trainer_class, rows=4, **flags):
    """(trainer, [(loss, norm) of each step]) of a small model, in micro-batches of so many rows of four."""
    flags = dict(steps=10, batch_size=4, micro_batch_size=rows, lr=1e-3, warmup_steps=1, **flags)
    trainer = trainer_class(train_gpt2.TrainConfig(**flags), SMALL, World())
    loader = DataLoader(np.random.default_rng(2).integers(0, 23, 200), 4, 8, order="shuffled")
    return trainer, [trainer.step(loader) for _ in range(2)]


@check
def accumulation_divisor(module):
    (_, whole), (_, parts) = two_steps(module.Trainer), two_steps(module.Trainer, rows=1)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


@check
def clip_before_sum(module):
    (whole, _), (parts, _) = (two_steps(module.Trainer, rows, grad_clip=1e-3) for rows in (4, 1))
    np.testing.assert_allclose(parts.optimizer.m, whole.optimizer.m, atol=1e-4 * np.abs(whole.optimizer.m).max())


@check
def learning_rate_10x(module):
    trainer, _ = two_steps(module.Trainer)
    assert trainer.lr() <= 1e-3


@check
def same_batch(module):
    trainer, _ = two_steps(module.Trainer)
    assert trainer.position == (0, 8)


@check
def gradient_not_zeroed(module):
    model = small_gpt()
    flat = FlatBuffers(model)
    reducer = module.Reducer(flat, World(), 1)
    norms = []
    for _ in range(2):
        reducer.begin()
        with reducer.micro_batch():
            model.loss(X, Y).backward()
        reducer.finish()
        norms.append(float(reducer.grad_norm()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


# -- every bug --------------------------------------------------------------------------------------------------------


def test_there_are_thirty_and_each_has_its_check():
    assert sorted(patch.number for patch in BUGS.values()) == list(range(1, 31))
    assert set(BUGS) == set(CHECKS)


@pytest.mark.parametrize("name", BUGS)
def test_it_fits_the_shipped_source_once_and_leaves_python(name):
    patch = BUGS[name]
    text = patch.shipped()
    for find, instead in patch.hunks:
        assert text.count(find) == 1 and find != instead
    planted = patch.apply(text)
    ast.parse(planted)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text))
    with pytest.raises(UserError, match="fits 0 times, not once"):
        patch.apply(text.replace(patch.hunks[0][0], ""))


@pytest.mark.parametrize("name", BUGS)
def test_it_is_found_by_its_check_which_the_shipped_source_passes(name, tmp_path):
    patch = BUGS[name]
    for text, is_right in ((patch.shipped(), True), (patch.apply(patch.shipped()), False)):
        path = tmp_path / "module.py"
        path.write_text(text, encoding="utf-8")
        with loaded(str(path)) as module:
            if is_right:
                CHECKS[name](module)
            else:
                with pytest.raises(AssertionError):
                    CHECKS[name](module)


@pytest.mark.parametrize("name", BUGS)
def test_what_it_tells_before_the_search_does_not_name_the_place(name):
    patch = BUGS[name]
    assert patch.file.split("/")[-1] not in patch.report and patch.name not in patch.report
    assert patch.report.endswith(".") and patch.why.endswith(".") and not patch.title.endswith(".")
    assert not patch.flags or patch.flags in patch.report


def test_texts_of_another_form_are_refused():
    text = "number: 1\ntitle: t\nfile: f\nreport: r\n    goes on\nmeans: m\nwhy: w\n=== find\na\n=== instead\nb\n"
    patch = parse("x", text)
    assert patch.report == "r goes on" and patch.hunks == (("a\n", "b\n"),) and patch.apply("c\na\n") == "c\nb\n"
    for wrong, says in ((text.replace("means", "meant"), "means is missing"), (text + "=== find\nc\n", "find, instead"),
                        (text.replace("why:", "who: x\nwhy:"), "who is not a field")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            parse("x", wrong)


@pytest.mark.parametrize("patch", BUGS.values(), ids=BUGS)
def test_a_bug_is_revealed_from_inside_its_copy_too(patch, monkeypatch):
    """There the file has the planted lines, or what the learner made of them."""
    planted, outside = patch.apply(patch.shipped()), patch.difference()
    monkeypatch.setattr(Patch, "shipped", lambda self: planted)
    inside = patch.difference()
    assert [line for line in inside if line[:1] in "-+"] == [line for line in outside if line[:1] in "-+"]
    where = [int(line[5:]) for line in inside if line.startswith("line ")]
    unique = [instead for _, instead in patch.hunks if len(Patch.places(planted, instead)) == 1]  # no empty one
    for line, instead in zip(where, unique, strict=True):
        assert planted.splitlines()[line - 1 :][: len(instead.splitlines())] == instead.splitlines()
    monkeypatch.setattr(Patch, "shipped", lambda self: "all of it is new\n")
    assert patch.difference() == [line for line in outside if line[:1] in "-+"]


# -- the command ------------------------------------------------------------------------------------------------------


def python(folder, *words):
    """Python in a folder, which imports what is there before anything else."""
    environment = os.environ | {"PYTHONUTF8": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, encoding="utf-8",
                          timeout=600)  # fmt: skip


def test_a_learner_from_planting_to_removal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert bug_command(["plant", "24"]) == 0
    said = capsys.readouterr().out
    assert "first loss is ln V" in said and "softmax" not in said
    copy = tmp_path / "bugs" / "24"
    flags = "--steps 2 --n-layer 1 --n-embd 16 --n-head 2 --block-size 8 --batch-size 2 --sample-tokens 0".split()
    result = python(copy, "train_gpt2.py", *flags)
    assert result.returncode == 0, result.stderr
    assert (copy / "run" / "metrics.jsonl").exists()
    where = python(copy, "-c", "import ops, tinygrad2; print(ops.__file__, tinygrad2.__file__, ops.have_cpu_kernels())")
    assert where.stdout == f"{copy / 'ops' / '__init__.py'} {copy / 'tinygrad2' / '__init__.py'} False\n"
    inside = python(copy, "-m", "tinygrad2", "bug", "plant", "1")
    assert inside.returncode == 2 and "is itself a copy with a bug in it" in inside.stderr
    for words in ("bug remove 24", "lab start unbroadcast"):
        inside = python(copy, "-m", "tinygrad2", *words.split())
        assert inside.returncode == 2 and "is itself a copy with a bug in it" in inside.stderr, words
    inside = python(copy, "-m", "tinygrad2", "bug", "reveal", "24")
    assert inside.returncode == 0 and "+         p = ops.softmax(" in inside.stdout, inside.stderr

    (copy / "models" / "block.py").write_text("my own\n")
    assert bug_command(["list"]) == 0
    assert capsys.readouterr().out.count("planted ") == 1
    assert bug_command(["hint", "24"]) == 0 and bug_command(["reveal", "24"]) == 0
    said = capsys.readouterr().out
    assert "models/language_model.py" in said and "+         p = ops.softmax(" in said
    assert re.search(r"loss of step   50 +6\.\d{3} +3\.\d{3}\n", said) and "validation loss" in said
    with pytest.raises(UserError, match="24: is planted already"):
        bug_command(["plant", "24"])
    assert bug_command(["remove", "24"]) == 0
    assert "these stay, they are yours: data, models, run, trained_weights.bin" in capsys.readouterr().out
    assert [path.name for path in (copy / "models").iterdir()] == ["block.py"]
    with pytest.raises(UserError, match="24: exists and is not a copy with a bug"):
        bug_command(["plant", "24"])
    assert bug_command(["plant"]) == 0
    assert len(list((tmp_path / "bugs").iterdir())) == 2
    capsys.readouterr()
    assert bug_command(["list", "02", "2"]) == 0
    assert capsys.readouterr().out.count("Nothing is visible in the curve") == 1


PROPERTIES_OF = {patch.name: re.findall(r"tinygrad2 verify (\w+)", patch.means) for patch in BUGS.values()}
VERIFIED = [name for name, properties in PROPERTIES_OF.items() if properties]


@pytest.mark.parametrize("name", slow_but(VERIFIED[:1], VERIFIED))
def test_verify_finds_the_bugs_whose_hint_says_so(name, tmp_path):
    copy = plant(BUGS[name], str(tmp_path))
    flags = "--n-layer 1 --n-embd 16 --n-head 2 --block-size 8 --batch-size 4".split()
    result = python(copy, "-m", "tinygrad2", "verify", *PROPERTIES_OF[name], *flags)
    assert result.returncode == 1 and " FAIL " in result.stdout, result.stdout + result.stderr


EXPLAINED = [name for name, patch in BUGS.items() if "explain" in patch.means]


@pytest.mark.parametrize("name", slow_but(("residual_dropped",), EXPLAINED))
def test_explain_runs_with_the_bugs_whose_hint_says_so(name, tmp_path):
    copy = plant(BUGS[name], str(tmp_path))
    flags = "--steps 1 --n-layer 1 --n-embd 16 --n-head 2 --block-size 8 --batch-size 2 --sample-tokens 0".split()
    assert python(copy, "train_gpt2.py", *flags).returncode == 0
    step = ["--step"] if "explain --step" in BUGS[name].means else []
    result = python(copy, "-m", "tinygrad2", "explain", "--prompt", "Tom had", *step)
    assert result.returncode == 0, result.stderr


def test_a_copy_that_nobody_touched_is_removed_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bug_command(["plant", "3", "--folder", "my bugs é"])
    files = {path.relative_to(tmp_path / "my bugs é" / "03").as_posix() for path in tmp_path.rglob("*.py")}
    assert {"train_gpt2.py", "inference.py", "ops/attention.py", "models/gpt.py"} <= files
    note = json.loads((tmp_path / "my bugs é" / "03" / "bug.json").read_text())
    assert files <= set(note["files"]) and "softmax" not in note
    bug_command(["remove", "3", "--folder", "my bugs é"])
    assert list((tmp_path / "my bugs é").iterdir()) == []


@pytest.mark.parametrize(
    "words, says",
    [
        (["plant", "31"], "there is no bug '31'; choose a number from 1 to 30"),
        (["reveal", "x"], "there is no bug 'x'"),
        (["hint"], "bug hint: give the NUMBER of a bug, 1 to 30"),
        (["remove", "5"], "05: no bug is planted there"),
        (["plant", "5", "--folder", ""], "--folder: the path is empty"),
    ],
)
def test_other_words_are_refused_in_a_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as error:
        bug_command(words)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# -- signatures -------------------------------------------------------------------------------------------------------

REFERENCE = load_curves("demo")["losses"]
CLEAR = [name for name, curve in recorded().items() if looks_like(curve, REFERENCE)]


def like_seed(curve, seed):
    """A curve with the deviations of another seed: those of a reference run from the mean of all five."""
    mean = np.exp(np.mean([np.log(losses[: len(curve)]) for losses in REFERENCE.values()], axis=0))
    return (np.array(curve) * np.array(REFERENCE[seed][: len(curve)]) / mean).tolist()


def test_the_recorded_curves_are_of_the_bugs():
    assert set(recorded()) <= set(BUGS)
    assert all(len(curve) <= curves()["first"] == 150 for curve in recorded().values())
    assert distance(curves()["curves"]["none"]["losses"], REFERENCE["1"]) < 0.02
    for patch in BUGS.values():
        assert curves()["curves"][patch.name]["flags"] == patch.flags
    assert {"labels_not_shifted", "double_softmax", "mask_off_by_one", "same_batch", "weights_too_large"} <= set(CLEAR)


@pytest.mark.parametrize("name", recorded())
def test_what_is_said_of_a_curve_is_true_of_the_recorded_one(name):
    """Nearly normal: within 15 % of the reference after the warmup, and at most 1 % outside its band."""
    band, curve, said = band_of(REFERENCE), smooth(recorded()[name], WIDTH), BUGS[name].report
    n = len(curve)
    low, mean, high = (np.array(values[:n]) for values in (band.low, band.mean, band.high))
    if "nearly normal" in said and "afterwards" not in said:
        assert (curve <= high * 1.01).all() and (curve >= low * 0.99).all()
        assert np.abs(np.log(curve / mean))[20:].max() < 0.15
    if "are those of the reference" in said or "Nothing is visible" in said:
        assert np.abs(np.log(curve / np.array(smooth(curves()["curves"]["none"]["losses"], WIDTH)))).max() < 0.02
    if "above the reference" in said:
        assert (curve > mean)[-100:].all() and first_outside(recorded()[name], band)
    if "below that of every reference" in said or "faster than that of every reference" in said:
        assert (curve < low).any() and not (curve > high).any()
    if "slower than the reference" in said or "slowly than the reference" in said:
        assert (curve > mean)[-50:].all() and first_outside(recorded()[name], band)


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("seed", REFERENCE)
def test_a_curve_is_named_with_every_seed(name, seed):
    assert name in [patch.name for patch, _, _ in looks_like(like_seed(recorded()[name], seed), REFERENCE)]


@pytest.mark.parametrize("seed", REFERENCE)
def test_no_healthy_run_is_named(seed):
    others = {key: losses for key, losses in REFERENCE.items() if key != seed}
    for n in (50, 100, 150, 1000):
        assert looks_like(REFERENCE[seed][:n], others) == [] == looks_like(REFERENCE[seed][:n], REFERENCE)


def test_what_is_like_no_bug_is_not_named():
    mean = np.mean(list(REFERENCE.values()), axis=0)
    later = np.where(np.arange(1000) > 100, mean * 9, mean)
    for strange in (mean * 2, mean * 0.8, mean[::-1], np.full(200, 3.0), later):
        assert looks_like(strange.tolist(), REFERENCE) == []
    assert looks_like(recorded()["labels_not_shifted"][:40], REFERENCE) == []  # too short
    assert looks_like([math.nan] * 200, REFERENCE) == looks_like([0.0] * 200, REFERENCE) == []


def test_compare_names_the_bug(tmp_path, capsys):
    config = load_curves("demo")["config"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"preset": "demo"}))
    for name, says in (("labels_not_shifted", "looks like labels that are not shifted"), ("none", "inside the band")):
        losses = REFERENCE["2"] if name == "none" else recorded()[name]
        lines = [json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(losses)]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        assert compare_command([str(tmp_path)]) == (name != "none")
        said = capsys.readouterr().out
        assert says in said and said.count("looks like") == (name != "none")
