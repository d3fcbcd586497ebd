"""A model on disk, in whatever form it is.

`open_model` tells by content what a path is:

    trained_weights.bin            ours (weights.py)
    a folder with config.json      Hugging Face (hf.py); also its model.safetensors alone
    int32 20240326                 llm.c (llmc.py)
    a zip file                     torch.save's, as nanoGPT makes them (nanogpt.py)
"""

import os
from dataclasses import dataclass, field

from tinygrad2.datasets.token_files import FOREIGN, HEADERED
from tinygrad2.errors import UserError
from tinygrad2.interop import hf, llmc, nanogpt
from tinygrad2.io.files import CorruptFile, first_bytes
from tinygrad2.io.lazy_tensor import LazyTensor
from tinygrad2.io.safetensors import open_container
from tinygrad2.io.weights import load_weights
from tinygrad2.tokenizers.formats import TOKENIZER_FILES
from tinygrad2.tokenizers.load import load_tokenizer, tokenizer_from_json


@dataclass
class Pretrained:
    """A model on disk, checked but not yet read.

    kind        whose form it is in
    tensors     {our name: LazyTensor}, in our orientation
    config      fields of GPTConfig
    tokenizer   a tokenizer, or None where none is known
    notes       lines that the user should see
    training    what our own file remembers of its training
    eos         id of the token with which its texts end, where the model says so
    """

    path: str
    kind: str
    tensors: dict
    config: dict
    tokenizer: object = None
    notes: list = field(default_factory=list)
    training: dict = field(default_factory=dict)
    eos: int | None = None

    @property
    def end(self):
        """Id of the token that ends a text: the model's word, or its tokenizer's; None where neither has one."""
        return self.tokenizer.eot if self.eos is None and self.tokenizer else self.eos

    @property
    def trained_here(self):
        """Was it trained by this program (and not only converted)?"""
        return self.kind == "tinygrad2" and "converted_from" not in self.training

    def crop(self, block_size):
        """Make its context shorter: the rows of wpe behind are dropped. Raises UserError where it would be longer."""
        longest = self.config["block_size"]
        if block_size > longest:
            raise UserError(f"--block-size {block_size}: {self.path} has learned {longest} positions and can only be "
                            f"cropped; use {longest} or less")
        if block_size < longest and "wpe.weight" in self.tensors:
            self.tensors["wpe.weight"] = self.tensors["wpe.weight"].first(block_size)
            self.config = self.config | {"block_size": block_size}


def open_model(path, tokenizer=""):
    """The Pretrained at `path`; `tokenizer` names a file or folder with its tokenizer, "" means: beside it, or none.

    Raises UserError, one line, for anything that is no whole model.
    """
    path = str(path)
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder; train first (python train_gpt2.py), fetch GPT-2 "
                        "(python data/gpt2/prepare.py), or give the path of a model")
    kind = "Hugging Face" if os.path.isdir(path) else kind_of_model(path)
    if kind == "tinygrad2":
        weights = load_weights(path)
        found = Pretrained(path, kind, {name: LazyTensor.of(array) for name, array in weights.tensors.items()},
                           weights.config, training=weights.training)  # fmt: skip
        eos, V = weights.training.get("eos"), weights.config.get("vocab_size")
        found.eos = eos if type(eos) is type(V) is int and 0 <= eos < V else None
        own = weights.tokenizer
    else:
        found, own = _of_others(path, kind), ""
    found.tokenizer = _tokenizer(found, own, tokenizer)
    return found


def _of_others(path, kind):
    if kind == "llm.c":
        return Pretrained(path, kind, *llmc.read_model(path)[:2])
    if kind == "nanoGPT":
        try:
            return Pretrained(path, kind, *nanogpt.read_nanogpt(path))
        except nanogpt.NoCheckpoint:
            if not os.path.exists(os.path.join(os.path.dirname(path), "config.json")):
                raise  # else it is Hugging Face's pytorch_model.bin
    tensors, config, notes, eos = (hf.read_folder if os.path.isdir(path) else hf.read_file)(path)
    return Pretrained(path, "Hugging Face", tensors, config, None, notes, eos=eos)


def kind_of_model(path):
    """"tinygrad2", "Hugging Face", "llm.c" or "nanoGPT", by a file's first bytes. Raises UserError for others."""
    head = first_bytes(path)
    magic = int.from_bytes(head[:4], "little")
    if magic == llmc.MODEL:
        return "llm.c"
    if head.startswith(b"PK\3\4"):
        return "nanoGPT"
    if head[8:].lstrip().startswith(b"{"):
        try:
            return "tinygrad2" if "tinygrad2" in open_container(path).metadata else "Hugging Face"
        except CorruptFile:
            return "tinygrad2"  # it will say what is broken
    if magic in FOREIGN or magic in HEADERED:
        what = FOREIGN.get(magic, "a file of tokens")
        raise UserError(f"{path}: is {what}, not a model; give the model's own path")
    if head.startswith(b"\x80"):
        raise UserError(f"{path}: is a bare pickle, which could run anything; save it with torch 1.6 or later, or as "
                        "safetensors")
    raise UserError(f"{path}: is no model that is known here (tinygrad2, Hugging Face, llm.c, nanoGPT); its first "
                    f"bytes are {head[:8]!r}; copy it again, or check the path")


def _tokenizer(found, own, given):
    if given:
        return load_tokenizer(given)
    if own:
        return tokenizer_from_json(own, found.path)
    if found.kind == "tinygrad2":
        return None
    folder = found.path if os.path.isdir(found.path) else os.path.dirname(found.path) or "."
    if not any(os.path.exists(os.path.join(folder, name)) for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        found.notes.append(f"the tokenizer beside it cannot be used ({error}); give one with --tokenizer")
        return None
    if tokenizer.n_vocab > found.config["vocab_size"]:
        found.notes.append(f"the tokenizer beside it is not its own: {tokenizer.n_vocab:,} tokens, the model has "
                           f"{found.config['vocab_size']:,}; give one with --tokenizer")
        return None
    if tokenizer.n_vocab < found.config["vocab_size"] and not os.path.isdir(found.path):
        found.notes.append(f"the tokenizer beside it is taken for its own: {tokenizer.n_vocab:,} tokens, the model has "
                           f"{found.config['vocab_size']:,} rows; if it is not, give another with --tokenizer")
    return tokenizer
