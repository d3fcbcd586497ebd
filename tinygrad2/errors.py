"""Exceptions that programs report in one line (cli.py), and values shortened for such a line. Imports nothing."""


class UserError(Exception):
    """An error that the user can correct: one line that names what was wrong and what to do instead.

    Programs print it without a traceback and exit with code 2."""


def short(value):
    """repr of a value for an error message: on one line, cut to 40 characters if it has more than 60.

    >>> short("x" * 1000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:37] + "..."


def one_line(text):
    r"""A message on one line: characters that are not printable as escapes, and at most 1,000 of all.

    >>> print(one_line("--data a\nb: no such file"))
    --data a\nb: no such file
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:2000] + text[2000:][-1000:])
    return text if len(text) <= 1000 else f"{text[:600]} ... {text[-390:]}"


def to_bytes(text):
    r"""UTF-8 for a message that must not fail: names of files may hold any bytes, which Python keeps as surrogates.

    >>> to_bytes("caf\udce9.txt")
    b'caf\\udce9.txt'
    """
    return text.encode("utf-8", "backslashreplace")


class EarlyExit(Exception):
    """There is nothing left to do (for example after --help): the program exits with code 0, all ranks together."""
