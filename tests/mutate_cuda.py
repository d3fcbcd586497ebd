"""Plants faults in the CUDA kernels, one after the other, and reports those that no test finds.

    python tests/mutate_cuda.py                      every file, some hours
    python tests/mutate_cuda.py layernorm embedding  some files
    python tests/mutate_cuda.py --list layernorm     the faults, without running anything
    python tests/mutate_cuda.py --kinds barrier wait faults whose name has one of these words
    python tests/mutate_cuda.py --every 4 --times /tmp/times.json    every 4th fault; the first run's times are kept

A fault is one change of one line: a barrier or a wait for a copy is left out, a comparison includes its end or excludes
it, an index is one further, a sum becomes a difference, a guard or a factor is missing. First all tests of kernels run
once without a fault: that tells which files each of them uses, and how long it takes. Then, with each fault, the tests
that use its file run, the quickest first, until one fails. Whole trainings are left out, and so are tests that plant
faults themselves: where a line is changed they would fail for want of what they replace. What survives is printed: it
is a gap in the tests, or the change does no harm (another order of the same sums, a longer wait); HARMLESS says why for
those that were looked at.
"""

import argparse
import bisect
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
KERNELS = HERE.parent / "ops" / "kernels" / "cuda"
TESTS = [*HERE.glob("test_cuda_*.py"), HERE / "test_kv_cache_cuda.py"]
LEFT_OUT = [f"test_cuda_{name}.py" for name in ("compile", "faults", "host", "training", "inference")]
CHANGES = [  # (name, pattern, replacement), tried at each match in each line of code
    ("no barrier", r"__syncthreads\(\);", ""),
    ("no barrier of the warp", r"__syncwarp\(\);", ""),
    ("no wait", r"(?:cp_async|wgmma)_wait<\d+>\(\);", ""),
    ("no fence", r"(?:proxy|wgmma)_fence\(\);", ""),
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
    ("no guard", r"\bif \((?!.*constexpr)[^;{}]*\) (?=return\b|continue;)[^;]*;", ""),
    ("no guard", r"(?<=[ (])[\w.]+ < [\w.]+ && ", ""),
    ("- for +", r" \+ (?=[a-zA-Z(])", " - "),
    ("+ for -", r" - (?=[a-zA-Z(])", " + "),
    ("no factor", r" \* (?:\(size_t\))?[a-zA-Z_][\w.]*(?=[\]);,])", ""),
    ("other constant", r"(?<=[*/%] )(2|4|8|16|32|64|256)(?![\w.])", r"(2 * \1)"),
    ("32 bits", r"\(size_t\)", "(int)"),
]
HARMLESS = {  # (file, line of code, change): why
    ("gelu.cu", "return x > end ? end : x;", ">= for >"): "where x is end, either is",
    ("gelu.cu", "x = x < -end ? -end : x;", "<= for <"): "where x is -end, either is",
    ("softmax.cuh", "if (top > largest) {", ">= for >"): "where they are equal the sum is scaled by 1",
    ("attention_hopper_backward.cuh", "if (group > query + QUERIES - 1 + ahead) continue;", "no guard"):
        "all weights of the tile are 0",
    ("attention_hopper_backward.cuh", "if (key > group + 63 + ahead) continue;", "no guard"):
        "all weights of the tile are 0",
    ("embedding.cu", "const float* row = weight + (exists ? id : 0) * (size_t)C;", "32 bits"): "id has 64 bits",
    ("column_sums.cu", "partial[(size_t)blockIdx.y * columns + j] = total;", "32 bits"): "there are 1,056 blocks",
    ("column_sums.cu", "for (int row = warp; row < rows; row += 32) total += x[(size_t)row * stride + j];", "32 bits"):
        "x is what some thousand blocks have left",
    ("row_products.cu", "load_part(x + (size_t)r * I + i, xs);", "32 bits"): "there are 8 rows",
    ("layernorm.cu", "for (int w = 0; w < warps; w++) total += shared[(size_t)w * 2 * C + j];", "32 bits"):
        "shared memory is small",
    ("layernorm.cu", "float* dweight = shared + (size_t)warp * 2 * C;", "32 bits"): "shared memory is small",
    ("embedding.cu", "float* out = dweight + id * (size_t)C + j;", "32 bits"): "id has 64 bits",
    ("row_products.cu", "if (lane == 0 && r < rows) set(out[(size_t)r * O + o], total);", "32 bits"): "8 rows",
    ("kv_cache.cu", "size_t place = ((size_t)head * size + row) * hs + channel;", "32 bits"): "row has 64 bits",
    ("attention_cached.cu", "if (wide) return load(row + column, x);", "no guard"): "the same numbers, read one by one",
    ("attention_cached.cu", "const float* part = partial + (size_t)i * (2 + hs);", "32 bits"): "for 10^8 keys and more",
    ("gelu.cu", "return make_float2(x > END ? x : value * s, s + value * (s * rest) * d2u);", ">= for >"):
        "where x is END, s is 1",
    ("elements.cuh", "if (wide && first + ELEMENTS <= n) return load(p + first, x);", "< for <="):
        "the last numbers are read one by one",
    ("elements.cuh", "if (wide && first + ELEMENTS <= n) return store(p + first, x);", "< for <="):
        "the last numbers are written one by one",
    ("elements.cuh", "if (wide && first + ELEMENTS <= n) return load(p + first, x);", "no guard"):
        "the same numbers, read one by one",
    ("elements.cuh", "if (wide && first + ELEMENTS <= n) return store(p + first, x);", "no guard"):
        "the same numbers, written one by one",
    ("sorted_ids.cu", "if (keys[middle] < key) low = middle + 1;", "<= for <"): "no two keys are equal",
    ("sorted_ids.cu", "if ((low > high) == ((i & k) == 0)) {", ">= for >"): "keys that are equal may change places",
}
DECLARED = re.compile(r"\s*(?:__shared__ |const )*(?:float|double|int|unsigned|long long|T|Slice|Square)\b[^=]*$")


