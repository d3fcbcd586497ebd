from tinygrad2.function import Function
from tinygrad2.prng import uniform
from tinygrad2.tensor import apply


class Dropout(Function):
    """Set a share p of the values to zero at random, and scale up the others so that the mean stays.

        keep = 0 with probability p, else 1 / (1 - p)        out = x * keep        dx = dout * keep

    Which values go is a function of (key, place) and of nothing else: the mask of value number i is drawn from the
    hash of key and first + i (see ops/random.py). So a batch cut into micro-batches, or shared out over ranks, meets
    the same masks as in one piece, and backward makes the mask anew instead of keeping it.

    Srivastava et al., "Dropout", JMLR 2014, in the inverted form: nothing is left to do at inference.
    """

    def forward(self, x, p, key, first=0):                        # x (...)
        self.save(x.shape, p, key, first)
        return x * keep_mask(self.xp, x.shape, p, key, first, x.dtype)

    def backward(self, dout):
        shape, p, key, first = self.saved
        return (dout * keep_mask(self.xp, shape, p, key, first, dout.dtype),)


def keep_mask(xp, shape, p, key, first, dtype):
    """The factors 0 or 1/(1-p), an array of this shape; value number i stands at place first + i of the stream."""
    kept = uniform(xp, shape, key, first) >= p
    return kept.astype(dtype) * (1 / (1 - p))


def dropout(x, p, key, first=0):
    """x with a share 0 <= p < 1 of its values dropped; key and first (integers) choose which."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), not {p}")
    return apply(Dropout, x, p=p, key=key, first=first)
