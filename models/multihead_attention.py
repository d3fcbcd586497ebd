import ops
from models.dropout import Dropout
from models.head import Head
from models.linear import Linear
from tinygrad2.module import Module


class MultiHeadAttention(Module):
    """nh heads in parallel, each on its own hs = C / nh channels, and a projection that mixes their outputs.

    One matrix c_attn makes q, k and v of all heads; the heads are views of the result:

        (B, T, 3C) -> split_heads: three times (B, nh, T, hs) -> Head -> merge_heads: (B, T, C) -> c_proj

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
        q, k, v = ops.split_heads(self.c_attn(x), self.n_head)    # each (B, nh, T, hs)
        out = self.head(q, k, v) if cache is None else cache.attend(self.head, q, k, v)   # (B, nh, T, hs)
        out = ops.merge_heads(out)                                # (B, T, C)
        return self.resid_dropout(self.c_proj(out))               # (B, T, C)
