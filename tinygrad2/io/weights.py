"""trained_weights.bin: everything that inference needs, in one safetensors container (safetensors.py).

The tensors have GPT-2's names. The metadata are strings: "tinygrad2" (version of this layout), "config" and "training"
(JSON), "tokenizer" (JSON, see tokenizer.py), and "checksum" (CRC-32 of everything else). A file is used only after its
sizes, names and checksum have been verified; nothing in it is ever executed.

The optimizer's state (checkpoint.py) and the batch of a dump (dump.py) are containers of the same kind with other
metadata.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.io.file_bytes import pieces
from tinygrad2.io.files import CorruptFile, atomic_write, crc32_text
from tinygrad2.io.lazy_tensor import LazyTensor
from tinygrad2.io.open_file import open_file
from tinygrad2.io.safetensors import MAX_HEADER, open_container, pack_header

VERSION = "1"
_DTYPES = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


@dataclass
class Weights:
    """The content of a weights file: tensors {name: float32 array}, and the decoded metadata."""

    tensors: "StoredTensors"
    config: dict
    tokenizer: str
    training: dict
    checksum: str = ""


def save_weights(
    path: str | Path, tensors: Mapping[str, np.ndarray], config: Mapping, tokenizer: str, training: Mapping
) -> None:
    """Write the file atomically.

    tensors     {name: float32 NumPy array}
    config      of the model (ModelConfig.to_dict)
    tokenizer   the JSON text of Tokenizer.to_json(), or "" if there is none
    training    dict of facts about the run (step, loss, data, ...)

    Raises TypeError for another dtype, UserError if the file cannot be written.
    """
    with atomic_write(path) as file:
        write_weights(file, tensors, config, tokenizer, training)


def write_weights(file, tensors, config, tokenizer, training):
    """The same into an open binary file; returns the checksum of the content."""
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise TypeError(f"{name} is {array.dtype}; weights are saved as float32")
    return write_tensors(file, tensors, config=json.dumps(config), tokenizer=tokenizer, training=json.dumps(training))


def load_weights(path: str | Path) -> Weights:
    """Read and check a file written by save_weights; returns Weights, whose tensors are read when they are used.

    Raises UserError, one line with the file, what is wrong and what to do, if it is anything but a valid file.
    """
    tensors, metadata = read_tensors(path, ("config", "tokenizer", "training"))
    try:
        config, training = _object(metadata, "config"), _object(metadata, "training")
        tensors.lazy()
    except CorruptFile as error:
        raise _corrupt(path, error) from None
    return Weights(tensors, config, metadata["tokenizer"], training, metadata["checksum"])


def is_weights(path):
    """Is this file, by its header, a weights file that save_weights has written? The tensors are not looked at."""
    return _metadata(path).keys() >= {"tinygrad2", "config", "tokenizer", "training"}


def training_of(path):
    """The facts about the training in the header of a weights file; {} if there are none."""
    with contextlib.suppress(CorruptFile):
        return _object(_metadata(path), "training")
    return {}


def _metadata(path):
    """The metadata of a container; {} for any other file."""
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError, UserError), open_file(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size <= min(MAX_HEADER, os.fstat(file.fileno()).st_size):
            return dict(json.loads(file.read(size)).get("__metadata__") or {})
    return {}


# -- the container -----------------------------------------------------------------------------------------------------


def write_tensors(file, tensors, **metadata):
    """Write {name: float32 or int64 array} and metadata (strings) into an open binary file; returns the checksum."""
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
    file.write(pack_header(header))
    for array in arrays:
        file.write(array)
    return metadata["checksum"]


def read_tensors(path, fields=()):
    """Returns (StoredTensors, metadata) of a file written by write_tensors, checked.

    `fields` names the metadata that must be present. Raises UserError, one line, if it is anything but a valid file.
    """
    try:
        container = open_container(path)
        return _verified(container, fields)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train first (python train_gpt2.py) or give --weights FILE") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except CorruptFile as error:
        raise _corrupt(path, error) from None


def _corrupt(path, error):
    return UserError(f"{path}: not a valid tinygrad2 weights file: {error}; copy it again or train again")


def _verified(container, fields):
    metadata = dict(container.metadata)
    if "tinygrad2" not in metadata:
        raise CorruptFile("the header has no field 'tinygrad2' (a safetensors file of another program?)")
    if metadata["tinygrad2"] != VERSION:
        raise CorruptFile(f"layout version {metadata['tinygrad2']!r}, this program reads {VERSION!r}")
    for name in (*fields, "checksum"):
        if name not in metadata:
            raise CorruptFile(f"metadata field {name!r} is missing")
    for name, entry in container.entries.items():
        if entry.code not in _DTYPES:
            raise CorruptFile(f"tensor {short(name)} has dtype {entry.code}, not F32 or I64")
    claimed = metadata.pop("checksum")
    if claimed != _checksum({"__metadata__": metadata, **container.header}, pieces(container.data)):
        raise CorruptFile("the checksum does not match, the file is damaged")
    return StoredTensors(container), metadata | {"checksum": claimed}


class StoredTensors(Mapping):
    """{name: array} of a checked file; each time one is asked for, it is read (a read-only array).

    Raises UserError if the file is no longer what was checked.
    """

    def __init__(self, container):
        self._container = container

    def __getitem__(self, name):
        entry = self._container.entries[name]
        content = bytes(self._container.data[entry.start : entry.stop])
        return np.frombuffer(content, _DTYPES[entry.code]).reshape(entry.shape)

    def __iter__(self):
        return iter(self._container.entries)

    def __len__(self):
        return len(self._container.entries)

    def lazy(self) -> dict[str, LazyTensor]:
        """The same as LazyTensors. Raises CorruptFile if one is not of float32."""
        for name, entry in self._container.entries.items():
            if entry.code != "F32":
                raise CorruptFile(f"tensor {short(name)} is {_DTYPES[entry.code]}, not float32")
        return {name: self._container.tensor(name) for name in self}


def _checksum(header, parts):
    """CRC-32 of the header, with sorted keys so that its spelling does not matter, and of the tensors."""
    return crc32_text(json.dumps(header, sort_keys=True).encode(), *parts)


def _object(metadata, name):
    try:
        value = json.loads(metadata[name])
    except (KeyError, TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CorruptFile(f"metadata field {name!r} is not a JSON object")
    return value
