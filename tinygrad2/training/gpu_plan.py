"""How much memory of the GPU a training will take: the plan of memory_plan.py, for --device cuda."""

from tinygrad2.gpu.device import count_gpus, free_memory
from tinygrad2.system.memory import megabytes
from tinygrad2.training.memory_plan import MemoryPlan

_F = 4  # bytes of a float32
_CUDA = 600 << 20  # bytes of CUDA itself, its libraries and the compiled kernels: an estimate, other GPUs take others
_WORKSPACE = 32 << 20  # bytes that cuBLASLt may use
_OF_A_STEP = "activations kept for backward", "logits, a chunk at a time", "work space of backward"


class GpuPlan(MemoryPlan):
    """The memory of the GPU that one rank uses. Checkpoints are copied on the host."""

    device = "cuda"

    def __post_init__(self):
        self.base, self.keeps_copies = 0, False
        super().__post_init__()

    def _parts(self):
        c, n, N = self.config, self.config.count_parameters(), self.rows * self.length
        one_layer = sum(self.layer.values())
        outside, chunk, work = c.work_space(self.rows, self.length, self.reference, self.dtype, self.device)
        recompute = one_layer if self.recompute else 0
        return {
            "CUDA, its libraries and kernels (estimate)": _CUDA,
            "weights": _F * n,
            "weights in 16 bits": 2 * n if self.dtype != "float32" and not self.reference else 0,
            "gradients": _F * n,
            "gradients waiting in the tree": self.waiting_gradients(n),
            "Adam: m and v": 2 * _F * n // (self.ranks if self.shards else 1),
            "activations kept for backward": c.n_layer * (_F * N * c.n_embd if recompute else one_layer) + outside,
            "logits, a chunk at a time": chunk,
            "work space of backward": work + recompute,
            "work space of products": _WORKSPACE,
            "work space of cuDNN's attention (estimate)": self._cudnn() if self.cudnn else 0,
            "validation and samples": self._between_steps(),
        }

    def _between_steps(self):
        """Bytes of what runs between steps, beside their arena. Samples have a cache for one text."""
        c, dtype = self.config, "float32" if self.reference else self.dtype
        if c.family != "gpt":                                     # no more than backward of a step
            return sum(c.work_space(self.rows, self.length, False, dtype, "cuda")[1:]) if self.validates else 0
        validation = c.forward_space(self.rows, self.length, dtype) if self.validates else 0
        if not self.samples:
            return validation
        cache = 2 * c.n_layer * self.length * c.n_embd * (_F if dtype == "float32" else 2)
        return max(validation, cache + c.forward_space(1, self.length, dtype))

    def _cudnn(self):
        """Bytes that the deterministic backward of one layer may take: ds of all heads in 16 bits, whose sides are
        filled up to 64, and two numbers for each row."""
        B, nh, T = self.rows, self.config.n_head, -(-self.length // 64) * 64
        return B * nh * T * (2 * T + 2 * _F)

    def of_ranks(self, ranks):
        """Bytes of the GPU that most ranks share; as a rule each has its own."""
        return self.total * -(-ranks // count_gpus())

    @property
    def arrays(self):
        """Bytes of all arrays together: what CuPy's pool of memory takes."""
        return self.total - _CUDA

    @property
    def arena(self):
        """Bytes of the arrays of a step, which lie in one block once some steps have shown where (gpu/arena.py)."""
        return sum(self.parts[name] for name in _OF_A_STEP)

    def table(self):
        return [*super().table(), f"{'of these in one block, the arena':42s}{megabytes(self.arena):>12s}"]

    @staticmethod
    def available():
        """Bytes of this GPU that are free, None where there is none."""
        return free_memory()


def plan_for(config):
    """The class of the plan for a TrainConfig."""
    return MemoryPlan if config.device == "cpu" else GpuPlan
