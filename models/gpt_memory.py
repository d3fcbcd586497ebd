"""What a GPT keeps for backward, for the memory plan of a training (tinygrad2/training/memory_plan.py).

With N = rows x T tokens and C channels, a block keeps, in elements:

    what                          kernels            reference implementations, if they differ
    ln_1: its input x             N C
    c_attn: its input             N C
    q, k, v in one piece          3 N C
    attention: its output         N C
    attention: the weights        (ln sum e^s) N nh  N nh T
    ln_2: the sum x + attn        N C
    mlp: its input, and h         5 N C              (h is n_inner wide, usually 4 C)
    layernorms: mean, rstd        4 N

which is a little over 12 N C; with --recompute N C per block, and all of the above for one block at a time. An element
is a float32, with --dtype bfloat16 two bytes except in the logarithms, mean, rstd, and what --recompute keeps; then
backward has what one op has kept in float32 once more. On a GPU the kernels compute with the two bytes, and nothing is
there once more; but the inputs of layernorms, which are the residual stream, stay float32. Dropout keeps nothing: its
masks are computed again. The head's logits are N x V elements; the kernel has them in chunks of at most 70 MB, the
reference implementation all at once, several times. tests/test_memory.py compares these sums with what a model really
keeps.
"""

from tinygrad2.system.memory import GPU_LOGITS_CHUNK, LOGITS_CHUNK

_F = 4  # bytes of a float32
_BYTES = {"float32": _F, "bfloat16": 2, "float16": 2}  # of an activation that waits for backward


def kept_by_block(config, rows, length, reference, dtype="float32", device="cpu"):
    """{what: bytes} that one block keeps for backward (ModelConfig.kept)."""
    N, C, nh, size = rows * length, config.n_embd, config.n_head, _BYTES[dtype]
    stream = size if device == "cpu" or reference else _F
    return {
        "ln_1: input": stream * N * C,
        "c_attn: input": size * N * C,
        "attention: q, k, v": size * 3 * N * C,
        "attention: output": size * N * C,
        "attention: weights": size * N * nh * length if reference else _F * N * nh,
        "ln_2: x + attention": stream * N * C,
        "mlp: input": size * N * C,
        "mlp: h": size * N * config.inner,
        "layernorms: mean and rstd": _F * 4 * N,
    }


def work_space_of_gpt(config, rows, length, reference, dtype="float32", device="cpu"):
    """Bytes of (embedding, ln_f and its output; logits at a time; temporaries of backward) (ModelConfig.work_space)."""
    N, C = rows * length, config.n_embd
    if device != "cpu" and not reference:
        size = _BYTES[dtype]
        chunk = min(size * N * (config.vocab_size + 64), GPU_LOGITS_CHUNK)
        return (2 * _F + size) * N * C, chunk, size * N * (2 * config.inner + 2 * C) + 2 * _F * N * C
    logits, outside = _F * N * config.vocab_size, 3 * _F * N * C
    if reference:
        masks = 6 if config.dropout else 0                        # three arrays of 64-bit integers at a time
        attention = (4 + masks) * _F * N * config.n_head * length
        work = max(4 * logits, _F * N * (6 * config.inner + 2 * C), attention)    # logits: they, e^logits, dlogits, and
                                                                  # one more, freed before backward is in the blocks
        if dtype != "float32":                                    # rounding the largest operand, step by step
            work += 6 * max(logits, _F * N * config.inner, _F * config.vocab_size * C)
        chunk = 0
    else:
        chunk = logits_chunk(N, C, config.vocab_size)
        work = (2 * config.inner + 3 * C) * _F * N                # the MLP's backward: g, dh, and three of C
    work += _F * N * (config.inner + C) if dtype != "float32" else 0      # x and h of an MLP in float32 again
    return outside, chunk, work


def forward_space_of_gpt(config, rows, length, dtype="float32"):
    """Bytes of a forward pass on a GPU that keeps nothing (GPTConfig.forward_space): in an MLP, or with logits."""
    N, C, size = rows * length, config.n_embd, _BYTES[dtype]
    _, chunk, _ = work_space_of_gpt(config, rows, length, False, dtype, "cuda")
    return max(size * N * (2 * config.inner + 3 * C) + 2 * _F * N * C, chunk + (size + _F) * N * C)


def logits_chunk(N, C, V):
    """Bytes of the logits that ops.linear_cross_entropy has at a time: those of N rows of C channels, or a part."""
    logits = _F * N * V
    return min(logits, LOGITS_CHUNK) + (_F * N * C if logits > LOGITS_CHUNK else 0)
