"""explain: every number of the page is the engine's own, and the page is one file that works in a browser."""

import base64
import html.parser
import importlib
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import types
from dataclasses import replace

import numpy as np
import pytest
from test_memory import kept_bytes

import ops
import train_gpt2
from models import GPT, GPTConfig
from models.families import PRESETS, make_config, make_model
from models.pretrained import load_pretrained
from tinygrad2.cli import call
from tinygrad2.commands import explain
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.world import World
from tinygrad2.explain import numeric
from tinygrad2.explain import page as pages
from tinygrad2.explain import pulls as pulls_module
from tinygrad2.explain.forward import Forward, attention_of, choose_layers, page_of_forward, softmax, wrong_weights
from tinygrad2.explain.maps import gradient_map, gradient_maps
from tinygrad2.explain.memory import Buffer, MemoryObserver, first_fit, page_of_memory
from tinygrad2.explain.numeric import choose_elements, largest_difference, measure, samples
from tinygrad2.explain.pulls import StreamObserver, choose_targets, pulls
from tinygrad2.explain.recorder import Recorder
from tinygrad2.explain.step import Moments, Step, derivation, page_of_step, token_norms
from tinygrad2.explain.text import fractions, rounded, signed_bytes, token_text
from tinygrad2.function import observe
from tinygrad2.io.weights import read_tensors, save_weights
from tinygrad2.system.threads import POOL
from tinygrad2.tokenizers.tokenizer import Tokenizer
from tinygrad2.training.memory_plan import MemoryPlan

ROOT = pathlib.Path(__file__).parents[1]
TEXT = "the cat sat on the mat and the rat sat on the cat, and that was that. "
TOKENIZER = Tokenizer.train(TEXT * 3, 300)
SIZES = dict(block_size=64, vocab_size=TOKENIZER.n_vocab, n_layer=2, n_head=4, n_embd=32)
PROMPT = "the cat sat on the rat."
CHECKPOINTS = {
    "usual": {},
    "no biases": {"bias": False},
    "own head": {"tied_head": False},
    "exact gelu, narrow MLP": {"activation": "gelu_erf", "n_inner": 24},
    "one layer, one head": {"n_layer": 1, "n_head": 1},
    "dropout": {"dropout": 0.2},
    "more rows than tokens": {"vocab_size": 320},
}


def small_gpt(**changes):
    """A GPT whose weights are large enough that it computes something that is not uniform."""
    model = GPT(GPTConfig(**{**SIZES, **changes}), seed=3)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * rng.standard_normal(parameter.shape, dtype=np.float32)
    return model.eval()


def save(path, **changes):
    model = small_gpt(**changes)
    save_weights(str(path), model.state_dict(), model.config.to_dict(), TOKENIZER.to_json(), {})
    return model


def data_of(path):
    return json.loads(re.search(r"^const DATA = (.*);$", path.read_text(encoding="utf-8"), re.MULTILINE)[1])


def run(*words):
    return call(lambda: explain.main(list(words)), "explain")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def forward():
    return Forward(small_gpt(), [TOKENIZER.eot, *TOKENIZER.encode(PROMPT)], [0, 1])


# -- the numbers of a forward pass -------------------------------------------------------------------------------------


def test_rows_of_attention_sum_to_one_and_give_what_the_op_returned(forward):
    assert sorted(forward.attention) == [0, 1]
    for one in forward.attention.values():
        nh, T = one.weights.shape[:2]
        assert (nh, T) == (4, len(forward.tokens)) and one.error < 1e-5
        assert one.weights.sum(-1) == pytest.approx(np.ones((nh, T)), abs=1e-5)
        assert not np.triu(one.weights, 1).any()
        assert np.ptp(one.weights[:, -1]) > 0.05  # and they are not merely uniform


def test_attention_of_another_q_is_noticed(forward):
    recorder = Recorder(forward.model, ["attention"])
    with observe(recorder):
        forward.model(forward.tokens[None])
    use = recorder.one("attention", "h.0.attn.head")
    assert attention_of(use).error < 1e-5
    use.inputs[0] = 1.1 * use.inputs[0]
    assert attention_of(use).error > 1e-3
    with pytest.raises(LookupError, match="attention ran 0 times in h.7"):
        recorder.one("attention", "h.7")


def test_the_stream_is_the_sum_of_what_is_added_to_it(forward):
    x = forward.tokens_part + forward.positions_part
    weights = {name: parameter.data for name, parameter in forward.model.named_parameters()}
    assert np.array_equal(forward.tokens_part, weights["wte.weight"][forward.tokens])
    assert np.array_equal(forward.positions_part, weights["wpe.weight"][: len(x)])
    for block in forward.blocks:
        assert block.before == pytest.approx(x, abs=1e-6)
        x = x + block.attn + block.mlp
        assert block.after == pytest.approx(x, abs=1e-5)


def test_probabilities_sum_to_one_and_the_last_layer_says_what_the_model_says(forward):
    assert forward.probabilities.sum(-1) == pytest.approx(np.ones(len(forward.tokens)), abs=1e-12)
    assert np.array_equal(forward.logits, forward.model(forward.tokens[None])[0].numpy()[0])
    layers = list(forward.lens())
    assert len(layers) == 3 and layers[-1] == pytest.approx(forward.probabilities, abs=1e-6)
    assert np.abs(layers[0] - forward.probabilities).max() > 0.1
    assert all(layer.sum(-1) == pytest.approx(np.ones(len(forward.tokens))) for layer in layers)


