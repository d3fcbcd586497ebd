"""Head and loss on the CPU. Same formulas; what changes, and what it bought:

- Logits are made, turned into dlogits in place, and used up in chunks of rows of at most _CHUNK bytes, so that no array
  of all logits exists (B=4 T=1024: 823 MB less).
- One chunk is the whole of a small batch: its dlogits wait for backward, where both products take dout as BLAS's
  factor alpha, and dweight is written straight to its place.
- Of several chunks nothing can wait. The loss is linear in dout, so dx and dweight are computed for dout = 1 during
  forward, while the chunk is there, and backward scales them.
- The chunks live in a Lease: the same memory in every step, no page faults.
"""

import numpy as np

from ops.kernels.cpu.blas import gemm, readable
from ops.kernels.cpu.compiler import is_float32, jit
from ops.kernels.cpu.cross_entropy import softmax_loss, targets_and_weights
from ops.kernels.cpu.workspace import Lease
from ops.linear_cross_entropy import LinearCrossEntropy
from tinygrad2.function import LateGradient
from tinygrad2.threads import POOL

_CHUNK = 104 << 20  # bytes; 512 rows of 50,257 columns. Fewer rows make slower products: 188 GFLOP/s at 256, 205 at 512


class LinearCrossEntropyCPU(LinearCrossEntropy, backend="numpy"):
    @classmethod
    def supports(cls, x, weight, targets):
        shapes_fit = targets.shape == x.shape[:-1]
        return x.size > 0 and is_float32(x, weight) and readable(weight) and shapes_fit

    def forward(self, x, weight, targets, ignore_index=-1):
        rows = np.asarray(x, order="C").reshape(-1, x.shape[-1])   # (N, C)
        N, V = len(rows), len(weight)
        t, share = targets_and_weights(targets.reshape(-1), V, ignore_index)
        chunks = -(-4 * N * V // _CHUNK)
        size = -(-N // chunks)
        lease = Lease(size, V)
        if chunks == 1:
            dlogits = gemm(rows, weight.T, lease.array)           # (N, V)
            self.save(x.shape, rows, weight, lease)
            return softmax_loss(dlogits, t, share, any(self.needs_grad))
        need_x, need_weight, _ = self.needs_grad
        dx = np.empty_like(rows) if need_x else None
        dweight = Lease(*weight.shape) if need_weight else None
        loss = np.float32(0)
        for start in range(0, N, size):
            part = slice(start, min(start + size, N))
            dlogits = gemm(rows[part], weight.T, lease.array[: part.stop - start])
            loss += softmax_loss(dlogits, t[part], share[part], need_x or need_weight)
            if need_x:
                gemm(dlogits, weight, dx[part])
            if need_weight:
                gemm(dlogits.T, rows[part], dweight.array, add=start > 0)
        self.save(x.shape, dx, dweight)
        return np.asarray(loss)

    def backward(self, dout):
        factor = np.float32(dout)
        if len(self.saved) == 4:
            shape, rows, weight, lease = self.saved
            need_x, need_weight, _ = self.needs_grad
            dx = gemm(lease.array, weight, np.empty_like(rows), scale=factor) if need_x else None
            write = _product_writer(lease, rows, factor)
            dweight = LateGradient(np, weight.shape, rows.dtype, write) if need_weight else None
        else:
            shape, dx, lease = self.saved
            if dx is not None:
                dx *= factor
            dweight = lease and LateGradient(np, lease.array.shape, np.float32(0).dtype, _scaled_writer(lease, factor))
        return None if dx is None else dx.reshape(shape), dweight, None


def _product_writer(lease, rows, factor):
    return lambda out, add: gemm(lease.array.T, rows, out, add, scale=factor)


def _scaled_writer(lease, factor):
    def write(out, add):
        POOL.split(_scaled, out.size, lease.array.reshape(-1), factor, out.reshape(-1), add, grain=65536)

    return write


@jit
def _scaled(lo, hi, source, factor, out, add):
    source, out = source[lo:hi], out[lo:hi]
    if add:
        for i in range(out.size):
            out[i] += factor * source[i]
    else:
        for i in range(out.size):
            out[i] = factor * source[i]
