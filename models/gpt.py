from __future__ import annotations

import math
from typing import Any

import numpy as np

import ops
from models.block import Block
from models.config import GPTConfig
from models.dropout import Dropout
from models.embedding import Embedding
from models.kv_cache import KVCache
from models.language_model import LanguageModel
from models.layernorm import LayerNorm
from models.linear import Linear
from tinygrad2.backend import array_module, to_device
from tinygrad2.recompute import recompute
from tinygrad2.tensor import Tensor


class GPT(LanguageModel):
    """GPT-2: from token ids to the scores (logits) of the token that comes next, at every position.

        x = wte[tokens] + wpe[positions]         what the token is, and where
        x = block(x)                             n_layer times
        logits = ln_f(x) wteT                    how well each token's embedding matches (or lm_head, if not tied)

    Parameter names are those of the released files. `seed` fixes the initial weights; with seed=None they stay zero,
    for a model that is about to be loaded. With `recompute` a block keeps only its input for backward, and is computed
    again there (tinygrad2/recompute.py). Radford et al., 2019.
    """

    config: GPTConfig

    def __init__(self, config: GPTConfig, seed: int | None = None, recompute: bool = False):
        self.config, self.recompute = config, recompute
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, config.bias, config.norm_eps)
        self.lm_head = None if config.tied_head else Linear(config.n_embd, config.vocab_size, bias=False)
        if seed is not None:
            initialize(self, seed)

    def hidden(self, tokens: Any, cache: Any = None) -> Tensor:   # (B, T)
        """The final hidden state at each position: (B, T, C).

        With a KVCache (or CachePack) the tokens follow those that are in it, and are added to it.
        """
        tokens = self._rows(tokens)
        B, T = tokens.shape
        if cache is None and T > self.config.block_size:
            raise ValueError(f"{T} tokens are more than this model's block_size of {self.config.block_size}")
        device = self.wpe.weight.device
        positions = array_module(device).arange(T) if cache is None else to_device(cache.positions(B, T), device)
        x = self.drop(self.wte(self.to_model(tokens)) + self.wpe(positions))        # (B, T, C)
        for i, block in enumerate(self.h):
            if cache is not None:
                x = block(x, cache.layer(i))
            else:
                x = recompute(block, x) if self.recompute else block(x)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x)                                       # (B, T, C)

    def logits(self, x: Tensor) -> Tensor:                        # (..., C)
        """Scores of the next token for hidden states x: (..., V)."""
        # lab: begin tied_head
        if self.lm_head is not None:
            return self.lm_head(x)                                # (..., V)
        return ops.linear(x, self.wte.weight.T)                   # (..., V)
        # lab: end tied_head

    def head_weight(self) -> Tensor:
        return self.wte.weight if self.lm_head is None else self.lm_head.weight.T      # (V, C)

    def new_cache(self, batch: int = 1, size: int | None = None) -> KVCache:
        return KVCache(self.config, batch, self.device, size)


def initialize(model: GPT, seed: int) -> None:
    """GPT-2's initial weights, drawn in the order of `named_parameters`, all from one generator.

        layernorm weight                          1
        every bias                                0
        embeddings and matrices                   normal, mean 0, std 0.02
        c_proj (what adds to the residual)        normal, mean 0, std 0.02 / sqrt(2 n_layer)

    2 n_layer terms add up in the residual stream; the last row keeps their sum at the size of one.
    Radford et al., 2019, section 2.3.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill(1.0 if name.endswith("weight") else 0.0)
            continue
        std = 0.02 / math.sqrt(2 * model.config.n_layer) if name.endswith("c_proj.weight") else 0.02
        parameter.data[...] = std * rng.standard_normal(parameter.shape, dtype=np.float32)
