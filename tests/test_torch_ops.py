"""Every op next to its counterpart in PyTorch: values and all gradients, for random cotangents, in float64 and
float32.

The samples are those of samples.py, and below some more of what users write and what is easily got wrong. The bound is
the same everywhere: LAST_PLACES units in the last place of the tensor's largest value (measured: at most 14). Where a
result is small because large values cancel, it is known only to the last places of those, so a tensor counts as no
smaller than a hundredth of the largest input value.
"""

import math
import operator

import numpy as np
import pytest
from kernel_checks import cotangent, has_gradient, is_float, joined, reference_ops
from samples import SAMPLES, integers, positive, sample

import ops
from tinygrad2 import Tensor, apply
from tinygrad2.dispatch import OPS
from tinygrad2.prng import uniform

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional

LAST_PLACES = 64
REFERENCE = reference_ops(OPS)


# -- the table: op -> the same in PyTorch ----------------------------------------------------------------------------


def along(function):
    return lambda x, axis=-1: function(x, dim=axis)


def reduce(function):
    def call(x, axis=None, keepdims=False):
        axes = tuple(range(x.ndim)) if axis is None else axis
        return function(x, dim=axes, keepdim=keepdims) if x.ndim else function(x)

    return call


def amax(function):
    def call(x, axis=None, keepdims=False):
        axes = tuple(range(x.ndim)) if axis is None else axis
        return function(x, dim=axes, keepdim=keepdims)

    return call


def spread(function):
    def call(x, axis=None, ddof=1, keepdims=False):
        return function(x, dim=axis, correction=ddof, keepdim=keepdims)

    return call


def position(function):
    return lambda x, axis=None, keepdims=False: function(x, dim=axis, keepdim=keepdims)


def truth(function):
    return lambda x, axis=None, keepdims=False: function(x != 0, dim=axis, keepdim=keepdims)


def clip(x, low=None, high=None):
    if low is None and high is None:
        return x.clone()
    limits = [torch.tensor(v, dtype=x.dtype) if isinstance(v, float) else v for v in (low, high)]
    return torch.clamp(x, *limits)


def number(x, like):
    return torch.tensor(x, dtype=like.dtype) if isinstance(x, float) else x


def choice(function):
    return lambda a, b: function(number(a, b), number(b, a))



RELATIONS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "&": operator.and_, "|": operator.or_, "^": operator.xor,
}  # fmt: skip


def index(x, key):
    if isinstance(key, tuple) and any(isinstance(k, slice) and (k.step or 1) < 0 for k in key):
        index = np.arange(x.numel()).reshape(x.shape)[key]  # torch has no negative steps
        return x.flatten()[torch.from_numpy(index.copy())]
    parts = key if isinstance(key, tuple) else (key,)
    return x[tuple(torch.from_numpy(k) if isinstance(k, np.ndarray) else k for k in parts)]


def attention(q, k, v, p=0.0, key=0, first=0):
    Tq, Tk = q.shape[-2], k.shape[-2]
    mask = torch.ones(Tq, Tk).tril(Tk - Tq).bool()
    if not p:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    s = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return dropout(s.softmax(-1), p, key, first) @ v


def mlp(x, weight1, bias1, weight2, bias2, exact=False):
    h = F.gelu(F.linear(x, weight1.T, bias1), approximate="none" if exact else "tanh")
    return F.linear(h, weight2.T, bias2)


def add_layernorm(x, delta, w, b=None, eps=1e-5):
    return x + delta, F.layer_norm(x + delta, w.shape, w, b, eps)


def linear_cross_entropy(x, weight, targets, ignore_index=-1):
    return cross_entropy(x @ weight.T, targets, ignore_index)


def cross_entropy(logits, targets, ignore_index=-1):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index)


def dropout(x, p, key, first=0):
    dropped = torch.from_numpy(np.asarray(uniform(np, tuple(x.shape), key, first) < p))  # torch draws others
    return x.masked_fill(dropped, 0.0) / (1 - p)


