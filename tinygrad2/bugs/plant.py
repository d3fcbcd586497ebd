"""A copy of the source with a bug in it, in a folder of the learner's, and its removal.

The copy holds what a training needs: the packages, the two scripts and the bundled stories. It has no compiled kernels,
so that the reference implementations run, which are what one reads.
"""

import contextlib
import os

from tinygrad2.errors import UserError
from tinygrad2.io.file_systems import move
from tinygrad2.io.files import crc32_of_file, make_folder, may_exist, read_bytes, read_record, write_record
from tinygrad2.io.open_file import open_file
from tinygrad2.system.installation import PROJECT_ROOT, is_checkout
from tinygrad2.system.temporary import temporary_folder

FORMAT, NOTE = "tinygrad2-bug", "bug.json"
_PACKAGES = "tinygrad2", "ops", "models"
_FILES = "train_gpt2.py", "inference.py"
_COMPILED = os.path.join("ops", "kernels", "cpu")


def sources():
    """Paths of the files of a copy, from the root of the project."""
    names = [*_FILES, os.path.join("data", "dummy_data.txt")] if is_checkout() else [*_FILES]
    for package in _PACKAGES:
        for folder, below, files in os.walk(os.path.join(PROJECT_ROOT, package)):
            inside = os.path.relpath(folder, PROJECT_ROOT)
            below[:] = [name for name in sorted(below) if not _is_left_out(os.path.join(inside, name))]
            names += [os.path.join(inside, name) for name in sorted(files) if not name.endswith((".pyc", ".tmp"))]
    return names


def _is_left_out(path):
    return path == _COMPILED or os.path.basename(path) == "__pycache__"


def refuse_in_a_copy(remedy):
    """Raises UserError if this process itself runs from a copy with a bug."""
    if may_exist(os.path.join(PROJECT_ROOT, NOTE)):
        raise UserError(f"{PROJECT_ROOT}: is itself a copy with a bug in it; {remedy}")


def folder_of(patch, folder):
    """Where the copy with this bug is."""
    return os.path.join(folder, f"{patch.number:02d}")


def is_planted(patch, folder):
    """Is there a copy with this bug in the learner's folder?"""
    return _note(patch, folder) is not None


def _note(patch, folder):
    note = read_record(os.path.join(folder_of(patch, folder), NOTE))
    return note if note and note.get("format") == FORMAT and note.get("bug") == patch.number else None


def plant(patch, folder):
    """Write a copy of the source with the bug; returns its path. It is there as a whole, or not at all.

    Raises UserError if there is something of that name, or if this process itself runs from such a copy.
    """
    refuse_in_a_copy("plant from another folder")
    path = folder_of(patch, folder)
    if may_exist(path):
        if is_planted(patch, folder):
            raise UserError(f"{path}: is planted already; look for it there, or remove it first")
        raise UserError(f"{path}: exists and is not a copy with a bug; choose another --folder, or move it away")
    planted = patch.apply(patch.shipped()).encode("utf-8")
    make_folder(folder)
    sums = {}
    with temporary_folder(folder, "bug") as temporary:
        root = os.path.join(temporary, "copy")
        for name in sources():
            inside = name.replace(os.sep, "/")
            target = os.path.join(root, name)
            make_folder(os.path.dirname(target))
            content = planted if inside == patch.file else read_bytes(os.path.join(PROJECT_ROOT, name))
            with open_file(target, "wb") as file:
                file.write(content)
            sums[inside] = crc32_of_file(target)
        write_record(os.path.join(root, NOTE), {"format": FORMAT, "version": 1, "bug": patch.number, "files": sums})
        try:
            move(root, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --folder") from None
    return path


def remove(patch, folder):
    """Remove the copy; returns the names that stay in it: files that were changed, or that planting did not write.

    Raises UserError if there is no copy.
    """
    path, note = folder_of(patch, folder), _note(patch, folder)
    if note is None:
        refuse_in_a_copy("remove it from the folder in which it was planted")
        raise UserError(f"{path}: no bug is planted there")
    for name, crc in note["files"].items():
        target = os.path.join(path, *name.split("/"))
        if may_exist(target) and crc32_of_file(target) == crc:
            os.remove(target)
    for below, _, files in os.walk(path, topdown=False):
        for name in files:
            if os.path.basename(below) == "__pycache__" and name.endswith(".pyc"):
                os.remove(os.path.join(below, name))
        if below != path:
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(below)
    os.remove(os.path.join(path, NOTE))
    stay = sorted(os.listdir(path))
    if not stay:
        os.rmdir(path)
    return stay
