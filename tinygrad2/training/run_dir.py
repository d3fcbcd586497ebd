"""The folder of a run: what a training leaves on disk, and what it is resumed from.

    run/config.json       all flags, the model's shape, and the fingerprint of the data
    run/metrics.jsonl     one JSON object per step; if a step occurs twice (after a restart), the later line counts
    run/checkpoints/      see checkpoint.py
    run/nonfinite_.../    a dump, if a value was not finite; see monitor/dump.py
    run/previous-1/       what an earlier training left in the same folder
    run/.lock, .owner     which process trains here; see owner.py

A new training never removes an older one's files: it moves them into previous-1, previous-2, ... Two trainings never
run in one folder at once: the first holds a lock, which the system releases however the process ends, and renews a
note.
"""

import os
import weakref

from tinygrad2.errors import UserError
from tinygrad2.io.file_systems import Lock, move, retried
from tinygrad2.io.files import check_name, may_exist, write_json
from tinygrad2.io.outputs import check_output, is_inside
from tinygrad2.monitor.metrics import is_metrics, is_run_config
from tinygrad2.system.temporary import sweep as sweep_temporary
from tinygrad2.training.checkpoint import is_checkpoint_name, newest_checkpoint, sweep
from tinygrad2.training.owner import FolderInUse, Owner, in_use

_PARTS = ("checkpoints", "metrics.jsonl", "config.json")
_MOVED = ("nonfinite_step_", "events.out.tfevents.")
_KEPT = (*_MOVED, "previous-")


class RunDir:
    """The folder of one run. Attributes are the paths of its parts.

    damaged    paths of the damaged checkpoints that find_checkpoint has met
    """

    def __init__(self, path):
        self.path = path
        self.checkpoints = os.path.join(path, "checkpoints")
        self.metrics = os.path.join(path, "metrics.jsonl")
        self.config = os.path.join(path, "config.json")
        self.damaged = []
        self.owner = Owner(path)
        self._lock = self._parts = None

    def check(self, inputs=()):
        """Raises UserError if `open` would fail, or if what is in the folder is not a training's; creates nothing yet.

        inputs    pairs (flag, path of a file that the training reads)
        """
        check_name(self.path)
        existing = os.path.abspath(self.path)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
            raise UserError(f"{self.path}: cannot be written to (see {existing}); choose another --run-dir")
        what = "of a training of tinygrad2"
        check_output("--run-dir:", self.config, what, is_run_config, inputs, self.path)
        check_output("--run-dir:", self.metrics, what, is_metrics, inputs, self.path, appended=True)
        names = self._names(self.checkpoints) if os.path.isdir(self.checkpoints) else []
        is_other = os.path.lexists(self.checkpoints) and not os.path.isdir(self.checkpoints)
        visible = [name for name in names if not name.startswith(".")]  # .nfs0001 is a file that was removed
        if is_other or visible and not any(map(is_checkpoint_name, names)):
            raise UserError(f"--run-dir: {self.checkpoints}: exists and has no checkpoints of tinygrad2; choose "
                            "another --run-dir")  # fmt: skip

    def owns(self, path):
        """Is this the path of something that only the training itself may write, in this folder?"""
        if not is_inside(path, self.path):
            return False
        name = os.path.relpath(os.path.realpath(path), os.path.realpath(self.path)).split(os.sep)[0]
        name = name.lower()  # to some file systems CONFIG.JSON is config.json
        return name in (*_PARTS, ".lock", ".owner") or name.startswith(_KEPT)

    def open(self, log=print):
        """Create the folder if it is missing, take its lock, and remove what a killed training left half-written.

        Raises UserError if it cannot be written to, or if another training runs in it.
        """
        if self._lock is not None:
            return
        try:
            os.makedirs(self.checkpoints, exist_ok=True)
            lock = Lock.of(os.path.join(self.path, ".lock"))
            self.owner = Owner(self.path)
            if lock is None:
                raise in_use(self.path, self.owner.read())
            self._unlock = weakref.finalize(self, lock.close)
            if lock.problem:
                log(f"note      {self.path}: file locks do not work there ({lock.problem}); a second training in this "
                    "folder is noticed by the file .owner")  # fmt: skip
            self.owner.take(not lock.problem, log)
            self._lock = lock
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); choose another --run-dir") from None
        finally:
            if self._lock is None and hasattr(self, "_unlock"):
                self._unlock()
        sweep(self.checkpoints)
        sweep_temporary(self.path)

    def close(self):
        """Release the lock: the training has ended."""
        if self._lock is not None:
            self.owner.release()
            self._unlock()
            self._lock = None

    def find_checkpoint(self, log):
        """Open the folder, if there is one; returns the newest intact Checkpoint, None if there is none."""
        if may_exist(self.path):
            self.open(log)
        checkpoint, self.damaged = newest_checkpoint(self.checkpoints, log)
        log("resume    " + (f"from {checkpoint.path}" if checkpoint else "nothing here yet: starting a new training"))
        return checkpoint

    def begin(self, state, log):
        """Open the folder for a training with this RunState: a new one moves an earlier training's files aside."""
        self.open(log)
        if not state.step:
            self._set_aside(log)
        self._parts = dict(training=state.training, model=state.model, preset=state.preset, data=state.data)
        write_json(self.config, self._parts)

    def restore(self, log):
        """While the training runs: if somebody has removed the folder, create it again; returns whether that was done.

        If that fails, log(line) says so, once, and every later call tries again. Raises FolderInUse if another training
        runs in a folder of that name now.
        """
        self.owner.check()
        if self._lock and not self._was_removed():
            return False
        first, self._lock = self._lock is not None, None
        self.owner.release()
        self._unlock()
        try:
            self.open(log)
            write_json(self.config, self._parts)
        except FolderInUse:
            raise
        except UserError as error:
            if first:
                log(f"warning   {self.path}: was removed while the training runs, and cannot be created again: {error}")
            return False
        log(f"warning   {self.path}: was removed while the training runs; created again, without what was in it")
        return True

    def _was_removed(self):
        """Is the folder of the lock no longer there? False if it cannot be told."""
        path = os.path.join(self.path, ".lock")
        try:
            return not self._lock.is_on(path) and not self.owner.is_mine(self.owner.read())
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False

    def _set_aside(self, log):
        names = self._names(self.path)
        if "metrics.jsonl" not in names and not self._names(self.checkpoints):
            return
        parts = [name for name in names if name in _PARTS or name.startswith(_MOVED)]
        n = 1
        while may_exist(older := os.path.join(self.path, f"previous-{n}")):
            n += 1
        try:
            os.makedirs(older, exist_ok=True)
            for part in parts:
                move(os.path.join(self.path, part), os.path.join(older, part))
            os.makedirs(self.checkpoints, exist_ok=True)
        except OSError as error:
            problem = f"what an earlier training left cannot be moved to {older} ({error.strerror})"
            raise UserError(f"{self.path}: {problem}; choose another --run-dir") from None
        log(f"run       what an earlier training left in {self.path} is now in {older}")

    def _names(self, folder):
        """The names in a folder. Raises UserError if it cannot be read: what is there might be written over."""
        try:
            return retried(os.listdir, folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); choose another --run-dir") from None
