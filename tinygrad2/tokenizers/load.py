"""The tokenizer in a file or folder, whoever wrote it; the format is recognized by its content."""

import json
import os
from pathlib import Path

from tinygrad2.errors import short
from tinygrad2.tokenizers import char, mapped
from tinygrad2.tokenizers.bpe import N_BYTES
from tinygrad2.tokenizers.formats import (
    PAIRS,
    is_llmc,
    is_ranks,
    merges_beside,
    parse_json,
    read_hf,
    read_llmc,
    read_pair,
    read_ranks,
    vocab_beside,
)
from tinygrad2.tokenizers.tokenizer import Tokenizer, TokenizerError

MAX_BYTES = 64 << 20  # GPT-2's files have one


def load_tokenizer(path):
    """The tokenizer in a file or folder, whoever wrote it.

    A file may be JSON that one of ours has saved; merges as text (OpenAI's vocab.bpe, Hugging Face's merges.txt),
    with or without their vocabulary (encoder.json, vocab.json) beside them; that vocabulary, with its merges beside it;
    Hugging Face's tokenizer.json; tiktoken's ranks; or llm.c's gpt2_tokenizer.bin. In a folder they are looked for by
    name. Raises TokenizerError, one line, for anything else.
    """
    path = find_in_folder(path) if os.path.isdir(path) else path
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if data[8:9] == b"{" and b'"tinygrad2"' in data[:1000]:
        return _of_weights(path)
    if len(data) > MAX_BYTES:
        raise TokenizerError(f"{path}: is too large for a tokenizer; give the JSON that a training saved")
    head = data[:256].lstrip()
    if is_llmc(data):
        return read_llmc(data, str(path))
    if head.startswith(b"{"):
        return read_json_file(data, str(path))
    if is_ranks(head):
        return read_ranks(data, str(path))
    if head.startswith(b"#version") or b"\n" in head:
        vocab = vocab_beside(path)
        return read_pair(vocab, path) if vocab else Tokenizer.from_merges_txt(Path(path))
    raise TokenizerError(f"{path}: is no tokenizer; give the JSON that a training saved, or GPT-2's vocab.bpe")


def _of_weights(path):
    """The tokenizer that travels inside a weights file of ours."""
    from tinygrad2.io.weights import load_weights  # late: it needs NumPy

    text = load_weights(path).tokenizer
    if not text:
        raise TokenizerError(f"{path}: these weights have no tokenizer in them; give vocab.bpe or a tokenizer.json")
    return tokenizer_from_json(text, str(path))


def tokenizer_from_json(text, source="tokenizer JSON"):
    """The tokenizer whose to_json() is `text`; `source` names the file in error messages."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and fields.get("format") == char.FORMAT:
        return char.CharTokenizer.from_fields(fields, source)
    if isinstance(fields, dict) and fields.get("format") == mapped.FORMAT:
        return mapped.MappedTokenizer.from_fields(fields, source)
    return Tokenizer.from_json(text, source)


def find_in_folder(folder):
    """The path of the file to read in a folder. Raises TokenizerError where it has none."""
    try:
        names = [name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name))]
    except OSError as error:
        raise TokenizerError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    ranks = sorted(name for name in names if name.endswith(".tiktoken"))
    if "tokenizer.json" in names:
        return os.path.join(folder, "tokenizer.json")
    for vocab, merges in PAIRS.items():
        if vocab in names and merges in names:
            return os.path.join(folder, vocab)
    if len(ranks) > 1:
        raise TokenizerError(f"{folder}: has {len(ranks)} files of ranks; name one, such as {short(ranks[0])}")
    for name in (*ranks, "gpt2_tokenizer.bin", *PAIRS.values()):
        if name in names:
            return os.path.join(folder, name)
    known = "tokenizer.json, vocab.json with merges.txt, encoder.json with vocab.bpe, *.tiktoken, gpt2_tokenizer.bin"
    raise TokenizerError(f"{folder}: has no tokenizer; put one of these there: {known}")


def read_json_file(data, source):
    """The tokenizer in a JSON file (bytes): one of ours, Hugging Face's, or a vocabulary with merges beside it."""
    fields = parse_json(data, source)
    if isinstance(fields.get("format"), str):
        return tokenizer_from_json(data.decode(), source)
    if isinstance(fields.get("model"), dict):
        return read_hf(fields, source)
    if len(fields) >= N_BYTES:  # so many names only a vocabulary has; "model" may be one of its words
        return read_pair(source, merges_beside(source), fields)
    if {"model", "added_tokens", "pre_tokenizer"} & set(fields):
        return read_hf(fields, source)
    return tokenizer_from_json(data.decode(), source)  # it says what is missing
