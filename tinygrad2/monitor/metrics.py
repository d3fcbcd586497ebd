"""metrics.jsonl, one JSON object per step: written by a training, read as the curves of a run."""

import contextlib
import errno
import json
import math
import os
import re

from tinygrad2.errors import UserError
from tinygrad2.io.files import first_bytes, read_json
from tinygrad2.io.open_file import NotRegular, open_file

_BEGIN = re.compile(rb'\{"step": \d+, "(l|lo|los|loss|loss".*)?')  # of a line
_STEP = re.compile(rb'^\{"step": (\d+),', re.MULTILINE)
_MOST_KEPT = 100_000  # lines, 20 MB
MAX_LINE = 100_000  # characters; those of a training have about 200


def read_metrics(run):
    """{name: ([steps], [values])} of a run, steps rising: the curves of loss, lr, grad_norm, ms, val_loss, ...

    run    a run's folder, or a file with one JSON object per line. Each has a "step" (from 0) and numeric fields.

    If a step occurs twice, the later line counts: a training that was resumed has done it again. A last line that
    is cut off is left out. Raises UserError, naming file and line, for anything else that is not valid.
    """
    path = os.path.join(run, "metrics.jsonl") if os.path.isdir(run) else run
    records = {}
    try:
        with open_file(path, "r", encoding="utf-8", errors="replace") as file:
            lines = iter(lambda: file.readline(MAX_LINE), "")  # bounded: a line without an end must not fill the memory
            for number, line in enumerate(lines, start=1):
                record = _parse(line, path, number)
                if record is not None:
                    records.setdefault(record.pop("step"), {}).update(record)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {problem}; pass a run's folder or its metrics.jsonl") from None
    if not records:
        raise UserError(f"{path}: contains no steps yet")
    curves = {}
    for step in sorted(records):
        for name, value in records[step].items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    if not curves:
        raise UserError(f"{path}: its steps have no numeric fields")
    return curves


def _parse(line, path, number):
    """{"step": int, name: float}, or None for a line without content."""
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        if not line.endswith("\n") and len(line) < MAX_LINE:
            return None  # cut off by a crash
        record = None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not 0 <= record["step"] < 1 << 53:
        raise UserError(f"{path}: line {number} is not a JSON object with an integer 'step': {line[:40]!r}")
    values = {"step": record["step"]}
    for name, value in record.items():
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
            values[name] = _as_float(value)
    return values


def _as_float(number):
    """A number of JSON as a float; one that is too large to compute with, or an integer for a float, is infinite."""
    return float(number) if not abs(number) >= 1e300 else math.inf if number > 0 else -math.inf


def is_metrics(path):
    """Did a training write this file? Its first line is then a record with certain fields, or the beginning of one that
    was cut off when the training was killed."""
    line, end, _ = first_bytes(path, MAX_LINE).partition(b"\n")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return not end and bool(_BEGIN.fullmatch(line))
    return isinstance(record, dict) and record.keys() >= {"step", "loss", "lr", "grad_norm", "ms"}


def is_run_config(path):
    """Is this file the config.json of a run's folder?"""
    try:
        read_run_config(os.path.dirname(path))
    except UserError:
        return False
    return True


def read_run_config(run):
    """config.json of a run's folder: a dict with "training", "model", "preset", "data". Raises UserError."""
    path = os.path.join(run, "config.json")
    config = read_json(path)
    for name, kind in (("training", dict), ("model", dict), ("preset", str), ("data", str)):
        if not isinstance(config, dict) or not isinstance(config.get(name), kind):
            raise UserError(f"{path}: field {name!r} is missing, or not a {kind.__name__}")
    return config


def smooth(values, width):
    """The mean over about `width` values around each one: as many on either side, so fewer at both ends."""
    return [mean_around(values, i, width) for i in range(len(values))]


