"""From a model on disk, in any supported format (tinygrad2/interop), to a model in memory."""

import os
from dataclasses import replace
from typing import Any

from models.families import config_from_dict, make_model
from models.language_model import LanguageModel
from models.model_config import ModelConfig
from tinygrad2.cli import option
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.interop.pretrained import Pretrained, open_model
from tinygrad2.interop.shapes import check_shapes


def load_pretrained(
    path: str | os.PathLike, block_size: int | None = None, device: str = "cpu", tokenizer: str = ""
) -> tuple[LanguageModel, Any, Pretrained]:
    """(model in evaluation mode, its tokenizer or None, the Pretrained it was made from).

    block_size   crop its context to this many tokens
    device       "cpu" or "cuda"
    tokenizer    file or folder of its tokenizer, if the model does not include one

    Besides the weights, memory holds one tensor at a time. Raises UserError, one line, for what cannot be used.
    """
    pretrained = open_model(path, tokenizer)
    if block_size is not None:
        pretrained.crop(block_size)
    model = make_model(config_of(pretrained))
    FlatBuffers(model, device)                                    # moves the parameters, while they are empty
    load_into(model, pretrained)
    return model.eval(), pretrained.tokenizer, pretrained


def config_of(pretrained: Pretrained) -> ModelConfig:
    """The config of a Pretrained. Raises UserError if it does not fit the tensors, or the tokenizer."""
    try:
        config = config_from_dict(pretrained.config, source=pretrained.path)
    except ValueError as error:
        raise UserError(str(error)) from None
    check_shapes(pretrained.tensors, config, pretrained.path)
    if pretrained.tokenizer and pretrained.tokenizer.n_vocab > config.vocab_size:
        raise UserError(f"{pretrained.path}: {pretrained.tokenizer.n_vocab} tokens in the tokenizer, "
                        f"{config.vocab_size} in the model; pass the tokenizer that it was trained with")  # fmt: skip
    return config


def load_into(model: LanguageModel, pretrained: Pretrained) -> None:
    """Copy the weights into a model of the same config, in place."""
    model.load_state_dict(pretrained.tensors)


def config_for_training(path: str | os.PathLike, flags: dict[str, Any], tokenizer: str = "") -> ModelConfig:
    """The config of a training that starts from the model at `path`.

    `flags` {field: value} may choose a dropout and a shorter block_size. Raises UserError if any other field differs
    from the model's.
    """
    pretrained = open_model(path, tokenizer)
    if "block_size" in flags:
        pretrained.crop(flags["block_size"])
    config = config_of(pretrained)
    fields = config.to_dict()
    for name, value in flags.items():
        if name not in fields:
            raise UserError(f"{option(name)}: {path}, a model of the family {config.family}, has no such setting; "
                            "leave it out")  # fmt: skip
        if name != "dropout" and value != fields[name]:
            raise UserError(f"{option(name)} {value}: {path} has {fields[name]}, which can no longer be changed")
    return replace(config, **{name: value for name, value in flags.items() if name == "dropout"})
