"""/dev/shm, through which the ranks of a host communicate: is there room, and nothing is left in it.

MPICH creates a file of about 1 MB per rank there, and removes it when the job ends in order. After a job that was
killed or aborted it would stay, and /dev/shm fill up: in a container it often has 64 MB. In a full one MPICH crashes
without a message (SIGBUS). So the ranks remove the file as soon as all have mapped it, and check the room before that.
If they are killed in between, the witness does (witness.py); also files of UCX, which MPICH uses, and which exist for a
moment only.
"""

import contextlib
import os
import re

from tinygrad2.system.temporary import is_mine

BYTES_PER_RANK = 1_100_000  # MPICH 5.0: 1.06 MB measured for 2, 3 and 4 ranks
_MANY = 16  # ranks: with room for fewer the doctor says how to make more
_FOLDER = "/dev/shm"
_MPICH_FILE = re.compile(r"mpich_shm_\w+")
_UCX_FILE = re.compile(r"ucx_shm_posix_[0-9a-f]+")


def unlink_mpi_memory(maps="/proc/self/maps", folder=_FOLDER):
    """Remove the names of MPICH's files that this process has mapped; the memory stays until the last process ends."""
    with contextlib.suppress(OSError):
        with open(maps, encoding="utf-8", errors="surrogateescape") as file:
            paths = {line.split(None, 5)[-1].strip() for line in file}
        for path in paths:
            if os.path.dirname(path) == folder and _MPICH_FILE.fullmatch(os.path.basename(path)):
                with contextlib.suppress(OSError):
                    os.unlink(path)


def unlink_files_of_job(name, folder=_FOLDER):
    """Remove MPICH's files of a job whose processes have ended: those that were killed while MPI started.

    name    of the job, as mpirun gives it to its ranks (bytes): MPICH names the files by its hash (FNV-1a, 32 bits)
    """
    code = 2166136261
    for byte in name:
        code = (code ^ byte) * 16777619 & 0xFFFFFFFF
    with contextlib.suppress(OSError):
        for file in os.listdir(folder):
            if re.fullmatch(rf"mpich_(shm|vci)_{code:x}_\d+", file):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, file))


def unlink_abandoned_files(since, folder=_FOLDER):
    """Remove UCX's files that were created since then (as of time.time) by processes that have ended: UCX removes the
    name as soon as it has mapped the file, so a process that is killed in between leaves it. The names are random."""
    with contextlib.suppress(OSError):
        paths = [entry.path for entry in os.scandir(folder) if _UCX_FILE.fullmatch(entry.name)
                 and is_mine(entry.stat()) and entry.stat().st_mtime >= since]  # fmt: skip
        for path in set(paths) - _open_files(folder) if paths else ():
            with contextlib.suppress(OSError):
                os.unlink(path)


def _open_files(folder):
    """The paths of all files in this folder that some process has opened or mapped."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
                found |= {line.split(None, 5)[-1].strip() for line in file if folder in line}
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


def describe(folder=_FOLDER):
    """One line about its size, for the doctor; "" if there is no such folder."""
    free, size = _space(folder)
    if size is None:
        return ""
    ranks = free // BYTES_PER_RANK
    state = f"enough for {ranks:,} ranks of MPICH" if ranks else "too little for MPICH"
    line = f"{folder}: {_mb(free)} of {_mb(size)} are free, {state}"
    return line if ranks >= _MANY else f"{line}; {_remedy(folder)}"


def shortage(ranks, since, folder=_FOLDER):
    """What is wrong if so many ranks of this host do not find room there for MPICH's file; "" if they do.

    since    the time at which this job began: files that are newer may be its own, created by a rank that was faster
    """
    free, size = _space(folder)
    if size is None or free + sum(_file_sizes(folder, since)) >= ranks * BYTES_PER_RANK:
        return ""
    return (f"{folder} has {_mb(free)} free, and {ranks} ranks need {_mb(ranks * BYTES_PER_RANK)}; "
            f"{_remedy(folder)}")  # fmt: skip


def _space(folder):
    try:
        info = os.statvfs(folder)
    except (OSError, AttributeError):
        return 0, None
    return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize


def _file_sizes(folder, since=0.0):
    """Bytes that each of MPICH's files there takes, of those changed since then."""
    sizes = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat()
                if _MPICH_FILE.fullmatch(entry.name) and status.st_mtime >= since:
                    sizes.append(status.st_blocks * 512)
    return sizes


def _remedy(folder):
    """What to do about a small or full one."""
    sizes = _file_sizes(folder)
    remedy = "make it larger (docker run --shm-size 1g; in Kubernetes a volume of medium Memory)"
    if sum(sizes) < BYTES_PER_RANK:
        return remedy
    held = f"{len(sizes)} file(s) of MPI jobs, {_mb(sum(sizes))}"
    return f"{held}, are there: if those jobs have ended, rm {folder}/mpich_shm_*; or {remedy}"


def _mb(size):
    return f"{size / 1e6:,.1f} MB"
