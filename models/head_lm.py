from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import ops
from models.embedding import Embedding
from models.gpt_memory import logits_chunk
from models.head import Head
from models.kv_cache import KVCache
from models.language_model import LanguageModel
from models.linear import Linear
from models.model_config import ModelConfig
from tinygrad2.backend import to_device
from tinygrad2.cli import flag
from tinygrad2.tensor import Tensor

_F = 4  # bytes of a float32


@dataclass(frozen=True)
class HeadConfig(ModelConfig):
    """The sizes of a HeadLanguageModel. Raises ValueError, naming the field, for values that cannot work."""

    family = "head"
    presets = {"head": dict(block_size=128, vocab_size=1024, n_embd=128)}
    sizes = ("block_size", "vocab_size", "n_embd")
    n_head = 1

    n_embd: int = flag(128, "channels per token")

    def describe(self) -> str:
        return f"one head of {self.n_embd} channels, {self.block_size} positions, {self.vocab_size:,} tokens"

    def shapes(self):
        V, T, C = self.vocab_size, self.block_size, self.n_embd
        tables = {"wte.weight": (V, C), "wpe.weight": (T, C)}
        return tables | {"c_attn.weight": (C, 3 * C), "lm_head.weight": (C, V)}

    def train_flops_per_token(self) -> int:
        return 6 * self.n_embd * (3 * self.n_embd + self.vocab_size) + 12 * self.n_embd * self.block_size

    def kept(self, rows, length, reference, dtype="float32", device="cpu"):
        N, C = rows * length, self.n_embd
        return {
            "c_attn: input": _F * N * C,
            "attention: q, k, v": _F * 3 * N * C,
            "attention: output": _F * N * C,
            "attention: weights": _F * N * (length if reference else 1),
        }

    def work_space(self, rows, length, reference, dtype="float32", device="cpu"):
        N, C, V = rows * length, self.n_embd, self.vocab_size
        if reference:
            return 0, 0, max(4 * _F * N * V, 4 * _F * N * length)
        return 0, logits_chunk(N, C, V), _F * N * 4 * C


class HeadLanguageModel(LanguageModel):
    """One attention head between embedding and output layer, and nothing else: what attention does alone.

        x = wte[tokens] + wpe[positions]
        q, k, v = x c_attn
        logits = head(q, k, v) lm_head

    There is no residual stream: the output layer sees only what the head has gathered, not the token itself. A Block
    (models/block.py) adds that, more heads, layernorm and the MLP.
    """

    config: HeadConfig

    def __init__(self, config: HeadConfig, seed: int | None = None):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.head = Head()
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if seed is not None:
            initialize(self, seed)

    def hidden(self, tokens: Any, cache: Any = None) -> Tensor:   # (B, T)
        """What the head has gathered at each position, (B, T, C). Raises ValueError for more than block_size tokens."""
        tokens = self._rows(tokens)
        B, T = tokens.shape
        if cache is None and T > self.config.block_size:
            raise ValueError(f"{T} tokens are more than this model's block_size of {self.config.block_size}")
        positions = to_device(np.arange(T) if cache is None else cache.positions(B, T), self.device)
        x = self.wte(self.to_model(tokens)) + self.wpe(positions)                  # (B, T, C)
        q, k, v = ops.split_heads(self.c_attn(x), 1)              # each (B, 1, T, C)
        out = self.head(q, k, v) if cache is None else cache.layer(0).attend(self.head, q, k, v)
        if cache is not None:
            cache.advance(T)
        return ops.merge_heads(out)                               # (B, T, C)

    def logits(self, x: Tensor) -> Tensor:                        # (..., C)
        """Scores of the next token, (..., V)."""
        return self.lm_head(x)                                    # (..., V)

    def head_weight(self) -> Tensor:
        return self.lm_head.weight.T                              # (V, C)

    def new_cache(self, batch: int = 1, size: int | None = None) -> KVCache:
        return KVCache(self.config, batch, self.device, size)


def initialize(model: HeadLanguageModel, seed: int) -> None:
    """Initial weights: normal, mean 0, with these standard deviations:

        wte, wpe     0.15                no layernorm makes x larger: from 0.02 the head is slow to find where to look
        c_attn       1 / sqrt(C)         q, k and v have the size of x
        lm_head      0.02                all tokens are about equally likely: the first loss is ln V
    """
    rng, C = np.random.default_rng(seed), model.config.n_embd
    for part, std in ((model.wte, 0.15), (model.wpe, 0.15), (model.c_attn, C**-0.5), (model.lm_head, 0.02)):
        parameter = part.weight
        parameter.data[...] = std * rng.standard_normal(parameter.shape, dtype=np.float32)
