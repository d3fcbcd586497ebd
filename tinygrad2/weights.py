"""trained_weights.bin: everything inference needs, in one file that any safetensors reader opens.

    8 bytes      N, the length of the header (little-endian)
    N bytes      JSON: {"__metadata__": {...}, "wte.weight": {"dtype": "F32", "shape": [V, C], "data_offsets": [a, b]},
                 ...}
    the rest     the tensors one behind the other; offsets count from here

The tensors have GPT-2's names. The metadata are strings: "tinygrad2" (version of this layout), "config" and "training"
(JSON), "tokenizer" (JSON, see tokenizer.py), and "checksum" (CRC-32 of all the rest). A file is believed only after its
sizes, names and checksum have been found right; nothing in it is ever executed.

The state of the optimizer (checkpoint.py) and the batch of a dump (dump.py) lie in the same kind of container, with
other metadata.

https://github.com/huggingface/safetensors#format
"""

import json
import math
import mmap
import os
import zlib
from dataclasses import dataclass

import numpy as np

from tinygrad2.files import UserError, atomic_write

VERSION = "1"
_MAX_HEADER = 100_000_000  # as in the safetensors library
_DTYPES = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


@dataclass
class Weights:
    """What a weights file holds: tensors {name: float32 array}, and the decoded metadata."""

    tensors: dict
    config: dict
    tokenizer: str
    training: dict
    checksum: str = ""


def save_weights(path, tensors, config, tokenizer, training):
    """Write the file atomically.

    tensors     {name: float32 NumPy array}
    config      dict for GPTConfig.from_dict;  training   dict of what is worth remembering about the run
    tokenizer   the JSON text of Tokenizer.to_json(), or "" where there is none
    """
    with atomic_write(path) as file:
        write_weights(file, tensors, config, tokenizer, training)


def write_weights(file, tensors, config, tokenizer, training):
    """The same into a binary file that is open already; gives the checksum of the content."""
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise TypeError(f"{name} is {array.dtype}; weights are saved as float32")
    return write_tensors(file, tensors, config=json.dumps(config), tokenizer=tokenizer, training=json.dumps(training))


def load_weights(path):
    """Read and check a file made by save_weights: gives Weights, whose tensors are read-only views of the file.

    Raises UserError, one line with the file, what is wrong and what to do, for anything that is not a whole file.
    """
    tensors, metadata = read_tensors(path, ("config", "tokenizer", "training"))
    try:
        config, training = _object(metadata, "config"), _object(metadata, "training")
        for name, array in tensors.items():
            if array.dtype != np.float32:
                raise _Broken(f"tensor {name!r} is {array.dtype}, weights are float32")
    except _Broken as error:
        raise _broken(path, error) from None
    return Weights(tensors, config, metadata["tokenizer"], training, metadata["checksum"])


# -- the container -----------------------------------------------------------------------------------------------------


def write_tensors(file, tensors, **metadata):
    """Write {name: float32 or int64 array} and metadata (strings) into an open binary file; gives the checksum."""
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header, offset = {}, 0
    for name in sorted(tensors):
        array = tensors[name]
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    metadata = {"format": "pt", "tinygrad2": VERSION, **metadata}  # older readers insist on a known framework here
    header = {"__metadata__": metadata, **header}
    arrays = [np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8) for name in sorted(tensors)]
    metadata["checksum"] = _checksum(header, arrays)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors then start on an 8-byte boundary
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array in arrays:
        file.write(array)
    return metadata["checksum"]


def read_tensors(path, fields=()):
    """(tensors, metadata) of a file made by write_tensors, checked; tensors are read-only views of the file.

    `fields` names the metadata that must be there. Raises UserError, one line, for anything that is not a whole file.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise _Broken(f"only {size} bytes long")
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train first (python train_gpt2.py) or say --weights FILE") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except _Broken as error:
        raise _broken(path, error) from None
    try:
        return _parse(buffer, fields)
    except _Broken as error:
        raise _broken(path, error) from None


class _Broken(Exception):
    """What is wrong with the file, to be completed by its name."""


def _broken(path, error):
    return UserError(f"{path}: not a whole tinygrad2 weights file: {error}; copy it again or train anew")


def _parse(buffer, fields):
    N = int.from_bytes(buffer[:8], "little")
    if N > min(_MAX_HEADER, len(buffer) - 8):
        raise _Broken(f"header length {N:,} does not fit a file of {len(buffer):,} bytes")
    try:
        header = json.loads(bytes(buffer[8 : 8 + N]).decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise _Broken("the header is not valid JSON") from None
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "tinygrad2" not in metadata:
        raise _Broken("the header has no field 'tinygrad2' (a safetensors file of another program?)")
    if metadata["tinygrad2"] != VERSION:
        raise _Broken(f"layout version {metadata['tinygrad2']!r}, this program reads {VERSION!r}")
    for name in (*fields, "checksum"):
        if not isinstance(metadata.get(name), str):
            raise _Broken(f"metadata field {name!r} is missing or no text")

    data = buffer[8 + N :]
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        start, stop = _offsets(name, entry)
        shape = entry.get("shape")
        dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry.get("dtype"), str) else None
        if dtype is None:
            raise _Broken(f"tensor {name!r} has dtype {entry.get('dtype')!r}, only F32 and I64 are written here")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise _Broken(f"tensor {name!r} has shape {shape!r}")
        if start != end or stop - start != dtype.itemsize * math.prod(shape) or stop > len(data):
            raise _Broken(f"tensor {name!r} of shape {shape} claims bytes {start:,} to {stop:,} of {len(data):,}")
        tensors[name] = np.frombuffer(data[start:stop], dtype=dtype).reshape(shape)
        end = stop
    if end != len(data):
        raise _Broken(f"{len(data) - end:,} bytes behind the last tensor")

    claimed = metadata.pop("checksum")
    if claimed != _checksum({"__metadata__": metadata, **header}, [data]):
        raise _Broken("the checksum does not match, the file is damaged")
    return tensors, metadata | {"checksum": claimed}


def _checksum(header, parts):
    """CRC-32 of the header, in a form that does not depend on its spelling, and of the tensors."""
    crc = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for part in parts:
        crc = zlib.crc32(part, crc)
    return f"crc32:{crc:08x}"


def _offsets(name, entry):
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise _Broken(f"tensor {name!r} has data_offsets {offsets!r}")
    return offsets


def _object(metadata, name):
    try:
        value = json.loads(metadata[name])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _Broken(f"metadata field {name!r} is no JSON object")
    return value


def _no_duplicates(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)
