from typing import Any

from tinygrad2.backend import device_of, is_array, to_device
from tinygrad2.function import Function
from tinygrad2.operands import as_array
from tinygrad2.tensor import Tensor, apply


class Embedding(Function):
    """Look up one row of a table for each id.

        out[n] = weight[ids[n]]

    The same as a matrix product with one-hot rows, without the zeros.

    Backward.  A row gets the gradient of every position it was used at; a token that occurs three times adds three
    gradients to its row:

        dweight = 0,  then  dweight[ids[n]] += dout[n]  for every n

    Raises IndexError for an id outside 0 .. V-1, naming it: NumPy would read negative ids from the end of the table
    and CuPy would wrap them all. Ids that are on a GPU are not checked, since that would wait for it: check them on
    the host, where they come from, with `check_ids`.
    """

    def forward(self, weight, ids):                               # weight (V, C), ids (...) integers
        if device_of(ids) == "cpu":
            check_ids(ids, len(weight))
        self.save(weight.shape, ids)
        return weight[ids]                                        # (..., C)

    def backward(self, dout):
        shape, ids = self.saved
        # lab: begin embedding_backward
        dweight = self.xp.zeros(shape, dtype=dout.dtype)
        self.xp.add.at(dweight, ids, dout)
        return dweight, None
        # lab: end embedding_backward


def check_ids(ids, vocab_size):
    """Raise IndexError, naming the worst id, unless all ids (host array) are in 0 .. vocab_size - 1."""
    if ids.dtype.kind not in "iu":
        raise TypeError(f"token ids must be integers, not {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        worst = ids.min() if ids.min() < 0 else ids.max()
        raise IndexError(f"token id {worst} is outside the vocabulary of {vocab_size} (0 .. {vocab_size - 1})")


def as_ids(ids, table, axis, ignored=None):
    """Ids as `apply` takes them: arrays and Tensors as they are; (nested) lists become one on the device of `table`.

    They are checked here, on the host: the vocabulary has the size of `table` along `axis`.
    """
    if is_array(ids) or isinstance(ids, Tensor):
        return ids
    ids, table = as_array(ids), Tensor(table)
    ids = ids if ids.size else ids.astype("int64")
    check_ids(ids if ignored is None else ids[ids != ignored], table.shape[axis])
    return to_device(ids, table.device)


def embedding(weight: Tensor, ids: Any) -> Tensor:
    """Rows `ids` (...), an array, a Tensor or lists, of the table `weight` (V, C): (..., C)."""
    return apply(Embedding, weight, as_ids(ids, weight, 0))
