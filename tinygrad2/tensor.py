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
from tinygrad2.backend import DEVICES, Array, to_device, xp_of
from tinygrad2.context import Block, Setting
from tinygrad2.deferred import DeferredGradient
from tinygrad2.dispatch import AROUND, OPS, choose
from tinygrad2.function import Function, observers
from tinygrad2.halves import dtype_named, is_floating, may_meet, mixed_operands
from tinygrad2.inplace import InPlace
from tinygrad2.methods import Methods
from tinygrad2.operands import as_array, fit_together, plain
from tinygrad2.operators import Operators
from tinygrad2.precision import MIXED, precision
from tinygrad2.saved16 import pack
from tinygrad2.writes import last_write

_recording = Setting("recording", True)


def no_grad(function: Any = None) -> Any:
    """Within the block no graph is recorded and nothing is saved: for evaluation and generation.

    It holds for the thread or asyncio task that enters it (context.py). `@no_grad` does the same to a function.
    """
    block = _recording.set(False)
    return block if function is None else block(function)


def recording() -> Block:
    """Within the block a graph is recorded, also inside `no_grad`."""
    return _recording.set(True)


def is_recording() -> bool:
    """Would an op be recorded here?"""
    return _recording.get()


class Tensor(Operators, Methods, InPlace):
    """An n-dimensional array with a gradient.

    data           the values, a NumPy or CuPy array
    grad           dL/dself after `backward()`, an array like data, or None; only leaves get one, and it accumulates
    requires_grad  whether a gradient is wanted here (leaf) or passes through here (result of an op)
    node           the Function that made it, or None for a leaf
    output         which of the node's results it is, 0 for the first

    Lists and Python floats become float32; arrays and NumPy scalars keep their dtype, and dtypes of floats are never
    mixed. Of an array it takes the memory, unless that is read-only (operands.py); of a Tensor, too, without the graph.
    Raises TypeError if a gradient is asked for on integers, or if `data` holds something else than numbers, or Tensors
    whose gradients would be lost; UserError if the device is missing.
    """

    grad: Array | None = None
    node: Function | None = None
    output = 0
    is_parameter = False
    requires_grad = False

    def __init__(self, data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False):
        if isinstance(data, Tensor):
            data = data.data
        elif isinstance(data, (list, tuple)) and _holds_gradients(data):
            raise TypeError("a Tensor of Tensors would lose their gradients; use ops.stack([...])")
        data = as_array(data, dtype)
        self.data = data if device is None else to_device(data, device)
        if requires_grad:
            self.requires_grad_()

    @property
    def is_leaf(self) -> bool:
        """True unless a recorded op produced it."""
        return self.node is None

    def detach(self) -> Tensor:
        """The same values outside the graph."""
        return Tensor(self.data)

    def __copy__(self) -> Tensor:
        """`copy.copy(x)`: another Tensor with the same array and the same place in the graph."""
        other = Tensor.__new__(Tensor)
        other.__dict__.update(self.__dict__)
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        """`copy.deepcopy(x)` and pickle, of leaves only. Raises TypeError for the result of a recorded op."""
        if self.node is not None:
            raise TypeError(f"a result of {self.node.name} is not copied with its graph: x.detach() or x.clone() first")
        return super().__reduce_ex__(protocol)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for a gradient here from now on; returns this Tensor."""
        if requires_grad and not is_floating(self.dtype):
            raise TypeError(f"a {self.dtype} Tensor cannot require a gradient; use dtype float32 or float64")
        self.requires_grad = requires_grad
        return self

    def to(self, target: Any) -> Tensor:
        """This Tensor on another device ("cpu", "cuda") or in another dtype; itself if it is there already."""
        if not (isinstance(target, str) and target in DEVICES):
            return self if self.dtype == dtype_named(target) else self.astype(target)
        if target == self.device:
            return self
        if self.requires_grad and self._is_recording():
            raise RuntimeError(
                f"moving is not recorded: x.detach().to({target!r}) for the values, or move first, "
                f"Tensor(x, device={target!r}, requires_grad=True)"
            )
        return Tensor(self.data, device=target)

    # -- gradients ---------------------------------------------------------------------------------------------------

    def backward(self, grad: Any = None, **also: Any) -> None:
        """Add dL/dleaf to the `.grad` of every leaf this Tensor was computed from, where L = sum(self * grad).

        `grad` has the shape of this Tensor (as an array, a Tensor or lists), or is one number for all elements; a
        one-element Tensor (a loss) needs none. The graph is freed in the same pass: each node's saved arrays go as
        soon as the node is done.
        Raises RuntimeError if there is no graph, if a part of it was already walked, or if values that it needs were
        changed in place; ValueError for a `grad` of another shape, dtype or device.
        """
        if also:
            raise TypeError(f"backward() has no keyword {next(iter(also))!r}: it frees the graph, so compute the loss "
                            "again for a second one; gradients of gradients are not supported")
        if not self.requires_grad:
            raise RuntimeError("backward() on a Tensor that does not depend on anything with requires_grad=True: are "
                               "all parameters frozen, or was it computed under no_grad()?")
        grad = self._starting_gradient(grad)
        if self.node is None:
            self.add_to_grad(grad)
        else:
            walk_back(self.node, self.output, grad)

    def _starting_gradient(self, grad):
        xp = xp_of(self.data)
        if grad is None and self.size != 1:
            raise RuntimeError(f"backward() of a Tensor of shape {self.shape} needs the gradient to start from")
        if grad is None or isinstance(grad, (int, float, np.generic)):
            return xp.full_like(self.data, 1 if grad is None else grad)
        if isinstance(grad, (list, tuple)):
            return self._starting_gradient(Tensor(grad, dtype=self.dtype, device=self.device))
        grad = Tensor(grad)
        if (grad.shape, grad.dtype, grad.device) != (self.shape, self.dtype, self.device):
            given, own = (f"{x.dtype} {x.shape} on {x.device}" for x in (grad, self))
            raise ValueError(f"backward(): the gradient is {given}, the Tensor {own}")
        return grad.data

    def zero_grad(self) -> None:
        """Set the gradient to zero, if there is one."""
        if self.grad is not None:
            self.grad.fill(0)

    def add_to_grad(self, grad: Array | DeferredGradient) -> None:
        """Leaves accumulate: a parameter that is used twice gets the sum of both gradients."""
        if self.grad is None:
            self.grad = xp_of(self.data).asarray(grad.copy())  # it may be that of another leaf, too, or a view
        elif isinstance(grad, DeferredGradient):
            grad.write_to(self.grad, accumulate=True)
        else:
            self.grad += grad

    # -- for the base classes, which know no ops ---------------------------------------------------------------------

    def _run(self, name: str, *inputs: Any, **options: Any) -> Any:
        return apply(OPS[name], *inputs, **options)

    def _wrap(self, array: Array) -> Tensor:
        return Tensor(array, device=self.device)

    def _is_recording(self) -> bool:
        return is_recording()


TensorLike = Tensor | np.ndarray | float  # in type hints: what an operator takes on either side


def apply(op: type[Function], *inputs: Any, **options: Any) -> Any:
    """Run `op` on Tensors, arrays, scalars (or None for an optional input) and record it. Returns a Tensor.

    The one place that unwraps inputs, checks that they fit together, picks the implementation, and wraps the result.
    An op whose forward returns a tuple returns a tuple of Tensors. Results that are no floats have no gradient.
    Raises TypeError for mixed devices, mixed float dtypes, or what is no operand, naming the op and its operands.
    """
    arrays = [value.data if isinstance(value, Tensor) else plain(op, i, value) for i, value in enumerate(inputs, 1)]
    arrays, xp, float_dtype = fit_together(op, inputs, arrays)
    if recorded := is_recording():
        needs_grad = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        recorded = any(needs_grad)
    else:
        needs_grad = [False] * len(inputs)

    node = choose(op, xp, arrays)(xp, needs_grad)
    if mixed := node.precision in MIXED:
        arrays = mixed_operands(node, arrays, float_dtype)
    if recorded:
        node.parents = [(value.node or value, value.output) if needed else None
                        for value, needed in zip(inputs, needs_grad)]  # fmt: skip
    for observer in (watching := observers()):
        node.options = options
        observer.before(node)
    if type(node) in AROUND:
        with AROUND[type(node)]:
            results = node.forward(*arrays, **options)
    else:
        results = node.forward(*arrays, **options)
    if isinstance(results, tuple):
        node.several, outs = True, [_result(op, xp, result, float_dtype) for result in results]
    else:
        outs = [_result(op, xp, results, float_dtype)]
    for observer in watching:
        observer.after_forward(node, arrays, [out.data for out in outs])

    if recorded:
        if mixed and not node.saves_halves:
            node.saved = pack(node)
        node.outputs = [(out.data.shape, out.data.dtype) for out in outs]
        node.saved_at = last_write()
        for i, out in enumerate(outs):
            if is_floating(node.outputs[i][1]):
                out.requires_grad, out.node, out.output = True, node, i
    return tuple(outs) if node.several else outs[0]


def _result(op, xp, result, float_dtype):
    """One result of forward as a Tensor, in the dtype that the floats among the operands have; in mixed precision
    float32 or 16 bits."""
    result = xp.asarray(result)
    dtype = result.dtype
    if dtype is not float_dtype and is_floating(dtype) and not op.sets_dtype:
        if float_dtype is None:
            result = result.astype(np.float32, copy=False)  # of integers, or Python's numbers
        elif dtype != float_dtype and not may_meet(precision(), dtype, float_dtype):
            raise TypeError(
                f"{op.name}: {float_dtype} in, {dtype} out; keep constants as Python floats in the op"
            )
    out = Tensor.__new__(Tensor)  # without the checks of __init__, which are for arrays from elsewhere
    out.data = result
    return out


def _holds_gradients(values):
    """Is the gradient of a Tensor in a list being recorded? (Of nested lists the first is looked at.)"""
    if values and isinstance(values[0], (list, tuple)):
        return _holds_gradients(values[0])
    return is_recording() and any(isinstance(value, Tensor) and value.requires_grad for value in values)
