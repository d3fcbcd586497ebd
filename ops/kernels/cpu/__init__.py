"""The ops for the CPU: Numba loops and BLAS calls. Importing the package registers them; nothing is compiled yet.

Raises ImportError where Numba cannot be used.
"""

import ops.kernels.cpu.load_numba  # noqa: F401  first: the others import Numba
from ops.kernels.cpu import (  # noqa: F401
    adam,
    add,
    attention,
    cross_entropy,
    decode_block,
    dropout,
    embedding,
    gelu,
    layernorm,
    linear,
    linear_bfloat16,
    linear_cross_entropy,
    linear_int8,
    mlp,
    pack_bfloat16,
    softmax,
    split_heads,
    team,
)
