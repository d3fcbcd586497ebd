"""Data that come through a pipe: <(zcat text.gz), a FIFO, /dev/stdin, or - for standard input.

A training reads its data many times, and a pipe can be read once. Its content is therefore written into a file of the
user's cache, named after its hash, and that file is trained on: the same content through another pipe is the same file,
tokenized once, and a training is resumed from it.
"""

import hashlib
import os
import shutil
import stat
import tempfile

from tinygrad2.datasets.find_files import TOKENS
from tinygrad2.errors import UserError
from tinygrad2.io.files import user_cache
from tinygrad2.io.pipes import Pipe, open_pipe
from tinygrad2.system.temporary import create_file, remove, sweep

_BLOCK = 1 << 20
_LEFT_FREE = 1 << 30  # bytes of the disk that a long pipe, which may have no end, must leave free


def file_of(data, log):
    """The path of a regular file with what `data` names: `data` itself unless it is a pipe or standard input.

    Folders, patterns and missing files are passed on as they are. `log` is called with a line for the user. Raises
    UserError for devices, sockets, terminals, and for a pipe that is empty.
    """
    pipe = _open(data, log)
    if isinstance(pipe, str):
        return pipe
    log(f"note      reading {data} to its end")
    with pipe:
        path = _spool(pipe, data)
    log(f"note      kept in {path}, which --resume reads")
    return path


def _open(data, log):
    """A Pipe, or the path of a file."""
    if data in ("-", "/dev/stdin"):
        return _standard_input(data)
    try:
        status = os.stat(data)
    except (OSError, ValueError):
        return data
    if stat.S_ISDIR(status.st_mode):
        return data
    if stat.S_ISREG(status.st_mode):
        own = _own_name(data) if data.startswith(("/dev/", "/proc/")) else data
        if own != data or "/fd/" not in data:  # other files of /proc may have no end, and are refused when opened
            return own
    else:
        _refuse_devices(data, status)
    try:
        return open_pipe(data)
    except OSError as error:
        raise UserError(f"{data}: cannot be read ({error.strerror})") from None


def _standard_input(data):
    try:
        status = os.fstat(0)
    except OSError:
        raise UserError(f"{data}: standard input is closed; give the name of a file") from None
    if os.isatty(0):
        raise UserError(f"{data}: standard input is a terminal; send a text into it (< FILE), or give a file")
    if stat.S_ISREG(status.st_mode):
        own = _own_name("/dev/stdin")
        return Pipe(os.dup(0), data) if own == "/dev/stdin" else own
    if not stat.S_ISSOCK(status.st_mode):  # which some launchers use as standard input
        _refuse_devices(data, status)
    return Pipe(os.dup(0), data)


def _own_name(link):
    """The path of the file that /dev/fd/N or the like is open on; `link` itself if the file has no name any more."""
    path = os.path.realpath(link)
    return path if os.path.exists(path) and os.path.samefile(path, link) else link


def _refuse_devices(data, status):
    if stat.S_ISFIFO(status.st_mode):
        return
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
        raise UserError(f"{data}: is empty; give a text, or a file of tokens")
    what = "a socket" if stat.S_ISSOCK(status.st_mode) else "a device"
    raise UserError(f"{data}: is {what}; give a file, a folder, a pattern or a pipe")


def _spool(pipe, data):
    """Write the content of a pipe into the cache; returns the path."""
    folder = _folder()
    digest, size, temporary = hashlib.sha256(), 0, ""
    try:
        sweep(folder)
        handle, temporary = create_file(folder, "piped", 0o600)
        with os.fdopen(handle, "wb") as file:
            while block := pipe.read(_BLOCK):
                digest.update(block)
                file.write(block)
                size += len(block)
                if shutil.disk_usage(folder).free < min(_LEFT_FREE, size):
                    raise UserError(f"{data}: {size >> 20:,} MB have come through the pipe, and {folder} is almost "
                                    "full; choose another place with XDG_CACHE_HOME")  # fmt: skip
        if not size:
            raise UserError(f"{data}: is empty, nothing came through the pipe")
        ending = os.path.splitext(data)[1].lower()  # says that bytes without a header are tokens
        path = os.path.join(folder, f"piped-{digest.hexdigest()[:16]}{ending if ending in TOKENS else ''}")
        os.replace(temporary, path)
        return path
    except OSError as error:
        problem = f"what comes through the pipe cannot be kept in {folder} ({error.strerror})"
        raise UserError(f"{data}: {problem}; choose another place with XDG_CACHE_HOME") from None
    finally:
        remove(temporary)


def _folder():
    """The first folder of the cache, or else of temporary files, that can be written to."""
    for place in (user_cache(), tempfile.gettempdir()):
        try:
            os.makedirs(place, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    raise UserError("there is no folder to keep piped data in; set XDG_CACHE_HOME to one")
