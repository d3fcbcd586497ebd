"""python -m tinygrad2 launch -n 4 -- train_gpt2.py FLAGS: start the ranks, and start them again if one dies.

    python -m tinygrad2 launch -n 4 -- train_gpt2.py --data my.txt --steps 20000
    python -m tinygrad2 launch -n 8 -f hosts.txt --max-restarts 10 -- train_gpt2.py --data my.txt --run-dir /shared/run

The ranks are started by mpirun. If the job ends before the training is complete (a rank was killed or crashed, a host
is gone, a deadline has expired), it is started again with --resume: from the newest intact checkpoint, or from the
beginning if there is none yet. The result has the bits of a training that nothing has disturbed. Each start and its end
are lines on stderr, which begin with "launch", and with --log also in a file, one JSON object each.

With -f, hosts that do not answer (`ssh HOST true`) are left out of the next start.

Not started again: after four starts that ended in the same way, without a new checkpoint; after Ctrl-C, SIGTERM,
SIGUSR1 or SIGHUP to this program (they are passed on: the ranks save and end), and after exit code 2, an error in flags
or files; nor a training that is complete, but could not write to standard output (exit code 1). Exit code 0: the
training is complete, after however many restarts. Else the code of the last start, or 128 and the number of the signal
that ended it.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid

from tinygrad2.cli import WITHOUT_OUTPUT, Parser, PathAction, explanation
from tinygrad2.commands.hosts import answers, read_hostfile
from tinygrad2.distributed.launch import FILES_FROM_MPIRUN, FILES_OF_RANK, THREADS_OF_RANK, too_few_files
from tinygrad2.distributed.mpirun import environment, find_mpirun
from tinygrad2.distributed.watchdog import TIMED_OUT
from tinygrad2.errors import UserError, one_line, to_bytes
from tinygrad2.io.files import first_bytes
from tinygrad2.io.open_file import open_file
from tinygrad2.io.outputs import check_output
from tinygrad2.system.installation import PROJECT_ROOT
from tinygrad2.system.process import kill_marked, marked, set_parent_death_signal, wake
from tinygrad2.system.signals import STOP_SIGNALS
from tinygrad2.system.streams import write_descriptor
from tinygrad2.system.temporary import temporary_folder
from tinygrad2.system.threads import require_threads

_REPORT = re.compile(rb"^\[rank \d+ of \d+[^\]\n]*\] .+", re.MULTILINE)  # what ranks and guards print about a failure
_WITHOUT_OUTPUT = re.compile(rb"^[^\n]+: " + WITHOUT_OUTPUT.encode())
_LEFT_SECONDS = 10.0  # that processes of a job may take to end after mpirun has
_ALIKE = 4  # starts that end in the same way, at the same step, are enough
_USER_ERROR = 2
_FAILED = (1, _USER_ERROR, TIMED_OUT)  # codes of a job that could not obey a signal


def main(argv):
    """Returns the exit code."""
    parser = Parser(prog="tinygrad2 launch", description=explanation(__doc__),
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-n", type=int, metavar="RANKS", help="number of ranks (default: as many as the hostfile has)")
    parser.add_argument("-f", action=PathAction, role="input", metavar="HOSTFILE",
                        help="the hosts, one HOST or HOST:RANKS a line (default: this host)")  # fmt: skip
    parser.add_argument("--max-restarts", type=int, default=3, metavar="N", help="how often at most (default: 3)")
    parser.add_argument("--after-death", choices=("all", "left"), default="all", metavar="all|left",
                        help="start again with all ranks, or with those that are left, a power of two (default: all)")
    parser.add_argument("--log", action=PathAction, role="output", metavar="FILE",
                        help="append a line of JSON for each start (default: none)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- PROGRAM FLAGS",
                        help="the program, train_gpt2.py for example, and its flags")  # fmt: skip
    args = parser.parse_args(argv)
    if args.log:
        inputs = [("-f", args.f)] if args.f else []
        check_output("--log", args.log, "a log of launch", _is_log, inputs, appended=True)
    hosts = read_hostfile(args.f) if args.f else []
    ranks = sum(slots for _, slots in hosts) if args.n is None else args.n
    if ranks < 1:
        given = "-n" if args.n is None else f"-n {args.n}"
        raise UserError(f"{given}: give the number of ranks, as in: launch -n 4 -- train_gpt2.py")
    if args.max_restarts < 0:
        raise UserError(f"--max-restarts {args.max_restarts}: give 0 or more")
    if problem := too_few_files(FILES_FROM_MPIRUN + FILES_OF_RANK):  # its ranks have this limit, too
        raise UserError(problem)
    require_threads(3 + THREADS_OF_RANK * min(ranks, 32))  # without any process mpirun would wait indefinitely
    command = _program(args.command[args.command[:1] == ["--"] :])
    return _Launch(command, ranks, hosts, args.max_restarts, args.after_death == "left", args.log).run()


def _is_log(path):
    """Is this file one that --log has written?"""
    return re.match(rb'\{"time": "[^"]*", "start": \d+, "ranks": \d+, ', first_bytes(path, 100)) is not None


def _program(words):
    """The command that each rank runs. Raises UserError if it names no program."""
    if not words:
        raise UserError("no program is given, as in: launch -n 4 -- train_gpt2.py --steps 1000")
    if any(word == "--ranks" or word.startswith("--ranks=") for word in words):
        raise UserError("--ranks: launch starts the ranks itself; leave this flag out, and give their number as -n")
    if words[0] == "-m":
        return [sys.executable, *words]
    if words[0].startswith("-"):
        raise UserError(f"{words[0]}: is not a program; its name comes first: launch -n 4 -- train_gpt2.py {words[0]}")
    if words[0].endswith(".py"):
        path = words[0]
        if not os.path.exists(path) and path == os.path.basename(path):
            path = os.path.join(PROJECT_ROOT, path)  # as train_gpt2.py, started from another folder
        if not os.path.isfile(path):
            raise UserError(f"{words[0]}: there is no such program here; give its path")
        return [sys.executable, path, *words[1:]]
    return words


class _Launch:
    """One training: its starts, until it is complete, or there is a reason to give up."""

    def __init__(self, command, ranks, hosts, max_restarts, shrinks, log):
        self.command, self.ranks, self.hosts, self.shrinks, self.log = command, ranks, hosts, shrinks, log
        self.max_restarts, self.mpirun = max_restarts, find_mpirun()
        version = subprocess.run([self.mpirun, "--version"], capture_output=True, env=environment())
        self.is_mpich = b"HYDRA" in version.stdout
        self.process, self.mark, self.stops, self.ends = None, "", [], []
        self.is_complete = False  # has this start said that it is, although its exit code is 1?

    def run(self):
        """Returns the exit code."""
        before = {number: signal.signal(number, self._pass_on) for number in STOP_SIGNALS}
        try:
            for restarts in range(self.max_restarts + 1):
                code, report, seconds = self._start(restarts)
                reason = f"exit code {code} after {seconds:.0f} s" + (f": {report}" if report else "")
                self._record(
                    start=restarts + 1, ranks=self.ranks, exit_code=code, seconds=round(seconds, 1), report=report
                )
                if code == 0 and len(self.stops) < 2:  # mpirun may return 0 after two signals at once
                    if restarts:
                        self._say(f"complete, after {restarts} restart(s)")
                    return 0
                if self.stops:  # of ranks that were starting, and after two signals, mpirun's code may be anything
                    return code if code in _FAILED else 128 + self.stops[0]
                if code == _USER_ERROR:
                    self._say("exit code 2, an error in flags or files: not started again")
                    return code
                if code == 1 and self.is_complete:
                    self._say("complete, except that standard output could not be written: not started again")
                    return code
                if restarts == self.max_restarts:
                    self._say(f"{reason}; not started again: --max-restarts is {self.max_restarts}")
                    return code
                if report and self._ended_alike(code, report):
                    self._say(f"{reason}; not started again: the last {_ALIKE} starts have ended in this way, without "
                              "a new checkpoint")  # fmt: skip
                    return code
                if not self._choose_ranks():
                    self._say(f"{reason}; not started again: no host answers")
                    return code
                self._say(f"{reason}; restart {restarts + 1} of {self.max_restarts}, with {self.ranks} rank(s)")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ended_alike(self, code, report):
        """Has this start ended as the ones before it, at the same step? Then the next one would, too."""
        from tinygrad2.training.checkpoint import list_checkpoints  # late: it imports NumPy

        words = dict(zip(self.command, self.command[1:]))  # --run-dir X
        words |= dict(word.split("=", 1) for word in self.command if word.startswith("--run-dir="))
        saved = list_checkpoints(os.path.join(words.get("--run-dir", "run"), "checkpoints"))
        self.ends.append((code, re.sub(r"\bpid \d+", "", report), saved[:1]))
        return len(self.ends) >= _ALIKE and len({repr(end) for end in self.ends[-_ALIKE:]}) == 1

    # -- one start -----------------------------------------------------------------------------------------------------

    def _start(self, restarts):
        """Run the job once; returns (exit code, the first report of a rank or "", seconds)."""
        resume = ["--resume"] if restarts and "--resume" not in self.command else []
        self.mark, begin = f"TINYGRAD2_LAUNCH={uuid.uuid4()}", time.monotonic()
        with contextlib.ExitStack() as files:
            command = [self.mpirun, "-n", str(self.ranks), *self._host_flags(files), *self.command, *resume]
            name, _, value = self.mark.partition("=")
            self.process = subprocess.Popen(
                command, env={**environment(), name: value}, stderr=subprocess.PIPE,
                start_new_session=True,                           # Ctrl-C comes through this process, and once
                preexec_fn=lambda: set_parent_death_signal(signal.SIGTERM),
            )  # fmt: skip
            for number in self.stops:                             # one that came meanwhile
                self._send(number)
            reports, self.is_complete = [], False
            reader = threading.Thread(target=self._copy_errors, args=(self.process.stderr, reports))
            reader.start()
            code = self.process.wait()
            kill_marked(self.mark, _LEFT_SECONDS)                 # if mpirun itself was killed, for example
            reader.join()
            self.process.stderr.close()
        return code if code >= 0 else 128 - code, reports[0] if reports else "", time.monotonic() - begin

    def _copy_errors(self, stream, reports):
        """Pass on what the job writes to stderr, and keep what ranks and guards report."""
        rest = b""
        while data := os.read(stream.fileno(), 1 << 16):
            write_descriptor(2, data)
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-10_000:]
            reports += [line.decode("utf-8", "replace") for line in lines if _REPORT.match(line) and len(reports) < 10]
            self.is_complete |= any(map(_WITHOUT_OUTPUT.match, lines))

    def _host_flags(self, files):
        if not self.hosts:
            return []
        folder = files.enter_context(temporary_folder(tempfile.gettempdir(), "hosts"))
        path = os.path.join(folder, "hosts.txt")
        with open_file(path, "w", encoding="utf-8") as file:
            file.writelines(f"{host}:{slots}\n" for host, slots in self.hosts)
        return ["-f" if self.is_mpich else "--hostfile", path]

    def _choose_ranks(self):
        """Leave out hosts that do not answer, and one rank if wanted; returns whether there is anything left."""
        if self.hosts:
            left = [(host, slots) for host, slots in self.hosts if answers(host)]
            for host in sorted({host for host, _ in self.hosts} - {host for host, _ in left}):
                self._say(f"{host} does not answer: left out")
            room, before = (sum(slots for _, slots in hosts) for hosts in (left, self.hosts))
            self.hosts = left
            if room < before:
                self.ranks = _power_of_two(min(self.ranks, room))
        if self.shrinks and self.ranks > 1:
            self.ranks = _power_of_two(self.ranks - 1)
        return self.ranks > 0

    # -- signals and messages ------------------------------------------------------------------------------------------

    def _pass_on(self, number, frame):
        self.stops.append(number)
        self._send(number)

    def _send(self, number):
        if not self.is_mpich and len(self.stops) == 1:
            number = signal.SIGUSR1  # of the others Open MPI's mpirun ends the ranks before they have saved
        if self.is_mpich and number == signal.SIGHUP:
            number = signal.SIGTERM  # of which MPICH's mpirun ends itself
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.send_signal(number)
            wake(marked(self.mark))  # what somebody has stopped would not obey

    def _say(self, text):
        write_descriptor(2, to_bytes(one_line(f"launch    {text}") + "\n"))

    def _record(self, **row):
        if self.log:
            try:
                with open_file(self.log, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), **row}) + "\n")
            except (OSError, UserError) as error:
                self._say(f"--log {self.log}: cannot be written ({getattr(error, 'strerror', None) or error})")


def _power_of_two(number):
    """The largest one that is not larger; 0 for 0. Only such numbers of ranks have the same bits."""
    return 1 << number.bit_length() - 1 if number > 0 else 0
