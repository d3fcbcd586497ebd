from typing import Any

from ops.products import multiply
from tinygrad2.bfloat16 import unpack_bfloat16
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class LinearBfloat16(Function, name="linear_bfloat16"):
    """A linear map whose weights are kept as bfloat16, half the memory of float32.

        weight[o, i] = the float32 whose upper half is w[o, i]        out = x weightT + bias

    Generating a text reads every weight once per token and does next to nothing else, so it takes as long as reading
    does. A product in bfloat16 (tinygrad2/precision.py) rounds the weight in any case: its bits are the same.

    Backward.  w is not trained and gets no gradient; the others as in ops/linear.py:

        dx = dout weight        dbias = sum over rows of dout
    """

    def forward(self, x, w, bias=None):                           # x (..., I), w (O, I) uint16, bias (O,)
        self.save(x, w)
        out = multiply(self, x, self._unpacked(w, x).T)           # (..., O)
        return out if bias is None else out + bias

    def backward(self, dout):
        x, w = self.saved
        dx = multiply(self, dout, self._unpacked(w, x))           # (..., I)
        return dx, None, dout.sum(tuple(range(x.ndim - 1)))

    def _unpacked(self, w, like):
        return unpack_bfloat16(w.reshape(-1)).reshape(w.shape).astype(like.dtype, copy=False)      # (O, I)


def linear_bfloat16(x: Tensor, w: Any, bias: Any = None) -> Tensor:
    """x (..., I) by the matrix w (O, I), bfloat16 numbers as uint16, plus bias (O,) or None: (..., O)."""
    return apply(LinearBfloat16, x, w, bias)
