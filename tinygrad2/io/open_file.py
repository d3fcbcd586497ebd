"""How every file is opened, for reading and for writing: only regular files, and never more of one than was expected.

A name that the user gives, and any name in a folder that the user gives, may lead to a pipe that nobody writes into, a
device that never ends, a file of any size, or one of a terabyte that takes no room on the disk. Nothing else in
tinygrad2 calls open() for such names, which tests/test_architecture.py checks. Pipes that are read on purpose (--data,
--prompt-file) are in pipes.py.
"""

import io
import os
import stat

from tinygrad2.errors import UserError, short

MOST = 1 << 30  # bytes of a file that is read into the memory as a whole
_PIECE = 1 << 22
_HOLE = 4 << 30  # bytes; reading zeros of that length takes a few seconds
_SYSTEM = ("/proc/", "/sys/")
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


class NotRegular(UserError):
    """The name is that of a folder, pipe, device or socket."""


def kind_of(mode):
    """What a file of this st_mode is: "a regular file", "a folder", "a pipe", "a socket", "a device"."""
    kinds = ((stat.S_ISREG, "a regular file"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"),
             (stat.S_ISSOCK, "a socket"))  # fmt: skip
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def open_file(path, mode="rb", buffering=-1, **more):
    """Open a regular file as Python's `open` does, without ever waiting for somebody at its other end.

    Raises NotRegular if the name leads to anything else, or cannot be one; OSError as `open` does.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair, from JSON
        possible = False
    if not possible:
        raise NotRegular(f"{short(str(path))}: is not the name of a file: no system has such characters in names")
    return open(path, mode, buffering, opener=open_descriptor, **more)


def open_descriptor(path, flags):
    """os.open(path, flags) of a regular file, by the same rule and with the same errors."""
    path = os.fspath(path)
    try:
        _refuse(path, os.stat(path).st_mode)  # first: opening some devices has an effect
    except FileNotFoundError:  # it is to be created, or opening it says so
        pass
    handle = os.open(path, flags | _BINARY | _NO_WAIT, 0o666)
    try:
        status = os.fstat(handle)
        _refuse(path, status.st_mode)  # another file may have taken the name meanwhile
        if status.st_size == 0 and os.path.realpath(path).startswith(_SYSTEM):
            raise NotRegular(f"{path}: is made by the system while it is read; give the name of a regular file")
        if status.st_size > _HOLE and not flags & (os.O_WRONLY | os.O_RDWR):
            _refuse_holes(handle, path, status.st_size)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _refuse(path, mode):
    if not stat.S_ISREG(mode):
        raise NotRegular(f"{path}: is {kind_of(mode)}; give the name of a regular file")


def _refuse_holes(handle, path, size):
    """Raises UserError for a file with a long part that was never written: reading that takes as long as if it were."""
    if not hasattr(os, "SEEK_HOLE"):
        return
    end = 0
    try:
        while (start := os.lseek(handle, end, os.SEEK_HOLE)) < size:
            try:
                end = os.lseek(handle, start, os.SEEK_DATA)
            except OSError:  # none follows
                end = size
            if end - start > _HOLE:
                raise UserError(f"{path}: is not complete: {end - start:,} of its {size:,} bytes, from byte {start:,} "
                                "on, were never written; download it or create it again")  # fmt: skip
    finally:
        os.lseek(handle, 0, os.SEEK_SET)


def read_bounded(file, name, most=MOST):
    """All bytes of an open binary file from its position on. Raises UserError if they are more than `most`.

    What it takes grows with what comes: the size that a system claims may be 0 for files that have none (/proc), and
    may be a million times what is on the disk.
    """
    if isinstance(file, (io.FileIO, io.BufferedReader)) and os.fstat(file.fileno()).st_size - file.tell() > most:
        raise _too_large(name, most)
    parts, size = [], 0
    while part := file.read(min(_PIECE, most + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > most:
            raise _too_large(name, most)
    return b"".join(parts)


def _too_large(name, most):
    return UserError(f"{name}: has more than {most >> 20:,} MB, which is too large for what it is read as; check the "
                     "path")  # fmt: skip
