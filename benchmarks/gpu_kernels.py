"""The part `kernels` of benchmarks.gpu: every kernel of a training step at the shapes of GPT-2 124M.

Each case is one row of a table: its arrays, what it must read and write at least, and its products. Speeds are these
numbers over the time that was measured, so a kernel that reads an array twice is slower, not busier.
"""

import math
import statistics
from dataclasses import dataclass, field, replace

from benchmarks.gpu_settings import read_limits
from benchmarks.gpu_sides import Sides
from benchmarks.harness import installed


@dataclass(frozen=True)
class Case:
    """arrays     name -> shape and kind: "T" activations (16 bits in mixed precision), "f" float32, "i" ids (int64),
               "h" a copy in 16 bits, which is there in mixed precision only
    forward    "names that are read > names that are written", backward the same. dNAME is the gradient of NAME, like it
    flops      of the products of forward and of backward
    options    of the op
    path       of attention: "warps" is the one that all GPUs with tensor cores have
    """

    op: str
    arrays: dict
    forward: str
    backward: str = ""
    flops: tuple = ()
    options: dict = field(default_factory=dict)
    path: str = ""

    def is_float32(self):
        """Is it the same for all products?"""
        return not self.flops and not {"T", "h"} & {kind for _, kind in self.arrays.values()}

    def inputs(self):
        """The names of the arrays that are given to the op."""
        return [name for name in self.arrays if not name.startswith("out")]

    def shape(self, name):
        """(shape, kind) of an array or of a gradient."""
        return self.arrays[name] if name in self.arrays else self.arrays[name[1:]]

    def moved(self, direction, products):
        """Bytes that are read and written at least."""
        names = getattr(self, direction).replace(">", " ").split()
        return sum(math.prod(shape) * width(kind, products) for shape, kind in map(self.shape, names))


def width(kind, products):
    """Bytes of an element."""
    mixed = products in ("bfloat16", "float16")
    return {"i": 8, "f": 4, "T": 2 if mixed else 4, "h": 2 if mixed else 0}[kind]


