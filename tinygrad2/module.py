"""Module: a part of a model that owns parameters and other modules. Parameter: a Tensor that is learned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

from tinygrad2.backend import Array, to_device, to_host
from tinygrad2.deferred import DeferredGradient
from tinygrad2.function import observers
from tinygrad2.halves import is_floating
from tinygrad2.tensor import Tensor
from tinygrad2.writes import wrote

_Module = TypeVar("_Module", bound="Module")


class Parameter(Tensor):
    """A leaf Tensor that is learned.

    The memory of its gradient is kept from step to step. `zero_grad` only marks it as stale: whoever adds first
    overwrites it, so no pass is spent on zeros, and whoever reads `grad` before that finds zeros. While it is stale a
    kernel may borrow it: the largest gradient is computed early and needs no extra memory.

    With `requires_grad = False`, at any time, it is frozen: `grad` is None, and no optimizer changes it. In a flat
    buffer its part of the gradient is then zero. With True it continues from a gradient of zero.
    """

    is_parameter = True
    may_become_result = False  # its memory may be part of a flat buffer

    def __init__(self, data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = True):
        self._grad: Any = None
        self._stale = self._requires_grad = False
        self._borrower: Any = None
        super().__init__(data, dtype=dtype, device=device, requires_grad=requires_grad)

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not is_floating(self.dtype):
            raise TypeError(f"a {self.dtype} Parameter cannot require a gradient; use dtype float32 or float64")
        if bool(value) != self._requires_grad:
            self._requires_grad, self._stale, self._borrower = bool(value), self._grad is not None, None

    @property
    def grad(self) -> Array | None:  # type: ignore[override]
        return self.materialize_grad() if self._requires_grad else None

    @grad.setter
    def grad(self, array: Array | None) -> None:
        kind = getattr(array, "shape", None), getattr(array, "dtype", None)
        if array is not None and kind != (self.shape, self.dtype):
            raise TypeError(f"the gradient of this parameter is an array, {self.dtype} {self.shape}, or None")
        self._grad, self._borrower = array, None
        self._stale = array is not None and not self._requires_grad

    def materialize_grad(self) -> Array | None:
        """The memory of the gradient, after writing the zeros that `zero_grad` or freezing have left out."""
        if self._stale:
            if self._requires_grad or self.device != "cpu" or self._grad.any():
                self._grad.fill(0)                                # zeros that are there already: pages stay untouched
            self._stale, self._borrower = False, None
        return self._grad

    def zero_grad(self) -> None:
        """From now on the gradient is zero, if there is one; its memory is not touched."""
        if self._requires_grad:
            self._stale, self._borrower = self._grad is not None, None

    def add_to_grad(self, grad: Array | DeferredGradient) -> None:
        if self._stale and isinstance(grad, DeferredGradient):
            grad.write_to(self._grad, accumulate=False)
        elif self._stale:
            self._grad[...] = grad
        else:
            super().add_to_grad(grad)
        self._stale, self._borrower = False, None

    def lend_grad(self, borrower: object) -> Array | None:
        """The memory of a stale gradient, to be used as scratch space; None if it is not stale.

        What is written there may be lost: it is still the borrower's as long as `has_lent_to(borrower)`.
        """
        if not self._stale or not self._requires_grad:
            return None
        self._borrower = borrower
        return self._grad

    def has_lent_to(self, borrower: object) -> bool:
        return self._borrower is borrower


class Module:
    """Subclass it, make Parameters and Modules attributes, and write `forward`. Lists of Modules count, too.

    Names are paths of attributes, as in the released GPT-2 files: `h.0.attn.c_attn.weight`.
    """

    training = True  # dropout looks at it; train() and eval() set it on the whole tree

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (watching := observers()):
            return self.forward(*args, **kwargs)
        with contextlib.ExitStack() as stack:
            for observer in watching:
                stack.enter_context(observer.inside(self))
            return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def named_children(self) -> Iterator[tuple[str, Module | Parameter]]:
        """(attribute path, Module or Parameter) for everything this module owns directly."""
        for name, value in vars(self).items():
            if isinstance(value, (Module, Parameter)):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, (Module, Parameter)):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, Module) for this module and all below it, in the order in which they were made."""
        yield prefix, self
        for name, child in self.named_children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, Parameter) for all parameters, each once: a tied weight has its first name."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, child in module.named_children():
                if isinstance(child, Parameter) and id(child) not in seen:
                    seen.add(id(child))
                    yield (f"{prefix}.{name}" if prefix else name), child

    def parameters(self) -> list[Parameter]:
        """All parameters, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def count_parameters(self, trainable_only: bool = False) -> int:
        """Number of parameters; with trainable_only, of those that are not frozen."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable_only)

    @property
    def requires_grad(self) -> bool:
        """Is any of its parameters trained? Assigning True or False changes all of them: `model.wte.requires_grad =
        False` freezes the embedding."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        for parameter in self.parameters():
            parameter.requires_grad = value

    def train(self: _Module, mode: bool = True) -> _Module:
        """Switch the whole tree to training (dropout acts)."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self: _Module) -> _Module:
        """Switch the whole tree to evaluation (dropout is the identity)."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set all gradients to zero (without touching them: see Parameter)."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """{path: NumPy array}; with copy=False a parameter's own array, if that is on the host, else a copy."""
        arrays = {name: to_host(parameter.data) for name, parameter in self.named_parameters()}
        return {name: array.copy() for name, array in arrays.items()} if copy else arrays

    def load_state_dict(self, state: Any) -> None:
        """Copy values {path: array} in place, so that flat buffers and optimizers keep pointing to the same memory.

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
            wrote(parameter.data)
