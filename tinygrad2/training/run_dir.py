"""The folder of a run: what a training leaves on disk, and what it is resumed from.

    run/config.json       all flags, the model's shape, and the fingerprint of the data
    run/metrics.jsonl     one JSON object per step; if a step occurs twice (after a restart), the later line counts
    run/checkpoints/      see checkpoint.py
    run/nonfinite_.../    a dump, if a value was not finite; see monitor/dump.py
    run/previous-1/       what an earlier training left in the same folder

A new training never removes an older one's files: it moves them into previous-1, previous-2, ... Two trainings never
run in one folder at once: the first holds a lock, which the system releases however the process ends.
"""

import contextlib
import os
import weakref

from tinygrad2.errors import UserError
from tinygrad2.io.files import check_name, locked, write_json
from tinygrad2.io.outputs import check_output, is_inside
from tinygrad2.monitor.metrics import is_metrics, is_run_config
from tinygrad2.training.checkpoint import is_checkpoint_name, newest_checkpoint, sweep

_PARTS = ("checkpoints", "metrics.jsonl", "config.json")
_MOVED = ("nonfinite_step_", "events.out.tfevents.")
_KEPT = (*_MOVED, "previous-")


class FolderInUse(UserError):
    """Another training holds the lock of the folder."""


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
        for path, is_ours in ((self.config, is_run_config), (self.metrics, is_metrics)):
            check_output("--run-dir:", path, "of a training of tinygrad2", is_ours, inputs, self.path)
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.checkpoints) if os.path.isdir(self.checkpoints) else [""]
            if os.path.lexists(self.checkpoints) and names and not any(map(is_checkpoint_name, names)):
                raise UserError(f"--run-dir: {self.checkpoints}: exists and has no checkpoints of tinygrad2; choose "
                                "another --run-dir")  # fmt: skip

    def owns(self, path):
        """Is this the path of something that only the training itself may write, in this folder?"""
        if not is_inside(path, self.path):
            return False
        name = os.path.relpath(os.path.realpath(path), os.path.realpath(self.path)).split(os.sep)[0]
        return name in (*_PARTS, ".lock") or name.startswith(_KEPT)

    def open(self):
        """Create the folder if it is missing, take its lock, and remove what a killed training left half-written.

        Raises UserError if it cannot be written to, or if another training runs in it.
        """
        if self._lock is not None:
            return
        try:
            os.makedirs(self.checkpoints, exist_ok=True)
            self._lock = locked(os.path.join(self.path, ".lock"))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); choose another --run-dir") from None
        if self._lock is None:
            raise FolderInUse(f"{self.path}: another training is running in this folder; choose another --run-dir")
        self._unlock = weakref.finalize(self, os.close, self._lock)
        sweep(self.checkpoints)

    def close(self):
        """Release the lock: the training has ended."""
        if self._lock is not None:
            self._unlock()
            self._lock = None

    def find_checkpoint(self, log):
        """Open the folder, if there is one; returns the newest intact Checkpoint, None if there is none."""
        if os.path.isdir(self.path):
            self.open()
        checkpoint, self.damaged = newest_checkpoint(self.checkpoints, log)
        log("resume    " + (f"from {checkpoint.path}" if checkpoint else "nothing here yet: starting a new training"))
        return checkpoint

    def begin(self, state, log):
        """Open the folder for a training with this RunState: a new one moves an earlier training's files aside."""
        self.open()
        if not state.step:
            self._set_aside(log)
        self._parts = dict(training=state.training, model=state.model, preset=state.preset, data=state.data)
        write_json(self.config, self._parts)

    def restore(self, log):
        """While the training runs: if somebody has removed the folder, create it again; returns whether that was done.

        If that fails, log(line) says so, once, and every later call tries again. Raises FolderInUse if another training
        runs in a folder of that name now.
        """
        with contextlib.suppress(OSError):
            if self._lock and os.path.samestat(os.stat(os.path.join(self.path, ".lock")), os.fstat(self._lock)):
                return False
        first, self._lock = self._lock is not None, None
        self._unlock()
        try:
            self.open()
            write_json(self.config, self._parts)
        except FolderInUse:
            raise
        except UserError as error:
            if first:
                log(f"warning   {self.path}: was removed while the training runs, and cannot be created again: {error}")
            return False
        log(f"warning   {self.path}: was removed while the training runs; created again, without what was in it")
        return True

    def _set_aside(self, log):
        if not os.path.exists(self.metrics) and not os.listdir(self.checkpoints):
            return
        parts = [part for part in _PARTS if os.path.exists(os.path.join(self.path, part))]
        parts += [name for name in os.listdir(self.path) if name.startswith(_MOVED)]
        n = 1
        while os.path.exists(older := os.path.join(self.path, f"previous-{n}")):
            n += 1
        os.mkdir(older)
        for part in parts:
            os.rename(os.path.join(self.path, part), os.path.join(older, part))
        os.mkdir(self.checkpoints)
        log(f"run       what an earlier training left in {self.path} is now in {older}")
