"""Tensor: an array that remembers how it was made, so that gradients can walk back.

`apply` runs an op and hangs a node on its result: the Function instance that computed it. An edge leads from a node to
where each of its inputs came from, a node again or, if the input is a leaf, that Tensor itself:

    y = (x * w).sum()          y ── Sum ──> Mul ──> x, w        (leaves)

The nodes, not the Tensors, form the graph. So an intermediate array that no op saved is freed as soon as the forward
pass drops its Tensor, although the graph lives on. `backward` walks it from the result to the leaves (autograd.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad2.autograd import walk_back
from tinygrad2.backend import Array, device_of, is_array, to_device, to_host, xp_of
from tinygrad2.context import Block, Setting
from tinygrad2.dispatch import OPS, around, choose
from tinygrad2.function import DeferredGradient, Function, observers

_recording = Setting("recording", True)


def no_grad() -> Block:
    """Within the block no graph is recorded and nothing is saved: for evaluation and generation.

    It holds for the thread or asyncio task that enters it (context.py). `@no_grad()` does the same to a function.
    """
    return _recording.set(False)


def recording() -> Block:
    """Within the block a graph is recorded, also inside `no_grad`."""
    return _recording.set(True)


def is_recording() -> bool:
    """Would an op be recorded here?"""
    return _recording.get()


class Tensor:
    """An n-dimensional array with a gradient.

    data           the values, a NumPy or CuPy array
    grad           dL/dself after `backward()`, an array like data, or None; only leaves get one, and it accumulates
    requires_grad  whether a gradient is wanted here (leaf) or passes through here (result of an op)
    node           the Function that made it, or None for a leaf
    output         which of the node's results it is, 0 for the first

    Lists and Python floats become float32; arrays and NumPy scalars keep their dtype, and dtypes are never mixed.
    Raises TypeError if a gradient is asked for on integers, UserError if the device is missing.
    """

    __array_ufunc__ = None  # makes `array + tensor` call our __radd__ instead of NumPy's loop over elements

    def __init__(self, data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False):
        if isinstance(data, Tensor):
            data = data.data
        if type(data) is not np.ndarray and not is_array(data):
            typed = isinstance(data, np.generic)
            data = np.asarray(data)
            if dtype is None and data.dtype == np.float64 and not typed:
                dtype = np.float32
        if dtype is not None:
            data = data.astype(dtype, copy=False)
        self.data: Array = data if device is None else to_device(data, device)
        self.grad: Array | None = None
        self.node: Function | None = None
        self.output = 0
        self.requires_grad = requires_grad
        if requires_grad and self.dtype.kind != "f":
            raise TypeError(f"a {self.dtype} Tensor cannot require a gradient; use dtype float32 or float64")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        return device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        """True unless a recorded op produced it."""
        return self.node is None

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.numpy(), precision=4, threshold=20)}, dtype={self.dtype}{grad})"

    def __len__(self) -> int:
        return len(self.data)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array (not a copy if they are one already)."""
        return to_host(self.data)

    def item(self) -> Any:
        """The value of a one-element Tensor as a Python scalar."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same values outside the graph."""
        return Tensor(self.data)

    # -- arithmetic: every operator is one op ------------------------------------------------------------------------

    def __add__(self, other: TensorLike) -> Tensor:
        return apply(OPS["add"], self, other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return apply(OPS["add"], other, self)

    def __sub__(self, other: TensorLike) -> Tensor:
        return apply(OPS["sub"], self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return apply(OPS["sub"], other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return apply(OPS["mul"], self, other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return apply(OPS["mul"], other, self)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return apply(OPS["div"], self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return apply(OPS["div"], other, self)

    def __pow__(self, other: TensorLike) -> Tensor:
        return apply(OPS["pow"], self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return apply(OPS["pow"], other, self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return apply(OPS["matmul"], self, other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return apply(OPS["matmul"], other, self)

    def __neg__(self) -> Tensor:
        return apply(OPS["neg"], self)

    def __getitem__(self, key: Any) -> Tensor:
        return apply(OPS["index"], self, key=_plain_key(key))

    def exp(self) -> Tensor:
        return apply(OPS["exp"], self)

    def log(self) -> Tensor:
        return apply(OPS["log"], self)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        return apply(OPS["sum"], self, axis=axis, keepdims=keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        return apply(OPS["mean"], self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        """`x.reshape(2, -1)` or `x.reshape((2, -1))`."""
        return apply(OPS["reshape"], self, shape=_as_tuple(shape))

    def transpose(self, *axes: Any) -> Tensor:
        """Axis i of the result is axis `axes[i]` of this Tensor (as in NumPy); without axes their order is reversed."""
        return apply(OPS["transpose"], self, axes=_as_tuple(axes) or None)

    @property
    def T(self) -> Tensor:
        return self.transpose()

    # -- gradients ---------------------------------------------------------------------------------------------------

    def backward(self, grad: Any = None) -> None:
        """Add dL/dleaf to the `.grad` of every leaf this Tensor was computed from, where L = sum(self * grad).

        `grad` has the shape of this Tensor; a one-element Tensor (a loss) needs none. The graph is freed in the
        same pass: each node's saved arrays go as soon as the node is done.
        Raises RuntimeError if there is no graph, or if a part of it was already walked; ValueError for a `grad`
        of another shape or dtype.
        """
        if not self.requires_grad:
            raise RuntimeError("backward() on a Tensor that does not depend on anything with requires_grad=True: are "
                               "all parameters frozen, or was it computed under no_grad()?")
        if grad is None:
            if self.size != 1:
                raise RuntimeError(f"backward() of a Tensor of shape {self.shape} needs the gradient to start from")
            grad = xp_of(self.data).ones_like(self.data)
        elif isinstance(grad, Tensor):
            grad = grad.data
        if grad.shape != self.shape or grad.dtype != self.dtype:
            given, own = f"{grad.dtype} {grad.shape}", f"{self.dtype} {self.shape}"
            raise ValueError(f"backward(): the gradient is {given}, the Tensor {own}")
        if self.node is None:
            self.add_to_grad(grad)
        else:
            walk_back(self.node, self.output, grad)

    def zero_grad(self) -> None:
        """Set the gradient to zero, if there is one."""
        if self.grad is not None:
            self.grad.fill(0)

    def add_to_grad(self, grad: Array | DeferredGradient) -> None:
        """Leaves accumulate: a parameter that is used twice gets the sum of both gradients."""
        if self.grad is None:
            self.grad = grad.copy()  # it may be the gradient of another leaf, too, or a view
        elif isinstance(grad, DeferredGradient):
            grad.write_to(self.grad, accumulate=True)
        else:
            self.grad += grad


TensorLike = Tensor | np.ndarray | float  # in type hints: what an operator takes on either side


def apply(op: type[Function], *inputs: Any, **options: Any) -> Any:
    """Run `op` on Tensors, arrays, scalars (or None for an optional input) and record it. Returns a Tensor.

    The one place that unwraps inputs, checks that they fit together, picks the implementation, and wraps the result.
    An op whose forward returns a tuple returns a tuple of Tensors.
    Raises TypeError for mixed devices or mixed float dtypes, naming the op and its operands.
    """
    arrays = [_plain(value) for value in inputs]
    xp, float_dtype = _check_operands(op, arrays)
    records = is_recording()
    needs_grad = [records and isinstance(value, Tensor) and value.requires_grad for value in inputs]

    node = choose(op, xp, arrays)(xp, needs_grad)
    recorded = any(needs_grad)
    if recorded:
        node.parents = [(value.node or value, value.output) if needed else None
                        for value, needed in zip(inputs, needs_grad)]  # fmt: skip
    for observer in (watching := observers()):
        observer.before(node)
    with around(node):
        results = node.forward(*arrays, **options)
    node.several = isinstance(results, tuple)
    outs = [Tensor(xp.asarray(result)) for result in (results if node.several else (results,))]
    for observer in watching:
        observer.after_forward(node, arrays, [out.data for out in outs])
    for out in outs:
        if out.dtype != float_dtype and out.dtype.kind == "f" and float_dtype is not None:
            raise TypeError(f"{op.name}: {float_dtype} in, {out.dtype} out; keep constants as Python floats in the op")

    if recorded:
        node.outputs = [(out.shape, out.dtype) for out in outs]
        for i, out in enumerate(outs):
            out.requires_grad, out.node, out.output = True, node, i
    return tuple(outs) if node.several else outs[0]


def _check_operands(op, arrays):
    """The array library and the float dtype (None without floats) that all operands share, or TypeError."""
    xp, float_dtype, device = np, None, None
    for array in arrays:
        if type(array) is np.ndarray:  # nearly always; a generated token makes about 200 such calls
            here = "cpu"
        elif is_array(array):
            here = device_of(array)
        else:
            continue
        if device is not None and here != device:
            raise TypeError(f"{op.name}: operands on different devices ({_describe(arrays)}); "
                            f"move one first: Tensor(x, device={device!r})")
        xp, device = np if here == "cpu" else xp_of(array), here
        if array.dtype.kind == "f":
            if float_dtype is not None and array.dtype != float_dtype:
                raise TypeError(f"{op.name}: operands of different dtypes ({_describe(arrays)}); "
                                f"convert one first: Tensor(x, dtype='{float_dtype}')")
            float_dtype = array.dtype
    return xp, float_dtype


def _describe(arrays):
    return ", ".join(f"{a.dtype} {a.shape} on {device_of(a)}" if is_array(a) else repr(a) for a in arrays)


def _plain(value):
    """What forward gets for an operand: the array of a Tensor; NumPy scalars as Python scalars, which never widen."""
    if isinstance(value, Tensor):
        return value.data
    return value.item() if isinstance(value, np.generic) else value


def _plain_key(key):
    if isinstance(key, tuple):
        return tuple(map(_plain_key, key))
    return key.data if isinstance(key, Tensor) else key


def _as_tuple(args):
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
