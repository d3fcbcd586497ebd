"""All labs, in the order of the lessons."""

from tinygrad2.labs import (
    embedding_backward,
    gelu_backward,
    layernorm_backward,
    matmul_backward,
    softmax_backward,
    softmax_cross_entropy,
    unbroadcast,
)

LABS = {module.LAB.name: module.LAB for module in (
    unbroadcast, matmul_backward, softmax_backward, softmax_cross_entropy, embedding_backward, layernorm_backward,
    gelu_backward,
)}  # fmt: skip
