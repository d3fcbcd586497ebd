"""Trainings with AMX's tile instructions, trapped and computed where the processor has none (emulated_tiles.py)."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
from test_mixed_precision import FLAGS, names_of, outcome, runs  # noqa: F401
from test_train import ROOT, SMALL, TEXT

from tinygrad2.distributed.mpirun import find_mpirun, have_mpi

pytest.importorskip("numba")
from ops.kernels.cpu.gemm import target  # noqa: E402

pytestmark = [
    pytest.mark.long,  # every kernel is compiled for another processor: minutes
    pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="Linux on x86-64 only"),
    pytest.mark.skipif(not target.has("avx2"), reason="the emulator is for processors with AVX2"),
    pytest.mark.skipif(target.has("amx-tile"), reason="this processor has tiles"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the emulator is compiled by gcc"),
]
KINDS = {  # flags -> how far losses may be from those of the reference implementations of the same flags
    "--matmul-precision highest": 1e-4,
    "--matmul-precision high": 1e-3,
    "--matmul-precision medium": 1e-2,
    "--dtype bfloat16": 1e-2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return folder


def emulated(folder, name, flags, ranks=1):
    program = [sys.executable, str(ROOT / "tests" / "emulated_tiles.py"), str(ROOT / "train_gpt2.py")]
    launcher = [find_mpirun(), "-n", str(ranks)] if ranks > 1 else []
    words = f"{SMALL} {FLAGS} {names_of(name)} {flags}".split()
    environment = {**os.environ, "TILE_EMULATOR": str(folder)}
    done = subprocess.run(
        launcher + program + words, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AMX tiles\n" in done.stdout
    return outcome(folder, name)


@pytest.mark.parametrize("flags", KINDS)
def test_a_training_on_tiles(runs, folder, flags):  # noqa: F811
    name = flags.split()[-1]
    losses, weights = emulated(folder, name, f"{flags} --threads 2")
    wanted, _ = runs(f"reference-{name}", f"{flags} --kernels reference")
    assert len(losses) == len(wanted) == 12
    for one, other in zip(losses, wanted, strict=True):
        assert one[0] == pytest.approx(other[0], abs=KINDS[flags])

    assert emulated(folder, f"one-{name}", f"{flags} --threads 1") == (losses, weights)
    shutil.rmtree(folder / f"run-one-{name}" / "checkpoints" / "step_00000012")
    (folder / f"one-{name}.bin").unlink()
    assert emulated(folder, f"one-{name}", "--threads 2 --resume") == (losses, weights)
    if have_mpi():
        assert emulated(folder, f"ranks-{name}", flags, ranks=2) == (losses, weights)
