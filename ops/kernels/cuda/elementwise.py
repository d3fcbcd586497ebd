"""Elementwise ops on the GPU, in float32: of one operand, or of two of one shape. Same formulas; what changes, and why:

- One launch each way, whatever the formula: x is read once and out written once, 8 bytes an element, where each
  operator of the reference reads and writes. Backward of tanh moves 12 bytes an element instead of 28, of sigmoid 12
  instead of 32, of maximum 20 instead of 66.
- Backward of two operands writes both gradients in one pass over a, b and dout.

What is broadcast, 16 bits and float64 are left to the reference. So are sums and means: CuPy's kernels for them read x
once and need one launch, and their order of summation does not change from run to run.
"""

import numpy as np

from ops.abs import Abs
from ops.div import Div
from ops.exp import Exp
from ops.kernels.cuda.elements import launch_elements
from ops.log import Log
from ops.maximum import Maximum
from ops.minimum import Minimum
from ops.mul import Mul
from ops.neg import Neg
from ops.relu import ReLU
from ops.sigmoid import Sigmoid
from ops.sqrt import Sqrt
from ops.sub import Sub
from ops.tanh import Tanh
from tinygrad2.backend import is_array

UNARY = ["exp", "log", "tanh", "sqrt", "relu", "sigmoid", "abs", "neg"]          # as in elementwise.cu
BINARY = ["sub", "mul", "div", "maximum", "minimum"]              # as in elementwise_pairs.cu


class _Unary:
    keeps = "x"                                                   # for backward: "x", "out" or nothing

    @classmethod
    def supports(cls, x):
        return x.dtype == np.float32

    def forward(self, x):
        out = self._launch("unary", x.shape, x)
        if self.keeps:
            self.save(x if self.keeps == "x" else out)
        return out

    def backward(self, dout):
        (kept,) = self.saved
        return (self._launch("unary_backward", dout.shape, kept, dout),)

    def _launch(self, name, shape, *inputs):
        xp, out = self.xp, self.xp.empty(shape, np.float32)
        inputs = (xp.ascontiguousarray(array) for array in inputs)
        launch_elements(xp, "elementwise", name, out.dtype, (*inputs, out), np.int32(UNARY.index(self.name)))
        return out


class _Binary:
    keeps = "a, b"

    @classmethod
    def supports(cls, a, b):
        return is_array(a) and is_array(b) and a.shape == b.shape and a.dtype == b.dtype == np.float32

    def forward(self, a, b):
        xp = self.xp
        out = xp.empty(a.shape, np.float32)
        a, b = xp.ascontiguousarray(a), xp.ascontiguousarray(b)
        if self.keeps:
            self.save(a, b)
        self._launch("binary", a, b, out)
        return out

    def backward(self, dout):
        xp, (a, b) = self.xp, self.saved
        gradients = [xp.empty(dout.shape, np.float32) if need else None for need in self.needs_grad]
        self._launch("binary_backward", a, b, xp.ascontiguousarray(dout), *gradients)
        return tuple(gradients)

    def _launch(self, name, *arrays):
        number = np.int32(BINARY.index(self.name))
        launch_elements(self.xp, "elementwise_pairs", name, arrays[0].dtype, arrays, number)


class ExpCUDA(_Unary, Exp, backend="cupy"):
    keeps = "out"


class LogCUDA(_Unary, Log, backend="cupy"):
    pass


class TanhCUDA(_Unary, Tanh, backend="cupy"):
    keeps = "out"


class SqrtCUDA(_Unary, Sqrt, backend="cupy"):
    keeps = "out"


class ReLUCUDA(_Unary, ReLU, backend="cupy"):
    pass


class SigmoidCUDA(_Unary, Sigmoid, backend="cupy"):
    keeps = "out"


class AbsCUDA(_Unary, Abs, backend="cupy"):
    pass


class NegCUDA(_Unary, Neg, backend="cupy"):
    keeps = ""

    def backward(self, dout):
        return (self._launch("unary", dout.shape, dout),)


class SubCUDA(_Binary, Sub, backend="cupy"):
    keeps = ""

    def backward(self, dout):
        return dout, -dout if self.needs_grad[1] else None


class MulCUDA(_Binary, Mul, backend="cupy"):
    pass


class DivCUDA(_Binary, Div, backend="cupy"):
    pass


class MaximumCUDA(_Binary, Maximum, backend="cupy"):
    pass


class MinimumCUDA(_Binary, Minimum, backend="cupy"):
    pass
