"""Command-line flags from dataclasses: each field is a flag, its metadata the help text. Unknown flags are refused.

    @dataclass(frozen=True)
    class Config:
        n_layer: int = flag(12, "number of blocks")                  # --n-layer 12

A field that is True by default gets a pair, --bias and --no-bias; one that is False just --greedy.
"""

import argparse
from dataclasses import field, fields

from tinygrad2.files import UserError


def flag(value, text, **more):
    """A dataclass field with its default value and help text. `more`: choices=(...), kind=int where the value is None,
    default="what the help shows in its place"."""
    return field(default=value, metadata={"help": text, **more})


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError, one line, instead of printing its usage and leaving."""

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def add_flags(group, dataclass, default_text=None):
    """Add a flag for each field. With a `default_text` the flags default to None, "not given", and the text says what
    then holds. A field with the default None names its type in metadata["kind"]."""
    for f in fields(dataclass):
        kind = f.metadata.get("kind") or type(f.default)
        shown = default_text or f.metadata.get("default", f.default)
        options = {
            "dest": f.name,
            "default": None if default_text else f.default,
            "help": f"{f.metadata['help']} (default: {shown})".replace("%", "%%"),
        }
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction if f.default else "store_true"
        elif "choices" in f.metadata:
            options.update(choices=f.metadata["choices"], metavar="|".join(f.metadata["choices"]))
        else:
            options.update(type=kind, metavar=kind.__name__.upper())
        group.add_argument("--" + f.name.replace("_", "-"), **options)


def from_flags(dataclass, args):
    """The dataclass filled from the parsed flags; a ValueError of its checks becomes one clear line."""
    try:
        return dataclass(**{f.name: getattr(args, f.name) for f in fields(dataclass)})
    except ValueError as error:
        raise UserError(str(error)) from None
