"""python -m tinygrad2 ...: each command as its user meets it, good input and bad."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from marks import slow_but
from test_train import ROOT, SMALL, TEXT, python, train

from tinygrad2.commands import COMMANDS
from tinygrad2.distributed.mpirun import have_mpi
from tinygrad2.errors import UserError
from tinygrad2.monitor import reference_curves
from tinygrad2.monitor.metrics import read_metrics
from tinygrad2.monitor.outliers import WINDOW, Outliers


def command(*arguments, cwd=ROOT, **environment):
    environment.setdefault("PYTHONPATH", str(ROOT))
    return python("-m", "tinygrad2", *arguments, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with text.txt and a run of 30 steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    assert train(folder, "--steps 30 --eval-every 10").returncode == 0
    return folder


EXPLAIN = """
from tinygrad2.__main__ import main
from tinygrad2.commands import COMMANDS
for name in COMMANDS:
    print(name, main([name, "--help"]), "NEXT")
"""


def test_the_commands_are_listed_and_each_explains_itself():
    listed = command()
    assert listed.returncode == 0 and all(name in listed.stdout for name in COMMANDS)
    helped = python("-c", EXPLAIN, cwd=ROOT, PYTHONPATH=str(ROOT))  # in one process: each would import everything
    assert helped.returncode == 0, helped.stderr
    for name, text in zip(COMMANDS, helped.stdout.split(" NEXT\n")[:-1], strict=True):
        assert text.endswith(f"\n{name} 0") and len(text) > 100, text
    unknown = command("dance")
    assert unknown.returncode == 2 and "no command 'dance'; choose one of: doctor, launch" in unknown.stderr


@pytest.mark.parametrize(
    "words, says",
    [
        ("plan --colour red", "unrecognized arguments: --colour red"),
        ("verify dance", "there is no property 'dance'; choose among: resume, accum"),
        ("verify --resume", "--resume: a verification starts its own trainings"),
        ("verify accum --data nowhere", "nowhere: cannot be read"),
        ("plot nowhere", "nowhere: cannot be read"),
        ("plot", "the following arguments are required: RUN"),
        ("plot run --smooth 0", "--smooth must be at least 1"),
        ("plot run --out no/where", "the folder"),
        ("compare nowhere", "nowhere/config.json: cannot be read"),
        ("compare run", "cannot be compared with the curves of demo: steps: 1000 in the reference, 30 here; "),
        ("compare run --preset dance", "no reference curves of 'dance'; choose one of: "),
        ("replay run", "run/dump.json: cannot be read"),
        ("doctor --dance", "unrecognized arguments: --dance"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(run, words, says):
    result = command(*words.split(), cwd=run)
    assert result.returncode == 2 and says in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


# -- verify ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_passes_on_a_sound_program(run):
    result = command("verify", *SMALL.split(), "--data", "text.txt", "--dropout", "0.1", cwd=run)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    ranks = ["ranks", "PASS"] if have_mpi() else ["ranks", "not"]
    passed = [[name, "PASS"] for name in ("resume", "accum", "determinism", "kernels", "gradients", "kvcache",
                                                 "precision")]  # fmt: skip
    assert [line.split()[:2] for line in lines] == [*passed[:3], ranks, *passed[3:]]
    assert "max difference 0 (none allowed): 12 steps, one training killed after step 7 and resumed" in lines[0]
    assert "with 1, 2, 4, 8 micro-batches, dropout 0.1, clipped at 0.5 in 12 of them" in lines[1]


def test_verify_kvcache_sees_a_position_that_is_off(run, monkeypatch, capsys):
    from models.kv_cache import KVCache
    from tinygrad2.commands import verify

    flags = ["kvcache", *SMALL.split(), "--data", str(run / "text.txt")]
    assert verify.main(flags) == 0
    right = KVCache.positions
    monkeypatch.setattr(KVCache, "positions", lambda self, B, T: np.maximum(right(self, B, T) - (self.position > 0), 0))
    assert verify.main(flags) == 1
    assert "kvcache      FAIL  max difference" in capsys.readouterr().out


@pytest.mark.parametrize("flags", ["", "--matmul-precision high", "--matmul-precision medium --kernels reference",
                                   "--init-from trained_weights.bin --dropout 0.1", "--dtype bfloat16"])  # fmt: skip
def test_verify_precision_passes_and_explains_the_loss(run, monkeypatch, capsys, flags):
    """The shares of all ops are the error of the loss: what float64 does not explain would be missing."""
    from tinygrad2.commands import verify

    monkeypatch.chdir(run)
    shape = "" if "init-from" in flags else SMALL
    assert verify.main(["precision", *shape.split(), "--data", "text.txt", *flags.split()]) == 0
    out = capsys.readouterr().out
    found = re.search(r"error of the loss: (\S+); the shares of all ops add up to (\S+)", out)
    error, shares = map(float, found.groups())
    assert abs(error - shares) < 0.2 * abs(error) + 5e-7, out
    rows = [re.findall(r" \d\.\de[+-]\d\d", line) for line in out.splitlines() if " in h." in line]
    worst = [max(map(float, row[:2])) for row in rows]
    assert len(worst) >= 5 and worst == sorted(worst, reverse=True)


def test_verify_precision_fails_for_an_op_that_is_wrong(run, monkeypatch, capsys):
    """It is named, with its layer; a permission of errors as large as this one lets it pass."""
    import ops
    from tinygrad2.commands import verify
    from tinygrad2.dispatch import KERNELS, OPS

    version = KERNELS["mlp", "numpy"][-1] if ops.have_cpu_kernels() else OPS["mlp"]
    right = version.forward

    def wrong(self, x, *others, **options):
        return right(self, x, *others, **options) * (1.001 if x.dtype == np.float32 else 1)

    monkeypatch.setattr(version, "forward", wrong)
    flags = ["precision", *SMALL.split(), "--data", str(run / "text.txt")]
    assert verify.main(flags) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("precision    FAIL") and any(line.startswith("mlp in h.") for line in lines[4:6])
    assert verify.main([*flags, "--matmul-precision", "medium"]) == 0


SPOILT = {
    "resume": "snapshot = train_gpt2.snapshot\nsnapshot.restore = lambda trainer, c, old=snapshot.restore:"
              " (old(trainer, c), setattr(trainer.optimizer, 't', trainer.optimizer.t + 1))",
    "accum": "train_gpt2.Trainer.micro_step = lambda self, row, x, y, old=train_gpt2.Trainer.micro_step:"
             " old(self, 0, x, y)",  # every micro-batch gets the masks of the first
    "determinism": "import os\ntrain_gpt2.set_dropout = lambda model, seed, *rest, old=train_gpt2.set_dropout:"
                   " old(model, os.getpid(), *rest)",
    "ranks": "train_gpt2.Trainer.micro_step = lambda self, row, x, y, old=train_gpt2.Trainer.micro_step:"
             " old(self, row - self.world.rank * 8 // self.world.size, x, y)",  # ranks count from their own rows
}  # fmt: skip


@pytest.mark.parametrize("name", slow_but(("determinism",), SPOILT))
def test_verify_fails_if_the_training_is_wrong(run, tmp_path, name):
    """The training script in question is another one, with a fault of the kind that the property is about."""
    if name == "ranks" and not have_mpi():
        pytest.skip("there is no mpirun, or no mpi4py")
    (tmp_path / "spoilt.py").write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\n"
        "from tinygrad2.distributed.world import World\nworld = World.join()\n"
        f"import train_gpt2\n{SPOILT[name]}\nworld.run(lambda: train_gpt2.main(world, sys.argv[1:]))\n"
    )
    (tmp_path / "verify.py").write_text(
        f"import sys, train_gpt2\ntrain_gpt2.__file__ = {str(tmp_path / 'spoilt.py')!r}\n"
        "from tinygrad2.commands.verify import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    flags = [*SMALL.split(), "--data", "text.txt", "--dropout", "0.1", "--lr", "1e-2"]
    result = python(tmp_path / "verify.py", name, *flags, cwd=run, PYTHONPATH=str(ROOT))
    assert result.returncode == 1 and re.search(rf"^{name} +FAIL", result.stdout), result.stdout + result.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_gradients_of_tiny_models_pass(run, monkeypatch, capsys, size):
    """Their loss bends within the usual step of the differences."""
    from tinygrad2.commands import verify

    monkeypatch.chdir(run)
    shape = f"--n-layer 1 --n-head 1 --n-embd 16 --vocab-size 300 --block-size {size}"
    for seed in (1, 2):
        argv = f"gradients {shape} --batch-size 2 --seed {seed} --data text.txt --kernels reference"
        assert verify.main(argv.split()) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["kernels", "gradients"])
def test_verify_fails_if_an_op_is_wrong(run, name, monkeypatch, capsys):
    import ops  # noqa: F401
    from tinygrad2.commands import verify
    from tinygrad2.dispatch import KERNELS, OPS

    if name == "kernels" and not ops.have_cpu_kernels():
        pytest.skip("Numba is not installed")
    version = KERNELS["mlp", "numpy"][-1] if name == "kernels" else OPS["mlp"]
    backward = version.backward

    def wrong(self, dout):
        dx, *rest = backward(self, dout)
        return dx * dx.dtype.type(1.001), *rest

    monkeypatch.setattr(version, "backward", wrong)
    flags = [*SMALL.split(), "--data", str(run / "text.txt")]
    assert verify.main([name, *flags]) == 1
    assert re.search(rf"^{name} +FAIL", capsys.readouterr().out)


# -- plan, doctor ------------------------------------------------------------------------------------------------------


def test_plan_shows_a_table_time_and_a_verdict(tmp_path):
    result = command("plan", "--model", "gpt2", "--batch-size", "8", cwd=tmp_path)
    assert result.returncode in (0, 1)
    for words in (r"gpt2: 124,439,808 parameters", r"weights +498 MB", r"activations kept for backward +3,706 MB",
                  r"together +[\d,]+ MB", r"mlp: h +101 MB", r"time +7,006 GFLOP a step", r"memory +[\d,]+ MB needed"):
        assert re.search(words, result.stdout), words
    large = command("plan", "--model", "gpt2-xl", "--batch-size", "4096", cwd=tmp_path)
    assert large.returncode == 1 and "does NOT fit; what helps:" in large.stdout and "--micro-batch" in large.stdout


def test_doctor_checks_everything_for_real(tmp_path):
    result = command("doctor", "--json", cwd=tmp_path)
    report = json.loads(result.stdout)
    states = {check["check"]: check["state"] for check in report["checks"]}
    cupy_alone = find_spec("cupy") is not None and not (shutil.which("nvidia-smi") or states["gpu"] == "ok")
    problems = {"gpu"} if cupy_alone else set()                   # somebody with CuPy wants a GPU
    assert {name for name, state in states.items() if state == "FAIL"} == problems, result.stdout
    assert report["ok"] == (not problems) and result.returncode == len(problems), result.stdout
    assert len(states) >= 12 and all(states[name] == "ok" for name in ("python", "numpy", "blas", "regex", "disk"))
    text = command("doctor", cwd=tmp_path).stdout
    assert text.endswith("1 problem(s): gpu\n" if problems else "no problems\n")
    assert re.search(r"^ok +blas +.* GFLOP/s", text, re.MULTILINE)


_CUPY_ALONE = """
class cuda:
    class nvrtc:
        def getVersion(): raise RuntimeError('Failure finding "libnvrtc.so.13"')
    class runtime:
        def driverGetVersion(): return 13000
        def runtimeGetVersion(): return 13020
        def getDeviceCount(): return 1
    class Device:
        compute_capability = '90'
    def is_available(): return True
