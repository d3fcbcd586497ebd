"""Tokenizes a text once: its ids are kept in shards next to it, and the next run only opens them.

    my.txt
    .tinygrad2/my.txt-tokenizer-1024.json      the tokenizer trained on it, with a vocabulary of 1024
    .tinygrad2/my.txt-0a1b2c3d4e5f/            0a1b...: the hash of the tokenizer
        tokens_000000.bin ...                  the ids, as llm.c stores them
        progress.json                          what is done: the shards, and the position in the text after the last

Where that folder cannot be written to, it is all kept in ~/.cache/tinygrad2, under the text's name and a hash of its
path. A text of any size is read in blocks. Shards are written atomically, and progress.json is updated after each of
them; interrupted work continues after the last shard.

Tokens are used again if the text is the one that they were made from, see text_source.py.
"""

import errno
import hashlib
import json
import os

import numpy as np

from tinygrad2.datasets.text_source import TextSource
from tinygrad2.datasets.token_files import MemoryTokens, TokenFile, write_tokens
from tinygrad2.errors import UserError
from tinygrad2.io.files import read_record, user_cache, write_record
from tinygrad2.io.room import free_bytes, size_text
from tinygrad2.monitor.progress import Meter
from tinygrad2.system.memory import available_bytes
from tinygrad2.system.temporary import sweep
from tinygrad2.tokenizers.load import tokenizer_from_json
from tinygrad2.tokenizers.parallel import CUT, encode_stream
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

BLOCK = 32 << 20  # bytes of text that are in memory at a time
SHARD = 16 << 20  # ids after which a shard is written
TRAIN_ON = 64 << 20  # bytes from the beginning of the text that a tokenizer is trained on
_MARK, _BREAKS = END_OF_TEXT.encode(), b"\r\n"


def tokens_of_text(paths, tokenizer, vocab_size, log):
    """Returns (TokenFiles with the ids of the texts, tokenizer); the ids of encode_documents(split_documents(text)).

    paths        of the text files, in order
    tokenizer    None: one of `vocab_size` tokens is trained on the text
    log          called with each line for the user
    Raises UserError if a text cannot be read, or if all are empty.
    """
    text = TextSource(paths, log)
    for folder, stem in _cache_places(text):
        try:
            os.makedirs(folder, exist_ok=True)
            sweep(folder)
            return _open_or_make(text, os.path.join(folder, stem), tokenizer, vocab_size, log)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise  # not a problem of the folder
            log(f"note      {error}")
        except PermissionError:
            pass
        except OSError as error:
            log(f"note      {folder}: cannot be used ({error.strerror})")
    available = available_bytes()
    if available is not None and available < 2 * _least_bytes(text):  # ids of four bytes instead of two
        need = f"its tokens need at least {size_text(_least_bytes(text))} on a disk, or twice that in memory"
        raise UserError(f"{text.paths[0]}: {need}; set XDG_CACHE_HOME to a folder with room")
    log("note      no folder to keep the tokens in: they stay in memory, and will be computed again next time")
    try:
        text.sha256()  # checks it
        tokenizer = tokenizer or _train(text, vocab_size, log)
        shards = [MemoryTokens(ids) for ids, *_ in _encode(text, tokenizer, (0, 0, False)) if len(ids)]
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); try again, or copy it to a disk"
        raise UserError(f"{text.paths[0]}: {problem}") from None
    return _some(shards, text), tokenizer


def _some(files, text):
    """The files. Raises UserError if there are none."""
    if not files:
        raise UserError(f"{text.paths[0]}: it contains no text; give one to train on with --data FILE")
    return files


def _least_bytes(text):
    """What its tokens take at least: two bytes for each, and a token has hardly more than eight bytes of text."""
    return sum(text.sizes) // 4


def _cache_places(text):
    """(folder, beginning of the names in it): next to the text, and in the user's cache, which all texts share."""
    path = os.path.abspath(text.paths[0])
    yield os.path.join(os.path.dirname(path), ".tinygrad2"), text.name
    place = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:8]
    yield user_cache(), f"{text.name}-{place}"


def _open_or_make(text, stem, tokenizer, vocab_size, log):
    if tokenizer is None:
        path = f"{stem}-tokenizer-{vocab_size}.json"
        cached = read_record(path)
        if text.matches(cached):
            text.refresh(cached, path)
            tokenizer = tokenizer_from_json(json.dumps(cached.get("tokenizer")), path)
        else:
            tokenizer = _train(text, vocab_size, log)
            write_record(path, text.facts() | {"tokenizer": json.loads(tokenizer.to_json())})
    key = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:12]
    shards = f"{stem}-{key}"
    os.makedirs(shards, exist_ok=True)
    sweep(shards)
    return _open_or_make_shards(text, shards, tokenizer, log), tokenizer


