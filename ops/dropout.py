from tinygrad2.function import Function
from tinygrad2.prng import uniform
from tinygrad2.tensor import Tensor, apply


class Dropout(Function):
    """Set a fraction p of the values to zero at random, and scale up the others so that the mean stays.

        keep = 0 with probability p, else 1 / (1 - p)        out = x * keep        dx = dout * keep

    Which values go is a function of (key, position) and of nothing else: the mask of element i is drawn from the hash
    of key and first + i (tinygrad2/prng.py). So a batch that is cut into micro-batches, or divided among ranks, gets
    the same masks as in one piece, and backward computes the mask again instead of keeping it.

    Srivastava et al., "Dropout", JMLR 2014, in the inverted form: nothing is left to do at inference.
    """

    def forward(self, x, p, key, first=0):                        # x (...)
        self.save(x.shape, p, key, first)
        return x * keep_mask(self.xp, x.shape, p, key, first, x.dtype)

    def backward(self, dout):
        shape, p, key, first = self.saved
        return (dout * keep_mask(self.xp, shape, p, key, first, dout.dtype),)


def keep_mask(xp, shape, p, key, first, dtype):
    """The factors 0 or 1/(1-p), an array of this shape; element i is at position first + i of the stream."""
    kept = uniform(xp, shape, key, first) >= p
    return kept.astype(dtype) * (1 / (1 - p))


def dropout(x: Tensor, p: float, key: int, first: int = 0) -> Tensor:
    """x with a fraction 0 <= p < 1 of its values dropped; key and first (integers) choose which.

    Raises ValueError for another p.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), not {p}")
    return apply(Dropout, x, p=p, key=key, first=first)
