import ops
from models.dropout import Dropout
from models.head import Head
from models.linear import Linear
from tinygrad2.module import Module


class MultiHeadAttention(Module):
    """nh heads side by side, each on its own hs = C / nh channels, and a projection that mixes their answers.

    One matrix c_attn makes q, k and v of all heads; the heads are then only a reshape away:

        (B, T, 3C) -> three times (B, T, C) -> (B, T, nh, hs) -> (B, nh, T, hs) -> Head -> back to (B, T, C) -> c_proj

    Vaswani et al., 2017, section 3.2.2.
    """

    def __init__(self, config):
        C = config.n_embd
        self.n_head = config.n_head
        self.c_attn = Linear(C, 3 * C, config.bias)
        self.c_proj = Linear(C, C, config.bias)
        self.head = Head(config.dropout)
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x, cache=None):                             # (B, T, C); a layer of a KVCache, or None
        B, T, C = x.shape
        q, k, v = map(self.split_heads, ops.split(self.c_attn(x), 3))   # each (B, nh, T, hs)
        if cache is not None:
            k, v = cache.append(k, v)                             # those of the past, too
        out = self.head(q, k, v)                                  # (B, nh, T, hs)
        out = out.transpose(0, 2, 1, 3).reshape(B, T, C)          # heads side by side again
        return self.resid_dropout(self.c_proj(out))               # (B, T, C)

    def split_heads(self, x):                                     # (B, T, C)
        B, T, C = x.shape
        return x.reshape(B, T, self.n_head, C // self.n_head).transpose(0, 2, 1, 3)   # (B, nh, T, hs)
