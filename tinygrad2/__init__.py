"""tinygrad2: GPT-2, trained and run from scratch, in Python that reads like the maths.

    from tinygrad2 import Tensor
    x = Tensor([[1.0, 2.0]], requires_grad=True)
    (x * x).sum().backward()
    x.grad                                              # [[2., 4.]]

What this file exports is imported when the first of the names is asked for, not before: under mpirun the ranks must
agree on their threads before NumPy loads (distributed/world.py), and `import tinygrad2.anything` runs this file first.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinygrad2.function import Function
    from tinygrad2.grad_check import gradcheck
    from tinygrad2.module import Module, Parameter
    from tinygrad2.tensor import Tensor, apply, no_grad
    from tinygrad2.tokenizers.tokenizer import Tokenizer

from tinygrad2.system.installation import refuse_name_clash

__version__ = "0.1.0"
__all__ = ["Function", "Module", "Parameter", "Tensor", "Tokenizer", "apply", "gradcheck", "no_grad"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'tinygrad2' has no attribute {name!r}")
    try:
        _import_all()
    except (ImportError, AttributeError):
        raise
    except Exception as error:  # hasattr(tinygrad2, "Tensor") expects one of these two
        raise ImportError(f"tinygrad2.{name} cannot be imported: {type(error).__name__}: {error}") from error
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _import_all() -> None:
    global Function, Module, Parameter, Tensor, Tokenizer, apply, gradcheck, no_grad
    refuse_name_clash(packages=["ops"])  # a project may have a `models` of its own beside these names
    import ops  # noqa: F401  the ops that `+` and the other operators of a Tensor run
    from tinygrad2.function import Function
    from tinygrad2.grad_check import gradcheck
    from tinygrad2.module import Module, Parameter
    from tinygrad2.tensor import Tensor, apply, no_grad
    from tinygrad2.tokenizers.tokenizer import Tokenizer
