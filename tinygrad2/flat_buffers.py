"""The flat buffers: all parameters of a model in one array, all of their gradients in another."""

from tinygrad2.backend import array_module, large_zeros, to_device, xp_of
from tinygrad2.errors import UserError

_ALIGN = 16  # floats: every parameter starts on a 64-byte boundary of the flat buffer, for BLAS


class FlatBuffers:
    """All parameters of a module in one array, all gradients in another; the module's Tensors become views of them.

    Then the gradient norm is one pass, Adam one loop, and the sum over MPI ranks a few slices. Each
    parameter is in here once, so tied weights are one view.

        data, grad    (size,) float32 on `device`
        grad_buffer   the memory of grad as it is; parameters may be stale (see Parameter)
        frozen        names of the parameters with requires_grad = False. Their part of grad is zero; optimizer and
                      sums over ranks leave them out. (Where only zeros have been, the system has given no memory yet.)
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
        self.data = large_zeros(xp, end, dtype)  # the gaps between parameters stay zero
        gradients = large_zeros(xp, end, dtype)
        for name, parameter in named:
            view = self.data[self.slices[name]].reshape(parameter.shape)
            view[...] = to_device(parameter.data, device)
            parameter.data = view
        self.use_grad(gradients)

    size = property(lambda self: self.data.size)

    @property
    def frozen(self):
        return [name for name, parameter in zip(self.slices, self.parameters) if not parameter.requires_grad]

    def freeze(self, names):
        """Freeze the parameters of these names, and no others. Raises ValueError for unknown names."""
        if unknown := sorted(set(names) - set(self.slices)):
            raise ValueError(f"{', '.join(unknown)}: no parameter of this model has that name")
        for name, parameter in zip(self.slices, self.parameters):
            parameter.requires_grad = name not in names

    def require_trainable(self):
        """Raises UserError if all parameters are frozen."""
        if not any(parameter.requires_grad for parameter in self.parameters):
            raise UserError(f"nothing to train: all {len(self.parameters)} parameters of the model are frozen "
                            "(requires_grad = False); set requires_grad = True for those that are to be trained")

    def runs(self, keys):
        """[(slice, key)] for each run of neighbouring parameters with the same key; `keys` has one for each parameter,
        None for those that are left out."""
        if keys.count(keys[0]) == len(keys):                      # nearly always
            return [] if keys[0] is None else [(slice(0, self.size), keys[0])]
        ends = [*(part.start for part in self.slices.values()), self.size][1:]   # with the gap behind each
        runs, start = [], 0
        for i, end in enumerate(ends):
            if i + 1 == len(ends) or keys[i + 1] != keys[i]:
                if keys[i] is not None:
                    runs.append((slice(start, end), keys[i]))
                start = end
        return runs

    def trainable(self, part):
        """The slices of the slice `part` of the buffers that belong to parameters which are not frozen."""
        slices = []
        for run, _ in self.runs([parameter.requires_grad or None for parameter in self.parameters]):
            start, stop = max(run.start, part.start), min(run.stop, part.stop)
            if start < stop:
                slices.append(slice(start, stop))
        return slices

    @property
    def grad(self):
        for parameter in self.parameters:
            parameter.materialize_grad()
        return self.grad_buffer

    @grad.setter
    def grad(self, values):
        self.grad_buffer[...] = values  # in place: the parameters' gradients are views of it
        self.use_grad(self.grad_buffer)

    def use_grad(self, array):
        """From now on gradients are views of `array`, laid out like the buffers; they start from what is in it."""
        self.grad_buffer = array
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
