"""From a stream of tokens to batches (x, y), y shifted by one: at every position the target is the token that follows.

    tokens    once upon a time there was ...
    x         once upon a    time
    y         upon a    time there

The stream is read as a ring: batch after batch goes on where the last one ended, and after the last token comes the
first. So nothing is dropped at the end of an epoch, and the windows of the next epoch begin at other places.

Where step s begins is arithmetic, not state: batch s covers the tokens s B T .. (s + 1) B T of the ring. Its B rows are
shared out over the ranks in blocks, so that together they read exactly what one rank alone would read.
"""

import numpy as np

from tinygrad2.encoding import encode_stream
from tinygrad2.tokenizer import END_OF_TEXT


class DataLoader:
    """Batches of a token stream.

    tokens       (n,) integers, n >= 2; where a batch + 1 needs more, they are repeated (see `repeats`)
    batch_size   rows B of one batch over all ranks; the ranks' number must divide it
    block_size   tokens T per row
    """

    def __init__(self, tokens, batch_size, block_size, rank=0, size=1):
        if len(tokens) < 2:
            raise ValueError(f"{len(tokens)} tokens are too few: a token and its successor are the least to learn from")
        if batch_size % size:
            raise ValueError(f"{size} ranks cannot share a batch of {batch_size} evenly")
        self.B, self.T, self.rank, self.size = batch_size, block_size, rank, size
        self.repeats = -(-(batch_size * block_size + 1) // len(tokens))  # 1 where the stream is long enough
        self.tokens = np.tile(tokens, self.repeats) if self.repeats > 1 else tokens

    @property
    def tokens_per_batch(self):
        return self.B * self.T

    @property
    def first_row(self):
        """The number, in the global batch, of this rank's first row."""
        return self.rank * (self.B // self.size)

    def batch(self, step):
        """This rank's rows of batch `step` (0, 1, ...): x, y, both (B / size, T)."""
        rows = np.arange(self.first_row, self.first_row + self.B // self.size)
        start = step * self.tokens_per_batch + rows * self.T                                # (B/size,)
        places = (start[:, None] + np.arange(self.T + 1)) % len(self.tokens)                # (B/size, T + 1)
        window = self.tokens[places].astype(np.int64)
        return window[:, :-1], window[:, 1:]

    def micro_batches(self, step, rows):
        """The same cut into pieces of `rows` rows: yields (number of the first row in the global batch, x, y)."""
        x, y = self.batch(step)
        for i in range(0, len(x), rows):
            yield self.first_row + i, x[i : i + rows], y[i : i + rows]


def split_documents(text):
    """The documents of a text (bytes): what stands between the marks <|endoftext|>, without the line breaks around.

    split_documents(b"one\\n<|endoftext|>\\ntwo\\n") -> [b"one", b"two"]
    """
    parts = (part.strip(b"\r\n") for part in text.split(END_OF_TEXT.encode()))
    return [part for part in parts if part]


def encode_documents(documents, tokenizer, workers=None):
    """One token stream (n,) int32 of all documents, each followed by the end-of-text token; see encoding.py."""
    return np.asarray(encode_stream(documents, tokenizer, workers), dtype=np.int32)


def split_tokens(tokens, val_fraction):
    """The last part of the stream is for validation: (train, val). val is empty where val_fraction is 0."""
    n_val = int(len(tokens) * val_fraction)
    return tokens[: len(tokens) - n_val], tokens[len(tokens) - n_val :]
