"""File descriptors: closing one, and locking its file."""

import contextlib
import os


def close(handle):
    """Close a descriptor from which nothing was written that matters: errors are of no use."""
    with contextlib.suppress(OSError):
        os.close(handle)


def try_lock(handle):
    """Lock an open file against other processes, until it is closed or the process ends.

    Returns None if it is locked now, else the OSError: BlockingIOError if another process holds the lock (on Windows
    PermissionError), others if the file system has no locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, 1 << 30, os.SEEK_SET)  # a locked range cannot be read, so lock beyond the content
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None
