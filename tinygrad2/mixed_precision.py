"""Mixed precision: matrix products of 16-bit numbers, sums and all that is learned in float32.

    with mixed_precision("bfloat16"):
        model.loss(x, y).backward()

A bfloat16 (bfloat16.py) has float32's range and 8 significant bits: enough for a factor of a product, of which a sum
takes thousands, and too few for a sum, or for a weight that is to change by a thousandth of itself. So each kind of
value is kept, and each op computes, as the table says. Micikevicius et al., "Mixed precision training", ICLR 2018, with
bfloat16 in place of float16 (Kalamkar et al., "A study of bfloat16 for deep learning training", 2019): its exponents
are float32's, so no loss needs to be scaled.

On the CPU results of ops are float32, and between forward and backward activations wait as bfloat16, in half the memory
(saved16.py). On a GPU the kernels return results in 16 bits where the table says so, and the gradients that come back
to these results have 16 bits as well: less memory to read and to write. There "float16" is possible, too, for
cards without bfloat16: it stands for bfloat16 in the table, and gradients below its range are saved by a loss that is
scaled (loss_scale.py). Operations of a GPU for which there is no kernel take float32 and return it.
"""

from dataclasses import dataclass

from tinygrad2.context import Block
from tinygrad2.precision import DTYPES, MIXED, matmul_precision


def mixed_precision(dtype: str) -> Block:
    """Within the block, of this thread or task (context.py), ops compute as the table below says for "bfloat16", and on
    a GPU for "float16" (on the CPU the first op raises ValueError); with "float32" all is float32, with products of
    precision "highest". Backward computes as forward did, wherever it is called. Float64 is never touched. Raises
    ValueError for another dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"mixed precision is with one of {', '.join(DTYPES)}, not {dtype!r}")
    return matmul_precision(dtype if dtype in MIXED else "highest")


@dataclass(frozen=True)
class Row:
    """What some ops, or steps of a training, do in mixed precision. All sums are float32, on the CPU all results.

    ops       their names
    operands  what the products take: "" if there are none
    waits     what waits for backward, and in which dtype
    packed    the number of saved values, from the first on, that are activations: they wait as bfloat16
    results   the dtype of the results of kernels on a GPU: "16 bits" or "float32"
    why       the reason
    """

    ops: tuple[str, ...]
    operands: str
    waits: str
    packed: int
    results: str
    why: str


TABLE = (
    Row(("linear",), "bfloat16", "x bfloat16", 1, "16 bits", "the product of backward rounds x in any case"),
    Row(("mlp",), "bfloat16", "x, h bfloat16", 2, "16 bits", "the same; gelu(h) and gelu'(h) change slowly with h"),
    Row(("matmul",), "bfloat16", "a, b bfloat16", 2, "float32", "the same; a parameter is not copied"),
    Row(("split_heads", "merge_heads"), "", "nothing", 0, "16 bits",
        "rounds q, k, v: backward of attention must see the same"),
    Row(("attention",), "q, k, v bfloat16", "q, k, v, out bfloat16; ln sum e^s float32", 4, "16 bits",
        "weights are float32: an error of s is one in proportion"),
    Row(("layernorm", "add_layernorm"), "", "x bfloat16; mean, rstd float32", 1, "16 bits; the sum float32",
        "mean and variance are sums"),
    Row(("gelu", "gelu_erf"), "", "x bfloat16", 1, "16 bits", "as in mlp"),
    Row(("linear_cross_entropy",), "bfloat16", "x float32", 0, "float32",
        "there is one in a model, not one in a layer"),
    Row(("recompute",), "", "x float32", 0, "", "the block is computed again, to the same bits"),
    Row(("add",), "", "nothing", 0, "float32", "the residual stream is a sum over all layers"),
    Row(("embedding", "dropout"), "", "ids, keys", 0, "float32; of x", "no activations"),
    Row(("weights", "gradients", "Adam"), "", "", 0, "float32", "an update is smaller than a bfloat16's last bit"),
)  # fmt: skip

PACKED = {op: row.packed for row in TABLE for op in row.ops}


def table_lines():
    """The table as lines of text."""
    rows = [("", "operands of products", "waits for backward", "results on a GPU", "why")]
    rows += [(", ".join(row.ops), row.operands or "-", row.waits or "-", row.results or "-", row.why) for row in TABLE]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return ["  ".join(f"{text:{width}}" for text, width in zip(row, widths)) + "  " + row[4] for row in rows]