def _open_or_make_shards(text, folder, tokenizer, log):
    path = os.path.join(folder, "progress.json")
    record = read_record(path)
    files = None
    if text.matches(record):
        text.refresh(record, path)
        files = _shards(record, folder)
    if files is not None and record["done"]:
        return files
    if not files:
        free = free_bytes(folder)
        if free is not None and free < _least_bytes(text):
            problem = f"the tokens need at least {size_text(_least_bytes(text))}, and {size_text(free)} are free"
            raise UserError(f"{folder}: {problem}") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # "place" is a position; the key keeps its name, so that existing caches stay valid
        files, record = [], text.facts() | {"shards": [], "place": (0, 0, False), "done": False}
    if files:
        log(f"note      continuing with {folder} after shard {len(files)}")
    for ids, position, done in _encode(text, tokenizer, tuple(record["place"])):
        if len(ids):
            name = f"tokens_{len(files):06d}.bin"
            write_tokens(os.path.join(folder, name), ids)
            files.append(TokenFile(os.path.join(folder, name)))
            shard = files[-1]
            record["shards"].append({"name": name, "tokens": shard.n, "crc": shard.crc()})
        record |= {"place": position, "done": done}
        write_record(path, record)
    return _some(files, text)


def _shards(record, folder):
    """The TokenFiles of a record, or None if one is missing, damaged or from another run."""
    try:
        files = [TokenFile(os.path.join(folder, os.path.basename(shard["name"]))) for shard in record["shards"]]
        position = record["place"]
        valid = all(file.n == shard["tokens"] and file.crc() == shard["crc"]
                    for file, shard in zip(files, record["shards"]))  # fmt: skip
        valid &= len(position) == 3 and all(isinstance(n, int) and n >= 0 for n in position) and "done" in record
        return files if valid and files else None
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None


def _train(text, vocab_size, log):
    parts, left = [], TRAIN_ON
    for i in range(len(text.paths)):
        with text.open(i) as file:
            parts.append(file.read(left))
            text.check(i)
        left -= len(parts[-1])
    if sum(text.sizes) > TRAIN_ON:
        log(f"note      the tokenizer is trained on the first {TRAIN_ON >> 20} MB of the text")
    documents = [document.strip(_BREAKS) for part in parts for document in part.split(_MARK)]
    if not any(document.strip() for document in documents):
        raise UserError(f"{text.paths[0]}: the file is empty; give a text to train on with --data FILE")
    return Tokenizer.train(documents, vocab_size)


def _encode(text, tokenizer, position):
    """Encode from `position` = (index of the file, byte, inside a document?) on.

    Yields (ids of a shard, position after it, done).
    """
    first, start, inside = position
    meter = Meter("tokenizing", sum(text.sizes), done=sum(text.sizes[:first]) + start)
    ids = []
    for k in range(first, len(text.paths)):
        with text.open(k, start) as file:
            for documents, complete, read, end, goes_on in blocks(file, start, inside, tokenizer.is_divisible):
                new = np.asarray(encode_stream(documents, tokenizer), np.int32)
                if tokenizer.eot is not None and not complete and documents:
                    new = new[:-1]  # the last document continues
                ids.append(new)
                meter.add(read)
                if sum(map(len, ids)) >= SHARD:
                    text.check(k)
                    yield np.concatenate(ids), (k, end, goes_on), False
                    ids = []
        text.check(k)
        start, inside = 0, False
    meter.close()
    yield np.concatenate(ids or [np.empty(0, np.int32)]), (len(text.paths), 0, False), True


def blocks(file, start=0, inside=False, is_divisible=True):
    """Divide a file, from byte `start`, into portions of documents.

    Yields (documents, is the last one complete?, bytes read, byte after the portion, does the file continue inside a
    document?). A portion ends with a document, or if none ends in a BLOCK, where no chunk is divided (parallel.py).
    If documents are not divisible, a long one is read to its end.
    """
    rest, at_end = b"", False
    while not at_end:
        block = file.read(BLOCK)
        at_end = len(block) < BLOCK
        rest += block
        cut = len(rest) if at_end else rest.rfind(_MARK) + len(_MARK)
        complete = at_end or cut >= len(_MARK)
        if not complete:
            cuts = [match.end() for match in CUT.finditer(rest, max(0, len(rest) - (1 << 16)))]
            if not cuts or not is_divisible:
                continue  # no white space so far: read on
            cut = cuts[-1]
        parts = rest[:cut].split(_MARK)
        if complete and not at_end:
            parts.pop()  # what follows the last mark: nothing
        documents = _documents(parts, inside, complete)
        start, rest = start + cut, rest[cut:]
        inside = not complete and (inside or bool(documents))
        yield documents, complete, len(block), start, inside


def _documents(parts, inside, complete):
    """Parts without the line breaks around them, and without empty ones.

    The first may continue one of the portion before (then it is kept even if empty: its end still counts), and the last
    may continue in the next portion.
    """
    documents = []
    for i, part in enumerate(parts):
        goes_on = inside and i == 0
        part = part if goes_on else part.lstrip(_BREAKS)
        part = part if i == len(parts) - 1 and not complete else part.rstrip(_BREAKS)
        if part or goes_on:
            documents.append(part)
    return documents


def split_documents(text):
    """Returns the documents of a text (bytes): the parts between <|endoftext|>, without the line breaks around them.

    split_documents(b"one\\n<|endoftext|>\\ntwo\\n") -> [b"one", b"two"]
    """
    parts = (part.strip(b"\r\n") for part in text.split(END_OF_TEXT.encode()))
    return [part for part in parts if part]


def encode_documents(documents, tokenizer, workers=None):
    """Returns one array (n,) int32 of all documents' ids, each followed by the end-of-text token; see parallel.py."""
    return np.asarray(encode_stream(documents, tokenizer, workers), dtype=np.int32)
