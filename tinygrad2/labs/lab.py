"""Lab: one exercise, its hints and its cases, each worth some points."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

MOST_POINTS = 10  # of each lab


class Wrong(Exception):
    """What a case has found. The text says what was compared, which element, and what it may mean."""


@dataclass
class Case:
    """One property that an answer must have.

    title    what is checked
    points   for an answer that has it
    check    check(student, rng): `student` is the module with the answer, `rng` a NumPy Generator. Raises Wrong; may
             return a note, for an answer that is right
    """

    title: str
    points: int
    check: Callable


@dataclass
class Result:
    """What became of a case: its points, and the message: for a failed one what is wrong, else "" or a note."""

    title: str
    points: int
    most: int
    message: str = ""

    @property
    def passed(self):
        return self.points == self.most


@dataclass
class Lab:
    """An exercise.

    name     as in `# lab: begin NAME`
    file     the shipped file, from the root of the project
    title    one line
    task     what to write: shapes, and what is given
    hints    from the first push to nearly the answer
    cases    worth MOST_POINTS in all
    """

    name: str
    file: str
    title: str
    task: str
    hints: tuple[str, ...]
    cases: list[Case] = field(default_factory=list)

    def case(self, points, title):
        """A decorator: this function checks a case."""

        def add(check):
            self.cases.append(Case(title, points, check))
            return check

        return add

    @property
    def most(self):
        """Points for an answer that is right in all cases."""
        return sum(case.points for case in self.cases)


def generator(seed, case):
    """The random numbers of a case: they depend on the seed and the title, not on the cases before."""
    return np.random.default_rng([seed, zlib.crc32(case.title.encode())])
