from typing import Any

from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class LinearInt8(Function, name="linear_int8"):
    """A linear map whose weights are kept as integers from -127 to 127, a quarter of the memory of float32.

        weight[o, i] = scale[o] q[o, i]        out[o] = scale[o] (sum over i of x[i] q[o, i]) + bias[o]

    Each output has a row of q and its own scale, taken out of the sum. Generating a text reads every weight once
    per token and does next to nothing else, so it takes as long as reading does: fewer bytes, less time.

    Backward.  q is a constant. As for every linear map,

        dx = (dout scale) q        dscale = sum over rows of dout (x qT)        dbias = sum over rows of dout

    Dettmers et al., "LLM.int8()", 2022, section 2 (absmax quantisation, here row by row and of the weights alone).
    """

    def forward(self, x, q, scale, bias=None):                    # x (..., I), q (O, I) int8, scale (O,), bias (O,)
        self.save(x, q, scale)
        out = x @ self._transposed(q, x) * scale                  # (..., O)
        return out if bias is None else out + bias

    def backward(self, dout):
        x, q, scale = self.saved
        rows = tuple(range(x.ndim - 1))
        qT = self._transposed(q, x)                               # (I, O)
        dx = (dout * scale) @ qT.T
        return dx, None, (dout * (x @ qT)).sum(rows), dout.sum(rows)

    def _transposed(self, q, like):
        return q.astype(like.dtype).T


def quantize_rows(xp, weight):
    """(q int8, scale) of a matrix (O, I): each row divided by its largest magnitude / 127, and rounded.

    No weight changes by more than half a scale.
    """
    scale = xp.maximum(xp.abs(weight).max(-1), 1e-30) / 127       # (O,); a row of zeros stays one
    q = xp.rint(weight / scale[:, None]).astype(xp.int8)
    return xp.ascontiguousarray(q), scale


def linear_int8(x: Tensor, q: Any, scale: Any, bias: Any = None) -> Tensor:
    """x (..., I) by the int8 matrix q (O, I) with a scale per row (O,), plus bias (O,) or None: (..., O)."""
    return apply(LinearInt8, x, q, scale, bias)
