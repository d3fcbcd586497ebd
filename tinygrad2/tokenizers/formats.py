"""Third-party tokenizer formats: readers for the files of OpenAI, Hugging Face, tiktoken and llm.c.

    encoder.json + vocab.bpe     the vocabulary as {"token": id, ...}, and the merges, one a line
    vocab.json + merges.txt      the same under Hugging Face's names
    tokenizer.json               both in one, with the pre-tokenizer and the special tokens
    *.tiktoken                   "base64 of the token's bytes, space, rank" a line; the rank is both id and order
    gpt2_tokenizer.bin           the bytes of each token, for llm.c to print; can only decode

`read_third_party` recognizes them by content. Every reader returns a tokenizer or raises TokenizerError: one line with
the file, the field, its value and the remedy. Tokens are written in GPT-2's symbols, see ID_TO_SYMBOL in tokenizer.py.
"""

import base64
import binascii
import json
import os
import re
import struct
from itertools import count

from tinygrad2.errors import short
from tinygrad2.io.files import unique_names
from tinygrad2.tokenizers.bpe import N_BYTES, apply_merges
from tinygrad2.tokenizers.mapped import DecodeOnlyTokenizer, tokenizer_from_vocab
from tinygrad2.tokenizers.tokenizer import BYTE_TO_ID, END_OF_TEXT, ID_TO_SYMBOL, Tokenizer, TokenizerError, read_text

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")  # names in folders
PAIRS = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
MAX_UNMADE = 1000  # tokens that no merge makes: more are not special tokens, but the merges of another file
MAX_RANKED = 1 << 16  # bytes of a token in a rank file; GPT-2's longest has 128
OTHER_PATTERNS = {100256: "cl100k_base", 199998: "o200k_base"}  # number of ranks -> tiktoken's encoding

LLMC_MAGIC, LLMC_HEADER = 20240328, 1024  # bytes of the header, 256 int32
LLMC_FIRST = (50257, 50256)  # tokens, end-of-text id; version 1 was for GPT-2 only and does not store the id

_AGAIN = "download or write the file again"
_LLMC_START = struct.pack("<I", LLMC_MAGIC)
_RANK_LINE = re.compile(rb"(?:[A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2}[A-Za-z0-9+/=]= +\d+\r?(?:\n|$)")


def read_third_party(data, path):
    """Returns the tokenizer in a file of another program, given its bytes.

    The other file of a pair, merges or vocabulary, is read from the folder of `path`. Raises TokenizerError if the
    format is unknown, or if the file is corrupt or not supported.
    """
    head = data[:256].lstrip()
    if data.startswith(_LLMC_START):
        return _read_llmc(data, path)
    if head.startswith(b"{"):
        return _read_json(data, path)
    if _RANK_LINE.match(head):  # no line of merges matches: it has two symbols
        return _read_ranks(data, path)
    if head.startswith(b"#version") or b"\n" in head:
        vocab = _find_vocab(path)
        return _read_pair(vocab, path) if vocab else Tokenizer.from_merges_txt(path)
    raise TokenizerError(f"{path}: is not a tokenizer; give the tokenizer.json of a training run, or GPT-2's vocab.bpe")


def _read_json(data, path):
    """The tokenizer in a JSON file (bytes): Hugging Face's, or a vocabulary with its merges next to it."""
    fields = _parse_json(data, path)
    if isinstance(fields.get("model"), dict):
        return _read_hf(fields, path)
    if len(fields) >= N_BYTES:  # only a vocabulary has so many names; "model" may be one of its tokens
        return _read_pair(path, _find_merges(path), fields)
    if {"model", "added_tokens", "pre_tokenizer"} & set(fields):
        return _read_hf(fields, path)
    return Tokenizer.from_json(data, path)  # raises with what is missing


