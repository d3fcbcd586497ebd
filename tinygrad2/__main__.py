"""python -m tinygrad2 COMMAND ...; see tinygrad2/commands."""

import importlib
import sys

from tinygrad2.cli import call, install_hooks, leave_to_rank_0
from tinygrad2.commands import COMMANDS
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.system.installation import PROJECT_ROOT, refuse_name_clash, require_libraries
from tinygrad2.system.threads import plan_threads, threads_flag


def main(argv):
    """Run a command; returns its exit code (cli.call)."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    program = f"tinygrad2 {name}" if name in COMMANDS else "tinygrad2"
    return call(lambda: _dispatch(name, rest), program)


def _dispatch(name, rest):
    if name in ("--help", "-h"):
        print("usage: python -m tinygrad2 COMMAND ...      (each explains itself with --help)\n")
        for command, text in COMMANDS.items():
            print(f"  {command:10s}{text}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; choose one of: {', '.join(COMMANDS)}")
    if PROJECT_ROOT not in sys.path:  # not installed: ops, models and train_gpt2 are next to this package
        sys.path.append(PROJECT_ROOT)
    refuse_name_clash()
    world = None
    if name not in ("doctor", "profile") or (name == "doctor" and "--mpi" not in rest):
        leave_to_rank_0(f"the command {name}")
    if name == "profile":  # of several ranks as well
        world = World.join(threads_flag(rest))
    elif name != "doctor":  # which reports the plan, and must work without NumPy
        plan_threads(threads_flag(rest))
        require_libraries()
    command = importlib.import_module(f"tinygrad2.commands.{name}").main
    if not world:
        return command(rest)
    if world.size == 1:
        return command(rest, world)
    return world.run(lambda: command(rest, world), f"tinygrad2 {name}")


if __name__ == "__main__":
    install_hooks("tinygrad2")
    sys.exit(main(sys.argv[1:]))
