"""The benchmarks run and print what they should; their figures are not judged here."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
import strict_cupy
from cuda_host import needs_compiler

from benchmarks import gpu, gpu_kernels, gpu_side, gpu_steps, harness, train_side
from models.config import GPTConfig
from tinygrad2.cli import call
from tinygrad2.dispatch import kernels
from tinygrad2.errors import UserError
from tinygrad2.system import processor

pytest.importorskip("numba", reason="Numba is not installed: there are no kernels to time")

ROOT = pathlib.Path(__file__).parents[1]


def run(module, flags):
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags.split()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_train_compares_the_losses_and_prints_a_ratio():
    out = run("train", "--model demo --batch-size 2 --seq-len 16 --against reference --turns 2 --steps 1 --warmup 1")
    assert "GFLOP/s in matrix products" in out and "GB/s memory bandwidth" in out
    ours, reference = (line for line in out.splitlines() if line.startswith(("ours ", "reference ")))
    assert "x1.00 (1.00 .. 1.00)" in ours and " MB " in ours and "% of peak" in ours
    assert float(reference.split()[-1]) < 1e-4  # the losses


@pytest.mark.slow
def test_ops_times_references_and_kernels():
    out = run("ops", "--only layernorm,linear --turns 1 --seconds 0.01")
    lines = [line for line in out.splitlines() if line.startswith(("layernorm", "linear"))]
    assert len(lines) == 4
    assert all("GB/s" in line for line in lines[:2]) and all("GFLOP/s" in line for line in lines[2:])


@pytest.mark.slow
def test_the_ladder_of_products(tmp_path):
    picture = tmp_path / "roofline.png"
    drawn = importlib.util.find_spec("matplotlib") is not None
    out = run("ops", "gemm --ladder --turns 1 --seconds 0.01" + (f" --picture {picture}" if drawn else ""))
    rungs = [line.split()[0] for line in out.splitlines() if line.endswith(("e-07", "e-03"))]
    assert rungs[:4] == ["three_loops", "blocked", "packed", "vector"]
    assert "vector peak" in out and "L1 cache" in out
    assert not drawn or picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_decode_times_float32_and_int8():
    out = run("decode", "--model demo --prompt-len 4 --new-tokens 4 --turns 1 --against=")
    assert "\nours  " in out and "\nours-int8  " in out and "\nours-bfloat16  " in out and "ms a token" in out


def test_decode_measures_what_int8_costs(tmp_path):
    from models import GPT, GPTConfig
    from tinygrad2.io.weights import save_weights
    from tinygrad2.tokenizers.tokenizer import Tokenizer

    text = "the cat sat on the mat. the dog sat on the cat. " * 20
    (tmp_path / "text.txt").write_text(text)
    tokenizer = Tokenizer.train(text, 270)
    model = GPT(GPTConfig(block_size=16, vocab_size=270, n_layer=2, n_head=2, n_embd=32), seed=0)
    weights = tmp_path / "w.bin"
    save_weights(weights, model.state_dict(), model.config.to_dict(), tokenizer.to_json(), {})
    out = run("decode", f"--perplexity {weights} {tmp_path / 'text.txt'}").splitlines()
    float32, bfloat16, int8 = (float(line.split()[4]) for line in out)
    assert [line.split()[0] for line in out] == ["float32", "bfloat16", "int8"]
    assert 200 < float32 < 350 and abs(int8 / float32 - 1) < 0.01  # untrained: about the vocabulary
    assert abs(bfloat16 / float32 - 1) < 0.01


def test_an_unknown_side_is_refused():
    command = [sys.executable, "-m", "benchmarks.train", "--against", "jax"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2 and "unknown side(s) jax" in result.stderr


def test_gpu_without_a_gpu_is_one_line(tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('planted')")
    result = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True,
                            timeout=600, env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert result.returncode == 2 and re.fullmatch(r"benchmarks\.gpu: device 'cuda' needs CuPy: .*\n", result.stderr)
    assert result.stdout == ""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Programs that are started find the stand-in for CuPy."""
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text(
        "import sys\n"
        "from strict_cupy import cupy\n"
        "for module in (cupy, cupy.cuda, cupy.linalg, cupy.random): sys.modules[module.__name__] = module\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT / "tests"), str(ROOT)]))


def gpu_part(part, tmp_path, seconds=100, **more):
    """The rows of a part of benchmarks.gpu at tiny sizes."""
    args = gpu.parse(["--tiny", "--results", str(tmp_path)])
    vars(args).update(more)
    return gpu.run_part(part, args, seconds, str(tmp_path))


@pytest.mark.long  # where a checkout lies in the temporary folder, pytest gives files there other names
def test_gpu_tests_go_on_behind_one_that_hangs_and_one_that_crashes(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import os, pytest, time\n"
        "@pytest.mark.parametrize('n', range(6))\n"
        "def test_it(n):\n"
        "    if n == 1: time.sleep(1000)\n"
        "    if n == 2: os._exit(3)\n"
        "    if n == 3: pytest.skip('no')\n"
        "    assert n != 5, 'this is five'\n"
    )
    rows = gpu_part("tests", tmp_path, tests=str(tmp_path / "test_it.py"), quiet=4)
    assert {key: rows[0][key] for key in ("passed", "failed", "skipped")} == dict(passed=2, failed=3, skipped=1)
    assert [row["test"] for row in rows[1:]] == ["test_it[1]", "test_it[2]", "test_it[5]"]
    assert rows[1]["errors"] == "no end" and "this is five" in rows[3]["errors"]


@pytest.mark.long  # the same
def test_gpu_tests_go_on_behind_one_after_which_nothing_works(tmp_path, stand_in):
    (tmp_path / "test_it.py").write_text(
        "import cupy, pytest\n"
        "from gpu_works import a_gpu_that_works\n"
        "def fail(): raise RuntimeError('cudaErrorIllegalAddress')\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_it(n):\n"
        "    if n in (1, 2): cupy.cuda.runtime.deviceSynchronize = fail\n"
        "    assert n != 2\n"
    )
    rows = gpu_part("tests", tmp_path, tests=str(tmp_path / "test_it.py"))
    assert (rows[0]["passed"], rows[0]["failed"]) == (3, 1)
    errors = [row["errors"] for row in rows[1:]]
    assert len(errors) == 3 and "assert 2 != 2" in errors[1]
    assert "after test_it[1] nothing works on this GPU any more: cudaErrorIllegalAddress" in errors[0]


@pytest.mark.parametrize("cut, says", [(True, "no end within 8 s"), (False, "the time was up: 0 tests had been run")])
def test_gpu_ends_a_part_that_hangs_and_keeps_its_rows(tmp_path, monkeypatch, cut, says):
    """By its own clock, or where that does not help by the one of the program that has started it."""
    (tmp_path / "test_it.py").write_text("import time\ndef test_it(): time.sleep(1000)\n")
    half = '{"part": "tes' if cut else ""
    (tmp_path / "tests.rows").write_text('{"part": "tests", "passed": 7}\n' + half)
    monkeypatch.setattr(gpu, "OWN_SHARE", 100 if cut else 0.5)
    start = time.monotonic()
    rows = gpu_part("tests", tmp_path, seconds=8, tests=str(tmp_path / "test_it.py"), quiet=1000)
    assert time.monotonic() - start < 30
    assert rows[0] == dict(part="tests", passed=7) and says in rows[1]["errors"]


def test_gpu_shares_its_time_and_leaves_what_is_over_to_later_parts():
    wanted = list(gpu.PARTS)
    seconds = [gpu.limit_of(part, wanted, 1500) for part in wanted]
    assert sum(gpu.PARTS.values()) == pytest.approx(1) and seconds[0] == pytest.approx(330)
    assert gpu.limit_of("kernels", wanted, 100) == pytest.approx(100 * 0.16 / 0.26)
    assert gpu.limit_of("trace", wanted, 1000) == 120 and gpu.limit_of("doctor", wanted, 60) == gpu.LEAST


def test_gpu_quick_gives_way_to_flags():
    quick = gpu.parse(["--quick", "--turns", "1", "--parts", "steps"])
    assert (quick.minutes, quick.batch_sizes, quick.turns, quick.parts) == (5, "16", 1, "steps")
    assert gpu.parse([]).batch_sizes == "64,16,4"


@pytest.mark.parametrize("flag, value, message", [
    ("--parts", "steps,dance", "--parts: unknown: dance; available: tests, "),
    ("--kernels", "", "--kernels: unknown: ''; available: attention, "),
    ("--demo", "tpu", "--demo: unknown: tpu; available: cuda, "),
    ("--against", "jax", "--against: unknown: jax; available: torch, torch-compile$"),
    ("--minutes", "nan", "--minutes must be above 0, and below 1e6, not nan"),
    ("--turns", "0", "--turns must be at least 1, not 0"),
    ("--batch-sizes", "16,x", "--batch-sizes must be numbers such as 64,16,4, not '16,x'"),
    ("--model", "gpt5", "argument --model: invalid choice"),
])  # fmt: skip
def test_values_that_a_visit_to_a_gpu_would_stumble_over_are_refused_first(flag, value, message):
    with pytest.raises(UserError, match=message):
        gpu.parse([flag, value])
    assert gpu.parse(["--against", ""]).against == ""


def test_gpu_help_is_no_failure(capsys):
    assert call(lambda: gpu.main(["--help"])) == 0
    assert "--quick" in capsys.readouterr().out


def test_gpu_results_of_another_machine_are_added(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    harness.save("gpu", [dict(part="limits", bandwidth_gb_s=7)], str(there))
    harness.save("gpu", [dict(part="doctor", answer="ok")], str(here))
    gpu.main(["--merge", str(there), "--results", str(here)])
    assert [run["rows"][0]["part"] for run in json.loads((here / "gpu.json").read_text())] == ["doctor", "limits"]
    assert len((here / "gpu.csv").read_text().splitlines()) == 3


def test_steps_of_the_gpu_side_equal_those_of_the_cpu(monkeypatch):
    """On the stand-in for CuPy: the Trainer of train_gpt2.py, and the step that the CPU's benchmarks take."""
    strict_cupy.install(monkeypatch)
    monkeypatch.setattr("tinygrad2.dispatch._default", "auto")    # which our_trainer changes
    model = GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=16).to_dict()
    config = dict(model=model, batch_size=2, seq_len=8, seed=1, recompute=False)
    batches = [train_side.tokens(config, i) for i in range(4)]
    with kernels("reference"):
        step = train_side.our_trainer(config, "reference")
        expected = [step(x, y) for x, y in batches]
        run, _ = gpu_side.our_steps("ours", config | {"kernels": "reference"})
        assert run(batches[:1]) + run(batches[1:]) == pytest.approx(expected, rel=1e-6)


def test_gpu_rows_say_where_gelu_is_computed():
    choices = {"GELU forward: (64, 8) by (8, 32), float32 highest": "fused", "out (64, 8) ...": 128 * "0",
               "GELU backward: (64, 8) by (8, 32), float32 highest": "separate",
               "GELU forward: (6, 8) by (8, 32), float32 highest": "separate"}  # fmt: skip
    assert gpu_side.gelu_of(choices, 64) == "forward fused, backward separate"
    assert gpu_side.gelu_of({}, 64) == ""


def test_gpu_rows_compare_sides_with_the_same_products():
    ms = {"ours-tf32": [[5.0, 5.0]], "torch-tf32": [[4.0, 6.0]]}
    losses = {"ours-tf32": [1.0, 2.0], "torch-tf32": [1.0, 2.5]}
    peaks = dict(float32=50e12, tf32=400e12, bfloat16=800e12, bandwidth=4e12)
    memory = dict.fromkeys(ms, (7e9, None))
    row = gpu_steps.step_row("torch-tf32", 4, 8, ms, losses, memory, flops=1e12, peaks=peaks)
    assert (row["median_ms"], row["min_ms"], row["torch_over_ours"], row["losses_apart"]) == (5.0, 4.0, 1.0, 0.5)
    assert (row["tokens_per_s"], row["peak_memory_mb"], row["share_of_tf32_peak"]) == (6400, 7000, 0.5)
    assert not {"share_of_float32_peak", "process_memory_mb"} & set(row)


def test_gpu_kernels_are_compared_with_the_bytes_and_products_they_need():
    cases = gpu_kernels.cases(B=2, T=8, C=4, heads=2, V=16, parameters=100)
    assert set(cases) == set(gpu_kernels.ORDER)
    N, C = 16, 4
    assert cases["layernorm"].moved("forward", "float32") == 4 * (2 * N * C + 2 * C)
    assert cases["layernorm"].moved("forward", "bfloat16") == 4 * (N * C + 2 * C) + 2 * N * C
    assert cases["add_layernorm"].moved("backward", "float16") == (4 + 2 + 4 + 4) * N * C + 3 * 4 * C
    assert cases["gelu"].moved("backward", "bfloat16") == 3 * 2 * N * 4 * C
    assert [cases["adam"].moved("forward", products) for products in ("float32", "bfloat16")] == [2800, 3000]
    assert cases["embedding"].moved("backward", "tf32") == 8 * N + 4 * N * C + 4 * 16 * C
    assert cases["linear_fc"].flops == (2 * N * C * 4 * C, 4 * N * C * 4 * C)
    assert cases["softmax"].moved("backward", "float16") == 3 * 2 * N * 8
    assert cases["maximum"].moved("backward", "bfloat16") == 5 * 4 * N * C
    assert cases["add"].moved("forward", "bfloat16") == (4 + 2 + 4) * N * C
    same = {name for name, case in cases.items() if case.is_float32()}
    assert same == {"dropout", "embedding", "grad_norm", "mul", "maximum", "exp", "tanh"}
    assert cases["attention"].flops[0] == 2 * (2 * 2 * 8 * 8 * 2 * 2) / 2   # q k^T and P v of 2 x 2 heads, half of them
    row = gpu_kernels.speed(cases["gelu"], 0, "forward", "bfloat16", 0.001, dict(bandwidth=1e9))
    assert row == dict(gb_s=round(4 * N * 4 * C / 1e3, 1), share_of_limit=round(4 * N * 4 * C / 1e-6 / 1e9, 3))


def test_gpu_losses_of_two_sides():
    row = gpu_steps.losses_row([2.0, 1.5, 1.0], [2.0, 1.0, 1.0])
    assert row == dict(first_loss=2.0, loss=1.0, losses_apart=0.5, last_50_apart=0.17)


PARTS = {  # part -> arguments, and what each row must have
    "tests": (dict(tests="tests/test_gpu.py::test_rounding_to_16_bits_is_that_of_the_host"), {"passed"}),
    "limits": ({}, {"bandwidth_gb_s", "bfloat16_tflops"}),
    "doctor": ({}, {"answer"}),
    "demo": (dict(steps=2, tokens=4), set()),
    "steps": (dict(batch_sizes="2", against="torch", turns=2, timed=1, products="tf32,float16"),
              {"median_ms", "torch_over_ours"}),
    "losses": ({}, {"losses_apart"}),
    "kernels": (dict(products="bfloat16,tf32,float16"), {"median_ms", "gb_s"}),
    "decode": (dict(turns=2, tokens=4), {"median_ms"}),
    "trace": ({}, {"median_ms"}),
}


LONG_PARTS = ("demo", "losses", "kernels", "decode")  # a minute each
MARKED = [pytest.param(part, marks=[pytest.mark.long] * (part in LONG_PARTS)) for part in PARTS]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("part", MARKED)
def test_every_part_of_gpu_runs_on_the_stand_in(part, stand_in, tmp_path):
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")
    arguments, columns = PARTS[part]
    rows = gpu_part(part, tmp_path, 600, **arguments)
    errors = [row for row in rows if row.get("errors") and "No viable backend" not in row["errors"]]
    assert rows and errors == []
    memory = [row for row in rows if row["part"] == "memory"]
    assert all(columns <= set(row) or row.get("errors") or row in memory for row in rows)
    assert all(row["bound_mb"] <= row["arena_mb"] and row["plan_mb"] > 0 for row in memory)
    assert bool(memory) == (part == "steps")
    if part == "trace":
        assert json.loads((tmp_path / "gpu_trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize("name", ["train", "ops", "decode", "tokenizer", "gpu"])
def test_committed_rows_have_machine_and_versions(name):
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    runs = json.loads(path.read_text())
    assert runs and all({"date", "cpu", "load", "versions", "rows"} <= set(run) and run["rows"] for run in runs)
    table = path.with_suffix(".csv").read_text().splitlines()
    assert len(table) == 1 + sum(len(run["rows"]) for run in runs)


@pytest.mark.parametrize("about, expected", [
    ("model name: AMD EPYC\nvendor_id: AuthenticAMD\ncpu family: 25\nflags: avx2 fma", "AMD EPYC (Zen 3; AVX2), "),
    ("model name: AMD EPYC\nvendor_id: AuthenticAMD\ncpu family: 25\nflags: avx2 avx512f avx512_bf16",
     "AMD EPYC (Zen 4; AVX512-BF16, AVX-512, AVX2), "),
    ("model name: Xeon\nvendor_id: GenuineIntel\ncpu family: 6\nflags: avx2 avx512f amx_bf16",
     "Xeon (AMX, AVX-512, AVX2), "),
    ("processor: 0\nFeatures: fp asimd", "(NEON), "),
])  # fmt: skip
def test_a_processor_is_named_with_its_generation_and_units(about, expected, monkeypatch):
    fields = dict(line.split(": ") for line in about.splitlines())
    monkeypatch.setattr(processor, "_about", lambda: fields)
    assert expected in processor.cpu_name()
