"""How much memory a training takes, told before it begins; and how much the process takes, and the machine has.

The plan is arithmetic. With N = micro-batch rows x T tokens and C channels, a block keeps for backward, in numbers:

    what                          kernels            pages of maths, where they differ
    ln_1: its input x             N C
    c_attn: its input             N C
    q, k, v in one piece          3 N C
    attention: its output         N C
    attention: the weights        (ln sum e^s) N nh  N nh T
    ln_2: the sum x + attn        N C
    mlp: its input, and h         5 N C              (h is n_inner wide, 4 C mostly)
    layernorms: mean, rstd        4 N

which is 12 N C and some; with --recompute N C per block, and all of the above for one block at a time. Dropout keeps
nothing: its masks are computed again. The head's logits are N x V numbers; the kernel has them in chunks of at most
70 MB, the page whole, several times. tests/test_memory.py holds these sums against what a model really keeps.
"""

from dataclasses import dataclass, field

from tinygrad2.system.memory import LOGITS_CHUNK, available_bytes, megabytes, resident_bytes

_F = 4  # bytes of a float32
_COMPILED = 50 << 20  # what Numba's machine code and BLAS's buffers take once the first step has run
_PAGE = 6 << 20  # the same without Numba
_BUCKET = 4 << 20  # numbers, of reducer.py


@dataclass
class MemoryPlan:
    """Bytes by name. `total` is the expected peak."""

    parts: dict
    layer: dict = field(default_factory=dict)  # what one block keeps

    @property
    def total(self):
        """Bytes at the peak."""
        return sum(self.parts.values())

    def of_ranks(self, ranks):
        """Bytes that so many ranks on one host take, this one's Python and libraries left out; rank 0 alone writes
        checkpoints."""
        one = self.total - self.parts["Python and libraries"]
        return ranks * one - (ranks - 1) * self.parts["copies while a checkpoint is written"]

    def table(self):
        """Lines for people to read."""
        parts = [(name, size) for name, size in self.parts.items() if size]
        lines = [f"{name:42s}{megabytes(size):>12s}{size / self.total:6.0%}" for name, size in parts]
        return [*lines, f"{'together':42s}{megabytes(self.total):>12s}"]


def layer_activations(config, rows, length, pages):
    """{what: bytes} that one block keeps for backward, for `rows` sequences of `length` tokens."""
    N, C, nh = rows * length, config.n_embd, config.n_head
    return {
        "ln_1: input": _F * N * C,
        "c_attn: input": _F * N * C,
        "attention: q, k, v": _F * 3 * N * C,
        "attention: output": _F * N * C,
        "attention: weights": _F * N * nh * (length if pages else 1),
        "ln_2: x + attention": _F * N * C,
        "mlp: input": _F * N * C,
        "mlp: h": _F * N * config.inner,
        "layernorms: mean and rstd": _F * 4 * N,
    }


def plan_memory(config, n_parameters, rows, length, recompute=False, pages=False, keeps_copies=True, base=None,
                ranks=1, shards=False, tree=True, micro_batches=1):  # fmt: skip
    """The MemoryPlan of a training on the CPU.

    config         the model's shape (n_layer, n_embd, n_head, vocab_size)
    rows, length   one micro-batch
    pages          the pages of maths run, not the kernels
    keeps_copies   checkpoints are written while the training goes on
    ranks, shards  ranks that share Adam's moments, if they do
    tree           sums of gradients are taken in a tree, over so many micro_batches of this rank
    base           bytes of Python and its libraries; None: what this process has now
    """
    N, C, V = rows * length, config.n_embd, config.vocab_size
    layer = layer_activations(config, rows, length, pages)
    one = sum(layer.values())
    kept = _F * N * C if recompute else one
    activations = config.n_layer * kept + 3 * _F * N * C          # and those of embedding, ln_f and its output
    logits = _F * N * V
    if pages:                                                     # logits, e^logits, dlogits, and one in between; freed
        head = 4 * logits                                         # before the blocks' backward begins
        masks = 6 if config.dropout else 0                        # three arrays of 64-bit numbers at a time
        work = max(head, _F * N * (6 * config.inner + 2 * C), (4 + masks) * _F * N * config.n_head * length)
        name, head = "logits, or work space of backward", 0
    else:
        head = min(logits, LOGITS_CHUNK) + (_F * N * C if logits > LOGITS_CHUNK else 0)
        work = (2 * config.inner + 3 * C) * _F * N                # the MLP's backward: g, dh, and some of C
        name = "work space of backward"
    work += one if recompute else 0
    parts = {
        "Python and libraries": (resident_bytes() if base is None else base) + (_PAGE if pages else _COMPILED),
        "weights": _F * n_parameters,
        "gradients": _F * n_parameters,
        "gradients waiting in the tree": _F * n_parameters * (_twos(micro_batches) if tree else 0),
        "buckets between ranks": _F * min(_BUCKET, n_parameters) if ranks > 1 else 0,
        "Adam: m and v": 2 * _F * n_parameters // (ranks if shards else 1),
        "activations kept for backward": activations,
        "logits, a chunk at a time": head,
        name: work,
        "copies while a checkpoint is written": 3 * _F * n_parameters if keeps_copies else 0,
    }
    if shards and ranks > 1 and not keeps_copies:  # at the end rank 0 has a whole moment, where activations were
        parts["copies while a checkpoint is written"] = max(0, _F * n_parameters - activations - head - work)
    return MemoryPlan(parts, layer)