"""


@pytest.mark.parametrize(
    "module, content, check, says, remedy",
    [
        ("numpy/__init__.py", "raise ImportError('planted')", "numpy", "cannot be imported: planted", "numpy>=2.0"),
        ("numpy/__init__.py", "__version__ = '1.26.0'", "numpy", "1.26.0 is too old", "numpy>=2.0"),
        ("regex/__init__.py", "findall = lambda *a: []\n__version__ = '0'", "regex", "does not match letters", "regex"),
        ("cupy/__init__.py", "raise RuntimeError('no driver')", "gpu", "no driver", "nvidia-smi"),
        ("cupy/__init__.py", _CUPY_ALONE, "gpu", 'library NVRTC is missing (Failure finding "libnvrtc', ".[cuda13]"),
        ("mpi4py/__init__.py", "raise RuntimeError('no MPI')", "mpi", "two ranks could not add up", ".[mpi]"),
        ("numba/__init__.py", "raise RuntimeError('wrong LLVM')", "kernels", "wrong LLVM", "numba"),
    ],
)
def test_doctor_names_what_is_broken_and_the_command_that_fixes_it(tmp_path, module, content, check, says, remedy):
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).write_text(content)
    result = command("doctor", "--json", cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    report = {entry["check"]: entry for entry in json.loads(result.stdout)["checks"]}
    if check == "mpi" and "no mpirun" in report["mpi"]["detail"]:
        pytest.skip("there is no mpirun")
    assert result.returncode == 1 and report[check]["state"] == "FAIL", report[check]
    assert says in report[check]["detail"] and remedy in report[check]["remedy"]
    assert report["python"]["state"] == "ok" and report["disk"]["state"] == "ok"  # the others are not hidden


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("NUMBA_DISABLE_JIT", "1", "switches compiling off"),
        ("NUMBA_NUM_THREADS", "0", "is not a number of threads"),
        ("NUMBA_OPT", "fast", "has a value that Numba cannot read"),
        ("NUMBA_CPU_FEATURES", "avx2", "is not a list like +avx2,-fma"),
    ],
)
def test_a_setting_that_makes_numba_useless_is_named_in_one_line(tmp_path, name, value, says):
    """The kernels step aside, and the doctor says so, too."""
    pytest.importorskip("numba", reason="Numba is not installed")
    program = "import ops; print(ops.describe_kernels('cpu', 'fast')); print(ops.exp(1.0).data)"
    command_line = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    result = subprocess.run(command_line, env=environment, cwd=tmp_path, capture_output=True, text=True)
    line, value_of_e = result.stdout.splitlines()
    assert not result.stderr and value_of_e.startswith("2.718")
    assert line.startswith(f"none, because the environment variable {name}={value} {says}: unset {name} makes")
    result = command("doctor", "--json", cwd=tmp_path, **{name: value})
    (check,) = (entry for entry in json.loads(result.stdout)["checks"] if entry["check"] == "kernels")
    assert result.returncode == 1 and check["state"] == "FAIL" and says in check["detail"], check
    assert check["remedy"] == f"unset {name}" and not result.stderr


# -- metrics, plot -----------------------------------------------------------------------------------------------------


def test_later_lines_win_and_half_a_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 0, "loss": 3.0, "val_loss": 9.0}, {"step": 1, "loss": 2.0}, {"step": 1, "loss": 2.5}]
    lines.append({"step": 2, "loss": 1})
    path.write_text("\n".join(map(json.dumps, lines)) + '\n\n{"step": 3, "lo')
    assert read_metrics(str(tmp_path)) == {"loss": ([0, 1, 2], [3.0, 2.5, 1.0]), "val_loss": ([0], [9.0])}
    path.write_text('{"step": 0, "loss": 1}\n{"step": 1\n{"step": 2, "loss": 1}\n')
    with pytest.raises(UserError, match="line 2 is not a JSON object with an integer 'step'"):
        read_metrics(str(path))


def test_numbers_of_any_size_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = ["1" * 400, "-" + "1" * 400, "1e999", "-1e308", "7", "1" + "0" * 299]
    path.write_text("".join(f'{{"step": {n}, "loss": {value}}}\n' for n, value in enumerate(values)))
    assert read_metrics(str(tmp_path))["loss"][1] == [math.inf, -math.inf, math.inf, -math.inf, 7.0, 1e299]


def test_runs_without_curves_are_one_line(run, tmp_path):
    for content, says in (('{"step": 0}\n', "no numeric fields"),
                          ('{"step": 0, "loss": NaN}\n', "nothing to draw"),
                          ('{"step": 0, "colour": 3}\n', "nothing to draw"),
                          ("", "contains no steps yet")):  # fmt: skip
        (tmp_path / "metrics.jsonl").write_text(content)
        result = command("plot", tmp_path, "--out", tmp_path / "c", cwd=tmp_path)
        assert result.returncode == 2 and says in result.stderr and len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "c.html").exists()
    a_run(tmp_path, [1.0])
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "lr": 3}\n')
    result = command("compare", tmp_path)
    assert result.returncode == 2 and "has no 'loss'" in result.stderr


def test_plot_writes_a_page_and_a_picture(run, tmp_path):
    result = command("plot", run / "run", run / "run" / "metrics.jsonl", "--out", tmp_path / "c", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1])
    assert [panel["title"] for panel in data["panels"]] == [
        "Training loss", "Validation loss", "Learning rate", "Gradient norm", "Throughput"]  # fmt: skip
    assert len(data["runs"]) == 2 and len(data["panels"][0]["lines"][0]["x"]) == 30
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)  # nothing is fetched from elsewhere
    if "matplotlib is missing" in result.stdout:
        pytest.skip("matplotlib is not installed")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "c.png").stat().st_size > 20_000


def test_a_page_is_written_without_matplotlib_and_names_cannot_break_it(run, tmp_path):
    evil = tmp_path / "<script>alert(1)<"
    evil.mkdir()
    (evil / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n')
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    environment = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = command("plot", evil, "--out", tmp_path / "c", cwd=tmp_path, PYTHONPATH=environment)
    assert result.returncode == 0 and "no picture: matplotlib is missing" in result.stdout
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "NaN" not in re.search(r"^const data = (.*);$", page, re.MULTILINE)[1]


def test_tensorboard_files_hold_the_curves(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    assert train(tmp_path, "--steps 5 --tensorboard").returncode == 0
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    raw, place, tags = events.read_bytes(), 0, []
    while place < len(raw):  # u64 length, crc, payload, crc
        length = int.from_bytes(raw[place : place + 8], "little")
        tags += re.findall(rb"loss/train|learning_rate|gradient_norm", raw[place + 12 : place + 12 + length])
        place += length + 16
    assert place == len(raw) and tags.count(b"loss/train") == 5 and tags.count(b"gradient_norm") == 5


def test_tensorboard_that_is_missing_is_one_line(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    (tmp_path / "tensorboardX.py").write_text("raise ImportError")
    result = train(tmp_path, "--tensorboard --steps 1", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2 and 'pip install -e ".[tensorboard]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1


# -- compare, outliers -------------------------------------------------------------------------------------------------


def a_run(folder, losses, **changes):
    reference = reference_curves.load_curves("demo")["config"]
    training = {**reference["training"], **changes}
    config = {"training": training, "model": reference["model"], "preset": "demo", "data": reference["data"]}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.dumps({"step": i, "loss": x}) + "\n" for i, x in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_the_demo_of_today_can_be_compared(tmp_path):
    """Its data is that of the reference curves: the file of stories and its fingerprint are what they were."""
    flags = "--steps 1 --sample-every 0 --checkpoint-every 0 --eval-every 0 --run-dir run --weights-out w.bin".split()
    result = subprocess.run(
        [sys.executable, str(ROOT / "train_gpt2.py"), *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    said = command("compare", tmp_path / "run")
    assert "steps: 1000 in the reference, 1 here" in said.stderr and "data" not in said.stderr


def test_compare_says_inside_or_the_first_step_outside(tmp_path):
    reference = reference_curves.load_curves("demo")["losses"]
    mean = np.mean([curve for curve in reference.values()], axis=0)
    a_run(tmp_path, mean, seed=99, micro_batch_size=2, threads=1, device="cuda")
    inside = command("compare", tmp_path)
    assert inside.returncode == 0 and "inside the band, all 1,000 steps" in inside.stdout, inside.stderr
    worse = mean.copy()
    worse[400:] *= 2
    a_run(tmp_path, worse)
    outside = command("compare", tmp_path)
    step = int(re.search(r"OUTSIDE the band, first at step (\d+):", outside.stdout)[1])
    assert outside.returncode == 1 and 390 <= step <= 410
    a_run(tmp_path, mean[:150])
    assert "inside the band, all 150 steps" in command("compare", tmp_path).stdout
    lines = [json.dumps({"step": i, "loss": 3.0}) + "\n" for i in range(5, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    nothing = command("compare", tmp_path)
    assert nothing.returncode == 2 and "begins at step 6: nothing can be compared" in nothing.stderr
    a_run(tmp_path, [*mean, 0.1, 0.1])
    assert "steps after 1,000 are not compared" in command("compare", tmp_path).stdout
    a_run(tmp_path, [*mean[:200], float("nan"), *mean[201:]])
    assert command("compare", tmp_path).returncode == 1
    a_run(tmp_path, mean, lr=1e-3)
    differs = command("compare", tmp_path)
    assert differs.returncode == 2 and "lr: 0.006 in the reference, 0.001 here" in differs.stderr
    assert "Ctrl-C" not in differs.stderr
    a_run(tmp_path, mean[:150], steps=150)  # other learning rates than those of the first 150 steps of 1,000
    shorter = command("compare", tmp_path)
    assert shorter.returncode == 2 and "150 here; train with --steps 1000, and stop it" in shorter.stderr


def test_each_reference_seed_is_inside_the_band_and_near_seeds_too():
    losses = reference_curves.load_curves("demo")["losses"]
    band = reference_curves.band_of(losses)
    assert all(reference_curves.first_outside(curve, band) is None for curve in losses.values()) and len(losses) == 5
    noisy = np.mean(list(losses.values()), axis=0) * np.exp(np.random.default_rng(0).normal(0, 0.03, 1000))
    assert reference_curves.first_outside(list(noisy), band) is None
    assert reference_curves.first_outside(list(noisy * 1.5), band) is not None


def test_a_jump_is_an_outlier_and_a_trend_is_none():
    rng, window, scores = np.random.default_rng(0), Outliers(), []
    for i in range(2000):
        x = 5 - i / 1000 + rng.normal(0, 0.1)
        scores.append(window.z_score(x))
        window.append(x)
    assert scores[:WINDOW] == [0.0] * WINDOW and max(scores) < 5
    assert window.z_score(5.0) > 6 and len(window.values) == WINDOW
    again = Outliers(list(window.values))
    assert again.z_score(4.0) == window.z_score(4.0)
    assert Outliers([1.0] * WINDOW).z_score(2.0) == 0.0


def test_a_jump_in_the_loss_is_reported(tmp_path):
    """The learning rate is so high that the loss jumps now and then; the threshold is low."""
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    printed = train(tmp_path, "--steps 200 --lr 0.3 --outlier-z 2").stdout
    words = r"^warning   step (\d+): (loss|grad_norm) [\d.]+ is [\d.]+ standard deviations above the last 128"
    found = re.findall(words, printed, re.MULTILINE)
    assert found and all(int(step) > 128 for step, _ in found)
    assert "standard deviations" not in train(tmp_path, "--steps 200 --lr 0.3 --outlier-z 0").stdout


def test_doctor_runs_without_numpy():
    script = "import sys\nsys.modules['numpy'] = None\nfrom tinygrad2.__main__ import main\nsys.exit(main(['doctor']))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and re.search(r"^FAIL +numpy", result.stdout, re.MULTILINE), result.stderr
