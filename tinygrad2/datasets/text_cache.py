"""A text, tokenized once: its ids lie in shards beside it, and the next training only opens them.

    my.txt
    .tinygrad2/my.txt-tokenizer-1024.json      the tokenizer that was trained on it, for a vocabulary of 1024
    .tinygrad2/my.txt-0a1b2c3d4e5f/            0a1b...: the hash of the tokenizer
        tokens_000000.bin ...                  the ids, as llm.c stores them
        progress.json                          what has been done: shards, and the place in the text behind the last

A text of any size goes through in blocks. After each shard, written whole or not at all, progress.json says so; work
that was interrupted goes on behind the last shard. Whether the text is still the same is told by its size and
date, or else by its content.
"""

import hashlib
import json
import os

import numpy as np

from tinygrad2.datasets.token_files import MemoryTokens, TokenFile, write_tokens
from tinygrad2.errors import UserError
from tinygrad2.io.files import read_record, write_record
from tinygrad2.monitor.progress import Meter
from tinygrad2.tokenizers.load import tokenizer_from_json
from tinygrad2.tokenizers.parallel import CUT, encode_stream
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

BLOCK = 32 << 20  # bytes of text that are in memory at a time
SHARD = 16 << 20  # ids after which a shard is written
TRAIN_ON = 64 << 20  # bytes from the text's beginning that a tokenizer is trained on
_READ_WHOLE = 8  # shards; of so few every byte is checked when they are opened, of more the ends
_MARK, _BREAKS = END_OF_TEXT.encode(), b"\r\n"


def tokens_of_text(paths, tokenizer, vocab_size, say):
    """(TokenFiles with the ids of the texts, tokenizer); the ids are those of encode_documents(split_documents(text)).

    tokenizer    None: one of `vocab_size` is trained on the text
    Raises UserError where a text cannot be read, or where all are empty.
    """
    text = _Text(paths)
    for folder in _cache_folders(paths[0]):
        try:
            os.makedirs(folder, exist_ok=True)
            return _open_or_make(text, folder, tokenizer, vocab_size, say)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise  # not a matter of where we write
        except PermissionError:
            pass
        except OSError as error:
            say(f"note      {folder}: cannot be used ({error.strerror})")
    say("note      no place to keep the tokens in: they stay in memory, and will be made anew next time")
    tokenizer = tokenizer or _train(text, vocab_size, say)
    ids = [part for part, *_ in _encode(text, tokenizer, (0, 0, False), say)]
    return [MemoryTokens(np.concatenate(ids))], tokenizer


def _cache_folders(path):
    yield os.path.join(os.path.dirname(os.path.abspath(path)), ".tinygrad2")
    yield os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tinygrad2")


def _open_or_make(text, folder, tokenizer, vocab_size, say):
    stem = os.path.join(folder, text.name)
    if tokenizer is None:
        path = f"{stem}-tokenizer-{vocab_size}.json"
        cached = read_record(path)
        if text.is_that_of(cached, path):
            tokenizer = tokenizer_from_json(json.dumps(cached.get("tokenizer")), path)
        else:
            tokenizer = _train(text, vocab_size, say)
            write_record(path, text.facts() | {"tokenizer": json.loads(tokenizer.to_json())})
    key = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:12]
    shards = f"{stem}-{key}"
    os.makedirs(shards, exist_ok=True)
    return _open_or_make_shards(text, shards, tokenizer, say), tokenizer


def _open_or_make_shards(text, folder, tokenizer, say):
    path = os.path.join(folder, "progress.json")
    record = read_record(path)
    files = _shards(record, folder) if text.is_that_of(record, path) else None
    if files is not None and record["done"]:
        return files
    if not files:
        files, record = [], text.facts() | {"shards": [], "place": (0, 0, False), "done": False}
    if files:
        say(f"note      going on with {folder} behind shard {len(files)}")
    for ids, place, done in _encode(text, tokenizer, tuple(record["place"]), say):
        if len(ids):
            name = f"tokens_{len(files):06d}.bin"
            write_tokens(os.path.join(folder, name), ids)
            files.append(TokenFile(os.path.join(folder, name)))
            made = files[-1]
            record["shards"].append({"name": name, "tokens": made.n, "ends": made.ends(), "crc": made.crc()})
        record |= {"place": place, "done": done}
        write_record(path, record)
    if not files:
        raise UserError(f"{text.paths[0]}: there is no text in it; give one to learn from with --data FILE")
    return files


def _shards(record, folder):
    """The TokenFiles of a record, or None where one is missing, damaged or of another work."""
    try:
        files = [TokenFile(os.path.join(folder, os.path.basename(shard["name"]))) for shard in record["shards"]]
        place, few = record["place"], len(files) <= _READ_WHOLE
        good = all(file.n == shard["tokens"] and (file.crc() == shard["crc"] if few else file.ends() == shard["ends"])
                   for file, shard in zip(files, record["shards"]))  # fmt: skip
        good &= len(place) == 3 and all(isinstance(n, int) and n >= 0 for n in place) and "done" in record
        return files if good else None
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None