PEERS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "neg": lambda x: -x,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "maximum": choice(torch.maximum),
    "minimum": choice(torch.minimum),
    "clip": clip,
    "where": lambda condition, a, b: torch.where(condition != 0, a, b),
    "compare": lambda a, b, relation: RELATIONS[relation](a, b),
    "logical": lambda a, b, relation: RELATIONS[relation](a, b),
    "clone": torch.clone,
    "cast": lambda x, dtype: x.to(getattr(torch, dtype)),
    "max": amax(torch.amax),
    "min": amax(torch.amin),
    "argmax": position(torch.argmax),
    "argmin": position(torch.argmin),
    "all": truth(torch.all),
    "any": truth(torch.any),
    "var": spread(torch.var),
    "std": spread(torch.std),
    "cumsum": lambda x, axis=None: torch.cumsum(x.flatten() if axis is None else x, 0 if axis is None else axis),
    "stack": lambda *xs, axis=0: torch.stack(xs, dim=axis),
    "split": lambda x, size, axis=0: torch.split(x, size, dim=axis),
    "expand": lambda x, shape: x.expand(shape),
    "sum": reduce(torch.sum),
    "mean": reduce(torch.mean),
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, axes=None: x.permute(axes or tuple(range(x.ndim))[::-1]),
    "index": index,
    "concatenate": lambda *xs, axis=0: torch.cat(xs, dim=axis),
    "matmul": torch.matmul,
    "linear": lambda x, weight, bias: F.linear(x, weight.T, bias),
    "mlp": mlp,
    "add_layernorm": add_layernorm,
    "linear_cross_entropy": linear_cross_entropy,
    "linear_bfloat16": lambda x, w, bias=None: F.linear(x, w.view(torch.bfloat16).to(x.dtype), bias),
    "linear_int8": lambda x, q, scale, bias=None: F.linear(x, q.to(x.dtype) * scale[:, None], bias),
    "split_heads": lambda x, n_head: tuple(t.unflatten(-1, (n_head, -1)).transpose(1, 2) for t in x.chunk(3, dim=-1)),
    "merge_heads": lambda x: x.transpose(1, 2).flatten(2),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "softmax": along(torch.softmax),
    "log_softmax": along(torch.log_softmax),
    "layernorm": lambda x, w, b, eps=1e-5: F.layer_norm(x, w.shape, w, b, eps),
    "embedding": lambda weight, ids: F.embedding(ids, weight),
    "cross_entropy": cross_entropy,
    "attention": attention,
    "dropout": dropout,
}


def test_every_op_has_a_peer():
    assert set(PEERS) == set(REFERENCE)


# -- what is tried ---------------------------------------------------------------------------------------------------

_BROADCAST = [sample((2, 1, 3, 1), (4, 1, 5)), sample((1, 1, 1), (2, 3)), sample((2, 3), (1, 2, 1, 3))]
_AXES = [sample((2, 3, 4, 5), axis=(-1, -3)), sample((2, 3, 4), axis=-2), sample((2, 3, 4), axis=(1,), keepdims=True)]

MORE = {
    "add": _BROADCAST,
    "sub": _BROADCAST,
    "mul": _BROADCAST,
    "div": [sample((2, 1, 3, 1), positive(4, 1, 5)), sample((1, 1, 1), positive(2, 3))],
    "pow": [sample(positive(2, 1, 3, 1), (4, 1, 5)), sample(positive(2, 3), (1, 2, 1, 3))],
    "sum": _AXES,
    "max": _AXES,
    "min": _AXES,
    "var": _AXES,
    "std": _AXES,
    "maximum": _BROADCAST,
    "minimum": _BROADCAST,
    "mean": _AXES,
    "softmax": [sample((2, 3, 4), axis=-2), sample((2, 3, 4), axis=-3)],
    "log_softmax": [sample((2, 3, 4), axis=-2), sample((2, 3, 4), axis=-3)],
    "reshape": [sample((2, 3, 4, 5), shape=(6, -1)), sample((6,), shape=(1, 3, 1, 2))],
    "transpose": [sample((2, 3, 4, 5), axes=(-1, 0, -2, 1)), sample((2, 3, 4, 5), axes=(3, 0, 1, 2))],
    "concatenate": [sample((2, 3, 4), (2, 1, 4), axis=-2), sample((3, 4)), sample((1, 2), (3, 2), (2, 2))],
    "index": [
        sample((4, 5), key=np.array([[0, 3], [3, 3]])),
        sample((4, 5), key=np.array([-1, 3, -1])),  # one row three times, under two names
        sample((2, 3, 4), key=(np.array([0, 1, 1]), slice(None), np.array([2, 2, 2]))),
        sample((2, 3, 4), key=(Ellipsis, np.array([1, 1, 0]))),
        sample((2, 3, 4), key=(slice(None), np.array([[0, 2], [2, 2]]), slice(1, 3))),
        sample((3, 4), key=np.array([True, False, True])),
        sample((3, 4), key=np.arange(12).reshape(3, 4) % 3 == 0),
        sample((2, 3, 4), key=(0, Ellipsis, None, slice(-3, None, 2))),
    ],
    "matmul": [
        sample((2, 3, 1, 4, 5), (2, 5, 3)),
        sample((2, 1, 3, 4), (1, 6, 4, 5)),
        sample((1, 3, 4), (2, 4, 5)),
        sample((4,), (2, 3, 4, 5)),
        sample((2, 3, 5, 4), (4,)),
        sample((1,), (1, 5)),
    ],
    "linear": [sample((2, 3, 2, 4), (4, 5), (5,)), sample((4,), (4, 5), None), sample((1, 1, 1), (1, 1), (1,))],
    "layernorm": [sample((2, 3, 2, 5), (5,), (5,)), sample((5,), (5,), None, eps=1e-12)],
    "embedding": [sample((7, 4), integers(2, 3, 4, below=3)), sample((3, 1), integers(1, 1, below=3))],
    "cross_entropy": [
        sample((2, 2, 3, 7), integers(2, 2, 3, below=7)),
        sample((30, 4), integers(30, below=4), ignore_index=0),
        sample((5, 7), integers(5, below=7), ignore_index=-100),
    ],
    "attention": [
        sample((2, 3, 2, 4), (2, 3, 6, 4), (2, 3, 6, 4), p=0.2, key=5, first=6),
        sample((2, 3, 1, 4), (2, 3, 6, 4), (2, 3, 6, 4)),  # a single query, as in generation
        sample((3, 9, 1), (3, 9, 1), (3, 9, 1)),
    ],
}

