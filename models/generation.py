"""Continue texts: several at a time, of any lengths, each as if it were alone.

    prefill    a prompt goes through the model, and fills a KVCache of its own
    decode     the last token goes through
    slide      at block_size the oldest token leaves; all others then have other positions, so they go through again

The tokens that all texts have to send through go in one pass, concatenated (CachePack). A text that has ended makes
room for the next one. Each draws from a generator of its own, so what is drawn does not depend on the other texts.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.kv_cache import CachePack, KVCache
from models.sampling import Sampling, log_probability, sample
from tinygrad2.backend import to_device
from tinygrad2.tensor import no_grad

_TOKENS = 2048  # that go through at a time, unless a single text has more


@dataclass(frozen=True)
class Step:
    """One new token: of which text, its id, the ln of its probability (None where not asked for), and whether it is
    the last one. `token` is None where a text has ended with `stop`."""

    text: int
    token: int | None
    logprob: float | None
    last: bool


@dataclass
class _Text:
    number: int
    tokens: list
    rng: Any
    cache: KVCache
    first: Any = None                                             # (V,) array, the scores after the prompt,
    logits: Any = None                                            # (V,) array, those after the newest token
    done: int = 0
    slid: bool = False


def generate(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, rngs: Sequence[np.random.Generator | None],
    sampling: Sampling | None = None, *, stop: int | None = None, n_vocab: int | None = None, batch_size: int = 8,
    logprobs: bool = False, ended: Collection[int] = frozenset(),
) -> Iterator[Step]:  # fmt: skip
    """Continue each of `prompts` (lists of ids) with a GPT by up to max_new_tokens; yields Steps, one per token.

    rngs             NumPy Generators, one per prompt; None means greedy
    stop, n_vocab    id that ends a text (it is not part of it); only ids below n_vocab are drawn (as in GPT.generate)
    batch_size       number of texts that are continued at the same time
    ended            a set to which the caller may add the numbers of texts that need not continue

    Raises ValueError for an empty prompt, more or fewer rngs than prompts, a batch_size below 1; UserError for scores
    that are not finite.
    """
    if not all(map(len, prompts)):
        raise ValueError("generate needs at least one token to start from")
    if len(rngs) != len(prompts) or batch_size < 1:
        raise ValueError(f"{len(prompts)} prompts with {len(rngs)} rngs, in batches of {batch_size}")
    if max_new_tokens < 1:
        return
    knobs = vars(sampling or Sampling())
    waiting = list(range(len(prompts)))[::-1]
    texts: list[_Text] = []
    while waiting or texts:
        numbers = [waiting.pop() for _ in range(min(len(waiting), batch_size - len(texts)))]
        numbers = [number for number in numbers if number not in ended]
        texts += _begin(model, numbers, prompts, rngs, max_new_tokens, texts)
        for text in texts:
            logits = text.logits[:n_vocab]
            token = sample(logits, text.rng, **knobs, seen=text.tokens)
            logprob = log_probability(logits, token) if logprobs else None
            text.tokens.append(token)
            text.done = max_new_tokens if token == stop else text.done + 1
            yield Step(text.number, None if token == stop else token, logprob, text.done == max_new_tokens)
        texts = [text for text in texts if text.done < max_new_tokens and text.number not in ended]
        _advance(model, texts)


def _begin(model, numbers, prompts, rngs, max_new_tokens, running):
    """New texts. The pass over a prompt is saved where another text has the same one and has not slid out of it."""
    new, known = [], {tuple(prompts[text.number]): text for text in running if not text.slid}
    for number in numbers:
        prompt = list(prompts[number])
        room = min(len(prompt), model.config.block_size) + max_new_tokens - 1    # nothing follows the last token
        text = _Text(number, prompt, rngs[number], KVCache(model.config, 1, model.wpe.weight.device, room))
        new.append((text, known.setdefault(tuple(prompt), text)))
    _feed(model, [(text, text.tokens[-text.cache.size :]) for text, like in new if like is text])
    for text, like in new:
        if like is not text:
            text.cache.copy_from(like.cache, min(len(text.tokens), text.cache.size))
            text.first = text.logits = like.first
    return [text for text, _ in new]


def _advance(model, texts):
    """Compute the scores of the token after the newest one, for every text."""
    work = []
    for text in texts:
        slides = text.cache.full                                  # every token gets another position: start over
        if slides:
            text.cache.reset()
            text.slid = True
        work.append((text, text.tokens[-text.cache.size :] if slides else text.tokens[-1:]))
    _feed(model, work)


def _feed(model, work):
    """Compute the scores after new tokens, for all of [(text, tokens)], in as few passes of _TOKENS as possible."""
    while work:
        sizes = np.cumsum([len(tokens) for _, tokens in work])
        n = max(1, int(np.searchsorted(sizes, _TOKENS, side="right")))
        part, work = work[:n], work[n:]
        pack = CachePack([text.cache for text, _ in part], [len(tokens) for _, tokens in part])
        with no_grad():
            x = model.hidden(np.array([[id for _, tokens in part for id in tokens]]), pack)      # (1, T, C)
            logits = model.logits(x[0, to_device(sizes[:n] - 1, x.device)]).numpy()              # (n, V)
        for (text, _), row in zip(part, logits):
            text.logits = row
            text.first = row if text.first is None else text.first
