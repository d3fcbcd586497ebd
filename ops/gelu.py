import math

from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply

_SCALE = math.sqrt(2 / math.pi)                                   # a Python float: float32 stays float32
_CUBIC = 0.044715


class GELU(Function):
    """The Gaussian error linear unit in GPT-2's tanh form: x times about P(normal variable < x).

        u = sqrt(2/pi) (x + 0.044715 x^3)        out = x (1 + tanh u) / 2

    Backward.  The product rule, with d tanh(u)/du = 1 - tanh(u)^2 and du/dx = sqrt(2/pi) (1 + 3 * 0.044715 x^2):

        dx = dout * [ (1 + tanh u) / 2  +  x (1 - tanh(u)^2) / 2 * du/dx ]

    Hendrycks and Gimpel, "Gaussian error linear units", 2016, section 2. The exact form is ops/gelu_erf.py; the two
    differ by up to 4.7e-4, enough to see in the logits of released weights.
    """

    def forward(self, x):                                         # x (...)
        self.save(x)
        return 0.5 * x * (1 + self._tanh_u(x))

    def backward(self, dout):
        (x,) = self.saved
        # lab: begin gelu_backward
        t = self._tanh_u(x)
        du = _SCALE * (1 + 3 * _CUBIC * (x * x))
        return (dout * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du),)
        # lab: end gelu_backward

    def _tanh_u(self, x):
        return self.xp.tanh(_SCALE * (x + _CUBIC * (x * x * x)))


def gelu(x: Tensor) -> Tensor:
    """GELU, tanh form (GPT-2, "gelu_new"), elementwise."""
    return apply(GELU, x)
