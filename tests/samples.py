"""What each op is tried on: name -> samples. An op without samples fails the suite (test_ops.py).

A sample lists the inputs by their shapes, in the order of `forward`, and the options. The arrays are random:

    (3, 4)                        standard normal, shape (3, 4)
    positive(3, 4)                1/2 + |normal|, for log and for powers
    integers(5, below=7)          token ids 0 .. 6
    int8(3, 4)                    integers from -127 to 127, one byte each
    bfloat16(3, 4)                normal numbers as bfloat16, in uint16
    mask(3, 4)                    booleans
    spaced(3, 4)                  in disorder, at least 0.1 apart and 0.05 from zero, for ops with kinks: abs, max, ...
    between(3, 4)                 the same, 0.05 from the values of spaced(...)
    transposed(3, 4)              values of shape (3, 4) in a memory laid out the other way
    repeated(3, 4)                every row is the same memory (stride 0)
    2.5, None                     passed as they are
"""

from dataclasses import dataclass, field

import numpy as np

from tinygrad2.bfloat16 import pack_bfloat16


@dataclass(frozen=True)
class Draw:
    """An input still to be drawn."""

    kind: str
    shape: tuple
    below: int = 0

    def __call__(self, rng, dtype):
        values = np.asarray(rng.standard_normal(self.shape))
        if self.kind == "integers":
            return rng.integers(0, self.below, self.shape)
        if self.kind == "bfloat16":
            return pack_bfloat16(rng.standard_normal(self.shape).astype(np.float32))
        if self.kind == "int8":
            return rng.integers(-127, 128, self.shape).astype(np.int8)
        if self.kind == "mask":
            return np.asarray(values > 0)
        if self.kind in ("spaced", "between"):
            values = 0.1 * (rng.permutation(values.size) - values.size // 2).reshape(self.shape)
            values = np.asarray(values + 0.05 * (self.kind == "spaced"))
        if self.kind == "positive":
            values = np.asarray(0.5 + np.abs(values))
        if self.kind == "transposed":
            values = np.ascontiguousarray(values.T).T
        if self.kind == "repeated":
            values = np.broadcast_to(values[:1].astype(dtype), self.shape)
        return values.astype(dtype, copy=False)


def positive(*shape):
    return Draw("positive", shape)


def integers(*shape, below):
    return Draw("integers", shape, below)


def int8(*shape):
    return Draw("int8", shape)


def bfloat16(*shape):
    return Draw("bfloat16", shape)


def mask(*shape):
    return Draw("mask", shape)


def spaced(*shape):
    return Draw("spaced", shape)


def between(*shape):
    return Draw("between", shape)


def transposed(*shape):
    return Draw("transposed", shape)


def repeated(*shape):
    return Draw("repeated", shape)


@dataclass(frozen=True)
class Sample:
    """One call of an op."""

    inputs: tuple
    options: dict = field(default_factory=dict)

    def arrays(self, dtype, seed=0):
        """The inputs as arrays (or scalars, or None), the floating point ones of this dtype."""
        rng = np.random.default_rng(seed)
        return [self._draw(value, rng, dtype) for value in self.inputs]

    @staticmethod
    def _draw(value, rng, dtype):
        if isinstance(value, tuple):
            value = Draw("normal", value)
        return value(rng, dtype) if isinstance(value, Draw) else value


def sample(*inputs, **options):
    return Sample(inputs, options)


_BINARY = [
    sample((3, 4), (3, 4)),
    sample((3, 4), (4,)),  # a new axis in front
    sample((3, 1), (3, 4)),  # an axis of size 1
    sample((2, 1, 4), (3, 1)),  # both at once, on both sides
    sample((), (5,)),
    sample((1,), (1, 1)),
    sample((7, 1023), (1023,)),
    sample(transposed(3, 4), repeated(3, 4)),
    sample((3, 4), 2.5),
    sample(2.5, (3, 4)),
]
_DIVISORS = [
    sample((3, 4), positive(3, 4)),
    sample((3, 4), positive(4)),
    sample((3, 4), positive(3, 1)),
    sample((2, 1, 4), positive(3, 1)),
    sample((), positive(5)),
    sample((7, 1023), positive(1023)),
    sample((3, 4), 2.5),
    sample(2.5, positive(3, 4)),
]
_UNARY = [sample((3, 4)), sample(()), sample((1,)), sample((7, 1023)), sample(transposed(3, 4)), sample(repeated(3, 4))]
_REDUCTIONS = [
    sample((3, 4)),
    sample((3, 4), axis=0),
    sample((3, 4), axis=-1, keepdims=True),
    sample((2, 3, 4), axis=(0, 2)),
    sample((2, 3, 4), axis=(0, -1), keepdims=True),
    sample((3, 4), keepdims=True),
    sample((7, 1023), axis=1),
    sample((1,)),
    sample(()),
    sample(transposed(3, 4), axis=1),
    sample(repeated(3, 4), axis=0),
]
_EXTREMES = [
    sample(spaced(3, 4)),
    sample(spaced(3, 4), axis=0),
    sample(spaced(3, 4), axis=-1, keepdims=True),
    sample(spaced(2, 3, 4), axis=(0, 2)),
    sample(spaced(2, 3, 4), axis=(0, -1), keepdims=True),
    sample(spaced(3, 4), keepdims=True),
    sample(spaced(7, 1023), axis=1),
    sample((1,)),
    sample(()),
    sample(transposed(3, 4), axis=1),
    sample(repeated(3, 4), axis=1),
]
_POSITIONS = [
    sample((3, 4)),
    sample((3, 4), axis=0),
    sample((2, 3, 4), axis=-2, keepdims=True),
    sample((3, 4), keepdims=True),
    sample(integers(3, 40, below=3), axis=1),  # several equal ones
    sample((7, 1023), axis=1),
    sample(transposed(3, 4), axis=1),
    sample(repeated(3, 4), axis=0),
]
_TRUTHS = [
    sample(mask(3, 4)),
    sample(mask(7, 3), axis=1),
    sample(integers(7, 3, below=3), axis=-1, keepdims=True),
    sample(mask(2, 3, 4), axis=(0, 2)),
    sample((3, 4), keepdims=True),
    sample(mask()),
]
_KINKS = [  # of one input, with a kink at zero
    sample(spaced(3, 4)),
    sample(spaced()),
    sample(spaced(1)),
    sample(spaced(7, 1023)),
    sample(transposed(3, 4)),
    sample(repeated(3, 4)),
]
_CHOICES = [  # of the larger or the smaller
    sample(spaced(3, 4), between(3, 4)),
    sample(spaced(3, 4), between(4)),
    sample(spaced(3, 1), between(3, 4)),
    sample(spaced(2, 1, 4), between(3, 1)),
    sample(spaced(), between(5)),
    sample(spaced(7, 1023), between(1023)),
    sample(spaced(3, 4), 0.0),
    sample(0.2, spaced(3, 4)),
    sample(transposed(3, 4), repeated(3, 4)),
]
_SPREADS = [
    sample((3, 4)),
    sample((3, 4), axis=0),
    sample((3, 4), axis=-1, keepdims=True, ddof=0),
    sample((2, 3, 4), axis=(0, 2)),
    sample((2, 3, 4), axis=(0, -1), keepdims=True),
    sample((3, 4), keepdims=True, ddof=2),
    sample((7, 1023), axis=1),
    sample((1,), ddof=0),
    sample(transposed(3, 4), axis=1),
    sample(repeated(3, 4), axis=1),
]
_ROWS = [  # for what works along an axis
    sample((5,)),
    sample((3, 4)),
    sample((3, 4), axis=0),
    sample((2, 3, 4), axis=1),
    sample((2, 3, 4, 5), axis=-1),
    sample((7, 1023)),
    sample((3, 1)),
    sample(transposed(3, 4)),
    sample(repeated(3, 4)),
]

SAMPLES = {
    "add": [*_BINARY, sample((400, 333), (400, 333))],
    "sub": _BINARY,
    "mul": _BINARY,
    "div": _DIVISORS,
    "pow": [
        sample(positive(3, 4), 3.0),
        sample((3, 4), 2),
        sample((3, 4), 0),
        sample(positive(3, 4), -0.5),
        sample(positive(3, 4), (3, 4)),
        sample(positive(3, 4), (4,)),
        sample(positive(3, 1), (3, 4)),
        sample(2.0, (3, 4)),
        sample(positive(7, 1023), 1.5),
    ],
    "neg": _UNARY,
    "exp": _UNARY,
    "sin": _UNARY,
    "cos": _UNARY,
    "tanh": _UNARY,
    "sigmoid": _UNARY,
    "sqrt": [sample(positive(3, 4)), sample(positive()), sample(positive(7, 1023))],
    "abs": _KINKS,
    "relu": _KINKS,
    "maximum": _CHOICES,
    "minimum": _CHOICES,
    "clip": [
        sample(spaced(3, 4), -0.3, 0.2),
        sample(spaced(3, 4), None, 0.2),
        sample(spaced(3, 4), 0.0, None),
        sample(spaced(3, 4)),
        sample(spaced(3, 4), between(4), 10.0),
        sample(spaced(3, 4), -10.0, between(3, 1)),
        sample(spaced(7, 1023), -20.0, 20.0),
        sample(transposed(3, 4), -0.5, 0.5),
        sample(repeated(3, 4), -0.5, 0.5),
    ],
    "where": [
        sample(mask(3, 4), (3, 4), (3, 4)),
        sample(mask(3, 4), (4,), (3, 1)),
        sample(mask(4), (3, 4), 0.5),
        sample(mask(3, 1), -1.5, (3, 4)),
        sample(integers(3, 4, below=3), (3, 4), (3, 4)),
        sample(mask(7, 1023), (7, 1023), (1023,)),
        sample(mask(3, 4), transposed(3, 4), repeated(3, 4)),
    ],
    "compare": [
        *(sample((3, 4), (3, 4), relation=relation) for relation in ("==", "!=", "<", "<=", ">", ">=")),
        sample(integers(3, 4, below=3), integers(4, below=3), relation="=="),
        sample((2, 1, 4), (3, 1), relation=">="),
        sample((3, 4), 0.25, relation="<"),
        sample(transposed(3, 4), repeated(3, 4), relation=">"),
    ],
    "logical": [
        *(sample(mask(3, 4), mask(4), relation=relation) for relation in "&|^"),
        *(sample(integers(3, 4, below=9), integers(3, 1, below=9), relation=relation) for relation in "&|^"),
        sample(mask(3, 4), True, relation="^"),
    ],
    "clone": _UNARY,
    "cast": [sample((3, 4), dtype="float64"), sample((), dtype="float64"), sample(transposed(3, 4), dtype="float64")],
    "log": [sample(positive(3, 4)), sample(positive()), sample(positive(7, 1023))],
    "sum": _REDUCTIONS,
    "mean": _REDUCTIONS,
    "var": _SPREADS,
    "std": _SPREADS,
    "max": _EXTREMES,
    "min": _EXTREMES,
    "argmax": _POSITIONS,
    "argmin": _POSITIONS,
    "all": _TRUTHS,
    "any": _TRUTHS,
    "cumsum": [
        sample((3, 4)),
        sample((3, 4), axis=0),
        sample((2, 3, 4), axis=-2),
        sample((5,), axis=0),
        sample((7, 1023), axis=1),
        sample(transposed(3, 4), axis=1),
        sample(repeated(3, 4), axis=0),
    ],
    "stack": [
        sample((3, 4), (3, 4)),
        sample((3, 4), (3, 4), (3, 4), axis=1),
        sample((2, 3), (2, 3), axis=-1),
        sample((), ()),
        sample((5,)),
        sample(transposed(3, 4), repeated(3, 4), axis=-2),
    ],
    "split": [
        sample((6, 4), size=2),
        sample((3, 4), size=1, axis=1),
        sample((3, 8), size=[4, 4], axis=-1),
        sample((5,), size=7),
        sample(transposed(4, 4), size=2, axis=-2),
        sample(repeated(4, 4), size=[2, 2]),
    ],
    "expand": [
        sample((3, 1), shape=(3, 4)),
        sample((4,), shape=(2, 3, -1)),
        sample((), shape=(2, 2)),
        sample((2, 1, 3), shape=(-1, 5, -1)),
        sample((3, 4), shape=(3, 4)),
        sample(transposed(3, 1), shape=(2, 3, 1023)),
    ],
    "reshape": [
        sample((3, 4), shape=(2, 6)),
        sample((3, 4), shape=(-1,)),
        sample((), shape=(1, 1)),
        sample(transposed(3, 4), shape=(4, 3)),
        sample(repeated(3, 4), shape=(12,)),
    ],
    "transpose": [
        sample((3, 4)),
        sample((2, 3, 4), axes=(1, 2, 0)),
        sample((2, 3, 4, 5), axes=(0, 2, 1, 3)),
        sample((2, 3, 4), axes=(0, -1, -2)),
        sample((5,)),
        sample(transposed(3, 4)),
    ],
    "index": [
        sample((3, 4), key=1),
        sample((3, 4), key=(slice(None), slice(1, None, 2))),
        sample((3, 4), key=(Ellipsis, -1)),
        sample((3, 4), key=(None, 0, slice(None, None, -1))),
        sample((5, 4), key=np.array([0, 2, 2, 4, 2])),  # a row three times
        sample((3, 4), key=(np.array([0, 1, 1]), np.array([3, 0, 0]))),
        sample((3, 4), key=(slice(None), np.array([1, 1]))),
    ],
    "concatenate": [
        sample((3, 4), (2, 4)),
        sample((3, 1), (3, 4), (3, 2), axis=1),
        sample((2, 3), (2, 3), axis=-1),
        sample(transposed(3, 4), repeated(3, 4)),
        sample((5,)),
    ],
    "matmul": [
        sample((3, 4), (4, 5)),
        sample((2, 3, 4), (2, 4, 5)),
        sample((2, 3, 4), (4, 5)),  # the right one serves every batch
        sample((3, 4), (2, 4, 5)),
        sample((2, 1, 3, 4), (5, 4, 2)),  # batch axes broadcast on both sides
        sample((4,), (4, 5)),
        sample((3, 4), (4,)),
        sample((4,), (4,)),
        sample((4,), (2, 4, 5)),
        sample((2, 3, 4), (4,)),
        sample((1, 1), (1, 1)),
        sample((7, 1023), (1023, 3)),
        sample(transposed(3, 4), transposed(4, 5)),
        sample(repeated(3, 4), (4, 5)),
    ],
    "linear": [
        sample((3, 4), (4, 5), (5,)),
        sample((2, 3, 4), (4, 5), (5,)),
        sample((2, 3, 4), (4, 5), None),
        sample((4,), (4, 5), (5,)),
        sample((7, 1023), (1023, 1), (1,)),
        sample((3, 4), transposed(4, 5), None),
        sample(transposed(3, 4), (4, 5), (5,)),
        sample(repeated(3, 4), (4, 5), (5,)),
    ],
    "gelu": _UNARY,
    "gelu_erf": _UNARY,
    "softmax": _ROWS,
    "log_softmax": _ROWS,
    "layernorm": [
        sample((3, 4), (4,), (4,)),
        sample((2, 3, 4), (4,), (4,)),
        sample((2, 3, 4), (4,), None),
        sample((5,), (5,), (5,)),
        sample((3, 4), (4,), (4,), eps=0.1),
        sample((7, 1023), (1023,), (1023,)),
        sample(transposed(3, 4), (4,), (4,)),
        sample(repeated(3, 4), (4,), (4,)),
    ],
    "embedding": [
        sample((7, 4), integers(3, below=7)),
        sample((7, 4), integers(2, 30, below=7)),  # every row several times
        sample((1, 1), integers(1, below=1)),
        sample((1023, 3), integers(2, 5, below=1023)),
        sample(transposed(7, 4), integers(5, below=7)),
    ],
    "cross_entropy": [
        sample((3, 7), integers(3, below=7)),
        sample((2, 3, 7), integers(2, 3, below=7)),
        sample((2, 9, 5), integers(2, 9, below=5), ignore_index=2),
        sample((1, 1), integers(1, below=1)),
        sample((7, 1023), integers(7, below=1023)),
        sample(transposed(3, 7), integers(3, below=7)),
        sample(repeated(3, 7), integers(3, below=7)),
    ],
    "mlp": [
        sample((3, 4), (4, 6), (6,), (6, 5), (5,)),
        sample((2, 3, 4), (4, 16), (16,), (16, 4), (4,)),
        sample((2, 3, 4), (4, 16), (16,), (16, 4), (4,), exact=True),
        sample((2, 3, 4), (4, 16), None, (16, 4), None),
        sample((4,), (4, 1), (1,), (1, 1), (1,)),
        sample((7, 33), (33, 65), (65,), (65, 3), (3,)),
        sample(transposed(3, 4), transposed(4, 6), (6,), (6, 5), (5,)),
        sample(repeated(3, 4), (4, 6), (6,), (6, 5), (5,)),
    ],
    "add_layernorm": [
        sample((3, 4), (3, 4), (4,), (4,)),
        sample((2, 3, 4), (2, 3, 4), (4,), None),
        sample((5,), (5,), (5,), (5,)),
        sample((7, 1023), (7, 1023), (1023,), (1023,), eps=0.1),
        sample(transposed(3, 4), repeated(3, 4), (4,), (4,)),
    ],
    "split_heads": [
        sample((2, 5, 24), n_head=2),
        sample((1, 1, 3), n_head=1),
        sample((2, 7, 9), n_head=3),
        sample(transposed(2, 3, 12), n_head=4),
        sample(repeated(2, 3, 12), n_head=2),
    ],
    "merge_heads": [
        sample((2, 3, 5, 4)),
        sample((1, 1, 1, 1)),
        sample((2, 1, 7, 3)),
        sample(transposed(2, 3, 4, 5)),
        sample(repeated(2, 3, 4, 5)),
    ],
    "linear_int8": [
        sample((3, 4), int8(5, 4), positive(5), (5,)),
        sample((1, 1, 4), int8(5, 4), positive(5), None),
        sample((4,), int8(1, 4), positive(1), (1,)),
        sample((1, 64), int8(9, 64), positive(9), (9,)),
        sample((3, 1, 96), int8(7, 96), positive(7), None),
        sample(transposed(4, 32), int8(5, 32), positive(5), (5,)),
        sample((5, 64), int8(9, 64), positive(9), (9,)),
        sample((8, 128), int8(33, 128), positive(33), None),
        sample((7, 33), int8(1023, 33), positive(1023), (1023,)),
        sample((2, 1023), int8(7, 1023), positive(7), (7,)),
        sample(transposed(3, 4), int8(5, 4), positive(5), (5,)),
    ],
    "linear_bfloat16": [
        sample((3, 4), bfloat16(5, 4), (5,)),
        sample((1, 1, 4), bfloat16(5, 4), None),
        sample((4,), bfloat16(1, 4), (1,)),
        sample((7, 33), bfloat16(1023, 33), (1023,)),
        sample((2, 9, 40), bfloat16(7, 40), (7,)),
        sample(transposed(3, 4), bfloat16(5, 4), (5,)),
    ],
    "linear_cross_entropy": [
        sample((3, 4), (7, 4), integers(3, below=7)),
        sample((2, 3, 4), (7, 4), integers(2, 3, below=7)),
        sample((2, 9, 4), (5, 4), integers(2, 9, below=5), ignore_index=2),
        sample((1, 1), (1, 1), integers(1, below=1)),
        sample((7, 3), (1023, 3), integers(7, below=1023)),
        sample((3, 4), transposed(7, 4), integers(3, below=7)),
        sample(transposed(3, 4), (7, 4), integers(3, below=7)),
    ],
    "attention": [
        sample((5, 4), (5, 4), (5, 4)),
        sample((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
        sample((2, 2, 4), (2, 6, 4), (2, 6, 4)),  # the last two queries of six positions
        sample((1, 1), (1, 1), (1, 1)),
        sample((2, 3, 1, 16), (2, 3, 7, 16), (2, 3, 7, 16)),  # one query: the last of seven positions
        sample((1, 5), (130, 5), (130, 5)),
        sample((2, 1, 4), (2, 6, 4), (2, 6, 4), p=0.5, key=5),
        sample((2, 65, 7), (2, 65, 7), (2, 65, 7)),
        sample((2, 5, 4), (2, 5, 4), (2, 5, 4), p=0.5, key=3),
        sample((2, 1, 70, 4), (2, 1, 130, 4), (2, 1, 130, 4), p=0.1, key=4, first=77),
        sample((1, 2, 130, 16), (1, 2, 130, 16), (1, 2, 130, 16)),
        sample(transposed(5, 4), transposed(5, 4), repeated(5, 4)),
    ],
    "dropout": [
        sample((3, 4), p=0.5, key=1),
        sample((7, 1023), p=0.1, key=2, first=77),
        sample((), p=0.0, key=3),
        sample(transposed(3, 4), p=0.3, key=4),
    ],
}
