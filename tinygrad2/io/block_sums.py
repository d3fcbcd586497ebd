"""Checksums of the blocks of a file: whatever is read of it later is compared with what was there at first.

A sum is the CRC-32 of the file from its beginning to the end of a block, so the last one is that of the whole file.
Making them reads the whole file, once: the sums of large files are kept in the user's cache, beside what the system
says of the file, and are taken from there as long as it says the same. Should the content differ all the same, the
first block that differs is noticed when it is read.
"""

import base64
import contextlib
import hashlib
import os
import time
import zlib

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.io.files import read_range, read_record, user_cache, write_record

BLOCK = 1 << 13  # bytes; reading a row of a batch checks one to three blocks, in some microseconds
SETTLED = 60 * 10**9  # nanoseconds after which a change of a file surely changes its dates, also one through a map
_KEPT = 16 << 20  # bytes of a file from which on its sums are kept; a smaller one is read again
_READ = 1 << 22  # bytes that are read at a time; a multiple of BLOCK


class BlockSums:
    """The sums of a file of `size` bytes: an array (blocks,) of uint32."""

    def __init__(self, sums, size):
        self.sums, self.size = sums, size

    @classmethod
    def of_file(cls, file):
        """Those of an open, unbuffered file: kept ones, or made by reading all of it. Raises UserError if it is written
        to meanwhile."""
        status = os.fstat(file.fileno())
        kept = _read_kept(file.name, status)
        if kept is not None:
            return cls(kept, status.st_size)
        sums, crc = [], 0
        for start in range(0, status.st_size, _READ):
            part = memoryview(read_range(file, start, min(_READ, status.st_size - start)))
            for i in range(0, len(part), BLOCK):
                crc = zlib.crc32(part[i : i + BLOCK], crc)
                sums.append(crc)
        if date_and_size(os.fstat(file.fileno())) != date_and_size(status):
            raise UserError(f"{file.name}: is being written to while it is read; start again when it is complete")
        sums = np.array(sums, np.uint32)
        _keep(file.name, status, sums)
        return cls(sums, status.st_size)

    @property
    def whole(self):
        """The CRC-32 of the whole file."""
        return int(self.sums[-1]) if len(self.sums) else 0

    def read(self, file, start, size):
        """(`size` bytes of an open, unbuffered file from byte `start` on, None), or (None, what has changed in words).

        The blocks that they are in are read completely, and compared.
        """
        first, last = start // BLOCK, -(-(start + size) // BLOCK)
        low, high = first * BLOCK, min(last * BLOCK, self.size)
        content = memoryview(read_range(file, low, high - low))
        if len(content) < high - low:
            return None, f"it ends before byte {start + size:,}, and had {self.size:,} bytes"
        for i in range(first, last):
            before = int(self.sums[i - 1]) if i else 0
            if zlib.crc32(content[i * BLOCK - low : (i + 1) * BLOCK - low], before) != self.sums[i]:
                forget(file.name)
                return None, f"it has other content now, in bytes {i * BLOCK:,} to {min((i + 1) * BLOCK, high) - 1:,}"
        return content[start - low : start - low + size], None


def date_and_size(status):
    """(date of the last change, bytes) of an os.stat_result: both change when the content does."""
    return status.st_mtime_ns, status.st_size


def facts_of(path, status):
    """What the system says of a file, which changes when its content does; None while a change might not show in it."""
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED:
        return None
    return [os.path.realpath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
            status.st_ctime_ns]  # fmt: skip


def forget(path):
    """Remove the kept sums of a file: its content is not what they say."""
    with contextlib.suppress(OSError):
        os.remove(_place(path))


def _place(path):
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    return os.path.join(user_cache(), f"sums-{name}.json")


def _read_kept(path, status):
    facts = facts_of(path, status)
    if status.st_size < _KEPT or facts is None:
        return None
    record = read_record(_place(path))
    if record is None or record.get("facts") != facts or not isinstance(record.get("sums"), str):
        return None
    with contextlib.suppress(ValueError):
        sums = np.frombuffer(base64.b64decode(record["sums"]), "<u4")
        return sums if len(sums) == -(-status.st_size // BLOCK) else None
    return None


def _keep(path, status, sums):
    facts = facts_of(path, status)
    if status.st_size < _KEPT or facts is None:
        return
    with contextlib.suppress(OSError, UserError):  # without them the file is read again
        os.makedirs(user_cache(), exist_ok=True)
        write_record(_place(path), {"facts": facts, "sums": base64.b64encode(sums.astype("<u4").tobytes()).decode()})
