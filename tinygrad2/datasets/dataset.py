"""What --data means: a text, a token file, a folder of either, or a pattern; as streams to train on and to validate.

    my.txt                                    text: tokenized once, see text_cache.py
    texts/  or  'texts/*.md'                  several texts, concatenated in the order of their names
    stories_train.txt + stories_val.txt       a pair of texts in a folder
    train.bin + val.bin                       nanoGPT's pair; the dataset has the folder's name
    shakespeare_train.bin + shakespeare_val.bin                     llm.c's pair "shakespeare"
    edu_train_000001.bin, edu_train_000002.bin ... + edu_val_000000.bin     shards
    tokens.bin                                one token file; its last part is for validation

A folder is searched recursively. If it has token files, texts next to them are assumed to be their sources and are
ignored. The formats of token files are recognized by their content (token_files.py).
"""

import glob
import os
import re
from dataclasses import dataclass, field

from tinygrad2.datasets.text_cache import tokens_of_text
from tinygrad2.datasets.token_files import TokenFile, TokenStream
from tinygrad2.errors import UserError
from tinygrad2.tokenizers.formats import TOKENIZER_FILES
from tinygrad2.tokenizers.load import AnyTokenizer, load_tokenizer

_TEXTS, _TOKENS = (".txt", ".text", ".md"), (".bin", ".npy")
_NOT_TOKENS = re.compile(r"(weights|optimizer|tokenizer)[^/]*\.bin$|^gpt2_|^model_|^state_")
_SPLIT = re.compile(r"(?:(?P<name>.+?)[_-])??(?P<split>train|val|valid|validation)(?:[_-]?\d+)?$")


@dataclass
class Dataset:
    """Tokens for training and validation, both TokenStreams (`val` may be None), and the tokenizer (or None)."""

    train: TokenStream
    val: TokenStream | None
    tokenizer: AnyTokenizer | None
    description: list[str] = field(default_factory=list)  # lines to print

    @property
    def fingerprint(self):
        """Identifies the data, see TokenStream.fingerprint."""
        return "-".join(stream.fingerprint() for stream in (self.train, self.val) if stream)

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
) -> Dataset:
    """Returns the Dataset of the path or pattern `data`.

    name              which one, if there are several ("": the only one)
    tokenizer         path of a tokenizer, "" for none
    vocab_size        ids must be below it; the size of a tokenizer that is trained here
    val_fraction      part of the tokens for validation, if the files do not decide
    world             the World; rank 0 creates the token files, the other ranks wait and then open them
    known_tokenizer   the tokenizer itself, if it came with a checkpoint
    may_train         whether a tokenizer may be trained on a text if none is known

    Raises UserError, one line, for anything that cannot be used.
    """
    files = _find(data)
    texts = [path for path in files if not _is_tokens(path)]
    if len(texts) < len(files):
        return _of_tokens([path for path in files if _is_tokens(path)], data, name, tokenizer, vocab_size, val_fraction,
                          known_tokenizer)  # fmt: skip
    if known_tokenizer is None and tokenizer:
        known_tokenizer = load_tokenizer(tokenizer)
        _check_fits(known_tokenizer, tokenizer, vocab_size)
    if known_tokenizer is None and not may_train:
        raise UserError(f"{data}: is text, and the tokenizer of the initial model is not known; specify it "
                        "with --tokenizer (GPT-2's: python data/gpt2/prepare.py --tokenizer-only)")
    return _of_texts(texts, data, name, known_tokenizer, vocab_size, val_fraction, world)


def _of_texts(paths, data, name, tokenizer, vocab_size, val_fraction, world):
    pairs = {key: splits for key, splits in _group(paths, data).items() if len(splits) == 2}
    splits = _choose(pairs, name, data)[1] if pairs else {"train": paths}
    streams, size = {}, 0
    for split in sorted(splits):  # "train" first: its text trains the tokenizer
        arguments = splits[split], tokenizer, vocab_size, world.print
        tokens = world.on_rank_0("making tokens", tokens_of_text, *arguments)
        files, tokenizer = tokens or tokens_of_text(*arguments)  # the other ranks read what rank 0 has written
        streams[split] = TokenStream(files, vocab_size)
        size += sum(os.path.getsize(path) for path in splits[split])
    train, n = streams["train"], sum(map(len, streams.values()))
    if len(train) < 3:
        raise UserError(f"{data}: {len(train)} token(s) are too few to train on; give a longer text")
    count = sum(map(len, splits.values()))
    what = "" if count == 1 else f" in {count} files"
    line = f"data      {data}: {size:,} bytes{what}, {n:,} tokens"
    train, val = (train, streams["val"]) if pairs else _split(train, val_fraction)
    return Dataset(train, val, tokenizer, [line])


