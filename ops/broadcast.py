"""How a gradient comes back through broadcasting.

Broadcasting copies: b of shape (3,) added to a matrix of shape (2, 3) is used once per row, so every row sends a
gradient back and the chain rule adds them up:

    out[i, j] = a[i, j] + b[j]        db[j] = sum over i of dout[i, j]

There are two ways to be copied, and both are undone by a sum:

    a new axis in front      (3,)   -> (2, 3)      sum over axis 0, the axis goes away
    an axis of size 1        (2, 1) -> (2, 3)      sum over axis 1, the axis stays with size 1

The second is easy to get wrong: forget the sum, take one column instead, and the shape still looks right.
"""


def unbroadcast(dout, shape):
    """Sum the gradient `dout` of a broadcast result down to the `shape` of the operand it belongs to.

    Shapes: dout is any shape that `shape` broadcasts to; the result has exactly `shape`.
    """
    # lab: begin unbroadcast
    new = dout.ndim - len(shape)
    dout = dout.sum(tuple(range(new))) if new else dout
    copied = tuple(axis for axis, size in enumerate(shape) if size == 1 and dout.shape[axis] != 1)
    return dout.sum(copied, keepdims=True) if copied else dout
    # lab: end unbroadcast


def shape_of(operand):
    """The shape of an array, () for a Python scalar."""
    return getattr(operand, "shape", ())
