"""Outliers: a loss or gradient norm far above the ones before it, the first sign of a training that diverges."""

import math
from collections import deque

WINDOW = 128  # steps to compare with, as in llm.c


class Outliers:
    """How many standard deviations a value is above the mean of the last WINDOW ones.

        z = (x - mean) / std             over the window, without x

    Until the window is full, and if all values in it are equal, z is 0. `values` is the complete state.
    """

    def __init__(self, values=()):
        self.values = deque(values, maxlen=WINDOW)

    def z_score(self, x):
        """z of x."""
        z, n = 0.0, len(self.values)
        if n == WINDOW:
            mean = math.fsum(self.values) / n
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / n)
            z = (x - mean) / std if std else 0.0
        return z

    def append(self, x):
        """x joins the window, also an outlier: where the values stay high, they become the usual ones."""
        self.values.append(x)
