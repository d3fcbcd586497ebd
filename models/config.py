"""GPTConfig: the shape of a GPT, and its presets.

    GPTConfig.preset("gpt2")                      the 124M model of the paper
    GPTConfig.preset("gpt2", n_layer=6)           the same, six layers deep
"""

from __future__ import annotations

from dataclasses import dataclass

from models.gpt_memory import forward_space_of_gpt, kept_by_block, work_space_of_gpt
from models.model_config import ModelConfig
from tinygrad2.cli import flag
from tinygrad2.interop.shapes import shapes_of

ACTIVATIONS = ("gelu", "gelu_erf")
_PRESETS = {
    # name              context           vocabulary          layers        heads         width
    "block":       dict(block_size=128,   vocab_size=1024,    n_layer=1,    n_head=8,     n_embd=128),
    "demo":        dict(block_size=128,   vocab_size=1024,    n_layer=2,    n_head=8,     n_embd=128),
    "baby":        dict(block_size=256,   vocab_size=2048,    n_layer=6,    n_head=6,     n_embd=384),
    "gpt2":        dict(block_size=1024,  vocab_size=50257,   n_layer=12,   n_head=12,    n_embd=768),   # 124M
    "gpt2-medium": dict(block_size=1024,  vocab_size=50257,   n_layer=24,   n_head=16,    n_embd=1024),  # 350M
    "gpt2-large":  dict(block_size=1024,  vocab_size=50257,   n_layer=36,   n_head=20,    n_embd=1280),  # 774M
    "gpt2-xl":     dict(block_size=1024,  vocab_size=50257,   n_layer=48,   n_head=25,    n_embd=1600),  # 1558M
}  # fmt: skip


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """Everything that decides what a GPT computes. Raises ValueError, naming the field, for values that cannot work."""

    family = "gpt"
    sizes = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    newer = frozenset({"n_inner", "norm_eps"})
    presets = _PRESETS

    block_size: int = flag(1024, "longest context, in tokens; also the length of the rows of a batch")
    vocab_size: int = flag(50257, "number of different tokens the model knows")
    n_layer: int = flag(12, "number of blocks")
    n_head: int = flag(12, "attention heads per block; must divide n_embd")
    n_embd: int = flag(768, "width: channels per token between the blocks")
    dropout: float = flag(0.0, "fraction of values dropped in training (embedding, attention, residual)")
    bias: bool = flag(True, "biases in linear layers and layernorms, as in GPT-2")
    tied_head: bool = flag(True, "the head that makes logits is the token embedding, transposed")
    activation: str = flag("gelu", "gelu: tanh form, as GPT-2; gelu_erf: exact", choices=ACTIVATIONS)
    n_inner: int = flag(0, "width inside the MLP; 0 means 4 n_embd, as in GPT-2")
    norm_eps: float = flag(1e-5, "what layernorms add to the variance before its root")

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head = {self.n_head} does not divide n_embd = {self.n_embd}; heads have equal widths")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.n_inner < 0:
            raise ValueError(f"n_inner must be at least 1, or 0 for 4 n_embd, not {self.n_inner}")
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps must be above 0 and below 1, not {self.norm_eps}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")

    @property
    def inner(self) -> int:
        """Width inside the MLP."""
        return self.n_inner or 4 * self.n_embd

    def describe(self) -> str:
        return (f"{self.n_layer} layers, {self.n_head} heads, {self.n_embd} channels, {self.block_size} positions, "
                f"{self.vocab_size:,} tokens")  # fmt: skip

    def shapes(self):
        return shapes_of(self.to_dict())

    def count_parameters(self) -> int:
        C, H = self.n_embd, self.inner
        matrices = 3 * C * C + C * C + C * H + H * C              # c_attn, attn.c_proj, c_fc, mlp.c_proj
        biases = 3 * C + C + H + C + 2 * C if self.bias else 0    # theirs, and those of two layernorms
        tables = self.vocab_size * (1 if self.tied_head else 2) + self.block_size
        final = 2 * C if self.bias else C                         # ln_f
        return tables * C + self.n_layer * (matrices + biases + 2 * C) + final

    def train_flops_per_token(self) -> int:
        """6 per weight in a matrix, and attention's T x T.

            6 (N - N_position) + 12 n_layer n_embd block_size        Chowdhery et al., "PaLM", 2022, appendix B
        """
        c = self
        return 6 * (c.count_parameters() - c.block_size * c.n_embd) + 12 * c.n_layer * c.n_embd * c.block_size

    def kept(self, rows, length, reference, dtype="float32", device="cpu"):
        return kept_by_block(self, rows, length, reference, dtype, device)

    def work_space(self, rows, length, reference, dtype="float32", device="cpu"):
        return work_space_of_gpt(self, rows, length, reference, dtype, device)

    def forward_space(self, rows, length, dtype="float32"):
        return forward_space_of_gpt(self, rows, length, dtype)
