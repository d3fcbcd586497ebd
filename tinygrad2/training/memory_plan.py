"""How much memory a training will take, computed before it starts, and what would reduce it.

The plan is arithmetic. With N = micro-batch rows x T tokens and C channels, a block keeps for backward, in elements:

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
backward has what one op has kept in float32 once more. Dropout keeps nothing: its masks are computed again. The head's
logits are N x V elements; the kernel has them in chunks of at most 70 MB, the reference implementation all at once,
several times. tests/test_memory.py compares these sums with what a model really keeps.
"""

from dataclasses import dataclass, replace

from tinygrad2.distributed.reducer import BUCKET
from tinygrad2.system.memory import LOGITS_CHUNK, available_bytes, megabytes, resident_bytes

_F = 4  # bytes of a float32
_BYTES = {"float32": _F, "bfloat16": 2}  # of an activation that waits for backward
_COMPILED_OVERHEAD = 50 << 20  # bytes of Numba's machine code and BLAS's buffers once the first step has run
_COMPILING = 60 << 20  # and what LLVM takes in addition in the process that compiles them
_REFERENCE_OVERHEAD = 6 << 20  # the same without Numba


@dataclass
class MemoryPlan:
    """The memory of one rank of a training on the CPU. dataclasses.replace(plan, rows=1) is the plan of another one.

    config         GPTConfig
    rows, length   of one micro-batch
    batch_rows     of all micro-batches of this rank in a step; None: there is one micro-batch
    recompute      only the inputs of blocks are kept for backward
    dtype          of --dtype: "bfloat16" if activations wait for backward in 16 bits (saved16.py)
    reference      the reference implementations run, not the kernels
    compiles       the kernels must be compiled first (ops.must_compile)
    keeps_copies   checkpoints are written while the training continues
    keeps_every    some of them because of --keep-every
    ranks, shards  number of ranks, and whether they share Adam's moments (--zero 1)
    tree           gradients of micro-batches are summed in a tree
    base           bytes of Python and its libraries; None: what this process has now

    parts          {what: bytes}
    layer          {what: bytes} that one block keeps for backward
    """

    config: object
    rows: int
    length: int
    batch_rows: int = None
    recompute: bool = False
    dtype: str = "float32"
    reference: bool = False
    compiles: bool = False
    keeps_copies: bool = True
    keeps_every: bool = False
    ranks: int = 1
    shards: bool = False
    tree: bool = True
    base: int = None

    def __post_init__(self):
        self.base = resident_bytes() if self.base is None else self.base
        self.layer = layer_activations(self.config, self.rows, self.length, self.reference, self.dtype)
        self.parts = self._parts()

    @classmethod
    def of(cls, config, gpt_config, reference, compiles, ranks=1):
        """The plan for a TrainConfig and a GPTConfig; `reference` (ops.runs_reference) and `compiles` as above."""
        return cls(
            gpt_config, config.micro_batch_size, gpt_config.block_size, batch_rows=config.batch_size // ranks,
            recompute=config.recompute, dtype=config.dtype, reference=reference, compiles=compiles,
            keeps_copies=any(0 < every < config.steps for every in (config.checkpoint_every, config.keep_every)),
            keeps_every=0 < config.keep_every < config.steps,
            ranks=ranks, shards=config.zero > 0, tree=config.reduce_order == "tree",
        )  # fmt: skip

    @property
    def total(self):
        """Bytes at the peak."""
        return sum(self.parts.values())

    def of_ranks(self, ranks):
        """Bytes of this many ranks on one host, without this one's Python and libraries. Checkpoints are written by
        rank 0 only."""
        one = self.total - self.parts["Python and libraries"]
        return ranks * one - (ranks - 1) * self.parts["copies while a checkpoint is written"]

    def table(self):
        """The parts as lines: name, size, share of the total."""
        parts = [(name, size) for name, size in self.parts.items() if size]
        lines = [f"{name:42s}{megabytes(size):>12s}{size / self.total:6.0%}" for name, size in parts]
        return [*lines, f"{'together':42s}{megabytes(self.total):>12s}"]

    def _parts(self):
        c, n, N = self.config, self.config.count_parameters(), self.rows * self.length
        C, one_layer, ranks = c.n_embd, sum(self.layer.values()), self.ranks
        kept = _F * N * C if self.recompute else one_layer
        activations = c.n_layer * kept + 3 * _F * N * C               # and those of embedding, ln_f and its output
        logits = _F * N * c.vocab_size
        if self.reference:
            masks = 6 if c.dropout else 0                             # three arrays of 64-bit integers at a time
            attention = (4 + masks) * _F * N * c.n_head * self.length
            work = max(4 * logits, _F * N * (6 * c.inner + 2 * C), attention)     # logits: they, e^logits, dlogits, and
                                                                      # one more, freed before backward is in the blocks
            if self.dtype == "bfloat16":                              # rounding the largest operand, step by step
                work += 6 * max(logits, _F * N * c.inner, _F * c.vocab_size * C)
            name, chunk, overhead = "logits, or work space of backward", 0, _REFERENCE_OVERHEAD
        else:
            chunk = min(logits, LOGITS_CHUNK) + (_F * N * C if logits > LOGITS_CHUNK else 0)
            work = (2 * c.inner + 3 * C) * _F * N                     # the MLP's backward: g, dh, and three of C
            name, overhead = "work space of backward", _COMPILED_OVERHEAD
        work += one_layer if self.recompute else 0
        work += _F * N * (c.inner + C) if self.dtype == "bfloat16" else 0     # x and h of an MLP in float32 again
        micro_batches = (self.batch_rows or self.rows) // self.rows
        parts = {
            "Python and libraries": self.base + overhead,
            "compiling the kernels (once)": _COMPILING if self.compiles else 0,
            "weights": _F * n,
            "gradients": _F * n,
            "gradients waiting in the tree": _F * n * (_twos(micro_batches) if self.tree else 0),
            "buckets between ranks": _F * min(BUCKET, n) if ranks > 1 else 0,
            "Adam: m and v": 2 * _F * n // (ranks if self.shards else 1),
            "activations kept for backward": activations,
            "logits, a chunk at a time": chunk,
            name: work,
            "copies while a checkpoint is written": 3 * _F * n if self.keeps_copies else 0,
        }
        if self.shards and ranks > 1 and not self.keeps_copies:
            # In the end rank 0 has an Adam moment in the activations' memory.
            parts["copies while a checkpoint is written"] = max(0, _F * n - activations - chunk - work)
        return parts


