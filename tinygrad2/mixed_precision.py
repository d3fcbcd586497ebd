"""Mixed precision: matrix products of bfloat16 numbers, everything else in float32.

    with mixed_precision("bfloat16"):
        model.loss(x, y).backward()

A bfloat16 (bfloat16.py) has float32's range and 8 significant bits: enough for a factor of a product, of which a sum
takes thousands, and too few for a sum, or for a weight that is to change by a thousandth of itself. So each kind of
value is kept, and each op computes, as the table says. Micikevicius et al., "Mixed precision training", ICLR 2018, with
bfloat16 in place of float16 (Kalamkar et al., "A study of bfloat16 for deep learning training", 2019): its exponents
are float32's, so no loss needs to be scaled.

Between forward and backward, activations wait as bfloat16, in half the memory (saved16.py).
"""

from dataclasses import dataclass

from tinygrad2.context import Block
from tinygrad2.precision import DTYPES, ROUNDED, matmul_precision


def mixed_precision(dtype: str) -> Block:
    """Within the block, of this thread or task (context.py), ops compute as the table below says for "bfloat16"; with
    "float32" all is float32, with products of precision "highest". Backward computes as forward did, wherever it is
    called. Float64 is never touched. Raises ValueError for another dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"mixed precision is with 'float32' or 'bfloat16', not {dtype!r}")
    return matmul_precision(ROUNDED if dtype == "bfloat16" else "highest")


@dataclass(frozen=True)
class Row:
    """What some ops, or steps of a training, do in mixed precision. All sums and results are float32.

    ops       their names
    operands  what the products take: "" if there are none
    waits     what waits for backward, and in which dtype
    packed    the number of saved values, from the first on, that are activations: they wait as bfloat16
    why       the reason
    """

    ops: tuple[str, ...]
    operands: str
    waits: str
    packed: int
    why: str


TABLE = (
    Row(("linear",), "bfloat16", "x bfloat16", 1, "the product of backward rounds x in any case"),
    Row(("mlp",), "bfloat16", "x, h bfloat16", 2, "the same; gelu(h) and gelu'(h) change slowly with h"),
    Row(("matmul",), "bfloat16", "a, b bfloat16", 2, "the same; a parameter is not copied"),
    Row(("split_heads",), "", "nothing", 0, "rounds q, k, v: backward of attention must see the same"),
    Row(("attention",), "q, k, v bfloat16", "q, k, v, out bfloat16; ln sum e^s float32", 4,
        "weights are float32: an error of s is one in proportion"),
    Row(("layernorm", "add_layernorm"), "", "x bfloat16; mean, rstd float32", 1, "mean and variance are sums"),
    Row(("gelu", "gelu_erf"), "", "x bfloat16", 1, "as in mlp"),
    Row(("linear_cross_entropy",), "bfloat16", "x float32", 0, "there is one in a model, not one in a layer"),
    Row(("recompute",), "", "x float32", 0, "the block is computed again, to the same bits"),
    Row(("add",), "", "nothing", 0, "the residual stream is a sum over all layers"),
    Row(("embedding", "dropout"), "", "ids, keys", 0, "no activations"),
    Row(("weights", "gradients", "Adam"), "", "", 0, "an update is smaller than a bfloat16's last bit"),
)  # fmt: skip

PACKED = {op: row.packed for row in TABLE for op in row.ops}


def table_lines():
    """The table as lines of text."""
    rows = [("", "operands of products", "waits for backward", "why")]
    rows += [(", ".join(row.ops), row.operands or "-", row.waits or "-", row.why) for row in TABLE]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(f"{text:{width}}" for text, width in zip(row, widths)) + "  " + row[3] for row in rows]
