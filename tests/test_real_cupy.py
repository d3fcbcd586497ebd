"""CuPy's own arrays, in memory of the host (host_cupy.py): trainings and ops run on them without a GPU."""

import json
import pathlib
import subprocess
import sys

import pytest
from cuda_host import needs_compiler

pytestmark = needs_compiler
pytest.importorskip("cupy", reason="CuPy is not installed")
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

TESTS = pathlib.Path(__file__).parent
MODEL = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 16 --vocab-size 270 --batch-size 4"
QUIET = "--eval-every 0 --sample-every 0 --checkpoint-every 0 --compare-every 0 --lr 1e-2 --warmup-steps 2"


def run(*arguments):
    command = [sys.executable, "-B", str(TESTS / "host_cupy.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=TESTS.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses_of(tmp_path, flags):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. The dog sat on the cat.\n" * 20)
    *printed, found = run("train", f"--data {text} {MODEL} {QUIET} {flags}").splitlines()
    assert any("more than are in use at once" in line for line in printed) == ("cuda" in flags)       # its arena
    return json.loads(found)


@pytest.mark.slow
def test_a_training_is_near_that_of_the_cpu(tmp_path):
    cpu = losses_of(tmp_path, "--steps 6 --sample-tokens 0")
    assert not cpu["launches"]
    for flags, tolerance in (("", 2e-6), ("--matmul-precision high", 1e-3), ("--dtype bfloat16", 1e-2),
                             ("--dtype float16 --micro-batch-size 2", 2e-3)):  # fmt: skip
        gpu = losses_of(tmp_path, f"--device cuda --steps 6 --sample-tokens 3 {flags}")
        assert gpu["losses"] == pytest.approx(cpu["losses"], rel=tolerance), flags
        assert gpu["launches"] > 6 * 20


@pytest.mark.slow
def test_ops_and_kernels_on_its_arrays():
    """The tests for a GPU that need no time of one."""
    kernels = "attention-0 or layernorm or cross_entropy or embedding or gelu-0 or mlp-0 or dropout or linear-0"
    printed = run("tests", f"-q tests/test_gpu.py -k '(a_kernel_equals and not large and ({kernels})) or every_op'")
    assert "passed" in printed or "100%" in printed, printed
