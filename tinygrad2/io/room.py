"""Is there room on the disk for what a program is going to write? Asked before it computes anything.

    check_room([Need("--run-dir", "run", "2 checkpoints", 3e9, 1e9), Need("--weights-out", "w", "weights", 5e8, 5e8)])

Three things limit it: what is free on the disk, which several outputs may share; the largest file that the process may
write (ulimit -f) or the file system can hold; and the user's quota, which only shows when room is taken. So room for
the largest file is reserved for a moment.
"""

import ctypes
import errno
import os
from dataclasses import dataclass

from tinygrad2.errors import UserError
from tinygrad2.system.descriptors import close
from tinygrad2.system.temporary import create_file, remove, sweep

_TOO_LITTLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass
class Need:
    """What will be written: `size` bytes in all, in files of at most `largest` bytes.

    flag, path    which flag names it (or ""), and where it goes; the folders need not exist yet
    what          "weights", for messages
    """

    flag: str
    path: str
    what: str
    size: float
    largest: float

    @property
    def name(self):
        """For messages: the flag and the path."""
        return f"{self.flag} {self.path}".strip()


def check_room(needs):
    """Raises UserError, naming need and room, if the files do not fit. Nothing is left behind."""
    disks = {}
    for need in needs:
        folder = existing_folder(need.path)
        sweep(folder)
        sweep(os.path.dirname(folder))  # where such a file was created when this folder did not exist yet
        disks.setdefault(_device(folder), []).append((need, folder))
    for group in disks.values():
        first, folder = max(group, key=lambda pair: pair[0].size)
        total, free = sum(need.size for need, _ in group), free_bytes(folder)
        if free is not None and total > free:
            parts = ", ".join(f"{need.what} {size_text(need.size)}" for need, _ in group if need.size)
            raise UserError(f"{first.name}: {size_text(total)} are needed ({parts}), and {size_text(free)} "
                            f"are free on the disk of {folder}; free some space, or choose another path")  # fmt: skip
        for need, own_folder in group:
            _try_one_file(need, own_folder)


def existing_folder(path):
    """The path itself if it is a folder, else the first one above it that exists."""
    folder = os.path.realpath(path)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder


def free_bytes(folder):
    """What this user may still write on the disk of a folder; None if the file system does not tell."""
    try:
        info = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return info.f_bavail * info.f_frsize if info.f_blocks else None


def size_text(size):
    """size_text(1.2e9) -> "1,200 MB"."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _device(folder):
    try:
        return os.stat(folder).st_dev
    except OSError:
        return folder


def _try_one_file(need, folder):
    """Create a file and reserve the room of the largest one; then remove it."""
    try:
        handle, path = create_file(folder, "room")
    except OSError as error:
        raise UserError(f"{need.name}: no file can be created in {folder} ({error.strerror}); choose another "
                        "path") from None  # fmt: skip
    try:
        number = _reserve(handle, int(need.largest))
    finally:
        remove(path)
        close(handle)
    if number in _TOO_LITTLE:
        cause = "the limit of ulimit -f, or of the file system" if number == errno.EFBIG else os.strerror(number)
        raise UserError(f"{need.name}: a file of {size_text(need.largest)} cannot be written in {folder} "
                        f"({cause}); choose another path")  # fmt: skip


def _reserve(handle, size):
    """Reserve room for an open file without writing it; returns the number of the error, 0 if there was none or the
    system cannot do it. (os.posix_fallocate would write the file instead, which may take minutes.)"""
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError, TypeError):  # macOS, Windows
        return 0
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return ctypes.get_errno() if size and fallocate(handle, 0, 0, size) else 0
