"""Tensor: an array that remembers how it was made, so that gradients can walk back. The only file that records a graph.

`apply` runs an op and hangs a node on its result: the Function instance that computed it. A node points to its parents,
which are the nodes of its inputs (or the input Tensors themselves where these are leaves):

    y = (x * w).sum()          y ── Sum ──> Mul ──> x, w        (leaves)

The nodes, not the Tensors, form the graph. So an intermediate array that no op saved is freed as soon as the forward
pass drops its Tensor, although the graph lives on.

`backward` walks the graph from the result to the leaves in reverse topological order (a node's turn comes when every
use of its output has sent its gradient) and adds what arrives at the leaves to their `.grad`:

    dL/dx = sum over all uses u of x of  (du/dx)^T dL/du                     the chain rule

This is reverse-mode differentiation (Linnainmaa 1970; Baydin et al., "Automatic differentiation in machine learning",
JMLR 2018, section 3.2).
"""

import contextlib

import numpy as np

from tinygrad2 import function
from tinygrad2.backend import device_of, is_array, to_device, to_host, xp_of
from tinygrad2.function import OPS, LateGradient, Part, choose

_recording = True


@contextlib.contextmanager
def no_grad():
    """Within the block no graph is recorded and nothing is saved: for evaluation and generation."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


class Tensor:
    """An n-dimensional array with a gradient.

    data           the values, a NumPy or CuPy array
    grad           dL/dself after `backward()`, an array like data, or None; only leaves get one, and it accumulates
    requires_grad  whether a gradient is wanted here (leaf) or passes through here (result of an op)
    node           the Function that made it, or None for a leaf

    Lists and Python floats become float32; arrays and NumPy scalars keep their dtype, and dtypes are never mixed.
    Raises TypeError where a gradient is asked for on integers, UserError where the device is not there.
    """

    __array_ufunc__ = None  # makes `array + tensor` come to our __radd__ instead of NumPy's loop over elements

    def __init__(self, data, dtype=None, device=None, requires_grad=False):
        if isinstance(data, Tensor):
            data = data.data
        if type(data) is not np.ndarray and not is_array(data):
            typed = isinstance(data, np.generic)
            data = np.asarray(data)
            if dtype is None and data.dtype == np.float64 and not typed:
                dtype = np.float32
        if dtype is not None:
            data = data.astype(dtype, copy=False)
        self.data = data if device is None else to_device(data, device)
        self._grad, self._grad_is_stale, self._lent_to = None, False, None
        self.node = None
        self.requires_grad = requires_grad
        if requires_grad and self.dtype.kind != "f":
            raise TypeError(f"a {self.dtype} Tensor cannot require a gradient; give it dtype float32 or float64")

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    device = property(lambda self: device_of(self.data))

    def __repr__(self):
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.numpy(), precision=4, threshold=20)}, dtype={self.dtype}{grad})"

    def __len__(self):
        return len(self.data)

    def numpy(self):
        """The values as a NumPy array (not a copy where they are one already)."""
        return to_host(self.data)

    def item(self):
        """The one value of a one-element Tensor as a Python number."""
        return self.data.item()

    def detach(self):
        """The same values outside the graph."""
        return Tensor(self.data)

    # -- arithmetic: every operator is one op ------------------------------------------------------------------------

    def __add__(self, other):
        return apply(OPS["add"], self, other)

    def __radd__(self, other):
        return apply(OPS["add"], other, self)

    def __sub__(self, other):
        return apply(OPS["sub"], self, other)

    def __rsub__(self, other):
        return apply(OPS["sub"], other, self)

    def __mul__(self, other):
        return apply(OPS["mul"], self, other)

    def __rmul__(self, other):
        return apply(OPS["mul"], other, self)

    def __truediv__(self, other):
        return apply(OPS["div"], self, other)

    def __rtruediv__(self, other):
        return apply(OPS["div"], other, self)

    def __pow__(self, other):
        return apply(OPS["pow"], self, other)

    def __rpow__(self, other):
        return apply(OPS["pow"], other, self)

    def __matmul__(self, other):
        return apply(OPS["matmul"], self, other)

    def __rmatmul__(self, other):
        return apply(OPS["matmul"], other, self)

    def __neg__(self):
        return apply(OPS["neg"], self)

    def __getitem__(self, key):
        return apply(OPS["index"], self, key=_plain_key(key))

    def exp(self):
        return apply(OPS["exp"], self)

    def log(self):
        return apply(OPS["log"], self)

    def sum(self, axis=None, keepdims=False):
        return apply(OPS["sum"], self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims=False):
        return apply(OPS["mean"], self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape):
        """`x.reshape(2, -1)` or `x.reshape((2, -1))`."""
        return apply(OPS["reshape"], self, shape=_as_tuple(shape))

    def transpose(self, *axes):
        """Axis i of the result is axis `axes[i]` of this Tensor (as in NumPy); without axes their order is reversed."""
        return apply(OPS["transpose"], self, axes=_as_tuple(axes) or None)

    T = property(lambda self: self.transpose())

    # -- gradients ---------------------------------------------------------------------------------------------------

    def backward(self, grad=None):
        """Add dL/dleaf to the `.grad` of every leaf this Tensor was computed from, where L = sum(self * grad).

        `grad` has the shape of this Tensor; a one-element Tensor (a loss) needs none. The graph is freed on the way:
        each node's saved arrays go as soon as the node is done.
        Raises RuntimeError where there is no graph, or where a part of it was already walked.
        """
        if not self.requires_grad:
            raise RuntimeError("backward() on a Tensor that does not depend on anything with requires_grad=True")
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
            _walk_back(self.node, grad)

    @property
    def grad(self):
        if self._grad_is_stale:
            self._grad.fill(0)
            self._grad_is_stale, self._lent_to = False, None
        return self._grad

    @grad.setter
    def grad(self, array):
        self._grad, self._grad_is_stale, self._lent_to = array, False, None

    def zero_grad(self):
        """From now on the gradient is zero. Its memory is only marked: whoever adds first overwrites, and no pass over
        it is spent on zeros; whoever looks first finds them."""
        self._grad_is_stale, self._lent_to = self._grad is not None, None

    def lend_grad(self, borrower):
        """The gradient's memory to scribble in, where its content means nothing (after zero_grad), else None.

        What is written there may be lost: it is still the borrower's as long as `has_lent_to(borrower)`.
        """
        if not self._grad_is_stale:
            return None
        self._lent_to = borrower
        return self._grad

    def has_lent_to(self, borrower):
        return self._lent_to is borrower

    def add_to_grad(self, grad):
        """Leaves accumulate: a parameter that is used twice gets the sum of both gradients. `grad` is an array or a
        LateGradient (function.py), which writes itself straight to its place."""
        if self._grad is None:
            self._grad = grad.copy()  # grad may be lent, or a view of something else
        elif isinstance(grad, LateGradient):
            grad.write(self._grad, add=not self._grad_is_stale)
        elif self._grad_is_stale:
            self._grad[...] = grad
        else:
            self._grad += grad
        self._grad_is_stale, self._lent_to = False, None


def apply(op, *inputs, **options):
    """Run `op` on Tensors, arrays, numbers (or None for an optional input) and record it. Gives a Tensor.

    The one place that unwraps inputs, checks that they fit together, picks the implementation, and wraps the result.
    An op whose forward gives a tuple gives a tuple of Tensors.
    Raises TypeError for mixed devices or mixed float dtypes, naming the op and its operands.
    """
    arrays = [_plain(value) for value in inputs]
    xp, float_dtype = _check_operands(op, arrays)
    needs_grad = [_recording and isinstance(value, Tensor) and value.requires_grad for value in inputs]

    node = choose(op, xp, arrays)(xp, needs_grad)
    wanted = any(needs_grad)
    if wanted:
        node.leaves = [value if needed and value.node is None else None for value, needed in zip(inputs, needs_grad)]
    results = node.forward(*arrays, **options)
    several = isinstance(results, tuple)
    outs = [Tensor(xp.asarray(result)) for result in (results if several else (results,))]
    if function.observer:
        function.observer.after_forward(node, arrays, [out.data for out in outs])
    for out in outs:
        if out.dtype != float_dtype and out.dtype.kind == "f" and float_dtype is not None:
            raise TypeError(f"{op.name}: {float_dtype} in, {out.dtype} out; keep constants as Python floats in the op")

    if wanted:
        node.parents = [(value.node or value) if needed else None for value, needed in zip(inputs, needs_grad)]
        for i, out in enumerate(outs):
            out.requires_grad = True
            out.node = Part(node, i) if several else node
            out.node.shape, out.node.dtype = out.shape, out.dtype
        if several:
            node.parts = [(out.shape, out.dtype) for out in outs]
    return tuple(outs) if several else outs[0]


def _walk_back(root, grad):
    """Send `grad` from the node `root` to the leaves.

    A gradient in flight is a pair (array, owned). The first one to arrive at a node is only borrowed: it may be the
    dout of another node, or a view. The second makes a sum, which is ours; every later one is added to it in place.
    """
    uses = count_uses(root)
    gradients = {root: (grad, False)}
    ready = [root]
    while ready:
        node = ready.pop()
        dout, _ = gradients.pop(node)
        parents = node.parents
        if isinstance(node, Part):
            node.collect(dout, gradients)
            dinputs = (None,)
        else:
            dinputs = node.backward(dout)
            dinputs = dinputs if isinstance(dinputs, (tuple, list)) else (dinputs,)
            if function.observer:
                function.observer.after_backward(node, dout, dinputs)
        node.release()  # frees what forward saved, before the next gradients are made
        del dout
        if len(dinputs) != len(parents):
            raise ValueError(
                f"{node.name}.backward gave {len(dinputs)} gradients for {len(parents)} inputs: give one each, None "
                "where there is none (and hand over None for an optional input that is left out)"
            )
        for i, (parent, dinput) in enumerate(zip(parents, dinputs)):
            if parent is None:
                continue
            if not isinstance(node, Part):
                _check_gradient(node, i, parent, dinput)
                if isinstance(parent, Tensor):
                    parent.add_to_grad(dinput)
                    if function.observer:
                        function.observer.after_leaf(node, i, parent, dinput)
                    continue
                gradients[parent] = _sum_in_flight(gradients.get(parent), dinput)
            uses[parent] -= 1
            if uses[parent] == 0:
                del uses[parent]  # the last name besides `ready`: the node dies when its turn is over
                ready.append(parent)


def _sum_in_flight(so_far, dinput):
    if isinstance(dinput, LateGradient):
        dinput = dinput.copy()
    if so_far is None:
        return dinput, False
    array, owned = so_far
    if owned:
        array += dinput
    else:
        array = array + dinput
    return array, True


def count_uses(root):
    """How often each node below `root` is used by another: {node: uses}. Iterative: depth costs no Python stack.

    Raises RuntimeError where a backward pass has been here already.
    """
    uses = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.released:
            raise RuntimeError(
                f"backward() was already called through this {node.name}: its saved values are freed, and a second "
                "pass would add the same gradients again. Run the forward pass again; several losses: add them first"
            )
        for parent in node.parents:
            if parent is None or isinstance(parent, Tensor):
                continue
            if parent not in uses:
                uses[parent] = 0
                stack.append(parent)
            uses[parent] += 1
    return uses


def _check_gradient(node, i, parent, dinput):
    shape = None if dinput is None else dinput.shape
    if shape != parent.shape:
        raise ValueError(
            f"{node.name}.backward: the gradient of input {i} has shape {shape}, the input has {parent.shape}. "
            "Where an input was broadcast, its gradient is summed over the broadcast axes (see ops/broadcast.py)"
        )
    if dinput.dtype != parent.dtype:
        raise TypeError(f"{node.name}.backward: the gradient of input {i} is {dinput.dtype}, the input {parent.dtype}")


def _check_operands(op, arrays):
    """The array library and the float dtype (None without floats) that all operands share, or TypeError."""
    xp, float_dtype, device = np, None, None
    for array in arrays:
        if type(array) is np.ndarray:  # nearly always; a generated token makes some 200 such calls
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
    """What forward gets for an operand: the array of a Tensor; NumPy scalars as Python numbers, which never widen."""
    if isinstance(value, Tensor):
        return value.data
    return value.item() if isinstance(value, np.generic) else value


def _plain_key(key):
    if isinstance(key, tuple):
        return tuple(map(_plain_key, key))
    return key.data if isinstance(key, Tensor) else key


def _as_tuple(args):
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
