"""The whole model beside PyTorch's: same weights in, same logits, loss, gradients and training out."""

import numpy as np
import pytest
from test_models import TEN_LOSSES, tiny, tokens

from models import GPT, GPTConfig
from tinygrad2.module import FlatBuffers
from tinygrad2.optim import Adam, clip_grad_norm

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_gpt import adamw, twin_of  # noqa: E402  (it needs torch)

BASE = {"block_size": 16, "vocab_size": 61, "n_layer": 3, "n_head": 4, "n_embd": 32}
CONFIGS = {
    "gpt2-like": {},
    "no biases": {"bias": False},
    "untied head": {"tied_head": False},
    "exact gelu": {"activation": "gelu_erf"},
    "one layer, one head": {"n_layer": 1, "n_head": 1},
    "odd sizes": {"block_size": 7, "vocab_size": 13, "n_head": 3, "n_embd": 21},
}


def build(dtype=np.float32, **changes):
    """A model with weights of ordinary size everywhere (initial biases are zero and would hide mistakes)."""
    model = GPT(GPTConfig(**{**BASE, **changes}), seed=1)
    rng = np.random.default_rng(2)
    for _, parameter in model.named_parameters():
        parameter.data = (parameter.data + 0.1 * rng.standard_normal(parameter.shape)).astype(dtype)
    return model


def batch(config, T=None, B=3, seed=0):
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (B, (T or config.block_size) + 1))
    return tokens[:, :-1], tokens[:, 1:]


def both(model, x, y):
    """((logits, loss, {name: gradient}) of ours, the same of PyTorch)."""
    logits, loss = model(x, y)
    loss.backward()
    ours = logits.numpy(), loss.item(), {name: p.grad for name, p in model.named_parameters()}
    twin = twin_of(model)
    logits, loss = twin(torch.from_numpy(x), torch.from_numpy(y))
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    return ours, (logits.detach().numpy(), loss.item(), gradients)


def compare(ours, theirs, bound):
    assert np.abs(ours[0] - theirs[0]).max() <= bound * np.abs(theirs[0]).max()
    assert abs(ours[1] - theirs[1]) <= bound * abs(theirs[1])
    assert ours[2].keys() == theirs[2].keys()
    # Some gradients are zero but for rounding (that of a key's bias cancels in the softmax), hence the floor.
    floor = max(np.abs(g).max() for g in theirs[2].values())
    for name, gradient in theirs[2].items():
        assert np.abs(ours[2][name] - gradient).max() <= bound * max(np.abs(gradient).max(), 0.1 * floor), name


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_loss_and_all_gradients_agree_to_float32_rounding(changes):
    model = build(**changes)
    compare(*both(model, *batch(model.config)), bound=5e-6)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_in_float64_they_agree_to_float64_rounding(changes):
    model = build(np.float64, **changes)
    compare(*both(model, *batch(model.config)), bound=1e-12)


def test_a_text_shorter_than_the_context_and_ignored_targets():
    model = build()
    x, y = batch(model.config, T=5)
    y = np.where(np.random.default_rng(3).random(y.shape) < 0.3, -1, y)
    compare(*both(model, x, y), bound=5e-6)


@pytest.mark.parametrize("weight_decay, max_norm", [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5)])
def test_ten_adam_steps_stay_together(weight_decay, max_norm):
    model = GPT(GPTConfig(**BASE), seed=5)
    twin = twin_of(model)
    flat = FlatBuffers(model)
    ours = Adam(flat, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    theirs = adamw(twin, 1e-3, (0.9, 0.95), 1e-8, weight_decay)
    for step in range(10):
        x, y = batch(model.config, seed=step)
        flat.zero_grad()
        _, loss = model(x, y)
        loss.backward()
        norm, scale = clip_grad_norm(flat.grad, max_norm)
        ours.step(1e-3, scale)

        theirs.zero_grad()
        _, torch_loss = twin(torch.from_numpy(x), torch.from_numpy(y))
        torch_loss.backward()
        torch_norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm or float("inf"))
        theirs.step()
        assert abs(loss.item() - torch_loss.item()) < 1e-5
        assert float(norm) == pytest.approx(torch_norm.item(), rel=1e-4)
    assert not max_norm or float(norm) > max_norm  # clipping was at work


def test_the_recorded_losses_of_overfitting_one_batch_are_pytorchs():
    twin = twin_of(tiny(seed=7))
    optimizer = adamw(twin, 1e-2, (0.9, 0.95), 1e-8, 0.0)
    x, y = torch.from_numpy(tokens(seed=2)), torch.from_numpy(tokens(seed=3))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        _, loss = twin(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(TEN_LOSSES, abs=1e-4)


def test_the_real_shape_agrees():
    """Two layers at the width of the 124M model, with its vocabulary."""
    config = GPTConfig.preset("gpt2", n_layer=2, block_size=64)
    model = GPT(config, seed=0)
    compare(*both(model, *batch(config, T=16, B=2)), bound=2e-5)
