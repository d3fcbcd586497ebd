from tinygrad2.function import Function
from tinygrad2.precision import MIXED
from tinygrad2.saved16 import rounded
from tinygrad2.tensor import Tensor, apply


class SplitHeads(Function, name="split_heads"):
    """The packed projection of attention, cut into q, k and v of all heads.

    Channel c of x belongs to part c // C (query, key, value), head (c % C) // hs, and is channel c % hs there:

        q, k, v[b, h, t, i] = x[b, t, part C + h hs + i]          out: three results, no copies

    Backward.  Every element of x is in exactly one part, so the gradients go back to where they came from:

        dx[b, t, part C + h hs + i] = dout_part[b, h, t, i]

    In mixed precision q, k and v are rounded to bfloat16 here, not where they wait for backward: attention computes
    its weights a second time in backward, and must see the same numbers.
    """

    saves_halves = True

    def forward(self, x, n_head):                                 # x (B, T, 3C)
        x = rounded(x, self.precision) if self.precision in MIXED else x
        B, T, C3 = x.shape
        parts = x.reshape(B, T, 3, n_head, C3 // (3 * n_head))    # (B, T, 3, nh, hs)
        return tuple(parts.transpose(2, 0, 3, 1, 4))              # each (B, nh, T, hs)

    def backward(self, douts):
        B, nh, T, hs = douts[0].shape
        rows = [dout.transpose(0, 2, 1, 3) for dout in douts]     # each (B, T, nh, hs)
        return (self.xp.stack(rows, axis=2).reshape(B, T, 3 * nh * hs),)


def split_heads(x: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, v), each (B, nh, T, hs), from x (B, T, 3 nh hs). Raises ValueError if n_head does not divide."""
    if x.ndim != 3 or x.shape[-1] % (3 * n_head):
        raise ValueError(f"split_heads: shape {x.shape} does not hold q, k and v of {n_head} heads")
    return apply(SplitHeads, x, n_head=n_head)
