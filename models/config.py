"""GPTConfig: the shape of a GPT, and the table of presets.

    GPTConfig.preset("gpt2")                      the 124M model of the paper
    GPTConfig.preset("gpt2", n_layer=6)           the same, six layers deep
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from tinygrad2.cli import flag

ACTIVATIONS = ("gelu", "gelu_erf")
_LARGEST = 1 << 27  # of a size: arrays of two such axes still have a number of bytes that NumPy can count
_NEWER = {"n_inner", "norm_eps"}  # fields that the first weights files do not have


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides what a GPT computes. Raises ValueError, naming the field, for values that cannot work."""

    block_size: int = flag(1024, "longest context, in tokens")
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
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{f.name} must be of type {kind.__name__}, not {value!r}")
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "n_inner"):
            if getattr(self, name) > _LARGEST:
                raise ValueError(f"{name} must be at most {_LARGEST}, not {getattr(self, name)}")
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

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GPTConfig:
        """A row of the table below, with some fields replaced. Raises ValueError for an unknown name."""
        if name not in PRESETS:
            raise ValueError(f"there is no model {name!r}; the presets are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def inner(self) -> int:
        """Width inside the MLP."""
        return self.n_inner or 4 * self.n_embd

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def count_parameters(self) -> int:
        """How many parameters a model of this shape has, without making one."""
        C, H = self.n_embd, self.inner
        matrices = 3 * C * C + C * C + C * H + H * C              # c_attn, attn.c_proj, c_fc, mlp.c_proj
        biases = 3 * C + C + H + C + 2 * C if self.bias else 0    # theirs, and those of two layernorms
        tables = self.vocab_size * (1 if self.tied_head else 2) + self.block_size
        final = 2 * C if self.bias else C                         # ln_f
        return tables * C + self.n_layer * (matrices + biases + 2 * C) + final

    @classmethod
    def from_dict(cls, values: Any, source: str = "config") -> GPTConfig:
        """Checked: raises ValueError naming `source` and the field for unknown, missing or impossible entries."""
        if not isinstance(values, dict):
            raise ValueError(f"{source}: the config is not an object with fields but {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{source}: unknown config field {name!r}; written by a newer version?")
        for name in sorted(known - set(values) - _NEWER):
            raise ValueError(f"{source}: config field {name!r} is missing")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None


PRESETS = {
    # name              context           vocabulary          layers        heads         width
    "demo":        dict(block_size=128,   vocab_size=1024,    n_layer=2,    n_head=8,     n_embd=128),
    "baby":        dict(block_size=256,   vocab_size=2048,    n_layer=6,    n_head=6,     n_embd=384),
    "gpt2":        dict(block_size=1024,  vocab_size=50257,   n_layer=12,   n_head=12,    n_embd=768),   # 124M
    "gpt2-medium": dict(block_size=1024,  vocab_size=50257,   n_layer=24,   n_head=16,    n_embd=1024),  # 350M
    "gpt2-large":  dict(block_size=1024,  vocab_size=50257,   n_layer=36,   n_head=20,    n_embd=1280),  # 774M
    "gpt2-xl":     dict(block_size=1024,  vocab_size=50257,   n_layer=48,   n_head=25,    n_embd=1600),  # 1558M
}  # fmt: skip


def train_flops_per_token(config: GPTConfig) -> int:
    """Floating point operations per token of forward and backward: 6 per weight in a matrix, and attention's T x T.

        6 (N - N_position) + 12 n_layer n_embd block_size            Chowdhery et al., "PaLM", 2022, appendix B
    """
    c = config
    return 6 * (c.count_parameters() - c.block_size * c.n_embd) + 12 * c.n_layer * c.n_embd * c.block_size
