"""Every op beside its counterpart in PyTorch: values and all gradients, on every sample, in float64 and float32."""

import numpy as np
import pytest
from kernel_checks import cotangent, is_float, reference_ops
from samples import SAMPLES

from tinygrad2 import Tensor, apply
from tinygrad2.function import OPS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional

PAGES = reference_ops(OPS)
CASES = [pytest.param(name, s, id=f"{name}-{i}") for name in sorted(PAGES) for i, s in enumerate(SAMPLES[name])]


def softmax_rows(function):
    return lambda x, axis=-1: function(x, dim=axis)


def reduce(function):
    def call(x, axis=None, keepdims=False):
        axes = tuple(range(x.ndim)) if axis is None else axis
        return function(x, dim=axes, keepdim=keepdims) if x.ndim else function(x)

    return call


def index(x, key):
    if isinstance(key, tuple) and any(isinstance(k, slice) and (k.step or 1) < 0 for k in key):
        place = np.arange(x.numel()).reshape(x.shape)[key]  # torch has no negative steps
        return x.flatten()[torch.from_numpy(place.copy())]
    parts = key if isinstance(key, tuple) else (key,)
    return x[tuple(torch.from_numpy(k) if isinstance(k, np.ndarray) else k for k in parts)]


def attention(q, k, v, keep=None):
    Tq, Tk = q.shape[-2], k.shape[-2]
    mask = torch.ones(Tq, Tk).tril(Tk - Tq).bool()
    if keep is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    s = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return (s.softmax(-1) * torch.from_numpy(keep)) @ v


def cross_entropy(logits, targets, ignore_index=-1):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index)


def dropout(x, p, key, first=0):
    from ops.dropout import keep_mask  # which values go is ours to say; torch checks the rest

    dtype = np.float64 if x.dtype == torch.float64 else np.float32
    return x * torch.from_numpy(np.asarray(keep_mask(np, tuple(x.shape), p, key, first, dtype)))


PEERS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "neg": lambda x: -x,
    "exp": torch.exp,
    "log": torch.log,
    "sum": reduce(torch.sum),
    "mean": reduce(torch.mean),
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, axes=None: x.permute(axes or tuple(range(x.ndim))[::-1]),
    "index": index,
    "concatenate": lambda *xs, axis=0: torch.cat(xs, dim=axis),
    "matmul": torch.matmul,
    "linear": lambda x, weight, bias: F.linear(x, weight.T, bias),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "softmax": softmax_rows(torch.softmax),
    "log_softmax": softmax_rows(torch.log_softmax),
    "layernorm": lambda x, w, b, eps=1e-5: F.layer_norm(x, w.shape, w, b, eps),
    "embedding": lambda weight, ids: F.embedding(ids, weight),
    "cross_entropy": cross_entropy,
    "attention": attention,
    "dropout": dropout,
}


def test_every_op_has_a_peer():
    assert set(PEERS) == set(PAGES)


def close(got, expected, bound):
    expected = expected.detach().numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= bound * max(1.0, np.abs(expected).max(initial=0))


@pytest.mark.parametrize("dtype, bound", [(np.float64, 1e-12), (np.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("name, sample", CASES)
def test_values_and_gradients_equal_pytorchs(name, sample, dtype, bound):
    arrays = sample.arrays(dtype)
    ours = [Tensor(a, requires_grad=is_float(a)) if isinstance(a, np.ndarray) else a for a in arrays]
    theirs = [torch.tensor(a, requires_grad=is_float(a)) if isinstance(a, np.ndarray) else a for a in arrays]
    out = apply(PAGES[name], *ours, **sample.options)
    torch_out = PEERS[name](*theirs, **sample.options)
    close(out.numpy(), torch_out, bound)
    dout = cotangent(out.data)
    out.backward(dout)
    torch_out.backward(torch.from_numpy(dout.copy()))
    for a, b in zip(ours, theirs):
        if isinstance(a, Tensor) and a.requires_grad:
            close(a.grad, b.grad, bound)
