"""A part of an open file that is read when it is asked for, and only while the file is what it was when it was opened.

Mapping the file would be simpler, but reading where a mapped file has been cut off ends the process with SIGBUS,
without a message. What happens to the file's name does not matter: the open file is read.
"""

import os
import zlib

from tinygrad2.errors import UserError
from tinygrad2.io.block_sums import date_and_size
from tinygrad2.io.files import read_range
from tinygrad2.io.open_file import open_file

PIECE = 1 << 20  # bytes that are in memory at a time


class FileBytes:
    """Bytes start .. stop - 1 of a file; slices of it are such parts, too, and bytes(part) reads one.

    Raises UserError, one line with the file, if it was cut off or written to since it was opened.
    """

    def __init__(self, opened, start, stop):
        self.opened, self.start, self.stop = opened, start, stop

    @classmethod
    def open(cls, path):
        """All bytes of the file at `path`. Raises OSError if it cannot be opened."""
        opened = _Opened(path)
        return cls(opened, 0, opened.state[-1])

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, part):
        start, stop, _ = part.indices(len(self))
        return FileBytes(self.opened, self.start + start, self.start + max(start, stop))

    def __bytes__(self):
        return self.opened.read(self.start, len(self))

    def same_as(self, other):
        """Are both the same part of the same open file?"""
        if not isinstance(other, FileBytes):
            return False
        return (self.opened, self.start, self.stop) == (other.opened, other.start, other.stop)


class _Opened:
    """An open file, closed when nothing refers to it any more. state: its date and size when it was opened."""

    def __init__(self, path):
        self.file = open_file(path, buffering=0)
        self.state = date_and_size(os.fstat(self.file.fileno()))

    def read(self, start, size):
        """Returns bytes. Raises UserError if the file is no longer what it was."""
        name, at_first = self.file.name, self.state[-1]
        try:
            content = read_range(self.file, start, size)
            state = date_and_size(os.fstat(self.file.fileno()))
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror})") from None
        if state[-1] < at_first or len(content) < size:
            sizes = f"{state[-1]:,} bytes, {at_first:,} at first"
            raise UserError(f"{name}: was cut off while it is read: {sizes}; copy it again")
        if state != self.state:
            raise UserError(f"{name}: was written to while it is read; start again when it is complete")
        return content

    def __del__(self):
        if hasattr(self, "file"):
            self.file.close()


def pieces(buffer):
    """The bytes of a FileBytes or memoryview, a MB at a time."""
    for start in range(0, len(buffer), PIECE):
        yield content_of(buffer[start : start + PIECE])


def content_of(buffer):
    """What a FileBytes or memoryview holds, in memory."""
    return bytes(buffer) if isinstance(buffer, FileBytes) else buffer


def crc32_of(buffer):
    """The CRC-32 of a FileBytes or memoryview."""
    crc = 0
    for piece in pieces(buffer):
        crc = zlib.crc32(piece, crc)
    return crc
