"""What --data means: a text, a token file, a folder of either, or a pattern; as streams to train on and to validate.

    my.txt                                    text: tokenized once, see text_cache.py
    texts/  or  'texts/*.md'                  several texts, concatenated in the order of their names
    stories_train.txt + stories_val.txt       a pair of texts in a folder
    train.bin + val.bin                       nanoGPT's pair; the dataset has the folder's name
    shakespeare_train.bin + shakespeare_val.bin                     llm.c's pair "shakespeare"
    edu_train_000001.bin, edu_train_000002.bin ... + edu_val_000000.bin     shards
    tokens.bin                                one token file; its last part is for validation

A folder is searched recursively (find_files.py). If it has token files, texts next to them are assumed to be their
sources and are ignored. Files are told by their content to be text, compressed or not, or tokens of some format.
"""

import os
import time
from dataclasses import dataclass, field
from functools import partial

from tinygrad2.datasets.find_files import find_files, split_of
from tinygrad2.datasets.piped import file_of
from tinygrad2.datasets.text_cache import tokens_of_text
from tinygrad2.datasets.text_source import ALWAYS_READ
from tinygrad2.datasets.token_files import TokenFile, TokenStream
from tinygrad2.errors import UserError
from tinygrad2.io.files import crc32_of_file
from tinygrad2.io.text_file import examine
from tinygrad2.tokenizers.formats import TOKENIZER_FILES
from tinygrad2.tokenizers.load import AnyTokenizer, load_tokenizer
from tinygrad2.tokenizers.nanogpt_meta import META

_MOST_NAMED = 3  # files that a message names; the others are counted
_MOST_SUMS = 2000  # files whose checksums are kept one by one; only of these it is told which has changed
_PATIENCE = 10.0  # seconds that another rank waits for the files of rank 0 to appear on its host


def difference(before, now):
    """Which files are others than before, by two results of Dataset.file_sums; "" if that is not known.

    >>> difference({"a.txt": "1", "b.txt": "2", "c.txt": "3"}, {"a.txt": "1", "b.txt": "4", "d.txt": "3"})
    'b.txt has other content, c.txt is missing, d.txt is new'
    """
    if not before or not now:
        return ""
    changes = [f"{name} has other content" for name in before if now.get(name, before[name]) != before[name]]
    changes += [f"{name} is missing" for name in before if name not in now]
    changes += [f"{name} is new" for name in now if name not in before]
    more = [f"and {len(changes) - _MOST_NAMED:,} more"] if len(changes) > _MOST_NAMED else []
    same = "its files are the same, but chosen or divided in another way: --dataset, --val-fraction"
    return ", ".join(changes[:_MOST_NAMED] + more) or same


def is_same_data(a, b):
    """Are two fingerprints of the same data? Those of earlier versions have only the first half of each part."""
    parts, others = ([part.split(".") for part in fingerprint.split("-")] for fingerprint in (a, b))
    return len(parts) == len(others) and all(
        part[: len(other)] == other[: len(part)] for part, other in zip(parts, others)
    )


@dataclass
class Dataset:
    """Tokens for training and validation, both TokenStreams (`val` may be None), and the tokenizer (or None)."""

    train: TokenStream
    val: TokenStream | None
    tokenizer: AnyTokenizer | None
    description: list[str] = field(default_factory=list)  # lines to print
    source: str = ""  # what --data names; of a pipe, the file with its content
    texts: list[str] = field(default_factory=list)  # paths of the texts that were tokenized, in order

    @property
    def fingerprint(self):
        """Identifies the data, see TokenStream.fingerprint."""
        return "-".join(stream.fingerprint() for stream in (self.train, self.val) if stream)

    def has_fingerprint(self, saved):
        """Is this the data of a saved fingerprint?"""
        return is_same_data(saved, self.fingerprint)

    def file_sums(self):
        """{file: its CRC-32 as text} of what --data names, if that is more than one file; {} for
        thousands of files, and for texts of more than ALWAYS_READ bytes. Raises UserError if a text cannot be read."""
        if self.texts:
            is_much = sum(map(os.path.getsize, self.texts)) > ALWAYS_READ
            sums = {} if is_much else {path: partial(_crc32, path) for path in self.texts}
        else:
            files = [file for stream in (self.train, self.val) if stream for file in stream.files]
            sums = {file.path: lambda file=file: f"crc32:{file.crc():08x}" for file in files}
        if not 1 < len(sums) <= _MOST_SUMS:
            return {}
        top = self.source if os.path.isdir(self.source) else ""
        return {os.path.relpath(path, top) if top else path: sum_of() for path, sum_of in sums.items()}

    @property
    def tokenizer_json(self):
        """The tokenizer's JSON, or "" if there is none."""
        return self.tokenizer.to_json() if self.tokenizer else ""


