"""Any tokenizer we can read, told apart by content: our BPE, our characters, and GPT-2's list of merges."""

import json
import os
from pathlib import Path

from tinygrad2.char_tokenizer import FORMAT as CHARACTERS
from tinygrad2.char_tokenizer import CharTokenizer
from tinygrad2.tokenizer import Tokenizer, TokenizerError

MAX_BYTES = 64 << 20  # GPT-2's files have one


def load_tokenizer(path):
    """The tokenizer in a file: JSON that one of ours has saved, or merges as text (OpenAI's vocab.bpe, Hugging Face's
    merges.txt). Raises TokenizerError, one line, for anything else."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise TokenizerError(f"{path}: is too large for a tokenizer; give the JSON that a training saved")
            head = file.read(256).lstrip()
            text = file.read() if head.startswith(b"{") else b""
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if head.startswith(b"{"):
        return tokenizer_from_json((head + text).decode("utf-8", "replace"), str(path))
    if head.startswith(b"#version") or b"\n" in head:
        return Tokenizer.from_merges_txt(Path(path))
    raise TokenizerError(f"{path}: is no tokenizer; give the JSON that a training saved, or GPT-2's vocab.bpe")


def tokenizer_from_json(text, source="tokenizer JSON"):
    """The tokenizer whose to_json() is `text`; `source` names the file in error messages."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and fields.get("format") == CHARACTERS:
        return CharTokenizer.from_fields(fields, source)
    return Tokenizer.from_json(text, source)
