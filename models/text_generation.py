"""Texts from a model, piece by piece: what inference.py prints, and what lm-evaluation-harness asks for.

generation.py continues lists of token ids. Here tokens become characters, and stop strings end a text.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.generation import generate
from models.gpt import GPT
from models.sampling import Sampling
from tinygrad2.tokenizers.streaming import TextStream


@dataclass(frozen=True)
class Piece:
    """What one token adds to a text.

    index            which text: an index into the prompts
    text             the new characters; none while a character is incomplete, or may be the start of a stop string
    token, logprob   the token and the ln of its probability, as in generation.Step; None if the model ends the text
    finish_reason    None while the text continues; then "length", "stop string", "end of text" or "interrupted"
    """

    index: int
    text: str
    token: int | None
    logprob: float | None
    finish_reason: str | None


def stream_texts(
    model: GPT, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int, *, sampling: Sampling, seed: int,
    samples: Sequence[int], end: Any = None, stops: Collection[str] = (), batch_size: int = 8,
    logprobs: bool = False, interrupted: Callable[[], Any] = lambda: False,
) -> Iterator[Piece]:  # fmt: skip
    """Continue each of `prompts` (lists of ids); yields Pieces, those of several texts in turns.

    seed, samples   text i is drawn with the generator seeded [seed, samples[i]], whatever the other texts are
    end             id that ends a text, and is not part of it; or several ids
    stops           strings that end a text, which does not contain them
    batch_size      number of texts that are continued in parallel
    interrupted     returns True to end all texts after the current token

    Raises ValueError and UserError as `generate` does.
    """
    rngs = [None if sampling.temperature == 0 else np.random.default_rng([seed, sample]) for sample in samples]
    streams: list[TextStream] = [TextStream(tokenizer, stops) for _ in prompts]
    ended: set[int] = set()
    for step in generate(
        model, prompts, max_new_tokens, rngs, sampling, stop=end, n_vocab=tokenizer.n_vocab, batch_size=batch_size,
        logprobs=logprobs, ended=ended,
    ):  # fmt: skip
        stream, finish_reason = streams[step.text], None
        text = "" if step.token is None else stream.feed(step.token)
        if step.last or stream.stopped or interrupted():
            text += stream.flush()
            finish_reason = _finish_reason(step, stream)
            ended.add(step.text)
        yield Piece(step.text, text, step.token, step.logprob, finish_reason)


def _finish_reason(step, stream):
    if stream.stopped:
        return "stop string"
    if step.token is None:
        return "end of text"
    return "length" if step.last else "interrupted"


def in_order(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces, text after text: of the first text that is not complete as they come, of later ones when it is
    their turn."""
    current, held = 0, defaultdict(list)
    for piece in pieces:
        held[piece.index].append(piece)
        while held[current]:
            ready = held.pop(current)
            yield from ready
            current += ready[-1].finish_reason is not None
