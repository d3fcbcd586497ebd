import ops
from models.decode_block import decode_block
from models.layernorm import LayerNorm
from models.mlp import MLP
from models.multihead_attention import MultiHeadAttention
from tinygrad2.module import Module


class Block(Module):
    """Attention (attn) mixes information between tokens, the MLP (mlp) processes each token separately. Both only *add*
    to the residual stream x, and read it through a layernorm ("pre-norm"), so that the gradient has a direct path from
    the loss to the first layer.

        x = x + attn(ln_1(x))
        x = x + mlp(ln_2(x))

    Radford et al., "Language models are unsupervised multitask learners" (GPT-2), 2019, section 2.3.
    """

    def __init__(self, config):
        self.ln_1 = LayerNorm(config.n_embd, config.bias, config.norm_eps)
        self.attn = MultiHeadAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cache=None):                             # (B, T, C); a layer of a KVCache, or None
        if cache is not None and (out := decode_block(self, x, cache)) is not None:
            return out                                            # one new token: what follows, in one call
        attn_out = self.attn(self.ln_1(x), cache)
        ln_2 = self.ln_2
        # Fused: x = x + attn_out and normed = ln_2(x), in one pass over each row.
        x, normed = ops.add_layernorm(x, attn_out, ln_2.weight, ln_2.bias, ln_2.eps)
        return x + self.mlp(normed)                               # (B, T, C)
