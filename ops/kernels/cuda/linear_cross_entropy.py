"""Head and loss on the GPU. Same formulas; what changes, and why:

- Logits are made, turned into p - onehot in place (cross_entropy.py) and used up in chunks of rows of at most
  GPU_LOGITS_CHUNK bytes, so that no array of all logits exists: B=64 T=1024 has 6.6 GB of them in 16 bits.
- dx and dweight are computed for dlogits = p - onehot during forward, while the chunk is there. Backward multiplies
  both by dout / N, which only the GPU knows: a pass over dx and one over dweight (8 bytes a weight, or 12 if it is
  added), in place of a host that waits, and of small numbers that float16 would round to 0 (cross_entropy.py).
- Rows of the chunk are a multiple of 64 numbers apart, whatever V is: products and kernels read them by 16 bytes.
- dweight is kept in the memory of the parameter's gradient while that is stale, as on the CPU
  (ops/kernels/cpu/linear_cross_entropy.py), and is computed again if something else has been written there since.
- In mixed precision logits, dlogits and dx have 16 bits; losses and dweight are float32.
"""

import numpy as np

from ops.kernels.cuda.cast import activation
from ops.kernels.cuda.cross_entropy import device_ids, mean_loss, scale, softmax_loss
from ops.kernels.cuda.elements import is_computed
from ops.kernels.cuda.products import gemm
from ops.linear_cross_entropy import LinearCrossEntropy
from tinygrad2.deferred import DeferredGradient
from tinygrad2.halves import half_of, is_half
from tinygrad2.module import Parameter
from tinygrad2.system.memory import GPU_LOGITS_CHUNK

_APART = 64                                                       # numbers: rows begin at multiples of 128 bytes


class LinearCrossEntropyCUDA(LinearCrossEntropy, backend="cupy"):
    products_in_forward = True  # those of backward, too (monitor/op_costs.py)
    saves_halves = True

    @classmethod
    def supports(cls, x, weight, targets):
        fits = is_computed(x) and x.size > 0 and x.shape[-1:] == weight.shape[1:]
        return fits and weight.dtype == np.float32 and targets.shape == x.shape[:-1]

    def forward(self, x, weight, targets, ignore_index=-1):
        xp, shape = self.xp, x.shape
        rows = activation(self, x).reshape(-1, shape[-1])         # (N, C)
        t = device_ids(xp, targets)
        need_x, need_weight, _ = self.needs_grad
        parameter, borrower, dweight = self.leaf(1), object(), None
        if need_weight and isinstance(parameter, Parameter):
            dweight = parameter.lend_grad(borrower)
        is_lent = dweight is not None
        if need_weight and not is_lent:
            dweight = xp.empty(weight.shape, np.float32)
        dx = xp.empty(rows.shape, rows.dtype) if need_x else None
        losses = xp.empty(len(rows), np.float32)
        chunks = Chunks(xp, rows, weight, t, ignore_index, self.precision)
        chunks.run(losses, dx, dweight)
        loss, share = mean_loss(xp, losses, t, ignore_index)
        lent = (parameter, borrower, chunks) if is_lent else None
        self.save(shape, dx, None if is_lent else dweight, lent, share)
        return loss

    def backward(self, dout):
        shape, dx, dweight, lent, share = self.saved
        if dx is not None:
            dx = scale(self.xp, dx, dx, dout, share).reshape(shape)
        if not self.needs_grad[1]:
            return dx, None, None
        xp, source = self.xp, _lent(*lent) if lent else lambda out, accumulate: dweight

        def write_to(out, accumulate):
            scale(xp, source(out, accumulate), out, dout, share, accumulate)

        weight_shape = lent[0].shape if lent else dweight.shape
        return dx, DeferredGradient(xp, weight_shape, np.dtype(np.float32), write_to), None


class Chunks:
    """The logits of rows (N, C) and weight (V, C), a part of the rows at a time in the same memory."""

    def __init__(self, xp, rows, weight, targets, ignore_index, precision):
        self.xp, self.rows, self.weight, self.targets = xp, rows, weight, targets
        self.ignore_index, self.precision = ignore_index, precision

    def run(self, losses, dx, dweight):
        """Write the rows' losses (N,); and the gradients for dlogits = p - onehot to dx (N, C) and dweight (V, C),
        float32, where these are not None."""
        xp, rows, V = self.xp, self.rows, len(self.weight)
        weight = half_of(self.weight, rows.dtype) if is_half(rows.dtype) else self.weight
        width = -(-V // _APART) * _APART
        n_chunks = -(-len(rows) * width * rows.itemsize // GPU_LOGITS_CHUNK)
        size = -(-len(rows) // n_chunks)                          # equal chunks, none above GPU_LOGITS_CHUNK
        memory = xp.empty((size, width), rows.dtype)
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            logits = memory[: part.stop - start, :V]
            gemm(rows[part], weight.T, logits, precision=self.precision)
            dlogits = None if dx is None and dweight is None else logits
            softmax_loss(xp, logits, self.targets[part], self.ignore_index, losses[part], dlogits)
            if dx is not None:
                gemm(dlogits, weight, dx[part], precision=self.precision)
            if dweight is not None:
                gemm(dlogits.T, rows[part], dweight, accumulate=start > 0, precision=self.precision)


def _lent(parameter, borrower, chunks):
    """A function of where dweight belongs that returns dweight without its factor: from the parameter's gradient; if
    something else has been written there since, it is computed again."""

    def source(out, accumulate):
        if parameter.has_lent_to(borrower) and not accumulate:
            return parameter.lend_grad(borrower)
        dweight = chunks.xp.empty(parameter.shape, np.float32)
        chunks.run(chunks.xp.empty(len(chunks.rows), np.float32), None, dweight)
        return dweight

    return source
