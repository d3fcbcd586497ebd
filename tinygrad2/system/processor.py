"""Which processor this is."""

import os
import platform

from tinygrad2.system.threads import available_cores

_ZEN = {"23": "Zen 1 or 2", "25": "Zen 3", "26": "Zen 5"}          # by AMD's family; Zen 4 is Zen 3's, with AVX-512
_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}


def cpu_name():
    """The processor: its name, AMD's generation, the units that compute with many numbers at once, and the number of
    cores this process may use: "AMD EPYC (Zen 3; AVX2), 2 cores".

    A virtual machine often hides the model number, and the generations differ by more than names tell.
    """
    about, generation = _about(), ""
    name = about.get("model name") or platform.processor() or platform.machine()
    flags = (about.get("flags") or about.get("Features") or "").split()
    if about.get("vendor_id") == "AuthenticAMD":
        generation = _ZEN.get(about.get("cpu family"), "")
        generation = "Zen 4" if generation == "Zen 3" and "avx512f" in flags else generation
    units = ", ".join(unit for flag, unit in _UNITS.items() if flag in flags)
    described = "; ".join(filter(None, (generation, units)))
    return f"{name}{f' ({described})' if described else ''}, {len(available_cores())} cores"


def _about():
    """What Linux says of the first core: {field: value}; empty on other systems."""
    if not os.path.exists("/proc/cpuinfo"):
        return {}
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        first = file.read().split("\n\n")[0]
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
