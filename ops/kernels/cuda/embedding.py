"""Embedding on the GPU. Same formulas; what changes, and why:

- backward sums each row's gradients in the order of their positions: the same bits in every run, where CuPy's add.at
  adds by atomic operations in any order. Keys of id and position are sorted (sorted_ids.py), and a block for each id
  that occurs adds up its rows. dout is read once; the keys are 8 bytes a position, next to C numbers of dout.
- dweight is a DeferredGradient: only rows that occur are read and written, in the parameter's own gradient (and if that
  is stale, zeros are written first). The reference fills a table of zeros, and adds all of it: 12 bytes a weight more.
- An id outside the table gives a row of NaN, and no gradient: the host cannot check ids that are on the GPU, and CuPy
  would wrap them around.
- Rows are float32 in every precision: they begin the residual stream.
"""

import numpy as np

from ops.embedding import Embedding
from ops.kernels.cuda.cast import cast
from ops.kernels.cuda.cross_entropy import device_ids
from ops.kernels.cuda.launch import launch, wide
from ops.kernels.cuda.sorted_ids import sorted_keys
from tinygrad2.deferred import DeferredGradient

_WARPS, _BLOCK = 8, 256                                           # of a block, and its threads


class EmbeddingCUDA(Embedding, backend="cupy"):
    @classmethod
    def supports(cls, weight, ids):
        is_table = weight.dtype == np.float32 and weight.ndim == 2 and weight.flags.c_contiguous
        return is_table and weight.size > 0 and 0 < ids.size < 2**30 and ids.dtype.kind in "iu"

    def forward(self, weight, ids):
        xp, (V, C) = self.xp, weight.shape
        flat, out = device_ids(xp, ids), xp.empty((*ids.shape, C), np.float32)
        sizes = np.int32(flat.size), np.int32(V), np.int32(C), wide(C, weight, out)
        args = weight, flat, out, *sizes
        launch(xp, "embedding", "embedding_forward", "float32", -(-flat.size // _WARPS), _BLOCK, args)
        self.save(weight.shape, flat)
        return out

    def backward(self, dout):
        xp, ((V, C), ids) = self.xp, self.saved
        rows = cast(xp, dout, np.float32)                         # (..., C)
        return DeferredGradient(xp, (V, C), rows.dtype, _writer(xp, rows, sorted_keys(xp, ids, V))), None


def _writer(xp, rows, keys):
    def write_to(out, accumulate):
        if not accumulate:
            out.fill(0)
        C = out.shape[1]
        by_16_bytes = wide(C, rows, out)
        lanes = -(-C // (4 if by_16_bytes else 1))                # of the columns, a thread each
        threads = min(_BLOCK, 32 * -(-lanes // 32))
        args = rows, keys, out, np.int32(keys.size), np.int32(C), np.int32(accumulate), by_16_bytes
        launch(xp, "embedding", "embedding_backward", "float32", (keys.size, -(-lanes // threads)), threads, args)

    return write_to
