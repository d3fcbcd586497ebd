"""tinygrad2: GPT-2, trained and run from scratch, in Python that reads like the maths.

    from tinygrad2 import Tensor
    x = Tensor([[1.0, 2.0]], requires_grad=True)
    (x * x).sum().backward()
    x.grad                                              # [[2., 4.]]

This file is the face of the engine. It imports nothing until a name is asked for: under mpirun the ranks must agree
on their threads before NumPy loads (see world.py), and `import tinygrad2.anything` passes through here first.
"""

import importlib

from tinygrad2.installation import refuse_name_clash

__version__ = "0.1.0"

_FACE = {
    "Tensor": "tinygrad2.tensor",
    "apply": "tinygrad2.tensor",
    "no_grad": "tinygrad2.tensor",
    "Function": "tinygrad2.function",
    "Module": "tinygrad2.module",
    "Parameter": "tinygrad2.module",
    "gradcheck": "tinygrad2.gradcheck",
    "Tokenizer": "tinygrad2.tokenizers.tokenizer",
}


def __getattr__(name):
    if name not in _FACE:
        raise AttributeError(f"module 'tinygrad2' has no attribute {name!r}")
    value = getattr(importlib.import_module(_FACE[name]), name)
    refuse_name_clash()
    importlib.import_module("ops")  # a Tensor is of use once `+` has an op behind it
    globals()[name] = value  # also takes the place of a submodule of the same name (gradcheck)
    return value
