"""All labs, in the order of the lessons."""

from tinygrad2.labs import layernorm_backward, matmul_backward, unbroadcast

LABS = {module.LAB.name: module.LAB for module in (
    unbroadcast, matmul_backward, layernorm_backward,
)}  # fmt: skip
