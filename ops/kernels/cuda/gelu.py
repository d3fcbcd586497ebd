"""GELU on the GPU, both forms. Same formulas; what changes, and why:

- One kernel each way. Forward reads x and writes out: 4 bytes an element in 16 bits, 8 in float32, where the
  reference's 9 operators move 84. Backward reads x and dout and writes dx: 6 bytes, or 12, where 19 operators move 176.
- tanh through one exp: (1 + tanh u) / 2 = e^2u / (e^2u + 1), with the GPU's approximate exp and division (errors of a
  few 2^-23); x is held to -8 .. 8 for it, so that no power of x overflows. The exact form is x erfc(-x / sqrt 2) / 2.
- Backward can write gelu(x) in the same pass, where x is at hand: mlp keeps h only, and needs both.
"""

import numpy as np

from ops.gelu import GELU
from ops.gelu_erf import GELUErf
from ops.kernels.cuda.cast import activation, cast
from ops.kernels.cuda.elements import is_computed, launch_elements


def gelu(xp, x, exact=False, out=None):
    """gelu(x), of a contiguous array of float32, float16 or bfloat16, in `out` if given: x itself, or one like it."""
    out = xp.empty(x.shape, x.dtype) if out is None else out
    launch_elements(xp, "gelu", "gelu_forward", x.dtype, (x, out), np.int32(exact))
    return out


def gelu_gradient(xp, x, dout, exact=False, dx=None, out=None):
    """dout gelu'(x), of contiguous arrays of one dtype, in `dx` if given, which may be dout; gelu(x) goes to `out` if
    that is given, which may be x."""
    dx = xp.empty(dout.shape, x.dtype) if dx is None else dx
    launch_elements(xp, "gelu", "gelu_backward", x.dtype, (x, dout, dx, out), np.int32(exact))
    return dx


class GELUCUDA(GELU, backend="cupy"):
    exact = False
    saves_halves = True

    @classmethod
    def supports(cls, x):
        return is_computed(x)

    def forward(self, x):
        x = activation(self, x)
        self.save(x)
        return gelu(self.xp, x, self.exact)

    def backward(self, dout):
        (x,) = self.saved
        return (gelu_gradient(self.xp, x, cast(self.xp, dout, x.dtype), self.exact),)


class GELUErfCUDA(GELUErf, backend="cupy"):
    exact = True
    saves_halves = True
    supports, forward, backward = GELUCUDA.supports, GELUCUDA.forward, GELUCUDA.backward
