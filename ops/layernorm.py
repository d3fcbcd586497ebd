from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class LayerNorm(Function):
    """Give each row of C channels mean 0 and variance 1, then a learned scale and shift.

        mean = avg(x)        var = avg((x - mean)^2)
        rstd = 1 / sqrt(var + eps)
        xhat = (x - mean) * rstd
        out = xhat * weight + bias

    (avg is over the C channels of a row; the bias may be left out.)

    Backward.  Write g = dout * weight, the gradient at xhat. x_j reaches xhat on three paths, and on each gets the sum
    over i of g_i dxhat_i/dx_j:

        directly:
            dxhat_j/dx_j = rstd
            rstd * g_j

        through mean:
            dxhat_i/dmean = -rstd
            dmean/dx_j = 1/C
            sum_i g_i (-rstd)/C = -rstd * avg(g)

        through rstd:
            dxhat_i/drstd = x_i - mean = xhat_i/rstd
            drstd/dvar = -rstd^3/2
            dvar/dx_j = 2 (x_j - mean)/C
            drstd/dx_j = -rstd^2 xhat_j/C
            sum_i g_i xhat_i (-rstd xhat_j)/C
                = -rstd * xhat_j * avg(g * xhat)

    (mean also moves var, but at the mean itself the sum of (x - mean) is zero, so that path is closed.) Together

        dx = rstd * (g - avg(g) - xhat * avg(g * xhat))
        dweight = sum over rows of dout * xhat
        dbias = sum over rows of dout

    In words: dx is g with its mean and its component along xhat removed, because changes in those directions are
    just what the normalisation undoes. Ba, Kiros and Hinton, "Layer normalization", 2016, equations 3-4.
    """

    def forward(self, x, weight, bias=None, eps=1e-5):            # x (..., C); weight, bias (C,)
        mean = x.mean(-1, keepdims=True)                          # (..., 1)
        rstd = 1 / self.xp.sqrt(x.var(-1, keepdims=True) + eps)   # (..., 1)
        self.save(x, weight, mean, rstd)                          # xhat is C times bigger: recompute it
        out = (x - mean) * rstd * weight
        return out if bias is None else out + bias

    def backward(self, dout):
        x, weight, mean, rstd = self.saved
        # lab: begin layernorm_backward
        xhat, g = (x - mean) * rstd, dout * weight
        dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
        rows = tuple(range(x.ndim - 1))                           # every axis but the channels
        return dx, (dout * xhat).sum(rows), dout.sum(rows)
        # lab: end layernorm_backward


def layernorm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise the last axis of x (..., C), scale by weight (C,), shift by bias (C,) or None."""
    return apply(LayerNorm, x, weight, bias, eps=eps)
