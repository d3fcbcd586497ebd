"""What was measured to be the fastest on a GPU, among ways that compute the same up to rounding.

    with choosing(Choices(made, measures=True)):
        ...                                       a kernel asks choices().get("this kind of work")

Which way wins depends on the noise of a measurement, and another way may round differently. So a choice that has been
made is never made again: a training has the same bits each time, and after --resume (tinygrad2/training/tuning.py).
What measures them is ops/kernels/cuda/tuning.py.
"""

import re
from collections.abc import Callable
from typing import Any

from tinygrad2.context import Block, Setting

GELU = "GELU"  # how the kinds of work begin that can be a product and a kernel, or one product
WAYS = ("separate", "fused")  # the choice there
_ALGORITHM = re.compile(r"[0-9a-f]{128}")  # of cuBLASLt: 64 bytes


class Choices:
    """The choices for one GPU and one version of its libraries.

    made        {kind of work: one of WAYS, or the bytes of an algorithm in hexadecimal digits}
    measures    whether what is not in `made` is measured when it is needed first
    keep        is called after each new choice
    """

    def __init__(self, made: dict[str, str] | None = None, measures: bool = False, keep: Callable | None = None):
        self.made: dict[str, str] = {} if made is None else made
        self.measures, self.keep = measures, keep

    def get(self, key: str) -> str | None:
        """The choice for this kind of work, None if it has not been made."""
        return self.made.get(key)

    def add(self, key: str, choice: str) -> None:
        """Remember a new choice."""
        self.made[key] = choice
        if self.keep:
            self.keep()


_choices = Setting("choices", Choices())


def choosing(made: Choices) -> Block:
    """A block in which kernels choose by `made`; for the thread or asyncio task that enters it (context.py)."""
    return _choices.set(made)


def choices() -> Choices:
    """The Choices here: none have been made, and nothing is measured, where there is no block."""
    return _choices.get()


def is_made(value: Any) -> bool:
    """Could this be Choices.made, as it comes from a file?"""
    return isinstance(value, dict) and all(map(_is_choice, value.items()))


def _is_choice(item: tuple[str, Any]) -> bool:
    key, choice = item
    if key.startswith(GELU):
        return choice in WAYS
    return len(key) < 1000 and isinstance(choice, str) and bool(_ALGORITHM.fullmatch(choice))
