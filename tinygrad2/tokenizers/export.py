"""Writes tokenizers in third-party formats: Hugging Face's four files, tiktoken's ranks, llm.c's table.

>>> import tempfile
>>> folder = tempfile.mkdtemp()
>>> write_tokenizer(Tokenizer([(83, 71)]), folder, "hf")
>>> sorted(os.listdir(folder))
['merges.txt', 'tokenizer.json', 'tokenizer_config.json', 'vocab.json']

What a format cannot represent is refused: every file must encode to the same ids as the tokenizer it came from.
"""

import base64
import json
import os
import struct

from tinygrad2.errors import short
from tinygrad2.io.files import atomic_write, make_folder
from tinygrad2.tokenizers.added_tokens import FLAGS, AddedToken
from tinygrad2.tokenizers.bpe import N_BYTES
from tinygrad2.tokenizers.formats import LLMC_FIRST, LLMC_HEADER, LLMC_MAGIC, recover_merges
from tinygrad2.tokenizers.mapped import MappedTokenizer
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, ID_TO_SYMBOL, Tokenizer, TokenizerError

KINDS = ("hf", "tiktoken", "llmc")


def write_tokenizer(tokenizer, path, kind, version=2, end=None):
    """Write a Tokenizer or a MappedTokenizer for another program; each file is written atomically.

    kind        path        what is written
    "hf"        a folder    tokenizer.json, tokenizer_config.json, vocab.json, merges.txt; created if missing
    "tiktoken"  a file      tokens in base64 and their ranks, as r50k_base.tiktoken
    "llmc"      a file      gpt2_tokenizer.bin, the bytes of each token; `version` is 2, or 1 for GPT-2's tokens

    `end` is the id that ends texts, if that is another special token than <|endoftext|> (for "hf").
    Raises TokenizerError if the format cannot represent this tokenizer, UserError if a file cannot be written.
    """
    if kind not in KINDS:
        raise TokenizerError(f"kind is {short(kind)}, not a valid choice; use one of {', '.join(KINDS)}")
    if kind == "hf":
        _write_files(path, _hugging_face(tokenizer, end))
    else:
        content = _rank_file(tokenizer) if kind == "tiktoken" else _llmc_table(tokenizer, version)
        with atomic_write(path) as file:
            file.write(content)


def _write_files(folder, contents):
    make_folder(folder)
    for name, content in contents.items():
        with atomic_write(os.path.join(folder, name)) as file:
            file.write(content.encode())


def _in_symbols(tokenizer, kind):
    """A tokenizer's (vocab: token in symbols -> id, merges: [(left, right)] in symbols)."""
    if isinstance(tokenizer, MappedTokenizer):
        return dict(tokenizer.vocab), tokenizer.merges
    if not isinstance(tokenizer, Tokenizer):
        problem = f"a tokenizer without merges of bytes (characters, or llm.c's table) cannot be written as {kind!r}"
        raise TokenizerError(f"{problem}; give a BPE tokenizer, such as vocab.bpe, with --tokenizer")
    tokens, merges = list(ID_TO_SYMBOL), []
    for left, right in tokenizer.merges:
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return _unique([*tokens, END_OF_TEXT] if kind == "hf" else tokens, kind), merges


def _unique(tokens, kind):
    """{token: id}. These formats look tokens up by their bytes, so no two may have the same."""
    vocab = {}
    for id, token in enumerate(tokens):
        if vocab.setdefault(token, id) != id:
            problem = f"tokens {vocab[token]} and {id} are both {short(token)}, and {kind!r} has one id for each text"
            raise TokenizerError(f"{problem}; train with fewer merges, or save it as our own JSON")
    return vocab


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def check_hugging_face(tokenizer):
    """Raises TokenizerError if write_tokenizer would, for the kind "hf"; nothing is written."""
    _in_symbols(tokenizer, "hf")


