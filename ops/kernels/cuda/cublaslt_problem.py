"""What cuBLASLt must know of a matrix product: how its matrices lie in memory, and what is to be done (a Problem).

Products that agree in this share one plan (cublaslt_plan.py): addresses and factors are not part of it.
"""

import functools
from typing import NamedTuple

_LARGEST_ALIGNMENT = 256  # bytes: no algorithm asks for more
_NAMES = {("f", 4): "float32", ("e", 2): "float16", ("E", 2): "bfloat16"}  # characters of dtypes; E: of ml_dtypes
_GELU = {"forward": ("GELU_AUX", "GELU_AUX_BIAS"), "backward": ("DGELU", None)}


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

    def bytes(self, batch):
        """From the first number of `batch` of them, by rows, to the last."""
        numbers = (batch - 1) * self.stride + (self.rows - 1) * self.distance + self.columns
        return numbers * (4 if self.dtype == "float32" else 2)

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

    @property
    def multiplications(self):
        return self.batch * self.a.rows * self.a.columns * self.b.columns

    @property
    def key(self):
        """All of it but the device, in words: for a measured choice (tinygrad2/gpu/choices.py)."""
        matrices = self.a, self.b, self.out
        strides = f", strides {', '.join(str(m.stride) for m in matrices)}" * (self.batch > 1)
        aligned = ", ".join(str(n) for n in (*(m.alignment for m in matrices), self.bias, self.aux))
        return f"{self}{strides}, aligned {aligned}, aux ld {self.aux_distance}"

    def __str__(self):
        batch = f"{self.batch} products " * (self.batch > 1)
        return f"{batch}out {self.out} = a {self.a} by b {self.b}, compute {self.compute}, epilogue {self.epilogue}"


def matrix_of(array):
    """The Matrix of a device array (rows, columns), or (batch, rows, columns); None if neither rows nor columns are
    contiguous, or they overlap, as those of a broadcast array do."""
    return _matrix(array.shape, array.strides, float_name(array.dtype), largest_alignment(array.data.ptr))


@functools.lru_cache(maxsize=4096)
def _matrix(shape, strides, dtype, alignment):
    itemsize = 4 if dtype == "float32" else 2
    lying = _direction(*shape[-2:], *strides[-2:], itemsize)
    stride = strides[0] if len(shape) > 2 and shape[0] > 1 else 0
    if lying is None or stride < 0 or stride % itemsize:
        return None
    alignment = min(alignment, largest_alignment(stride))
    return Matrix(dtype, *shape[-2:], *lying, stride // itemsize, alignment)


def _direction(rows, columns, down, across, itemsize):
    """(are the columns contiguous, and not the rows?, elements from one to the next), or None. Strides are in bytes."""
    if across == itemsize or columns == 1:
        if rows == 1 or (down >= columns * itemsize and down % itemsize == 0):
            return False, columns if rows == 1 else down // itemsize
    if (down == itemsize or rows == 1) and across >= rows * itemsize and across % itemsize == 0:
        return True, across // itemsize
    return None


def float_name(dtype):
    """ "float32", "float16" or "bfloat16"; None for another dtype. NumPy takes a hundred times as long for a name."""
    return _NAMES.get((dtype.char, dtype.itemsize))


def largest_alignment(address):
    """The largest power of 2 that divides an address, at most 256."""
    return min(_LARGEST_ALIGNMENT, address & -address) or _LARGEST_ALIGNMENT


def check_operands(a, b, out, bias, shapes_fit):
    """Raises ValueError or TypeError if these make no product; `shapes_fit` says whether their shapes do."""
    name, result = float_name(a.dtype), float_name(out.dtype)
    dtypes_fit = name is not None and name == float_name(b.dtype) and result in (name, "float32")
    if not (shapes_fit and dtypes_fit):
        operands = f"a {a.shape} {a.dtype}, b {b.shape} {b.dtype}, out {out.shape} {out.dtype}"
        if not shapes_fit:
            raise ValueError(f"shapes do not fit: {operands}")
        raise TypeError(f"no product of these dtypes: {operands}")
    if bias is None:
        return
    if float_name(bias.dtype) != result or bias.shape != out.shape[1:] or not bias.flags.c_contiguous:
        row = f"({out.shape[1]},) {out.dtype}"
        raise ValueError(f"bias {bias.shape} {bias.dtype} is not one contiguous row of the result, {row}")


def epilogue_of(bias, gelu, aux, out):
    """What is done with the product, of cublaslt.EPILOGUES. Raises ValueError for an aux matrix that cannot be used."""
    if not gelu:
        return "DEFAULT" if bias is None else "BIAS"
    name = _GELU[gelu][bias is not None]
    lying = None if aux is None else matrix_of(aux)
    if name is None or lying is None or lying.transposed or lying.distance % 8:
        raise ValueError(f"gelu={gelu!r} takes no bias, and an aux matrix of contiguous rows, a multiple of 8 apart")
    if aux.shape != out.shape or aux.dtype != out.dtype:
        raise ValueError(f"aux {aux.shape} {aux.dtype} is not like the result, {out.shape} {out.dtype}")
    return name
