"""Memory of this process and of the machine, as the operating system reports it, and glibc's malloc settings."""

import ctypes
import math
import os
import sys

# Bytes of logits that exist at a time: 364 rows of 50,257 columns. ops/kernels/cpu/linear_cross_entropy.py makes them
# in such chunks (fewer rows make slower products, docs/kernels.md), and training/memory_plan.py counts them.
LOGITS_CHUNK = 70 << 20
# The same on a GPU: 5,338 rows in 16 bits. Each chunk adds to the gradient of the whole weight, 0.3 GB for GPT-2, which
# fewer rows would not be worth.
GPU_LOGITS_CHUNK = 512 << 20

_CGROUPS = (  # limit and use of a container: version 2 and version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def megabytes(n):
    """1234567890 -> "1,235 MB"."""
    return f"{n / 1e6:,.0f} MB" if n >= 1e7 else f"{n / 1e6:,.1f} MB"


def resident_bytes():
    """Bytes of memory of this process now; 0 where the system does not report it."""
    return _status("VmRSS") or peak_resident_bytes()


def peak_resident_bytes():
    """The most bytes of memory this process has had; 0 where the system does not report it."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_peak():
    """Count the peak from now on, where the system allows it (Linux); elsewhere it stays that of the process so far."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def available_bytes():
    """Bytes that this process may still allocate without swapping; None where the system does not report it."""
    limits = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            limits += [1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable")]
    except (OSError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in _CGROUPS:
        try:
            with open(limit, encoding="ascii") as total, open(used, encoding="ascii") as taken:
                limits.append(int(total.read()) - int(taken.read()))
        except (OSError, ValueError):  # no such limit ("max")
            pass
    limits += [left for left, _ in _limits_left() if left < math.inf]
    return min(limits, default=None)


def require_limits(address_space, data, purpose):
    """Raises MemoryError if the limits of this process (ulimit -v and -d) leave less than so many bytes.

    For what does not raise one itself: OpenBLAS and LLVM end the process, with a message of their own or none.
    """
    for (left, name), needed in zip(_limits_left(), (address_space, data)):
        if left < needed:
            raise MemoryError(f"{name} leaves {megabytes(max(0, left))}; {purpose} takes {megabytes(needed)}")


def _limits_left():
    """[(bytes left, name)] of the limits of address space and of data; infinity where there is none."""
    left = []
    for limit, used, name in (("RLIMIT_AS", "VmSize", "ulimit -v"), ("RLIMIT_DATA", "VmData", "ulimit -d")):
        try:
            import resource

            most, _ = resource.getrlimit(getattr(resource, limit))
            is_limited = most not in (resource.RLIM_INFINITY, -1)
        except (ImportError, AttributeError, OSError, ValueError):  # Windows
            is_limited = False
        left.append((most - (_status(used) or 0) if is_limited else math.inf, name))
    return left


def _status(name):
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(name + ":"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def give_back_freed_memory():
    """Ask the C library to return freed memory to the system (glibc; elsewhere nothing happens)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass


def keep_freed_memory():
    """Ask the C library to keep what NumPy frees for the next array, instead of returning it to the system.

    A training step allocates and frees the same arrays over and over; memory that is new from the system costs a page
    fault and zeroing for each of its pages. Call it once the model is built. Only glibc (Linux) has these switches;
    elsewhere nothing happens.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return
    give_back_freed_memory()  # what is free now: the arrays from which the model was built
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # arrays up to 32 MB, the highest value allowed, come from the heap
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_M_TOP_PAD, 64 << 20)
