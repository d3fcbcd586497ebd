from ops.products import multiply
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Linear(Function):
    """Each row of x mapped by the same matrix, plus a bias.

        out = x weight + bias

    The weight is stored (in, out) as in GPT-2's files, so the formula needs no transpose. All axes of x but the last
    count rows: they are folded into one, which makes it a single large matrix product.

    Backward.  As for the matrix product (see ops/matmul.py); the bias goes into every row, so every row adds to its
    gradient:

        dx = dout weightT        dweight = xT dout        dbias = sum over rows of dout
    """

    def forward(self, x, weight, bias=None):                      # x (..., I), weight (I, O), bias (O,)
        self.save(x, weight)
        rows = x.reshape(-1, x.shape[-1])                         # (N, I)
        out = multiply(self, rows, weight)                        # (N, O)
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], weight.shape[1])        # (..., O)

    def backward(self, dout):
        x, weight = self.saved
        need_x, need_weight, need_bias = self.needs_grad
        drows = dout.reshape(-1, dout.shape[-1])                  # (N, O)
        rows = x.reshape(-1, x.shape[-1])                         # (N, I)
        return (
            multiply(self, drows, weight.T).reshape(x.shape) if need_x else None,
            multiply(self, rows.T, drows) if need_weight else None,
            drows.sum(0) if need_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias for x (..., I), weight (I, O), bias (O,) or None."""
    return apply(Linear, x, weight, bias)
