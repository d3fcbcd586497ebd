"""From a model on disk, in anybody's form (tinygrad2/interop), to a GPT in memory."""

from dataclasses import replace

from models.config import GPTConfig
from models.gpt import GPT
from tinygrad2.errors import UserError
from tinygrad2.interop.pretrained import open_model
from tinygrad2.interop.shapes import check_shapes
from tinygrad2.module import FlatBuffers


def load_pretrained(path, block_size=None, device="cpu", tokenizer=""):
    """(GPT in evaluation mode, its tokenizer or None, the Pretrained it was made of).

    block_size   crop its context to so many tokens
    tokenizer    file or folder of its tokenizer, where the model does not bring it

    Besides the weights the memory holds one tensor at a time. Raises UserError, one line, for anything wrong.
    """
    found = open_model(path, tokenizer)
    if block_size is not None:
        found.crop(block_size)
    config = config_of(found)
    model = GPT(config)
    FlatBuffers(model, device)                                    # moves the parameters, while they are empty
    load_into(model, found)
    return model.eval(), found.tokenizer, found


def config_of(found):
    """The GPTConfig of a Pretrained, which fits its tensors and its tokenizer. Raises UserError where it does not."""
    try:
        config = GPTConfig.from_dict(found.config, source=found.path)
    except ValueError as error:
        raise UserError(str(error)) from None
    check_shapes(found.tensors, config.to_dict(), found.path)
    if found.tokenizer and found.tokenizer.n_vocab > config.vocab_size:
        raise UserError(f"{found.path}: {found.tokenizer.n_vocab} tokens in the tokenizer, {config.vocab_size} in the "
                        "model; give the tokenizer that it was trained with")
    return config


def load_into(model, found):
    """Copy the weights into a GPT of the same config."""
    model.load_state_dict(_OneByOne(found.tensors))
    for stored in found.tensors.values():
        stored.release()


def config_for_training(path, flags, tokenizer=""):
    """The GPTConfig of a training that begins with the model at `path`; `flags` {field: value} may choose a dropout and
    a shorter block_size, the rest is the model's. Raises UserError where they say otherwise."""
    found = open_model(path, tokenizer)
    if "block_size" in flags:
        found.crop(flags["block_size"])
    config = config_of(found)
    for name, value in flags.items():
        if name != "dropout" and value != getattr(config, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value}: {path} has {getattr(config, name)}, and that cannot be changed any more")
    return replace(config, dropout=flags.get("dropout", config.dropout))


class _OneByOne(dict):
    """Tensors in a file, whose memory is given back when the next one is asked for."""

    last = None

    def __getitem__(self, name):
        if self.last is not None:
            self.last.release()
        self.last = super().__getitem__(name)
        return self.last
