"""python -m tinygrad2 lab: exercises cut from the source of tinygrad2, and their grader; nothing leaves this machine.

    lab list              the labs, what is started and how far it is
    lab start NAME        writes labs/NAME.py, the shipped file with a hole in it
    lab check [NAME]      runs the checks on it, with new random numbers each time, and says what is wrong
    lab hint NAME         shows one hint more at each call
    lab reset NAME        writes the hole again; what was there is kept as labs/NAME.previous-1.py
    lab report [NAME]     checks, and writes the points as JSON

Several names may be given; check and report without one take all that are started. Exit code 0 if all points were
reached, 1 if not, 2 for what cannot be run. A check executes the code in the student's file, in a process of its own.
"""

import argparse
import os
import re
import secrets

from tinygrad2.bugs.plant import refuse_in_a_copy
from tinygrad2.cli import Parser, PathAction, explanation
from tinygrad2.errors import UserError, printable
from tinygrad2.io.files import make_folder, may_exist, read_bytes, write_json
from tinygrad2.io.outputs import check_output, set_aside
from tinygrad2.labs.catalog import LABS
from tinygrad2.labs.lab import Result
from tinygrad2.labs.progress import note, read_progress
from tinygrad2.labs.report import entry_of, is_report, report_of
from tinygrad2.labs.run import NOT_RUN, run_apart
from tinygrad2.labs.source import is_started, path_of, write_hole

ACTIONS = ("list", "start", "check", "hint", "reset", "report")


def main(argv):
    parser = Parser(prog="tinygrad2 lab", description=explanation(__doc__),
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("action", choices=ACTIONS, metavar="|".join(ACTIONS), help="what to do, see above")
    parser.add_argument("names", nargs="*", metavar="NAME", help="labs, as `lab list` names them")
    parser.add_argument("--folder", default="labs", action=PathAction, role="output",
                        help="where your files are (default: labs)")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N",
                        help="repeat a check with the seed that it has printed (default: a new one)")  # fmt: skip
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S",
                        help="seconds after which a check of one lab is ended (default: 60)")  # fmt: skip
    parser.add_argument("--out", default="report.json", action=PathAction, role="output",
                        help="where `lab report` writes (default: report.json)")  # fmt: skip
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in LABS:
            raise UserError(f"there is no lab {name!r}; choose among: {', '.join(LABS)}")
    if args.seed is not None and not 0 <= args.seed < 1 << 32:
        raise UserError(f"--seed must be in 0 .. {(1 << 32) - 1}, not {args.seed}")
    if not 0 < args.time_limit <= 86400:
        raise UserError(f"--time-limit must be more than 0 and at most 86400 seconds, not {args.time_limit:g}")
    if args.action in ("start", "hint", "reset") and not args.names:
        raise UserError(f"lab {args.action}: give the NAME of a lab: {', '.join(LABS)}")
    refuse_in_a_copy("labs are checked against source without one: go to another folder")
    labs = [LABS[name] for name in dict.fromkeys(args.names)]
    return {"list": _list, "start": _start, "check": _check, "hint": _hint, "reset": _reset,
            "report": _report}[args.action](labs, args)  # fmt: skip


def _command(action, name, folder):
    quoted = folder if re.fullmatch(r"[\w./:\\~+-]+", folder) else f'"{folder}"'
    return f"python -m tinygrad2 lab {action} {name}" + (f" --folder {quoted}" if folder != "labs" else "")


def _list(labs, args):
    progress = read_progress(args.folder)
    for lab in labs or LABS.values():
        started = may_exist(path_of(lab, args.folder))
        state = f"{progress.get(lab.name, {}).get('best', 0):2d} of {lab.most}" if started else "-"
        print(f"{lab.name:22s} {state:9s} {lab.title}   ({lab.file})")
    return 0


def _start(labs, args):
    make_folder(args.folder)
    there = [lab for lab in labs if is_started(lab, args.folder)]
    for lab in labs:
        if lab in there:
            continue
        path = write_hole(lab, args.folder)
        print(f"{path}: {lab.title}. Fill the hole at `# lab: begin {lab.name}`, then")
        print(f"    {_command('check', lab.name, args.folder)}")
    if there:
        paths, names = ", ".join(path_of(lab, args.folder) for lab in there), " ".join(lab.name for lab in there)
        raise UserError(f"{paths}: exists already; go on there, or begin again with: "
                        f"{_command('reset', names, args.folder)}")  # fmt: skip
    return 0


