"""From a stream of tokens to batches (x, y), y shifted by one: at every position the target is the token that follows.

    tokens    once upon a time there was ...
    x         once upon a    time
    y         upon a    time there

The stream is a ring: after the last token comes the first. An epoch cuts it into W = n // T windows of T tokens.

    sequential   window after window; the next epoch continues where the last one ended, not at the beginning
    shuffled     each epoch has its own order, in which every window comes once, and its own position of the first
                 cut, so that a window's borders move from epoch to epoch
    llmc         as llm.c reads (llmc_order.py): whole batches shuffled, for comparisons with it;
                 its seed is fixed, and the order depends on the batch size

All are functions of (seed, epoch, window): the position in the data is two integers, (epoch, index), and a run that is
resumed there reads what it would have read. The rows of a batch are windows index, index + 1, ... and are divided
among the ranks in blocks, so that together they read exactly what a single rank would read.
"""

import numpy as np

from tinygrad2.datasets.llmc_order import LlmcOrder
from tinygrad2.datasets.token_files import TokenStream
from tinygrad2.errors import UserError
from tinygrad2.prng import make_key, permute

ORDERS = ("shuffled", "sequential", "llmc")


class DataLoader:
    """Batches of a token stream.

    stream       a TokenStream or an array (n,) of integers, n >= 2
    batch_size   rows B of one batch over all ranks; a multiple of the number of ranks
    block_size   tokens T per row
    rank, size   this rank and the number of ranks
    order        one of ORDERS
    seed         of the shuffled orders

    Raises ValueError for unsuitable arguments, UserError if order "llmc" needs longer files.
    """

    def __init__(self, stream, batch_size, block_size, rank=0, size=1, order="sequential", seed=0):
        self.stream = stream if isinstance(stream, TokenStream) else TokenStream.of(stream)
        n = len(self.stream)
        if n < 2:
            raise ValueError(f"{n} tokens are too few; at least 2 are needed, a token and its successor")
        if batch_size % size:
            raise ValueError(f"{size} ranks cannot share a batch of {batch_size} evenly")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        self.B, self.T, self.rank, self.size, self.order, self.seed = batch_size, block_size, rank, size, order, seed
        self.windows_per_epoch = max(1, n // block_size)
        if order == "llmc":
            lengths = self.stream.lengths()
            if min(lengths) <= self.tokens_per_batch:
                raise UserError(f"--order llmc: each file must have {self.tokens_per_batch + 1:,} tokens, a batch and "
                                f"one more; the shortest has {min(lengths):,}; use a smaller batch")
            self._llmc = LlmcOrder(lengths, self.tokens_per_batch)
            self.windows_per_epoch = self._llmc.per_epoch * batch_size
        self.repeats = -(-(batch_size * block_size + 1) // n)  # how often the stream occurs in a batch, rounded up

    @property
    def tokens_per_batch(self):
        """B * T, over all ranks."""
        return self.B * self.T

    @property
    def first_row(self):
        """The index of this rank's first row in the global batch."""
        return self.rank * (self.B // self.size)

    def after(self, position):
        """Returns the position of the batch after the one at `position`."""
        epoch, index = position
        epochs, index = divmod(index + self.B, self.windows_per_epoch)
        return epoch + epochs, index

    def batch(self, position):
        """Returns this rank's rows of the batch at `position` = (epoch, index): x, y, both (B / size, T) int64."""
        epoch, index = position
        samples = index + self.first_row + np.arange(self.B // self.size)                   # (B/size,)
        starts = self._starts(epoch + samples // self.windows_per_epoch, samples % self.windows_per_epoch)
        window = self.stream.read(starts, self.T + 1)                                       # (B/size, T + 1)
        return window[:, :-1], window[:, 1:]

    def micro_batches(self, position, rows):
        """The same in parts of `rows` rows: yields (index of the first row in the global batch, x, y)."""
        x, y = self.batch(position)
        for i in range(0, len(x), rows):
            yield self.first_row + i, x[i : i + rows], y[i : i + rows]

    def _starts(self, epochs, windows):
        """Returns the position of each window's first token; all arrays are (B / size,) integers."""
        if self.order == "sequential":
            return (epochs * self.windows_per_epoch + windows) * self.T
        starts = np.empty_like(windows)
        if self.order == "llmc":
            for i, (epoch, window) in enumerate(zip(epochs.tolist(), windows.tolist())):
                starts[i] = self._llmc.start(epoch, window // self.B) + window % self.B * self.T
            return starts
        for epoch in np.unique(epochs).tolist():
            shift = make_key(self.seed, epoch, 1) % len(self.stream)
            here = epochs == epoch
            order = permute(windows[here], self.windows_per_epoch, make_key(self.seed, epoch))
            starts[here] = shift + order * self.T
        return starts

