"""SGD with momentum and RMSprop: by hand, against torch.optim, with frozen parameters."""

import numpy as np
import pytest

from tinygrad2 import Module, Parameter, Tensor
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import clip_scale, grad_norm
from tinygrad2.optimizers import SGD, RMSprop


class Points(Module):
    """Two vectors and a matrix of float64."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.a, self.b = Parameter(rng.standard_normal(3)), Parameter(rng.standard_normal(5))
        self.c = Parameter(rng.standard_normal((4, 3)))

    def loss(self, x):                                            # (4,) array
        curved = ((Tensor(x) @ self.c - self.a) * (Tensor(x) @ self.c - self.a)).sum()
        return curved + (self.b * self.b * self.b * self.b).sum()


class Number(Module):
    def __init__(self, value):
        self.p = Parameter(np.array([value]))


def steps(optimizer, gradients, lr, **more):
    """The value of a single parameter after each step with these gradients."""
    values = []
    for g in gradients:
        optimizer.zero_grad()
        optimizer.flat.parameters[0].add_to_grad(np.array([g]))
        optimizer.step(lr, **more)
        values.append(float(optimizer.flat.data[0]))
    return values


def test_sgd_by_hand():
    assert steps(SGD(FlatBuffers(Number(1.0))), [2.0, -1.0], 0.1) == pytest.approx([0.8, 0.9])
    # u = 2, then 0.5 * 2 - 1 = 0, then 0 + 4
    assert steps(SGD(FlatBuffers(Number(1.0)), momentum=0.5), [2.0, -1.0, 4.0], 0.1) == pytest.approx([0.8, 0.8, 0.4])
    # g = 2 + 0.5 * 1 = 2.5, then 0 + 0.5 * 0.75
    assert steps(SGD(FlatBuffers(Number(1.0)), weight_decay=0.5), [2.0, 0.0], 0.1) == pytest.approx([0.75, 0.7125])
    assert steps(SGD(FlatBuffers(Number(1.0))), [2.0], 0.1, grad_scale=0.5) == pytest.approx([0.9])


def test_rmsprop_by_hand():
    # v = 0.25 * 4 = 1, then 0.75 * 1 + 0.25 * 1 = 1
    values = steps(RMSprop(FlatBuffers(Number(1.0)), beta=0.75, eps=1e-12), [2.0, -1.0], 0.1)
    assert values == pytest.approx([0.8, 0.9])
    first = steps(RMSprop(FlatBuffers(Number(0.0))), [1e-3], 0.1)
    assert first == pytest.approx([-1.0], rel=1e-3)               # lr / sqrt(1 - 0.99), whatever the gradient's size


def test_a_constant_gradient_reaches_its_final_speed():
    values = steps(SGD(FlatBuffers(Number(0.0)), momentum=0.9), [1.0] * 200, 0.1)
    assert values[-1] - values[-2] == pytest.approx(-0.1 / (1 - 0.9))
    values = steps(RMSprop(FlatBuffers(Number(0.0)), beta=0.9), [1e-3] * 200, 0.1)
    assert values[-1] - values[-2] == pytest.approx(-0.1, rel=1e-4)


CASES = [
    (SGD, {}, "SGD", {}),
    (SGD, {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    (SGD, {"momentum": 0.5, "weight_decay": 0.1}, "SGD", {"momentum": 0.5, "weight_decay": 0.1}),
    (RMSprop, {}, "RMSprop", {}),
    (RMSprop, {"beta": 0.9, "eps": 1e-3}, "RMSprop", {"alpha": 0.9, "eps": 1e-3}),
    (RMSprop, {"weight_decay": 0.1}, "RMSprop", {"weight_decay": 0.1}),
]


@pytest.mark.parametrize("kind, ours, name, theirs", CASES, ids=[f"{case[2]} {case[1]}" for case in CASES])
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_thirty_steps_are_pytorchs(kind, ours, name, theirs, max_norm):
    torch = pytest.importorskip("torch")
    model, rng = Points(), np.random.default_rng(1)
    twins = {name: torch.tensor(p.data.copy(), requires_grad=True) for name, p in model.named_parameters()}
    optimizer = kind(FlatBuffers(model), **ours)
    other = getattr(torch.optim, name)(list(twins.values()), lr=0.01, **theirs)
    for step in range(30):
        x, lr = rng.standard_normal(4), 0.01 / (1 + step)
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step(lr, clip_scale(grad_norm(optimizer.flat.grad), max_norm))
        for group in other.param_groups:
            group["lr"] = lr
        other.zero_grad()
        difference = torch.tensor(x) @ twins["c"] - twins["a"]
        ((difference * difference).sum() + (twins["b"] ** 4).sum()).backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(list(twins.values()), max_norm)
        other.step()
        for name, parameter in model.named_parameters():
            assert np.abs(parameter.data - twins[name].detach().numpy()).max() < 1e-12, (step, name)


@pytest.mark.parametrize("make", [lambda flat: SGD(flat, momentum=0.9, weight_decay=0.1), RMSprop])
def test_frozen_parameters_stay_with_their_state(make):
    model, x = Points(), np.random.default_rng(1).standard_normal(4)
    optimizer = make(FlatBuffers(model))
    state = optimizer.u if isinstance(optimizer, SGD) else optimizer.v

    def step():
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step(0.01)

    step()
    model.a.requires_grad = False
    before = {name: array.copy() for name, array in model.state_dict().items()}
    kept = state[optimizer.flat.slices["a"]].copy()
    step()
    after = model.state_dict()
    assert np.array_equal(before["a"], after["a"]) and np.array_equal(kept, state[optimizer.flat.slices["a"]])
    assert not np.array_equal(before["b"], after["b"]) and not np.array_equal(before["c"], after["c"])
    model.requires_grad = False
    with pytest.raises(UserError, match="nothing to train"):
        optimizer.step(0.01)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), not 1"):
        SGD(FlatBuffers(Points()), momentum=1)
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), not 1.5"):
        RMSprop(FlatBuffers(Points()), beta=1.5)
    with pytest.raises(ValueError, match="eps must be above 0, not 0"):
        RMSprop(FlatBuffers(Points()), eps=0)


def test_a_graph_of_the_old_weights_is_refused():
    model = Points()
    optimizer, x = SGD(FlatBuffers(model)), np.ones(4)
    loss = model.loss(x)
    model.loss(x).backward()
    optimizer.step(0.1)
    with pytest.raises(RuntimeError, match="changed|written"):
        loss.backward()
