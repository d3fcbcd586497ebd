"""Gradients that backward has not computed yet: they are written straight into a parameter's gradient.

backward of a kernel usually returns a new array, and autograd copies it to the parameter's gradient, or adds it to what
is there. For a weight that is one more pass over the largest arrays of a step. A DeferredGradient says how to compute
the gradient, and autograd gives it the memory.
"""


class DeferredGradient:
    """A gradient that is still to be computed, so that it can be written where it belongs, or added to what is there.

    What backward of a kernel may return instead of an array, for an input that is usually a parameter: a weight's
    gradient is as large as the weight, and a copy of it would be the largest array of the step.

        write_to(out, accumulate)    sets `out`, an array of this shape, to the gradient, or adds the gradient to it
        plus(array)                  optional: array + the gradient, a new array, where a kernel does both in one pass
    """

    def __init__(self, xp, shape, dtype, write_to, plus=None):
        self.xp, self.shape, self.dtype, self.write_to, self._plus = xp, shape, dtype, write_to, plus

    def copy(self):
        """The gradient as a new array."""
        out = self.xp.empty(self.shape, dtype=self.dtype)
        self.write_to(out, accumulate=False)
        return out

    def plus(self, array):
        """array + the gradient, a new array; in one pass, if a `plus` was given."""
        return self._plus(array) if self._plus else array + self.copy()
