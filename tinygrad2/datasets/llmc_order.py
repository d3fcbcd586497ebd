"""The order in which llm.c reads its files, so that the losses of two runs can be compared step by step.

llm.c (llmc/dataloader.h) cuts each file of n tokens into samples, a sample being a whole batch: B * T tokens in a row,
one after the other; (n - 1) // (B * T) of them, and the rest of a file is never read. Each epoch shuffles the files,
and each file's samples when it is opened. A shuffle is that of Fisher and Yates, from the end:

    for i = n - 1 ... 1:  swap items i and (next random number) mod (i + 1)

The random numbers come from one Mersenne twister (Matsumoto and Nishimura, 1998), seeded once with 42. NumPy's
RandomState is the same generator, frozen by NumPy's compatibility policy. Each epoch shuffles the files further, from
the order of the epoch before.

This is what llm.c does in one process without gradient accumulation. (With several, each has its own shuffle.)
"""

import numpy as np

SEED = 42


class LlmcOrder:
    """The position of the first token of each sample of each epoch.

    lengths    tokens of each file, each at least sample + 1
    sample     tokens of a sample, B * T
    """

    def __init__(self, lengths, sample):
        self.sample = sample
        self.counts = [(length - 1) // sample for length in lengths]
        self.begins = np.cumsum([0, *lengths[:-1]]).tolist()
        self.per_epoch = sum(self.counts)
        self._restart()

    def start(self, epoch, n):
        """Returns the position of the first token of sample n of an epoch, both from 0, in the concatenated files."""
        if (epoch, n) < (self._epoch, self._first):               # it only goes forward: start again
            self._restart()
        while epoch > self._epoch or n >= self._first + len(self._samples):
            self._next_file()
        return self.begins[self._file] + self.sample * self._samples[n - self._first]

    def _restart(self):
        self._random = np.random.RandomState(SEED)
        self._files = list(range(len(self.counts)))               # in the order of the epoch
        self._epoch, self._turn, self._samples = -1, len(self.counts) - 1, []
        self._first = self.per_epoch                              # as at the end of an epoch
        self._next_file()

    def _next_file(self):
        """Go on to the next file: its samples are _first, _first + 1, ... of epoch _epoch."""
        self._first, self._turn = self._first + len(self._samples), self._turn + 1
        if self._turn == len(self.counts):
            self._epoch, self._turn, self._first = self._epoch + 1, 0, 0
            self._shuffle(self._files)
        self._file = self._files[self._turn]
        self._samples = list(range(self.counts[self._file]))
        self._shuffle(self._samples)

    def _shuffle(self, items):
        numbers = self._random.randint(0, 1 << 32, max(0, len(items) - 1), dtype=np.uint32).tolist()
        for i, number in zip(range(len(items) - 1, 0, -1), numbers):
            j = number % (i + 1)
            items[i], items[j] = items[j], items[i]
