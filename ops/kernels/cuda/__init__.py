"""The ops for an NVIDIA GPU: CUDA C++ compiled by NVRTC, and cuBLASLt. Importing the package registers them; CuPy is
imported by nothing in here: a kernel gets it as `xp`.
"""

from ops.kernels.cuda import (  # noqa: F401
    adam,
    add,
    attention,
    attention_cudnn,
    cast,
    cross_entropy,
    decide,
    dropout,
    elementwise,
    embedding,
    gelu,
    kv_cache,
    layernorm,
    linear,
    linear_bfloat16,
    linear_cross_entropy,
    linear_int8,
    matmul,
    mlp,
    norm,
    softmax,
    split_heads,
)