def _hugging_face(tokenizer, end):
    """{file name: its text}."""
    vocab, merges = _in_symbols(tokenizer, "hf")
    added, prefix_space = _added(tokenizer)
    vocab |= {token.content: token.id for token in added}
    vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
    lines = [f"{left} {right}" for left, right in merges]
    level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": ""}
    model |= {"end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    fields = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token.id, **_fields(token)} for token in added],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": model | {"vocab": vocab, "merges": lines},  # as "a b": older readers know no other form
    }
    names = {id: text for text, id in tokenizer.special.items()}
    end = names.get(tokenizer.eot if end is None else end)
    config = {"tokenizer_class": "GPT2Tokenizer" if end else "PreTrainedTokenizerFast"}
    config |= {"add_prefix_space": prefix_space, "bos_token": end, "eos_token": end, "unk_token": end}
    config |= {"clean_up_tokenization_spaces": False}
    if any(token.content != end or not token.is_plain for token in added):  # vocab.json does not tell them apart
        config["added_tokens_decoder"] = {str(token.id): _fields(token) for token in added}
    return {
        "tokenizer.json": json.dumps(fields, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "vocab.json": json.dumps(vocab),  # in ASCII and in the order of ids, as OpenAI's
        "merges.txt": "\n".join(["#version: 0.2", *lines, ""]),  # readers drop the first line, whatever it is
    }


def _added(tokenizer):
    """(AddedTokens of a tokenizer in the order of their ids, does it put a space before texts?)"""
    if isinstance(tokenizer, MappedTokenizer):
        return sorted(tokenizer.added.tokens, key=lambda token: token.id), tokenizer.prefix_space
    return [AddedToken(text, id) for text, id in tokenizer.special.items()], False


def _fields(token):
    return {"content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}}


# -- tiktoken ----------------------------------------------------------------------------------------------------------


def _rank_file(tokenizer):
    """Ranks are ids, so merges must be in the order of ids; and a reader must recover the same merges."""
    vocab, merges = _in_symbols(tokenizer, "tiktoken")
    added, prefix_space = _added(tokenizer)
    if prefix_space or not all(token.is_plain for token in added):
        problem = "this tokenizer puts a space before texts, or has added tokens that ranks cannot represent"
        raise TokenizerError(f"{problem}; write it as 'hf'")
    tokens = {id: tokenizer.token_bytes(id) for token, id in vocab.items() if token not in tokenizer.special}
    ordered = [tokens[id] for id in sorted(tokens)]
    try:
        recovered, symbols = recover_merges(ordered, "as ranks")
        same = [(symbols[left], symbols[right]) for left, right in recovered] == merges
    except TokenizerError:
        same = False
    if not same:
        problem = "the merges of this tokenizer do not follow from the order of its ids, so ranks cannot represent them"
        raise TokenizerError(f"{problem}; write it as 'hf', which lists the merges")
    return b"".join(b"%s %d\n" % (base64.b64encode(tokens[id]), id) for id in sorted(tokens))


# -- llm.c -------------------------------------------------------------------------------------------------------------


def _llmc_table(tokenizer, version):
    n_vocab, eot = tokenizer.n_vocab, tokenizer.eot
    if version not in (1, 2):
        raise TokenizerError(f"version is {short(version)}, but llm.c knows 1 and 2; use 2")
    if eot is None:
        raise TokenizerError(f"this tokenizer has no {END_OF_TEXT}, which llm.c starts with; train one that has it")
    if version == 1 and (n_vocab, eot) != LLMC_FIRST:
        problem = f"version 1 is for GPT-2's {LLMC_FIRST[0]} tokens only, and this tokenizer has {n_vocab}"
        raise TokenizerError(f"{problem}; use version 2")
    head = struct.pack("<4I", LLMC_MAGIC, version, n_vocab, eot if version == 2 else 0)
    parts = [head.ljust(LLMC_HEADER, b"\0")]
    for id in range(n_vocab):
        token = tokenizer.token_bytes(id)
        if not 0 < len(token) < N_BYTES:  # the length is one byte
            problem = f"token {id} has {len(token)} bytes, and llm.c's file has room for 1 to {N_BYTES - 1}"
            raise TokenizerError(f"{problem}; train a tokenizer with fewer merges")
        parts.append(bytes([len(token)]) + token)
    return b"".join(parts)
