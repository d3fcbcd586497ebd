"""Exceptions that programs report in one line (cli.py), and texts made safe for such a line. Imports none of ours."""

import re

_MOST = 1000  # characters of a message
_MOST_OF_LINE = 4000  # characters of any other line
# What is not text: control characters except tab and line break, the marks that reverse what follows (U+202E and its
# kind: a line then reads as another one), line separators, and the surrogates that stand for bytes of a file name.
_UNSAFE = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """An error that the user can correct: one line that names what was wrong and what to do instead.

    Programs print it without a traceback and exit with code 2. Whatever is in its message, from a file or a server for
    example, str() of it is `one_line`."""

    def __str__(self):
        return one_line(super().__str__())


def short(value):
    """repr of a value for an error message: on one line, cut to 40 characters if it has more than 60.

    >>> short("x" * 1000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:37] + "..."


def one_line(text, most=_MOST):
    r"""A text on one line: characters that are not printable as escapes, and at most 1,000 (`most`) in all.

    >>> print(one_line("--data a\nb: no such file"))
    --data a\nb: no such file
    """
    text = "".join(c if c.isprintable() else _escape(c) for c in text[:2000] + text[2000:][-1000:])
    return text if len(text) <= most else f"{text[: most * 6 // 10]} ... {text[-(most * 4 // 10 - 10) :]}"


def printable(text):
    r"""A text as it may be shown on a terminal, in a log, a picture or a page, wherever its parts are from: what is not
    text (the escape sequences of a terminal, for example) as escapes, and lines of more than 4,000 characters cut.

    >>> print(printable("a name \x1b[2J of a file"))
    a name \x1b[2J of a file
    """
    if len(text) > _MOST_OF_LINE:
        text = "".join(map(_cut, text.splitlines(keepends=True)))
    return visible(text)


def visible(text):
    r"""The same for a text of which nothing may be left out: what is not text as escapes."""
    return _UNSAFE.sub(lambda match: _escape(match[0]), text)


def _cut(line):
    if line.startswith("{"):  # JSON: a program reads it
        return line
    return line if len(line) <= _MOST_OF_LINE else f"{line[:2500]} ... {line[-1400:]}"


def _escape(character):
    return repr(character)[1:-1]


def to_bytes(text):
    r"""UTF-8 for a message that must not fail: names of files may hold any bytes, which Python keeps as surrogates.

    >>> to_bytes("caf\udce9.txt")
    b'caf\\udce9.txt'
    """
    return text.encode("utf-8", "backslashreplace")


class EarlyExit(Exception):
    """There is nothing left to do (for example after --help): the program exits with code 0, all ranks together."""