ROWS = np.array([[1e4, 1e4, -1e4], [-300.0, 0.0, 300.0], [0.5, 0.5, 0.5]])
LINE = np.array([-40.0, -10.0, -6.0, -1.0, -1e-3, -0.0, 0.0, 1e-3, 1.0, 6.0, 10.0, 40.0])
WIDE = 1e3 * np.random.default_rng(5).standard_normal((3, 6, 4))

EDGES = {  # points where a formula that is right on paper overflows, divides by zero or loses its digits
    "softmax, large scores": ("softmax", [ROWS], {}),
    "softmax, masked scores": ("softmax", [np.array([[-np.inf, 0.0, 1.0], [-np.inf, -np.inf, 5.0]])], {}),
    "log_softmax, large scores": ("log_softmax", [ROWS], {}),
    "cross_entropy, large logits": ("cross_entropy", [ROWS, np.array([2, 2, 0])], {}),
    "cross_entropy, ignored targets": ("cross_entropy", [ROWS, np.array([-1, 2, -1])], {}),
    "attention, large scores": ("attention", list(WIDE), {}),
    "gelu, far out": ("gelu", [LINE], {}),
    "gelu_erf, far out": ("gelu_erf", [LINE], {}),
    "layernorm, rows all equal": ("layernorm", [np.full((2, 4), 3.0), np.arange(4.0), np.ones(4)], {}),
    "max, ties": ("max", [np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])], {"axis": 1}),
    "max, ties over all": ("max", [np.array([[1.0, 3.0, 3.0], [3.0, 2.0, 2.0]])], {}),
    "min, ties": ("min", [np.array([[1.0, 1.0, 3.0], [2.0, 2.0, 2.0]])], {"axis": 0, "keepdims": True}),
    "maximum, ties": ("maximum", [np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 3.0])], {}),
    "minimum, ties": ("minimum", [np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 3.0])], {}),
    "argmax, ties": ("argmax", [np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])], {"axis": 1}),
    "clip, on the limits": ("clip", [np.array([-1.0, -2.0, 0.0, 1.0, 2.0]), -1.0, 1.0], {}),
    "clip, limits crossed": ("clip", [np.array([-2.0, 0.0, 2.0]), np.array([1.0] * 3), np.array([-1.0] * 3)], {}),
    "abs, at zero": ("abs", [LINE], {}),
    "relu, at zero": ("relu", [LINE], {}),
    "sigmoid, far out": ("sigmoid", [1e2 * LINE], {}),
    "tanh, far out": ("tanh", [1e2 * LINE], {}),
    "std, all equal": ("std", [np.full((2, 4), 3.0)], {"axis": 1}),
    "pow, zero and less to a scalar": ("pow", [np.array([0.0, -2.0, 3.0]), 3], {}),
    "pow, zero to the zero": ("pow", [np.array([0.0, 2.0]), 0], {}),
    "pow, zero to a tensor": ("pow", [np.array([0.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0])], {}),
}



