"""Which processor this is."""

import os
import platform

from tinygrad2.system.threads import available_cores


def cpu_name():
    """The processor's model name, with the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    name = line.split(":", 1)[1].strip()
                    break
    return f"{name}, {len(available_cores())} cores"
