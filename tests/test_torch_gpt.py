"""The complete model next to PyTorch's: same weights in, same logits, loss, gradients and training out.

Differences are relative to the largest value of each tensor, every parameter's gradient on its own. Measured: up to
1.3e-6 in float32 and 4e-15 in float64; the bounds leave room for other processors and libraries.
"""

import math

import numpy as np
import pytest
from test_models import TEN_LOSSES, tiny, tokens

from models import GPT, GPTConfig
from models.dropout import Dropout, set_dropout
from ops.dropout import keep_mask
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam, clip_scale, grad_norm

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_gpt import Mask, adamw, twin_of  # noqa: E402  (it needs torch)

FLOAT32, FLOAT64 = 5e-6, 1e-12  # the bounds

BASE = {"block_size": 16, "vocab_size": 61, "n_layer": 3, "n_head": 4, "n_embd": 32}
CONFIGS = {
    "gpt2-like": {},
    "demo": GPTConfig.preset("demo").to_dict(),
    "no biases": {"bias": False},
    "untied head": {"tied_head": False},
    "no biases, untied head": {"bias": False, "tied_head": False},
    "exact gelu": {"activation": "gelu_erf"},
    "one layer, one head": {"n_layer": 1, "n_head": 1},
    "heads of one channel": {"n_head": 8, "n_embd": 8},
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


def both(model, x, y, twin=None):
    """((logits, loss, {name: gradient}) of ours, the same of PyTorch)."""
    logits, loss = model(x, y)
    loss.backward()
    ours = logits.numpy(), loss.item(), {name: p.grad for name, p in model.named_parameters()}
    twin = twin or twin_of(model)
    logits, loss = twin(torch.from_numpy(x), torch.from_numpy(y))
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    return ours, (logits.detach().numpy(), loss.item(), gradients)


def compare(ours, theirs, bound):
    assert np.abs(ours[0] - theirs[0]).max() <= bound * np.abs(theirs[0]).max()
    assert abs(ours[1] - theirs[1]) <= bound * abs(theirs[1])
    assert ours[2].keys() == theirs[2].keys()
    for name, gradient in theirs[2].items():
        assert ours[2][name].dtype == gradient.dtype
        assert np.abs(ours[2][name] - gradient).max() <= bound * np.abs(gradient).max(), name


# -- one pass --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_loss_and_all_gradients_agree_to_float32_rounding(changes):
    model = build(**changes)
    compare(*both(model, *batch(model.config)), FLOAT32)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_in_float64_they_agree_to_float64_rounding(changes):
    model = build(np.float64, **changes)
    compare(*both(model, *batch(model.config)), FLOAT64)


@pytest.mark.parametrize("dtype, bound", [(np.float32, FLOAT32), (np.float64, FLOAT64)], ids=["float32", "float64"])
@pytest.mark.parametrize("T", [1, 5, 15])
def test_a_text_shorter_than_the_context(T, dtype, bound):
    model = build(dtype)
    compare(*both(model, *batch(model.config, T)), bound)


@pytest.mark.parametrize("dtype, bound", [(np.float32, FLOAT32), (np.float64, FLOAT64)], ids=["float32", "float64"])
def test_targets_of_minus_one_do_not_count(dtype, bound):
    model = build(dtype)
    x, y = batch(model.config)
    y = np.where(np.random.default_rng(3).random(y.shape) < 0.3, -1, y)
    compare(*both(model, x, y), bound)


def test_freshly_initialised_weights():
    model = GPT(GPTConfig(**BASE), seed=5)
    compare(*both(model, *batch(model.config)), FLOAT32)


def test_dropout_falls_in_the_same_places():
    """Embedding, attention weights, and what attention and MLP add: with the same masks, the same everything."""
    model = build(np.float64, dropout=0.3)
    set_dropout(model, seed=1, step=2, first_sequence=3)
    twin = twin_of(model)
    masks = [module for module in twin.modules() if isinstance(module, Mask)]
    layers = [module for _, module in model.named_modules() if isinstance(module, Dropout)]
    assert len(masks) == len(layers) == 1 + 3 * model.config.n_layer
    B, T, C, nh = 3, model.config.block_size, model.config.n_embd, model.config.n_head
    for mask, layer in zip(masks, layers):
        in_attention = any(mask is block.attn.attn_dropout for block in twin.h)
        shape = (B, nh, T, T) if in_attention else (B, T, C)
        keep = keep_mask(np, shape, *layer.inside(math.prod(shape[1:])), np.float64)
        mask.keep = torch.from_numpy(keep)
    compare(*both(model, *batch(model.config), twin), FLOAT64)


@pytest.mark.slow
def test_the_real_shape_agrees():
    """Two layers at the width of the 124M model, with its vocabulary."""
    config = GPTConfig.preset("gpt2", n_layer=2, block_size=64)
    model = GPT(config, seed=0)
    compare(*both(model, *batch(config, T=16, B=2)), bound=2e-5)


# -- training --------------------------------------------------------------------------------------------------------


def train_both(model, steps, weight_decay, max_norm):
    """Some steps of Adam side by side: (our losses, theirs, our norms, theirs, the trained twin)."""
    twin = twin_of(model)
    flat = FlatBuffers(model)
    ours = Adam(flat, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    theirs = adamw(twin, 1e-3, (0.9, 0.95), 1e-8, weight_decay)
    records = []
    for step in range(steps):
        x, y = batch(model.config, seed=step)
        flat.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        norm = grad_norm(flat.grad)
        ours.step(1e-3, clip_scale(norm, max_norm))

        theirs.zero_grad()
        _, torch_loss = twin(torch.from_numpy(x), torch.from_numpy(y))
        torch_loss.backward()
        torch_norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm or float("inf"))
        theirs.step()
        records.append((loss.item(), torch_loss.item(), float(norm), torch_norm.item()))
    return *np.array(records).T, twin


# The norms of the gradients lie between 1.3 and 2.5: a limit of 1.6 acts in some steps and not in others.
STEPS = [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5), (0.0, 1.6)]


@pytest.mark.parametrize("weight_decay, max_norm", STEPS)
def test_ten_adam_steps_stay_together(weight_decay, max_norm):
    model = GPT(GPTConfig(**BASE), seed=5)
    losses, torch_losses, norms, torch_norms, _ = train_both(model, 10, weight_decay, max_norm)
    assert np.abs(losses - torch_losses).max() < 1e-5
    assert norms == pytest.approx(torch_norms, rel=1e-4)
    assert max_norm < norms.max() and (max_norm != 1.6 or norms.min() < max_norm)


@pytest.mark.slow
def test_fifty_adam_steps_stay_together():
    model = GPT(GPTConfig(**BASE), seed=5)
    losses, torch_losses, *_ = train_both(model, 50, 0.1, 1.0)
    assert np.abs(losses - torch_losses).max() < 1e-4


@pytest.mark.parametrize("weight_decay, max_norm", STEPS)
@pytest.mark.parametrize("changes", [{}, pytest.param({"bias": False, "tied_head": False}, marks=pytest.mark.slow)],
                         ids=["gpt2-like", "no biases, untied"])
def test_in_float64_ten_adam_steps_end_with_the_same_weights(changes, weight_decay, max_norm):
    model = build(np.float64, **changes)
    losses, torch_losses, norms, torch_norms, twin = train_both(model, 10, weight_decay, max_norm)
    assert np.abs(losses - torch_losses).max() < 1e-12
    assert norms == pytest.approx(torch_norms, rel=1e-12)
    for name, p in twin.named_parameters():
        assert np.abs(dict(model.named_parameters())[name].data - p.detach().numpy()).max() < 1e-10, name


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
