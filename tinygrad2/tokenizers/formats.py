"""Third-party tokenizer formats: which one a file has, and readers for the files of tiktoken and llm.c.

    encoder.json + vocab.bpe     OpenAI's vocabulary and merges (hugging_face.py)
    vocab.json + merges.txt      the same under Hugging Face's names
    tokenizer.json               both in one, and more
    *.tiktoken                   "base64 of the token's bytes, space, rank" a line; the rank is both id and order
    gpt2_tokenizer.bin           the bytes of each token, for llm.c to print; can only decode

`read_third_party` recognizes them by content. Every reader returns a tokenizer or raises TokenizerError: one line with
the file, the field, its value and the remedy. Tokens are written in GPT-2's symbols, see ID_TO_SYMBOL in tokenizer.py.
"""

import base64
import binascii
import re
import struct
from itertools import count

from tinygrad2.errors import short
from tinygrad2.tokenizers.bpe import N_BYTES, apply_merges
from tinygrad2.tokenizers.hf_settings import AGAIN, parse_json
from tinygrad2.tokenizers.hugging_face import find_merges, find_vocab, read_pair, read_tokenizer_json
from tinygrad2.tokenizers.mapped import DecodeOnlyTokenizer, tokenizer_from_vocab
from tinygrad2.tokenizers.tokenizer import BYTE_TO_ID, END_OF_TEXT, ID_TO_SYMBOL, Tokenizer, TokenizerError

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")  # names in folders
MAX_RANKED = 1 << 16  # bytes of a token in a rank file; GPT-2's longest has 128
OTHER_PATTERNS = {100256: "cl100k_base", 199998: "o200k_base"}  # number of ranks -> tiktoken's encoding

LLMC_MAGIC, LLMC_HEADER = 20240328, 1024  # bytes of the header, 256 int32
LLMC_FIRST = (50257, 50256)  # tokens, end-of-text id; version 1 was for GPT-2 only and does not store the id

LLMC_START = struct.pack("<I", LLMC_MAGIC)
_RANK_LINE = re.compile(rb"(?:[A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2}[A-Za-z0-9+/=]= +\d+\r?(?:\n|$)")


def read_third_party(data, path):
    """Returns the tokenizer in a file of another program, given its bytes.

    The other file of a pair, merges or vocabulary, is read from the folder of `path`. Raises TokenizerError if the
    format is unknown, or if the file is corrupt or not supported.
    """
    head = data[:256].lstrip()
    if data.startswith(LLMC_START):
        return _read_llmc(data, path)
    if head.startswith(b"{"):
        return _read_json(data, path)
    if _RANK_LINE.match(head):  # no line of merges matches: it has two symbols
        return _read_ranks(data, path)
    if head.startswith(b"#version") or b"\n" in head:
        vocab = find_vocab(path)
        return read_pair(vocab, path) if vocab else Tokenizer.from_merges_txt(path)
    raise TokenizerError(f"{path}: is not a tokenizer; give the tokenizer.json of a training run, or GPT-2's vocab.bpe")


def _read_json(data, path):
    """The tokenizer in a JSON file (bytes): Hugging Face's, or a vocabulary with its merges next to it."""
    fields = parse_json(data, path)
    if isinstance(fields.get("model"), dict):
        return read_tokenizer_json(fields, path)
    if len(fields) >= N_BYTES:  # only a vocabulary has so many names; "model" may be one of its tokens
        return read_pair(path, find_merges(path), fields)
    if {"model", "added_tokens", "pre_tokenizer"} & set(fields):
        return read_tokenizer_json(fields, path)
    return Tokenizer.from_json(data, path)  # raises with what is missing


# -- tiktoken's ranks --------------------------------------------------------------------------------------------------


