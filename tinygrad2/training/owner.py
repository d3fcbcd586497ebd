"""Which training uses a run folder: a note in it, renewed while the training runs.

    run/.owner      {"host": "node1", "boot": "0a1b...", "pid": 4711, "started": 12345, "token": "...", "beats": 17}

A lock on run/.lock is the first means to keep two trainings apart. But on a file system of a network it may not exist,
or hold on one host only (NFS mounted with nolock), and then every process gets it. So a training that has got the lock
also looks at the note. If that has been left by a process of this host which has ended, it is nothing. If its writer
may be alive, the note is watched: while a training runs it changes every few seconds, on whatever host. A clock is not
needed, those of two hosts may differ.

The training that was there first looks as well: if the note becomes another's, it ends.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
import weakref

from tinygrad2.errors import UserError
from tinygrad2.io.file_systems import retried
from tinygrad2.io.open_file import open_descriptor
from tinygrad2.system.descriptors import close
from tinygrad2.system.process import start_ticks

_RENEW = 5.0  # seconds between two changes of the note
_WATCH = 25.0  # seconds without a change after which its writer is gone; caches of file systems keep for less
_SIZE = 512  # bytes of the note; always as many, so that writing it over is one call


class FolderInUse(UserError):
    """Another training uses the folder."""


class Owner:
    """The note of this process in a run folder."""

    def __init__(self, folder):
        self.folder, self.path = folder, os.path.join(folder, ".owner")
        self._note = {**_this_process(), "token": str(uuid.uuid4()), "beats": 0}
        self._other = None  # the note of a training that has taken the folder over
        self._ended = threading.Event()
        self._finalizer = None

    def take(self, locked, log):
        """Write the note, once it is certain that no other training runs here. Renewed until `release`.

        locked    has a lock been obtained? Then notes of processes that cannot be asked are no obstacle on a disk
        Raises FolderInUse, OSError if the note cannot be written.
        """
        other = self.read()
        if other and not self.is_mine(other) and not _has_ended(other, self.folder if locked else None):
            self._watch(other, log)
        self._write()
        renewing = threading.Thread(target=_renew, args=(weakref.ref(self), self._ended), daemon=True,
                                    name="tinygrad2 owner of the run folder")  # fmt: skip
        with contextlib.suppress(RuntimeError):  # the system refuses another thread
            renewing.start()
        self._finalizer = weakref.finalize(self, _remove_own, self.path, self._note["token"], self._ended)

    def check(self):
        """Raises FolderInUse if another training has taken the folder over."""
        if self._other:
            raise FolderInUse(f"{self.folder}: another training has begun in this folder ({_who(self._other)}); this "
                              "one ends; choose another --run-dir for one of them")  # fmt: skip

    def is_mine(self, note):
        """Is a note the one of this training?"""
        return bool(note) and note.get("token") == self._note["token"]

    def read(self):
        """The note that is in the folder, a dict; None if there is none, or it cannot be read."""
        return _read(self.path)

    def release(self):
        """Remove the note: the training has ended."""
        if self._finalizer:
            self._finalizer()

    def renew(self):
        """Change the note. If it is another's, that is remembered, for `check`."""
        other = self.read()
        if other and not self.is_mine(other):
            self._other = other
        elif not self._ended.is_set():
            self._write()

    def _watch(self, other, log):
        """Raises FolderInUse if the note changes."""
        log(f"note      {self.folder}: was used last by {_who(other)}; whether it still is will be known in "
            f"{_WATCH:.0f} seconds")  # fmt: skip
        end = time.monotonic() + _WATCH
        while time.monotonic() < end:
            time.sleep(min(1.0, _RENEW))
            now = self.read()
            if now and now != other:
                raise in_use(self.folder, now)

    def _write(self):
        self._note["beats"] += 1
        text = json.dumps(self._note).encode()
        handle = open_descriptor(self.path, os.O_WRONLY | os.O_CREAT)
        try:
            os.write(handle, text.ljust(_SIZE - 1) + b"\n")
        finally:
            os.close(handle)  # what NFS writes when a file is closed, another host reads when it opens it


def in_use(folder, note=None):
    """The FolderInUse for a folder whose lock is held, or whose note changes."""
    who = f" ({_who(note)})" if note else ""
    return FolderInUse(f"{folder}: another training is running in this folder{who}; choose another --run-dir")


def _read(path):
    for wait in (0.2, 0.5, 0):  # what another host has just written may look empty for a moment
        with contextlib.suppress(ValueError, RecursionError):
            note = json.loads(_content(path) or b"null")
            if note is None or isinstance(note, dict) and type(note.get("pid")) is int:
                return note
        time.sleep(wait)
    return None


def _content(path):
    """The bytes of a note; None if there is none, or it cannot be read."""
    with contextlib.suppress(OSError):
        handle = retried(os.open, path, os.O_RDONLY)
        try:
            return retried(os.pread, handle, 2 * _SIZE, 0) or b"?"
        finally:
            close(handle)
    return None


def _renew(owner, ended):
    """What the thread does: it keeps nobody alive."""
    while not ended.wait(_RENEW):
        if (me := owner()) is None:
            return
        with contextlib.suppress(OSError):  # next time
            me.renew()
        del me


def _remove_own(path, token, ended):
    ended.set()
    with contextlib.suppress(OSError):
        if (_read(path) or {}).get("token") == token:
            os.remove(path)


def _this_process():
    return {"host": socket.gethostname()[:64], "boot": _boot(), "pid": os.getpid(), "started": start_ticks(os.getpid())}


def _boot():
    """Identifies the running system and, on Linux, the container: process numbers mean something within it."""
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    return ""


def _has_ended(note, locked_folder):
    """Is it certain that the writer of a note has ended?

    locked_folder    the folder, if its lock has been obtained: on a disk of this machine, unlike a network, locks hold
    """
    if note.get("boot") and note["boot"] == _boot():
        return start_ticks(note["pid"]) != note.get("started")
    return locked_folder is not None and os.major(os.stat(locked_folder).st_dev) != 0


def _who(note):
    return f"process {note['pid']} on {str(note.get('host'))[:64]}"
