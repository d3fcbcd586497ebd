"""What cuBLASLt must know of a matrix product: how its matrices lie in memory, and what is to be done (a Problem).

Products that agree in this share one plan (cublaslt_plan.py): addresses and factors are not part of it.
"""

from typing import NamedTuple

_LARGEST_ALIGNMENT = 256  # bytes: no algorithm asks for more


class Matrix(NamedTuple):
    """How a matrix of rows and columns (or a batch of them) lies in memory.

    transposed    False: its rows are contiguous, and `distance` elements apart; True: its columns
    stride        elements from one matrix of a batch to the next; 0: it is the same one
    alignment     bytes: the largest power of 2, up to 256, that divides all its addresses
    """

    dtype: str
    rows: int
    columns: int
    transposed: bool
    distance: int
    stride: int
    alignment: int

    def __str__(self):
        return f"({self.rows}, {self.columns}) {self.dtype}{' transposed' * self.transposed}, ld {self.distance}"


class Problem(NamedTuple):
    """A kind of product: everything but addresses and factors.

    compute     of cublaslt.COMPUTE_TYPES
    epilogue    of cublaslt.EPILOGUES
    bias, aux   the alignments of the bias and of the aux matrix in bytes; 0 without one
    aux_distance    elements between rows of the aux matrix
    """

    a: Matrix
    b: Matrix
    out: Matrix
    batch: int
    compute: str
    epilogue: str
    bias: int
    aux: int
    aux_distance: int
    device: int

    def __str__(self):
        batch = f"{self.batch} products " * (self.batch > 1)
        return f"{batch}out {self.out} = a {self.a} by b {self.b}, compute {self.compute}, epilogue {self.epilogue}"


def matrix_of(array):
    """The Matrix of a device array (rows, columns), or (batch, rows, columns); None if neither rows nor columns are
    contiguous, or they overlap, as those of a broadcast array do."""
    lying = _direction(array)
    if lying is None:
        return None
    stride = array.strides[0] if array.ndim > 2 and array.shape[0] > 1 else 0
    if stride < 0 or stride % array.itemsize:
        return None
    alignment = largest_alignment(array.data.ptr | stride)
    return Matrix(array.dtype.name, *array.shape[-2:], *lying, stride // array.itemsize, alignment)


def _direction(array):
    """(are the columns contiguous, and not the rows?, elements from one to the next), or None."""
    (rows, columns), (down, across), item = array.shape[-2:], array.strides[-2:], array.itemsize
    if (across == item or columns == 1) and (rows == 1 or (down >= columns * item and down % item == 0)):
        return False, columns if rows == 1 else down // item
    if (down == item or rows == 1) and (columns == 1 or (across >= rows * item and across % item == 0)):
        return True, rows if columns == 1 else across // item
    return None


def largest_alignment(address):
    """The largest power of 2 that divides an address, or several that were combined by `|`; at most 256."""
    return min(_LARGEST_ALIGNMENT, address & -address) or _LARGEST_ALIGNMENT