def test_the_page_has_these_numbers(forward):
    page = page_of_forward(forward)
    T = len(forward.tokens)
    for t, row in enumerate(page["top"]):
        assert row["ids"] == np.argsort(-forward.probabilities[t])[:10].tolist()
        assert row["p"] == pytest.approx(np.sort(forward.probabilities[t])[::-1][:10], rel=1e-3)
        assert sum(row["p"]) + row["rest"] == pytest.approx(1, abs=1e-3)
    right = [forward.probabilities[t, forward.tokens[t + 1]] for t in range(T - 1)]
    assert page["next"] == pytest.approx(right, rel=1e-3)
    for shown, block in zip(page["blocks"], forward.blocks, strict=True):
        for name in ("before", "attn", "mlp", "after"):
            assert shown[name] == pytest.approx(np.linalg.norm(getattr(block, name), axis=-1), rel=1e-3)
    for shown, (layer, one) in zip(page["attention"], forward.attention.items(), strict=True):
        assert shown["layer"] == layer and shown["error"] == pytest.approx(one.error, rel=0.06)
        for head, weights in zip(shown["weights"], one.weights, strict=True):
            values = np.frombuffer(base64.b64decode(head), "<u2") / 65535
            for t in range(T):
                row = values[t * (t + 1) // 2 : (t + 1) * (t + 2) // 2]
                assert row == pytest.approx(weights[t, : t + 1], abs=1e-5)
                assert row.sum() == pytest.approx(1, abs=T / 65535)
    for rows, layer in zip(page["lens"], forward.lens(), strict=True):
        for row, probabilities in zip(rows, layer, strict=True):
            assert row["ids"] == np.argsort(-probabilities)[:5].tolist()
            assert row["p"] == pytest.approx(probabilities[row["ids"]], rel=1e-3)
            assert row["rest"] == pytest.approx(1 - probabilities[row["ids"]].sum(), rel=1e-3, abs=1e-9)
    wte, wpe = (module.weight.data for module in (forward.model.wte, forward.model.wpe))
    parts = {"token": wte[forward.tokens], "position": wpe[:T], "sum": wte[forward.tokens] + wpe[:T]}
    for name, rows in parts.items():
        shown = page["embedding"][name]
        values = np.frombuffer(base64.b64decode(shown["values"]), np.int8).reshape(T, -1) / 127
        scale = np.abs(rows).max(-1, keepdims=True)
        assert shown["scale"] == pytest.approx(scale[:, 0], rel=1e-3)
        assert (np.abs(values * scale - rows) <= scale / 253).all() and values.shape == rows.shape
        assert shown["norm"] == pytest.approx(np.linalg.norm(rows, axis=-1), rel=1e-3)
    assert page["channels"] == [32, 32]
    assert [len(rows) for rows in page["lens"]] == [T] * 3


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_every_kind_of_model_is_explained(kind, here, capsys):
    model = save(here / "w.bin", **CHECKPOINTS[kind])
    assert run("--weights", "w.bin", "--prompt", PROMPT) == 0, capsys.readouterr().err
    data = data_of(here / "explain.html")
    expected = softmax(model(np.array([data["tokens"]]))[0].numpy()[0, -1])
    assert data["tokens"] == [TOKENIZER.eot, *TOKENIZER.encode(PROMPT)]
    last = data["top"][-1]
    assert last["ids"][0] == expected.argmax() and last["p"][0] == pytest.approx(expected.max(), rel=1e-3)
    assert all(one["error"] < 1e-5 for one in data["attention"])


def test_numbers_that_are_not_finite_are_none():
    assert rounded([1.23456, np.nan, -np.inf, 0, 1e-30]) == [1.235, None, None, 0.0, 1e-30]
    assert base64.b64decode(fractions([0, 0.5, 1, 2])) == bytes([0, 0, 0, 128, 255, 255, 255, 255])
    row = signed_bytes(np.array([[1.0, -2.0, np.nan], [0, 0, 0]]))
    assert row["scale"] == [2.0, 0.0] and list(base64.b64decode(row["values"])) == [64, 256 - 127, 0, 0, 0, 0]


def test_a_large_model_shows_some_layers():
    gpt2 = GPTConfig.preset("gpt2")
    assert choose_layers(gpt2, 10) == list(range(12))
    assert choose_layers(gpt2, 128) == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
    assert choose_layers(gpt2, 256) == [0, 11]
    assert choose_layers(GPTConfig.preset("gpt2", n_head=768), 256) == [0]


# -- the numbers of a step ---------------------------------------------------------------------------------------------

OPTIMIZER = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "grad_clip": 1.0}


@pytest.fixture(scope="module")
def tokens():
    return [TOKENIZER.eot, *TOKENIZER.encode(PROMPT)]


@pytest.fixture(scope="module")
def step(tokens):
    return Step(small_gpt(), tokens, OPTIMIZER)


@pytest.fixture(scope="module")
def trained(tokens):
    """The same model after an ordinary backward pass."""
    model = small_gpt()
    model.loss(np.array([tokens[:-1]]), np.array([tokens[1:]])).backward()
    return model


def test_the_losses_average_to_the_loss(step):
    assert step.losses.mean() == pytest.approx(step.loss, rel=1e-6) and np.ptp(step.losses) > 0.5


def test_gradient_norms_are_those_of_grad(step, trained):
    sizes = {}
    for name, parameter in trained.named_parameters():
        sizes[name] = np.linalg.norm(parameter.grad.astype(np.float64))
        assert np.array_equal(step.grads[name], parameter.grad), name
    assert {update.name: update.grad for update in step.updates} == pytest.approx(sizes, rel=1e-6)
    assert step.norm == pytest.approx(np.linalg.norm(list(sizes.values())), rel=1e-5)
    largest = {update.name: update.largest for update in step.updates}
    assert largest["wpe.weight"] == np.abs(step.grads["wpe.weight"]).max()
    unused = SIZES["block_size"] - len(step.losses)               # positions that the text does not reach
    assert {update.name: update.zeros for update in step.updates}["wpe.weight"] == unused * SIZES["n_embd"]


def test_the_gradient_of_each_token_is_that_of_its_tensor(step):
    """A position occurs once, so the row of wpe's gradient is the gradient at that token."""
    (add,) = [node for node in step.nodes if (node.op, node.layer) == ("add", "")]
    rows = step.grads["wpe.weight"][: len(step.losses)].astype(np.float64)
    assert add.outputs[0].grad_of_token == pytest.approx(np.linalg.norm(rows, axis=1), rel=1e-6)
    for node in step.nodes:
        for output in node.outputs:
            if output.grad_of_token:
                assert np.linalg.norm(output.grad_of_token) == pytest.approx(output.grad, rel=1e-6)
    assert token_norms(np.ones((1, 2, 3, 5)), 3) == pytest.approx([10**0.5] * 3)
    assert token_norms(np.ones((4, 5)), 4) == pytest.approx([5**0.5] * 4)
    assert token_norms(np.ones(()), 1) is None and token_norms(np.ones((2, 3, 4)), 3) is None