def mutants(name):
    """(line number, line, what the change is called, the changed line) of a file."""
    for number, line in enumerate((KERNELS / name).read_text(encoding="utf-8").splitlines(), 1):
        code = line.split("//")[0]
        if not code.strip() or code.lstrip().startswith(("#", "template", "extern", "static_assert")):
            continue
        for title, pattern, replacement in CHANGES:
            for found in re.finditer(pattern, code):
                changed = code[: found.start()] + found.expand(replacement) + code[found.end() :]
                longer = title == "one more" and found[1].upper() == found[1] and DECLARED.match(code[: found.start()])
                endless = "= for +=" in title and re.search(r"for \([^()]*;[^;()]*$", code[: found.start()])
                known = (name, code.strip(), title) in HARMLESS
                if changed != code and not longer and not endless and not known:
                    yield number, code, title, changed


def once_per_function(name, faults, seed=0):
    """Of each kind of fault one in each function of the file, drawn at random."""
    begins = [number for number, line in enumerate((KERNELS / name).read_text(encoding="utf-8").splitlines(), 1)
              if re.match(r"(template|extern|__device__|struct)\b", line)]  # fmt: skip
    groups = {}
    for fault in faults:
        groups.setdefault((bisect.bisect(begins, fault[0]), fault[2]), []).append(fault)
    draw = random.Random(f"{name} {seed}")
    return sorted(draw.choice(group) for group in groups.values())


class Recorder:
    """A plugin of pytest: what each test uses, and how long it takes."""

    def __init__(self):
        from ops.kernels.cuda import launch

        self.tests, self.used, recorder = {}, set(), self

        class Functions(dict):
            def get(self, key):
                recorder.used.add(key[1] + ".cu")
                return super().get(key)

        launch._functions = Functions()

    def pytest_runtest_setup(self):
        self.used.clear()

    def pytest_runtest_logreport(self, report):
        known = self.tests.setdefault(report.nodeid, {"seconds": 0, "files": []})
        known["seconds"] += report.duration
        known["files"] = sorted({*known["files"], *self.used})


class Quickest:
    """A plugin of pytest: only these tests run, those of float32 first (a file is compiled for each type), and of these
    the quickest."""

    def __init__(self, seconds):
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if i.nodeid in self.seconds), key=self.place)

    def place(self, item):
        return "float16" in item.nodeid, self.seconds[item.nodeid]


