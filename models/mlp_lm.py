from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models.embedding import Embedding
from models.gpt_memory import logits_chunk
from models.language_model import LanguageModel
from models.last_tokens import TokenCache, last_tokens
from models.linear import Linear
from models.model_config import ModelConfig
from tinygrad2.cli import flag
from tinygrad2.tensor import Tensor

_F = 4  # bytes of a float32


@dataclass(frozen=True)
class MLPConfig(ModelConfig):
    """The sizes of an MLPLanguageModel. Raises ValueError, naming the field, for values that cannot work."""

    family = "mlp"
    presets = {"mlp": dict(block_size=128, vocab_size=1024, n_context=4, n_embd=32, n_hidden=256)}
    sizes = ("block_size", "vocab_size", "n_context", "n_embd", "n_hidden")

    n_context: int = flag(4, "of an mlp: how many of the last tokens it sees")
    n_embd: int = flag(32, "channels of a token's embedding")
    n_hidden: int = flag(256, "of an mlp: width of its hidden layer")

    def __post_init__(self):
        super().__post_init__()
        if self.n_context > self.block_size:
            raise ValueError(f"n_context = {self.n_context} is more than block_size = {self.block_size}, the length of "
                             "the rows of a batch")  # fmt: skip

    def describe(self) -> str:
        return (f"{self.n_context} tokens of context, {self.n_embd} channels each, {self.n_hidden} hidden, "
                f"{self.vocab_size:,} tokens")  # fmt: skip

    def shapes(self):
        V, C, H = self.vocab_size, self.n_embd, self.n_hidden
        hidden = {"c_fc.weight": (self.n_context * C, H), "c_fc.bias": (H,)}
        return {"wte.weight": (V + 1, C), **hidden, "lm_head.weight": (H, V)}

    def train_flops_per_token(self) -> int:
        return 6 * self.n_hidden * (self.n_context * self.n_embd + self.vocab_size)

    def kept(self, rows, length, reference, dtype="float32", device="cpu"):
        N = rows * length
        return {
            "embeddings of the last tokens": _F * N * self.n_context * self.n_embd,
            "hidden layer": _F * N * self.n_hidden,
        }

    def work_space(self, rows, length, reference, dtype="float32", device="cpu"):
        N, V = rows * length, self.vocab_size
        work = _F * N * (2 * self.n_hidden + self.n_context * self.n_embd)
        if reference:
            return 0, 0, max(4 * _F * N * V, work)
        return 0, logits_chunk(N, self.n_hidden, V), work


class MLPLanguageModel(LanguageModel):
    """The last k tokens, each as a learned vector, through an MLP with one hidden layer.

        x = [wte[token k-1 before], ..., wte[token]]       the k embeddings, one after the other
        h = tanh(x c_fc + bias)
        logits = h lm_head

    Similar words get similar vectors, so what is learned of one context serves many others: a table of all contexts of
    k tokens would have V^k rows. Row V of wte stands for "no token", before the beginning of a text. Bengio et al., "A
    neural probabilistic language model", JMLR 2003, section 2 (without its direct connections and output bias).
    """

    config: MLPConfig

    def __init__(self, config: MLPConfig, seed: int | None = None):
        self.config = config
        self.wte = Embedding(config.vocab_size + 1, config.n_embd)
        self.c_fc = Linear(config.n_context * config.n_embd, config.n_hidden)
        self.lm_head = Linear(config.n_hidden, config.vocab_size, bias=False)
        if seed is not None:
            initialize(self, seed)

    def hidden(self, tokens: Any, cache: Any = None) -> Tensor:   # (B, T)
        """The hidden layer at each position, (B, T, H)."""
        tokens, config = self._rows(tokens), self.config
        ids, window = self.to_model(tokens), partial(last_tokens, k=config.n_context, nothing=config.vocab_size)
        contexts = window(ids, tokens.shape[1]) if cache is None else cache.contexts(tokens, window)     # (B, T, k)
        x = self.wte(self.to_model(contexts, ignored=config.vocab_size))            # (B, T, k, C)
        return self.c_fc(x.reshape(*tokens.shape, -1)).tanh()     # (B, T, H)

    def logits(self, x: Tensor) -> Tensor:                        # (..., H)
        """Scores of the next token, (..., V)."""
        return self.lm_head(x)                                    # (..., V)

    def head_weight(self) -> Tensor:
        return self.lm_head.weight.T                              # (V, H)

    def new_cache(self, batch: int = 1, size: int | None = None) -> TokenCache:
        return TokenCache(batch, self.config.block_size)


def initialize(model: MLPLanguageModel, seed: int) -> None:
    """Initial weights: normal, mean 0, with these standard deviations; the bias is 0.

        wte          1
        c_fc         1 / sqrt(k C)       its sums are of the size of one, where tanh is steep
        lm_head      0.01                all tokens are about equally likely: the first loss is ln V
    """
    rng, fan_in = np.random.default_rng(seed), model.config.n_context * model.config.n_embd
    for part, std in ((model.wte, 1.0), (model.c_fc, 1 / math.sqrt(fan_in)), (model.lm_head, 0.01)):
        parameter = part.weight
        parameter.data[...] = std * rng.standard_normal(parameter.shape, dtype=np.float32)
