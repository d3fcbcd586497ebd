from ops.layernorm import LayerNorm
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class AddLayerNorm(Function, name="add_layernorm"):
    """Add to the residual stream and read it through a layernorm, fused, as the second half of a block needs it.

        sum = x + delta        out = layernorm(sum)               two results

    Backward.  sum is used twice, by what follows and by the layernorm, so two gradients meet; x and delta go into
    it with factor 1 and get the same:

        dx = ddelta = dsum + (dx of ops/layernorm.py at sum, given dout)
    """

    def forward(self, x, delta, weight, bias=None, eps=1e-5):     # x, delta (..., C); weight, bias (C,)
        norm = LayerNorm(self.xp, self.needs_grad)
        s = x + delta
        out = norm.forward(s, weight, bias, eps)
        self.save(*norm.saved)                                    # (sum, weight, mean, rstd)
        return s, out

    def backward(self, douts):
        dsum, dout = douts
        norm = LayerNorm(self.xp, self.needs_grad)
        norm.saved = self.saved
        dx, dweight, dbias = norm.backward(dout)
        dx = dx + dsum
        return dx, dx, dweight, dbias


def add_layernorm(x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5,
                  ) -> tuple[Tensor, Tensor]:
    """(x + delta, layernorm(x + delta)) for x, delta (..., C), weight (C,), bias (C,) or None."""
    return apply(AddLayerNorm, x, delta, weight, bias, eps=eps)
