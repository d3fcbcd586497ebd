"""GPT-2 in idiomatic PyTorch, with everything that makes it fast.

Fused attention (SDPA), fused AdamW, one packed q/k/v projection, tied weights, gradients set to None, no logits kept
except those of the loss. The initial weights are drawn exactly like ours (models/gpt.py), so the losses must agree.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, C, n_head):
        super().__init__()
        self.n_head = n_head
        self.ln_1 = nn.LayerNorm(C)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.ln_2 = nn.LayerNorm(C)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x))
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in qkv.split(C, dim=2))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](out.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class TorchGPT(nn.Module):
    """config: one of our GPTConfig (as a dict), without dropout and with biases and a tied head."""

    def __init__(self, config, seed):
        super().__init__()
        C, V = config["n_embd"], config["vocab_size"]
        self.wte = nn.Embedding(V, C)
        self.wpe = nn.Embedding(config["block_size"], C)
        self.h = nn.ModuleList(Block(C, config["n_head"]) for _ in range(config["n_layer"]))
        self.ln_f = nn.LayerNorm(C)
        self._initialize(seed)

    @torch.no_grad()
    def _initialize(self, seed):
        rng = np.random.default_rng(seed)
        for name, p in self.named_parameters():
            if p.ndim < 2:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            std = 0.02 / math.sqrt(2 * len(self.h)) if name.endswith("c_proj.weight") else 0.02
            is_linear = name.startswith("h.")                     # nn.Linear keeps (out, in), GPT-2's files (in, out)
            shape = p.shape[::-1] if is_linear else p.shape
            draw = torch.from_numpy(std * rng.standard_normal(tuple(shape), dtype=np.float32))
            p.copy_(draw.T if is_linear else draw)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def trainer(config, seed, compiled, lr, betas, weight_decay, grad_clip, parallel=None, device="cpu",
            dtype="float32"):  # fmt: skip
    """Returns a function (x, y) -> loss that does one optimizer step on int64 arrays (B, T). With read=False the loss
    is a tensor, for which nothing waits.

    `dtype`: "bfloat16" and "float16" are autocast's mixed precision, the latter with GradScaler. `parallel` is a
    function that wraps the model, if any. A compiled model is compiled again for each shape (B, T).
    """
    model = TorchGPT(config, seed).to(device)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    forward = parallel(model) if parallel else torch.compile(model, dynamic=False) if compiled else model

    def moved(array):
        tensor = torch.from_numpy(array)
        return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    half = torch.float16 if dtype == "float16" else torch.bfloat16
    scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")

    def step(x, y, read=True):
        with torch.autocast(device, half, enabled=dtype != "float32"):
            loss = forward(moved(x), moved(y))
        scaler.scale(loss).backward()                             # the loss itself, if it is not enabled
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() if read else loss.detach()

    return step
