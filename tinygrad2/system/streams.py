"""Standard output and error as a program finds them: a terminal, a pipe, a notebook, closed, or on a full disk.

    print(...)          within `with protected_streams(name):` (cli.call) it never raises because of the stream
    write(text)         for text that is the product of the program: exact, and an error where it cannot be written
    print_error(line)   to stderr; nowhere if there is none. (print(file=None) would write to stdout.)

A training of a week must not end because the disk is full to which its progress is written: what cannot be written is
lost, which is reported on stderr once and by the exit code. Imports nothing that loads NumPy.
"""

import contextlib
import errno
import os
import stat
import sys
import time
from functools import partial

from tinygrad2.errors import UserError, printable, visible
from tinygrad2.system.launcher import launcher_has_room, ranks_started

ERASE = "\r\x1b[K"  # an escape sequence that may be written: the line of the terminal begins again


def is_session():
    """Does this run inside a notebook or at a Python prompt, which must go on after a program has ended?"""
    return hasattr(sys, "ps1")


def arguments(argv=None):
    """The words of a command line: `argv` if it is given, else those of the process. In a session there are none: in a
    notebook sys.argv is that of its kernel."""
    if argv is not None:
        return list(argv)
    return [] if is_session() else sys.argv[1:]


def is_terminal(stream):
    """Is this stream a terminal? False also for one that is closed, or has no such method."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def can_overwrite(stream):
    """Can a line on this stream be overwritten by escape sequences?

    Not if the terminal has none (TERM=dumb), nor if its user wants none (NO_COLOR, https://no-color.org). And Open MPI
    gives its ranks a terminal even if it writes to a file.
    """
    refused = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR") or "OMPI_COMM_WORLD_SIZE" in os.environ
    return is_terminal(stream) and not refused


def is_read_live(stream):
    """Does somebody read this stream line by line as it is written: a terminal, or a notebook? Not a file or a pipe."""
    return is_terminal(stream) or (is_session() and stream is sys.stdout)


# -- writing -----------------------------------------------------------------------------------------------------------


def write(text):
    """Write to stdout without delay, in UTF-8 whatever the terminal's encoding; surrogate escapes as the bytes they
    stand for. A stream without bytes (a notebook's, io.StringIO) gets characters, U+FFFD for invalid bytes. A terminal,
    which obeys control characters, gets them as escapes.

    Raises UserError if it cannot be written, as on a full disk, and BrokenPipeError if nobody reads it any more.
    """
    stream = getattr(sys.stdout, "unprotected", sys.stdout)
    if stream is None:
        return
    if is_terminal(stream):
        text = visible(text.replace("\r\n", "\n"))
    raw = text.encode("utf-8", "surrogateescape")
    binary = getattr(stream, "buffer", None)
    try:
        stream.flush()                                            # what print has left in the stream's buffer
        if binary is None:
            stream.write(raw.decode("utf-8", "replace"))
        else:
            binary.write(raw)
        stream.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        _discard_pending(stream)
        raise UserError(f"standard output cannot be written ({_reason(error)}); write it elsewhere") from None


def print_error(line):
    """Print a line, or an error, to stderr, if there is one that can be written."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(printable(str(line)), file=sys.stderr, flush=True)


def write_descriptor(number, data):
    """os.write for signal handlers and for processes that are about to end: does not raise if it is closed or full."""
    with contextlib.suppress(OSError):
        os.write(number, data)


def wait_until_read(number, seconds=2.0):
    """Wait until the process at the other end of a pipe has read everything, at most so long: mpirun, for example,
    which forwards it. Returns at once if this descriptor is no pipe."""
    end = time.monotonic() + seconds
    while _unread(number) and time.monotonic() < end:
        time.sleep(0.005)


def _unread(number):
    """How many bytes in this pipe have not been read yet."""
    try:
        import fcntl
        import termios

        if stat.S_ISFIFO(os.fstat(number).st_mode):
            return int.from_bytes(fcntl.ioctl(number, termios.FIONREAD, bytes(4)), sys.byteorder)
    except (OSError, ImportError, AttributeError):
        pass
    return 0


class ProtectedStream:
    """A text stream whose write and flush do not raise if the disk is full, the stream is closed, or its encoding lacks
    a character (which becomes "?"). What is written to it is made `printable`, except ERASE at its beginning.

    unprotected       the stream; None: there is none, text goes nowhere
    error             the first exception by which text was lost, or None
    lost              how many lines were lost
    has_room          has_room(n): can n bytes be written? False: they are not, as on a full disk. None: it is tried
    on_error          called with it, once
    on_broken_pipe    called when nobody reads the stream any more; text then goes nowhere. None: BrokenPipeError
    """

    def __init__(self, stream, on_error=None, on_broken_pipe=None, has_room=None):
        self.unprotected, self.on_error, self.error, self.lost = stream, on_error, None, 0
        self.on_broken_pipe, self.has_room = on_broken_pipe, has_room

    def write(self, text):
        erase = ERASE if text.startswith(ERASE) else ""
        text = erase + printable(text[len(erase) :])
        try:
            self._try("write", text)
        except UnicodeEncodeError:
            encoding = self.unprotected.encoding
            self._try("write", text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        self._try("flush")

    def isatty(self):
        return is_terminal(self.unprotected)

    def _try(self, method, *args):
        if self.unprotected is None:
            return
        try:
            if args and self.has_room and not self.has_room(len(args[0])):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            getattr(self.unprotected, method)(*args)
        except UnicodeEncodeError:
            raise
        except BrokenPipeError:
            if self.on_broken_pipe is None:
                raise
            _discard_pending(self.unprotected)                    # from here on it leads to /dev/null
            self.on_broken_pipe()
        except (OSError, ValueError) as error:                    # ValueError: the stream is closed
            self.lost += "".join(args).count("\n")
            if self.error is None:
                self.error = error
                if self.on_error:
                    self.on_error(error)

    def __getattr__(self, name):
        return getattr(self.unprotected, name)


@contextlib.contextmanager
def protected_streams(name):
    """Within it sys.stdout and sys.stderr are ProtectedStreams.

    Yields that of stdout. When text is lost that is reported on stderr, in a line that begins with `name`.
    """
    _open_missing_descriptors()
    before = sys.stdout, sys.stderr
    out, err = (_protect(stream, number) for number, stream in enumerate(before, start=1))
    if out is not before[0]:
        out.on_error = lambda error: print_error(
            f"{name}: standard output cannot be written ({_reason(error)}): what is printed is lost, all else goes on"
        )
    if err is not before[1]:
        err.on_broken_pipe = lambda: None                         # messages alone: no reason to end
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        if out.error is not None:
            _discard_pending(out.unprotected)
            if out.lost and out is not before[0]:
                print_error(f"{name}: {out.lost:,} line(s) of standard output were lost")
        if (sys.stdout, sys.stderr) == (out, err):                # not if another thread has replaced them meanwhile
            sys.stdout, sys.stderr = before


def _protect(stream, number):
    if isinstance(stream, ProtectedStream):
        return stream
    if stream in (sys.__stdout__, sys.__stderr__) and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")                      # a terminal that cannot show a character
    return ProtectedStream(stream, has_room=partial(launcher_has_room, number) if ranks_started() else None)


def _open_missing_descriptors():
    """Open /dev/null where 0, 1 or 2 is closed (`>&-`). Otherwise the next file that is opened, a checkpoint perhaps,
    gets that number, and with it what the program or a library writes to its "stderr"."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)           # the lowest number that is free: this one
                os.set_inheritable(opened, True)


def discard_output():
    """What stdout still holds is not written: its reader has exited."""
    _discard_pending(getattr(sys.stdout, "unprotected", sys.stdout))


def _discard_pending(stream):
    """Python would try to write the stream's buffer again when it exits, and report that this failed."""
    try:
        stream.flush()                                            # there may be room by now
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _reason(error):
    return getattr(error, "strerror", None) or str(error)
