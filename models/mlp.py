import ops
from models.dropout import Dropout
from models.linear import Linear
from tinygrad2.module import Module


class MLP(Module):
    """Each token thinks for itself: widen to 4C channels, bend (GELU), narrow again."""

    def __init__(self, config):
        C = config.n_embd
        self.c_fc = Linear(C, 4 * C, config.bias)
        self.c_proj = Linear(4 * C, C, config.bias)
        self.activation = ops.gelu if config.activation == "gelu" else ops.gelu_erf
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x):                                         # (B, T, C)
        hidden = self.activation(self.c_fc(x))                    # (B, T, 4C)
        return self.resid_dropout(self.c_proj(hidden))            # (B, T, C)
