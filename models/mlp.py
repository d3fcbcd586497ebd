import ops
from models.dropout import Dropout
from models.linear import Linear
from tinygrad2.module import Module


class MLP(Module):
    """Each token thinks for itself: widen to H channels (4C, mostly), bend (GELU), narrow again:

        c_proj(gelu(c_fc(x)))

    as one op (ops/mlp.py), which keeps half as much for backward as its three steps would.
    """

    def __init__(self, config):
        C, H = config.n_embd, config.inner
        self.c_fc = Linear(C, H, config.bias)
        self.c_proj = Linear(H, C, config.bias)
        self.exact = config.activation == "gelu_erf"
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x):                                         # (B, T, C)
        out = ops.mlp(x, self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias, self.exact)
        return self.resid_dropout(out)                            # (B, T, C)