def _of_tokens(paths, data, name, tokenizer, vocab_size, val_fraction, known_tokenizer):
    chosen, splits = _choose(_group(paths, data), name, data)
    splits = {split: [TokenFile(path) for path in paths] for split, paths in splits.items()}
    train = TokenStream(splits.get("train") or splits["val"], vocab_size)
    if len(train) < 3:
        raise UserError(f"{data}: {len(train)} token(s) are too few to train on")
    if len(splits) == 2:
        val = TokenStream(splits["val"], vocab_size)
    else:
        train, val = _split(train, val_fraction)
    if known_tokenizer is None:
        known_tokenizer = _tokenizer_near(train.files[0].path, tokenizer)
    if known_tokenizer:
        _check_fits(known_tokenizer, tokenizer or data, vocab_size)
    kinds = ", ".join(sorted({f"{file.kind} {file.dtype}" for files in splits.values() for file in files}))
    lines = [f"data      {chosen}: {len(train.files)} file(s) to train on ({kinds})"]
    if known_tokenizer is None:
        lines.append("note      no tokenizer here (tokenizer.json or vocab.bpe next to the data, or --tokenizer FILE): "
                     "samples are printed as ids")
    return Dataset(train, val, known_tokenizer, lines)


def _find(data):
    """The files of the path or pattern `data`, sorted."""
    if os.path.isfile(data):
        return [data]
    if os.path.isdir(data):
        paths = []
        for folder, folders, names in os.walk(data):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "previous-", "checkpoints")))
            paths += [os.path.join(folder, name) for name in sorted(names)]
        paths = [path for path in paths if path.endswith(_TEXTS + _TOKENS) and not _NOT_TOKENS.search(_name(path))]
        paths = [path for path in paths if _name(path) not in TOKENIZER_FILES]
        if not paths:
            kinds = f"texts ({' '.join(_TEXTS)}) nor token files ({' '.join(_TOKENS)})"
            raise UserError(f"{data}: contains neither {kinds}")
        return paths
    paths = sorted(path for path in glob.glob(data, recursive=True) if os.path.isfile(path))
    if not paths:
        raise UserError(f"{data}: cannot be read (No such file or directory); --data takes a file, a folder, a pattern")
    return paths


def _is_tokens(path):
    return path.endswith(_TOKENS)


def _name(path):
    return os.path.basename(path)


def _group(paths, data):
    """{dataset: {"train": paths, "val": paths}}; a file whose name has neither word is a separate dataset."""
    sets = {}
    top = data if os.path.isdir(data) else os.path.dirname(data)
    for path in paths:
        stem = os.path.splitext(_name(path))[0]
        folder = os.path.dirname(path)
        inside = os.path.relpath(folder or ".", top or ".").replace(os.sep, "/")
        match = _SPLIT.match(stem)
        split = "val" if match and match["split"].startswith("val") else "train"
        name = match["name"] if match else stem
        if name is None:  # train.bin: the folder's name is the dataset's
            name, inside = _name(os.path.abspath(folder)), os.path.dirname(inside)
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


def _split(stream, val_fraction):
    """Divide a stream into (train, val), its last part; val is None if that would be less than 2 ids."""
    n_val = int(len(stream) * val_fraction)
    n_train = max(2, len(stream) - n_val)
    train = stream.part(0, n_train)
    return train, stream.part(n_train, len(stream)) if len(stream) - n_train > 1 else None


def _tokenizer_near(path, given):
    if given:
        return load_tokenizer(given)
    own = os.path.dirname(os.path.abspath(path))
    for folder in (own, os.path.dirname(own)):
        if any(os.path.isfile(os.path.join(folder, name)) for name in TOKENIZER_FILES):
            return load_tokenizer(folder)
    return None


def _check_fits(tokenizer, source, vocab_size):
    if tokenizer.n_vocab > vocab_size:
        raise UserError(f"{source}: its {tokenizer.n_vocab} tokens do not fit --vocab-size {vocab_size}; "
                        f"give --vocab-size {tokenizer.n_vocab}")
