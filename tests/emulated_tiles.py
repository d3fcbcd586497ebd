"""Run a program with AMX's tile instructions where there are none: each is trapped and computed (tile_emulator.c).

    python tests/emulated_tiles.py train_gpt2.py --steps 5 --dtype bfloat16

The kernels for tiles are compiled and chosen as on a processor with AMX, but for the conversion to bfloat16, which is
that of processors without AVX512-BF16. Needs gcc, x86-64 with AVX2, and Linux. Kernels are compiled anew at the first
run, into the folder TILE_EMULATOR (a temporary one if it is not set): some minutes.
"""

import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent


def environment(folder):
    """The environment variables with which Python emits and emulates tile instructions; builds the emulator."""
    from llvmlite import binding
    from numba.core.codegen import get_host_cpu_features

    library = pathlib.Path(folder) / "tile_emulator.so"
    if not library.exists():
        new = library.with_name(f"{os.getpid()}.so")
        options = ["-O3", "-march=native", "-shared", "-fPIC", "-ldl"]
        subprocess.run(["gcc", *options, str(HERE / "tile_emulator.c"), "-o", str(new)], check=True)
        new.replace(library)
    features = get_host_cpu_features() + ",+amx-tile,+amx-bf16"
    target = {"NUMBA_CPU_NAME": binding.get_host_cpu_name(), "NUMBA_CPU_FEATURES": features}
    place = {"NUMBA_CACHE_DIR": str(folder), "LD_PRELOAD": str(library), "TILE_EMULATOR": str(folder)}
    return {**os.environ, **target, **place}


def permit():
    """The processor counts as one with AMX, without AVX512-BF16; tiles compute small products of parts as well."""
    from ops.kernels.cpu import products
    from ops.kernels.cpu.gemm import product, target

    def available(kernel):
        return kernel in ("vector", "amx", "amx x3", "amx x6") or kernel == "avx512" and target.has("avx512f")

    target.available = product.available = available
    target.tiles_permitted = lambda: True
    products.LEAST.clear()


if __name__ == "__main__":
    if "tile_emulator" not in os.environ.get("LD_PRELOAD", ""):
        folder = os.environ.get("TILE_EMULATOR") or tempfile.mkdtemp()
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(folder))
    sys.path[0] = str(HERE.parent)
    permit()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
