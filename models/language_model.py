from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import ops
from models.generation import generate
from models.model_config import ModelConfig
from models.sampling import Sampling
from ops.embedding import check_ids
from tinygrad2.backend import to_device
from tinygrad2.module import Module
from tinygrad2.tensor import Tensor, no_grad


class LanguageModel(Module):
    """What all models here have in common: token ids in, the scores (logits) of the next token at every position out.

    A model has `config`, and writes three methods:

        hidden(tokens, cache)     (B, T) ids -> what it knows at each position, (B, T, ...)
        logits(x)                 any of these -> scores of the next token, (..., V)
        new_cache(batch, size)    what `hidden` needs of the tokens before, when a text is continued
    """

    config: ModelConfig

    def forward(self, tokens: Any, targets: Any = None) -> tuple[Tensor, Tensor | None]:      # (B, T) integers
        """(logits, loss): logits (B, T, V), and the mean loss over all targets (B, T) in nats, None without targets.

        Raises IndexError for ids outside the vocabulary, and ValueError for more tokens than the model can take.
        """
        logits = self.logits(self.hidden(tokens))                 # (B, T, V)
        if targets is None:
            return logits, None
        return logits, ops.cross_entropy(logits, self.to_model(targets, ignored=-1))

    def loss(self, tokens: Any, targets: Any) -> Tensor:          # (B, T) integers, both
        """The loss alone, as `forward` returns it: for training and validation."""
        weight = self.head_weight()
        if weight is None:
            return ops.cross_entropy(self.logits(self.hidden(tokens)), self.to_model(targets, ignored=-1))
        return ops.linear_cross_entropy(self.hidden(tokens), weight, self.to_model(targets, ignored=-1))

    def head_weight(self) -> Tensor | None:
        """The matrix (V, C) with which logits = x weightT: then the loss needs never hold all logits. None without."""
        return None

    def hidden(self, tokens: Any, cache: Any = None) -> Tensor:   # (B, T)
        """What the model knows at each position, (B, T, ...). With a cache the tokens follow those that are in it, and
        are added to it."""
        raise NotImplementedError

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the next token, (..., V)."""
        raise NotImplementedError

    def new_cache(self, batch: int = 1, size: int | None = None) -> Any:
        """A cache for `batch` sequences; attention needs room for `size` tokens (default: block_size)."""
        raise NotImplementedError

    def generate(self, tokens: list[int], max_new_tokens: int, rng: np.random.Generator | None = None,
                 temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, stop: Any = None,
                 n_vocab: int | None = None) -> Iterator[int]:  # fmt: skip
        """Continue a list of token ids; yields one new id at a time (so text can be shown as it is written).

        rng       NumPy Generator for the draws; None means greedy: always the most probable token
        stop      id that ends the text (it is not yielded), or several ids
        n_vocab   only ids below are drawn (if the tokenizer has fewer than the model has rows)

        Past a GPT's block_size the oldest tokens slide out of the window. See models/sampling.py for the other knobs,
        and models/generation.py for several texts at once.
        """
        knobs = Sampling(temperature, top_k, top_p)
        for step in generate(self, [tokens], max_new_tokens, [rng], knobs, stop=stop, n_vocab=n_vocab):
            if step.token is not None:
                yield step.token

    def next_logits(self, tokens: Any, cache: Any) -> Tensor:     # (B, T) lists of ids
        """The scores of the token that follows each sequence, (B, V); the tokens are added to the cache."""
        with no_grad():
            return self.logits(self.hidden(np.array(tokens), cache)[:, -1])

    @property
    def device(self) -> str:
        """Where its parameters are: "cpu" or "cuda"."""
        return next(self.named_parameters())[1].device

    def _rows(self, tokens: Any) -> Any:
        """The tokens as an array (B, T). Raises ValueError for another number of axes."""
        tokens = np.asarray(tokens) if isinstance(tokens, (list, tuple)) else tokens
        if tokens.ndim != 2:
            raise ValueError(f"tokens of shape {tokens.shape}: a model takes (B, T), a row for each text")
        return tokens

    def to_model(self, ids: Any, ignored: int | None = None) -> Any:
        """Token ids on the model's device, checked."""
        return to_device(self.checked(ids, ignored), self.device)

    def checked(self, ids: Any, ignored: int | None = None) -> Any:
        """Token ids as an array. They are checked here, on the host: a GPU would not complain.

        ignored    an id that stands for none. Raises IndexError for others outside the vocabulary
        """
        ids = ids.data if isinstance(ids, Tensor) else np.asarray(ids) if isinstance(ids, (list, tuple)) else ids
        if isinstance(ids, np.ndarray):
            check_ids(ids if ignored is None else ids[ids != ignored], self.config.vocab_size)
        return ids
