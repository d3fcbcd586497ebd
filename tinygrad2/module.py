"""Module: a part of a model that owns parameters and other modules, and the flat buffers all parameters live in."""

from tinygrad2 import function
from tinygrad2.backend import array_module, to_device, to_host, xp_of
from tinygrad2.tensor import Tensor

_ALIGN = 16  # floats: every parameter starts on a 64-byte boundary of the flat buffer, as BLAS likes it


class Parameter(Tensor):
    """A leaf Tensor that is learned."""

    def __init__(self, data, dtype=None, device=None):
        super().__init__(data, dtype=dtype, device=device, requires_grad=True)


class Module:
    """Subclass it, make Parameters and Modules attributes, and write `forward`. Lists of Modules count, too.

    Names are paths of attributes, as in the released GPT-2 files: `h.0.attn.c_attn.weight`.
    """

    training = True  # dropout looks at it; train() and eval() set it on the whole tree

    def __call__(self, *args, **kwargs):
        if function.observer is None:
            return self.forward(*args, **kwargs)
        with function.observer.inside(self):
            return self.forward(*args, **kwargs)

    def forward(self, *args, **kwargs):
        raise NotImplementedError

    def named_children(self):
        """(attribute path, Module or Parameter) for everything this module owns directly."""
        for name, value in vars(self).items():
            if isinstance(value, (Module, Parameter)):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, (Module, Parameter)):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix=""):
        """(path, Module) for this module and all below it, in the order in which they were made."""
        yield prefix, self
        for name, child in self.named_children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self):
        """(path, Parameter) for all parameters, each once: a tied weight has the name under which it comes first."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, child in module.named_children():
                if isinstance(child, Parameter) and id(child) not in seen:
                    seen.add(id(child))
                    yield (f"{prefix}.{name}" if prefix else name), child

    def parameters(self):
        """All parameters, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def count_parameters(self):
        """How many numbers are learned."""
        return sum(parameter.size for parameter in self.parameters())

    def train(self, mode=True):
        """Switch the whole tree to training (dropout acts)."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self):
        """Switch the whole tree to evaluation (dropout is the identity)."""
        return self.train(False)

    def zero_grad(self):
        """Set all gradients to zero (without touching them: see Tensor.zero_grad)."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def state_dict(self, copy=True):
        """{path: NumPy array}, each array a copy of its own; with copy=False, where it is on the host, the very one."""
        arrays = {name: to_host(parameter.data) for name, parameter in self.named_parameters()}
        return {name: array.copy() for name, array in arrays.items()} if copy else arrays

    def load_state_dict(self, state):
        """Copy values in place, so that flat buffers and optimizers keep pointing to the same memory.

        Raises ValueError naming every missing, unknown or wrongly shaped entry; then nothing has been changed.
        """
        own = dict(self.named_parameters())
        problems = [f"{name} is missing" for name in own if name not in state]
        problems += [f"{name} is not a parameter of this model" for name in state if name not in own]
        problems += [
            f"{name} has shape {tuple(state[name].shape)}, the model's has {own[name].shape}"
            for name in own
            if name in state and tuple(state[name].shape) != own[name].shape
        ]
        if problems:
            raise ValueError("cannot load these weights: " + "; ".join(problems))
        for name, parameter in own.items():
            parameter.data[...] = to_device(state[name].astype(parameter.dtype, copy=False), parameter.device)


class FlatBuffers:
    """All parameters of a module in one array, all gradients in another; the module's Tensors become views of them.

    Then the gradient norm is one pass, Adam one loop, and the sum over MPI ranks a few slices. Each
    parameter is in here once, so tied weights are one view.

        data, grad    (size,) float32 on `device`
        n_decay       the first n_decay elements belong to matrices (weight decay), the rest to vectors (none)
        slices        {name: slice of the buffers}
    """

    def __init__(self, module, device="cpu"):
        xp = array_module(device)
        named = sorted(module.named_parameters(), key=lambda item: item[1].ndim < 2)  # stable: matrices, then vectors
        self.parameters = [parameter for _, parameter in named]
        self.slices, self.n_decay, end = {}, 0, 0
        for name, parameter in named:
            self.slices[name] = slice(end, end + parameter.size)
            end += -(-parameter.size // _ALIGN) * _ALIGN
            if parameter.ndim >= 2:
                self.n_decay = end
        dtype = named[0][1].dtype
        self.data = xp.zeros(end, dtype=dtype)  # the gaps between parameters stay zero for ever
        gradients = xp.zeros(end, dtype=dtype)
        for name, parameter in named:
            view = self.data[self.slices[name]].reshape(parameter.shape)
            view[...] = to_device(parameter.data, device)
            parameter.data = view
        self.use_grad(gradients)

    size = property(lambda self: self.data.size)

    @property
    def grad(self):
        for parameter in self.parameters:
            parameter.grad  # noqa: B018  writes the zeros of one that got no gradient since zero_grad
        return self._grad

    @grad.setter
    def grad(self, values):
        self._grad[...] = values  # in place: the parameters' gradients are views of it

    def use_grad(self, array):
        """From now on gradients are views of `array`, laid out like the buffers; what is in it counts."""
        self._grad = array
        for parameter, part in zip(self.parameters, self.slices.values()):
            parameter.grad = array[part].reshape(parameter.shape)

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.zero_grad()

    def named_views(self, array):
        """{name: view} of an array laid out like these buffers, in the parameters' shapes."""
        shapes = {name: parameter.shape for name, parameter in zip(self.slices, self.parameters)}
        return {name: array[part].reshape(shapes[name]) for name, part in self.slices.items()}

    def __repr__(self):
        library = xp_of(self.data).__name__
        return f"FlatBuffers({len(self.slices)} parameters, {self.size:,} {self.data.dtype}, {library})"
