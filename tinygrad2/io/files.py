"""Files that are either complete or not there: written under a temporary name, synced to disk, renamed. Checksums."""

import contextlib
import json
import os
import zlib

from tinygrad2.errors import UserError
from tinygrad2.io.file_systems import exists, move, retried, sync_file, sync_folder
from tinygrad2.io.open_file import MOST, open_file, read_bounded
from tinygrad2.io.signatures import LOOK, recognize
from tinygrad2.system.temporary import create_file, remove, sweep

_SYSTEM = ("/dev/", "/proc/", "/sys/")  # /dev/stdout may be a link to a regular file
MOST_JSON = 64 << 20  # bytes; the largest vocabularies have about 35 MB
_MAX_NAME, _MAX_PATH = 255, 4000  # bytes of a part of a path, and of a whole one with a temporary name in it


class CorruptFile(Exception):
    """What is wrong with the content of a file, and the remedy if there is a specific one.

    Raised by parsers, which know the bytes and not the file's name; their callers turn it into a UserError.
    """

    def __init__(self, problem, remedy=None):
        super().__init__(problem)
        self.remedy = remedy


def first_bytes(path, n=64):
    """The first n bytes of a regular file. Raises UserError for anything else."""
    try:
        with open_file(path) as file:
            return file.read(n)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


@contextlib.contextmanager
def atomic_write(path):
    """Open a binary file that takes the name `path` only when the block ends without an exception.

    A reader sees the old file or the new one, never a part of one: the bytes go to a temporary file in the same folder
    (a rename is atomic only inside one file system), are synced to disk, and then the file is renamed. If the block
    raises, the temporary file is removed and the old file stays. A symbolic link stays one: its target is replaced.

    Raises UserError if the folder cannot be written to, or if `path` is not a regular file.
    """
    _check_replaceable(path)
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    sweep(folder)
    try:
        handle, temporary = create_file(folder, name)
    except OSError as error:
        raise UserError(f"{path}: cannot write into {folder} ({error.strerror}); choose another path") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            sync_file(file)
        move(temporary, path)
    except OSError as error:
        remove(temporary)
        raise UserError(f"{path}: writing failed ({error.strerror}); the old file, if any, is untouched") from error
    except BaseException:
        remove(temporary)
        raise
    try:
        sync_folder(folder)
    except OSError as error:
        problem = f"the file system does not confirm that it is on disk ({error.strerror})"
        raise UserError(f"{path}: is written, but {problem}; write it again, or choose another path") from error


def _check_replaceable(path):
    """A rename would silently replace a device or a pipe (as root even /dev/null), and a file without permissions."""
    if os.path.abspath(path).startswith(_SYSTEM) and not os.path.abspath(path).startswith("/dev/shm/"):
        raise UserError(f"{path}: this is a device, pipe or socket; give the name of a regular file")
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder; give the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: this is a device, pipe or socket; give the name of a regular file")
    if may_exist(path) and not os.stat(path).st_mode & 0o222:
        raise UserError(f"{path}: this file is write-protected; choose another path, or allow it by chmod u+w")


def may_exist(path):
    """Is there something of that name? Raises UserError if the file system does not tell."""
    try:
        return exists(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be found or ruled out ({error.strerror}); try again") from None


def make_folder(path):
    """Create a folder if it does not exist. Raises UserError if that fails."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be created ({error.strerror}); choose another path") from None


def check_writable(path, made_later=""):
    """Raises UserError now, not after hours of work, if `atomic_write(path)` would fail.

    made_later    a folder that need not exist: it will be created before the file is written
    """
    check_name(path)
    if os.fspath(path).endswith(os.sep) and not os.path.isdir(path):
        raise UserError(f"{path}: is the name of a folder; give that of a file")
    folder = os.path.dirname(os.path.realpath(path))
    if made_later and os.path.realpath(made_later) == folder:
        _check_replaceable(path)
        return
    if not os.path.isdir(folder):
        raise UserError(f"{path}: the folder {folder} does not exist; create it, or choose another path")
    _check_replaceable(path)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: no permission to write into {folder}; choose another path")


def check_name(path):
    """Raises UserError for a path that no file can have: nothing would tell before it is written."""
    path = os.fspath(path)
    if not path.strip() or "\0" in path:
        raise UserError(f"{path!r} is not the path of a file")
    longest = max((len(os.fsencode(part)) for part in path.split(os.sep)), default=0)
    if longest > _MAX_NAME or len(os.fsencode(os.path.abspath(path))) > _MAX_PATH:
        raise UserError(f"{path[:40]}...: the name is too long for a file; choose a shorter one")
    try:
        retried(os.stat, path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another path") from None


def read_bytes(path, most=MOST):
    """The content of a file. Raises UserError, with the file and the reason, if it cannot be read, or has more than
    `most` bytes."""
    try:
        with open_file(path) as file:
            return read_bounded(file, path, most)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_range(file, start, size):
    """Returns up to `size` bytes of an open, unbuffered file from the byte `start` on, fewer if it ends before that.

    The file's own position is neither used nor changed where the system can do that, so threads may share the file.
    """
    parts, end = [], start + size
    while start < end:
        wanted = min(end - start, 1 << 30)  # Linux reads at most 2^31 - 4096 bytes at a time
        if hasattr(os, "pread"):
            part = os.pread(file.fileno(), wanted, start)
        else:
            file.seek(start)
            part = file.read(wanted)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def user_cache():
    """The folder of what can be made again: ~/.cache/tinygrad2, or in XDG_CACHE_HOME. It need not exist."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tinygrad2")


def read_json(path):
    """The value in a JSON file. Raises UserError, with the file and the reason, if it cannot be read or parsed."""
    data = read_bytes(path, MOST_JSON)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        if kind := recognize(data[:LOOK], path):
            raise UserError(f"{path}: {kind}" if kind.role in ("stand-in", "packed") else
                            f"{path}: is not valid JSON, but {kind.what}; download it or create it again") from None
        raise UserError(f"{path}: is not valid JSON; download it or create it again") from None


def unique_names(pairs):
    """For json.loads(..., object_pairs_hook=unique_names): refuses objects that have a name twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def write_json(path, value):
    """Write a JSON file, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def write_record(path, fields):
    """Write a dict as JSON with a checksum: notes of the program to itself, not to be trusted when damaged."""
    write_json(path, fields | {"checksum": _checksum(fields)})


def read_record(path):
    """The dict that write_record wrote; None if it is missing or damaged (then the work is done again)."""
    try:
        fields = read_json(path)
    except UserError:
        return None
    if not isinstance(fields, dict) or fields.pop("checksum", None) != _checksum(fields):
        return None
    return fields


def crc32_text(*parts):
    """The CRC-32 of bytes in one or several parts, as our files store it: "crc32:%08x".

    >>> crc32_text(b"123456789")
    'crc32:cbf43926'
    """
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return f"crc32:{crc:08x}"


def crc32_of_file(path):
    """The CRC-32 of a file, in the same form."""
    crc = 0
    with open_file(path) as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return f"crc32:{crc:08x}"


def _checksum(fields):
    return crc32_text(json.dumps(fields, sort_keys=True).encode())
