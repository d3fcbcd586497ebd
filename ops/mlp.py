from ops.gelu import GELU
from ops.gelu_erf import GELUErf
from ops.linear import Linear
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class MLP(Function):
    """Two linear maps with a nonlinearity (GELU) between them, fused into one op.

        h = x weight1 + bias1        g = gelu(h)        out = g weight2 + bias2

    Of the three steps only x and h are kept: h is 4C wide, g is as large again, and computing g again from h costs
    next to nothing compared with the products. Backward is the chain of three ops, ops/linear.py, ops/gelu.py,
    ops/linear.py:

        dweight2 = gT dout        dbias2 = sum over rows of dout        dg = dout weight2T
        dh = dg gelu'(h)
        dweight1 = xT dh          dbias1 = sum over rows of dh          dx = dh weight1T
    """

    def forward(self, x, weight1, bias1, weight2, bias2, exact=False):   # x (..., C), weight1 (C, H), weight2 (H, O)
        h = self._step(Linear).forward(x, weight1, bias1)         # (..., H)
        g = self._step(GELUErf if exact else GELU).forward(h)     # (..., H)
        self.save(x, h, weight1, weight2, exact)
        return self._step(Linear).forward(g, weight2, bias2)      # (..., O)

    def backward(self, dout):
        x, h, weight1, weight2, exact = self.saved
        gelu = self._step(GELUErf if exact else GELU)
        g = gelu.forward(h)
        dg, dweight2, dbias2 = self._step(Linear, g, weight2).backward(dout)
        (dh,) = gelu.backward(dg)
        dx, dweight1, dbias1 = self._step(Linear, x, weight1).backward(dh)
        return dx, dweight1, dbias1, dweight2, dbias2

    def _step(self, op, *saved):
        """One use of another op, with what its forward would have saved, in our precision."""
        step = op(self.xp, (True, True, True) if any(self.needs_grad) else (False,))
        step.saved, step.precision = saved, self.precision
        return step


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
        exact: bool = False) -> Tensor:
    """gelu(x @ weight1 + bias1) @ weight2 + bias2; `exact` chooses gelu_erf. Biases may be None."""
    return apply(MLP, x, weight1, bias1, weight2, bias2, exact=exact)