def test_the_graph_names_what_went_into_each_op(step):
    ops = [(node.layer, node.op) for node in step.nodes]
    assert ops[:3] == [("wte", "embedding"), ("wpe", "embedding"), ("", "add")]
    assert ops[-1] == ("", "linear_cross_entropy") and len(ops) == 3 + 2 * 9 + 2
    assert step.nodes[0].inputs[0] == ("weight", (SIZES["vocab_size"], 32), "wte.weight")
    assert step.nodes[2].inputs == [("a", (1, 8, 32), (0, 0)), ("b", (8, 32), (1, 0))]
    last = {source for _, _, source in step.nodes[-1].inputs}
    assert last == {(len(ops) - 2, 0), "wte.weight", None}
    assert step.nodes[-1].outputs[0].grad == 1
    assert "softmax(s)" in derivation("attention") and "\n\nBackward" in derivation("attention")


def test_the_update_is_the_first_step_of_adam_and_the_weights_stay(step, trained):
    lr, decay, eps = OPTIMIZER["lr"], OPTIMIZER["weight_decay"], 1e-8
    scale = min(1, 1 / (step.norm + 1e-6))
    assert scale < 1 and step.scale == pytest.approx(scale, rel=1e-6)
    for update, (name, parameter) in zip(step.updates, trained.named_parameters(), strict=True):
        g = scale * parameter.grad.astype(np.float64)
        expected = lr * (g / (np.abs(g) + eps) + (decay if parameter.ndim > 1 else 0) * parameter.data)
        assert update.name == name and update.update == pytest.approx(np.linalg.norm(expected), rel=1e-3)
        assert update.ratio == pytest.approx(update.update / np.linalg.norm(parameter.data), rel=1e-6)
        assert np.array_equal(dict(step.model.named_parameters())[name].data, parameter.data)


def test_each_target_pulls_as_its_own_loss_does(step, tokens):
    T = len(tokens) - 1
    found = pulls(step.model, step.x, step.y, [0, 3, T - 1])
    assert list(found) == ["", "h.0", "h.1"]
    for row, s in enumerate((0, 3, T - 1)):
        model = small_gpt()
        masked = np.where(np.arange(T) == s, step.y, -1)          # another way: this target alone, one text
        observer = StreamObserver(model)
        with observe(observer):
            model.loss(step.x, masked).backward()
        for layer, norms in found.items():
            assert norms[row] == pytest.approx(observer.norms[layer][0] / T, rel=1e-4, abs=1e-9)
            assert not norms[row, s + 1 :].any() and norms[row, s] > 0
        rows = np.linalg.norm(model.wpe.weight.grad[:T].astype(np.float64), axis=1) / T
        assert found[""][row] == pytest.approx(rows, rel=1e-4, abs=1e-9)
    assert all(parameter.requires_grad for parameter in step.model.parameters())


def test_the_parts_of_all_targets_are_in_several_batches_the_same(step, monkeypatch):
    targets = list(range(len(step.losses)))
    whole = pulls(step.model, step.x, step.y, targets)
    monkeypatch.setattr(pulls_module, "_TOKENS", 3 * len(targets))
    for layer, norms in pulls(step.model, step.x, step.y, targets).items():
        assert norms.shape == (len(targets),) * 2 and norms == pytest.approx(whole[layer], rel=1e-4, abs=1e-9)


def test_samples_of_large_models():
    gpt2, demo = GPTConfig.preset("gpt2"), GPTConfig.preset("demo")
    assert choose_targets(demo, 128) == list(range(128)) and choose_targets(demo, 1) == [0]
    few = choose_targets(gpt2, 60)
    assert 10 < len(few) < 30 and few[-1] == 59 and len(set(np.diff(few))) <= 2
    grads = {f"w{i}": np.arange(12.0).reshape(3, 4) for i in range(148)}
    sample = choose_elements(gpt2, grads, 60)
    assert list(sample) == [f"w{148 * i // 6}" for i in range(6)] and sample["w0"] == [(2, 3)]
    full = choose_elements(demo, grads | {"zero": np.zeros(2)}, 1)
    assert len(full) == 149 and set(full["zero"]) <= {(0,), (1,)} and full["zero"][0] == (0,)
    for indices in list(full.values())[:-1]:                      # the largest, others, and the only one that is 0
        assert indices[0] == (2, 3) and indices[-1] == (0, 0) and len(set(indices)) == len(indices) == 8


def test_measured_gradients_are_those_of_backward(step):
    before = [parameter.data for parameter in step.model.parameters()]
    values = [array.copy() for array in before]
    chosen = choose_elements(step.model.config, step.grads, len(step.losses))
    measured = measure(step.model, step.x, step.y, chosen)
    assert list(chosen) == list(step.grads) and sum(map(len, chosen.values())) > 50
    for name, indices in chosen.items():
        for index, slope in zip(indices, measured[name], strict=True):
            assert slope == pytest.approx(step.grads[name][index], rel=1e-3, abs=1e-5), (name, index)
    rows = samples(step.model, step.grads, chosen, measured)
    assert largest_difference(rows) < 1e-2
    wrong = measured | {"ln_f.bias": [1.5 * slope for slope in measured["ln_f.bias"]]}
    rows = samples(step.model, step.grads, chosen, wrong)         # a gradient that is wrong is noticed
    assert largest_difference(rows) == pytest.approx(1 / 3, rel=1e-2)
    close = {name: [float(grads[index]) * (1 + 1e-8) for index in chosen[name]] for name, grads in step.grads.items()}
    assert largest_difference(samples(step.model, step.grads, chosen, close)) == pytest.approx(1e-8, rel=0.01)
    for parameter, array, value in zip(step.model.parameters(), before, values):
        assert parameter.data is array and np.array_equal(array, value)


def test_what_the_page_says_of_a_step(step):
    """Against the Step, whose numbers the tests above compare with independent ones."""
    page = page_of_step(step)
    assert page["targets"] == step.y[0].tolist() and page["loss"] == step.loss
    assert page["losses"] == pytest.approx(step.losses, rel=1e-4)
    assert (page["norm"], page["scale"]) == pytest.approx((step.norm, step.scale), rel=1e-3)
    for shown, update in zip(page["updates"], step.updates, strict=True):
        assert shown["name"] == update.name and shown["shape"] == update.shape and shown["zeros"] == update.zeros
        for key in ("weight", "grad", "largest", "update", "ratio"):
            assert shown[key] == pytest.approx(getattr(update, key), rel=1e-3), (update.name, key)
    for shown, node in zip(page["nodes"], step.nodes, strict=True):
        for out, output in zip(shown["outputs"], node.outputs, strict=True):
            assert (out["norm"], out["grad"]) == pytest.approx((output.norm, output.grad), rel=1e-3)
            tokens = output.grad_of_token
            assert out["tokens"] == (tokens and pytest.approx(tokens, rel=6e-3))


