"""Products of warpgroups as the GPU gets them: what the compiler does with the registers of a product that is running.

The emulation (cuda_host.h) runs the C++; between it and the GPU is ptxas, which chooses registers. Two rules are looked
for in what it has written, with NVIDIA's disassembler (CUDA's nvdisasm, or pip install nvidia-cuda-nvdisasm):

- until the wait nobody writes to a register that a product still reads or writes;
- a product's A in registers is what was packed for it. ptxas 13.0 has once given the registers of an A that a loop
  needs again to other values (docs/log.md, 2026-11-27).
"""

import glob
import os
import re
import shutil
import subprocess
import sysconfig

import nvrtc
import pytest

from ops.kernels.cuda.launch import source

IN_WHEEL = os.path.join(sysconfig.get_paths()["purelib"], "nvidia", "*", "bin", "nvdisasm")
DISASSEMBLER = next(iter(glob.glob(IN_WHEEL)), shutil.which("nvdisasm"))
needs_disassembler = pytest.mark.skipif(DISASSEMBLER is None, reason="nvdisasm is missing")
WRITE_NOTHING = set(
    "ST STG STS BAR BRA ISETP FSETP PLOP3 EXIT LDGSTS LDGDEPBAR DEPBAR BSSY BSYNC FENCE MEMBAR NOP WARPSYNC".split()
)
TEMPORARY = 32  # registers of D, (64, 64) by 128 threads


def instructions(text):
    """{kernel: [(operation, [operands])]} of a listing; a kernel's instructions twice, as a loop has them."""
    found = {}
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":")
        lines = [re.sub(r"/\*.*?\*/", "", line).strip(" \t;") for line in body.splitlines()]
        parsed = [re.match(r"(?:@!?U?P\w+ +)?([A-Z][A-Zx0-9_.]*) +(.*)", line) for line in lines]
        found[name] = 2 * [(one[1], [word.strip() for word in one[2].split(",")]) for one in parsed if one]
    return found


def registers(operand, count=1):
    """{88, 89, 90, 91} of "R88" and 4."""
    first = re.match(r"R(\d+)(?!\d|Z)", operand)
    return set(range(int(first[1]), int(first[1]) + count)) if first else set()


def written(operation, operands):
    """The registers that an instruction writes to: those of its first operand."""
    if operation.partition(".")[0] in WRITE_NOTHING or operation.startswith("U"):
        return set()
    wide = ".64" in operation or "WIDE" in operation or operation.startswith("CS2R")
    return registers(operands[0], 4 if ".128" in operation or ".M88.4" in operation else 2 if wide else 1)


def faults(code):
    """Lines: what breaks one of the rules."""
    groups, group, last = [], set(), {}                           # of registers; last: which operation wrote to them
    for operation, operands in code:
        if operation.startswith("HGMMA"):
            a, d = registers(operands[1], 4), registers(operands[0], TEMPORARY)
            for register in sorted(a):
                if not last.get(register, "F2FP").startswith("F2FP"):
                    yield f"R{register} is the A of a product, and was last written by {last[register]}"
                last[register] = "a product's A"
            group |= a | d
            if operands[-1].startswith("gsb"):
                groups, group = [*groups, group], set()
        elif operation == "WARPGROUP.DEPBAR.LE":
            kept = int(operands[1], 16)
            groups = groups[len(groups) - kept :] if kept else []
        else:
            for register in written(operation, operands):
                last[register] = operation
                if register in group.union(*groups):
                    yield f"{operation} writes R{register}, which a product is using"


@nvrtc.needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_registers_of_running_products_are_left_alone(dtype, tmp_path):
    ok, log, cubin = nvrtc.compiled(source("attention_hopper", dtype), "90a")
    assert ok, log
    (tmp_path / "kernels.cubin").write_bytes(cubin)
    command = [DISASSEMBLER, "-c", str(tmp_path / "kernels.cubin")]
    kernels = instructions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(kernels) == 3
    for name, code in kernels.items():
        products = sum(operation.startswith("HGMMA") for operation, _ in code)
        assert products == 2 * {"forward": 8, "dkdv": 16, "dq": 12}[name.rpartition("_")[2]]
        assert list(faults(code)) == [], name


PACK = "F2FP.BF16.F32.PACK_AB R{}, R1, R2 ;\n"
PACKED = "".join(map(PACK.format, range(88, 92)))
PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR12], R24, gsb0 ;\n"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n"
LISTINGS = {
    "right": (PACKED + PRODUCT + WAIT + "FADD R24, R24, R88 ;\n", ""),
    "an A is used twice": (
        PACKED + PRODUCT + WAIT + PRODUCT + WAIT, "R88 is the A of a product, and was last written by a product's A"),
    "an A is something else": (
        PACKED + "IMAD.MOV.U32 R90, RZ, RZ, R4 ;\n" + PRODUCT + WAIT, "R90 is the A of a product, and .* by IMAD.MOV"),
    "D is written": (PACKED + PRODUCT + "FMUL R55, R55, R3 ;\n" + WAIT, "FMUL writes R55"),
    "A is written": (PACKED + PRODUCT + "@!P0 LDS.64 R90, [R3] ;\n" + WAIT, "LDS.64 writes R90"),
    "a store only reads": (PACKED + PRODUCT + "STG.E R24, R88 ;\n" + WAIT, ""),
    "all but one group": (PACKED + PRODUCT + WAIT.replace("0x0", "0x1") + "MOV R24, R1 ;\n" + WAIT, "MOV writes R24"),
}  # fmt: skip


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_listing_that_breaks_a_rule_is_found(listing):
    text, expected = LISTINGS[listing]
    lines = "\n".join(f"        /*{16 * i:04x}*/    {line}" for i, line in enumerate(text.splitlines()))
    (code,) = instructions(f".text.kernel:\n{lines}\n").values()
    found = list(faults(code))
    assert bool(found) == bool(expected) and re.search(expected, "\n".join(found))
