"""A model on disk, in any supported format, which `open_model` recognizes by content:

    trained_weights.bin            ours (io/weights.py)
    a folder with config.json      Hugging Face (hf.py); also its model.safetensors alone
    int32 20240326                 llm.c (llmc.py)
    a zip file                     torch.save's, as nanoGPT writes it (nanogpt.py)
"""

import os
from dataclasses import dataclass, field
from typing import Any

from tinygrad2.datasets.token_files import HEADERED
from tinygrad2.errors import UserError
from tinygrad2.interop import hf, llmc, nanogpt
from tinygrad2.io.files import CorruptFile, first_bytes
from tinygrad2.io.lazy_tensor import LazyTensor
from tinygrad2.io.safetensors import open_container
from tinygrad2.io.signatures import LOOK, recognize
from tinygrad2.io.weights import load_weights
from tinygrad2.tokenizers.hf_settings import has_chat_template
from tinygrad2.tokenizers.load import find_in_folder, load_tokenizer, tokenizer_from_json
from tinygrad2.tokenizers.mapped import MappedTokenizer


@dataclass
class Pretrained:
    """A model on disk, checked but not yet read.

    kind        its format: "tinygrad2", "Hugging Face", "llm.c" or "nanoGPT"
    tensors     {our name: LazyTensor}, in our orientation
    config      {field of GPTConfig, or of another model's config: value}
    tokenizer   a tokenizer, or None if none is known
    notes       lines for the user
    training    what our own file records about the training
    eos         ids of the tokens that end its texts, if the model names any
    bos         id of the token that begins its texts, if the model names one
    """

    path: str
    kind: str
    tensors: dict[str, LazyTensor]
    config: dict[str, Any]
    tokenizer: Any = None
    notes: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    eos: tuple[int, ...] = ()
    bos: int | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text: the model's, else its tokenizer's; empty if neither names one."""
        eot = self.tokenizer.eot if self.tokenizer else None
        return self.eos or (() if eot is None else (eot,))

    @property
    def end(self) -> int | None:
        """The first of them, or None."""
        return self.ends[0] if self.ends else None

    @property
    def start(self) -> int | None:
        """Id of the token that begins a text: the model's, else its tokenizer's end-of-text token; None without."""
        return self.bos if self.bos is not None else self.tokenizer.eot if self.tokenizer else None

    @property
    def trained_here(self) -> bool:
        """Was it trained by this program (and not only converted)?"""
        return self.kind == "tinygrad2" and "converted_from" not in self.training

    def crop(self, block_size: int) -> None:
        """Shorten its context: the rows of wpe (if there is one) from block_size on are dropped. Raises UserError if it
        would grow."""
        longest = self.config["block_size"]
        if block_size > longest:
            raise UserError(f"--block-size {block_size}: {self.path} has {longest} positions and can only be cropped; "
                            f"use {longest} or less")
        if block_size < longest:
            if "wpe.weight" in self.tensors:
                self.tensors["wpe.weight"] = self.tensors["wpe.weight"].first(block_size)
            self.config = self.config | {"block_size": block_size}


def open_model(path: str | os.PathLike, tokenizer: str = "") -> Pretrained:
    """The Pretrained at `path`; `tokenizer` names a file or folder with its tokenizer, "" means: next to it, or none.

    Raises UserError, one line, for anything that is not a complete model of a supported format.
    """
    path = str(path)
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder; train first (python train_gpt2.py), fetch GPT-2 "
                        "(python data/gpt2/prepare.py), or give the path of a model")
    kind = "Hugging Face" if os.path.isdir(path) else kind_of_model(path)
    if kind == "tinygrad2":
        weights = load_weights(path)
        pretrained = Pretrained(path, kind, weights.tensors.lazy(), weights.config, training=weights.training)
        eos, V = weights.training.get("eos"), weights.config.get("vocab_size")
        eos = eos if isinstance(eos, list) else [eos]
        pretrained.eos = tuple(id for id in eos if type(id) is type(V) is int and 0 <= id < V)
        own_json = weights.tokenizer
    else:
        pretrained, own_json = _open_third_party(path, kind), ""
    pretrained.tokenizer = _tokenizer_of(pretrained, own_json, tokenizer)
    return pretrained


def _open_third_party(path, kind):
    if kind == "llm.c":
        return Pretrained(path, kind, *llmc.read_model(path))
    if kind == "nanoGPT":
        try:
            return Pretrained(path, kind, *nanogpt.read_nanogpt(path))
        except nanogpt.NoCheckpoint:
            if not os.path.exists(os.path.join(os.path.dirname(path), "config.json")):
                raise  # otherwise it is Hugging Face's pytorch_model.bin
    tensors, config, notes, ends = (hf.read_folder if os.path.isdir(path) else hf.read_file)(path)
    if os.path.isdir(path) and has_chat_template(path):
        notes.append("it has a chat template, which is not applied: write prompts in its form, with --special allowed")
    return Pretrained(path, "Hugging Face", tensors, config, None, notes, **ends)


def kind_of_model(path: str | os.PathLike) -> str:
    """"tinygrad2", "Hugging Face", "llm.c" or "nanoGPT", by a file's first bytes. Raises UserError for others."""
    head = first_bytes(path, LOOK)
    kind, magic = recognize(head, str(path)), int.from_bytes(head[:4], "little")
    if magic == llmc.MODEL:
        return "llm.c"
    if head.startswith(b"PK\3\4"):
        return "nanoGPT"
    if kind and kind.role in ("stand-in", "packed"):
        raise UserError(f"{path}: {kind}")
    if not (kind and kind.role == "structured") and head[8:].lstrip().startswith(b"{"):
        try:
            return "tinygrad2" if "tinygrad2" in open_container(path).metadata else "Hugging Face"
        except CorruptFile:
            return "tinygrad2"  # reading it reports what is wrong
    if magic in HEADERED:
        raise UserError(f"{path}: is a token file, not a model; give the model's own path")
    if kind and not head.startswith(b"\x80"):
        raise UserError(f"{path}: is {kind.what}, not a model; give the model's own path")
    if head.startswith(b"\x80"):
        raise UserError(f"{path}: is a bare pickle, which could run any code; save it with torch 1.6 or later, or as "
                        "safetensors")
    if not head:
        raise UserError(f"{path}: is empty, so it is not a model of a known format; copy it again, or check the path")
    raise UserError(f"{path}: is not a model of a known format (tinygrad2, Hugging Face, llm.c, nanoGPT); its first "
                    f"bytes are {head[:8]!r}; copy it again, or check the path")