def layer_activations(config, rows, length, reference, dtype="float32"):
    """{what: bytes} that one block keeps for backward, for `rows` sequences of `length` tokens."""
    N, C, nh, size = rows * length, config.n_embd, config.n_head, _BYTES[dtype]
    return {
        "ln_1: input": size * N * C,
        "c_attn: input": size * N * C,
        "attention: q, k, v": size * 3 * N * C,
        "attention: output": size * N * C,
        "attention: weights": size * N * nh * length if reference else _F * N * nh,
        "ln_2: x + attention": size * N * C,
        "mlp: input": size * N * C,
        "mlp: h": size * N * config.inner,
        "layernorms: mean and rstd": _F * 4 * N,
    }


def _twos(n):
    """How often 2 divides n."""
    return (n & -n).bit_length() - 1


def print_memory(plan, ranks, print_field):
    """The plan in one field; if so many ranks do not fit into the free memory of this host, what would help.

    print_field    print_field(name, *items) of report.py
    """
    sizes = {name: f"{megabytes(size)} {name}" for name, size in plan.parts.items() if size}
    layer = f"{megabytes(sum(plan.layer.values()))} a layer{', one at a time' if plan.recompute else ''}"
    sizes["activations kept for backward"] += f" ({layer})"
    first, *others = sizes.values()
    print_field("memory", f"{megabytes(plan.total)} planned: {first}", *others)
    available = available_bytes()
    if available is not None and plan.of_ranks(ranks) > available:
        print_field("warning", f"this machine has {megabytes(available)} free for {ranks} rank(s); what helps:")
        for line in advice(plan, available / ranks):
            print_field("", line)


def advice(plan, available):
    """Lines "--flag saves ... MB", the greatest saving first, for a rank that may have `available` bytes."""
    length = plan.length // 2
    at_the_end = "--checkpoint-every 0 --keep-every 0" if plan.keeps_every else "--checkpoint-every 0"
    options = {
        "--recompute": (replace(plan, recompute=True), "a quarter more time"),
        "--dtype bfloat16": (replace(plan, dtype="bfloat16"), "products of 8 significant bits"),
        at_the_end: (replace(plan, keeps_copies=False), "saves only at the end"),
        "--reduce-order plain": (replace(plan, tree=False), "other last bits with other numbers of ranks"),
        "--zero 1": (replace(plan, shards=True), "the same bits"),
        f"--block-size {length}": (replace(plan, length=length), "a shorter context"),
    }
    rows = plan.rows // 2
    while rows:
        options[f"--micro-batch-size {rows}"] = replace(plan, rows=rows), "the same training"
        rows //= 2
    helpful = [(plan.total - other.total, flag, other.total, price) for flag, (other, price) in options.items()]
    for saved, flag, total, price in sorted(helpful, reverse=True):
        if saved > 0.02 * plan.total:
            fits = "fits" if total <= available else "still too much"
            yield f"{flag} saves {megabytes(saved)} ({price}): {megabytes(total)}, {fits}"
    least = replace(plan, rows=1, recompute=True, keeps_copies=False, tree=False).total
    fits = "fits" if least <= available else "still too much: take a smaller model, or a machine with more memory"
    yield (f"--micro-batch-size 1 --recompute {at_the_end} --reduce-order plain together: {megabytes(least)}, "
           f"{fits}")