def test_norms_of_the_graph(step):
    """Values are those that a forward pass computes; gradients obey what the ops do to them."""
    recorder = Recorder(step.model, {node.op for node in step.nodes})
    with observe(recorder):
        step.model.loss(step.x, step.y)
    assert [use.op for use in recorder.uses] == [node.op for node in step.nodes]
    for use, node in zip(recorder.uses, step.nodes):
        values = [np.linalg.norm(result.astype(np.float64).ravel()) for result in use.results]
        assert [output.norm for output in node.outputs] == pytest.approx(values, rel=1e-5)
    grads = {(node.layer, node.op): [output.grad for output in node.outputs] for node in step.nodes}
    assert grads["wte", "embedding"] == grads["wpe", "embedding"] == pytest.approx(grads["", "add"])
    for i in range(2):
        attn = f"h.{i}.attn"
        assert grads[attn, "merge_heads"] == pytest.approx(grads[f"{attn}.head", "attention"], rel=1e-6)
        (whole,) = grads[f"{attn}.c_attn", "linear"]
        assert whole == pytest.approx(np.linalg.norm(grads[attn, "split_heads"]), rel=1e-6)
        assert grads[f"h.{i}.mlp", "mlp"] == pytest.approx(grads[f"h.{i}", "add"], rel=1e-6)


