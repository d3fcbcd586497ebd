"""python -m tinygrad2.labs.worker NAME FILE SEED RESULTS: the process in which a student's code runs.

A line of JSON per case is added to RESULTS as soon as the case has run.
"""

import json
import sys
from dataclasses import asdict

from tinygrad2.io.open_file import open_file
from tinygrad2.labs.catalog import LABS
from tinygrad2.labs.run import run_cases

MOST_PRINTED = 100_000  # characters of the student's own output, of all cases: enough to look at


class Limited:
    """Standard output that drops what comes after MOST_PRINTED characters: a loop without an end may print."""

    def __init__(self, file):
        self._file, self._left = file, MOST_PRINTED

    def write(self, text):
        if self._left > 0:
            self._file.write(text[: self._left])
            self._left -= len(text)
            if self._left <= 0:
                self._file.write("\n(more is printed, and not shown)\n")
        return len(text)

    def __getattr__(self, name):
        return getattr(self._file, name)


def main(name, path, seed, notes):
    sys.stdout = Limited(sys.stdout)
    with open_file(notes, "ab") as file:

        def note(result):
            file.write(json.dumps(asdict(result)).encode() + b"\n")
            file.flush()

        run_cases(LABS[name], path, int(seed), note)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
