from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import ops
from models.block import Block
from models.config import GPTConfig
from models.dropout import Dropout
from models.embedding import Embedding
from models.generation import generate
from models.layernorm import LayerNorm
from models.linear import Linear
from models.sampling import Sampling
from ops.embedding import check_ids
from tinygrad2.backend import to_device
from tinygrad2.module import Module
from tinygrad2.recompute import recompute
from tinygrad2.tensor import Tensor, no_grad


class GPT(Module):
    """GPT-2: from token ids to the scores (logits) of the token that comes next, at every position.

        x = wte[tokens] + wpe[positions]         what the token is, and where
        x = block(x)                             n_layer times
        logits = ln_f(x) wteT                    how well each token's embedding matches (or lm_head, if not tied)

    Parameter names are those of the released files. `seed` fixes the initial weights; with seed=None they stay zero,
    for a model that is about to be loaded. With `recompute` a block keeps only its input for backward, and is computed
    again there (tinygrad2/recompute.py). Radford et al., 2019.
    """

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

    def forward(self, tokens: Any, targets: Any = None) -> tuple[Tensor, Tensor | None]:      # (B, T) integers
        """(logits, loss): logits (B, T, V), and the mean loss over all targets (B, T) in nats, None without targets.

        Raises IndexError for ids outside the vocabulary and ValueError for more than block_size tokens.
        """
        logits = self.logits(self.hidden(tokens))                 # (B, T, V)
        if targets is None:
            return logits, None
        return logits, ops.cross_entropy(logits, self._to_model(targets, ignored=-1))

    def loss(self, tokens: Any, targets: Any) -> Tensor:          # (B, T) integers, both
        """The loss alone, as `forward` returns it, without ever holding all logits: for training and validation."""
        weight = self.wte.weight if self.lm_head is None else self.lm_head.weight.T     # (V, C)
        return ops.linear_cross_entropy(self.hidden(tokens), weight, self._to_model(targets, ignored=-1))

    def hidden(self, tokens: Any, cache: Any = None) -> Tensor:   # (B, T)
        """The final hidden state at each position: (B, T, C).

        With a KVCache (or CachePack) the tokens follow those that are in it, and are added to it.
        """
        tokens = np.asarray(tokens) if isinstance(tokens, (list, tuple)) else tokens
        if tokens.ndim != 2:
            raise ValueError(f"tokens of shape {tokens.shape}: a model takes (B, T), a row for each text")
        B, T = tokens.shape
        if cache is None and T > self.config.block_size:
            raise ValueError(f"{T} tokens are more than this model's block_size of {self.config.block_size}")
        positions = np.arange(T) if cache is None else cache.positions(B, T)
        positions = to_device(positions, self.wpe.weight.device)  # (T,), or (B, T)
        x = self.drop(self.wte(self._to_model(tokens)) + self.wpe(positions))        # (B, T, C)
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

    def generate(self, tokens: list[int], max_new_tokens: int, rng: np.random.Generator | None = None,
                 temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, stop: Any = None,
                 n_vocab: int | None = None) -> Iterator[int]:  # fmt: skip
        """Continue a list of token ids; yields one new id at a time (so text can be shown as it is written).

        rng       NumPy Generator for the draws; None means greedy: always the most probable token
        stop      id that ends the text (it is not yielded), or several ids
        n_vocab   only ids below are drawn (if the tokenizer has fewer than the model has rows)

        Past block_size the oldest tokens slide out of the window. See models/sampling.py for the other knobs, and
        models/generation.py for several texts at once.
        """
        knobs = Sampling(temperature, top_k, top_p)
        for step in generate(self, [tokens], max_new_tokens, [rng], knobs, stop=stop, n_vocab=n_vocab):
            if step.token is not None:
                yield step.token

    def next_logits(self, tokens: Any, cache: Any) -> Tensor:     # (B, T) lists of ids
        """The scores of the token that follows each sequence, (B, V); the tokens are added to the KVCache."""
        with no_grad():
            return self.logits(self.hidden(np.array(tokens), cache)[:, -1])

    def _to_model(self, ids: Any, ignored: int | None = None) -> Any:
        """Token ids on the model's device. They are checked here, on the host: a GPU would not complain."""
        ids = ids.data if isinstance(ids, Tensor) else np.asarray(ids) if isinstance(ids, (list, tuple)) else ids
        if isinstance(ids, np.ndarray):
            check_ids(ids if ignored is None else ids[ids != ignored], self.config.vocab_size)
        return to_device(ids, self.wte.weight.device)


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
