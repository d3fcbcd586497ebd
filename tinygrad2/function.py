"""Function: one differentiable operation.

An operation is a class with two methods that take and return plain arrays (NumPy or CuPy):

    forward(self, *inputs, **options)   the formula
    backward(self, dout)                given dout = dL/dout, one gradient per input: dL/dinput

An instance is one *use* of the operation. It is the context in which forward leaves for backward what backward will
need (`self.save(...)`), and it is the node of the graph. It never holds its own output Tensor, so there is no
reference cycle: its memory is freed as soon as the last reference goes.

Defining the class is enough to register it:

    class Square(Function):                                    # becomes OPS["square"]
        def forward(self, x):
            self.save(x)
            return x * x

        def backward(self, dout):
            (x,) = self.saved
            return 2 * x * dout

A faster version for one array library is a subclass of its op: `class SquareCPU(Square, backend="numpy")` has the
same name and the same methods, and is chosen if `supports(*arrays)` is true (see dispatch.py).
"""

from typing import Any

from tinygrad2.backend import is_array
from tinygrad2.context import Block, Setting
from tinygrad2.dispatch import OPS, register_kernel
from tinygrad2.precision import precision
from tinygrad2.writes import changed_since, last_write


class Function:
    """One use of an operation. Subclasses define `forward` and `backward` (see the top of this file).

    xp          the array library of the inputs
    needs_grad  a bool per input: if it is False, backward may return None
    precision   of matrix products, in forward and in backward (precision.py)
    saved       what `save` was given; in mixed precision, activations are packed in between (saved16.py)
    parents     per input the edge to where it came from, (node, number of that node's output) or (leaf Tensor, 0);
                None if no gradient is wanted
    outputs     (shape, dtype) of each result of forward
    saved_at    the number of the last write in place (writes.py) when it was saved
    several     whether forward returned a tuple; then backward gets a tuple of gradients, zeros for an unused result
    released    whether backward has passed here
    options     of forward, if somebody observes
    layer       the module in which it was used, if an observer notes it,
    inputs      with the range of each input (monitor/nonfinite.py), and
    work        what its backward will compute (monitor/profiler.py)
    """

    name = "function"
    is_leaf = is_parameter = False  # True for a leaf Tensor, or a Parameter, at the end of an edge
    mixes_integers = False  # arrays of integers among the inputs are numbers to compute with: they become floats
    only_moves = False  # forward and backward move data at most, and compute nothing: they need no kernel
    sets_dtype = False  # floats of different dtypes may meet, and the results may have another one
    saves_halves = False  # it takes and saves 16-bit arrays as they are; others get float32 ones in mixed precision
    layer, inputs, work = "", (), None
    options: dict[str, Any] = {}

    def __init_subclass__(cls, backend: str | None = None, name: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if backend is None:
            cls.name = name or cls.__name__.lower()
            OPS[cls.name] = cls
        else:  # a kernel keeps the name of its op, which is its base class
            register_kernel(cls.name, backend)(cls)

    def __init__(self, xp: Any, needs_grad: Any):
        self.xp, self.needs_grad, self.precision = xp, needs_grad, precision()
        self.saved: Any = ()
        self.parents: Any = ()
        self.outputs: Any = ()
        self.saved_at = 0
        self.several = self.released = False

    def save(self, *values: Any) -> None:
        """Keep values for backward. If no input wants a gradient, nothing is kept."""
        if any(self.needs_grad):
            self.saved = values

    def leaf(self, i: int) -> Any:
        """The leaf Tensor that is input i, else None: for kernels that work in a parameter's own memory."""
        edge = self.parents[i] if self.parents else None
        return edge[0] if edge and edge[0].is_leaf else None

    def check_saved(self) -> None:
        """Raise RuntimeError if an array that backward needs was changed in place after forward."""
        if self.saved_at == last_write():
            return
        if any(is_array(kept) and changed_since(kept, self.saved_at) for kept in self.saved):
            raise RuntimeError(
                f"backward of {self.name} needs an input or a result that was changed in place after it was used: "
                "change it after backward(), or use a copy, x.clone()"
            )

    def release(self) -> None:
        """Drop what was kept: backward has passed here, and the memory is needed for the gradients to come."""
        self.saved = self.parents = ()
        self.released = True

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError

    def backward(self, dout: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def supports(cls, *arrays: Any) -> bool:
        """Kernels only: can this version take these arrays (dtype, layout, size)?"""
        return True


_observers = Setting("observers", None)
observers = _observers.values  # observers() are those of the blocks around the caller, the innermost last


def observe(observer: Any) -> Block:
    """Within the block `observer` is called with what is computed in this thread (context.py), after those of the
    blocks around it.

        observer.inside(module)                          a context in which the module's ops run
        observer.before(node)                            the node's forward or backward begins
        observer.after_forward(node, arrays, results)
        observer.after_backward(node, dout, dinputs)     node.saved is still there
        observer.after_leaf(node, i, leaf, gradient)     the gradient of input i has been added to leaf.grad
    """
    return _observers.set(observer)
