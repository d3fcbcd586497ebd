"""Continue texts: several at a time, of any lengths, each as if it were alone.

    prefill    a prompt goes through the model, and fills its own KVCache
    decode     the last token goes through
    slide      at block_size the oldest token leaves; the positions of all others change, so they go through again

The tokens that all texts have to send through go in one pass, concatenated (CachePack). A text that has ended makes
room for the next one. Each draws from its own generator, so what is drawn does not depend on the other texts.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from models.cache_pack import scores_after
from models.decode_graph import DecodeGraph
from models.sampling import Sampling, log_probability, sample

_TOKENS = 2048  # that go through at a time, unless a single text has more


@dataclass(frozen=True)
class Step:
    """One new token: of which text, its id, the ln of its probability (None if not asked for), and whether it is
    the last one. `token` is None if a text has ended with `stop`."""

    text: int
    token: int | None
    logprob: float | None
    last: bool


@dataclass
class _Text:
    number: int
    tokens: list
    rng: Generator | None
    cache: Any                                                    # KVCache, or TokenCache
    first: Any = None                                             # (V,) array, the scores after the prompt,
    logits: Any = None                                            # (V,) array, those after the newest token
    done: int = 0
    slid: bool = False

    def unseen(self):
        """The tokens to send through: the newest one, or as many as fit if the cache is empty."""
        return self.tokens[-1:] if self.cache.position else self.tokens[-self.cache.size :]


def generate(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, rngs: Sequence[Generator | None],
             sampling: Sampling | None = None, *, stop: int | Collection[int] | None = None, n_vocab: int | None = None,
             batch_size: int = 8, logprobs: bool = False, ended: Collection[int] = ()) -> Iterator[Step]:  # fmt: skip
    """Continue each of `prompts` (lists of ids) by up to max_new_tokens; yields Steps, one per token.

    rngs             NumPy Generators, one per prompt; None means greedy
    stop, n_vocab    id or ids that end a text (not part of it); only ids below n_vocab are drawn (as in GPT.generate)
    batch_size       number of texts that are continued in parallel
    ended            a set to which the caller may add the numbers of texts that need not continue

    Raises ValueError for an empty prompt, too few or many rngs, a batch_size below 1; UserError for NaN scores.
    """
    if not all(map(len, prompts)):
        raise ValueError("generate needs at least one token to start from")
    if len(rngs) != len(prompts) or batch_size < 1:
        raise ValueError(f"{len(prompts)} prompts with {len(rngs)} rngs, in batches of {batch_size}")
    knobs, stops = vars(sampling or Sampling()), stop if isinstance(stop, Collection) else (stop,)
    waiting = list(range(len(prompts)))[::-1]
    texts: list[_Text] = []
    graph = DecodeGraph(model) if model.device == "cuda" else None
    while max_new_tokens > 0 and (waiting or texts):
        numbers = [waiting.pop() for _ in range(min(len(waiting), batch_size - len(texts)))]
        numbers = [number for number in numbers if number not in ended]
        texts += _begin(model, numbers, prompts, rngs, max_new_tokens, texts)
        for text in texts:
            logits = text.logits[:n_vocab]
            token = sample(logits, text.rng, **knobs, seen=text.tokens)
            logprob = log_probability(logits, token) if logprobs else None
            text.tokens.append(token)
            text.done = max_new_tokens if token in stops else text.done + 1
            yield Step(text.number, None if token in stops else token, logprob, text.done == max_new_tokens)
        texts = [text for text in texts if text.done < max_new_tokens and text.number not in ended]
        for text in texts:
            if text.cache.full:                                   # every token gets another position: start over
                text.cache.reset()
                text.slid = True
        _feed(model, texts, graph)


def _begin(model, numbers, prompts, rngs, max_new_tokens, running):
    """New texts. The pass over a prompt is skipped if another text has the same one and has not slid out of it."""
    new, known = [], {tuple(prompts[text.number]): text for text in running if not text.slid}
    for number in numbers:
        prompt = list(prompts[number])
        room = min(len(prompt), model.config.block_size) + max_new_tokens - 1    # nothing follows the last token
        text = _Text(number, prompt, rngs[number], model.new_cache(1, room))
        new.append((text, known.setdefault(tuple(prompt), text)))
    _feed(model, [text for text, like in new if like is text])
    for text, like in new:
        if like is not text:
            text.cache.copy_from(like.cache, min(len(text.tokens), text.cache.size))
            text.first = text.logits = like.first
    return [text for text, _ in new]


def _feed(model, texts, graph=None):
    """Compute the scores after the unseen tokens of all texts, in as few passes of _TOKENS as possible."""
    while texts:
        unseen = [text.unseen() for text in texts]
        sizes = np.cumsum([len(tokens) for tokens in unseen])
        n = max(1, int(np.searchsorted(sizes, _TOKENS, side="right")))
        caches = [text.cache for text in texts[:n]]
        logits = graph.scores_after(caches, unseen[:n]) if graph else None      # (n, V)
        if logits is None:
            logits = scores_after(model, caches, unseen[:n])
        for text, row in zip(texts[:n], logits):
            text.logits = row
            text.first = row if text.first is None else text.first
        texts = texts[n:]
