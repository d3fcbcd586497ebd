"""Command-line flags from dataclasses: each field is a flag, its metadata the help text. Unknown flags are refused.

    @dataclass(frozen=True)
    class Config:
        n_layer: int = flag(12, "number of blocks")                  # --n-layer 12

A field that is True by default gets a pair, --bias and --no-bias; one that is False shows just --greedy in the help.

And the error boundary of every program: `run(main)`, and `install_hooks` for what happens outside of it. This file
imports nothing that loads NumPy.
"""

import argparse
import functools
import os
import sys
import threading
import traceback
import warnings
from dataclasses import field, fields

from tinygrad2.errors import EarlyExit, UserError, one_line, short
from tinygrad2.system.failures import explain
from tinygrad2.system.installation import adapt_hint
from tinygrad2.system.launcher import own_rank, ranks_started
from tinygrad2.system.signals import watch_cpu_limit
from tinygrad2.system.streams import arguments, discard_output, is_session, print_error, protected_streams
from tinygrad2.system.threads import MOST_THREADS

WITHOUT_OUTPUT = "complete, except that standard output could not be written: exit code 1"


def flag(value, text, **more):
    """A dataclass field with its default value and help text.

    `more`: choices=(...), kind=int if the value is None, default="what the help shows instead of the value",
    former="the name it had in earlier versions", which is still accepted. A field whose default is a tuple may be given
    several times.
    """
    return field(default=value, metadata={"help": text, **more})


def input_path(value, text, **more):
    """The flag of a path that is read; see PathAction."""
    return flag(value, text, path="input", **more)


def output_path(value, text, **more):
    """The flag of a path that is written; see PathAction."""
    return flag(value, text, path="output", **more)


def option(name):
    """option("batch_size") -> "--batch-size"."""
    return "--" + name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError, one line, instead of printing its usage and exiting, and EarlyExit after
    --help. Without arguments it parses `arguments()` of system/streams.py."""

    def __init__(self, **more):
        super().__init__(allow_abbrev=False, **more)

    def parse_args(self, args=None, namespace=None):
        if isinstance(args, (str, bytes)):
            raise UserError(f"the command line is {args!r}; give a list of its words: {str(args).split()}")
        words = [word if isinstance(word, str) else str(word) for word in arguments(args)]  # a Path, or a number
        for word in words:
            if "\0" in word:  # no file name may have one; only a program that calls main can pass it
                raise UserError(f"{word!r}: has a NUL character; leave it out")
        values = super().parse_args(words, namespace)
        threads = getattr(values, "threads", None)
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            self.error(f"--threads must be in 1 .. {MOST_THREADS:,}, not {threads}")
        return values

    def _get_values(self, action, arg_strings):
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")  # of --prompt=--: before Python 3.13 argparse loses it
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def error(self, message):
        raise UserError(f"{message} (see --help)")

    def exit(self, status=0, message=None):
        raise EarlyExit  # argparse calls this after --help


class PathAction(argparse.Action):
    """Stores a path, or several. An empty one is refused: it is an unset variable of a script, and taking it for the
    flag's default would read or write something else than was meant.

    role    "input": what is read; "output": what is written
    """

    def __init__(self, option_strings, dest, role, metavar="PATH", **more):
        super().__init__(option_strings, dest, metavar=metavar, **more)
        self.role = role

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values if isinstance(values, list) else [values]:
            refuse_empty_path(option_string or self.metavar, value)
        setattr(namespace, self.dest, values)


def refuse_empty_path(name, value):
    """Raises UserError if a path is empty, or nothing but white space. `name` is the flag or argument."""
    if not value.strip():
        remedy = f"give one, or leave {name} out (is it an unset variable of a script?)"
        raise UserError(f"{name}: the path is empty; {remedy}")
    if "\0" in value:
        raise UserError(f"{name} {value!r}: a path cannot contain the character 0")


def summary(doc):
    """The first paragraph of a program's docstring, without "python -m tinygrad2 NAME: ", as its --help begins.

    python -OO removes docstrings; then the help says so. The same for `explanation`.
    """
    first = explanation(doc).split("\n\n")[0]
    return first.split(": ", 1)[1] if first.startswith("python -m tinygrad2") else first


def explanation(doc):
    """A program's docstring as text for its user."""
    return adapt_hint(doc) if doc else "(python -OO removes this explanation; python -O keeps it)\n"


