import math

from ops.dropout import keep_mask
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Attention(Function):
    """Causal attention: a soft dictionary lookup. Each position asks (q) and gets the values v of all positions up to
    its own, mixed by how well their keys k match.

        s = q kT / sqrt(hs)        if a key lies in the future, s = -inf
        w = softmax(s)             each row a distribution over the past
        out = w v

    With dropout, w is multiplied by keep (0, or 1/(1-p) if kept; ops/dropout.py) before it meets v. The Tq queries
    are the last of the Tk positions: query i sees the keys 0 .. i + Tk - Tq. All axes in front of T are batches
    (sequences, heads).

    Backward, the three formulas in reverse order (ops/matmul.py, ops/softmax.py); a masked s is a constant, its w is 0
    and so is its ds:

        dv = (w keep)T dout
        dw = (dout vT) keep
        ds = w * (dw - sum over keys of dw * w)
        dq = ds k / sqrt(hs)        dk = dsT q / sqrt(hs)

    Vaswani et al., "Attention is all you need", 2017, equation 1.
    """

    def forward(self, q, k, v, p=0.0, key=0, first=0):            # q (..., Tq, hs); k, v (..., Tk, hs)
        scale = 1 / math.sqrt(q.shape[-1])
        s = (q * scale) @ k.swapaxes(-1, -2)                      # (..., Tq, Tk)
        s = self.xp.where(future(self.xp, *s.shape[-2:]), -math.inf, s)
        e = self.xp.exp(s - s.max(-1, keepdims=True))             # e^-inf = 0
        w = e / e.sum(-1, keepdims=True)                          # (..., Tq, Tk)
        self.save(q, k, v, w, (p, key, first))
        return self._drop(w, p, key, first) @ v                   # (..., Tq, hs)

    def backward(self, dout):
        q, k, v, w, dropout = self.saved
        scale = 1 / math.sqrt(q.shape[-1])
        # lab: begin attention_backward
        wk = self._drop(w, *dropout)
        dv = wk.swapaxes(-1, -2) @ dout
        dw = self._drop(dout @ v.swapaxes(-1, -2), *dropout)      # (..., Tq, Tk)
        ds = w * (dw - (dw * w).sum(-1, keepdims=True))
        ds *= scale
        dq = ds @ k
        dk = ds.swapaxes(-1, -2) @ q
        return dq, dk, dv
        # lab: end attention_backward

    def _drop(self, x, p, key, first):
        if p == 0:
            return x
        keep = keep_mask(self.xp, x.shape, p, key, first, x.dtype)
        return x * keep


def future(xp, Tq, Tk):
    """True where key j comes after query i, shape (Tq, Tk); the last query is at the position of the last key.

        future(np, 2, 3) -> [[False, False, True],
                             [False, False, False]]
    """
    # lab: begin causal_mask
    position = xp.arange(Tk - Tq, Tk)[:, None]                    # (Tq, 1)
    return xp.arange(Tk) > position
    # lab: end causal_mask


def attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, key: int = 0, first: int = 0) -> Tensor:
    """Causal attention of q (..., Tq, hs) over k, v (..., Tk, hs): (..., Tq, hs).

    A fraction p of the weights (..., Tq, Tk) is dropped; key and first choose which, as in ops/dropout.py.
    """
    return apply(Attention, q, k, v, p=p, key=key, first=first)