def _tokenizer_of(pretrained, own_json, given):
    """The tokenizer that the user has given, or that in the weights, or that next to a third-party model, or None."""
    if given:
        return load_tokenizer(given)
    if own_json:
        return tokenizer_from_json(own_json, pretrained.path)
    if pretrained.kind == "tinygrad2":
        return None
    path, V = pretrained.path, pretrained.config["vocab_size"]
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    try:
        found = find_in_folder(folder)
        tokenizer = load_tokenizer(found) if found else None
    except UserError as error:
        pretrained.notes.append(f"the tokenizer next to it cannot be used ({error}); give one with --tokenizer")
        return None
    if tokenizer is None:
        return None
    if tokenizer.n_vocab > V and isinstance(tokenizer, MappedTokenizer):
        tokenizer = _without_rows(tokenizer, V, pretrained.notes)
    if tokenizer.n_vocab > V:
        pretrained.notes.append(f"the tokenizer next to it is not its own: {tokenizer.n_vocab:,} tokens, the model has "
                                f"{V:,}; give one with --tokenizer")
        return None
    if tokenizer.n_vocab < V and not os.path.isdir(path):
        pretrained.notes.append(f"the tokenizer next to it is used: {tokenizer.n_vocab:,} tokens, the model has {V:,} "
                                "rows; if it is not the model's own, give another with --tokenizer")
    return tokenizer


def _without_rows(tokenizer, V, notes):
    """The tokenizer without added tokens that the model has no rows for; as it is, if others have no rows either."""
    gone = [token.content for token in tokenizer.added.tokens if token.id >= V]
    try:
        smaller = tokenizer.without_ids_from(V)
    except UserError:
        return tokenizer
    names = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
    notes.append(f"the model has {V:,} rows, and none for {names} of its tokenizer: read as ordinary text")
    return smaller