def add_flags(group, dataclass, default_text=None):
    """Add a flag for each field; one that is not given parses to None, and the field's own default holds.

    default_text    what the help shows as the default of every field, if that is not the field's own
    """
    for f in fields(dataclass):
        kind = f.metadata.get("kind") or type(f.default)
        shown = default_text or f.metadata.get("default", f.default)
        options = {
            "dest": f.name,
            "default": None,
            "help": f"{f.metadata['help']} (default: {shown})".replace("%", "%%"),
        }
        if kind is tuple:
            options.update(action="append", metavar="TEXT")
        elif kind is bool:
            options["action"] = argparse.BooleanOptionalAction if f.default else "store_true"
        elif "path" in f.metadata:
            options.update(action=PathAction, role=f.metadata["path"])
        elif "choices" in f.metadata:
            options.update(type=kind, choices=f.metadata["choices"], metavar="|".join(map(str, f.metadata["choices"])))
        else:
            options.update(type=kind, metavar=kind.__name__.upper())
        group.add_argument(option(f.name), **options)
        if options.get("action") == "store_true":  # --resume takes a switch of the checkpoint back so
            taken_back = {"dest": f.name, "default": None, "action": "store_false", "help": argparse.SUPPRESS}
            group.add_argument(option("no_" + f.name), **taken_back)
        if "former" in f.metadata:
            group.add_argument(option(f.metadata["former"]), **options | {"help": argparse.SUPPRESS})


