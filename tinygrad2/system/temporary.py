"""Files and folders that exist while something is written, and what killed processes have left of them.

    .weights.bin.tinygrad2-HOST-PID-0123abcd.tmp

A process that is killed cannot remove them, so the next program that writes into the same folder does: `sweep`. It
removes what has such a name, belongs to the same user, and is no longer being written. That shows the lock that the
writer holds, which the system releases however the process ends. Where locks do not work, or the writer was on another
host, whose locks this one may not see, it is one of two facts: the process does not exist any more (on this host), or
nothing was written for a day.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import stat

from tinygrad2.system.descriptors import close, try_lock

_NAME = re.compile(r"\.tinygrad2-(?P<host>[\w.]*)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")
_TRIES = 20  # a sweep in another process may take the lock of a new file first, once or twice
_OLD = 86_400  # seconds without a change after which nobody writes any more


def create_file(folder, name, mode=0o666):
    """Create an empty file for what will be called `name`, with these permissions less the umask's; returns
    (descriptor, path). It is locked until the descriptor is closed. Raises OSError."""
    for i in range(_TRIES):
        path = _free_path(folder, name)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        if (_lock(handle) is not False or i == _TRIES - 1) and os.path.lexists(path):
            return handle, path
        remove(path)  # another process sweeps it away, and has done so before it was locked
        close(handle)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), folder)


@contextlib.contextmanager
def temporary_folder(parent, name):
    """Yields the path of a new folder, which is removed in the end."""
    sweep(parent)
    path = _free_path(parent, name)
    os.mkdir(path, 0o700)
    handle = _open_folder(path)
    try:
        if handle is not None:
            _lock(handle)
        yield path
    finally:
        _remove_folder(path)
        if handle is not None:
            close(handle)


@contextlib.contextmanager
def replacing(path):
    """Open a binary file that takes the name `path` when the block ends without an exception. Raises OSError."""
    sweep(os.path.dirname(path))
    handle, temporary = create_file(*os.path.split(path))
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def remove_files_of(pid, folder, name):
    """Remove what a process of this host, which has ended, has left of `name` in a folder. Errors are of no
    interest."""
    pattern = re.compile(rf"\.{re.escape(name)}\.tinygrad2-{_host()}-{pid}-[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            if pattern.fullmatch(entry):
                remove(os.path.join(folder, entry))


def remove(path):
    """Remove a temporary file; an error is of no interest."""
    with contextlib.suppress(OSError):
        os.remove(path)


def sweep(folder):
    """Remove what killed processes have left in a folder. Errors are of no interest."""
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if match := _NAME.search(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(entry, match["host"], int(match["pid"]))


def is_mine(status):
    """Does this file, by its os.stat, belong to the user of this process?"""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _remove_if_abandoned(entry, host, pid):
    status = entry.stat(follow_symlinks=False)
    is_folder = stat.S_ISDIR(status.st_mode)
    if not is_mine(status) or not (is_folder or stat.S_ISREG(status.st_mode)):
        return
    handle = _open_folder(entry.path) if is_folder else os.open(entry.path, os.O_RDWR)
    try:
        is_free = None if handle is None else _lock(handle)
        now = os.stat(os.path.dirname(entry.path) or ".").st_mtime  # of its last change, by the clock of the server
        is_old = now - status.st_mtime > _OLD
        if is_free is False or not (is_old or (host == _host() and (is_free or not _exists(pid)))):
            return
        if is_folder:
            _remove_folder(entry.path)
        else:
            os.remove(entry.path)
    finally:
        if handle is not None:
            close(handle)


def _remove_folder(path):
    """Remove a folder, which is often empty: that takes no descriptor, of which there may be none left."""
    try:
        os.rmdir(path)
    except OSError:
        with contextlib.suppress(OSError):  # Python 3.11 raises those of closing a folder all the same
            shutil.rmtree(path, ignore_errors=True)


def _free_path(folder, name):
    beginning = os.fsencode(name)[:100].decode("utf-8", "ignore")  # a name has at most 255 bytes
    return os.path.join(folder, f".{beginning}.tinygrad2-{_host()}-{os.getpid()}-{os.urandom(4).hex()}.tmp")


def _host():
    return re.sub(r"[^\w.]", "_", socket.gethostname(), flags=re.ASCII)[:64]


def _exists(pid):
    """Is there such a process on this host? Yes if it cannot be told."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _open_folder(path):
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:  # Windows
        return None


def _lock(handle):
    """True: it is locked now; False: another process holds the lock; None: there are no locks here."""
    if os.name == "nt":  # a locked file can neither be renamed nor removed
        return None
    error = try_lock(handle)
    return True if error is None else False if isinstance(error, BlockingIOError) else None