def _parse_json(data, source):
    """The object in JSON bytes as a dict. Raises TokenizerError if it is invalid or has a name twice."""
    try:
        fields = json.loads(data.decode(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{source}: is not valid JSON ({short(str(error))}); {_AGAIN}") from None
    if not isinstance(fields, dict):
        raise TokenizerError(f"{source}: is {short(fields)}, not an object; {_AGAIN}")
    return fields


# -- a vocabulary and its merges ---------------------------------------------------------------------------------------


def _find_vocab(merges):
    """The path of the vocabulary next to a merges.txt or vocab.bpe; None if there is none."""
    folder, name = os.path.split(merges)
    for vocab, partner in PAIRS.items():
        if name == partner and os.path.isfile(os.path.join(folder, vocab)):
            return os.path.join(folder, vocab)
    return None


def _find_merges(vocab):
    """The path of the merges next to a vocabulary. Raises TokenizerError if there are none."""
    folder, name = os.path.split(vocab)
    names = [PAIRS[name]] if name in PAIRS else list(PAIRS.values())
    for partner in names:
        if os.path.isfile(os.path.join(folder, partner)):
            return os.path.join(folder, partner)
    raise TokenizerError(f"{vocab}: is a vocabulary without its merges; put {' or '.join(names)} next to it")


def _read_pair(vocab_path, merges_path, vocab=None):
    """The tokenizer of a vocabulary and its merges, two files. `vocab` is the content of the first, if already parsed.

    Tokens that no merge makes are special: so <|endoftext|>, <pad> and the like are stored in such files.
    """
    if vocab is None:
        vocab = _parse_json(read_text(vocab_path).encode(), vocab_path)
    merges = []
    for number, line in enumerate(read_text(merges_path).splitlines(), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            problem = f"line {number} is {short(line)}, not two tokens separated by a space"
            raise TokenizerError(f"{merges_path}: {problem}; {_AGAIN}")
        merges.append(tuple(parts))
    made = {*ID_TO_SYMBOL, *(left + right for left, right in merges)}
    special = {token: id for token, id in vocab.items() if token not in made}
    if len(special) > MAX_UNMADE:
        first, name = next(iter(special)), os.path.basename(merges_path)
        problem = f"{name} does not make {len(special)} of its tokens, such as {short(first)}"
        raise TokenizerError(f"{vocab_path}: {problem}; give the two files of one tokenizer")
    return tokenizer_from_vocab(vocab, merges, special, f"{vocab_path} with {os.path.basename(merges_path)}")


# -- Hugging Face's tokenizer.json -------------------------------------------------------------------------------------


def _read_hf(fields, source):
    """The tokenizer of a parsed tokenizer.json. Unsupported fields that would change ids are refused.

    Truncation and padding are ignored: they are for batches, and here a text keeps its length.
    """
    model = fields.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        found = short(model.get("type") if isinstance(model, dict) else model)
        raise TokenizerError(f"{source}: model.type is {found}; only GPT-2's byte-level 'BPE' is supported")
    _check_steps(fields, source)
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(field):
            raise TokenizerError(f"{source}: model.{field} is {short(model[field])}; only GPT-2's form is supported")
    merges = model.get("merges")
    if isinstance(merges, list):  # "a b" before August 2024, ["a", "b"] since
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    special = _added_tokens(fields.get("added_tokens"), source)
    return tokenizer_from_vocab(model.get("vocab"), merges, special, source)


def _check_steps(fields, source):
    """The steps around the model: before it only bytes to symbols, after it nothing that adds tokens."""
    if fields.get("normalizer") is not None:
        found = short(fields["normalizer"])
        raise TokenizerError(f"{source}: normalizer is {found}; only null, no change of the text, is supported")
    before = fields.get("pre_tokenizer")
    if not isinstance(before, dict) or before.get("type") != "ByteLevel":
        raise TokenizerError(f"{source}: pre_tokenizer is {short(before)}; only GPT-2's 'ByteLevel' is supported")
    for field, wanted in (("add_prefix_space", False), ("use_regex", True)):
        found = before.get(field, True)  # both default to true
        if found is not wanted:
            raise TokenizerError(f"{source}: pre_tokenizer.{field} is {short(found)}; only {wanted} is supported")
    after = fields.get("post_processor")
    if after is not None and not (isinstance(after, dict) and (after.get("type") == "ByteLevel" or _is_empty(after))):
        problem = f"post_processor is {short(after)}; only 'ByteLevel' or null, which add no tokens, are supported"
        raise TokenizerError(f"{source}: {problem}")
    back = fields.get("decoder")
    if back is not None and not (isinstance(back, dict) and back.get("type") == "ByteLevel"):
        raise TokenizerError(f"{source}: decoder is {short(back)}; only 'ByteLevel' is supported")


def _is_empty(template):
    """Is it a TemplateProcessing that adds no tokens to a text?"""
    parts = template.get("single")
    return template.get("type") == "TemplateProcessing" and isinstance(parts, list) and not any(
        not isinstance(part, dict) or list(part) != ["Sequence"] for part in parts
    )  # fmt: skip


def _added_tokens(tokens, source):
    """{text: id} of the added tokens. Those that absorb white space or match only complete words are refused."""
    special = {}
    if not isinstance(tokens if tokens is not None else [], list):
        raise TokenizerError(f"{source}: added_tokens is {short(tokens)}, not a list; {_AGAIN}")
    for k, token in enumerate(tokens or []):
        text = token.get("content") if isinstance(token, dict) else None
        if not isinstance(text, str) or text in special:
            problem = f"added_tokens[{k}] is {short(token)}, not a token with its own 'content'"
            raise TokenizerError(f"{source}: {problem}; {_AGAIN}")
        for field in ("lstrip", "rstrip", "single_word"):
            if token.get(field, False) is not False:
                problem = f"added_tokens[{k}].{field} is {short(token[field])} for {short(text)}"
                raise TokenizerError(f"{source}: {problem}; only false is supported")
        if token.get("special", True) is not True:  # Hugging Face finds such a token in any text
            problem = f"added_tokens[{k}], {short(text)}, is not special"
            raise TokenizerError(f"{source}: {problem}; only special tokens may be added to a vocabulary")
        special[text] = token.get("id")
    return special


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
            raise TokenizerError(f"{source}: line {number} is {found}, not a token in base64 and its rank; {_AGAIN}")
        rank = int(parts[1])
        if token in ranks or rank in taken:
            what = f"token {short(token)}" if token in ranks else f"rank {rank}"
            raise TokenizerError(f"{source}: line {number} has {what} a second time; {_AGAIN}")
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
        raise TokenizerError(f"{source}: has {len(data)} bytes, less than its header's {LLMC_HEADER}; {_AGAIN}")
    _, version, n_vocab, eot = struct.unpack_from("<4I", data)
    if version not in (1, 2):
        raise TokenizerError(f"{source}: version is {version}; only 1 and 2 are supported")
    if version == 1:
        eot = LLMC_FIRST[1]
    if not 0 < n_vocab <= len(data) or eot >= n_vocab or (version == 1 and n_vocab != LLMC_FIRST[0]):
        problem = f"has {n_vocab} tokens and {eot} as id of {END_OF_TEXT}, which is impossible in version {version}"
        raise TokenizerError(f"{source}: {problem}; {_AGAIN}")
    tokens, at = [], LLMC_HEADER
    for id in range(n_vocab):
        size = data[at] if at < len(data) else 0
        if size == 0 or at + 1 + size > len(data):
            problem = f"token {id} of {n_vocab}, at byte {at}, is empty or beyond the end of the file"
            raise TokenizerError(f"{source}: {problem}; {_AGAIN}")
        tokens.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    if at != len(data):
        raise TokenizerError(f"{source}: has {len(data) - at} bytes after its last token; {_AGAIN}")
    return DecodeOnlyTokenizer(tokens, eot, source)
