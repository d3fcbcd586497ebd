"""Lab gelu_backward: the product rule, with GPT-2's tanh form."""

import math

import numpy as np

from tinygrad2.labs.gradients import Use, check_in_the_engine, transposed
from tinygrad2.labs.lab import Lab

LAB = Lab(
    "gelu_backward", "ops/gelu.py", "the gradient of GELU in its tanh form",
    "dout (...) is dL/dout and x (...) what forward was given. self._tanh_u(x) is tanh(u); _SCALE is sqrt(2/pi), and "
    "_CUBIC is 0.044715. Return a tuple of one array: dx.",
    (
        "out = x * (1 + tanh u) / 2 is a product of two functions of x: the derivative has two terms.",
        "The derivative of tanh(u) is 1 - tanh(u)^2, times du/dx.",
        "du/dx = sqrt(2/pi) * (1 + 3 * 0.044715 * x * x).",
    ),
)  # fmt: skip


def _check(student, x, rng, layout=np.asarray):
    use = Use(student.GELU, {"x": layout(x)}, rng, layout=layout)
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    u = scale * (x + cubic * x**3)
    t = np.tanh(u)
    first, inner, du = (1 + t) / 2, x * (1 - t * t) / 2, scale * (1 + 3 * cubic * x * x)
    exact = np.vectorize(lambda a: (1 + math.erf(a / math.sqrt(2))) / 2 + a * math.exp(-a * a / 2)
                         / math.sqrt(2 * math.pi))(x)  # fmt: skip
    dout = use.dout
    use.check(
        "x",
        sizes={"sqrt(2/pi)": scale},
        terms={"the first term, dout (1 + tanh u) / 2,": dout * first,
               "the second term, dout x (1 - tanh(u)^2) / 2 du/dx,": dout * inner * du},
        suspects={
            "du/dx is left out (the chain rule stops at u)": dout * (first + inner),
            "the derivative of tanh is taken as 1 + tanh^2": dout * (first + x * (1 + t * t) / 2 * du),
            "du/dx has no term of x^2": dout * (first + inner * scale),
            "the 3 of the derivative of x^3 is missing": dout * (first + inner * scale * (1 + cubic * x * x)),
            "the derivative of x^3 is taken as 3 x": dout * (first + inner * scale * (1 + 3 * cubic * x)),
            "x is missing in the second term": dout * (first + (1 - t * t) / 2 * du),
            "the derivative of tanh is taken as 1 - tanh, without the square": dout * (first + x * (1 - t) / 2 * du),
            "it is the derivative of the exact GELU, the one with erf; the forward pass here has tanh": dout * exact,
            "the forward pass is returned": x * first,
            "tanh(x) stands where tanh(u) belongs": dout * ((1 + np.tanh(x)) / 2 + x * (1 - np.tanh(x) ** 2) / 2 * du),
            "u stands where tanh(u) belongs": dout * ((1 + u) / 2 + x * (1 - u * u) / 2 * du),
            "the second term of du/dx has the wrong sign": dout * (first + inner * scale * (1 - 3 * cubic * x * x)),
        },
        factors={"dout": dout},
    )  # fmt: skip


@LAB.case(5, "x (5, 7), between -3 and 3")
def _(student, rng):
    _check(student, rng.uniform(-3, 3, (5, 7)), rng)


@LAB.case(2, "three axes, a vector, and one number")
def _(student, rng):
    for shape in ((2, 3, 4), (5,), ()):
        _check(student, np.asarray(rng.standard_normal(shape)), rng)


@LAB.case(2, "large x: the gradient is dout on one side and 0 on the other")
def _(student, rng):
    _check(student, np.concatenate([rng.uniform(6, 80, 6), rng.uniform(-80, -6, 6)]), rng)


@LAB.case(1, "arrays that are not contiguous, and inside a graph")
def _(student, rng):
    _check(student, rng.standard_normal((4, 3, 2)), rng, transposed)
    return check_in_the_engine(student.GELU, {"x": rng.standard_normal((3, 4))}, rng)