def mean_around(values, i, width):
    """The mean of values[i] and up to `width` // 2 neighbours on either side, as many on each; only over finite ones.

    Its sum is exact: a spike of 1e20 does not spoil the means after it. NaN where values[i] is not finite.
    """
    if not math.isfinite(values[i]):
        return math.nan
    reach = min(width // 2, i, len(values) - 1 - i)
    near = [value for value in values[i - reach : i + reach + 1] if math.isfinite(value)]
    return math.fsum(near) / len(near)


def thin(values, most):
    """The positions, rising, of about `most` points of a curve: the lowest and the highest of each stretch, so that no
    spike is lost, and the first one that is not finite."""
    if len(values) <= most:
        return list(range(len(values)))
    stretch = -(-2 * len(values) // most)
    kept = {0, len(values) - 1}
    for start in range(0, len(values), stretch):
        part = range(start, min(start + stretch, len(values)))
        finite = [i for i in part if math.isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        if len(finite) < len(part):
            kept.add(next(i for i in part if not math.isfinite(values[i])))
    return sorted(kept)


class MetricsFile:
    """Writes metrics.jsonl, each line at once: even after a crash, a reader finds every finished step.

    path       "" means no file
    resumed    True: the existing lines stay, except an incomplete last one; False: the file starts empty
    history    of a resumed training: its lines so far; those of steps that the file lacks are added to it

    Raises UserError if it cannot be written to at first. Later lines that cannot be written, on a full disk for
    example, are written when there is room again; log(line) reports that once, and once when they have been written. A
    file that was removed is made again, and its folder. For both the last lines, 20 MB of them, are in memory.
    """

    def __init__(self, path, resumed=False, history=b"", log=print):
        self.path, self.log = path, log
        self._lines, self._unwritten, self._lost = [], 0, 0  # how many of the last ones are not in the file, or nowhere
        if not path:
            return
        try:
            if not resumed:
                with open_file(path, "wb"):
                    return
            content = self._read()
            complete = content[: content.rfind(b"\n") + 1]
            if complete != content:
                os.truncate(path, len(complete))
            missing = _without(history, complete)
            self._append([missing], [missing])
        except OSError as error:
            raise self._error(error) from None
        self._lines = [*complete.splitlines(True), *missing.splitlines(True)][-_MOST_KEPT:]

    def append(self, record):
        """Add one line."""
        if not self.path:
            return
        self._lines.append(json.dumps(record).encode() + b"\n")
        self._unwritten += 1
        if len(self._lines) > _MOST_KEPT:
            del self._lines[0]
        if self._unwritten > len(self._lines):
            self._unwritten, self._lost = len(self._lines), self._lost + 1
        self._write()

    def content(self):
        """All lines so far, as bytes."""
        content = self._read() if self.path else b""
        return content + b"".join(self._new_lines()) if content else b"".join(self._lines)

    def close(self):
        """Write what is left; what cannot be written is counted by log(line)."""
        if self._unwritten:
            self._write()
        if n := self._unwritten + self._lost:
            self.log(f"warning   {self.path}: {n:,} line(s) could not be written, and are lost")

    def _new_lines(self):
        return self._lines[len(self._lines) - self._unwritten :]

    def _write(self):
        """Write the lines that are not in the file yet; all, if it was removed."""
        late, before = self._unwritten - 1, len(self._lines) - self._unwritten
        try:
            removed = self._append(self._new_lines(), self._lines) and before > 0
        except OSError as error:
            if late < 1:  # a line per step would hide everything else
                self.log(f"warning   {self._error(error)}; the training goes on, and its lines are kept in memory")
            return
        self._unwritten = 0
        if removed:
            self.log(f"warning   {self.path}: was removed; made again, with its last {len(self._lines):,} lines")
        elif late > 0:
            self.log(f"note      {self.path}: is written again, with {late:,} lines that were kept")

    def _append(self, new, everything):
        """Add the lines `new`, or `everything` to an empty file; returns whether it was empty. Raises OSError; then no
        part of them is in the file."""
        try:
            file = open_file(self.path, "ab", buffering=0)
        except NotRegular:
            raise OSError(errno.EINVAL, "it is no longer a regular file") from None
        except FileNotFoundError:  # its folder was removed
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            file = open_file(self.path, "ab", buffering=0)
        with file:
            size = os.fstat(file.fileno()).st_size
            left = memoryview(b"".join(new if size else everything))
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
                raise
        return size == 0

    def _read(self):
        try:
            with open_file(self.path) as file:
                return file.read()
        except (OSError, UserError):
            return b""

    def _error(self, error):
        return UserError(f"{self.path}: cannot be written ({error.strerror})")


def _without(history, content):
    """The lines of `history` about steps of which `content` has none."""
    known = set(_STEP.findall(content))
    return b"".join(line for line in history.splitlines(True) if not known.issuperset(_STEP.findall(line)))
