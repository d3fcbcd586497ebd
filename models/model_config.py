"""ModelConfig: what the configs of all models have in common. models/families.py lists the models."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from tinygrad2.cli import flag
from tinygrad2.errors import UserError

_LARGEST = 1 << 27  # of a size: arrays of two such axes still have a number of bytes that NumPy can count
_Config = TypeVar("_Config", bound="ModelConfig")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a model computes. Raises ValueError, naming the field, for values that cannot work.

    A subclass adds fields, and says what a model of this config is made of and what it takes to train it:

    family      its name in files and in models/families.py
    sizes       the fields that are numbers of at least 1
    newer       fields that the first files of this family do not have
    presets     {name: fields}, for `--model NAME`
    n_layer     how many equal layers there are
    """

    family: ClassVar[str] = ""
    sizes: ClassVar[tuple[str, ...]] = ("block_size", "vocab_size")
    newer: ClassVar[frozenset[str]] = frozenset()
    presets: ClassVar[dict[str, dict[str, int]]] = {}
    n_layer = 1

    block_size: int = flag(128, "longest context, in tokens; also the length of the rows of a batch")
    vocab_size: int = flag(1024, "number of different tokens the model knows")

    def __post_init__(self):
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{f.name} must be of type {kind.__name__}, not {value!r}")
        for name in self.sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for f in fields(self):
            if type(f.default) is int and getattr(self, f.name) > _LARGEST:
                raise ValueError(f"{f.name} must be at most {_LARGEST}, not {getattr(self, f.name)}")

    # -- files and presets ---------------------------------------------------------------------------------------------

    @classmethod
    def preset(cls: type[_Config], name: str, **overrides: Any) -> _Config:
        """One of the presets, with some fields replaced. Raises ValueError for an unknown name."""
        if name not in cls.presets:
            raise ValueError(f"there is no model {name!r}; the presets are {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **overrides})

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the family; files without one hold a GPT."""
        return asdict(self) | ({} if self.family == "gpt" else {"family": self.family})

    @classmethod
    def from_dict(cls: type[_Config], values: Any, source: str = "config") -> _Config:
        """Checked: raises ValueError naming `source` and the field for unknown, missing or impossible entries."""
        if not isinstance(values, dict):
            raise ValueError(f"{source}: the config is not an object with fields but {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{source}: unknown config field {name!r}; written by a newer version?")
        for name in sorted(known - set(values) - cls.newer):
            raise ValueError(f"{source}: config field {name!r} is missing")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    # -- what it is made of --------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Its sizes in a few words, for the user."""
        raise NotImplementedError

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of all parameters."""
        raise NotImplementedError

    def count_parameters(self) -> int:
        """How many parameters a model of this config has, without making one."""
        return sum(map(math.prod, self.shapes().values()))

    # -- what a training takes -----------------------------------------------------------------------------------------

    def train_flops_per_token(self) -> int:
        """Floating point operations in matrix products per token of forward and backward: 6 per weight of a matrix."""
        raise NotImplementedError

    def kept(self, rows: int, length: int, reference: bool, dtype: str = "float32", device: str = "cpu",
             ) -> dict[str, int]:
        """{what: bytes} that one layer keeps for backward, for `rows` sequences of `length` tokens.

        reference    the reference implementations run, not the kernels
        dtype        of --dtype: "bfloat16" or "float16" if activations wait in 16 bits
        device       of --device: on a GPU the residual stream waits in 32 bits
        """
        raise NotImplementedError

    def work_space(self, rows: int, length: int, reference: bool, dtype: str = "float32", device: str = "cpu",
                   ) -> tuple[int, int, int]:
        """Bytes of (what is kept besides the layers, logits that exist at a time, temporaries of backward)."""
        raise NotImplementedError

    def require_gpt(self, what: str, remedy: str = "leave it out") -> None:
        """Raises UserError if it is not a GPT; `what` is the flag or command that works for nothing else."""
        if self.family != "gpt":
            raise UserError(f"{what}: is for a GPT, and this model is of the family {self.family}; {remedy}")
