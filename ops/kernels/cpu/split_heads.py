"""Split into heads on the CPU. Same formula; what changes, and what it bought:

- attention.py writes dq, dk and dv side by side in one array. Parts that are laid out like that already *are* the
  gradient: backward then returns that array, and copies nothing.
"""

import numpy as np

from ops.split_heads import SplitHeads


class SplitHeadsCPU(SplitHeads, backend="numpy"):
    def backward(self, douts):
        packed = _packed(douts)
        return SplitHeads.backward(self, douts) if packed is None else (packed,)


def _packed(douts):
    """The (B, T, 3C) array of which these are q, k and v as `forward` cuts them, or None if they are not."""
    B, nh, T, hs = douts[0].shape
    base = douts[0]
    while isinstance(base.base, np.ndarray):  # below arrays there may be the bytes of a file
        base = base.base
    if base.shape != (B, T, 3, nh, hs) or not base.flags.c_contiguous or base.dtype != douts[0].dtype:
        return None
    for i, dout in enumerate(douts):
        expected = base[:, :, i].transpose(0, 2, 1, 3)
        if dout.ctypes.data != expected.ctypes.data or dout.strides != expected.strides:
            return None
    return base.reshape(B, T, 3 * nh * hs)