def test_pictures_of_gradients_show_no_zero_where_there_is_none(step):
    rng = np.random.default_rng(2)
    odd = rng.standard_normal((150, 300)).astype(np.float32) * 10.0 ** rng.uniform(-30, 0, (150, 1)).astype(np.float32)
    odd[:7, :9] = 0
    for name, grad in (step.grads | {"odd": odd, "scalar": np.float32(2.0), "zero": np.zeros(5, np.float32)}).items():
        picture = gradient_map(grad)
        R, C = picture["matrix"]
        rows, columns = picture["block"]
        values = np.frombuffer(base64.b64decode(picture["values"]), np.int8).reshape(-(-R // rows), -(-C // columns))
        assert R * C == np.size(grad) and values.shape[0] <= 64 and values.shape[1] <= 128
        matrix, top = np.reshape(grad, (R, C)).astype(np.float64), np.abs(grad).max()
        for r, c in np.ndindex(values.shape):
            block = matrix[r * rows : (r + 1) * rows, c * columns : (c + 1) * columns]
            largest = block.ravel()[np.abs(block).argmax()]
            assert np.sign(values[r, c]) == np.sign(largest), (name, r, c)
            if abs(values[r, c]) > 1:
                assert top * 10 ** (4 * (abs(values[r, c]) / 127 - 1)) == pytest.approx(abs(largest), rel=0.04)
            else:
                assert abs(largest) <= 1.12e-4 * top
    many = gradient_maps({str(i): odd for i in range(600)})
    assert sum(len(one["values"]) for one in many.values()) < 600_000


def test_small_products_are_measured_on_one_thread(step, monkeypatch):
    gemm = pytest.importorskip("ops.kernels.cpu.blas_gemm")
    if gemm.vendor != "OpenBLAS":
        pytest.skip("this BLAS cannot be told how many threads to use")
    threads, before = [], POOL.threads
    monkeypatch.setattr(gemm._switch, "set_threads", threads.append)
    try:
        POOL.resize(2)
        measure(step.model, step.x, step.y, {"ln_f.bias": [(0,)]})
        assert set(threads) == {1, 2} and threads[-1] == 2        # and afterwards it is as it was
        threads.clear()
        monkeypatch.setattr(numeric, "_SMALL", 0)
        measure(step.model, step.x, step.y, {"ln_f.bias": [(0,)]})
        assert threads == []
    finally:
        POOL.resize(before)


# -- the step of a run -------------------------------------------------------------------------------------------------

FLAGS = ["--n-head", "1", "--n-embd", "16", "--n-layer", "1", "--block-size", "16", "--vocab-size", "280",
         "--steps", "6", "--batch-size", "4", "--sample-tokens", "2", "--checkpoint-every", "3", "--lr", "0.01",
         "--warmup-steps", "2", "--data", "text.txt", "--eval-every", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A folder with trained_weights.bin and run/, whose checkpoints are of steps 3 and 6."""
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    (folder / "text.txt").write_text(TEXT * 40)
    os.chdir(folder)
    try:
        assert train_gpt2.main(World(), FLAGS) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("weights, step, lr", [
    ("run", 6, None), ("run/checkpoints/step_00000003", 3, None), ("run/checkpoints/step_00000006/weights.bin", 6, 0.5),
    ("trained_weights.bin", 6, None),
])  # fmt: skip
def test_the_step_of_a_run_has_its_moments_and_learning_rate(weights, step, lr, trained_run, here, capsys):
    words = ["--weights", str(trained_run / weights), "--prompt", "the cat", "--step"]
    assert run(*words, *(["--lr", str(lr)] if lr else [])) == 0, capsys.readouterr().err
    data = data_of(here / "explain_step.html")
    folder = trained_run / "run" / "checkpoints" / f"step_{step:08d}"
    assert data["optimizer"]["run"] == {"path": str(folder), "step": step, "t": step, "scheduled": not lr, "frozen": 0}
    assert f"Adam's after {step} steps, from {folder}" in capsys.readouterr().out
    rate = lr or {3: 0.001 + 0.0045 * (1 + math.cos(math.pi / 4)), 6: 0.001}[step]         # after 2 of warmup: cosine
    assert data["optimizer"]["lr"] == pytest.approx(rate, rel=1e-6)
    moments, _ = read_tensors(str(folder / "optimizer.bin"), ("t",))
    model, _, _ = load_pretrained(folder / "weights.bin")
    tokens = np.array([data["tokens"]])
    model.loss(tokens, np.array([data["targets"]])).backward()
    g = {name: parameter.grad.astype(np.float64) for name, parameter in model.named_parameters()}
    scale = min(1, 1 / (np.linalg.norm([np.linalg.norm(grad) for grad in g.values()]) + 1e-6))
    for shown, (name, parameter) in zip(data["updates"], model.named_parameters(), strict=True):
        m, v = (moments[f"{letter}.{name}"].astype(np.float64).reshape(parameter.shape) for letter in "mv")
        assert np.any(m)
        m, v = 0.9 * m + 0.1 * scale * g[name], 0.99 * v + 0.01 * (scale * g[name]) ** 2
        update = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.99 ** (step + 1))) + 1e-8)
        update = rate * (update + (0.1 if parameter.ndim > 1 else 0) * parameter.data)
        assert shown["update"] == pytest.approx(np.linalg.norm(update), rel=2e-3), name
        assert shown["ratio"] == pytest.approx(shown["update"] / shown["weight"], rel=2e-3) or not shown["weight"]


def test_weights_that_are_not_of_the_run_beside_them_get_a_new_adam(trained_run, here, capsys):
    shutil.copytree(trained_run / "run", "run")
    model, tokenizer, pretrained = load_pretrained(trained_run / "trained_weights.bin")
    for shift in (0, 1e-3):
        model.ln_f.bias.data += np.float32(shift)
        save_weights("w.bin", model.state_dict(), model.config.to_dict(), tokenizer.to_json(), pretrained.training)
        assert run("--weights", "w.bin", "--prompt", "the cat", "--step") == 0
        assert (data_of(here / "explain_step.html")["optimizer"]["run"] is None) == bool(shift)
    assert "zero: the first step of a new Adam" in capsys.readouterr().out
    assert run("--weights", "run", "--prompt", "the cat") == 0    # a forward pass as well
    shutil.rmtree("run/checkpoints/step_00000003")
    path = here / "run" / "checkpoints" / "step_00000006" / "optimizer.bin"
    path.write_bytes(path.read_bytes()[:-1])
    for weights in ("run/checkpoints/step_00000006", "run"):
        assert run("--weights", weights, "--prompt", "the cat", "--step") == 2
        assert "damaged checkpoint" in capsys.readouterr().err
    shutil.rmtree("run/checkpoints/step_00000006")
    assert run("--weights", "run", "--prompt", "the cat") == 2
    assert "run: is the folder of a run that has no checkpoint yet" in capsys.readouterr().err


def test_frozen_parameters_do_not_move(tokens, trained):
    values = {f"{letter}.{name}": np.ones(parameter.size) for name, parameter in trained.named_parameters()
              for letter in "mv"}  # fmt: skip
    step = Step(small_gpt(), tokens, OPTIMIZER, Moments(values, 5, {"wte.weight": 2}, ["wte.weight", "ln_f.bias"]))
    assert {update.name for update in step.updates if update.update == 0} == {"wte.weight", "ln_f.bias"}
    assert all(update.grad > 0 for update in step.updates) and step.flat.frozen == []


@pytest.mark.parametrize("family", ["bigram", "mlp", "head"])
def test_a_step_of_the_smaller_models(family, here, capsys):
    values = dict(PRESETS[family], vocab_size=TOKENIZER.n_vocab)
    values.pop("family")
    model = make_model(make_config(family, **values), seed=3)
    save_weights("w.bin", model.state_dict(), model.config.to_dict(), TOKENIZER.to_json(), {})
    assert run("--weights", "w.bin", "--prompt", PROMPT, "--step") == 0, capsys.readouterr().err
    data = data_of(here / "explain_step.html")
    assert np.mean(data["losses"]) == pytest.approx(data["loss"], rel=1e-4) and "pulls" not in data
    assert sorted(data["samples"]) == sorted(name for name, _ in model.named_parameters())
    for sample in sum(data["samples"].values(), []):
        assert sample["numeric"] == pytest.approx(sample["grad"], rel=1e-3, abs=1e-6)
    assert run("--weights", "w.bin", "--prompt", PROMPT) == 2
    assert "give a GPT, or --step, which takes any model" in capsys.readouterr().err


# -- the memory of a step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_memory_is_what_the_graph_keeps_and_what_was_planned(mode, tokens):
    T = len(tokens) - 1
    with kernels(mode):
        step = Step(small_gpt(n_layer=3), tokens, OPTIMIZER)
        model = small_gpt(n_layer=3)
        loss = model.loss(np.array([tokens[:-1]]), np.array([tokens[1:]]))
        expected = kept_bytes(loss, model)
    memory = step.memory
    assert sum(buffer.nbytes for buffer in memory.kept()) == pytest.approx(expected, abs=64)
    plan = MemoryPlan(step.model.config, 1, T, reference=ops.runs_reference(mode), base=0)
    planned = sum(plan.layer.values())
    assert [memory.kept_by(f"h.{i}") for i in range(3)] == pytest.approx([planned] * 3, rel=0.02)
    page = page_of_memory(memory, {"parts": plan.parts, "layer": plan.layer}, step.fixed)
    for what, planned, fact in page["beside"]:
        if what.startswith("logits"):
            assert planned <= fact <= 2 * planned + 4096          # kept memory is taken that may be larger
        else:
            assert fact == pytest.approx(planned, rel=0.2), what
    assert [what for what, _, _ in page["beside"]][3:6] == ["activations kept for backward", "of them in layer 0",
                                                            "of them in layer 2"]  # fmt: skip


def test_what_an_op_keeps_dies_after_its_backward(step):
    events, buffers = step.memory.events, step.memory.buffers
    n = step.memory.forward_ends + 1
    assert len(events) == 2 * n and [event.phase for event in events] == ["forward"] * n + ["backward"] * n
    backward = {(event.op, event.layer): i for i, event in enumerate(events) if event.phase == "backward"}
    for buffer in buffers:
        for keeper in buffer.keepers:
            event = events[keeper]
            assert buffer.dies is None or buffer.dies >= backward[event.op, event.layer], buffer
        if buffer.dies is None:                                   # work space, ids, a loss of four bytes
            assert buffer.leased or buffer.what == "input" or buffer.nbytes <= 8
        elif buffer.what == "result" and not buffer.keepers and buffer.nbytes > 8:
            assert buffer.dies < n, buffer
    end = sum(buffer.nbytes for buffer in buffers if buffer.dies is None)
    assert max(step.memory.alive()) > 3 * end and step.memory.alive()[-1] >= end


def test_an_array_that_somebody_holds_does_not_die(no_collector):
    held = []

    class Holder(MemoryObserver):
        def after_forward(self, node, arrays, results):
            super().after_forward(node, arrays, results)
            if node.name == "mlp":
                held.append(results[0])

    model = small_gpt(n_layer=1)
    with observe(Holder(model, [])) as holder:
        model.loss(np.array([[1, 2, 3]]), np.array([[2, 3, 4]])).backward()
    (mlp,) = [i for i, event in enumerate(holder.events) if (event.op, event.phase) == ("mlp", "forward")]
    (buffer,) = [one for one in holder.buffers if one.made == mlp and one.what == "result"]
    assert buffer.dies is None and not buffer.keepers
    held.clear()
    assert buffer.dies == len(holder.events) - 1


def test_bands_do_not_lie_on_each_other(step):
    rng = np.random.default_rng(5)
    several = [Buffer(int(size), "", int(made), [], int(made + length)) for size, made, length in
               zip(rng.integers(1, 50, 60), rng.integers(0, 30, 60), rng.integers(0, 20, 60))]  # fmt: skip
    for buffers in (step.memory.buffers, several):
        offsets = first_fit(buffers, 50)
        for i, a in enumerate(buffers):
            for j, b in enumerate(buffers[:i]):
                if a.made <= (50 if b.dies is None else b.dies) and b.made <= (50 if a.dies is None else a.dies):
                    assert offsets[i] + a.nbytes <= offsets[j] or offsets[j] + b.nbytes <= offsets[i]
    assert first_fit([Buffer(4, "", 0, [], 1), Buffer(2, "", 0, [], 5), Buffer(3, "", 2, [], 3)], 9) == [0, 4, 0]


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_step_of_every_kind_of_model(kind, here, capsys):
    save(here / "w.bin", **CHECKPOINTS[kind])
    assert run("--weights", "w.bin", "--prompt", PROMPT, "--step") == 0, capsys.readouterr().err
    data = data_of(here / "explain_step.html")
    assert np.mean(data["losses"]) == pytest.approx(data["loss"], rel=1e-4)
    assert np.linalg.norm([u["grad"] for u in data["updates"]]) == pytest.approx(data["norm"], rel=1e-3)
    assert set(data["ops"]) == {node["op"] for node in data["nodes"]}
    assert all((ROOT / op["file"]).exists() and op["text"] for op in data["ops"].values())


# -- texts -------------------------------------------------------------------------------------------------------------

ODD = [
    "</script><script>alert(1)</script>", "<!--<script>", "'\"\\ ${1} `x` </style>", "\x07bell\x1b[31m\x7f",
    "a\tb\r\nc", "שלום עולם \u202eabc\u202c", "مرحبا", "日本 😀 e\u0301", "\udcff\udc80", "\u2028\u2029",
    "* / KIND /* SCRIPT */", " ",
]  # fmt: skip


class Structure(html.parser.HTMLParser):
    """Checks that elements are closed in their order; `scripts` are their texts, `links` the addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.scripts, self.links, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "action")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)


@pytest.mark.parametrize("prompt", ODD, ids=range(len(ODD)))
def test_odd_prompts_stay_text(prompt, here, capsys):
    save(here / "w.bin", n_layer=1)
    assert run("--weights", "w.bin", "--prompt", prompt) == 0, capsys.readouterr().err
    text = (here / "explain.html").read_text(encoding="utf-8")
    structure = Structure(text)
    assert len(structure.scripts) == 1 and not structure.links and len(structure.ids) == len(set(structure.ids))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028-\u202e\u2066-\u2069]", text)
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp", text.replace("http://www.w3.org/2000/svg", ""))
    data = data_of(here / "explain.html")
    shown = "".join(data["texts"][str(id)] for id in data["tokens"])
    assert re.sub(r"\\\\?x[0-9a-f]{2}|\\u[0-9a-f]{4}", "", shown).isprintable()


