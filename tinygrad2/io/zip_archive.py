"""Zip files with uncompressed members, parts of which can be read: the container of torch.save.

Reading trusts nothing: every field of the directory is checked against the file before it is used, members may not be
compressed and may not overlap, and a member's checksum is verified before its content is used. Writing follows what
PyTorch expects, with the first byte of every member at a multiple of 64.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import struct
import zlib
from dataclasses import dataclass

from tinygrad2.errors import short
from tinygrad2.io.file_bytes import crc32_of
from tinygrad2.io.files import CorruptFile

MAX_SMALL = 16 << 20  # bytes of a member that is read at once; the pickle of the largest GPT-2 has less than a million
_MAX_MEMBERS = 200_000
_MAX_DIRECTORY = 64 << 20  # bytes
_NARROW = 0xFFFFFFFF  # sizes and offsets from here on are in the extra field of the zip64 form
_ALIGN = 64
_UTF8 = 1 << 11


@dataclass
class Member:
    """A file in the archive: its name, size, CRC-32, and the position of its first byte."""

    name: str
    start: int
    size: int
    crc: int

    def read(self, view):
        """Returns the bytes of a small member. Raises CorruptFile if its checksum does not match."""
        if self.size > MAX_SMALL:
            raise CorruptFile(f"{short(self.name)} has {self.size:,} bytes, more than {MAX_SMALL:,}")
        self.check(view)
        return bytes(view[self.start : self.start + self.size])

    def check(self, view):
        """Raises CorruptFile if the checksum of the bytes does not match."""
        if crc32_of(view[self.start : self.start + self.size]) != self.crc:
            raise CorruptFile(f"the checksum of {short(self.name)} does not match, the file is damaged")


def members_of(view):
    """Returns {name: Member} of a zip file (FileBytes or memoryview), every field of its directory checked against it.

    APPNOTE.TXT, sections 4.3.7 (header), 4.3.12 (directory), 4.3.14 to 4.3.16 (its end). Raises CorruptFile.
    """
    count, start, stop = _directory(view)
    if count > _MAX_MEMBERS:
        raise CorruptFile(f"{count:,} members are more than {_MAX_MEMBERS:,}")
    if stop - start > _MAX_DIRECTORY:
        raise CorruptFile(f"its directory has {stop - start:,} bytes, more than {_MAX_DIRECTORY:,}")
    members, at, entries = {}, 0, bytes(view[start:stop])
    for _ in range(count):
        if at + 46 > len(entries) or entries[at : at + 4] != b"PK\x01\x02":
            raise CorruptFile("its directory is damaged")
        fields = struct.unpack_from("<4H3L3H", entries, at + 8)
        flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment = fields
        header = struct.unpack_from("<L", entries, at + 42)[0]
        extra_at = at + 46 + n_name
        at = extra_at + n_extra + n_comment
        if at > len(entries):
            raise CorruptFile("its directory is damaged")
        name = text(entries[extra_at - n_name : extra_at])
        size, packed, header = _zip64_values(entries[extra_at : extra_at + n_extra], [size, packed, header])
        if method or flags & 1 or packed != size:
            raise CorruptFile(f"{short(name)} is compressed or encrypted, which torch.save never does")
        if name in members:
            raise CorruptFile(f"{short(name)} occurs twice")
        members[name] = Member(name, _data_start(view, header, name), size, crc)
    end = 0
    for member in sorted(members.values(), key=lambda member: (member.start, member.size)):
        if member.start < end:
            raise CorruptFile(f"{short(member.name)} overlaps another member")
        end = member.start + member.size
    if end > start:
        raise CorruptFile(f"its members take more than the {len(view):,} bytes of the file")
    return members


def _directory(view):
    """(number of members, first byte, last byte + 1) of the directory, as the end record of the file has them."""
    tail = bytes(view[-65557:])  # a comment of up to 65,535 bytes may follow
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail) or at + 22 + tail[at + 20] + 256 * tail[at + 21] != len(tail):
        raise CorruptFile("its end is missing")
    end = len(view) - len(tail) + at
    count, size, start = struct.unpack_from("<H2L", tail, at + 10)
    if count == 0xFFFF or 0xFFFFFFFF in (size, start):  # the zip64 form, for files of more than 4 GiB
        locator = bytes(view[end - 20 : end])
        if end < 20 or locator[:4] != b"PK\x06\x07":
            raise CorruptFile("its end is damaged")
        end = struct.unpack_from("<Q", locator, 8)[0]
        record = bytes(view[end : end + 56])
        if len(record) < 56 or record[:4] != b"PK\x06\x06":
            raise CorruptFile("its end is damaged")
        count, size, start = struct.unpack_from("<3Q", record, 32)
    if start + size > end:
        raise CorruptFile("its directory is damaged")
    return count, start, start + size


def _zip64_values(extra, values):
    """The 32-bit values of a directory entry, those too large for them replaced by the 64 bits of the extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        for i, value in enumerate(values):
            if kind == 1 and value == 0xFFFFFFFF and len(field) >= 8:
                values[i], field = int.from_bytes(field[:8], "little"), field[8:]
    return values


