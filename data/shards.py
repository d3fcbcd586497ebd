"""Documents, written as shards of tokens of equal length; work that was interrupted goes on after the last shard."""

import os

import numpy as np

from data.prepared import claim, writing
from tinygrad2.datasets.token_files import write_tokens
from tinygrad2.errors import UserError, short
from tinygrad2.io.files import crc32_text, read_record, write_record
from tinygrad2.tokenizers.parallel import encode_stream

_MOST = 1 << 62  # of counts: what a file can have


def make_shards(groups, stem, tokenizer, shard_tokens, most=None, first_is_val=False):
    """Write documents as llm.c's shards of equal length, <stem>_000000.bin, <stem>_000001.bin, ...; returns how many.

    groups(position) yields (position, documents) from there on, None being the beginning; a position is a count, or a
    list of two, and for one that cannot be something else is yielded, or nothing. An end-of-text token precedes each
    document. After each shard <stem>_state.json records where the next one begins (which group, and how many of its
    tokens are used), so that interrupted work continues there and writes the same bytes. With `first_is_val` the names
    are <stem>_val_000000.bin, <stem>_train_000001.bin, ...

    Raises UserError if the record does not belong to these documents, this tokenizer or the shards that are there.
    """
    path, (folder, prefix) = f"{stem}_state.json", os.path.split(stem)

    def name_of(k):
        split = ("_train" if k else "_val") if first_is_val else ""
        return f"{prefix}{split}_{k:06d}.bin"

    def write(k, parts):
        ids = np.concatenate(parts)
        claim(folder, [name_of(k)])
        with writing(folder, name_of(k)) as target:
            write_tokens(target, ids)
        print(f"shard     {target}: {len(ids):,} tokens", flush=True)

    made_of = {"tokenizer": crc32_text(tokenizer.to_json().encode()), "shard_tokens": shard_tokens}
    state = _read_state(path, made_of) or {"shards": 0, "position": None, "skip": 0, "done": False, "made_of": made_of}
    missing = next((name for name in map(name_of, range(state["shards"])) if not _is_file(folder, name)), None)
    if missing:
        raise UserError(f"{os.path.join(folder, missing)}: is missing, although it was written; restore it, or remove "
                        f"{path}: then all shards are written again")  # fmt: skip
    claim(folder, [name_of(k) for k in (state["shards"], state["shards"] + 1) if not state["done"]])
    if state["done"] or state["shards"] == most:
        return state["shards"]
    if state["shards"]:
        print(f"note      continuing after shard {state['shards']}", flush=True)
    pending, size = [], 0
    for position, ids in _token_groups(groups, state, tokenizer, path):
        used = state["skip"] if position == state["position"] else 0
        while size + len(ids) - used >= shard_tokens:
            take = shard_tokens - size
            write(state["shards"], [*pending, ids[used : used + take]])
            pending, size, used = [], 0, used + take
            state |= {"shards": state["shards"] + 1, "position": position, "skip": used}
            write_record(path, state)
            if state["shards"] == most:
                return most
        pending.append(ids[used:])
        size += len(ids) - used
    if size:
        write(state["shards"], pending)
        state["shards"] += 1
    write_record(path, state | {"done": True})
    return state["shards"]


def _token_groups(groups, state, tokenizer, path):
    """Yields (position, ids) of each group from the position of `state` on, which must be that of the first one: other
    files would be continued in the wrong place, or not at all. Raises UserError, naming the record `path`."""
    expected = state["position"]
    for position, documents in groups(expected):
        ids = np.asarray(encode_stream(documents, tokenizer), np.int32)
        ids = np.concatenate([[tokenizer.eot], ids[:-1]]) if len(ids) else ids  # before each, not after
        if expected is not None and (position != expected or state["skip"] > len(ids)):
            break
        expected = None
        yield position, ids
    if expected is not None:
        raise _other_documents(path)


def _read_state(path, made_of):
    """The record of a work that was interrupted or done; None if there is none, or none that can be read. Raises
    UserError for one that is of something else, or that no work has written: its checksum may be right all the same."""
    state = read_record(path)
    if state is None:
        return None
    for name, is_valid in _IS_VALID.items():
        if name not in state or not is_valid(state[name]):
            problem = f"is {short(state[name])}, which no work writes" if name in state else "is missing"
            raise UserError(f"{path}: field {name!r} {problem}; remove this file: then all shards are written again")
    if state["made_of"] != made_of:
        raise UserError(f"{path}: the shards that are here are of another tokenizer or another --shard-tokens; choose "
                        "another --out, or remove them and this file")
    if (state["position"] is None) != (state["shards"] == 0) and not state["done"]:
        raise _other_documents(path)
    return state


def _other_documents(path):
    return UserError(f"{path}: does not belong to these documents; restore the files that it was written with, or "
                     "remove it: then all shards are written again")  # fmt: skip


def _is_file(folder, name):
    return os.path.isfile(os.path.join(folder, name))


def _is_count(value):
    return type(value) is int and 0 <= value < _MOST


def _is_position(value):
    is_pair = isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))
    return value is None or _is_count(value) or is_pair


_IS_VALID = {
    "shards": _is_count, "position": _is_position, "skip": _is_count, "done": lambda value: isinstance(value, bool),
    "made_of": lambda value: isinstance(value, dict),
}  # fmt: skip