def cases(B, T=1024, C=768, heads=12, V=50304, parameters=124_475_904, head_rows=16384):
    """{name: Case}. Attention counts the products of the causal half: two in forward, five in backward."""
    N = B * T
    x, C1 = ((N, C), "f"), ((C,), "f")
    q = (B, heads, T, C // heads), "T"
    flat, head = ((parameters,), "f"), min(N, head_rows)
    attention = 2 * B * T * T * C
    found = {
        "layernorm": Case("layernorm", dict(x=x, weight=C1, bias=C1, out=((N, C), "T")),
                          "x weight bias > out", "dout x weight > dx dweight dbias"),
        "add_layernorm": Case("add_layernorm", dict(x=x, delta=((N, C), "T"), weight=C1, bias=C1, out_sum=x,
                                                    out=((N, C), "T")),
                              "x delta weight bias > out_sum out", "dout_sum dout out_sum weight > dx dweight dbias"),
        "gelu": Case("gelu", dict(x=((N, 4 * C), "T"), out=((N, 4 * C), "T")), "x > out", "dout x > dx"),
        "attention": Case("attention", dict(q=q, k=q, v=q, out=q), "q k v > out", "dout q k v out > dq dk dv",
                          (attention, 2.5 * attention)),
        "dropout": Case("dropout", dict(x=x, out=x), "x > out", "dout > dx", options=dict(p=0.1, key=1)),
        "embedding": Case("embedding", dict(weight=((V, C), "f"), ids=((N,), "i"), out=x), "ids out > out",
                          "ids dout > dweight"),
        "adam": Case("adam_update", dict(p=flat, g=flat, m=flat, v=flat, out=((parameters,), "h")),
                     "p g m v > p m v out"),
        "grad_norm": Case("grad_norm", dict(g=flat), "g >"),
        "softmax": Case("softmax", dict(x=((N, T), "T"), out=((N, T), "T")), "x > out", "dout out > dx"),
        "add": Case("add", dict(a=x, b=((N, C), "T"), out=x), "a b > out"),
    }  # fmt: skip
    for op in ("mul", "maximum"):
        found[op] = Case(op, dict(a=x, b=x, out=x), "a b > out", "dout a b > da db")
    for op in ("exp", "tanh"):
        found[op] = Case(op, dict(x=x, out=x), "x > out", "dout out > dx")
    found["attention_warps"] = replace(found["attention"], path="warps")
    for name, inner, outer in (("qkv", C, 3 * C), ("attn_proj", C, C), ("fc", C, 4 * C), ("mlp_proj", 4 * C, C)):
        arrays = dict(x=((N, inner), "T"), weight=((inner, outer), "f"), bias=((outer,), "f"), out=((N, outer), "T"))
        found[f"linear_{name}"] = Case("linear", arrays, "x weight bias > out", "dout x weight > dx dweight dbias",
                                       (2 * N * inner * outer, 4 * N * inner * outer))  # fmt: skip
    arrays = dict(x=((N, C), "T"), w1=((C, 4 * C), "f"), b1=((4 * C,), "f"), w2=((4 * C, C), "f"), b2=C1,
                  out=((N, C), "T"))  # fmt: skip
    found["mlp"] = Case("mlp", arrays, "x w1 b1 w2 b2 > out", "dout x w1 w2 > dx dw1 db1 dw2 db2",
                        (16 * N * C * C, 32 * N * C * C))  # fmt: skip
    arrays = dict(x=((head, C), "T"), weight=((V, C), "f"), ids=((head,), "i"))
    found["head_and_loss"] = Case("linear_cross_entropy", arrays, "x weight ids >", "x weight > dx dweight",
                                  (2 * head * C * V, 4 * head * C * V))  # fmt: skip
    return found


TINY = dict(B=2, T=16, C=32, heads=2, V=64, parameters=1000, head_rows=32)
ORDER = ("attention", "attention_warps", "linear_qkv", "linear_fc", "head_and_loss", "mlp", "add_layernorm", "gelu",
         "adam", "linear_attn_proj", "linear_mlp_proj", "layernorm", "embedding", "grad_norm", "dropout",
         "softmax", "add", "mul", "maximum", "exp", "tanh")  # fmt: skip
ATTENTION = ("torch-cudnn", "torch-flash", "torch-efficient")  # PyTorch's back ends; the last one for float32, too


def kernels(args, clock):
    """Rows of each kernel, forward and backward, of ours and of PyTorch's op for the same work."""
    sizes = TINY if args.tiny else dict(B=args.kernel_batch)
    table, peaks = cases(**sizes), read_limits(args.folder)
    sides = Sides("benchmarks.gpu_side", "kernels", dict(sizes=sizes, tiny=args.tiny))
    wanted = [name for name in ORDER if name in args.kernels.split(",")]
    asked = args.products.split(",")
    for products in asked:
        for name in wanted:
            if products == "tf32" and not table[name].flops:
                continue                                          # the same as in float32
            if products != asked[0] and table[name].is_float32():
                continue                                          # the same in all of them
            if clock.left() < 0:
                yield dict(part="kernels", kernel=name, products=products, errors="no time was left")
                continue
            yield from measured(sides, name, table[name], products, peaks)
    sides.close()


def measured(sides, name, case, products, peaks):
    """The rows of one case: PyTorch's first, whose best time ours is compared with."""
    theirs = ["torch"] if name != "attention" else list(ATTENTION)
    if not installed("torch") or case.path:                       # another path of ours: theirs are in its own row
        theirs = []
    if name == "attention" and products in ("bfloat16", "float16") and installed("cudnn"):
        theirs.append("ours-cudnn")                               # --gpu-attention cudnn
    best = {}
    for side in [*theirs, "ours"]:
        answer = sides.ask(side, case=name, products=products)
        row = dict(part="kernels", kernel=name, side=side, products=products)
        if "error" in answer:
            yield row | dict(errors=answer["error"])
            continue
        for i, (direction, ms) in enumerate(answer["ms"].items()):
            median = statistics.median(ms)
            here = row | dict(direction=direction, version=answer["version"], min_ms=round(min(ms), 4),
                              median_ms=round(median, 4))  # fmt: skip
            here |= speed(case, i, direction, products, median, peaks)
            if side.startswith("torch"):
                best[direction] = min(median, best.get(direction, math.inf))
            elif side == "ours" and direction in best:
                here["torch_over_ours"] = round(best[direction] / median, 3)
            yield here


def speed(case, i, direction, products, ms, peaks):
    """TFLOP/s and GB/s, and the share of the limit that the case has: of products, if it has any."""
    bytes_moved = case.moved(direction, products)
    row = dict(gb_s=round(bytes_moved / ms / 1e6, 1))
    if case.flops:
        row["tflops"] = round(case.flops[i] / ms / 1e9, 2)
        if products in peaks:
            row["share_of_limit"] = round(case.flops[i] / ms * 1e3 / peaks[products], 3)
    elif "bandwidth" in peaks:
        row["share_of_limit"] = round(bytes_moved / ms * 1e3 / peaks["bandwidth"], 3)
    return row
