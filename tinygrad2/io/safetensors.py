"""The safetensors container: a header in JSON, then tensors one after the other; nothing in it is ever executed.

    8 bytes      N, the length of the header (little-endian)
    N bytes      JSON: {"__metadata__": {...}, "wte.weight": {"dtype": "F32", "shape": [V, C], "data_offsets": [a, b]},
                 ...}
    the rest     the tensors; offsets count from here, and leave no gaps

https://github.com/huggingface/safetensors#format
"""

import json
import math
from dataclasses import dataclass

from tinygrad2.errors import short
from tinygrad2.io.file_bytes import FileBytes
from tinygrad2.io.files import CorruptFile, unique_names
from tinygrad2.io.lazy_tensor import BYTES, LazyTensor, is_shape
from tinygrad2.io.signatures import LOOK, recognize

MAX_HEADER = 100_000_000  # as in the safetensors library
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
         "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
         "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}  # fmt: skip


@dataclass
class Container:
    """An open file whose header has been checked.

    entries    {name: Entry}
    metadata   {str: str}
    header     the parsed header without its metadata
    data       the bytes after the header
    """

    entries: dict
    metadata: dict
    header: dict
    data: FileBytes

    def tensor(self, name):
        """The tensor as a LazyTensor. Raises CorruptFile for a dtype that weights cannot have."""
        entry = self.entries[name]
        if entry.code not in BYTES:
            raise CorruptFile(f"tensor {short(name)} has dtype {entry.code}, not one of {', '.join(BYTES)}")
        return LazyTensor(self.data[entry.start : entry.stop], entry.code, entry.shape)


@dataclass
class Entry:
    """One tensor: dtype code, shape, and its bytes start .. stop - 1 in the data."""

    code: str
    shape: list
    start: int
    stop: int


def open_container(path):
    """The Container at `path`.

    Raises CorruptFile if it is incomplete or inconsistent, OSError if it cannot be read.
    """
    buffer = FileBytes.open(path)
    if len(buffer) < 8:
        raise CorruptFile(f"only {len(buffer)} bytes long")
    N = int.from_bytes(bytes(buffer[:8]), "little")
    if N > min(MAX_HEADER, len(buffer) - 8):
        kind = recognize(bytes(buffer[:LOOK]))
        if kind and kind.role in ("stand-in", "packed"):
            raise CorruptFile(f"it {kind}")
        raise CorruptFile(f"header length {N:,} does not fit a file of {len(buffer):,} bytes")
    try:
        header = json.loads(bytes(buffer[8 : 8 + N]).decode(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError):
        raise CorruptFile("the header is not valid JSON") from None
    if not isinstance(header, dict):
        raise CorruptFile("the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        raise CorruptFile("the header's __metadata__ is not a JSON object")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise CorruptFile(f"metadata field {short(name)} is not a string")
    data = buffer[8 + N :]
    return Container(_entries(header, len(data)), metadata, header, data)


def _entries(header, size):
    entries, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        start, stop = _offsets(name, entry)
        shape, code = entry.get("shape"), entry.get("dtype")
        if not isinstance(code, str) or code not in _BITS:
            raise CorruptFile(f"tensor {short(name)} has dtype {short(code)}")
        if not is_shape(shape):
            raise CorruptFile(f"tensor {short(name)} has shape {short(shape)}")
        if start != end or 8 * (stop - start) != _BITS[code] * math.prod(shape) or stop > size:
            kind = f"of dtype {code!r} and shape {shape}"
            raise CorruptFile(f"tensor {short(name)} {kind} claims bytes {start:,} to {stop:,} of {size:,}")
        entries[name] = Entry(code, shape, start, stop)
        end = stop
    if end != size:
        raise CorruptFile(f"{size - end:,} bytes after the last tensor")
    return entries


def _offsets(name, entry):
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    pair = isinstance(offsets, list) and len(offsets) == 2
    if not pair or not all(type(n) is int and 0 <= n < 1 << 62 for n in offsets):
        raise CorruptFile(f"tensor {short(name)} has data_offsets {short(offsets)}")
    return offsets


def make_header(shapes, code, metadata):
    """Returns the first bytes of a file of tensors {name: shape}, all of one dtype, which follow sorted by name."""
    header, offset = {"__metadata__": metadata}, 0
    for name in sorted(shapes):
        size = _BITS[code] // 8 * math.prod(shapes[name])
        header[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [offset, offset + size]}
        offset += size
    return pack_header(header)


def pack_header(header):
    """Returns the header's length (8 bytes) and its JSON, padded so that the tensors start on an 8-byte boundary."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
