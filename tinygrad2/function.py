"""Function: one differentiable operation, and the registry in which every operation finds its place.

An operation is a class with two methods that take and give plain arrays (NumPy or CuPy):

    forward(self, *inputs, **options)   the formula
    backward(self, dout)                given dout = dL/dout, one gradient per input: dL/dinput

An instance is one *use* of the operation. It is the context in which forward leaves for backward what backward will
need (`self.save(...)`), and it is the node of the graph. It never holds its own output Tensor, so there is no
reference cycle and memory goes as soon as the last name lets go of it.

Defining the class is enough to register it:

    class Square(Function):                                    # becomes OPS["square"]
        def forward(self, x):
            self.save(x)
            return x * x

        def backward(self, dout):
            (x,) = self.saved
            return 2 * x * dout

A faster version for one array library is a subclass of its op: `class SquareCPU(Square, backend="numpy")` has the
same name and the same methods, and is chosen where `supports(*arrays)` says yes (see `choose`).
"""

import contextlib


class _Registry(dict):
    """A dict that says what to do when a name is missing."""

    def __missing__(self, name):
        raise KeyError(f"no op called {name!r} has been defined; `import ops` defines those of this project")


OPS = _Registry()  # name -> the reference op, its page of maths
KERNELS = {}  # (name, backend) -> the fast versions, the newest last; backend is "numpy" or "cupy"

_use_kernels = True

observer = None  # see `observe`


class Function:
    """One use of an operation. Subclasses say what `forward` and `backward` are (see the top of this file).

    Attributes: `xp` is the array library of the inputs. `needs_grad` holds a bool per input: where it is False,
    backward may give None. `saved` is what `save` was given. `parents` is the graph (see tensor.py), and `leaves` the
    inputs that are leaf Tensors (None for others), for kernels that work in a parameter's own memory.
    """

    name = "function"
    leaves = ()

    def __init_subclass__(cls, backend=None, name=None, **kwargs):
        super().__init_subclass__(**kwargs)
        if backend is None:
            cls.name = name or cls.__name__.lower()
            OPS[cls.name] = cls
        else:  # a kernel keeps the name of its op, which is its base class
            KERNELS.setdefault((cls.name, backend), []).append(cls)

    def __init__(self, xp, needs_grad):
        self.xp = xp
        self.needs_grad = needs_grad
        self.saved = ()
        self.parents = ()
        self.released = False

    def save(self, *values):
        """Keep values for backward. Where no input wants a gradient, nothing is kept."""
        if any(self.needs_grad):
            self.saved = values

    def release(self):
        """Drop what was kept: backward has passed here, and its arrays make room for the gradients to come."""
        self.saved = self.parents = self.leaves = ()
        self.released = True

    def forward(self, *inputs, **options):
        raise NotImplementedError

    def backward(self, dout):
        raise NotImplementedError

    @classmethod
    def supports(cls, *arrays):
        """Kernels only: can this version take these arrays (dtype, layout, size)?"""
        return True


class Part:
    """The node of one result of an op that gives several: it hands its gradient to the op's own node.

    That node's backward gets a tuple of gradients, zeros for a result that played no part.
    """

    def __init__(self, node, place):
        self.parents, self.place, self.released = (node,), place, False
        self.name = f"{node.name}[{place}]"

    def collect(self, dout, gradients):
        (node,) = self.parents
        if node not in gradients:
            zeros = tuple(node.xp.zeros(shape, dtype=dtype) for shape, dtype in node.parts)
            gradients[node] = (zeros, False)
        douts, _ = gradients[node]
        gradients[node] = (douts[: self.place] + (dout,) + douts[self.place + 1 :], False)

    def release(self):
        self.parents, self.released = (), True


class LateGradient:
    """A gradient that is still to be computed, so that it can be written where it belongs, or added to what is there.

    What backward of a kernel may give instead of an array, for an input that is usually a parameter: a weight's
    gradient is as large as the weight, and a copy of it would be the largest array of the step.

        write(out, add)    sets `out`, an array of this shape, to the gradient, or adds the gradient to it
    """

    def __init__(self, xp, shape, dtype, write):
        self.xp, self.shape, self.dtype, self.write = xp, shape, dtype, write

    def copy(self):
        """The gradient as an array of its own."""
        out = self.xp.empty(self.shape, dtype=self.dtype)
        self.write(out, add=False)
        return out


def choose(op, xp, arrays):
    """The version of `op` to run on these arrays: the newest kernel that supports them, else the op itself."""
    if _use_kernels:
        for kernel in reversed(KERNELS.get((op.name, xp.__name__), ())):
            if issubclass(kernel, op) and kernel.supports(*arrays):
                return kernel
    return op


def fastest(name, xp, page):
    """For steps that are not ops (Adam, the gradient's norm): the newest kernel of that name, else the page."""
    found = KERNELS.get((name, xp.__name__)) if _use_kernels else None
    return found[-1] if found else page


@contextlib.contextmanager
def observe(watcher):
    """Within the block `watcher` is told what is computed; nonfinite.py is one.

        watcher.inside(module)                          a context in which the module's ops run
        watcher.after_forward(node, arrays, results)
        watcher.after_backward(node, dout, dinputs)     node.saved is still there
        watcher.after_leaf(node, i, leaf, gradient)     the gradient of input i is in leaf.grad now
    """
    global observer
    before, observer = observer, watcher
    try:
        yield watcher
    finally:
        observer = before


@contextlib.contextmanager
def kernels(mode):
    """Within the block, "reference" runs every op by its page of maths; "auto" takes a kernel where one fits."""
    global _use_kernels
    before = _use_kernels
    use_kernels(mode)
    try:
        yield
    finally:
        _use_kernels = before


def use_kernels(mode):
    """The same as `kernels`, for the rest of the program. Raises ValueError for an unknown mode."""
    global _use_kernels
    if mode not in ("auto", "reference"):
        raise ValueError(f"kernels must be 'auto' or 'reference', not {mode!r}")
    _use_kernels = mode == "auto"