def _read_ranks(data, source):
    """The tokenizer of a rank file (bytes), with GPT-2's pattern, since the file contains none.

    Nor does it contain special tokens: <|endoftext|> gets the smallest free id, which is 50256 for GPT-2.
    """
    ranks = _parse_ranks(data, source)
    if len(ranks) in OTHER_PATTERNS:
        problem = f"has {len(ranks)} ranks, as {OTHER_PATTERNS[len(ranks)]}, which splits text by another pattern"
        raise TokenizerError(f"{source}: {problem} than GPT-2; give GPT-2's own ranks, or vocab.bpe")
    merges, symbols = recover_merges(sorted(ranks, key=ranks.get), source)
    vocab = {"".join(ID_TO_SYMBOL[id] for id in token.translate(BYTE_TO_ID)): rank for token, rank in ranks.items()}
    taken = set(ranks.values())
    special = {END_OF_TEXT: next(id for id in count() if id not in taken)}
    return tokenizer_from_vocab(vocab, [(symbols[a], symbols[b]) for a, b in merges], special, source)


def _parse_ranks(data, source):
    """{bytes of a token: its rank}."""
    ranks, taken = {}, set()
    for number, line in enumerate(data.split(b"\n"), start=1):
        parts = line.split()
        if not parts:
            continue
        try:
            token = base64.b64decode(parts[0], validate=True)
        except binascii.Error:
            token = b""
        if len(parts) != 2 or not re.fullmatch(rb"\d{1,9}", parts[1]) or not 0 < len(token) <= MAX_RANKED:
            found = short(line.decode("utf-8", "replace"))
            raise TokenizerError(f"{source}: line {number} is {found}, not a token in base64 and its rank; {AGAIN}")
        rank = int(parts[1])
        if token in ranks or rank in taken:
            what = f"token {short(token)}" if token in ranks else f"rank {rank}"
            raise TokenizerError(f"{source}: line {number} has {what} a second time; {AGAIN}")
        ranks[token] = rank
        taken.add(rank)
    return ranks


def recover_merges(tokens, source):
    """Recovers the merges from tokens (bytes, in order of rank): returns ([(left, right)], symbols of each id).

    Each token is encoded with the merges of the tokens before it; the two parts that remain are what its merge joins.
    Ids are those of tokenizer.py. Raises TokenizerError if a token has another number of parts.
    """
    merges, symbols = {}, list(ID_TO_SYMBOL)
    for token in tokens:
        if len(token) == 1:
            continue
        parts = apply_merges(tuple(token.translate(BYTE_TO_ID)), merges)
        if len(parts) != 2:
            problem = f"token {short(token)} is {len(parts)} tokens of lower rank, not two, so no merge makes it"
            raise TokenizerError(f"{source}: {problem}; give vocab.bpe or tokenizer.json, which list the merges")
        merges[parts] = N_BYTES + len(merges)
        symbols.append(symbols[parts[0]] + symbols[parts[1]])
    return list(merges), symbols


# -- llm.c's table -----------------------------------------------------------------------------------------------------


def _read_llmc(data, source):
    """The DecodeOnlyTokenizer of a gpt2_tokenizer.bin (bytes), version 1 or 2."""
    if len(data) < LLMC_HEADER:
        raise TokenizerError(f"{source}: has {len(data)} bytes, less than its header's {LLMC_HEADER}; {AGAIN}")
    _, version, n_vocab, eot = struct.unpack_from("<4I", data)
    if version not in (1, 2):
        raise TokenizerError(f"{source}: version is {version}; only 1 and 2 are supported")
    if version == 1:
        eot = LLMC_FIRST[1]
    if not 0 < n_vocab <= len(data) or eot >= n_vocab or (version == 1 and n_vocab != LLMC_FIRST[0]):
        problem = f"has {n_vocab} tokens and {eot} as id of {END_OF_TEXT}, which is impossible in version {version}"
        raise TokenizerError(f"{source}: {problem}; {AGAIN}")
    tokens, at = [], LLMC_HEADER
    for id in range(n_vocab):
        size = data[at] if at < len(data) else 0
        if size == 0 or at + 1 + size > len(data):
            problem = f"token {id} of {n_vocab}, at byte {at}, is empty or beyond the end of the file"
            raise TokenizerError(f"{source}: {problem}; {AGAIN}")
        tokens.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    if at != len(data):
        raise TokenizerError(f"{source}: has {len(data) - at} bytes after its last token; {AGAIN}")
    return DecodeOnlyTokenizer(tokens, eot, source)
