import operator

from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply

_RELATIONS = {"&": operator.and_, "|": operator.or_, "^": operator.xor}


class Logical(Function):
    """And, or, exclusive or: of masks element by element, of integers bit by bit, with broadcasting.

        out = a & b,  a | b  or  a ^ b

    Neither booleans nor integers have a gradient. Raises TypeError for floats.
    """

    def forward(self, a, b, relation):                            # a, b broadcast to (...)
        for operand in (a, b):
            kind = getattr(operand, "dtype", type(operand))
            if isinstance(operand, float) or getattr(kind, "kind", "b") == "f":
                raise TypeError(
                    f"x {relation} y is for masks and integers, not {kind}; compare first: (x > 0) {relation} (y > 0)"
                )
        return _RELATIONS[relation](a, b)


def logical(a: TensorLike, b: TensorLike, relation: str) -> Tensor:
    """a relation b, where relation is "&", "|" or "^"."""
    return apply(Logical, a, b, relation=relation)