def cast(arrays):
    return lambda dtype: [a.astype(dtype) if is_float(a) else a for a in arrays]


CASES = [
    pytest.param(name, s.arrays, s.options, id=f"{name}-{i}")
    for name in sorted(REFERENCE)
    for i, s in enumerate([*SAMPLES.get(name, ()), *MORE.get(name, ())])
]
CASES += [pytest.param(name, cast(arrays), options, id=label) for label, (name, arrays, options) in EDGES.items()]


# -- the comparison --------------------------------------------------------------------------------------------------


def both(name, arrays, options, wanted):
    """(result and gradients of ours, the same of PyTorch, the largest input value)."""
    results, largest = [], 0.0
    for op, tensor in ((lambda *xs, **o: apply(REFERENCE[name], *xs, **o), Tensor), (PEERS[name], torch.tensor)):
        inputs = [
            tensor(a, requires_grad=need) if isinstance(a, np.ndarray) else a for a, need in zip(arrays, wanted)
        ]
        out = op(*inputs, **options)
        if isinstance(out, tuple):
            out = joined(out) if tensor is Tensor else torch.stack(tuple(out))
        if not has_gradient(REFERENCE[name]):
            results.append([out.numpy()])
            continue
        dout = cotangent(out.detach().numpy())
        out.backward(torch.from_numpy(dout) if tensor is torch.tensor else dout)
        gradients = [np.asarray(x.grad) for x, need in zip(inputs, wanted) if need]
        results.append([out.detach().numpy(), *gradients])
        largest = max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in [*filter(is_float, arrays), dout])
    if name == "attention":  # ds = w (dw - sum dw w), then ds k: what cancels there is as large as |dout| |v| |k|
        q, k, v = (np.abs(x).max() for x in arrays[:3])
        largest = max(largest, np.abs(dout).max() * v * max(q, k) / math.sqrt(arrays[0].shape[-1]))
    return *results, largest


def compare(ours, theirs, largest):
    for got, expected in zip(ours, theirs, strict=True):
        assert got.shape == expected.shape and got.dtype == expected.dtype
        if got.dtype.kind != "f":
            assert np.array_equal(got, expected)
            continue
        size = max(np.abs(expected).max(initial=0.0), 0.01 * largest)
        assert np.abs(got - expected).max(initial=0.0) <= LAST_PLACES * np.finfo(got.dtype).eps * size


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name, draw, options", CASES)
def test_values_and_gradients_equal_pytorchs(name, draw, options, dtype):
    arrays = draw(dtype)
    compare(*both(name, arrays, options, wanted=[is_float(a) for a in arrays]))


@pytest.mark.parametrize("name, draw, options", CASES)
def test_a_gradient_is_the_same_when_it_alone_is_wanted(name, draw, options):
    arrays = draw(np.float64)
    for i, array in enumerate(arrays):
        if is_float(array):
            compare(*both(name, arrays, options, wanted=[j == i for j in range(len(arrays))]))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "matmul", "concatenate", "attention"])
def test_one_tensor_in_every_place_gets_the_sum_of_its_gradients(name):
    values = 2 + np.random.default_rng(6).random((4, 4))
    n = 3 if name == "attention" else 2
    x, peer = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    out, torch_out = apply(REFERENCE[name], *[x] * n), PEERS[name](*[peer] * n)
    dout = cotangent(out.data)
    out.backward(dout)
    torch_out.backward(torch.from_numpy(dout))
    compare([out.numpy(), x.grad], [torch_out.detach().numpy(), peer.grad.numpy()], largest=3.0)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_ids_may_be_integers_of_any_kind(kind):
    weight, ids = np.random.default_rng(7).standard_normal((7, 4)), np.array([[0, 6, 6], [2, 0, 6]])
    x, peer = Tensor(weight, requires_grad=True), torch.tensor(weight, requires_grad=True)
    out = ops.embedding(x, ids.astype(kind))
    loss = ops.cross_entropy(out, np.array([[0, 3, 1], [2, 2, 0]], kind))
    loss.backward()
    torch_loss = cross_entropy(F.embedding(torch.from_numpy(ids), peer), torch.tensor([[0, 3, 1], [2, 2, 0]]))
    torch_loss.backward()
    compare([loss.numpy(), x.grad], [torch_loss.detach().numpy(), peer.grad.numpy()], largest=1.0)