def test_small_probabilities_are_not_zero_on_the_terminal():
    assert [explain.share(p) for p in (0.123, 2e-5, 0.0, 1.0)] == ["12.3%", "<0.1%", "0.0%", "100.0%"]


def test_tokens_are_readable():
    class Half:
        n_vocab = 3

        def decode(self, ids):
            return ["a b\n\t", "\ufffd", "\x1b\u202e"][ids[0]]

        def token_bytes(self, id):
            return b"\xe2\x80"

    assert [token_text(Half(), id) for id in range(4)] == ["a·b↵⇥", r"\xe2\x80", r"\x1b\u202e", "[3]"]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, says", [
    ("--weights nowhere.bin", "nowhere.bin: no such file"),
    ("--weights w.bin --prompt=", "--prompt is empty"),
    ("--weights w.bin --prompt a --layers 0,2", "there is no layer 2; the model has 0 .. 1"),
    ("--weights w.bin --prompt a --layers x", "--layers 'x': give all, or numbers"),
    ("--weights w.bin --prompt <|endoftext|>", "--special allowed"),
    ("--weights w.bin --prompt a --lr 0.1", "--lr is for --step"),
    ("--weights w.bin --prompt a --step --lr nan", "--lr must be at least 0 and finite, not nan"),
    ("--weights third.bin --tokenizer t.json --prompt a --step", "--prompt: one token has no next one to learn"),
    ("--weights third.bin --prompt a", "its tokenizer is not known; pass it with --tokenizer"),
    ("--weights w.bin --prompt a --out notes.txt", "exists and is not a page of tinygrad2 explain"),
    ("--weights w.bin --prompt a --out w.bin", "is what --weights reads"),
    ("--weights notes.txt --prompt a", "notes.txt"),
    ("--weights w.bin --prompt a --out nowhere/x.html", "does not exist"),
    ("--weights w.bin --promptly a", "unrecognized arguments"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(words, says, here, capsys):
    model = save(here / "w.bin")
    save_weights("third.bin", model.state_dict(), model.config.to_dict(), "", {"converted_from": "elsewhere"})
    TOKENIZER.save("t.json")
    (here / "notes.txt").write_text("mine\n" * 20)
    before = sorted(os.listdir())
    assert run(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
    assert sorted(os.listdir()) == before and (here / "notes.txt").read_text() == "mine\n" * 20


def test_a_long_prompt_is_refused(here, capsys):
    save(here / "w.bin")
    assert run("--weights", "w.bin", "--prompt", TEXT * 20) == 2
    assert re.search(r"tokens are more than 64, the model's block_size", capsys.readouterr().err)


def test_weights_that_are_not_finite_have_no_step(here, capsys):
    model = small_gpt()
    model.ln_f.weight.data[3] = np.nan
    save_weights("w.bin", model.state_dict(), model.config.to_dict(), TOKENIZER.to_json(), {})
    assert run("--weights", "w.bin", "--prompt", PROMPT, "--step") == 2
    assert "w.bin: the loss is nan" in capsys.readouterr().err
    assert run("--weights", "w.bin", "--prompt", PROMPT) == 0    # a forward pass is shown as it is
    assert data_of(here / "explain.html")["top"][0]["p"] == [None] * 10


def test_a_step_measures_the_layers_that_are_named(here, capsys):
    save(here / "w.bin")
    assert run("--weights", "w.bin", "--prompt", PROMPT, "--step", "--layers", "1") == 0
    data = data_of(here / "explain_step.html")
    assert {name[:4] for name in data["samples"]} == {"wte.", "wpe.", "h.1.", "ln_f"}
    assert [point["layer"] for point in data["pulls"]["points"]] == ["", "h.1"]


def test_an_older_page_is_replaced_and_that_is_said(here, capsys):
    save(here / "w.bin")
    for _ in range(2):
        assert run("--weights", "w.bin", "--prompt", "cat", "--out", "p.html", "--layers", "1") == 0
    out = capsys.readouterr().out
    assert out.count("the page that was there is replaced") == 1 and pages.is_page("p.html")
    assert data_of(here / "p.html")["layers"] == [1]


# -- in a browser ------------------------------------------------------------------------------------------------------

USE = """<script>{
const tokens = document.querySelectorAll("#tokens button"), said = {};
const shown = () => document.getElementById("reading").textContent;
tokens[5].focus();
tokens[5].dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
said.focused = document.activeElement === tokens[4] && tokens[4].getAttribute("aria-pressed");
document.querySelectorAll(".heads button")[6].click();
said.keyboard = shown();
tokens[2].click();
said.touch = shown();
for (const details of document.querySelectorAll("details")) { details.open = true; details.ontoggle(); }
said.sums = [...document.querySelectorAll("#reading tr:last-child td.n")].map(cell => cell.textContent);
said.error = document.querySelector("#error") !== null;
document.body.append("\\n" + JSON.stringify(said) + " END");
}</script>"""


USE_STEP = """<script>{
const tokens = document.querySelectorAll("#tokens button"), said = {};
tokens[3].focus();
tokens[3].dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
said.loss = document.querySelector("#losses p:not(.note)").nextElementSibling.querySelector("p").textContent;
said.here = [...document.querySelectorAll("#gradients td:nth-child(3)")].map(cell => cell.textContent);
document.querySelectorAll("#graph .link")[6].click();
said.open = document.querySelector("dialog").open;
said.derivation = document.querySelector("dialog").textContent;
document.querySelector("dialog").close();
document.querySelectorAll("#pulls button")[1].click();
said.pulled = [...document.querySelectorAll("#pulls td:nth-child(3)")].map(cell => cell.textContent);
[...document.querySelectorAll("#parameters .link")].find(button => button.textContent === "ln_f.bias").click();
said.measured = [...document.querySelectorAll("#numeric td:nth-child(4)")].map(cell => cell.textContent);
const cells = row => [...row.cells].map(cell => cell.textContent);
said.parameters = [...document.querySelectorAll("#parameters .bars tbody tr")].map(cells);
said.name = Math.max(...[...document.querySelectorAll("#parameters .link")].map(name => name.offsetHeight));
said.plan = [...document.querySelectorAll("#plan tbody tr")].map(cells);
said.graph = [...document.querySelectorAll(".graph .node .n")].map(cell => cell.textContent.split("\\n"));
said.adam = document.querySelector("#parameters p").textContent;
const rings = document.querySelectorAll(".picture button"), element_ = document.getElementById("element");
rings[1].click();
said.ring = element_.textContent;
said.chosen = [rings[1].ariaPressed, document.querySelectorAll("#numeric tr[aria-selected=true]").length];
const canvas = document.querySelector(".picture canvas"), box = canvas.getBoundingClientRect();
const taken = DATA.samples["ln_f.bias"].map(one => one.index[0]);
const free = [...Array(31).keys()].find(c => !taken.includes(c) && taken.includes(c + 1));
const at = {clientX: box.left + (free + .5) / 32 * box.width, clientY: box.top + 5};
canvas.dispatchEvent(new MouseEvent("click", at));
said.free = [free, element_.textContent, document.querySelectorAll(".picture [aria-pressed=true]").length];
canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
said.right = element_.textContent;
const paper = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).join();
const blank = canvas => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const all = [...Array(canvas.width * canvas.height).keys()];
  return all.filter(i => pixels.slice(4 * i, 4 * i + 3).join() === paper);
};
said.blank = [...document.querySelectorAll("#gradients canvas")].map(blank);
said.square = blank(document.querySelector("#pulls canvas"));
const select = document.querySelector("#numeric select");
select.value = "wpe.weight";
select.onchange();
said.picture = blank(canvas);
said.height = canvas.height;
const bands = document.querySelector("#memory svg");
bands.focus();
for (let i = 0; i < 2; i++) bands.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
said.band = document.getElementById("band").textContent;
said.bands = bands.querySelectorAll("rect").length;
said.error = document.querySelector("#error") !== null;
document.body.append("\\n" + JSON.stringify(said) + " END");
}</script>"""


def in_browser(path, script):
    """What a script that is added to a copy of the page writes; skips where there is no Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium")
    copy = path.with_name("copy.html")
    copy.write_text(path.read_text(encoding="utf-8") + script, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.with_name('profile')}"]
    words = [program, *flags, "--virtual-time-budget=5000", "--dump-dom", copy.as_uri()]
    dom = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=300).stdout
    found = re.findall(r"^(\{.*\}) END", dom, re.MULTILINE)
    assert found, dom[-3000:]
    return json.loads(html.unescape(found[-1]))


def test_the_page_in_a_browser_answers_keyboard_and_touch(here, capsys):
    model = save(here / "w.bin")
    assert run("--weights", "w.bin", "--prompt", PROMPT) == 0
    said = in_browser(here / "explain.html", USE)
    ids = data_of(here / "explain.html")["tokens"]
    weights = Forward(model, ids, [1]).attention[1].weights[2]    # the seventh tile: layer 1, head 2
    assert said["focused"] == "true" and not said["error"]
    for words, t in ((said["keyboard"], 4), (said["touch"], 2)):
        assert f"Layer 1, head 2: where position {t}" in words
        for w in weights[t, : t + 1]:
            assert f"{w:.3f}".removeprefix("0") in words
    assert said["sums"] == ["1.000"] * 4


WRONG = """<script>{
const wrong = [...document.querySelectorAll(".wrong")].map(p => p.textContent);
document.body.append("\\n" + JSON.stringify(wrong.reduce((all, text) => ({...all, [text]: true}), {})) + " END");
}</script>"""


@pytest.mark.parametrize("faulty", [
    {"future": lambda xp, Tq, Tk: xp.arange(Tk) > xp.arange(Tk - Tq, Tk)[:, None] + 1},
    {"future": lambda xp, Tq, Tk: xp.arange(Tk) < xp.arange(Tk - Tq, Tk)[:, None]},
    {"math": types.SimpleNamespace(sqrt=math.sqrt, inf=3.0)},
], ids=["one further", "transposed", "finite"])  # fmt: skip
def test_attention_that_is_not_causal_is_named(faulty, here, capsys, monkeypatch):
    save(here / "w.bin")
    flags = ("--weights", "w.bin", "--prompt", PROMPT)
    assert run(*flags) == 0 and data_of(here / "explain.html")["wrong"] == []
    assert "attention" not in capsys.readouterr().out
    for name, value in faulty.items():
        monkeypatch.setattr(importlib.import_module("ops.attention"), name, value)
    assert run(*flags) == 0
    said, on_page = capsys.readouterr().out, data_of(here / "explain.html")["wrong"]
    assert all(f"attention layer {i}: positions look ahead, with up to " in said for i in (0, 1)), said
    assert said.count("attention layer") == len(on_page) == 2
    assert list(in_browser(here / "explain.html", WRONG)) == [f"This is no causal attention: {one}." for one in on_page]


def test_weights_that_do_not_sum_to_one_are_named(forward, monkeypatch):
    one = forward.attention[0]
    monkeypatch.setitem(forward.attention, 0, replace(one, weights=one.weights * np.float32(0.9)))
    assert wrong_weights(forward) == ["layer 0: the weights of a position sum to 0.900, not to 1"]


def test_the_page_of_a_step_in_a_browser(here, capsys):
    save(here / "w.bin")
    assert run("--weights", "w.bin", "--prompt", PROMPT, "--step") == 0
    data = data_of(here / "explain_step.html")
    strips = [out["tokens"] for node in data["nodes"] for out in node["outputs"] if out["tokens"]]
    strips[7][3], strips[7][4], data["pulls"]["points"][1]["norms"][5][1] = 1e-12, 0.0, 1e-12       # tiny, and nothing
    text = (here / "explain_step.html").read_text(encoding="utf-8").splitlines()
    text = [f"const DATA = {json.dumps(data)};" if line.startswith("const DATA") else line for line in text]
    (here / "explain_step.html").write_text("\n".join(text), encoding="utf-8")
    said = in_browser(here / "explain_step.html", USE_STEP)
    assert not said["error"] and said["open"] and "Vaswani" in said["derivation"]
    assert said["loss"].startswith("After position 2, ") and f"loss {data['losses'][2]:.3g}"[:8] in said["loss"]
    expected = [out["tokens"][2] for node in data["nodes"] for out in node["outputs"] if out["tokens"]]
    assert [float(text) for text in said["here"]] == pytest.approx(expected, rel=6e-3)
    column = sorted((row[2] for row in data["pulls"]["points"][1]["norms"][2:]), reverse=True)[:8]
    assert [float(text) for text in said["pulled"]] == pytest.approx(column, rel=6e-3)
    measured = [sample["numeric"] for sample in data["samples"]["ln_f.bias"]]
    assert [float(text) for text in said["measured"]] == pytest.approx(measured, rel=1e-5)
    keys = ("weight", "grad", "largest", "update", "ratio")
    for cells, update in zip(said["parameters"], data["updates"], strict=True):
        assert cells[0].startswith(update["name"] + " (")
        numbers = [None if cell == "weights 0" else float(cell.replace(",", "")) for cell in cells[1:6]]
        assert numbers == [update[key] and pytest.approx(update[key], rel=6e-3) for key in keys]
    assert said["name"] < 30                                      # pixels: one line, where a window is wide enough
    assert "moments of zero, so this is the first step of a new training" in said["adam"]
    outputs = [node["outputs"] for node in data["nodes"]]
    for k, key in enumerate(("norm", "grad")):
        for texts, outs in zip(said["graph"][k::2], outputs, strict=True):
            assert [float(text) for text in texts] == pytest.approx([out[key] for out in outs], rel=6e-3)
    for (name, planned, fact, share), expected in zip(said["plan"], data["memory"]["beside"], strict=True):
        assert name == expected[0] and share == f"{expected[2] / expected[1]:.1%}"
        for text, nbytes in ((planned, expected[1]), (fact, expected[2])):
            number, unit = text.split()
            assert float(number) * {"bytes": 1, "kB": 1e3, "MB": 1e6}[unit] == pytest.approx(nbytes, rel=6e-3)
    samples = data["samples"]["ln_f.bias"]
    assert said["ring"].startswith(f"Element {samples[1]['index']} of ln_f.bias: computed")
    assert said["chosen"] == ["true", 1]
    free, words, pressed = said["free"]
    assert words.startswith(f"[{free}] of ln_f.bias: not in the sample, so nothing was measured here") and pressed == 0
    assert said["right"].startswith(f"Element [{free + 1}] of ln_f.bias: computed")
    T = len(data["tokens"])
    for blank, strip in zip(said["blank"], strips, strict=True):  # a gradient that is not 0 is never drawn as 0
        assert blank == [t for t, norm in enumerate(strip) if norm == 0]
    assert strips[7][4] == 0 and sum(map(len, said["blank"])) >= 1
    norms = data["pulls"]["points"][1]["norms"]
    seen = {i * T + t for i, row in enumerate(norms) for t, norm in enumerate(row) if norm > 0}
    assert not seen & set(said["square"]) and len(seen) == T * (T + 1) // 2
    width = len(said["picture"]) // (said["height"] - T)          # rows of wpe that the text does not reach are blank
    assert said["picture"] == list(range(T * width, said["height"] * width))
    buffers = data["memory"]["buffers"]
    chosen = buffers[(max(range(len(buffers)), key=lambda i: buffers[i][0]) + 2) % len(buffers)]
    assert said["bands"] == len(buffers) and data["memory"]["events"][chosen[2]][1] in said["band"]
