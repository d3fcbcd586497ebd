"""Split into heads on the GPU. Same formula; what changes, and why:

- attention.py writes dq, dk and dv side by side in one array. Parts that are laid out like that already *are* the
  gradient: backward then returns that array, and copies nothing, where the reference reads and writes 3C channels.
"""

from ops.kernels.cuda.launch import result_dtype
from ops.split_heads import SplitHeads
from tinygrad2.halves import is_floating


class SplitHeadsCUDA(SplitHeads, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x):
        return is_floating(x.dtype) and x.dtype.itemsize <= 4

    def forward(self, x, n_head):                                 # x (B, T, 3C)
        x = x.astype(result_dtype(self), copy=False)
        B, T, C3 = x.shape
        parts = x.reshape(B, T, 3, n_head, C3 // (3 * n_head))    # (B, T, 3, nh, hs)
        return tuple(parts.transpose(2, 0, 3, 1, 4))              # each (B, nh, T, hs)

    def backward(self, douts):
        packed = _packed(douts)
        return SplitHeads.backward(self, douts) if packed is None else (packed,)


def _packed(douts):
    """The (B, T, 3C) array of which these are q, k and v as `forward` cuts them, or None if they are not."""
    B, nh, T, hs = douts[0].shape
    base = douts[0].base
    if base is None or base.shape != (B, T, 3, nh, hs) or not base.flags.c_contiguous or base.dtype != douts[0].dtype:
        return None
    for i, dout in enumerate(douts):
        expected = base[:, :, i].transpose(0, 2, 1, 3)
        if dout.data.ptr != expected.data.ptr or dout.strides != expected.strides:
            return None
    return base.reshape(B, T, 3 * nh * hs)
