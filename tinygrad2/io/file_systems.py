"""Calls that file systems, above all those of a network, answer in different ways.

What tinygrad2 needs of a file system, and what it does without, is in docs/cluster.md (Shared folders). In short: a
rename replaces a file at once; what fsync has confirmed stays. It needs no links, permissions, dates or locks.
"""

import errno
import os
import time

from tinygrad2.system.descriptors import close, try_lock

_PASSING = {errno.ESTALE, errno.EBUSY, errno.ETXTBSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EIO,
            errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}  # fmt: skip
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EISDIR, errno.EPERM, errno.EACCES,
             errno.ENOTTY}  # fmt: skip
_WAITS = (0.1, 0.4, 1.0)  # seconds before each new try


def retried(call, *arguments, more=()):
    """call(*arguments); after an error that may pass, such as a stale handle, again, up to three times in 1.5 seconds.

    more    error numbers that may pass with this call

    For what may be done twice: reading, never writing or fsync, after whose failure the data may be lost.
    """
    for wait in _WAITS:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno not in _PASSING and error.errno not in more:
                raise
        time.sleep(wait)
    return call(*arguments)


def exists(path):
    """Is there anything of that name? Raises OSError if that cannot be told: os.path.exists would say no, and what is
    there might be written over."""
    return status_of(path) is not None


def status_of(path):
    """os.stat of a path, None if there is nothing (a link to nothing counts as nothing). Raises OSError if that cannot
    be told."""
    try:
        return retried(os.stat, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def move(source, target):
    """Rename a file or a folder; a file that `target` names is replaced at once.

    On a network a rename may have been done although an error is reported: the answer was lost, and the client asked
    again. And it may be refused for a moment, while another program has the file open. Raises OSError if it failed.
    """
    before = os.stat(source)
    for wait in (*_WAITS, None):
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if _is_moved(source, target, before):
                return
            if wait is None or error.errno not in _PASSING | {errno.EEXIST, errno.EACCES, errno.EPERM}:
                raise
        time.sleep(wait)


def _is_moved(source, target, before):
    try:
        if exists(source):
            return False
        after = os.stat(target)
    except OSError:
        return False
    is_same = after.st_ino == before.st_ino or after.st_mtime_ns == before.st_mtime_ns
    return is_same and (after.st_mode, after.st_size) == (before.st_mode, before.st_size)


def sync_file(file):
    """Force what was written into an open file to disk. Raises OSError if that fails; where the file system has no
    fsync, nothing happens."""
    file.flush()
    _fsync(file.fileno())


def sync_folder(folder):
    """Force a folder's entries to disk: without that a power failure may undo a rename. Raises OSError if that fails;
    where folders cannot be synced (SMB, Windows) nothing happens."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
        return
    try:
        _fsync(handle)
    finally:
        close(handle)


def _fsync(handle):
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


class Lock:
    """A lock on a file, held until `close` or the end of the process.

    problem    "" if it is held; why the file system has no locks otherwise
    """

    def __init__(self, handle, problem):
        self.handle, self.problem = handle, problem

    @classmethod
    def of(cls, path):
        """Returns the Lock, or None if another process holds it. Raises OSError if the file cannot be opened."""
        handle = retried(os.open, path, os.O_RDWR | os.O_CREAT, 0o666)
        error = try_lock(handle)
        if error is None:
            return cls(handle, "")
        if os.name == "nt" or isinstance(error, (BlockingIOError, PermissionError)):
            close(handle)
            return None
        return cls(handle, error.strerror or str(error))

    def is_on(self, path):
        """Is it this file that is locked, and not another one that has taken its name? Raises OSError if unknown."""
        return os.path.samestat(os.stat(path), os.fstat(self.handle))

    def close(self):
        """Release it, once."""
        handle, self.handle = self.handle, None
        if handle is not None:
            close(handle)
