from ops.broadcast import unbroadcast
from ops.products import multiply
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply


class MatMul(Function):
    """The matrix product of the last two axes; the axes before them are batches and broadcast.

        out[i, j] = sum over k of a[i, k] b[k, j]

    Backward.  a[i, k] appears in row i of the result only, each time multiplied by b[k, j]:

        da[i, k] = sum over j of dout[i, j] b[k, j]        da = dout bT
        db[k, j] = sum over i of a[i, k] dout[i, j]        db = aT dout

    (The shapes alone determine it: (n, m) (m, k) is the only way to get da of shape (n, k).) If a batch axis was
    broadcast, its gradient is summed. A vector is a matrix with one row (a) or one column (b), as in NumPy.
    """

    mixes_integers = True

    def forward(self, a, b):                                      # a (..., n, k), b (..., k, m), or vectors (k,)
        self.save(a, b)
        return multiply(self, a, b)                               # (..., n, m)

    def backward(self, dout):
        a, b = self.saved
        a_shape, b_shape = a.shape, b.shape
        if b.ndim == 1:
            b, dout = b[:, None], dout[..., None]                 # (k, 1), (..., n, 1)
        if a.ndim == 1:
            a, dout = a[None, :], dout[..., None, :]              # (1, k), (..., 1, m)
        need_a, need_b = self.needs_grad
        da = db = None
        # lab: begin matmul_backward
        if need_a:
            da = unbroadcast(multiply(self, dout, b.swapaxes(-1, -2)), a.shape).reshape(a_shape)
        if need_b:
            db = unbroadcast(multiply(self, a.swapaxes(-1, -2), dout), b.shape).reshape(b_shape)
        # lab: end matmul_backward
        return da, db


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """a @ b."""
    return apply(MatMul, a, b)
