"""Checkpoints: all that a training needs to continue as if it had never stopped.

    checkpoints/step_00000100/
        weights.bin        model, config and tokenizer; the same file as trained_weights.bin, inference.py reads it
        optimizer.bin      Adam's m and v for every parameter, and its step count t
        state.json         step, position in the data, all flags, fingerprint of the data (RunState)
        metrics.jsonl      the losses of all steps so far
        manifest.json      size and checksum of every file above, and a checksum of itself

A checkpoint is complete or not there at all, whenever the power fails. Everything is written into a folder of another
name and forced to disk, file by file; the manifest comes last, then the folder gets its name. Only then are older
checkpoints removed, and each loses its name before its files. So a folder called step_... was complete when it got that
name, and the manifest shows whether it still is.

It holds arrays and JSON only; nothing in it is ever executed.
"""

import contextlib
import json
import os
import re
import shutil
import threading
from dataclasses import dataclass, field

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.io.file_systems import move, retried, sync_file, sync_folder
from tinygrad2.io.files import CorruptFile, crc32_text, read_bytes, read_json, unique_names
from tinygrad2.io.open_file import open_file
from tinygrad2.io.weights import load_weights, read_tensors, write_tensors, write_weights
from tinygrad2.system.temporary import is_mine

FORMAT, VERSION = "tinygrad2-checkpoint", 1
_NAME = re.compile(r"step_(\d{8,})(?:\.(\d+))?$")
_WRITING, _DELETING = ".writing-", ".deleting-"  # folders that are being written and removed
_LONG = 5.0  # seconds after which waiting for a checkpoint is reported
_FILES = {"weights.bin", "optimizer.bin", "state.json", "metrics.jsonl"}


@dataclass
class Checkpoint:
    """The state of a training at one point in time.

    weights, moments   {name: float32 array}; moments are "m.<name>" and "v.<name>"
    t                  Adam's step count
    frozen             names of the parameters with requires_grad = False
    missed             {name: steps in which a parameter was frozen} (Adam.missed)
    state              dict of JSON values: everything else (RunState.to_dict), with "step" at least
    tokenizer          its JSON text, or ""
    config             of the model (ModelConfig.to_dict)
    history            bytes of metrics.jsonl
    path               where it was read from
    """

    weights: dict
    moments: dict
    t: int
    state: dict
    tokenizer: str
    config: dict
    history: bytes = b""
    frozen: list = field(default_factory=list)
    missed: dict = field(default_factory=dict)
    path: str = field(default="", compare=False)

    @property
    def step(self):
        """Optimizer steps done."""
        return self.state["step"]


def write_checkpoint(folder, checkpoint, keep=False):
    """Write it into `folder` under the name of its step; returns the path. A checkpoint of the same name stays, the new
    one then gets a number after its name.

    keep    remove_old_checkpoints never removes it
    Raises UserError if it cannot be written (disk full, no permission); nothing that was there before is changed.
    """
    temporary, path = os.path.join(folder, f"{_WRITING}{checkpoint.step:08d}-{os.getpid()}"), None
    try:
        _remove_tree(temporary)
        os.makedirs(temporary, exist_ok=True)  # what could not be removed is not listed in the manifest
        entries = {}
        for name, write in _files_of(checkpoint).items():
            with open_file(os.path.join(temporary, name), "wb") as raw:
                checksum = write(raw)
                entries[name] = {"bytes": raw.tell(), "checksum": checksum}
                sync_file(raw)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "step": checkpoint.step,
            "val_loss": checkpoint.state.get("val_loss"),
            "files": entries,
        } | ({"keep": True} if keep else {})
        manifest["checksum"] = _checksum(manifest)
        with open_file(os.path.join(temporary, "manifest.json"), "wb") as raw:
            raw.write(json.dumps(manifest, indent=1).encode())
            sync_file(raw)
        sync_folder(temporary)
        free = _free_name(folder, checkpoint.step)
        move(temporary, free)
        path = free
        sync_folder(folder)
        return path
    except OSError as error:
        if path:
            raise UserError(f"{path}: is written, but the file system does not confirm that it is on disk "
                            f"({error.strerror}); earlier checkpoints stay") from error  # fmt: skip
        _remove_tree(temporary)
        raise UserError(
            f"{folder}: the checkpoint of step {checkpoint.step} cannot be written ({error.strerror}); earlier ones "
            "are unchanged; free some space, or choose another --run-dir"
        ) from error
    except BaseException:  # no memory, for example
        if not path:
            _remove_tree(temporary)
        raise


def _files_of(checkpoint):
    """{file name: function that writes the content into an open file and returns its checksum}"""
    c = checkpoint
    return {
        "weights.bin": lambda f: write_weights(f, c.weights, c.config, c.tokenizer, dict(steps_done=c.step)),
        "optimizer.bin": lambda f: write_tensors(f, c.moments, t=str(c.t), **_frozen_fields(c)),
        "state.json": lambda f: _write(f, json.dumps(c.state, indent=1).encode()),
        "metrics.jsonl": lambda f: _write(f, c.history),
    }


