"""The order in which llm.c reads its files, so that the losses of two trainings can be compared step by step.

llm.c (llmc/dataloader.h) cuts each file of n tokens into samples, a sample being a whole batch: B * T tokens in a row,
one behind the other; (n - 1) // (B * T) of them, and what is left over at the end of a file is never read. Each epoch
shuffles the files; and when a file's turn comes, its samples. A shuffle is that of Fisher and Yates, from the end:

    for i = n - 1 ... 1:  swap places i and (next number) mod (i + 1)

The numbers come from one Mersenne twister (Matsumoto and Nishimura, 1998), begun once with the seed 42. NumPy's
RandomState is the same twister, and will stay it. The files stay where the last epoch's shuffle has put them, and are
shuffled further.

This is what llm.c does in one process without accumulating gradients. (With several, each has a shuffle of its own.)
"""

import numpy as np

SEED = 42


class LlmcOrder:
    """Where the samples of each epoch begin.

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
        """The place of the first token of sample n of an epoch, both from 0, in the files one behind the other."""
        if (epoch, n) < (self._epoch, self._first):               # only forward: begin again
            self._restart()
        while epoch > self._epoch or n >= self._first + len(self._samples):
            self._next_file()
        return self.begins[self._file] + self.sample * self._samples[n - self._first]

    def _restart(self):
        self._random = np.random.RandomState(SEED)
        self._files = list(range(len(self.counts)))               # in the order of the epoch
        self._epoch, self._turn, self._samples = -1, len(self.counts) - 1, []
        self._first = self.per_epoch                              # as if an epoch were at its end
        self._next_file()

    def _next_file(self):
        """Open the file whose turn it is next: its samples are number _first, ... of epoch _epoch."""
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