def given(dataclass, args):
    """{field: value} of the flags that were given."""
    values = {f.name: getattr(args, f.name) for f in fields(dataclass) if getattr(args, f.name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def from_flags(dataclass, args):
    """The dataclass filled from the parsed flags. Raises UserError if one of its checks fails."""
    return build(dataclass, given(dataclass, args))


def saved_values(dataclass, values):
    """{field: value} of such a dataclass as a checkpoint holds it, under today's names; fields added since are missing.

    Raises UserError for an unknown field, or a value that the flag cannot have.
    """
    if not isinstance(values, dict):
        raise UserError(f"the checkpoint has {short(values)} in place of its flags")
    former = {f.metadata["former"]: f.name for f in fields(dataclass) if "former" in f.metadata}
    values = {former.get(name, name): value for name, value in values.items()}
    known = {f.name: f for f in fields(dataclass)}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"the checkpoint has a flag {short(name)} that is unknown here; update tinygrad2")
        default, metadata = known[name].default, known[name].metadata
        kind = metadata.get("kind") or type(default)
        is_kind = type(value) in ((float, int) if kind is float else (kind,)) or value is default is None
        if not is_kind or value != default and value not in metadata.get("choices", (value,)):
            expected = "|".join(map(str, metadata.get("choices", (kind.__name__,))))
            raise UserError(f"the checkpoint has {short(value)} for the flag {name!r}; expected {expected}")
    return values


def build(dataclass, values):
    """dataclass(**values). Raises UserError if one of its checks (a ValueError) fails."""
    try:
        return dataclass(**values)
    except ValueError as error:
        raise UserError(str(error)) from None


class _Finished(SystemExit):
    """A program ends as it should, also within the main of another `call`."""


def leave_to_rank_0(what):
    """Exits in all but one of the processes that mpirun has started: `what` is the work of a single one."""
    if ranks_started() < 2:
        return
    if own_rank():
        raise _Finished(0)
    print_error(f"note      {what} uses one process: of the {ranks_started()} that were started the others have ended")


def run(main, name=None, abort=None, is_rank=False):
    """Call main() and exit with the code that `call` returns. Under mpirun one process does, unless `is_rank`.

    In a notebook or at a Python prompt, which must go on: returns main()'s own exit code, and what it raises is raised,
    a UserError with its one line.
    """
    if not is_session():
        if not is_rank:
            leave_to_rank_0(name or program())
            install_hooks(name)
        raise _Finished(call(main, name, abort))
    return callable_main(main)()


def callable_main(main):
    """Decorates a main that users may also call, in a notebook for example: what it prints never raises, EarlyExit
    makes it return exit code 0, and everything else is raised."""

    @functools.wraps(main)
    def protected_main(*args, **kwargs):
        with protected_streams(program()) as output:
            try:
                code = main(*args, **kwargs)
            except EarlyExit:
                code = 0
        return _after(code, output, program())

    return protected_main


def call(main, name=None, abort=None):
    """main() inside the error boundary; returns the exit code.

    UserError, MemoryError    one line on stderr, code 2
    OSError, and others       the same, if the system is the cause (system/failures.py)
    EarlyExit                 code 0
    BrokenPipeError           code 1: the reader of our output has exited, as in `... | head`
    KeyboardInterrupt         code 130
    SystemExit with code 0    one line, code 1: main has returned nothing, so it is not complete
    anything else             is raised again: Python prints the traceback

    Where stdout cannot be written (system/streams.py) main goes on without it, and code 0 becomes 1.

    `name` begins the line; by default the script's. If `main` is one rank of several, `abort(text, code)` prints
    the text, ends the whole job and never returns: the other ranks would wait for this one indefinitely. It is called
    for every exception except EarlyExit, also for sys.exit.
    """
    name = name or program()
    with protected_streams(name) as output:
        code = _call(main, name, abort)
    return _after(code, output, name)


def _after(code, output, name):
    """The exit code of a main that has returned `code`: not 0 if its standard output could not be written."""
    if code or not output.error:
        return code
    print_error(f"{name}: {WITHOUT_OUTPUT}")
    return 1


def _call(main, name, abort):
    try:
        code = main()
        sys.stdout.flush()
        return code
    except _Finished:
        raise
    except EarlyExit:
        return 0
    except UserError as error:
        text, code = one_line(f"{name}: {error}"), 2
    except BrokenPipeError:
        discard_output()
        text, code = "output pipe closed" if abort else "", 1
    except KeyboardInterrupt:
        text, code = "interrupted" if abort else "\ninterrupted", 130
    except BaseException as error:
        line = explain(error)
        if line is None and abort:
            abort("".join(traceback.format_exception(error)), exit_code(error))
        if line is None and isinstance(error, SystemExit) and not error.code:
            text, code = f"{name}: ended by sys.exit({error.code}) before it was complete", 1
        elif line is None:
            raise
        else:
            text, code = one_line(f"{name}: {line}"), 2
    text = adapt_hint(text)
    if abort:
        abort(text + "\n", code)
    if text:
        print_error(text)
    return code


def install_hooks(name=None):
    """From now on such an exception is one line, which begins with `name`, also while modules are imported (exit code
    2), in a thread, and where Python cannot raise it (in __del__, at exit). Ctrl-C is the line "interrupted", code 130.
    Warnings, which are for programmers, are ignored: what NumPy has to say of values that are not finite is reported in
    our words. A limit of processor time is one line. A program calls this before it imports anything large. Nothing
    happens in a notebook, which has hooks of its own.
    """
    if is_session():
        return
    warnings.simplefilter("ignore")
    name, told = name or program(), []
    watch_cpu_limit(name)

    def tell(error):
        """Print the line, if there is one and none has been printed; returns whether there is one."""
        line = str(error) if isinstance(error, UserError) else explain(error)
        if line and not told:
            told.append(line)
            print_error(one_line(f"{name}: {adapt_hint(line)}"))
        return line is not None

    def end(kind, error, trace):
        if isinstance(error, KeyboardInterrupt):
            print_error("\ninterrupted")
            raise SystemExit(130)
        if tell(error):
            raise SystemExit(2)  # becomes the exit code of the process
        traceback.print_exception(kind, error, trace)

    def end_thread(args):
        if args.exc_type is not SystemExit and not tell(args.exc_value):
            threading.__excepthook__(args)

    def ignore(args):
        if not tell(args.exc_value):
            sys.__unraisablehook__(args)

    sys.excepthook, threading.excepthook, sys.unraisablehook = end, end_thread, ignore


def exit_code(error):
    """The exit code, 1 to 255, of a job that one rank ends by this exception: never 0, also after sys.exit(0) or
    sys.exit(256) on one rank: the system keeps the lowest eight bits."""
    return (error.code & 255 if isinstance(error, SystemExit) and isinstance(error.code, int) else 1) or 1


def program():
    """The name of the script, for messages."""
    if is_session():
        return "tinygrad2"
    return os.path.basename(sys.argv[0] if sys.argv else "") or "tinygrad2"
