import operator

from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply

_RELATIONS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Compare(Function):
    """A relation of two operands that broadcast to one shape, element by element.

        out = a == b,  a != b,  a < b,  a <= b,  a > b  or  a >= b

    A boolean has no gradient: it does not move when a moves by a little. Floats of different dtypes are compared in the
    wider one.
    """

    sets_dtype = True

    def forward(self, a, b, relation):                            # a, b broadcast to (...)
        return _RELATIONS[relation](a, b)


def compare(a: TensorLike, b: TensorLike, relation: str) -> Tensor:
    """a relation b, where relation is "==", "!=", "<", "<=", ">" or ">=": booleans, with broadcasting."""
    return apply(Compare, a, b, relation=relation)
