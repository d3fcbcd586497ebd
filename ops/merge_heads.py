from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class MergeHeads(Function, name="merge_heads"):
    """The outputs of all heads side by side again: the inverse of ops/split_heads.py.

        out[b, t, h hs + i] = x[b, h, t, i]        dx[b, h, t, i] = dout[b, t, h hs + i]
    """

    saves_halves = True
    only_moves = True                                             # attention's kernel leaves the heads side by side

    def forward(self, x):                                         # x (B, nh, T, hs)
        B, nh, T, hs = x.shape
        self.save(nh)
        return x.transpose(0, 2, 1, 3).reshape(B, T, nh * hs)     # (B, T, C)

    def backward(self, dout):
        (nh,) = self.saved
        B, T, C = dout.shape
        return (dout.reshape(B, T, nh, C // nh).transpose(0, 2, 1, 3),)


def merge_heads(x: Tensor) -> Tensor:
    """(B, T, nh hs) from x (B, nh, T, hs)."""
    return apply(MergeHeads, x)
