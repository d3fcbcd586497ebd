"""The folder of a run: what a training leaves behind, and what it goes on from.

    run/config.json       all flags, the model's shape, and what the data were
    run/metrics.jsonl     one JSON object per step; where a step is there twice (after a restart), the later line holds
    run/checkpoints/      see checkpoint.py
    run/nonfinite_.../    a dump, where numbers went wrong; see dump.py
    run/previous-1/       what an earlier training has left in the same folder

A new training never removes an older one's files: it moves them into previous-1, previous-2, ... Two trainings never
work in one folder at once: the first holds a lock, which the system takes from it however it ends.
"""

import os
import weakref

from tinygrad2.errors import UserError
from tinygrad2.io.files import locked, write_json
from tinygrad2.training.checkpoint import sweep

_PARTS = ("checkpoints", "metrics.jsonl", "config.json")


class RunFolder:
    """The folder of one run. Attributes are the paths of its parts."""

    def __init__(self, path):
        self.path = path
        self.checkpoints = os.path.join(path, "checkpoints")
        self.metrics = os.path.join(path, "metrics.jsonl")
        self.config = os.path.join(path, "config.json")
        self._lock = None

    def check(self):
        """Raises UserError where `open` would fail; nothing is made yet."""
        place = os.path.abspath(self.path)
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place) or not os.access(place, os.W_OK):
            raise UserError(f"{self.path}: cannot be written to (see {place}); choose another --run-dir")

    def open(self):
        """Make the folder where it is missing, take its lock, and clear away what a killed training left half-done.

        Raises UserError where it cannot be written to, or where another training works in it.
        """
        if self._lock is not None:
            return
        try:
            os.makedirs(self.checkpoints, exist_ok=True)
            self._lock = locked(os.path.join(self.path, ".lock"))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); choose another --run-dir") from None
        if self._lock is None:
            raise UserError(f"{self.path}: another training is at work in this folder; choose another --run-dir")
        weakref.finalize(self, os.close, self._lock)
        sweep(self.checkpoints)

    def set_aside(self, say):
        """Move what an earlier training left here into a folder of its own."""
        parts = [part for part in _PARTS if os.path.exists(os.path.join(self.path, part))]
        parts += [name for name in os.listdir(self.path) if name.startswith("nonfinite_")]
        if not os.path.exists(self.metrics) and not os.listdir(self.checkpoints):
            return
        n = 1
        while os.path.exists(older := os.path.join(self.path, f"previous-{n}")):
            n += 1
        os.mkdir(older)
        for part in parts:
            os.rename(os.path.join(self.path, part), os.path.join(older, part))
        os.mkdir(self.checkpoints)
        say(f"run       what an earlier training left in {self.path} is now in {older}")

    def write_config(self, **parts):
        """config.json, for those who look at the run later."""
        write_json(self.config, parts)

    def read_history(self):
        """The metrics so far, as bytes; empty where there are none."""
        try:
            with open(self.metrics, "rb") as file:
                return file.read()
        except OSError:
            return b""