def _data_start(view, header, name):
    encoded = name.encode()
    own = bytes(view[header : header + 30 + len(encoded)])
    if len(own) < 30 or own[:4] != b"PK\x03\x04":
        raise CorruptFile(f"{short(name)} is not at the offset in the directory")
    flags, method = struct.unpack_from("<2H", own, 6)
    n_name, n_extra = struct.unpack_from("<2H", own, 26)
    if method or flags & 1 or n_name != len(encoded) or own[30:] != encoded:
        raise CorruptFile(f"{short(name)} has another name in its own header")
    return header + 30 + n_name + n_extra


def text(data):
    """Decode UTF-8. Raises CorruptFile if the bytes are not valid UTF-8."""
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        raise CorruptFile("a name or text in it is not valid UTF-8") from None


# -- writing -----------------------------------------------------------------------------------------------------------


class Writer:
    """Writes a zip file into an open binary file, member by member; only the directory is kept in memory."""

    def __init__(self, file):
        self.file, self.entries = file, []

    def add(self, name, size, pieces):
        """Write a member of `size` bytes, which come in pieces. Raises ValueError if they are more or fewer."""
        start, extra = self.file.tell(), _extra(size, size)
        gap = -(start + 34 + len(name.encode()) + len(extra)) % _ALIGN
        extra += struct.pack("<2s H", b"FB", gap) + b"Z" * gap
        self.file.write(self._header(name, 0, size, extra))
        crc = written = 0
        for piece in pieces:
            piece = memoryview(piece).cast("B")
            crc, written = zlib.crc32(piece, crc), written + len(piece)
            self.file.write(piece)
        if written != size:
            raise ValueError(f"{name} should have {size} bytes and has {written}")
        end = self.file.tell()
        self.file.seek(start)  # only now is the checksum known
        self.file.write(self._header(name, crc, size, extra))
        self.file.seek(end)
        self._add_entry(name, crc, size, start)

    def close(self):
        """Write the directory."""
        start, count = self.file.tell(), len(self.entries)
        size = self.file.write(b"".join(self.entries))
        if start >= _NARROW or count >= 0xFFFF:
            zip64 = struct.pack("<4s Q 2H 2L 4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
            self.file.write(zip64 + struct.pack("<4s L Q L", b"PK\6\7", 0, start + size, 1))
            start, count = 0xFFFFFFFF, 0xFFFF
        self.file.write(struct.pack("<4s 4H 2L H", b"PK\5\6", 0, 0, count, count, size, start, 0))

    def _header(self, name, crc, size, extra):
        size, name = _narrow(size), name.encode()
        fields = struct.pack("<4s 3H 2H 3L", b"PK\3\4", 45, _UTF8, 0, 0, 0x21, crc, size, size)
        return fields + struct.pack("<2H", len(name), len(extra)) + name + extra

    def _add_entry(self, name, crc, size, start):
        extra, name, size, start = _extra(size, size, start), name.encode(), _narrow(size), _narrow(start)
        fields = struct.pack("<4s 4H 2H 3L", b"PK\1\2", 45, 45, _UTF8, 0, 0, 0x21, crc, size, size)
        lengths = struct.pack("<5H 2L", len(name), len(extra), 0, 0, 0, 0, start)
        self.entries.append(fields + lengths + name + extra)


def _narrow(n):
    return n if n < _NARROW else 0xFFFFFFFF


def _extra(*values):
    """The extra field with those values that do not fit into 32 bits; empty if all do."""
    large = [n for n in values if n >= _NARROW]
    return struct.pack(f"<2H {len(large)}Q", 1, 8 * len(large), *large) if large else b""
