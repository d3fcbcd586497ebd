"""Trade time for memory: free what a part of the model computed in between, and compute it again in backward.

    x = recompute(block, x)            the same bits as block(x)

Of the part only its input is kept. In backward the part runs a second time, now recorded, and is walked back at
once. One more forward pass (124M, 1024 tokens: 22 % of a step) saves the activations of all parts but one.

Chen et al., "Training deep nets with sublinear memory cost", 2016, section 3.
"""

from tinygrad2.dispatch import kernel_mode, kernels
from tinygrad2.function import Function
from tinygrad2.gpu_library import gpu_library, gpu_library_in_use
from tinygrad2.module import Module
from tinygrad2.precision import matmul_precision
from tinygrad2.tensor import Tensor, apply, is_recording, no_grad, recording


class Recompute(Function):
    """A part of a model as one op. Gradients of its parameters go straight to them, as in any backward pass."""

    only_moves = True  # it computes nothing itself

    def forward(self, x, part):
        self.save(x, part, kernel_mode(), gpu_library_in_use())
        with no_grad():
            return part(Tensor(x)).data

    def backward(self, dout):
        x, part, mode, library = self.saved
        x = Tensor(x, requires_grad=True)
        # Computed as in forward, wherever backward is called.
        with recording(), kernels(mode), gpu_library(library), matmul_precision(self.precision):
            part(x).backward(dout)
        return (x.grad,)


def recompute(part, x):
    """part(x), a Tensor, where part is a function of one Tensor that returns the same each time it is called.

    Dropout does (tinygrad2/prng.py), as long as `set_dropout` is not called in between.
    """
    if is_recording() and not x.requires_grad and _may_train(part):
        x = Tensor(x.data, requires_grad=True)  # a leaf nobody has: all before it is frozen, the part is not
    return apply(Recompute, x, part=part)


def _may_train(part):
    """May `part` have parameters that want a gradient? Of a function that is not a Module nobody knows."""
    return not isinstance(part, Module) or part.requires_grad
