"""How much memory a training will take, computed before it starts, and what would reduce it.

The plan is arithmetic. What a model keeps for backward and needs besides is told by its config (models/model_config.py,
models/gpt_memory.py); tests/test_memory.py compares these sums with what a model really keeps.
"""

from dataclasses import dataclass, replace

from tinygrad2.distributed.reducer import BUCKET
from tinygrad2.system.memory import available_bytes, megabytes, resident_bytes

_F = 4  # bytes of a float32
_COMPILED_OVERHEAD = 50 << 20  # bytes of Numba's machine code and BLAS's buffers once the first step has run
_COMPILING = 0, 60 << 20, 150 << 20  # what LLVM takes in addition to compile them; the last: with the products of gemm/
_REFERENCE_OVERHEAD = 6 << 20  # the same without Numba


@dataclass
class MemoryPlan:
    """The memory of one rank of a training on the CPU. dataclasses.replace(plan, rows=1) is the plan of another one.

    config         ModelConfig
    rows, length   of one micro-batch
    batch_rows     of all micro-batches of this rank in a step; None: there is one micro-batch
    recompute      only the inputs of blocks are kept for backward
    dtype          of --dtype: "bfloat16" if activations wait for backward in 16 bits (saved16.py)
    reference      the reference implementations run, not the kernels
    compiles       which kernels must be compiled first: 0, 1 or 2 (ops.must_compile)
    keeps_copies   checkpoints are written while the training continues
    keeps_every    some of them because of --keep-every
    ranks, shards  number of ranks, and whether they share Adam's moments (--zero 1)
    tree           gradients of micro-batches are summed in a tree
    base           bytes of Python and its libraries; None: what this process has now
    cudnn          attention is cuDNN's (--gpu-attention)
    validates      there is validation between steps; samples: texts are written, in the end at least

    parts          {what: bytes}
    layer          {what: bytes} that one layer (block) keeps for backward
    """

    config: object
    rows: int
    length: int
    batch_rows: int = None
    recompute: bool = False
    dtype: str = "float32"
    reference: bool = False
    compiles: int = 0
    keeps_copies: bool = True
    keeps_every: bool = False
    ranks: int = 1
    shards: bool = False
    tree: bool = True
    base: int = None
    cudnn: bool = False
    validates: bool = False
    samples: bool = False

    device = "cpu"

    def __post_init__(self):
        self.base = resident_bytes() if self.base is None else self.base
        self.layer = self.config.kept(self.rows, self.length, self.reference, self.dtype, self.device)
        self.parts = self._parts()

    @classmethod
    def of(cls, config, model_config, reference, compiles, ranks=1):
        """The plan for a TrainConfig and a ModelConfig; `reference` (ops.runs_reference) and `compiles` as above."""
        return cls(
            model_config, config.micro_batch_size, model_config.block_size, batch_rows=config.batch_size // ranks,
            recompute=config.recompute, dtype=config.dtype, reference=reference, compiles=compiles,
            keeps_copies=any(0 < every < config.steps for every in (config.checkpoint_every, config.keep_every)),
            keeps_every=0 < config.keep_every < config.steps,
            ranks=ranks, shards=config.zero > 0, tree=config.reduce_order == "tree",
            cudnn=config.gpu_attention == "cudnn",
            validates=config.eval_every > 0, samples=config.sample_tokens > 0,
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

    @staticmethod
    def available():
        """Bytes that are free, or None if that is not known."""
        return available_bytes()

    def table(self):
        """The parts as lines: name, size, share of the total."""
        parts = [(name, size) for name, size in self.parts.items() if size]
        lines = [f"{name:42s}{megabytes(size):>12s}{size / self.total:6.0%}" for name, size in parts]
        return [*lines, f"{'together':42s}{megabytes(self.total):>12s}"]

    def waiting_gradients(self, n):
        """Bytes of the partial sums of n gradients that wait in the tree."""
        micro_batches = (self.batch_rows or self.rows) // self.rows
        return _F * n * _twos(micro_batches) if self.tree else 0

    def _parts(self):
        c, n, N = self.config, self.config.count_parameters(), self.rows * self.length
        one_layer, ranks = sum(self.layer.values()), self.ranks
        outside, chunk, work = c.work_space(self.rows, self.length, self.reference, self.dtype)
        activations = c.n_layer * (_F * N * c.n_embd if self.recompute else one_layer) + outside
        work += one_layer if self.recompute else 0
        name = "logits, or work space of backward" if self.reference else "work space of backward"
        overhead = _REFERENCE_OVERHEAD if self.reference else _COMPILED_OVERHEAD
        parts = {
            "Python and libraries": self.base + overhead,
            "compiling the kernels (once)": _COMPILING[self.compiles],
            "weights": _F * n,
            "gradients": _F * n,
            "gradients waiting in the tree": self.waiting_gradients(n),
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
    if plan.device == "cuda":
        print_field("arena", f"{megabytes(plan.arena)} of it in one block after some steps: the arrays of a step")
    available = plan.available()
    if available is not None and plan.of_ranks(ranks) > available:
        where = f"this machine has {megabytes(available)} free for {ranks} rank(s)"
        where = where if plan.device == "cpu" else f"this GPU has {megabytes(available)} free"
        print_field("warning", f"{where}; what helps:")
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
    if plan.config.family != "gpt":
        options = {flag: option for flag, option in options.items() if flag not in ("--recompute", "--dtype bfloat16")}
    rows = plan.rows // 2
    while rows:
        options[f"--micro-batch-size {rows}"] = replace(plan, rows=rows), "the same training"
        rows //= 2
    helpful = [(plan.total - other.total, flag, other.total, price) for flag, (other, price) in options.items()]
    for saved, flag, total, price in sorted(helpful, reverse=True):
        if saved > 0.02 * plan.total:
            fits = "fits" if total <= available else "still too much"
            yield f"{flag} saves {megabytes(saved)} ({price}): {megabytes(total)}, {fits}"
    recompute = "--recompute " if "--recompute" in options else ""
    at_the_end = f"{at_the_end} " if plan.keeps_copies else ""
    least = replace(plan, rows=1, recompute=bool(recompute), keeps_copies=False, tree=False).total
    fits = "fits" if least <= available else "still too much: take a smaller model, or a machine with more memory"
    yield (f"--micro-batch-size 1 {recompute}{at_the_end}--reduce-order plain together: {megabytes(least)}, "
           f"{fits}")
