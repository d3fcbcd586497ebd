"""Lab clip_grad_norm: the factor that makes a gradient's norm at most max_norm."""

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab, Wrong

LAB = Lab(
    "clip_grad_norm", "tinygrad2/optim.py", "the factor that clips a gradient by its norm",
    "norm is a 0-d array, the norm of all gradients together. Return the factor (a 0-d array, or a float) by which "
    "they are multiplied so that their norm is at most max_norm: less than 1 if it is larger, else 1. max_norm = 0 "
    "means no clipping: 1. A norm of 0 must not divide by zero. xp_of(norm) is numpy, or cupy.",
    (
        "If norm is larger than max_norm, all gradients are multiplied by max_norm / norm: the direction stays.",
        "If it is smaller, they stay as they are: clipping never makes a gradient longer.",
        "min(1, max_norm / (norm + 1e-6)): the 1e-6 keeps a norm of zero from dividing. A Python `if` on the norm "
        "would make a GPU wait, so it is xp.minimum; `if max_norm` is one on a flag, and costs nothing.",
    ),
)  # fmt: skip


def _check(student, norm, max_norm, dtype=np.float64):
    norm = np.asarray(norm, dtype)
    right = min(1.0, max_norm / (float(norm) + 1e-6)) if max_norm else 1.0
    plain = max_norm / (float(norm) + 1e-6)
    suspects = {
        "smaller gradients are scaled up: the minimum with 1 is missing": plain,
        "the fraction is the other way round, norm / max_norm": float(norm) / max_norm if max_norm else np.inf,
        "the norm after clipping is returned, not the factor": min(float(norm), max_norm),
        "the larger of 1 and the fraction is taken": max(1.0, plain),
        "max_norm itself is returned": max_norm,
        "the norm is squared": max_norm / float(norm) ** 2 if norm else np.inf,
        "it is the root of the fraction": plain**0.5,
    }
    if not max_norm:
        suspects = {"max_norm = 0 is taken as a limit: all gradients become zero": 0.0}
    suspects = {text: value for text, value in suspects.items() if not np.isclose(value, right, 1e-4)}
    try:
        with np.errstate(divide="raise", invalid="raise"):
            found = student.clip_scale(norm, max_norm)
    except FloatingPointError:
        raise Wrong(f"clip_scale({float(norm):.4g}, {max_norm:.4g}) divides by zero: add 1e-6 to the norm, or divide "
                    "by the larger of both") from None  # fmt: skip
    compare(f"clip_scale({float(norm):.4g}, {max_norm:.4g})", found, np.float64(right), 1e-4, suspects=suspects)


@LAB.case(3, "a norm that is larger than max_norm")
def _(student, rng):
    for _ in range(5):
        max_norm = float(rng.uniform(0.3, 3))
        _check(student, max_norm * rng.uniform(1.5, 50), max_norm)


@LAB.case(3, "a norm that is smaller: the factor is 1")
def _(student, rng):
    for _ in range(5):
        max_norm = float(rng.uniform(0.3, 3))
        _check(student, max_norm * rng.uniform(0.1, 0.8), max_norm)


@LAB.case(2, "max_norm = 0 switches it off, and a norm of 0 divides nothing by zero")
def _(student, rng):
    _check(student, rng.uniform(1, 5), 0.0)
    _check(student, 0.0, 0.0)
    _check(student, 0.0, float(rng.uniform(0.5, 2)))


@LAB.case(2, "the norm of what was clipped, in float32")
def _(student, rng):
    grad = (rng.standard_normal(1000) * 10).astype(np.float32)
    max_norm = float(rng.uniform(0.5, 2))
    scale = student.clip_scale(student.grad_norm(grad), max_norm)
    if not isinstance(scale, (np.ndarray, np.generic, int, float)):
        raise Wrong(f"the factor is {type(scale).__name__}; it must be a 0-d array, or a float")
    clipped = grad * scale
    if np.asarray(scale).ndim:
        raise Wrong(f"the factor has shape {np.asarray(scale).shape}; it must be one number")
    if clipped.dtype != np.float32:
        raise Wrong(f"float32 gradients times the factor are {clipped.dtype}: keep the dtype of the norm")
    compare("the norm of 1,000 clipped gradients", np.linalg.norm(clipped), np.float64(max_norm), 1e-4)
