"""What an op has to do at least: floating-point operations of its matrix products, and bytes through memory.

Only matrix products are counted as operations: 2 M N K for (M, K) times (K, N). Attention counts the keys that a query
may see, not those the mask hides. Products of backward are counted for the inputs that want a gradient.

Bytes: each array that goes in or comes out is read or written once. Where that is all an op does, as in a layernorm,
the bandwidth of the memory is its limit; arrays that are still in a cache can be faster.
"""

import math
from dataclasses import dataclass

from tinygrad2.backend import is_array
from tinygrad2.deferred import DeferredGradient
from tinygrad2.halves import is_floating


@dataclass
class Products:
    """Operations of forward, of backward for every input that needs a gradient, and of backward in any case."""

    forward: int
    backward: dict
    always: int = 0

    def of_backward(self, needs_grad):
        """Operations of backward: `needs_grad` has a bool per input."""
        wanted = sum(flops for i, flops in self.backward.items() if needs_grad[i])
        return wanted + self.always if any(needs_grad) else 0


def _matmul(out, a, b):
    flops = 2 * out.size * a.shape[-1]
    return Products(flops, {0: flops, 1: flops})


def _mlp(out, x, weight1, bias1, weight2, bias2):
    first = 2 * x.size * weight1.shape[1]
    second = 2 * out.size * weight2.shape[0]
    return Products(first + second, {0: first, 1: first, 3: second}, always=second)       # dg = dout weight2T


def _attention(out, q, k, v):
    Tq, Tk = q.shape[-2], k.shape[-2]
    pairs = Tq * (Tk - Tq) + Tq * (Tq + 1) // 2                   # of a query and a key that it sees
    product = 2 * math.prod(q.shape[:-2]) * pairs * q.shape[-1]
    return Products(2 * product, {0: product, 1: product, 2: product}, always=product)    # dw = dout vT


def _linear_cross_entropy(out, x, weight, targets):
    flops = 2 * x.size * weight.shape[0]
    return Products(flops, {0: flops, 1: flops})


PRODUCTS = {
    "matmul": _matmul,
    "linear": lambda out, x, weight, bias: _matmul(out, x, weight),
    "mlp": _mlp,
    "attention": _attention,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_bfloat16": lambda out, x, *_: Products(2 * out.size * x.shape[-1], {0: 2 * out.size * x.shape[-1]}),
    "linear_int8": lambda out, x, *_: Products(2 * out.size * x.shape[-1], {}),
}


def products(node, arrays, results):
    """(operations of forward, of backward) of a node with these inputs (arrays, None, or scalars) and results."""
    if node.name not in PRODUCTS:
        return 0, 0
    counted = PRODUCTS[node.name](results[0], *arrays)
    backward = counted.of_backward(node.needs_grad)
    if getattr(node, "products_in_forward", False):
        return counted.forward + backward, 0
    return counted.forward, backward


def forward_bytes(node, arrays, results):
    """Least bytes read and written in forward. A result that is a view of an input moves nothing."""
    inputs = [array for array in arrays if is_array(array)]
    if node.name == "embedding":                                  # reads the rows it looks up, not the table
        ids = sum(array.nbytes for array in inputs if not is_floating(array.dtype))
        return ids + 2 * sum(out.nbytes for out in results)
    moved = [out for out in results if not any(_is_view(out, array) for array in inputs)]
    if not moved:
        return 0
    return sum(array.nbytes for array in [*inputs, *moved])


def backward_bytes(node, dout, dinputs):
    """The same of backward, before the node is released: gradients that come and go, and what forward has saved."""
    douts = dout if isinstance(dout, tuple) else (dout,)
    if node.name == "embedding" and isinstance(dinputs[0], DeferredGradient):
        return 3 * douts[0].nbytes                                # adds to the rows that were looked up
    made = [dinput for dinput in dinputs if is_array(dinput) and not any(_is_view(dinput, array) for array in douts)]
    deferred = [dinput for dinput in dinputs if isinstance(dinput, DeferredGradient)]
    if not made and not deferred:
        return 0
    written = sum(math.prod(gradient.shape) * gradient.dtype.itemsize for gradient in deferred)
    return written + sum(array.nbytes for array in [*made, *douts, *filter(is_array, node.saved)])


def _is_view(array, other):
    return array is other or (array.base is not None and (array.base is other or array.base is other.base))
