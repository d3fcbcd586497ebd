"""Perplexity: how well a model predicts a text, token by token. The text may be longer than its context.

A window of block_size tokens slides over the text by `stride`, and each window scores the tokens that the last one has
not: so every token is scored once, given at least block_size - stride tokens before it. stride = block_size is fast,
but the first tokens of each window have little context; a small stride is slow, and the perplexity is lower.

    loss per token     nats / tokens               in nats; compares models with the same tokenizer
    perplexity         e^loss
    bits per byte      nats / (ln 2 * bytes)       compares any two models
    word perplexity    e^(nats / words)            words as lm-evaluation-harness counts them

The first token is predicted from the end-of-text token, as in training; if the tokenizer has none, it is not scored.
End-of-text tokens within a stream are scored, but have no bytes: bits per byte leaves out their nats.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from tinygrad2.evaluation.scoring import BATCH_TOKENS, score_rows, windows
from tinygrad2.tokenizers.parallel import encode_stream
from tinygrad2.tokenizers.streaming import StreamDecoder
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT

_MARK = re.compile(rb"[\r\n]*" + re.escape(END_OF_TEXT).encode() + rb"[\r\n]*")


@dataclass
class PerplexityResult:
    """Sums over scored tokens.

    tokens       their number
    nats         sum of -ln p
    text_nats    the same without end-of-text tokens
    bytes        length of their text in UTF-8, None if the tokenizer is not known
    words        len(re.split(r"\\s+", text)); an end-of-text token counts as white space
    """

    tokens: int = 0
    nats: float = 0.0
    text_nats: float = 0.0
    bytes: int | None = None
    words: int | None = None

    def to_dict(self):
        """The sums, and loss, perplexity, bits_per_byte and word_perplexity computed from them (None: not known)."""
        loss = self.nats / max(1, self.tokens)
        bits = self.text_nats / math.log(2) / self.bytes if self.bytes else None
        word_perplexity = _exp(self.text_nats / self.words) if self.words else None
        return {"tokens": self.tokens, "nats": self.nats, "bytes": self.bytes, "words": self.words, "loss": loss,
                "perplexity": _exp(loss), "bits_per_byte": bits, "word_perplexity": word_perplexity}  # fmt: skip


def _exp(x):
    return math.exp(x) if x < 700 else math.inf


def perplexity(model, stream, tokenizer=None, stride=None, batch_tokens=BATCH_TOKENS, progress=None):
    """The PerplexityResult of a model for all ids of a TokenStream.

    stride      tokens between two windows, 1 .. block_size; default: half of block_size
    progress    is called with the number of tokens scored since the last call

    Only a few windows are in memory. Raises ValueError for a stride outside its range; IndexError for ids outside the
    model's vocabulary; UserError if its scores are not finite.
    """
    block_size = model.config.block_size
    stride = max(1, block_size // 2) if stride is None else stride
    if not 1 <= stride <= block_size:
        raise ValueError(f"stride must be in 1 .. {block_size}, the model's context, not {stride}")
    eot = tokenizer.eot if tokenizer else None
    first = 1 if eot is None else 0  # index of the first token of the stream that is scored
    ahead = 1 - first  # number of tokens put before the stream
    result, rows, begins = PerplexityResult(), [], []
    text = None if tokenizer is None else _TextCounter(tokenizer)
    if text and first:
        text.feed(stream.read([0], 1)[0].tolist(), is_scored=False)

    def score():
        for row, begin, (logprobs, _) in zip(rows, begins, score_rows(model, rows, begins, batch_tokens)):
            ids = row[begin:]
            is_text = np.array(ids) != eot if eot is not None else np.ones(len(ids), bool)
            result.tokens += len(ids)
            result.nats -= math.fsum(logprobs)
            result.text_nats -= math.fsum(logprobs[is_text])
            if text:
                text.feed(ids)
            if progress:
                progress(len(ids))
        rows.clear()
        begins.clear()

    for start, begin, stop in windows(len(stream) + ahead, 1, block_size, stride):
        lead = [eot] if start < ahead else []
        offset = max(0, start - ahead)
        rows.append(lead + stream.read([offset], stop - ahead - offset)[0].tolist())
        begins.append(begin - start)
        if len(rows) * block_size >= batch_tokens:
            score()
    score()
    if text:
        result.bytes, result.words = text.finish()
    return result


class _TextCounter:
    """Counts bytes and words of a text that comes in pieces."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoder = tokenizer, StreamDecoder(tokenizer)
        self.bytes, self.gaps, self.after_space = 0, 0, False

    def feed(self, ids, is_scored=True):
        """Count the next tokens; those that are not scored count for the words only."""
        text = []
        for id in ids:
            if id == self.tokenizer.eot:
                text += self.decoder.flush(), "\n"
            else:
                self.bytes += len(self.tokenizer.token_bytes(id)) if is_scored else 0
                text.append(self.decoder.feed(id))
        self._count("".join(text))

    def finish(self):
        """(bytes, words) of the text."""
        self._count(self.decoder.flush())
        return self.bytes, self.gaps + 1

    def _count(self, text):
        if text:
            inside = self.after_space and text[0].isspace()       # a gap that continues has been counted
            self.gaps += len(re.findall(r"\s+", text)) - inside
            self.after_space = text[-1].isspace()


def ids_of_text(text, tokenizer):
    """The ids of a text (bytes in UTF-8), int32 (n,). <|endoftext|> in it, with the line breaks around it, is the
    end-of-text token, if the tokenizer has one. Raises UserError for characters that the tokenizer does not know."""
    if tokenizer.eot is None:
        return np.asarray(tokenizer.encode_array(text), np.int32)
    return np.asarray(encode_stream(_MARK.split(text), tokenizer), np.int32)[:-1]     # none after the last document
