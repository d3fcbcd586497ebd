"""Commands in messages, as a user can paste them into a shell: quoted, so that a file name or a prompt stays a word."""

import os
import shlex
import subprocess
import sys
import unicodedata

from tinygrad2.system.installation import adapt_hint


def command_line(program, *words, **flags):
    r"""`program` (a command of a checkout, as adapt_hint takes it) with its words quoted, on one line.

    words    file names and the like; one that begins with "-" gets "./" in front of it
    flags    batch_size=4 becomes --batch-size 4; True: a flag without a value; None: left out

    >>> command_line("python inference.py", weights="my weights.bin", prompt="`id` $HOME", top_k=None)
    "python inference.py --weights 'my weights.bin' --prompt '`id` $HOME'"
    >>> print(command_line("python train_gpt2.py", run_dir="-x", resume=True, prompt="a\n'b'"))
    python train_gpt2.py --run-dir=-x --resume --prompt $'a\n\'b\''
    >>> command_line("python -m tinygrad2 replay", "-run/nonfinite")
    'python -m tinygrad2 replay ./-run/nonfinite'
    """
    parts = [adapt_hint(program)]
    parts += [quote(f"./{word}" if word.startswith("-") else word) for word in words]
    for name, value in flags.items():
        name, text = "--" + name.replace("_", "-"), str(value)
        if value is True:
            parts.append(name)
        elif value is not None:
            joint = "=" if text.startswith("-") else " "          # "--run-dir -x" would be two flags
            parts.append(name + joint + quote(text))
    return " ".join(parts)


def quote(word):
    """A word for a POSIX shell, on Windows for its command line. What cannot be printed becomes $'...', which bash, zsh
    and ksh understand, with the bytes of the characters."""
    if os.name == "nt":
        return subprocess.list2cmdline([word])
    if all(map(_is_printable, word)):
        return shlex.quote(word)
    return "$'" + "".join(map(_escape, word)) + "'"


def _is_printable(c):
    try:
        c.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return c.isprintable() or unicodedata.category(c) == "Zs"     # a space of another width


def _escape(c):
    if c in "\\'\n":
        return {"\\": r"\\", "'": r"\'", "\n": r"\n"}[c]
    return c if _is_printable(c) else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c))
