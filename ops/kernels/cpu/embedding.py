"""Embedding on the CPU. Same formulas; what changes, and what it bought:

- dweight is a DeferredGradient: only the rows that were looked up are touched, in the parameter's own memory; the
  reference fills a table of zeros (154 MB for GPT-2) and adds all of it.
- The columns are divided among the threads, and each goes through the ids in order: every element is a sum in the
  same order, for any number of threads, and needs neither sorting nor atomic additions.
"""

import numpy as np

from ops.embedding import Embedding
from ops.kernels.cpu.numba_jit import jit, split_rows
from ops.kernels.cpu.spread import spread
from tinygrad2.deferred import DeferredGradient
from tinygrad2.system.threads import POOL


class EmbeddingCPU(Embedding, backend="numpy"):
    @classmethod
    def supports(cls, weight, ids):
        return weight.dtype == np.float32 and weight.ndim == 2 and ids.dtype.kind in "iu"

    def backward(self, dout):
        shape, ids = self.saved
        rows = np.asarray(dout, order="C").reshape(-1, shape[1])   # (N, C)
        return DeferredGradient(np, shape, dout.dtype, _writer(rows, ids.reshape(-1).astype(np.int64))), None


def _writer(rows, ids):
    def write_to(out, accumulate):
        if not accumulate:
            split_rows(_clear, *out.shape, out)
        POOL.split(_add_rows, rows.shape[1], rows, ids, out, grain=max(16, (1 << 16) // max(1, len(ids))))

    return write_to


@jit
def _clear(lo, hi, out):
    if spread(lo, hi):
        return
    out[lo:hi] = 0


@jit
def _add_rows(lo, hi, rows, ids, out):
    if spread(lo, hi):
        return
    for n in range(len(ids)):
        source, target = rows[n][lo:hi], out[ids[n]][lo:hi]
        for j in range(source.size):
            target[j] += source[j]