def _frozen_fields(checkpoint):
    """Metadata about frozen parameters, only if there are or were any."""
    fields = {"frozen": checkpoint.frozen, "missed": checkpoint.missed}
    return {name: json.dumps(value) for name, value in fields.items() if value}


def read_checkpoint(path):
    """The checkpoint in the folder `path`, every byte checked. Raises UserError naming the file and the damage."""
    manifest = read_manifest(path)
    try:  # the first two contain checksums, which must be those in the manifest
        weights = load_weights(os.path.join(path, "weights.bin"))
        moments, metadata = read_tensors(os.path.join(path, "optimizer.bin"), ("t",))
        moments = moments.lazy()
        state, history = (read_bytes(os.path.join(path, name)) for name in ("state.json", "metrics.jsonl"))
    except UserError as error:
        raise UserError(f"{error} (damaged checkpoint)") from None
    except CorruptFile as error:
        raise _damaged(os.path.join(path, "optimizer.bin"), error) from None
    checksums = {"weights.bin": weights.checksum, "optimizer.bin": metadata["checksum"],
                 "state.json": crc32_text(state), "metrics.jsonl": crc32_text(history)}  # fmt: skip
    for name, checksum in checksums.items():
        if checksum != manifest["files"][name]["checksum"]:
            raise _damaged(os.path.join(path, name), "the checksum does not match")
    try:
        state = json.loads(state, object_pairs_hook=unique_names)
    except (ValueError, RecursionError):
        state = None
    if not metadata["t"].isdecimal() or len(metadata["t"]) > 18:
        raise _damaged(path, f"optimizer.bin: field 't' is {metadata['t'][:20]!r}, not a step count")
    if not isinstance(state, dict) or state.get("step") != manifest["step"]:
        raise _damaged(path, "state.json is not of the step in manifest.json")
    frozen, missed = _read_frozen_fields(metadata, path)
    return Checkpoint(
        weights.tensors.lazy(), moments, int(metadata["t"]), state, weights.tokenizer, weights.config, history, frozen,
        missed, path,
    )  # fmt: skip


def _read_frozen_fields(metadata, path):
    try:
        frozen, missed = json.loads(metadata.get("frozen", "[]")), json.loads(metadata.get("missed", "{}"))
    except (ValueError, RecursionError):
        frozen, missed = None, None
    names = isinstance(frozen, list) and all(isinstance(name, str) for name in frozen)
    if not names or not isinstance(missed, dict) or not all(map(_is_count, missed.values())):
        raise _damaged(path, "optimizer.bin: fields 'frozen' and 'missed' are not names and step counts")
    return frozen, missed