def _started(args):
    labs = [lab for lab in LABS.values() if may_exist(path_of(lab, args.folder))]
    if not labs:
        raise UserError(f"{args.folder}: no lab is started here; python -m tinygrad2 lab list names them")
    return labs


def _require(lab, args):
    """The path of a student's file and its content."""
    path = path_of(lab, args.folder)
    if not may_exist(path):
        raise UserError(f"{path}: does not exist; {_command('start', lab.name, args.folder)} writes it")
    return path, read_bytes(path, 1 << 20)


def _run(lab, args):
    """(results, seed) of one lab, printed and noted."""
    path, _ = _require(lab, args)
    best = read_progress(args.folder).get(lab.name, {}).get("best", 0)
    seed = secrets.randbits(31) if args.seed is None else args.seed
    print(f"lab {lab.name}: {path}, seed {seed}")
    results, _ = run_apart(lab, path, seed, args.time_limit)
    points = sum(result.points for result in results)
    messages = {result.message for result in results}
    if len(messages) == 1 and points == 0:                        # an empty hole, or a file that cannot be read
        print(printable(f"    {messages.pop()}"))
    else:
        run = [result for result in results if result.message != NOT_RUN]
        for result in run:
            print(f"    {'ok   ' if result.passed else 'WRONG'} {result.points}/{result.most}   {result.title}")
            for line in result.message.splitlines():
                print(printable(f"                {line}"))
        if len(run) < len(results):
            print(f"    {len(results) - len(run)} more were not run")
    print(f"    {points} of {lab.most} points")
    if points < lab.most:
        print(f"    the same numbers again: --seed {seed}; a hint: {_command('hint', lab.name, args.folder)}")
    _note_best(args.folder, lab, max(best, points))
    return results, seed


def _note_best(folder, lab, best):
    """For `lab list`; a report can also be made of files in a folder that is read-only."""
    try:
        note(folder, lab.name, best=best)
    except UserError as error:
        print(printable(f"    the points are not noted for `lab list`: {error}"))


def _check(labs, args):
    complete = True
    for lab in labs or _started(args):
        results, _ = _run(lab, args)
        complete &= all(result.passed for result in results)
    return 0 if complete else 1


def _hint(labs, args):
    for lab in labs:
        _require(lab, args)
        shown = min(read_progress(args.folder).get(lab.name, {}).get("hints", 0) + 1, len(lab.hints))
        for i, hint in enumerate(lab.hints[:shown], 1):
            print(f"hint {i} of {len(lab.hints)}: {hint}")
        if shown == len(lab.hints):
            print(f"there are no more; the answer is between the markers in {lab.file}")
        note(args.folder, lab.name, hints=shown)
    return 0


def _reset(labs, args):
    for lab in labs:
        path, _ = _require(lab, args)
        aside = set_aside(path, lambda line: None)
        write_hole(lab, args.folder)
        if aside and not os.path.islink(path):
            aside = os.path.join(args.folder, os.path.basename(aside))
        print(f"{path}: the hole is back; " + (f"what was there is now {aside}" if aside else "the file was empty"))
    return 0


def _report(labs, args):
    labs = labs or _started(args)
    inputs = [("lab", path_of(lab, args.folder)) for lab in labs]
    check_output("--out", args.out, "a report of labs", is_report, inputs)
    progress, entries = read_progress(args.folder), {}
    for lab in labs:
        path, hints = path_of(lab, args.folder), progress.get(lab.name, {}).get("hints", 0)
        if not may_exist(path):
            results = [Result(case.title, 0, case.points, "not started") for case in lab.cases]
            entries[lab.name] = entry_of(lab, path, None, results, None, hints)
            print(f"lab {lab.name}: not started, 0 of {lab.most} points")
            continue
        content = _require(lab, args)[1]
        results, seed = _run(lab, args)
        entries[lab.name] = entry_of(lab, path, content, results, seed, hints)
    report = report_of(entries)
    write_json(args.out, report)
    print(f"{report['output']}; {args.out}")
    return 0 if report["score"] == report["extra_data"]["max_score"] else 1
