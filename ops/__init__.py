"""The operations a GPT is made of: one module each, with its formula, the derivation of its gradient, and the code.

Importing the package defines them all (they enter the registry OPS of tinygrad2/dispatch.py) and exports each as a
function of Tensors: `ops.softmax(x)`, `ops.layernorm(x, weight, bias)`.
"""

from ops.abs import abs
from ops.add import add
from ops.add_layernorm import add_layernorm
from ops.all import all
from ops.any import any
from ops.argmax import argmax
from ops.argmin import argmin
from ops.attention import attention
from ops.cast import cast
from ops.clip import clip
from ops.clone import clone
from ops.compare import compare
from ops.concatenate import concatenate
from ops.cos import cos
from ops.cross_entropy import cross_entropy
from ops.cumsum import cumsum
from ops.div import div
from ops.dropout import dropout
from ops.embedding import embedding
from ops.exp import exp
from ops.expand import expand
from ops.gelu import gelu
from ops.gelu_erf import gelu_erf
from ops.index import index
from ops.kernels.available import (  # noqa: F401  registers the kernels
    announce_compiling,
    announce_missing_kernels,
    describe_attention,
    describe_kernels,
    describe_products,
    have_cpu_kernels,
    must_compile,
    products_chosen_for,
    refuse_attention,
    runs_reference,
    why_no_cpu_kernels,
)
from ops.layernorm import layernorm
from ops.linear import linear
from ops.linear_bfloat16 import linear_bfloat16
from ops.linear_cross_entropy import linear_cross_entropy
from ops.linear_int8 import linear_int8
from ops.log import log
from ops.log_softmax import log_softmax
from ops.logical import logical
from ops.matmul import matmul
from ops.max import max
from ops.maximum import maximum
from ops.mean import mean
from ops.merge_heads import merge_heads
from ops.min import min
from ops.minimum import minimum
from ops.mlp import mlp
from ops.mul import mul
from ops.neg import neg
from ops.pow import pow
from ops.relu import relu
from ops.reshape import reshape
from ops.sigmoid import sigmoid
from ops.sin import sin
from ops.softmax import softmax
from ops.split import split
from ops.split_heads import split_heads
from ops.sqrt import sqrt
from ops.stack import stack
from ops.std import std
from ops.sub import sub
from ops.sum import sum
from ops.tanh import tanh
from ops.transpose import transpose
from ops.var import var
from ops.where import masked_fill, where
from tinygrad2.missing import missing_op

__all__ = [
    "abs", "add", "add_layernorm", "all", "any", "argmax", "argmin", "attention", "cast", "clip", "clone",
    "compare", "concatenate", "cos", "cross_entropy", "cumsum", "div", "dropout", "embedding", "exp", "expand",
    "gelu", "gelu_erf", "index", "layernorm", "linear", "linear_bfloat16", "linear_cross_entropy", "linear_int8", "log",
    "log_softmax", "logical", "masked_fill", "matmul", "max", "maximum", "mean", "merge_heads", "min", "minimum", "mlp",
    "mul", "neg", "pow", "relu", "reshape", "sigmoid", "sin", "softmax", "split", "split_heads", "sqrt", "stack", "std",
    "sub", "sum", "tanh", "transpose", "var", "where",
]  # fmt: skip


def __getattr__(name):
    """Called for names that are no op: `ops.cat`."""
    raise missing_op(name)