def read_manifest(path):
    """The manifest of a checkpoint, checked, with the sizes of all files; their contents are not read.

    Raises UserError naming the file and the damage.
    """
    name = os.path.join(path, "manifest.json")
    try:
        manifest = read_json(name)
    except UserError as error:
        raise UserError(f"{error} (damaged checkpoint)") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _damaged(name, f"field 'format' is not {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise _damaged(name, f"version {str(manifest.get('version'))[:20]!r}, this program reads {VERSION}")
    claimed = manifest.pop("checksum", None)
    if claimed != _checksum(manifest):
        raise _damaged(name, "the checksum does not match")
    if not _is_count(manifest.get("step")):
        raise _damaged(name, f"field 'step' is {str(manifest.get('step'))[:20]}")
    if manifest.setdefault("val_loss", None) is not None and type(manifest["val_loss"]) is not float:
        raise _damaged(name, f"field 'val_loss' is {str(manifest['val_loss'])[:20]}")
    if not isinstance(manifest.get("files"), dict) or set(manifest["files"]) != _FILES:
        raise _damaged(name, "field 'files' does not list the files of a checkpoint")
    for file, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not _is_count(entry.get("bytes")) or "checksum" not in entry:
            raise _damaged(name, f"entry {file!r} has no size and checksum")
        _check_size(os.path.join(path, file), entry["bytes"])
    return manifest


def newest_checkpoint(folder, log=print):
    """(the newest intact Checkpoint in `folder`, or None if there are none; paths of damaged newer ones).

    Each damaged one is reported by log(line), and left as it is. Raises UserError if all are damaged.
    """
    damaged = []
    for path in list_checkpoints(folder):
        try:
            return read_checkpoint(path), damaged
        except UserError as error:
            log(f"warning   {error}; trying the one before it")
            damaged.append(path)
    if damaged:
        raise UserError(f"{folder}: none of the {len(damaged)} checkpoint(s) is intact; if they could be read (see "
                        "above), move them away to start again, else try again")  # fmt: skip
    return None, []


def list_checkpoints(folder):
    """Paths of all checkpoints, intact or damaged, the newest first. Raises UserError if the folder cannot be read: it
    would look like one without checkpoints."""
    checkpoints = []
    for name in _names(folder):
        if match := _NAME.match(name):
            checkpoints.append((int(match[1]), int(match[2] or 1), os.path.join(folder, name)))
    return [path for _, _, path in sorted(checkpoints, reverse=True)]


def is_checkpoint_name(name):
    """Is this the name of a checkpoint, or of one that is being written or removed?"""
    return bool(_NAME.match(name)) or name.startswith((_WRITING, _DELETING))


def remove_old_checkpoints(folder, keep, distrusted=()):
    """Keep the newest `keep` checkpoints and the one with the lowest validation loss; remove the others, except those
    that were written to be kept.

    Damaged ones neither count nor are removed: those in `distrusted`, and those whose manifest is not valid.
    """
    intact = {}
    for path in list_checkpoints(folder):
        with contextlib.suppress(UserError):
            if path not in distrusted:
                intact[path] = read_manifest(path)
    kept = [path for i, path in enumerate(intact) if i < keep or intact[path].get("keep")]
    measured = [path for path in intact if intact[path]["val_loss"] is not None]
    kept += sorted(measured, key=lambda path: intact[path]["val_loss"])[:1]
    for path in intact:
        if path not in kept:
            doomed = os.path.join(folder, f"{_DELETING}{os.path.basename(path)}-{os.getpid()}")
            move(path, doomed)  # first the name: half a checkpoint must not look like a damaged one
            _remove_tree(doomed)
    sweep(folder, (_DELETING,))  # NFS keeps a file that was open when it was removed, and with it the folder


def sweep(folder, beginnings=(_WRITING, _DELETING)):
    """Remove what a killed process left half-written or half-removed."""
    for name in _names(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):
            if name.startswith(beginnings) and is_mine(os.lstat(path)):
                _remove_tree(path)


class CheckpointWriter:
    """Writes checkpoints on its own thread, one at a time, while the training continues.

    folder, keep, distrusted   as in remove_old_checkpoints
    keep_every                 those of every so many steps are never removed; 0: none
    path                       of the last one written
    """

    def __init__(self, folder, keep, distrusted=(), keep_every=0):
        self.folder, self.keep, self.distrusted, self.keep_every = folder, keep, tuple(distrusted), keep_every
        self.path = self._buffers = self._thread = self._error = None

    def buffers(self, size, dtype):
        """Three arrays (size,) for what a checkpoint holds, because the training changes its own in place. They are the
        same each time (fresh memory costs ten times as much), so `join` before writing into them."""
        self._buffers = self._buffers or [np.empty(size, dtype) for _ in range(3)]
        return self._buffers

    def save(self, checkpoint, log):
        """Start to write a checkpoint, once the one before it is written. Failures are reported by log(line): a full
        disk should not end a training, and the earlier checkpoints are still there."""
        self.join(log)
        self._thread = threading.Thread(target=self._write_later, args=(checkpoint,), name="tinygrad2 checkpoint")
        try:
            self._thread.start()
        except RuntimeError:  # the system allows no more threads
            self._thread = None
            self._write(checkpoint)

    def join(self, log):
        """Wait until everything is written."""
        if self._thread is not None:
            self._thread.join(_LONG)
            if self._thread.is_alive():
                log(f"note      waiting until the last checkpoint is on disk in {self.folder}")
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, (UserError, MemoryError)):
            log(f"warning   {error or 'no memory is left to write a checkpoint'}")
        elif error:
            raise error

    def _write_later(self, checkpoint):
        with contextlib.suppress(AttributeError, OSError):  # Linux only: the training goes first if cores are few
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        self._write(checkpoint)

    def _write(self, checkpoint):
        try:
            forever = self.keep_every > 0 and checkpoint.step % self.keep_every == 0
            self.path = write_checkpoint(self.folder, checkpoint, forever)
            with contextlib.suppress(OSError, UserError):  # what cannot be removed now may be removable next time
                remove_old_checkpoints(self.folder, self.keep, self.distrusted)
        except BaseException as error:  # raised again by `join`, on the training's thread
            self._error = error


# -- pieces ------------------------------------------------------------------------------------------------------------


def _write(file, data):
    file.write(data)
    return crc32_text(data)


def _free_name(folder, step):
    path, n = os.path.join(folder, f"step_{step:08d}"), 1
    while os.path.lexists(path):
        n += 1
        path = os.path.join(folder, f"step_{step:08d}.{n}")
    return path


def _names(folder):
    """The names in a folder; none if there is no such folder. Raises UserError if it cannot be read."""
    try:
        return retried(os.listdir, folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); try again, or give another --run-dir") from None


def _remove_tree(path):
    with contextlib.suppress(OSError):  # Python 3.11 raises those of closing a folder all the same
        shutil.rmtree(path, ignore_errors=True)


def _checksum(manifest):
    return crc32_text(json.dumps(manifest, sort_keys=True).encode())


def _check_size(path, size):
    try:
        actual = retried(os.stat, path).st_size
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from None
    if actual != size:
        raise _damaged(path, f"{actual:,} bytes long instead of {size:,}")


def _is_count(value):
    return type(value) is int and value >= 0


def _damaged(path, problem):
    return UserError(f"{path}: damaged checkpoint: {problem}")
