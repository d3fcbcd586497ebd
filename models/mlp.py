import ops
from models.dropout import Dropout
from models.linear import Linear
from tinygrad2.module import Module


class MLP(Module):
    """The MLP processes each token separately: widen to H channels (usually 4C), a nonlinearity (GELU), narrow again.

        out = c_proj(gelu(c_fc(x)))
    """

    def __init__(self, config):
        C, H = config.n_embd, config.inner
        self.c_fc = Linear(C, H, config.bias)
        self.c_proj = Linear(H, C, config.bias)
        self.exact = config.activation == "gelu_erf"
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x):                                         # (B, T, C)
        c_fc, c_proj = self.c_fc, self.c_proj
        # Fused: c_proj(gelu(c_fc(x))), which keeps half as much for backward as three ops would.
        out = ops.mlp(x, c_fc.weight, c_fc.bias, c_proj.weight, c_proj.bias, self.exact)
        return self.resid_dropout(out)                            # (B, T, C)
