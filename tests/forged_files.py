"""Programs that read files which are forged (forged.py): each must name what is wrong in one line, with exit code 2, or
do what it does with the file as it was, or something sensible.

    python tests/forged_files.py 100 1        tries 100 forgeries of each file, beginning with seed 1

prints each fault, and how many forgeries were refused and how many were taken, by what was changed.
"""

import glob
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter

from command_lines import run_forked
from forged import forge
from inputs import READS, STEP, mains, make_inputs, quick
from odd_kinds import HARMLESS, problem_of

MESSAGE = re.compile(r"[^:]+: .{10,}")  # the program, and what is wrong


def targets():
    """(Read, path of a file that it reads): what is forged."""
    skipped = (".txt", ".lock", ".svg", ".html", "new", "out", "prepared", "checkpoints", "new.bin", "out.bin")
    return [(read, path) for read in READS for path in read.files
            if not path.endswith(skipped) or path.endswith("merges.txt")]  # fmt: skip


def attempt(read, path, base, folder, run, rng):
    """(what was changed, Outcome, what is wrong or ""); (None, None, "") if there is nothing to change."""
    shutil.copytree(base, folder, symlinks=True)
    if "--resume" in read.words:  # of two checkpoints the other would be taken
        shutil.rmtree(os.path.join(folder, STEP.replace("2", "1")), ignore_errors=True)
    try:
        found = sorted(glob.glob(os.path.join(glob.escape(folder), path)))
        if not found:
            return None, None, ""
        what = forge(rng.choice(found), rng)
        if what is None:
            return None, None, ""
        outcome = run_forked(run[read.program], read.words, folder, seconds=60)
        return what, outcome, fault_of(outcome)
    finally:
        shutil.rmtree(folder)


def fault_of(outcome):
    """As problem_of of odd_kinds.py; what is refused must also say why."""
    if problem := problem_of(outcome):
        return problem
    lines = [line for line in outcome.err.splitlines() if not line.startswith(HARMLESS)]
    if outcome.code == 2 and not MESSAGE.fullmatch(lines[0]):
        return "a line that says nothing"
    return ""


def kind_of(what):
    """What was changed, without its value: "model/n_layer"."""
    return re.sub(r"\d+", "N", re.split(r" = | with | without |: | longer| shorter", what)[0])[:60]


def main():
    number, seed = int(sys.argv[1]), int(sys.argv[2])
    quick()
    run, total = mains(), Counter()
    with tempfile.TemporaryDirectory() as top:
        base = os.path.join(top, "base")
        make_inputs(base)
        for read, path in targets():
            if sys.argv[3:] and not any(word in f"{read} {path}" for word in sys.argv[3:]):
                continue
            rng, counts, taken = random.Random(f"{read} {path} {seed}"), Counter(), Counter()
            for _ in range(number):
                what, outcome, problem = attempt(read, path, base, os.path.join(top, "try"), run, rng)
                if what is None:
                    continue
                counts[outcome.code] += 1
                if problem:
                    tail = outcome.err.strip()[-900:]
                    print(f"FAULT {read}\n   {path}: {what[:200]!r}: {problem}: {tail!r}", flush=True)
                if outcome.code == 0:
                    taken[kind_of(what)] += 1
            print(f"{read.program} {path}", dict(counts), "taken:", dict(taken), flush=True)
            total += counts
    print("all", dict(total))


if __name__ == "__main__":
    main()
