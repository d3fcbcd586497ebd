"""Ops that run on a GPU without a kernel of their own: each is reported once, so that a user knows what is slow.

A training prints the line (ops/kernels/available.py); the registry of kernels (dispatch.py) notes the op.
"""

from typing import Any

_told: list[Any] = []  # who is told
_noted: set[str] = set()


def watch_missing_kernels(tell: Any) -> None:
    """From now on tell(name of an op, has it kernels that do not take its arrays?) is called when an op runs on a GPU
    without a kernel, once for each op. It replaces the function that was given before; None removes it."""
    _told[:] = [tell] if tell else []
    _noted.clear()


def note_missing(op: Any, exists: bool) -> None:
    """An op runs without a kernel. Those that move data at most need none."""
    if _told and not op.only_moves and op.name not in _noted:
        _noted.add(op.name)
        _told[0](op.name, exists)
