"""One part of benchmarks.gpu, in its own process: python -m benchmarks.gpu_parts REQUEST_JSON.

A part is a generator of rows; each is written to the file of the request as soon as it is there.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from benchmarks.gpu import Clock
from benchmarks.gpu_settings import config_of, model_flags
from benchmarks.gpu_sides import Sides
from benchmarks.harness import ROOT, installed

RESTARTS, MOST_ERRORS = 12, 50  # of the tests: processes, rows


def run_python(clock, *arguments, quiet=None):
    """Run `python ARGUMENTS...`: (exit code, or None where it was ended; its output; seconds).

    It is ended when the clock is, or when it has printed nothing for `quiet` seconds.
    """
    start = changed = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=output,
                                   stderr=subprocess.STDOUT)  # fmt: skip
        size = 0
        while process.poll() is None:
            now, before, size = time.monotonic(), size, os.fstat(output.fileno()).st_size
            changed = now if size > before else changed
            if clock.left() < 0 or (quiet and now - changed > quiet):
                process.kill()
                process.wait()
                code = None
                break
            time.sleep(0.05)
        else:
            code = process.returncode
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    return code, text, round(time.monotonic() - start, 1)


def error_of(code, output, seconds):
    """Why a program that was run has failed, one line."""
    return f"ended after {seconds} s; last line: {last_line(output)}"[:300] if code is None else last_line(output)


def last_line(output):
    return next((line.strip()[:300] for line in reversed(output.splitlines()) if line.strip()), "")


# -- tests, doctor -----------------------------------------------------------------------------------------------------


def tests(args, clock):
    """A row with the numbers of passed and failed tests, and one for each that failed.

    Where a test hangs, or leaves a GPU on which nothing works any more, the others go on in another process.
    """
    done, errors, start = {}, [], time.monotonic()
    for _ in range(RESTARTS):
        report = os.path.join(args.folder, f"tests-{len(done)}.xml")
        skip = [f"--deselect={id}" for name in done for id in {name, os.path.basename(name)}]   # from the root, or not
        code, output, _ = run_python(clock, "-m", "pytest", "-vv", "-p", "no:cacheprovider", f"--junitxml={report}",
                                     *skip, *args.tests.split(","), quiet=args.quiet)  # fmt: skip
        new, broken_off = read_progress(output)
        done |= new
        if os.path.exists(report):
            errors += read_junit(report)
        if code is None and clock.left() < 0:
            errors.append(f"the time was up: {len(done)} tests had been run, then {broken_off}")
            break
        if code in (0, 1, 5):                                     # 5: there were none
            break
        errors.append(f"{broken_off.partition('::')[2]}: {'no end' if code is None else last_line(output)}")
        if broken_off:
            done[broken_off] = "FAILED"
        elif not new:                                             # it did not even begin
            break
    counts = {kind: list(done.values()).count(kind) for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    failed = counts["FAILED"] + counts["ERROR"]
    print("\n".join(errors))
    yield dict(part="tests", exit_code=code, seconds=round(time.monotonic() - start, 1), passed=counts["PASSED"],
               failed=failed, skipped=counts["SKIPPED"], errors=" | ".join(errors[:5])[:2000])  # fmt: skip
    for error in errors[:MOST_ERRORS]:
        yield dict(part="tests", test=error.partition(": ")[0], errors=error.partition(": ")[2])


def read_progress(output):
    """({name of a test: "PASSED", "FAILED", ...}, the test that had begun and not ended, or "") of pytest -v."""
    done, begun = {}, ""
    for line in output.splitlines():
        found = re.match(r"(\S+\.py::.*?)(?: (PASSED|FAILED|ERROR|SKIPPED)\b.*)?$", line.rstrip())
        if found and found[2]:
            done[found[1]], begun = found[2], ""
        elif found:
            begun = found[1]
    return done, begun


def read_junit(path):
    """A line for each test that failed, of a JUnit file of pytest."""
    errors = []
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        problems = [child for child in case if child.tag in ("failure", "error")]
        errors += [f"{case.get('name')}: {' '.join((p.get('message') or '').split())[:300]}" for p in problems[:1]]
    return errors


def doctor(args, clock):
    code, output, seconds = run_python(clock, "-m", "tinygrad2", "doctor")
    print(output)
    for line in output.splitlines():
        if line.split()[1:2] and line.split()[1].startswith("gpu"):
            yield dict(part="doctor", exit_code=code, seconds=seconds, answer=" ".join(line.split()))


def limits(args, clock):
    """FLOP/s and bytes/s that no kernel can exceed; kept for the parts that follow."""
    sides = Sides("benchmarks.gpu_side", "limits", dict(tiny=args.tiny))
    answer = sides.ask("limits")
    sides.close()
    if "error" in answer:
        yield dict(part="limits", errors=answer["error"])
        return
    with open(os.path.join(args.folder, "limits.json"), "w", encoding="utf-8") as file:
        json.dump(answer["limits"], file)
    peaks = dict(answer["limits"])
    bandwidth = peaks.pop("bandwidth")
    yield dict(part="limits", side=answer["library"], bandwidth_gb_s=round(bandwidth / 1e9),
               **{f"{name}_tflops": round(value / 1e12, 1) for name, value in peaks.items()})  # fmt: skip


# -- demo, decode, trace -----------------------------------------------------------------------------------------------


def demo(args, clock):
    """The demo's training on each device and in each dtype: seconds, milliseconds a step, losses; then a text.

    The CPU trains while the GPU does: it would take most of the time.
    """
    losses, names = {}, args.demo.split(",")
    with ThreadPoolExecutor() as pool:
        cpu = pool.submit(train_demo, "cpu", args, clock) if "cpu" in names else None
        on_gpu = [name for name in names if name != "cpu"]
        for i, name in enumerate(on_gpu):                         # none takes the time of the others
            row, losses[name] = train_demo(name, args, Clock(clock.left() / (len(on_gpu) - i)))
            yield row
        weights = os.path.join(args.folder, "cuda.bin")
        if os.path.exists(weights):
            yield from inference(args, clock, weights)
        if cpu:
            row, reference = cpu.result()
            yield row
            for name, curve in losses.items():
                if curve and reference:
                    device, _, dtype = name.partition("-")
                    yield dict(part="demo", device=device, dtype=dtype or "float32", steps=len(curve),
                               losses_apart=apart(curve, reference),
                               first_50_apart=apart(curve[:50], reference[:50]))  # fmt: skip


def train_demo(name, args, clock):
    """(row, losses) of the training on a device in a dtype, "cuda-bfloat16"."""
    from tinygrad2.monitor.metrics import read_metrics

    device, _, dtype = name.partition("-")
    metrics, weights = (os.path.join(args.folder, f"{name}.{kind}") for kind in ("jsonl", "bin"))
    tiny = [*model_flags(args), "--batch-size", "4", "--sample-every", "0"] if args.tiny else []
    code, output, seconds = run_python(
        clock, "train_gpt2.py", "--seed", 1337, "--steps", args.steps, "--device", device, "--dtype",
        dtype or "float32", "--run-dir", os.path.join(args.folder, name), "--metrics", metrics, "--weights-out",
        weights, *tiny,
    )  # fmt: skip
    row, curves = dict(part="demo", device=device, dtype=dtype or "float32", exit_code=code, seconds=seconds), {}
    if code != 0:
        print(output[-4000:])
        row["errors"] = error_of(code, output, seconds)
    if os.path.exists(metrics):
        curves = {name: values for name, (_, values) in read_metrics(metrics).items()}
        row.update(steps=len(curves["loss"]), loss=round(curves["loss"][-1], 4),
                   median_ms=round(statistics.median(curves["ms"]), 2))  # fmt: skip
        if "val_loss" in curves:
            row["val_loss"] = round(curves["val_loss"][-1], 4)
    return row, curves.get("loss")


def apart(these, those):
    """The largest difference of two lists, to two digits."""
    return float(f"{max((abs(a - b) for a, b in zip(these, those)), default=0):.2g}")


def inference(args, clock, weights):
    """A greedy text by the trained model on both devices: milliseconds a token, and is it the same text?"""
    code, output, seconds = run_python(clock, "inference.py", "--weights", weights, "--device", "cuda")
    print(output)
    yield dict(part="inference", device="cuda", exit_code=code, seconds=seconds,
               errors=error_of(code, output, seconds) if code != 0 else "")  # fmt: skip
    texts, sides = {}, Sides("benchmarks.gpu_side", "text", {})
    for device in ("cuda", "cpu"):
        answer = sides.ask(device, weights=weights, device=device, tokens=args.tokens)
        row = dict(part="inference", device=device, errors=answer.get("error", ""))
        if "ids" in answer:
            texts[device] = answer["ids"]
            row.update(tokens=len(answer["ids"]), min_ms=round(min(answer["ms"]), 2),
                       median_ms=round(statistics.median(answer["ms"]), 2))  # fmt: skip
        if len(texts) == 2:
            row["same_text"] = texts["cuda"] == texts["cpu"]
        yield row
    sides.close()


def decode(args, clock):
    """A text of one prompt by a 124M model with random weights, which do not change the time: ours against theirs."""
    names = ["ours-bfloat16", "ours"]
    if installed("transformers") and installed("torch"):
        names = ["ours-bfloat16", "transformers-bfloat16", "ours", "transformers"]
    else:
        yield dict(part="decode", errors="transformers is not installed: nothing to compare with")
    sides = Sides("benchmarks.gpu_side", "decode", config_of(args))
    ms, prefill = {}, {}
    for turn in range(-1, args.turns):                            # turn -1 warms up
        for name in list(names):
            if turn > 0 and clock.left() < 0:
                break
            answer = sides.ask(name, prompt=8 if args.tiny else 64, tokens=args.tokens)
            if "error" in answer:
                yield dict(part="decode", side=name, errors=answer["error"])
                names.remove(name)
            elif turn >= 0:
                ms.setdefault(name, []).append(answer["ms"])
                prefill.setdefault(name, []).append(answer["prefill_ms"])
    sides.close()
    for name, turns in ms.items():
        median = statistics.median(sum(turns, []))
        row = dict(part="decode", side=name, tokens=args.tokens, batch_size=1, min_ms=round(min(sum(turns, [])), 3),
                   median_ms=round(median, 3), tokens_per_s=round(1e3 / median),
                   prefill_ms=round(statistics.median(prefill[name]), 2))  # fmt: skip
        theirs = ms.get(name.replace("ours", "transformers"))
        if theirs and name.startswith("ours"):
            row["transformers_over_ours"] = round(statistics.median(sum(theirs, [])) / median, 3)
        yield row


def trace(args, clock):
    """A profile of a few steps; the trace is left in the folder of the results."""
    path = os.path.join(args.results, "gpu_trace.json")
    os.makedirs(args.results, exist_ok=True)
    code, output, seconds = run_python(
        clock, "-m", "tinygrad2", "profile", "--json", "--trace", path, "--measure", 1 if args.tiny else 5,
        *model_flags(args), "--batch-size", 4 if args.tiny else 16, "--device", "cuda", "--dtype", "bfloat16",
    )  # fmt: skip
    if code != 0:
        print(output[-4000:])
        yield dict(part="trace", exit_code=code, seconds=seconds, errors=error_of(code, output, seconds))
        return
    result = json.loads(last_line_of_json(output))
    for row in result["rows"][:12]:
        yield dict(part="trace", kernel=f"{row['name']} {row['phase']}".strip(), calls=round(row["calls"]),
                   median_ms=round(row["ms"], 3), share=round(row["share"], 3))  # fmt: skip
    yield dict(part="trace", exit_code=code, seconds=seconds, median_ms=round(result["step_ms"], 2), batch_size=16)


def last_line_of_json(output):
    return next(line for line in reversed(output.splitlines()) if line.startswith("{"))


def main():
    from benchmarks import gpu_kernels, gpu_steps

    args = SimpleNamespace(**json.loads(sys.argv[1]))
    parts = dict(tests=tests, doctor=doctor, limits=limits, demo=demo, steps=gpu_steps.steps, losses=gpu_steps.losses,
                 kernels=gpu_kernels.kernels, decode=decode, trace=trace)  # fmt: skip
    rows = open(args.rows, "a", encoding="utf-8")

    def write(row):
        rows.write(json.dumps(row) + "\n")
        rows.flush()

    try:
        for row in parts[args.part](args, Clock(args.seconds)):
            write(row)
    except Exception as error:
        traceback.print_exc()
        write(dict(part=args.part, errors=f"{type(error).__name__}: {error}"[:300]))
        sys.exit(1)


if __name__ == "__main__":
    main()
