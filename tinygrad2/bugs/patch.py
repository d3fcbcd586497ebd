"""Patch: one bug, as a text file describes it, and the shipped source with the bug in it."""

import functools
import os
import re
from dataclasses import dataclass

from tinygrad2.errors import UserError
from tinygrad2.io.files import read_bytes
from tinygrad2.system.installation import PROJECT_ROOT

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "patches")
_FIELDS = {"number", "title", "file", "kernels", "flags", "report", "means", "why"}
_OPTIONAL = {"kernels", "flags"}


@dataclass(frozen=True)
class Patch:
    """A bug.

    name      of its file in patches/
    number    by which a learner asks for it, 1, 2, ...
    title     the fault, in a line
    file      of the source, from the root of the project
    report    what a user would complain about: all that is told before the search
    means     how it is found
    why       what is wrong, and what follows from it
    hunks     ((lines as shipped, lines in their place), ...)
    kernels   the compiled versions of what it changes, by name; a copy has none, so that the fault takes effect
    flags     without which a training does not show it
    """

    name: str
    number: int
    title: str
    file: str
    report: str
    means: str
    why: str
    hunks: tuple[tuple[str, str], ...]
    kernels: tuple[str, ...] = ()
    flags: str = ""

    def apply(self, text):
        """The text of the shipped file with the bug in it. Raises UserError unless each hunk fits exactly once."""
        for find, instead in self.hunks:
            places = self.places(text, find)
            if len(places) != 1:
                raise UserError(f"{self.file}: bug {self.number} fits {len(places)} times, not once; "
                                "install tinygrad2 again")  # fmt: skip
            text = text[: places[0]] + instead + text[places[0] + len(find) :]
        return text

    @staticmethod
    def places(text, find):
        """Where these whole lines begin in a text: offsets."""
        return [match.start() for match in re.finditer("^" + re.escape(find), text, re.MULTILINE)]

    def shipped(self):
        """The text of the file here: without the bug, unless this is the copy with it (plant.py)."""
        return read_bytes(os.path.join(PROJECT_ROOT, *self.file.split("/"))).decode("utf-8")

    def difference(self):
        """The lines that differ: "line N", then "- " as shipped and "+ " as planted.

        Run from the copy with this bug, N is the line in the copy. It is left out where the file has neither any more.
        """
        text, lines = self.shipped(), []
        for find, instead in self.hunks:
            for places in (self.places(text, find), self.places(text, instead)):
                if len(places) == 1:
                    lines.append(f"line {text.count(chr(10), 0, places[0]) + 1}")
                    break
            lines += [f"- {line}" for line in find.splitlines()] + [f"+ {line}" for line in instead.splitlines()]
        return lines


def parse(name, text):
    """The Patch in the text of its file. Raises ValueError, naming the field, for a text of another form."""
    head, *parts = re.split(r"^=== (find|instead)\n", text, flags=re.MULTILINE)
    kinds = parts[::2]
    if not kinds or kinds != ["find", "instead"] * (len(kinds) // 2):
        raise ValueError(f"{name}: the parts must be find, instead, find, instead, ...")
    fields = {}
    for key, value in re.findall(r"^(\w+): ((?:.*\n)(?:^    .*\n)*)", head, flags=re.MULTILINE):
        fields[key] = " ".join(value.split())
    if missing := (_FIELDS - _OPTIONAL) - set(fields):
        raise ValueError(f"{name}: {sorted(missing)[0]} is missing")
    if unknown := set(fields) - _FIELDS:
        raise ValueError(f"{name}: {sorted(unknown)[0]} is not a field of a bug")
    number, kernels = int(fields.pop("number")), tuple(fields.pop("kernels", "").split())
    return Patch(name=name, number=number, kernels=kernels, hunks=tuple(zip(parts[1::4], parts[3::4])), **fields)


@functools.cache
def patches():
    """{number: Patch}, in the order of the numbers."""
    names = sorted(name for name in os.listdir(FOLDER) if name.endswith(".txt"))
    found = [parse(name[:-4], read_bytes(os.path.join(FOLDER, name)).decode("utf-8")) for name in names]
    return {patch.number: patch for patch in sorted(found, key=lambda patch: patch.number)}
