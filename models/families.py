"""The kinds of models, and what each is called in files: to make a config or a model without knowing which it is."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import Any

from models.bigram import Bigram, BigramConfig
from models.config import GPTConfig
from models.gpt import GPT
from models.head_lm import HeadConfig, HeadLanguageModel
from models.language_model import LanguageModel
from models.mlp_lm import MLPConfig, MLPLanguageModel
from models.model_config import ModelConfig
from tinygrad2.cli import option
from tinygrad2.errors import short

FAMILIES: dict[str, tuple[type[LanguageModel], type[ModelConfig]]] = {
    "bigram": (Bigram, BigramConfig),
    "mlp": (MLPLanguageModel, MLPConfig),
    "head": (HeadLanguageModel, HeadConfig),
    "gpt": (GPT, GPTConfig),                                      # also in files without a "family"
}
CONFIGS = [config for _, config in FAMILIES.values()]
PRESETS = {name: {"family": c.family, **values} for c in CONFIGS for name, values in c.presets.items()}

_settings = {f.name: f for f in fields(GPTConfig)} | {f.name: f for c in CONFIGS for f in fields(c)}
ModelFlags = make_dataclass(                                      # all of their fields, as flags of train_gpt2.py
    "ModelFlags", [(f.name, f.type, field(default=f.default, metadata=f.metadata)) for f in _settings.values()]
)


def make_config(family: str = "gpt", **values: Any) -> ModelConfig:
    """The config of a family with some of its fields. Raises ValueError for fields that it does not have, or for values
    that cannot work."""
    config = FAMILIES[family][1]
    for name in values:
        if name not in {f.name for f in fields(config)}:
            raise ValueError(f"{option(name)}: a model of the family {family} has no such setting; leave it out")
    return config(**values)


def config_from_dict(values: Any, source: str = "config") -> ModelConfig:
    """What `to_dict` of a config has returned, checked: raises ValueError naming `source` and the field."""
    family = values.get("family", "gpt") if isinstance(values, dict) else "gpt"
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{source}: family is {short(family)}, not one of {known}; written by a newer version?")
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if name != "family"}
    return FAMILIES[family][1].from_dict(values, source)


def make_model(config: ModelConfig, seed: int | None = None, recompute: bool = False) -> LanguageModel:
    """The model of a config; `seed` fixes its initial weights. Raises UserError if `recompute` is not for it."""
    if isinstance(config, GPTConfig):
        return GPT(config, seed, recompute)
    if recompute:
        config.require_gpt("--recompute")
    model: Any = FAMILIES[config.family][0]
    return model(config, seed)
