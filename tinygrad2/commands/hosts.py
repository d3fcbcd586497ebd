"""Hosts of a job: the hostfile that is read by both MPIs, and which of its hosts answer."""

import os
import re
import socket
import subprocess

from tinygrad2.errors import UserError, short
from tinygrad2.io.open_file import open_file

_ANSWER_SECONDS = 15.0
_LINE = re.compile(r"([A-Za-z0-9_][\w.-]*)(?:\s*(?::|\s+slots\s*=\s*)\s*(\d{1,6}))?", re.ASCII)


def read_hostfile(path):
    """[(host, ranks)] of a file with lines HOST, HOST:RANKS or HOST slots=RANKS. Raises UserError if it is none."""
    try:
        with open_file(path, "r", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(1 << 20)
    except OSError as error:
        raise UserError(f"-f {path}: cannot be read ({error.strerror}); give a file with lines HOST:RANKS") from None
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if not match or (match[2] and int(match[2]) == 0):
            raise UserError(f"-f {path}, line {number}: {short(line)} is not HOST or HOST:RANKS")
        hosts.append((match[1], int(match[2] or 1)))
    if not hosts:
        raise UserError(f"-f {path}: names no host; each line is HOST:RANKS")
    return hosts


def answers(host):
    """Can commands be run on this host, as mpirun does?"""
    if host in ("localhost", "127.0.0.1", socket.gethostname()):
        return True
    ssh = os.environ.get("HYDRA_LAUNCHER_EXEC") or "ssh"
    command = [ssh, "-x", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_ANSWER_SECONDS:.0f}", host, "true"]
    if ssh != "ssh":
        command = [ssh, "-x", host, "true"]
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=2 * _ANSWER_SECONDS).returncode == 0  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
