"""python -m tinygrad2.labs.worker NAME FILE SEED RESULTS: the process in which a student's code runs.

A line of JSON per case is added to RESULTS as soon as the case has run.
"""

import json
import sys
from dataclasses import asdict

from tinygrad2.io.open_file import open_file
from tinygrad2.labs.catalog import LABS
from tinygrad2.labs.run import run_cases


def main(name, path, seed, notes):
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