def in_a_copy(run, seconds):
    """The exit status of `run` in a copy of this process, which knows all modules already; None after so long."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os._exit(run())
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else status


def run_tests(plugin, *options, names=None):
    import pytest

    files = [str(path) for path in sorted(TESTS) if path.name not in LEFT_OUT and (names is None or path.name in names)]
    os.chdir(HERE.parent)
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *options, *files], plugins=[plugin]))


def measured():
    """{test: {"seconds": s, "files": [names of .cu]}}, from a run of all tests without a fault."""
    with tempfile.NamedTemporaryFile() as file:

        def run():
            recorder = Recorder()
            code = run_tests(recorder)
            pathlib.Path(file.name).write_text(json.dumps(recorder.tests))
            return code

        assert in_a_copy(run, 3600) == 0, "tests fail without a fault"
        return json.loads(pathlib.Path(file.name).read_text())


def parts(name):
    """A file and those that it includes, by name."""
    text = (KERNELS / name).read_text(encoding="utf-8")
    return {name}.union(*map(parts, re.findall(r'^#include "(\w+\.cuh)"', text, re.MULTILINE)))


def survives(name, number, changed, tests, seconds=200):
    """Do all tests that use the file pass with this line changed? None if they took too long: that counts as found."""
    from ops.kernels.cuda import launch

    users = {path.name for path in KERNELS.glob("*.cu") if name in parts(path.name)}
    chosen = {test: known["seconds"] for test, known in tests.items()
              if users & set(known["files"]) and "fault" not in test.partition("[")[0]}  # fmt: skip
    names = {pathlib.Path(test.partition("::")[0]).name for test in chosen}
    assert chosen, f"no test uses {name}"

    def run():
        read = launch._text

        def text_with_fault(wanted):
            lines = read(wanted).splitlines()
            if wanted == name:
                lines[number - 1] = changed
            return "\n".join(lines) + "\n"

        launch._text = text_with_fault
        return run_tests(Quickest(chosen), "-x", names=names)

    status = in_a_copy(run, seconds)
    return None if status is None else status == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="names of files, without .cu or .cuh (default: all)")
    parser.add_argument("--list", action="store_true", help="print the faults, and run nothing")
    parser.add_argument("--every", type=int, default=1, help="plant every Nth fault only (default: 1)")
    parser.add_argument("--once", type=int, help="one fault of each kind per function, drawn with this seed")
    parser.add_argument("--kinds", nargs="*", default=[""], help="plant faults whose name has one of these words")
    parser.add_argument("--times", help="a file for what the first run found: it is read if it exists, else written")
    args = parser.parse_args()
    names = sorted(path.name for path in KERNELS.glob("*.cu*"))
    chosen = [name for name in names if not args.files or name.partition(".")[0] in args.files]
    planted, survivors, tests, begin = 0, [], None, time.monotonic()
    sys.path[:0] = [str(HERE.parent), str(HERE)]
    if not args.list:
        times = pathlib.Path(args.times) if args.times else None
        tests = json.loads(times.read_text()) if times and times.exists() else measured()
        if times:
            times.write_text(json.dumps(tests))
        run_tests(Quickest({}), "--collect-only")
    for name in chosen:
        faults = [fault for fault in mutants(name) if any(word in fault[2] for word in args.kinds)]
        faults = faults if args.once is None else once_per_function(name, faults, args.once)
        for number, code, title, changed in faults[:: args.every]:
            planted += 1
            if args.list:
                print(f"{name}:{number}: {title}: {changed.strip()}")
                continue
            found = survives(name, number, changed, tests)
            if found:
                survivors.append(f"{name}:{number}: {title}\n    {code.strip()}\n    {changed.strip()}")
                print(f"SURVIVES  {survivors[-1]}", flush=True)
            else:
                print(f"found     {name}:{number}: {title}{' (time limit)' if found is None else ''}", flush=True)
    print(f"{planted} faults, {len(survivors)} not found, {time.monotonic() - begin:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