class _Text:
    """One or several text files."""

    def __init__(self, paths):
        self.paths = paths
        name = os.path.basename(os.path.abspath(paths[0]))
        self.name = name if len(paths) == 1 else f"{os.path.basename(os.path.dirname(os.path.abspath(paths[0])))}-all"
        try:
            stats = [os.stat(path) for path in paths]
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
        self.bytes = sum(stat.st_size for stat in stats)
        self.dates = [[os.path.basename(path), stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats)]
        self._sha256 = None

    def sha256(self):
        """The hash of all files' contents."""
        if self._sha256 is None:
            whole = hashlib.sha256()
            for path in self.paths:
                with _open(path) as file:
                    while block := file.read(BLOCK):
                        whole.update(block)
                whole.update(b"\0end\0")
            self._sha256 = whole.hexdigest()
        return self._sha256

    def facts(self):
        """What a record says of the text."""
        return {"dates": self.dates, "sha256": self.sha256()}

    def is_that_of(self, record, path):
        """Was the record made from this text? Where only the date has changed, the record gets the new one."""
        if record is None:
            return False
        if record.get("dates") == self.dates:
            return True
        if record.get("sha256") != self.sha256():
            return False
        write_record(path, record | {"dates": self.dates})
        return True


def _train(text, vocab_size, say):
    parts, left = [], TRAIN_ON
    for path in text.paths:
        with _open(path) as file:
            parts.append(file.read(left))
        left -= len(parts[-1])
    if text.bytes > TRAIN_ON:
        say(f"note      the tokenizer is trained on the first {TRAIN_ON >> 20} MB of the text")
    documents = [part.strip(_BREAKS) for whole in parts for part in whole.split(_MARK)]
    if not any(document.strip() for document in documents):
        raise UserError(f"{text.paths[0]}: the file is empty; give a text to learn from with --data FILE")
    return Tokenizer.train(documents, vocab_size)


def _encode(text, tokenizer, place, say):
    """From `place` = (number of the file, byte, inside a document?) on: yields (ids of a shard, place behind it, done).
    """
    first, start, inside = place
    meter = Meter("tokenizing", text.bytes, done=sum(size for _, size, _ in text.dates[:first]) + start)
    ids = []
    for k in range(first, len(text.paths)):
        with _open(text.paths[k]) as file:
            file.seek(start)
            for documents, whole, read, end, goes_on in blocks(file, start, inside):
                some = np.asarray(encode_stream(documents, tokenizer), np.int32)
                if tokenizer.eot is not None and not whole and documents:
                    some = some[:-1]  # that document goes on
                ids.append(some)
                meter.add(read)
                if sum(map(len, ids)) >= SHARD:
                    yield np.concatenate(ids), (k, end, goes_on), False
                    ids = []
        start, inside = 0, False
    meter.close()
    yield np.concatenate(ids or [np.empty(0, np.int32)]), (len(text.paths), 0, False), True


def blocks(file, start=0, inside=False):
    """Cut a file, from byte `start`, into portions of documents: yields (documents, is the last one whole?, bytes read,
    byte behind the portion, does the file go on inside a document?).

    A portion ends with a document, or where none ends in a whole BLOCK, at a place where no chunk is cut (parallel.py).
    """
    rest, at_end = b"", False
    while not at_end:
        block = file.read(BLOCK)
        at_end = len(block) < BLOCK
        rest += block
        cut = len(rest) if at_end else rest.rfind(_MARK) + len(_MARK)
        whole = at_end or cut >= len(_MARK)
        if not whole:
            places = [match.end() for match in CUT.finditer(rest, max(0, len(rest) - (1 << 16)))]
            if not places:
                continue  # no white space in sight: read on
            cut = places[-1]
        parts = rest[:cut].split(_MARK)
        if whole and not at_end:
            parts.pop()  # what stands behind the last mark: nothing
        documents = _documents(parts, inside, whole)
        start, rest = start + cut, rest[cut:]
        inside = not whole and (inside or bool(documents))
        yield documents, whole, len(block), start, inside


def _documents(parts, inside, whole):
    """Without the line breaks around each, and without empty ones. The first may go on with one of the portion before
    (then it may be empty: its end still counts), the last may go on in the next."""
    documents = []
    for i, part in enumerate(parts):
        goes_on = inside and i == 0
        part = part if goes_on else part.lstrip(_BREAKS)
        part = part if i == len(parts) - 1 and not whole else part.rstrip(_BREAKS)
        if part or goes_on:
            documents.append(part)
    return documents


def _open(path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def split_documents(text):
    """The documents of a text (bytes): what stands between the marks <|endoftext|>, without the line breaks around.

    split_documents(b"one\\n<|endoftext|>\\ntwo\\n") -> [b"one", b"two"]
    """
    parts = (part.strip(b"\r\n") for part in text.split(END_OF_TEXT.encode()))
    return [part for part in parts if part]


def encode_documents(documents, tokenizer, workers=None):
    """One token stream (n,) int32 of all documents, each followed by the end-of-text token; see parallel.py."""
    return np.asarray(encode_stream(documents, tokenizer, workers), dtype=np.int32)
