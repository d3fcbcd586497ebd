"""What a prepare script has written into its folder, and may therefore write again.

prepared.json has the size and the CRC-32 of each file. A file that is not in it, or that differs, is somebody else's or
has been changed since, and is not replaced: a folder of tokens has files of common names, such as train.bin.
"""

import contextlib
import os
from functools import partial

from tinygrad2.errors import UserError
from tinygrad2.io.files import check_name, crc32_of_file, read_record, write_record
from tinygrad2.io.outputs import check_output

_RECORD = "prepared.json"
_UNFINISHED = "unfinished"


def claim(folder, names, inputs=()):
    """Raises UserError if one of the files `names` in `folder` must not be written; call it before any work is done.

    inputs    pairs (flag, path of a file that the script reads)
    """
    check_folder(folder)
    record = read_record(os.path.join(folder, _RECORD)) or {}
    for name in names:
        is_ours = partial(_is_recorded, record.get(name))
        check_output("--out:", os.path.join(folder, name), "what this script has written", is_ours, inputs, folder)


def check_folder(folder):
    """Raises UserError if files cannot be written into the folder; it need not exist."""
    check_name(folder)
    existing = os.path.abspath(folder)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise UserError(f"--out {folder}: cannot be written to (see {existing}); choose another folder")


@contextlib.contextmanager
def writing(folder, name):
    """Around the writing of a file, yields its path. It is recorded as ours, also if the work is interrupted."""
    path = os.path.join(folder, name)
    _note(folder, name, _UNFINISHED)
    yield path
    _note(folder, name, facts_of(path))


def _is_recorded(entry, path):
    return entry == _UNFINISHED or (entry is not None and entry == facts_of(path))


def facts_of(path):
    """[size, CRC-32] of a file."""
    return [os.path.getsize(path), crc32_of_file(path)]


def note_download(folder, name):
    """Record that a file is about to be downloaded; one that is there already has been put there by hand."""
    if not os.path.exists(os.path.join(folder, name)):
        _note(folder, name, _UNFINISHED)


def is_noted(folder, name):
    """Has the script itself written or downloaded this file?"""
    return name in (read_record(os.path.join(folder, _RECORD)) or {})


def _note(folder, name, entry):
    path = os.path.join(folder, _RECORD)
    write_record(path, (read_record(path) or {}) | {name: entry})
