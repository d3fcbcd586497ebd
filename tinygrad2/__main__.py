"""python -m tinygrad2 COMMAND ...; see tinygrad2/commands."""

import importlib
import os
import sys

from tinygrad2.commands import COMMANDS
from tinygrad2.errors import UserError
from tinygrad2.installation import refuse_name_clash
from tinygrad2.system.threads import plan_threads, threads_flag


def main(argv):
    """Run a command; gives its exit code. Whatever is the user's to mend is one line, with code 2."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("--help", "-h"):
        print("usage: python -m tinygrad2 COMMAND ...      (each explains itself with --help)\n")
        for command, text in COMMANDS.items():
            print(f"  {command:10s}{text}")
        return 0
    if name not in COMMANDS:
        print(f"tinygrad2: there is no command {name!r}; choose one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if name != "doctor":  # it looks at the plan, and must live without NumPy
        plan_threads(threads_flag(rest))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if root not in sys.path:  # where it is not installed: ops, models and train_gpt2 are beside us
        sys.path.append(root)
    try:
        refuse_name_clash()
        return importlib.import_module(f"tinygrad2.commands.{name}").main(rest)
    except UserError as error:
        print(f"tinygrad2 {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
