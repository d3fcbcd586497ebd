"""Head and loss on the CPU. Same formulas; what changes, and what it bought:

- Logits are made, turned into dlogits in place, and used up in chunks of rows of at most _CHUNK bytes, so that no array
  of all logits exists (B=4 T=1024: 750 MB less).
- One chunk is the whole of a small batch: its dlogits wait for backward, where both products take dout as BLAS's
  factor, and dweight is written straight to its place.
- Of several chunks nothing can wait. The loss is linear in dout, so dx and dweight are computed for dout = 1 during
  forward, while the chunk is there, and backward scales them.
- That dweight, 154 MB for GPT-2, is kept in the memory where the parameter's gradient will be anyway, as long as that
  is free. Should somebody else have written there in between, dweight is computed again, chunk by chunk.
- The chunks live in a Lease: the same memory in every step, no page faults.
"""

import numpy as np

from ops.kernels.cpu.blas_gemm import gemm, readable
from ops.kernels.cpu.cross_entropy import softmax_loss, targets_and_weights
from ops.kernels.cpu.numba_jit import is_float32
from ops.kernels.cpu.workspace import Lease
from ops.linear_cross_entropy import LinearCrossEntropy
from tinygrad2.function import LateGradient
from tinygrad2.system.threads import POOL

_CHUNK = 70 << 20  # bytes: 364 rows of 50,257 columns. Fewer rows make slower products (docs/kernels.md)


class LinearCrossEntropyCPU(LinearCrossEntropy, backend="numpy"):
    @classmethod
    def supports(cls, x, weight, targets):
        shapes_fit = targets.shape == x.shape[:-1]
        return x.size > 0 and is_float32(x, weight) and readable(weight) and shapes_fit

    def forward(self, x, weight, targets, ignore_index=-1):
        rows = np.asarray(x, order="C").reshape(-1, x.shape[-1])  # (N, C)
        t, share = targets_and_weights(targets.reshape(-1), len(weight), ignore_index)
        need_x, need_weight, _ = self.needs_grad
        if 4 * len(rows) * len(weight) <= _CHUNK:
            lease = Lease(len(rows), len(weight))
            dlogits = gemm(rows, weight.T, lease.array)           # (N, V)
            self.save(x.shape, rows, weight, lease)
            return softmax_loss(dlogits, t, share, need_x or need_weight)

        leaf, scratch, owner = self.leaves[1] if self.leaves else None, None, object()
        if need_weight and leaf is not None:
            scratch = leaf.lend_grad(owner)
        if need_weight and scratch is None:
            leaf, scratch = None, np.empty(weight.shape, np.float32)
        dx = np.empty_like(rows) if need_x else None
        loss = np.float32(0)
        for part, chunk_loss, dlogits in _chunks(rows, weight, t, share, need_x or need_weight):
            loss += chunk_loss
            if need_x:
                gemm(dlogits, weight, dx[part])
            if need_weight:
                gemm(dlogits.T, rows[part], scratch, add=part.start > 0)
        if leaf is None:
            self.save(x.shape, dx, lambda factor: _scaled(scratch, factor))
        else:
            self.save(x.shape, dx, lambda factor: _lent(leaf, owner, rows, weight, t, share, factor))
        return np.asarray(loss)

    def backward(self, dout):
        factor = np.float32(dout)
        if len(self.saved) == 3:
            shape, dx, dweight_times = self.saved
            dx = None if dx is None else (dx * factor).reshape(shape)
            return dx, dweight_times(factor) if self.needs_grad[1] else None, None
        shape, rows, weight, lease = self.saved
        dx = gemm(lease.array, weight, np.empty_like(rows), scale=factor).reshape(shape) if self.needs_grad[0] else None

        def write(out, add):
            gemm(lease.array.T, rows, out, add, scale=factor)

        return dx, LateGradient(np, weight.shape, rows.dtype, write), None


def _chunks(rows, weight, t, share, need_grad):
    """(slice of rows, their part of the loss, their dlogits), one chunk after the other in the same memory."""
    size = -(-len(rows) // -(-4 * len(rows) * len(weight) // _CHUNK))   # equal chunks, none above _CHUNK
    lease = Lease(size, len(weight))
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        logits = gemm(rows[part], weight.T, lease.array[: part.stop - start])
        loss = softmax_loss(logits, t[part], share[part], need_grad)
        yield part, loss, logits


def _scaled(dweight, factor):
    def write(out, add):
        POOL.split(lambda lo, hi: _add_scaled(dweight[lo:hi], factor, out[lo:hi], add), len(out), grain=256)

    return LateGradient(np, dweight.shape, dweight.dtype, write)


def _lent(leaf, owner, rows, weight, t, share, factor):
    """dweight for dout = 1 stands in the leaf's gradient, unless somebody else has written there since."""

    def write(out, add):
        if leaf.has_lent_to(owner) and not add:
            if factor != 1:
                _scaled(leaf.lend_grad(owner), factor).write(out, add=False)
            return
        for part, _, dlogits in _chunks(rows, weight, t, share, need_grad=True):
            gemm(dlogits.T, rows[part], out, add or part.start > 0, scale=factor)

    return LateGradient(np, weight.shape, rows.dtype, write)


def _add_scaled(source, factor, out, add):
    if add:
        out += factor * source
    else:
        np.multiply(source, factor, out=out)
