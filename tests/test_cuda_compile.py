"""Every kernel is compiled for four generations of GPUs by NVRTC: no spills, and few enough registers.

A multiprocessor has 65,536 registers: a kernel of 128 registers runs 512 threads on it. What is allowed here is what
the kernels need today; a change that needs more shows up, and says so in MOST_REGISTERS.
"""

import pathlib

import nvrtc
import pytest
from cuda_host import _KERNEL as KERNEL

from ops.kernels.cuda.launch import FOLDER, ONLY_FOR, TYPES, source

FILES = sorted(path.stem for path in pathlib.Path(FOLDER).glob("*.cu"))
FLOATS_ONLY = {file for file in FILES if '#line 1 "attention_tf32.cuh"' in source(file, "float32")}
HALVES_ONLY = {file for file in FILES if '#line 1 "tensor_cores.cuh"' in source(file, "float16")} - FLOATS_ONLY
FROM = {"attention_128": 80, "attention_128_dropout": 80}  # the first GPUs that have the shared memory for it
FROM |= dict.fromkeys(FLOATS_ONLY, 80)  # that have TF32
TO = {file: 80 if "dropout" in file else 90 for file in FLOATS_ONLY}  # they take long to compile
USUAL = 64  # registers of a thread
MOST_REGISTERS = {  # kernel -> how many it may use instead
    "attention_delta": 72,
    "attention_dkdv": 255,  # of 128 threads: two blocks have room
    "attention_dq": 255,
    "attention_forward": 255,
    "attention_hopper_dkdv": 255,  # of 256 threads: one block
    "attention_hopper_dq": 128,  # of 256 threads: two blocks
    "attention_hopper_forward": 128,
    "attention_plain_dkdv": 255,  # of 256 threads
    "attention_plain_dq": 254,
    "attention_plain_forward": 210,
    "attention_split": 132,
    "layernorm_backward": 136,
    "layernorm_forward": 128,
    "rows_by_bfloat16": 72,
}

pytestmark = nvrtc.needs_nvrtc


COMPILED = [
    (file, dtype, architecture)
    for file in FILES
    for dtype in TYPES
    for architecture in nvrtc.ARCHITECTURES
    if FROM.get(file, 0) <= architecture <= TO.get(file, 1000)
    and file not in (HALVES_ONLY if dtype == "float32" else FLOATS_ONLY)
    and (file not in ONLY_FOR or ONLY_FOR[file] == f"sm_{architecture}a")
]


@pytest.mark.parametrize("file, dtype, architecture", COMPILED)
def test_a_kernel_compiles_without_spills(file, dtype, architecture):
    found = nvrtc.cubins(file, dtype, architecture)
    assert found
    for name, use in found.items():
        assert use.spilled == 0 and use.stack == 0, f"{name}: {use}"
        assert use.registers <= MOST_REGISTERS.get(name, USUAL), f"{name}: {use}"
        assert use.shared <= 48 << 10, f"{name}: {use}"


def test_the_limits_belong_to_kernels():
    names = {name for file in FILES for name, _ in KERNEL.findall(source(file, "float32"))}
    assert set(MOST_REGISTERS) <= names


def test_an_error_names_its_file_and_line():
    code = source("layernorm", "bfloat16").replace("float m = warp_sum(total) / C;", "float m = warp_summe(total) / C;")
    ok, log = nvrtc.compile_text(code, 90)
    lines = pathlib.Path(FOLDER, "layernorm.cu").read_text(encoding="utf-8").splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "float m = warp_sum" in text)
    assert not ok and f"layernorm.cu({line})" in log and "warp_summe" in log


def test_spills_are_found():
    """A kernel with an array that no registers can hold is refused: the log is read right."""
    code = """extern "C" __global__ void hungry(float* x, int n) {
        float kept[300];
        for (int i = 0; i < 300; i++) kept[i] = x[i * n];
        for (int k = 0; k < n; k++) for (int i = 0; i < 300; i++) kept[i] += kept[(i * k) % 300];
        for (int i = 0; i < 300; i++) x[i] = kept[i]; }"""
    ok, log = nvrtc.compile_text(code, 90)
    assert ok and nvrtc.uses(log)["hungry"].stack > 0
