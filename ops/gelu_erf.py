import math

from ops.erf import erf
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply

_RSQRT2 = 1 / math.sqrt(2)
_RSQRT2PI = 1 / math.sqrt(2 * math.pi)


class GELUErf(Function, name="gelu_erf"):
    """The Gaussian error linear unit, exact: x times the probability that a standard normal variable is below x.

        Phi(x) = (1 + erf(x / sqrt 2)) / 2        out = x Phi(x)

    Backward.  The derivative of a distribution function is its density, phi(x) = e^(-x^2/2) / sqrt(2 pi):

        dx = dout * (Phi(x) + x phi(x))

    Hendrycks and Gimpel, "Gaussian error linear units", 2016, section 2.
    """

    def forward(self, x):                                         # x (...)
        self.save(x)
        return x * (0.5 * (1 + erf(self.xp, x * _RSQRT2)))

    def backward(self, dout):
        (x,) = self.saved
        Phi = 0.5 * (1 + erf(self.xp, x * _RSQRT2))
        phi = _RSQRT2PI * self.xp.exp(-0.5 * (x * x))
        return (dout * (Phi + x * phi),)


def gelu_erf(x: Tensor) -> Tensor:
    """GELU, exact form ("gelu" of PyTorch and Hugging Face), elementwise."""
    return apply(GELUErf, x)
