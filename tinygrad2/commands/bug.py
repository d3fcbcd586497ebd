"""python -m tinygrad2 bug: thirty bugs to find, each planted into a copy of the source in a folder of yours.

    bug list              what users report, and which are planted
    bug plant [NUMBER]    writes bugs/NUMBER, a copy of the source with this bug (without a number: any)
    bug hint NUMBER       by what means it is found
    bug reveal NUMBER     what it is: file, line, and why it does what it does
    bug remove NUMBER     removes the copy; files that you changed or that a training wrote stay

Work inside the copy: `cd bugs/07`, then `python train_gpt2.py`, `python -m tinygrad2 explain` and `compare run`, or a
Python with `from tinygrad2 import gradcheck`, use the code there. It has no compiled kernels, so steps take longer.
"""

import argparse
import secrets
import textwrap

from tinygrad2.bugs.patch import patches
from tinygrad2.bugs.plant import folder_of, is_planted, plant, remove
from tinygrad2.bugs.signatures import beside_the_demo, curves
from tinygrad2.cli import Parser, PathAction, explanation
from tinygrad2.errors import UserError

ACTIONS = ("list", "plant", "hint", "reveal", "remove")


def main(argv):
    parser = Parser(prog="tinygrad2 bug", description=explanation(__doc__),
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("action", choices=ACTIONS, metavar="|".join(ACTIONS), help="what to do, see above")
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="bugs, as `bug list` numbers them")
    parser.add_argument("--folder", default="bugs", action=PathAction, role="output",
                        help="where your copies are (default: bugs)")  # fmt: skip
    args = parser.parse_args(argv)
    chosen = list({patch.number: patch for patch in map(_patch, args.numbers)}.values())
    if args.action in ("hint", "reveal", "remove") and not chosen:
        raise UserError(f"bug {args.action}: give the NUMBER of a bug, 1 to {len(patches())}")
    if args.action == "plant" and not chosen:
        chosen = [_any(args.folder)]
    for patch in chosen or patches().values():
        {"list": _list, "plant": _plant, "hint": _hint, "reveal": _reveal, "remove": _remove}[args.action](
            patch, args.folder)  # fmt: skip
    return 0


def _patch(word):
    number = int(word) if word.isascii() and word.isdecimal() and len(word) < 9 else None
    if number not in patches():
        raise UserError(f"there is no bug {word!r}; choose a number from 1 to {len(patches())}")
    return patches()[number]


def _any(folder):
    left = [patch for patch in patches().values() if not is_planted(patch, folder)]
    if not left:
        raise UserError(f"{folder}: all {len(patches())} bugs are planted; remove one first")
    return secrets.choice(left)


def _say(text, indent="    "):
    print(textwrap.fill(text, 112, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False))


def _list(patch, folder):
    state = "planted" if is_planted(patch, folder) else "-"
    lines = textwrap.wrap(patch.report, 98, break_on_hyphens=False)
    print(f"{patch.number:2d}  {state:8s}  " + f"\n{'':14s}".join(lines))


def _plant(patch, folder):
    path = plant(patch, folder)
    print(f"{path}: a copy of the source with one bug in it. A user reports:")
    _say(patch.report)
    print(f"Look for it there:  cd {path}  and then  python train_gpt2.py {patch.flags}".rstrip())
    command = "python -m tinygrad2 bug"
    print(f"A hint: {command} hint {patch.number}; the answer: {command} reveal {patch.number}")


def _hint(patch, folder):
    print(f"bug {patch.number} is found by this means:")
    _say(patch.means)


def _reveal(patch, folder):
    print(f"bug {patch.number}, {patch.name}: {patch.title}")
    for line in (patch.file, *patch.difference()):
        print(f"    {line}")
    print("Why:")
    _say(patch.why)
    print("Found by:")
    _say(patch.means)
    if lines := beside_the_demo(patch):
        print(f"What it does to the demo ({patch.flags or 'its own flags'}, seed {curves()['seed']}):")
        print("\n".join(f"    {line}" for line in lines))


def _remove(patch, folder):
    path, stay = folder_of(patch, folder), remove(patch, folder)
    kept = f"; these stay, they are yours: {', '.join(stay)}" if stay else ""
    print(f"{path}: the copy is removed{kept}")
