"""Cross-entropy on the GPU. Same formulas; what changes, and why:

- One visit to each row of logits: a block reads it for its largest score and the sum of e^(score - largest), once more,
  from the L2 cache, for p, and writes dlogits. In 16 bits that is 4 bytes of memory a logit (8 in float32), where the
  reference's 9 passes of float32 move about 60.
- How many targets count is known to the GPU alone: its 1/N is an array, and nothing waits for it.
- dlogits is kept as p - onehot, without dout / N. That is a number that 16 bits hold well for any N: in float16 p / N
  would be 0 for most tokens (its smallest number is 6e-8), and whether dout, the loss scale, makes up for it is only
  known in backward. A p below 3e-8 is lost, less than 0.2 % of a row in all.
- The factor dout / N is applied in backward, by a kernel that reads both from the GPU.
"""

import numpy as np

from ops.cross_entropy import CrossEntropy
from ops.kernels.cuda.cast import cast
from ops.kernels.cuda.elements import is_computed, launch_elements
from ops.kernels.cuda.launch import launch, wide


class CrossEntropyCUDA(CrossEntropy, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, logits, targets):
        rows = logits.shape[:-1]
        return is_computed(logits) and 0 < logits.size and logits.shape[-1] < 2**30 and targets.shape == rows

    def forward(self, logits, targets, ignore_index=-1):
        xp, V = self.xp, logits.shape[-1]
        z, t = xp.ascontiguousarray(logits).reshape(-1, V), device_ids(xp, targets)
        losses = xp.empty(len(z), np.float32)
        dlogits = xp.empty(z.shape, z.dtype) if any(self.needs_grad) else None
        softmax_loss(xp, z, t, ignore_index, losses, dlogits)
        loss, share = mean_loss(xp, losses, t, ignore_index)
        self.save(dlogits, share, logits.shape)
        return loss

    def backward(self, dout):
        dlogits, share, shape = self.saved
        return scale(self.xp, dlogits, dlogits, dout, share).reshape(shape), None


def device_ids(xp, ids):
    """Token ids (...) as int64, (N,): what kernels read."""
    return xp.ascontiguousarray(ids).astype(np.int64, copy=False).reshape(-1)


def softmax_loss(xp, logits, targets, ignore_index, losses, dlogits=None):
    """Write the loss of each row to losses (N,), float32, and p - onehot to dlogits, which may be logits. Both are 0
    for a target that is ignore_index, and NaN for one outside the vocabulary.

    logits, dlogits   (N, V), float32, float16 or bfloat16; rows may be apart, in both alike
    targets           (N,) int64
    """
    (N, V), stride = logits.shape, logits.strides[0] // logits.itemsize
    threads = 32 * min(32, -(-V // 256))
    sizes = np.int32(V), np.int64(stride), np.int64(ignore_index), wide(stride, logits, dlogits)
    launch(xp, "cross_entropy", "softmax_loss", logits.dtype, N, threads, (logits, dlogits, targets, losses, *sizes))


def mean_loss(xp, losses, targets, ignore_index):
    """(mean of the losses (N,) over the targets that count, 1 / their number): two arrays (), float32."""
    loss, share = (xp.empty((), np.float32) for _ in range(2))
    args = losses, targets, loss, share, np.int32(len(losses)), np.int64(ignore_index)
    launch(xp, "cross_entropy", "mean_loss", "float32", 1, 1024, args)
    return loss, share


def scale(xp, x, out, factor, share, accumulate=False):
    """out = factor share x, or out += that; contiguous, of one dtype. The factors are arrays () of one number on the
    GPU. out may be x. Returns out."""
    factor = cast(xp, factor, np.float32)
    launch_elements(xp, "cross_entropy", "scale", x.dtype, (x, out), factor, share, np.int32(accumulate))
    return out
