"""Files that a program is going to write are checked before it computes anything.

    exists = check_output("--weights-out", path, "weights of tinygrad2", is_weights, [("--data", data)])

Nothing is replaced that tinygrad2 has not written itself, which a file's content shows and not its name, and nothing
that the program also reads, by whatever path. An empty file may be replaced: nothing is lost with it.
"""

import contextlib
import errno
import os
import re

from tinygrad2.errors import UserError
from tinygrad2.io.file_systems import move, retried
from tinygrad2.io.files import check_writable, may_exist
from tinygrad2.io.room import Need, check_room
from tinygrad2.system.temporary import sweep, temporary_folder

_REFUSED = (errno.EPERM, errno.EACCES, errno.EBUSY)
_ELSEWHERE = "choose another path, or move it away"


def check_output(flag, path, what, is_ours, inputs=(), made_later="", appended=False):
    """Raises UserError if `path` cannot be written, or must not be: it is an input, or it exists and is not ours.

    flag          the flag or argument that named it, for messages
    what          what is written there: "weights of tinygrad2"
    is_ours       is_ours(path): is an existing file such a thing? Told by its content
    inputs        pairs (flag, path of a file that is read)
    made_later    a folder that need not exist yet: the program itself makes it
    appended      an existing file is not replaced: lines are added to it

    Returns whether there is a file that will be replaced.
    """
    sweep(os.path.dirname(os.path.realpath(path)))
    try:
        check_writable(path, made_later)
        check_room([Need("", path, what, 0, 0)])
    except UserError as error:
        raise UserError(f"{flag} {error}") from None
    for other, read in inputs:
        if is_same_file(path, read):
            raise UserError(f"{flag} {path}: is what {other} reads, and would be replaced; choose another path")
    if not may_exist(path) or os.path.getsize(path) == 0:
        return False
    if not is_ours(path):
        raise UserError(f"{flag} {path}: exists and is not {what}, so it is not replaced; {_ELSEWHERE}")
    if not appended:
        _check_rename(flag, os.path.realpath(path))
    return True


def _check_rename(flag, path):
    """Raises UserError if a rename cannot replace this existing file, although a file can be created beside it: another
    user's in a folder like /tmp, one with the attributes of `chattr +i` or `+a`, one that is mounted by itself (a
    container's).

    To see it, a folder is renamed to it. That never succeeds: with ENOTDIR, or before that with the reason.
    """
    parent, name = os.path.split(path)
    problem = "it is mounted by itself" if _is_mounted(path) else ""
    with contextlib.suppress(OSError), temporary_folder(parent, name) as folder:
        try:
            retried(os.rename, folder, path, more=_REFUSED)
        except OSError as error:
            problem = error.strerror if error.errno in _REFUSED else problem
    if problem:
        raise UserError(f"{flag} {path}: cannot be replaced ({problem}); choose another path")


def _is_mounted(path):
    """Is something mounted at this path? Linux tells; elsewhere: no."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        places = (line.split()[4] for line in file)
        return os.fsencode(path) in {re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), name) for name in places}
    return False


def is_same_file(path, other):
    """Do two paths lead to one file: the same path in another form, a symbolic or a hard link?"""
    if os.path.realpath(path) == os.path.realpath(other):  # some file systems give a file another number each time
        return True
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return False


def is_inside(path, folder):
    """Does a path lie inside a folder, directly or deeper? Neither need exist."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path != folder and path.startswith(os.path.join(folder, ""))


def files_of(path):
    """Paths of the file, or of all files directly in the folder; none if there is neither."""
    if not os.path.isdir(path):
        return [path]
    try:
        return sorted(entry.path for entry in os.scandir(path) if entry.is_file())
    except OSError:
        return []


def set_aside(path, log):
    """Rename an existing file to NAME.previous-1.ENDING (or -2, ...), and report that by log(line).

    Returns the new path, "" if there is nothing to keep: no file, or an empty one. Raises UserError if that fails.
    """
    path = os.path.realpath(path)
    if not may_exist(path) or os.path.getsize(path) == 0:
        return ""
    stem, ending = os.path.splitext(path)
    n = 1
    while os.path.lexists(aside := f"{stem}.previous-{n}{ending}"):
        n += 1
    try:
        move(path, aside)
    except OSError as error:
        raise UserError(f"{path}: cannot be renamed to {aside} ({error.strerror}); {_ELSEWHERE}") from None
    log(f"note      {path}: what an earlier training wrote is now in {aside}")
    return aside

