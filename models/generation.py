"""Continue texts: several at a time, of any lengths, each as if it were alone.

    prefill    a prompt goes through the model at once, and fills a KVCache of its own
    decode     the last token of every text goes through together: one product for all
    slide      a text that has reached block_size loses its oldest token; every other one then stands elsewhere, so its
               window goes through again

A text that has ended makes room for the next one that waits. Each has its own generator of random numbers, so that
what is drawn does not depend on which texts happen to be beside it.
"""

from dataclasses import dataclass

import numpy as np

from models.kv_cache import CacheRows, KVCache
from models.sampling import Sampling, log_probability, sample


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
    rng: object
    cache: KVCache
    first: np.ndarray                                             # the scores after the prompt, and the present ones
    logits: np.ndarray
    done: int = 0


def generate(model, prompts, max_new_tokens, rngs, sampling=None, stop=None, n_vocab=None, batch=8, logprobs=False,
             ended=frozenset()):  # fmt: skip
    """Continue each of `prompts` (lists of ids) by up to max_new_tokens; yields Steps.

    rngs       NumPy Generators, one a prompt; None in one's place means greedy
    stop       id that ends a text (it is not part of it)
    n_vocab    only ids below are drawn (where the tokenizer has fewer than the model has rows)
    batch      texts that are worked on at the same time
    ended      a set to which the caller may add numbers of texts that need not go on

    Raises ValueError for an empty prompt, another number of rngs than of prompts and a batch of none, and UserError
    where the model's scores are no numbers.
    """
    if not all(map(len, prompts)):
        raise ValueError("generate needs at least one token to start from")
    if len(rngs) != len(prompts) or batch < 1:
        raise ValueError(f"{len(prompts)} prompts with {len(rngs)} rngs, in batches of {batch}")
    if max_new_tokens < 1:
        return
    knobs = vars(sampling or Sampling())
    waiting, texts = list(range(len(prompts)))[::-1], []
    while waiting or texts:
        while waiting and len(texts) < batch:
            number = waiting.pop()
            if number not in ended:
                texts.append(_begin(model, number, prompts, rngs, max_new_tokens, texts))
        for text in texts:
            logits = text.logits[:n_vocab]
            token = sample(logits, text.rng, **knobs, seen=text.tokens)
            logprob = log_probability(logits, token) if logprobs else None
            text.tokens.append(token)
            text.done = max_new_tokens if token == stop else text.done + 1
            yield Step(text.number, None if token == stop else token, logprob, text.done == max_new_tokens)
        texts = [text for text in texts if text.done < max_new_tokens and text.number not in ended]
        _advance(model, texts)


def _begin(model, number, prompts, rngs, max_new_tokens, others):
    """A new text; the pass over its prompt is spared where another one has the same, and has not slid out of it."""
    prompt = list(prompts[number])
    window = prompt[-model.config.block_size :]
    cache = KVCache(model.config, 1, model.wpe.weight.device, len(window) + max_new_tokens - 1)  # none follows the last
    for other in others:
        if len(window) + other.done <= cache.size and prompt == list(prompts[other.number]):
            cache.copy_from(other.cache, len(window))
            logits = other.first
            break
    else:
        logits = model.next_logits([window], cache).numpy()[0]
    return _Text(number, prompt, rngs[number], cache, logits, logits)


def _advance(model, texts):
    """The scores of the token after the newest one, for every text."""
    for text in texts:
        if text.cache.full:                                       # every token moves to another position: begin again
            text.cache.reset()
            text.logits = model.next_logits([text.tokens[-text.cache.size :]], text.cache).numpy()[0]
    moving = [text for text in texts if not text.cache.full]      # (full ones have just begun again)
    if len(moving) == 1:
        moving[0].logits = model.next_logits([moving[0].tokens[-1:]], moving[0].cache).numpy()[0]
    elif moving:
        rows = CacheRows([text.cache for text in moving])
        for text, logits in zip(moving, model.next_logits([text.tokens[-1:] for text in moving], rows).numpy()):
            text.logits = logits