def open_dataset(
    data: str,
    name: str,
    tokenizer: str,
    vocab_size: int,
    val_fraction: float,
    world,
    known_tokenizer: AnyTokenizer | None = None,
    may_train: bool = True,
    is_resumed: bool = False,
) -> Dataset:
    """Returns the Dataset of the path or pattern `data`.

    name              which one, if there are several ("": the only one)
    tokenizer         path of a tokenizer, "" for none
    vocab_size        ids must be below it; the size of a tokenizer that is trained here
    val_fraction      part of the tokens for validation, if the files do not decide
    world             the World; rank 0 creates the token files, the other ranks wait and then open them
    known_tokenizer   the tokenizer itself, if it came with a checkpoint
    may_train         whether a tokenizer may be trained on a text if none is known
    is_resumed        whether a training goes on, with the tokenizer that it began with: if that was none, one that is
                      next to token files by now is not used

    Raises UserError, one line, for anything that cannot be used.
    """
    data = world.broadcast_object(world.on_rank_0("opening the data", file_of, data, world.print))
    files = find_files(data)
    if files.tokens:
        if files.texts:
            files.notes.append(f"not read: {len(files.texts)} text(s) next to the token files")
        dataset = _of_tokens(files.tokens, data, name, tokenizer, vocab_size, val_fraction, known_tokenizer, is_resumed)
    else:
        known_tokenizer = known_tokenizer or _given_tokenizer(data, tokenizer, vocab_size, may_train)
        dataset = _of_texts(files.texts, data, name, known_tokenizer, vocab_size, val_fraction, world)
    dataset.description += [f"note      {note}" for note in files.notes]
    dataset.source = data
    _hold(dataset, world)
    return dataset


def _hold(dataset, world):
    """Open all files, and let all ranks compare what they read with the files of rank 0, as they are now."""
    streams = [stream for stream in (dataset.train, dataset.val) if stream]
    files = [file for stream in streams for file in stream.files]
    sums = world.on_rank_0("reading the data", lambda: [file.sums() for file in files])
    sums = world.broadcast_object(sums)
    if len(sums) != len(files):
        raise UserError(f"{dataset.source}: has {len(files)} files here, and {len(sums)} on the host of rank 0")
    for file, own in zip(files, sums):
        file.use_sums(own)
    for stream in streams:
        stream.open()


def _given_tokenizer(data, tokenizer, vocab_size, may_train):
    """The tokenizer of that path for a text; None if one is to be trained."""
    if tokenizer:
        given = load_tokenizer(tokenizer)
        _check_fits(given, tokenizer, vocab_size)
        return given
    if not may_train:
        raise UserError(f"{data}: is text, and the tokenizer of the initial model is not known; specify it "
                        "with --tokenizer (GPT-2's: python data/gpt2/prepare.py --tokenizer-only)")
    return None


def _of_texts(paths, data, name, tokenizer, vocab_size, val_fraction, world):
    sets = _group(paths, data)
    pairs = {key: splits for key, splits in sets.items() if len(splits) == 2}
    splits = {"train": paths}
    if name or pairs:
        splits = _choose(sets if name else pairs, name, data)[1]
        splits = splits if len(splits) == 2 else {"train": sum(splits.values(), [])}
    streams, size = {}, 0
    for split in sorted(splits):  # "train" first: its text trains the tokenizer
        arguments = splits[split], tokenizer, vocab_size, world.print
        tokens = world.on_rank_0("making tokens", tokens_of_text, *arguments)
        made = world.broadcast_object(tokens and [(file.path, file.n) for file in tokens[0]])
        if not tokens:
            wait_until_visible(made)
        files, tokenizer = tokens or tokens_of_text(*arguments)  # the other ranks read what rank 0 has written
        streams[split] = TokenStream(files, vocab_size)
        size += sum(os.path.getsize(path) for path in splits[split])
    train, n = streams["train"], sum(map(len, streams.values()))
    if len(train) < 3:
        raise UserError(f"{data}: {len(train)} token(s) are too few to train on; give a longer text")
    count = sum(map(len, splits.values()))
    what = "" if count == 1 else f" in {count} files"
    forms = {str(examine(path)[0]) for paths in splits.values() for path in paths} - {"UTF-8"}
    what += f" ({'; '.join(sorted(forms))})" if forms else ""
    lines = [f"data      {data}: {size:,} bytes{what}, {n:,} tokens"]
    if count < len(paths):
        lines.append(f"note      not read: {len(paths) - count} other text(s) that do not belong to the dataset")
    train, val = _split_or_pair(train, streams.get("val"), val_fraction, data)
    return Dataset(train, val, tokenizer, lines, texts=[path for split in sorted(splits) for path in splits[split]])


def _crc32(path):
    try:
        return crc32_of_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def wait_until_visible(files):
    """Wait until token files (path, number of ids) that another process has written can be read here: a file system
    of a network may show a new file on another host some seconds later, or show it empty. Not longer than _PATIENCE: a
    host with a copy of the text makes its own tokens."""
    end = time.monotonic() + _PATIENCE
    for path, n in files:
        while os.path.isabs(path) and not _has_ids(path, n) and time.monotonic() < end:
            time.sleep(0.2)