def _twos(n):
    """How often 2 divides n."""
    return (n & -n).bit_length() - 1


def tell_memory(plan, plan_with, config, gpt_config, world):
    """One line about the plan; where it does not fit, what would help. `plan_with` is as in `advice`."""
    kinds = {name: f"{megabytes(size)} {name}" for name, size in plan.parts.items() if size}
    layer = f"{megabytes(sum(plan.layer.values()))} a layer{', one at a time' if config.recompute else ''}"
    kinds["activations kept for backward"] += f" ({layer})"
    world.print(f"memory    {megabytes(plan.total)} planned: {', '.join(kinds.values())}")
    available, ranks = available_bytes(), world.host_size
    if available is not None and plan.of_ranks(ranks) > available:
        world.print(f"warning   this machine has {megabytes(available)} left for {ranks} rank(s); what helps:")
        for line in advice(plan_with, available / ranks, config.micro_batch_size, gpt_config.block_size):
            world.print(f"          {line}")


def advice(plan_with, available, rows, length):
    """Lines "--flag: saves so much", what helps most first; `plan_with(**changes)` gives the plan with other values."""
    now = plan_with().total
    options = {
        "--recompute": (plan_with(recompute=True), "a quarter more time"),
        "--checkpoint-every 0": (plan_with(keeps_copies=False), "saves only at the end"),
        "--sum plain": (plan_with(tree=False), "other last bits with other numbers of ranks"),
        "--zero 1": (plan_with(shards=True), "the same bits"),
        f"--block-size {length // 2}": (plan_with(length=length // 2), "a shorter context"),
    }
    fewer = rows // 2
    while fewer:
        options[f"--micro-batch-size {fewer}"] = plan_with(rows=fewer), "the same training"
        fewer //= 2
    helpful = [(now - plan.total, flag, plan.total, price) for flag, (plan, price) in options.items()]
    for saved, flag, total, price in sorted(helpful, reverse=True):
        if saved > 0.02 * now:
            fits = "fits" if total <= available else "still too much"
            yield f"{flag} saves {megabytes(saved)} ({price}): {megabytes(total)}, {fits}"
    least = plan_with(rows=1, recompute=True, keeps_copies=False).total
    fits = "fits" if least <= available else "still too much: take a smaller model, or a machine with more memory"
    yield f"--micro-batch-size 1 --recompute --checkpoint-every 0 together: {megabytes(least)}, {fits}"


def plan_for(config, gpt_config, reference, ranks=1, base=None, **changes):
    """The MemoryPlan of one rank on the CPU; `changes` replace rows, length, recompute, keeps_copies or shards.

    reference      the reference implementations run, not the kernels (ops.runs_reference)
    """
    saves = 0 < config.checkpoint_every < config.steps
    values = dict(rows=config.micro_batch_size, length=gpt_config.block_size, recompute=config.recompute)
    values |= dict(keeps_copies=saves, ranks=ranks, shards=config.zero > 0, tree=config.sum == "tree")
    values["micro_batches"] = config.batch_size // values["rows"] // ranks
    values |= changes
    return plan_memory(gpt_config, gpt_config.count_parameters(), pages=reference, base=base, **values)
