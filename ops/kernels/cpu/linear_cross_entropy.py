"""Head and loss on the CPU. Same formulas; what changes, and what it bought:

- Logits are made, turned into dlogits in place, and used up in chunks of rows of at most LOGITS_CHUNK bytes, so that no
  array of all logits exists (B=4 T=1024: 750 MB less).
- A small batch is one chunk: its dlogits wait for backward, where both products take dout as BLAS's factor, and dweight
  is written straight to the parameter's gradient.
- Of several chunks nothing can wait. The loss is linear in dout, so dx and dweight are computed for dout = 1 during
  forward, while the chunk is there, and backward scales them.
- That dweight, 154 MB for GPT-2, is kept in the memory of the parameter's gradient, as long as that is stale
  (Parameter, tinygrad2/module.py). If something else has been written there since, dweight is computed again, chunk by
  chunk.
- The chunks live in a Lease: the same memory in every step, no page faults.
"""

from functools import partial

import numpy as np

from ops.kernels.cpu.blas_gemm import readable
from ops.kernels.cpu.cross_entropy import softmax_loss, targets_and_weights
from ops.kernels.cpu.numba_jit import is_float32
from ops.kernels.cpu.products import gemm
from ops.kernels.cpu.workspace import Lease
from ops.linear_cross_entropy import LinearCrossEntropy
from tinygrad2.deferred import DeferredGradient
from tinygrad2.module import Parameter
from tinygrad2.system.memory import LOGITS_CHUNK
from tinygrad2.system.threads import POOL


def _fits(x, weight, targets):
    return x.size > 0 and is_float32(x, weight) and readable(weight) and targets.shape == x.shape[:-1]


def _bytes_of_logits(x, weight):
    return 4 * (x.size // x.shape[-1]) * len(weight)


class LinearCrossEntropyCPU(LinearCrossEntropy, backend="numpy"):
    """All logits in one chunk."""

    @classmethod
    def supports(cls, x, weight, targets):
        return _fits(x, weight, targets) and _bytes_of_logits(x, weight) <= LOGITS_CHUNK

    def forward(self, x, weight, targets, ignore_index=-1):
        rows = np.asarray(x, order="C").reshape(-1, x.shape[-1])  # (N, C)
        t, share = targets_and_weights(targets.reshape(-1), len(weight), ignore_index)
        lease = Lease(len(rows), len(weight))
        dlogits = gemm(rows, weight.T, lease.array, precision=self.precision)          # (N, V)
        self.save(x.shape, rows, weight, lease)
        return softmax_loss(dlogits, t, share, any(self.needs_grad))

    def backward(self, dout):
        shape, rows, weight, lease = self.saved
        factor, dx = np.float32(dout), None
        multiply = partial(gemm, scale=factor, precision=self.precision)
        if self.needs_grad[0]:
            dx = multiply(lease.array, weight, np.empty_like(rows)).reshape(shape)

        def write_to(out, accumulate):
            multiply(lease.array.T, rows, out, accumulate)

        return dx, DeferredGradient(np, weight.shape, rows.dtype, write_to), None


class ChunkedLinearCrossEntropyCPU(LinearCrossEntropy, backend="numpy"):
    """Logits in several chunks, one after the other in the same memory."""

    products_in_forward = True  # those of backward, too (monitor/op_costs.py)

    @classmethod
    def supports(cls, x, weight, targets):
        return _fits(x, weight, targets) and _bytes_of_logits(x, weight) > LOGITS_CHUNK

    def forward(self, x, weight, targets, ignore_index=-1):
        rows = np.asarray(x, order="C").reshape(-1, x.shape[-1])  # (N, C)
        t, share = targets_and_weights(targets.reshape(-1), len(weight), ignore_index)
        need_x, need_weight, _ = self.needs_grad
        parameter, borrower, dweight = self.leaf(1), object(), None
        if need_weight and isinstance(parameter, Parameter):
            dweight = parameter.lend_grad(borrower)
        lent = dweight is not None
        if need_weight and not lent:
            dweight = np.empty(weight.shape, np.float32)
        dx = np.empty_like(rows) if need_x else None
        loss, multiply = np.float32(0), partial(gemm, precision=self.precision)
        for part, chunk_loss, dlogits in _chunks(rows, weight, t, share, need_x or need_weight, multiply):
            loss += chunk_loss
            if need_x:
                multiply(dlogits, weight, dx[part])
            if need_weight:
                multiply(dlogits.T, rows[part], dweight, add=part.start > 0)
        if lent:
            again = partial(_chunks, rows, weight, t, share, True, multiply)
            self.save(x.shape, dx, lambda factor: _lent(parameter, borrower, rows, again, multiply, factor))
        else:
            self.save(x.shape, dx, lambda factor: _scaled(dweight, factor))
        return np.asarray(loss)

    def backward(self, dout):
        shape, dx, dweight_times = self.saved
        factor = np.float32(dout)
        dx = None if dx is None else (dx * factor).reshape(shape)
        return dx, dweight_times(factor) if self.needs_grad[1] else None, None


def _chunks(rows, weight, t, share, need_grad, multiply):
    """(slice of rows, their part of the loss, their dlogits), one chunk after the other in the same memory."""
    size = -(-len(rows) // -(-_bytes_of_logits(rows, weight) // LOGITS_CHUNK))   # equal chunks, none above LOGITS_CHUNK
    lease = Lease(size, len(weight))
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        logits = multiply(rows[part], weight.T, lease.array[: part.stop - start])
        loss = softmax_loss(logits, t[part], share[part], need_grad)
        yield part, loss, logits


def _scaled(dweight, factor):
    def write_to(out, accumulate):
        POOL.split(lambda lo, hi: _add_scaled(dweight[lo:hi], factor, out[lo:hi], accumulate), len(out), grain=256)

    return DeferredGradient(np, dweight.shape, dweight.dtype, write_to)


def _lent(parameter, borrower, rows, chunks, multiply, factor):
    """dweight for dout = 1 is in the parameter's gradient, unless something else has been written there since: then it
    is computed from `chunks()` again."""

    def write_to(out, accumulate):
        if parameter.has_lent_to(borrower) and not accumulate:
            if factor != 1:
                _scaled(parameter.lend_grad(borrower), factor).write_to(out, accumulate=False)
            return
        for part, _, dlogits in chunks():
            multiply(dlogits.T, rows[part], out, accumulate or part.start > 0, scale=factor)

    return DeferredGradient(np, parameter.shape, rows.dtype, write_to)


def _add_scaled(source, factor, out, accumulate):
    if accumulate:
        out += factor * source
    else:
        np.multiply(source, factor, out=out)
