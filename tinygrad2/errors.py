"""Errors that are one line for the user, and values shortened for such a line. Imports nothing."""


class UserError(Exception):
    """Something the person at the keyboard can mend: one line that names what was wrong and what to do instead.

    The commands print it without a traceback and leave with exit code 2."""


def short(value):
    """A value for an error message: on one line, and not longer than a person wants to read.

    >>> short("x" * 1000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:37] + "..."


class EarlyExit(Exception):
    """All ranks are done before they have begun (after --help, say): leave with code 0."""
