"""The requirements of every kernel, as functions: test_ops.py runs them over all kernels."""

import numpy as np

import ops
from tinygrad2.deferred import DeferredGradient
from tinygrad2.function import Function


def run(op, arrays, options, dout=None, needs=None):
    """Forward and backward of one Function on plain NumPy arrays: (out, dout, gradients).

    The results of an op that returns several (all of one shape) are stacked, as is dout. An op without a gradient runs
    forward only: (out, None, []).
    """
    needs = [is_float(a) for a in arrays] if needs is None else needs
    node = op(np, needs)
    out, several = stacked(node.forward(*arrays, **options))
    if not has_gradient(op):
        return out, None, []
    dout = cotangent(out) if dout is None else dout
    gradients = node.backward(tuple(dout) if several else dout)
    return out, dout, [settle(g) if need else None for g, need in zip(gradients, needs)]


def stacked(out, xp=np):
    """(one array, was it several?)."""
    return (xp.stack(out), True) if isinstance(out, tuple) else (xp.asarray(out), False)


def joined(out):
    """One Tensor of the several that an op returns, in the shape that `stacked` makes."""
    return ops.concatenate([part.reshape(1, *part.shape) for part in out]) if isinstance(out, tuple) else out


def settle(gradient):
    """A gradient as an array; a deferred one is written twice, set and added, and must be the same."""
    if not isinstance(gradient, DeferredGradient):
        return gradient
    set_to = gradient.copy()
    added = np.ones_like(set_to)
    gradient.write_to(added, accumulate=True)
    assert set_to.shape == gradient.shape and set_to.dtype == gradient.dtype
    assert np.allclose(added, set_to + 1, rtol=1e-5, atol=1e-5)
    return set_to


def is_float(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def cotangent(out):
    return np.asarray(np.random.default_rng(1).standard_normal(out.shape), dtype=out.dtype)


def error(got, exact, size=0.0):
    """The largest difference, relative to the largest exact value, or to `size` if that is larger."""
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    return float(np.abs(got - exact).max(initial=0.0) / max(1e-30, size, np.abs(exact).max(initial=0.0)))


def check_parity(kernel, op, sample):
    """A kernel's float32 errors against float64 are at most twice the reference's own (or a few ulps, if that is 0).

    A result that is zero except for rounding (everything cancels) is measured by the largest input value.
    """
    arrays = sample.arrays(np.float32)
    if not kernel.supports(*arrays):
        return False
    wide = [a.astype(np.float64) if is_float(a) else a for a in arrays]
    fast_out, dout, fast_grads = run(kernel, arrays, sample.options)
    reference_out, _, reference_grads = run(op, arrays, sample.options, dout)
    exact_out, _, exact_grads = run(op, wide, sample.options, dout.astype(np.float64))
    references = [reference_out, *reference_grads]
    for fast, reference, exact in zip([fast_out, *fast_grads], references, [exact_out, *exact_grads]):
        if exact is None:
            continue
        assert fast.dtype == np.float32 and fast.shape == exact.shape
        largest = max(np.abs(a).max(initial=0.0) for a in [*filter(is_float, arrays), dout])
        size = largest if np.abs(exact).max(initial=0.0) < 1e-13 * largest else 0.0
        assert error(fast, exact, size) <= max(2 * error(reference, exact, size), 5e-7)
    return True


def check_contract(kernel, op, sample):
    """The kernel's forward with the reference's backward, and the other way round, compute what the reference computes.

    Only checked if the kernel saves what the reference saves; one that saves something else overrides both methods.
    """
    arrays = sample.arrays(np.float32)
    if not kernel.supports(*arrays) or {"forward", "backward"} <= set(vars(kernel)):
        return False
    _, dout, reference = run(op, arrays, sample.options)
    for forward, backward in ((kernel, op), (op, kernel)):
        mixed = type("Mixed", (op,), {"forward": forward.forward, "backward": backward.backward}, backend="nowhere")
        _, _, gradients = run(mixed, arrays, sample.options, dout)
        for got, expected in zip(gradients, reference):
            assert (got is None) == (expected is None)
            assert got is None or error(got, expected) < 1e-5
    return True


def has_gradient(op):
    """Does the op define a backward? (Comparisons do not: their results are booleans.)"""
    return op.backward is not Function.backward


def reference_ops(registry):
    """{name: op} of the ops of this project, without those that tests define."""
    return {name: op for name, op in registry.items() if op.__module__.startswith("ops.") and issubclass(op, Function)}
