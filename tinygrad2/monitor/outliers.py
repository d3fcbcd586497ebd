"""Outliers: a loss or a gradient norm far above those before it, the first sign of a training that goes wrong."""

import math
from collections import deque

WINDOW = 128  # steps to compare with, as in llm.c


class Outliers:
    """Says how many standard deviations a number lies above the last WINDOW ones.

        z = (x - mean) / std             over the window, x not among them

    Until the window is full, and where all in it are equal, z is 0. `values` is all the state there is.
    """

    def __init__(self, values=()):
        self.values = deque(values, maxlen=WINDOW)

    def z_score(self, x):
        """z of x, which then belongs to the window."""
        z, n = 0.0, len(self.values)
        if n == WINDOW:
            mean = math.fsum(self.values) / n
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / n)
            z = (x - mean) / std if std else 0.0
        self.values.append(x)
        return z
