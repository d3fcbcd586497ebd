"""Loads the tokenizer in a file or folder: ours are recognized here by their content, others in formats.py."""

import json
import os
import re
from pathlib import Path

from tinygrad2.errors import UserError, short
from tinygrad2.io.files import unique_names
from tinygrad2.io.open_file import open_file
from tinygrad2.io.text_file import text_of
from tinygrad2.tokenizers import char, mapped
from tinygrad2.tokenizers.formats import LLMC_START, read_third_party
from tinygrad2.tokenizers.hugging_face import PAIRS
from tinygrad2.tokenizers.nanogpt_meta import META, is_pickle, read_meta
from tinygrad2.tokenizers.tokenizer import Tokenizer, TokenizerError

MAX_BYTES = 64 << 20  # GPT-2's files have about one MB
_OWN_FORMAT = re.compile(rb'"format"\s*:\s*"tinygrad2-')  # as the FORMAT of each of our tokenizers begins
_KNOWN = "tokenizer.json, vocab.json with merges.txt, encoder.json with vocab.bpe, *.tiktoken, gpt2_tokenizer.bin, "
_KNOWN += META
AnyTokenizer = Tokenizer | char.CharTokenizer | mapped.MappedTokenizer | mapped.DecodeOnlyTokenizer


def load_tokenizer(path: str | Path) -> AnyTokenizer:
    """Returns the tokenizer in a file or folder.

    A file may be JSON saved by one of our tokenizers; a weights file of ours, which has a tokenizer inside; merges as
    text (OpenAI's vocab.bpe, Hugging Face's merges.txt), with or without their vocabulary (encoder.json, vocab.json)
    next to them; that vocabulary, with its merges next to it; Hugging Face's tokenizer.json; tiktoken's ranks; llm.c's
    gpt2_tokenizer.bin; or nanoGPT's meta.pkl. In a folder they are found by name. Raises TokenizerError, one line, for
    anything else.
    """
    if os.path.isdir(path):
        found = find_in_folder(path)
        if found is None:
            raise TokenizerError(f"{path}: has no tokenizer; put one of these there: {_KNOWN}")
        path = found
    path = str(path)
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except UserError as error:
        raise TokenizerError(str(error)) from None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if data[8:9] == b"{" and b'"tinygrad2"' in data[:1000]:
        return _load_from_weights(path)
    if len(data) > MAX_BYTES:
        raise TokenizerError(f"{path}: is too large for a tokenizer; give the tokenizer.json of a training run")
    if is_pickle(data):
        return read_meta(data, path)
    try:
        data = data if data.startswith(LLMC_START) else text_of(data, path)
    except UserError as error:
        raise TokenizerError(str(error)) from None
    if data[:256].lstrip().startswith(b"{") and _OWN_FORMAT.search(data):
        return tokenizer_from_json(data, path)
    return read_third_party(data, path)


def _load_from_weights(path):
    """The tokenizer inside a weights file of ours."""
    from tinygrad2.io.weights import load_weights  # late: needs NumPy, which loading a tokenizer should not

    text = load_weights(path).tokenizer
    if not text:
        raise TokenizerError(f"{path}: these weights contain no tokenizer; give vocab.bpe or a tokenizer.json")
    return tokenizer_from_json(text, path)


def tokenizer_from_json(text: str | bytes, source: str = "tokenizer JSON") -> AnyTokenizer:
    """Returns the tokenizer whose to_json() is `text`; `source` names the file in error messages.

    Raises TokenizerError.
    """
    try:
        fields = json.loads(text, object_pairs_hook=unique_names)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and fields.get("format") == char.FORMAT:
        return char.CharTokenizer.from_fields(fields, source)
    if isinstance(fields, dict) and fields.get("format") == mapped.FORMAT:
        return mapped.MappedTokenizer.from_fields(fields, source)
    if isinstance(fields, dict) and fields.get("format") == mapped.DECODE_ONLY:
        return mapped.DecodeOnlyTokenizer.from_fields(fields, source)
    return Tokenizer.from_json(text, source)


def find_in_folder(folder: str | Path) -> str | None:
    """Returns the path of the tokenizer's file in a folder, or None.

    Raises TokenizerError if it cannot be read, or has several.
    """
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
        raise TokenizerError(f"{folder}: has {len(ranks)} rank files; name one, such as {short(ranks[0])}")
    for name in (*ranks, *PAIRS.values(), META, "gpt2_tokenizer.bin"):  # the last of them can only decode
        if name in names:
            return os.path.join(folder, name)
    return None
