"""GPT-2 in PyTorch, independent of ours, to compare with: same parameter names and (in, out) layout of the weights."""

import torch
from torch import nn
from torch.nn import functional as F


class Affine(nn.Module):
    """x weight + bias, the weight stored (in, out)."""

    def __init__(self, n_in, n_out, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight.T, self.bias)


class Mask(nn.Module):
    """A dropout layer whose factors (0 or 1/(1-p)) are given: set `keep`; None means no dropout."""

    keep = None

    def forward(self, x):
        return x if self.keep is None else x * self.keep


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Affine(config.n_embd, 3 * config.n_embd, config.bias)
        self.c_proj = Affine(config.n_embd, config.n_embd, config.bias)
        self.attn_dropout = Mask()
        self.resid_dropout = Mask()

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
        if self.attn_dropout.keep is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # PyTorch's fused one takes no mask from outside
            future = torch.ones(T, T).triu(1).bool()
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, float("-inf"))
            out = self.attn_dropout(scores.softmax(-1)) @ v
        return self.resid_dropout(self.c_proj(out.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = Affine(config.n_embd, 4 * config.n_embd, config.bias)
        self.c_proj = Affine(4 * config.n_embd, config.n_embd, config.bias)
        self.approximate = "tanh" if config.activation == "gelu" else "none"
        self.resid_dropout = Mask()

    def forward(self, x):
        return self.resid_dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Mask()
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.lm_head = None if config.tied_head else Affine(config.n_embd, config.vocab_size, bias=False)

    def forward(self, tokens, targets):
        x = self.drop(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1])))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        logits = x @ self.wte.weight.T if self.lm_head is None else self.lm_head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def twin_of(model):
    """A TorchGPT with the weights (and the dtype) of one of our models."""
    twin = TorchGPT(model.config)
    state = {name: torch.from_numpy(parameter.data.copy()) for name, parameter in model.named_parameters()}
    twin = twin.to(next(iter(state.values())).dtype)
    twin.load_state_dict(state)
    return twin


def adamw(twin, lr, betas, eps, weight_decay):
    """torch's AdamW with weight decay on matrices only."""
    parameters = list(twin.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
