"""All labs, in the order of the lessons."""

from tinygrad2.labs import (
    adamw,
    attention_backward,
    bpe_merge,
    bpe_train,
    causal_mask,
    clip_grad_norm,
    cosine_schedule,
    embedding_backward,
    exact_checkpoint,
    gelu_backward,
    kv_cache,
    layernorm_backward,
    matmul_backward,
    softmax_backward,
    softmax_cross_entropy,
    tied_head,
    tree_allreduce,
    unbroadcast,
)

LABS = {module.LAB.name: module.LAB for module in (
    unbroadcast, matmul_backward, softmax_backward, softmax_cross_entropy, embedding_backward, layernorm_backward,
    gelu_backward, causal_mask, attention_backward, tied_head, adamw, clip_grad_norm,
    cosine_schedule, bpe_merge, bpe_train, kv_cache, tree_allreduce, exact_checkpoint,
)}  # fmt: skip
