"""Plants faults in the CUDA kernels, one after the other, and reports those that no test finds.

    python tests/mutate_cuda.py                      every file, about an hour
    python tests/mutate_cuda.py layernorm embedding  some files
    python tests/mutate_cuda.py --list layernorm     the faults, without running anything

A fault is one change of one line: a barrier or a wait for a copy is left out, a comparison includes its end or excludes
it, an index is one further, a sum becomes a difference, a `&&` an `||`. With each of them the tests that use the file
run until one fails. What survives is printed: it is a gap in the tests, or the change does no harm (another order of
the same sums, a longer wait); HARMLESS says why for those that were looked at.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
KERNELS = HERE.parent / "ops" / "kernels" / "cuda"
TESTS = {  # the tests that use a file, besides those whose names contain it
    "common": "layernorm or softmax or cross_entropy", "elements": "gelu or add or cast", "adam": "adam",
    "column_sums": "column or sums or linear or layernorm", "norm": "norm", "sorted_ids": "embedding",
    "row_products": "int8 or linear_bfloat16 or row", "tensor_cores": "attention", "cross_entropy": "cross_entropy",
    "attention_delta": "attention", "attention_cached": "attention or cache", "kv_cache": "cache or graph",
}  # fmt: skip
CHANGES = [  # (what it is called, pattern, replacement), each for every place in every line of code
    ("no barrier", r"__syncthreads\(\);", ""),
    ("no barrier of the warp", r"__syncwarp\(\);", ""),
    ("no wait", r"cp_async_wait<\d+>\(\);", ""),
    ("<= for <", r"(?<![<\w]) < (?!<)", " <= "),
    ("< for <=", r" <= ", " < "),
    (">= for >", r"(?<![>-]) > (?![>=])", " >= "),
    ("one more", r"(?<=\[)([^\[\]]+)(?=\])", r"(\1) + 1"),
    ("no + 1", r" \+ 1(?![\d.])", ""),
    ("no - 1", r" - 1(?![\d.])", ""),
    ("-= for +=", r" \+= ", " -= "),
    ("= for +=", r" \+= ", " = "),
    ("|| for &&", r" && ", " || "),
    ("* 2 for * 1", r" / 2(?!\d)", " / 1"),
    ("min for max", r"\bfmaxf\(", "fminf("),
]
HARMLESS = {}  # (file, line of code, change): why


def mutants(name):
    """(line number, line, what the change is called, the changed line) of a file."""
    for number, line in enumerate((KERNELS / name).read_text(encoding="utf-8").splitlines(), 1):
        code = line.split("//")[0]
        if not code.strip() or code.lstrip().startswith(("#", "template", "extern", "static_assert")):
            continue
        for title, pattern, replacement in CHANGES:
            for found in re.finditer(pattern, code):
                changed = code[: found.start()] + found.expand(replacement) + code[found.end() :]
                if changed != code and (name, code.strip(), title) not in HARMLESS:
                    yield number, code, title, changed


def survives(name, number, changed, seconds=600):
    """Do all tests that use the file pass with this line changed? None if they took too long: that counts as found."""
    stem = name.partition(".")[0]
    selected = TESTS.get(stem, stem.partition("_")[0] if stem.startswith("attention") else stem)
    environment = os.environ | {"TINYGRAD2_MUTANT": f"{name}:{number}:{changed}", "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "mutate_cuda_plugin",
               *map(str, sorted(HERE.glob("test_cuda_*.py"))), "--deselect", "tests/test_cuda_compile.py",
               "-k", f"({selected}) and not compile and not faults"]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    assert done.returncode in (0, 1, 2, 3), done.stdout[-2000:].decode()
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="names of files, without .cu or .cuh (default: all)")
    parser.add_argument("--list", action="store_true", help="print the faults, and run nothing")
    parser.add_argument("--every", type=int, default=1, help="plant every Nth fault only (default: 1)")
    args = parser.parse_args()
    names = sorted(path.name for path in KERNELS.glob("*.cu*"))
    chosen = [name for name in names if not args.files or name.partition(".")[0] in args.files]
    planted, survivors, begin = 0, [], time.monotonic()
    for name in chosen:
        for i, (number, code, title, changed) in enumerate(mutants(name)):
            if i % args.every:
                continue
            planted += 1
            if args.list:
                print(f"{name}:{number}: {title}: {changed.strip()}")
                continue
            found = survives(name, number, changed)
            if found:
                survivors.append(f"{name}:{number}: {title}\n    {code.strip()}\n    {changed.strip()}")
                print(f"SURVIVES  {survivors[-1]}", flush=True)
            else:
                print(f"found     {name}:{number}: {title}{' (time limit)' if found is None else ''}", flush=True)
    print(f"{planted} faults, {len(survivors)} not found, {time.monotonic() - begin:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
