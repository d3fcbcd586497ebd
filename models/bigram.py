from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.embedding import Embedding
from models.language_model import LanguageModel
from models.last_tokens import TokenCache
from models.model_config import ModelConfig
from tinygrad2.tensor import Tensor

_F = 4  # bytes of a float32


@dataclass(frozen=True)
class BigramConfig(ModelConfig):
    """The size of a Bigram: its vocabulary. `block_size` is only the length of the rows that it is trained on."""

    family = "bigram"
    presets = {"bigram": dict(block_size=128, vocab_size=1024)}

    def describe(self) -> str:
        return f"a table of {self.vocab_size:,} x {self.vocab_size:,} scores"

    def shapes(self):
        return {"table.weight": (self.vocab_size, self.vocab_size)}

    def train_flops_per_token(self) -> int:
        """A row of the table is read, and its gradient is added: no matrix product."""
        return 0

    def kept(self, rows, length, reference, dtype="float32", device="cpu"):
        return {"probabilities": _F * rows * length * self.vocab_size}

    def work_space(self, rows, length, reference, dtype="float32", device="cpu"):
        logits = _F * rows * length * self.vocab_size
        table = _F * self.vocab_size * self.vocab_size            # dweight, where it is an array of its own
        return 0, logits, (3 if reference else 1) * logits + (table if reference else 0)


class Bigram(LanguageModel):
    """The smallest language model: the next token depends on the current one alone. One table, no layers.

        logits = table[token]                    row i: how well each token follows token i

    The loss is lowest where softmax(table[i]) is what can be counted in the text (`count_bigrams`), so that training it
    by gradients must find the same numbers: tests/test_families.py. Shannon, "A mathematical theory of communication",
    1948, section 3. Without a seed or with any, the table starts at zero: all tokens are equally likely, loss ln V.
    """

    config: BigramConfig

    def __init__(self, config: BigramConfig, seed: int | None = None):
        self.config = config
        self.table = Embedding(config.vocab_size, config.vocab_size)

    def hidden(self, tokens: Any, cache: Any = None) -> Tensor:   # (B, T)
        """All it knows at a position is the token there: the ids themselves, (B, T) integers."""
        tokens = self._rows(tokens)
        if cache is not None:
            tokens = cache.contexts(tokens, _newest)
        return Tensor(self.to_model(tokens))                      # (B, T)

    def logits(self, x: Tensor) -> Tensor:                        # (...) integers
        """Scores of the next token, (..., V)."""
        return self.table(x)                                      # (..., V)

    def new_cache(self, batch: int = 1, size: int | None = None) -> TokenCache:
        return TokenCache(batch, self.config.block_size)


def _newest(ids, T):
    return ids[:, -T:]


def count_bigrams(tokens: Any, vocab_size: int) -> np.ndarray:
    """ln of the share of each next token, counted in a text (n,) of ids: (V, V) float64, the table of the best Bigram.

        out[a, b] = ln(how often b follows a / how often a is followed)

    It is -inf where b never follows a; a row of a token that nothing follows is ln(1 / V).
    """
    tokens = np.asarray(tokens)
    pairs = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
    counts = np.bincount(pairs, minlength=vocab_size * vocab_size).reshape(vocab_size, vocab_size).astype(np.float64)
    counts[counts.sum(1) == 0] = 1.0
    with np.errstate(divide="ignore"):
        return np.log(counts / counts.sum(1, keepdims=True))      # (V, V)