def _has_ids(path, n):
    try:
        return TokenFile(path).n == n
    except UserError:
        return False


def _of_tokens(paths, data, name, tokenizer, vocab_size, val_fraction, known_tokenizer, is_resumed):
    chosen, splits = _choose(_group(paths, data), name, data)
    splits = {split: [TokenFile(path) for path in paths] for split, paths in splits.items()}
    train = TokenStream(splits.get("train") or splits["val"], vocab_size)
    if len(train) < 3:
        raise UserError(f"{data}: {len(train)} token(s) are too few to train on; give a longer file")
    val = TokenStream(splits["val"], vocab_size) if len(splits) == 2 else None
    train, val = _split_or_pair(train, val, val_fraction, data)
    notes = [file.note for files in splits.values() for file in files if file.note]
    near = _tokenizer_near(train.files[0].path) if known_tokenizer is None and not tokenizer else ""
    if known_tokenizer is None and tokenizer:
        known_tokenizer = load_tokenizer(tokenizer)
    elif near and is_resumed:
        notes.append(f"{near}: not used, for this training began without a tokenizer; to use it: --tokenizer FILE")
    elif near:
        known_tokenizer = _load_near(near, notes)
    if known_tokenizer:
        _check_fits(known_tokenizer, tokenizer or data, vocab_size)
    kinds = ", ".join(sorted({f"{file.kind} {file.dtype}" for files in splits.values() for file in files}))
    lines = [f"data      {chosen}: {len(train.files)} file(s) to train on ({kinds})"]
    if known_tokenizer is None:
        notes.append("no tokenizer here (tokenizer.json, vocab.bpe or meta.pkl next to the data, or --tokenizer FILE): "
                     "samples are printed as ids")
    return Dataset(train, val, known_tokenizer, lines + [f"note      {note}" for note in notes])


def _group(paths, data):
    """{dataset: {"train": paths, "val": paths}}; a file whose name has neither word is a separate dataset."""
    sets = {}
    top = data if os.path.isdir(data) else os.path.dirname(data)
    for path in paths:
        folder = os.path.dirname(path)
        inside = os.path.relpath(folder or ".", top or ".").replace(os.sep, "/")
        name, split = split_of(path)
        if name is None:  # train.bin: the folder's name is the dataset's
            name, inside = os.path.basename(os.path.abspath(folder)), os.path.dirname(inside)
        key = name if inside in (".", "") else f"{inside}/{name}"
        sets.setdefault(key, {}).setdefault(split, []).append(path)
    return sets


def _choose(sets, name, data):
    """(name, {split: paths}) of the chosen dataset. Raises UserError with the choices if that is not one."""
    chosen = [key for key in sets if not name or key == name or key.split("/")[-1] == name]
    if len(chosen) != 1:
        problem = f"there is no dataset {name!r}" if name and not chosen else f"{len(sets)} datasets are here"
        raise UserError(f"{data}: {problem}; choose one with --dataset: {', '.join(_choices(sets))}")
    return chosen[0], sets[chosen[0]]


def _choices(sets):
    for key, splits in sorted(sets.items()):
        yield f"{key} ({', '.join(f'{len(paths)} {split}' for split, paths in sorted(splits.items()))})"


def _split_or_pair(train, val, val_fraction, data):
    """(train, val): a pair as it is, else the stream divided. Raises UserError for a pair's val that is too short."""
    if val is None:
        return _split(train, val_fraction)
    if len(val) < 2:
        where = val.files[0].path if val.files[0].kind != "memory" else data
        raise UserError(f"{where}: {len(val)} token(s) are too few to validate on, which takes a token and its "
                        "successor; give a longer file for validation, or none: a part of the other is then taken")
    return train, val


def _split(stream, val_fraction):
    """Divide a stream into (train, val), its last part; val is None if that would be less than 2 ids."""
    n_val = int(len(stream) * val_fraction)
    n_train = max(2, len(stream) - n_val)
    train = stream.part(0, n_train)
    return train, stream.part(n_train, len(stream)) if len(stream) - n_train > 1 else None


def _tokenizer_near(path):
    """The path of the tokenizer next to a token file, or in the folder above: a folder, a meta.pkl; "" for none."""
    own = os.path.dirname(os.path.abspath(path))
    for folder in (own, os.path.dirname(own)):
        if any(os.path.isfile(os.path.join(folder, name)) for name in TOKENIZER_FILES):
            return folder
    return os.path.join(own, META) if os.path.isfile(os.path.join(own, META)) else ""


def _load_near(path, notes):
    """The tokenizer of that path; None, and a note, for a meta.pkl that cannot be used."""
    try:
        return load_tokenizer(path)
    except UserError as error:
        if os.path.basename(path) != META:
            raise
        notes.append(str(error))
        return None


def _check_fits(tokenizer, source, vocab_size):
    if tokenizer.n_vocab > vocab_size:
        raise UserError(f"{source}: its {tokenizer.n_vocab} tokens do not fit --vocab-size {vocab_size}; "
                        f"give --vocab-size {tokenizer.n_vocab}")
