"""Dynamic loss scaling: the rule itself, and trainings with --dtype float16 on the stand-in for a GPU."""

import json
import math
import pathlib
import warnings

import fake_cublaslt
import numpy as np
import pytest
import strict_capture
import strict_cupy
from cuda_host import needs_compiler, running
from test_train import SMALL, TEXT, metrics

import inference
import train_gpt2
from tinygrad2 import loss_scale
from tinygrad2.commands import eval as eval_command
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.io.weights import load_weights
from tinygrad2.loss_scale import LossScale, is_state
from tinygrad2.training.run_state import RunState

FLAGS = "--device cuda --dtype float16 --kernels reference --steps 6 --lr 1e-2 --eval-every 0 --sample-every 0 "
FLAGS += "--sample-tokens 4 --prompt The --checkpoint-every 3 --outlier-z 6 --dropout 0.1"

# -- the rule ----------------------------------------------------------------------------------------------------------


def test_halved_where_gradients_overflow_and_doubled_after_2000_good_steps():
    scale, values = LossScale(dynamic=True), []
    assert scale.value == 65536 and scale.notice() == ""
    for overflow in [True, False, True, *[False] * 1999, True, *[False] * 2000, *[False] * 1999]:
        scale.update(overflow)
        values.append(scale.value)
    assert values[:3] == [32768, 32768, 16384] and values[2001] == 16384 and values[2002] == 8192
    assert values[4001] == 8192 and values[4002] == 16384 == values[-1] and scale.good == 1999 and scale.skipped == 3
    scale.update(False)
    assert (scale.value, scale.good) == (32768, 0)


def test_it_stays_in_its_bounds():
    scale = LossScale(dynamic=True)
    for _ in range(40):
        scale.update(True)
    assert scale.value == loss_scale.LEAST == 1 and scale.skipped == scale.in_a_row == 40
    scale.value, scale.good = loss_scale.MOST / 2, 0
    for _ in range(3 * loss_scale.GOOD_STEPS):
        scale.update(False)
    assert scale.value == loss_scale.MOST


def test_the_scale_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs, ours = torch.amp.GradScaler("cpu"), LossScale(dynamic=True)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs.scale(parameter)                                        # it begins here
    rng = np.random.default_rng(0)
    for overflow in [*(rng.random(400) < 0.02), *[False] * 4100, True, *[False] * 100]:
        assert theirs.get_scale() == ours.value
        parameter.grad = torch.full((1,), math.inf if overflow else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.update(bool(overflow))
    assert ours.skipped > 3 and theirs.get_scale() == ours.value


def test_which_steps_are_left_out():
    scale = LossScale(dynamic=True)
    for norm in (math.inf, math.nan):
        assert scale.overflows(1.0, norm) and not scale.overflows(math.nan, norm)
    assert not scale.overflows(1.0, 2.0) and not LossScale().overflows(1.0, math.inf)
    for _ in range(19):
        assert scale.overflows(1.0, math.inf)
        scale.update(True)
    assert not scale.overflows(1.0, math.inf)                      # the 20th in a row
    scale.update(False)
    assert scale.overflows(1.0, math.inf)


def test_without_float16_it_is_1_for_ever():
    scale = LossScale()
    for _ in range(3000):
        scale.update(False)
    scale.load_state_dict({"value": 8.0, "good": 1, "skipped": 2, "in_a_row": 0})
    assert scale.value == 1 and scale.state_dict() == {} and scale.notice() == ""


def test_its_state():
    scale, other = LossScale(dynamic=True), LossScale(dynamic=True)
    for overflow in (True, True, False, True):
        scale.update(overflow)
    state = json.loads(json.dumps(scale.state_dict()))
    other.load_state_dict(state)
    assert vars(other) == vars(scale) and other.state_dict() == state and is_state(state) and is_state({})
    other.load_state_dict({})
    assert vars(other) == vars(scale)
    for name, value in (("value", 3.0), ("value", 2.0**25), ("value", 0.5), ("value", 8), ("value", math.nan),
                        ("good", -1), ("good", 2000), ("skipped", 1.0), ("in_a_row", True)):  # fmt: skip
        assert not is_state(state | {name: value})
    assert not is_state([]) and not is_state({"value": 8.0}) and not is_state(state | {"more": 1})


# -- trainings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(name, flags, overflow at these steps, from 1 on): what main() returns."""
    strict_cupy.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    micro_step = train_gpt2.Trainer.micro_step

    def run(name, flags="", overflow=(), values=None):
        """`values`: for each step, the scale and a copy of the weights before it."""

        def spoilt(trainer, first_row, x, y):
            if values is not None:
                values.append((trainer.loss_scale.value, trainer.flat.data.get()))
            loss = micro_step(trainer, first_row, x, y)
            if trainer.done + 1 in overflow:
                trainer.flat.grad[5] = math.inf
            return loss

        monkeypatch.setattr(train_gpt2.Trainer, "micro_step", spoilt)
        files = f"--data text.txt --run-dir run-{name} --weights-out {name}.bin"
        flags = f"{files} {flags}" if "--resume" in flags else f"{SMALL} {FLAGS} {files} {flags}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)        # NumPy tells of overflows; CuPy does not
            return train_gpt2.main(World(), flags.split())

    return run


def records(name):
    steps = metrics(pathlib.Path(f"run-{name}/metrics.jsonl"))
    return [(step["loss"], step["grad_norm"], step.get("skipped", False)) for step in steps]


def saved_scale(name, step):
    path = pathlib.Path(f"run-{name}/checkpoints/step_{step:08d}/state.json")
    return json.loads(path.read_text(encoding="utf-8"))["loss_scale"]


def weights(name):
    return {key: tensor.tobytes() for key, tensor in load_weights(f"{name}.bin").tensors.items()}


def test_a_step_that_overflows_is_left_out_and_told(train, capsys):
    values = []
    assert train("one", overflow=(2, 3), values=values) == 0
    scales, arrays = zip(*values)
    assert scales == (65536, 65536, 32768, 16384, 16384, 16384)
    changed = [not np.array_equal(before, after) for before, after in zip(arrays, arrays[1:])]
    assert changed == [True, False, False, True, True]
    printed = capsys.readouterr().out
    assert printed.count("warning   step 2: the gradients overflow float16: the weights stay as they are, and the "
                         "loss is scaled by 32768 from now on\n") == 1  # fmt: skip
    assert "warning   step 3: " in printed and printed.count("warning") == 2
    assert "skipped   the updates of 2 steps whose gradients overflowed float16" in printed
    assert "with outliers" not in printed and "dtype     float16 with a scaled loss" in printed
    found = records("one")
    assert [norm is None for _, norm, _ in found] == [skipped for _, _, skipped in found] == [0, 1, 1, 0, 0, 0]
    assert found[1][0] != found[2][0]                              # other data: the position has moved on
    assert saved_scale("one", 6) == {"value": 16384.0, "good": 3, "skipped": 2, "in_a_row": 0}


def test_bfloat16_is_refused_by_a_gpu_without_it(train, monkeypatch, capsys):
    monkeypatch.setattr(strict_cupy.cupy.cuda.Device, "compute_capability", "75")
    remedy = "--dtype bfloat16: this GPU .compute capability 7.5. has no bfloat16; use --dtype float16"
    with pytest.raises(UserError, match=remedy):
        train("old", "--dtype bfloat16")
    assert train("old", "--steps 1") == 0
    with pytest.raises(UserError, match=remedy):
        inference.main("--weights old.bin --device cuda --dtype bfloat16".split())
    with pytest.raises(UserError, match=remedy):
        eval_command.main("perplexity --weights old.bin --data text.txt --device cuda --dtype bfloat16".split())
    assert "dtype     float16 with a scaled loss; this GPU (compute capability 7.5) has no bfloat16" in (
        capsys.readouterr().out
    )


def test_norm_and_losses_do_not_depend_on_the_scale(train, monkeypatch):
    """What a power of two multiplies keeps its bits, as long as nothing leaves the range of float16."""
    train("large")
    monkeypatch.setattr(loss_scale, "START", 2.0**12)
    train("small")
    for one, other in zip(records("large"), records("small"), strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    assert all(norm < 10 for _, norm, _ in records("large"))


def test_a_resumed_training_is_the_one_that_was_not_stopped(train):
    """Overflows at steps 2, 3 and 4: it is stopped between two of them."""
    train("whole", overflow=(2, 3, 4))
    train("cut", "--steps 3 --schedule constant", overflow=(2, 3, 4))
    train("again", "--schedule constant", overflow=(2, 3, 4))
    assert train("cut", "--resume --steps 6", overflow=(4,)) == 0
    assert records("cut") == records("again") and weights("cut") == weights("again")
    assert weights("whole") != weights("again")


def test_20_in_a_row_are_a_training_that_has_diverged(train, capsys):
    with pytest.raises(UserError, match="step 21: loss .*, gradient norm inf: the training has diverged"):
        train("lost", "--steps 30", overflow=range(2, 40))
    assert capsys.readouterr().out.count("the gradients overflow float16") == 19
    assert len(records("lost")) == 20


def test_a_loss_that_is_not_finite_is_an_error_at_once(train, monkeypatch):
    gather = train_gpt2.Trainer.gather_losses
    monkeypatch.setattr(train_gpt2.Trainer, "gather_losses",
                        lambda self, losses, norm: (math.nan, *gather(self, losses, norm)[1:]))  # fmt: skip
    with pytest.raises(UserError, match="step 1: loss nan"):
        train("nan")


def test_a_scale_that_is_too_large_finds_its_value_by_itself(train, monkeypatch):
    monkeypatch.setattr(loss_scale, "START", 2.0**24)
    values = []
    train("huge", "--steps 14 --micro-batch-size 8", values=values)
    scales = [scale for scale, _ in values]
    overflows = sum(skipped for _, _, skipped in records("huge"))
    assert 1 <= overflows < 13 and scales[-1] == 2.0 ** (24 - overflows) and scales[overflows] == scales[-1]
    assert records("huge")[-1][0] < 5.6


def test_without_scaling_small_gradients_are_lost(train, monkeypatch):
    """The reason for all this: of a loss divided by 2^18, here by a scale of that size."""
    monkeypatch.setattr(loss_scale, "START", 2.0**-18)
    monkeypatch.setattr(loss_scale, "LEAST", 0.0)
    train("lost", "--steps 1")
    monkeypatch.setattr(loss_scale, "START", 2.0**16)
    train("kept", "--steps 1")
    (_, lost, _), (_, kept, _) = records("lost")[0], records("kept")[0]
    assert kept == pytest.approx(1.47, abs=0.2) and abs(lost - kept) > 0.05


def test_checkpoints_of_earlier_versions_have_no_scale(train, monkeypatch):
    """Their trainings continue, with the first scale."""
    to_dict, values = RunState.to_dict, []
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "to_dict", lambda self: {k: v for k, v in to_dict(self).items() if k != "loss_scale"})
        train("old", "--steps 3", overflow=(2,))
    assert train("old", "--resume --steps 4", values=values) == 0
    assert values[0][0] == 65536 and saved_scale("old", 4)["good"] == 1


def test_another_dtype_takes_no_scale_over(train, capsys):
    train("first", "--steps 3", overflow=(2,))
    assert train("first", "--resume --steps 5 --dtype bfloat16") == 0
    assert saved_scale("first", 5) == {} and "--dtype float16 is now bfloat16" in capsys.readouterr().out


# -- steps that do not wait --------------------------------------------------------------------------------------------

WAITING, TINY = "--read-every 1", "--n-layer 1 --n-embd 8 --n-head 1 --block-size 8 --batch-size 4"
AHEAD = {
    "read seldom": "--read-every 4 --cuda-graph no",
    "by graphs": "--read-every 3 --cuda-graph yes",
    "of several micro-batches": "--read-every 100 --micro-batch-size 2",
}


@pytest.fixture
def train_ahead(tmp_path, monkeypatch, capsys):
    """train_ahead(name, flags, overflow at these steps, from 1 on): what main() prints. By kernels."""
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    finish, step = train_gpt2.Reducer.finish, train_gpt2.Lookahead.step
    spoiler = cupy.zeros(1, np.float32)  # on the GPU: also a graph reads what is there when it is launched

    def spoilt_finish(reducer):
        finish(reducer)
        reducer.flat.grad_buffer[5:6] += spoiler

    monkeypatch.setattr(train_gpt2.Reducer, "finish", spoilt_finish)

    def run(name, flags="", overflow=()):
        def spoilt_step(lookahead, *args):
            spoiler[...] = math.inf if lookahead.trainer.done + 1 in overflow else 0
            return step(lookahead, *args)

        monkeypatch.setattr(train_gpt2.Lookahead, "step", spoilt_step)
        files = f"--data text.txt --run-dir run-{name} --weights-out {name}.bin"
        usual = FLAGS.replace("--kernels reference ", "") + " --dropout 0 --sample-tokens 0 " + TINY
        flags = f"{files} {flags}" if "--resume" in flags else f"{SMALL} {usual} {files} {flags}"
        with warnings.catch_warnings(), running(check=False):
            warnings.simplefilter("ignore", RuntimeWarning)
            assert train_gpt2.main(World(), flags.split()) == 0
        return capsys.readouterr().out

    return run


def optimizer_file(name, step):
    return pathlib.Path(f"run-{name}/checkpoints/step_{step:08d}/optimizer.bin").read_bytes()


def told(printed):
    return [line for line in printed.splitlines() if line.startswith(("warning", "skipped"))]


@needs_compiler
@pytest.mark.parametrize("how", AHEAD)
def test_the_gpu_decides_as_the_host_does(train_ahead, monkeypatch, how):
    """The same bits: losses, norms, weights, and what a checkpoint keeps. The scale is halved and doubled."""
    monkeypatch.setattr(loss_scale, "GOOD_STEPS", 3)
    flags, overflow = "--steps 12 --checkpoint-every 6", (2, 3, 7)
    printed = train_ahead("waits", f"{flags} {AHEAD[how]} --cuda-graph auto {WAITING}", overflow)
    graphs = strict_capture.counts.graphs
    assert told(train_ahead("ahead", f"{flags} {AHEAD[how]}", overflow)) == told(printed) and len(told(printed)) == 4
    assert records("ahead") == records("waits") and weights("ahead") == weights("waits")
    assert saved_scale("ahead", 12) == {"value": 2.0**15, "good": 2, "skipped": 3, "in_a_row": 0}
    for step in (6, 12):
        assert saved_scale("ahead", step) == saved_scale("waits", step)
        assert optimizer_file("ahead", step) == optimizer_file("waits", step)  # moments and t
    if "--cuda-graph" in AHEAD[how]:
        launched = (9, 10) if how == "by graphs" else (0,)         # of 12, behind those that show where arrays may lie
        assert strict_capture.counts.graphs - graphs in launched


@needs_compiler
def test_a_training_that_does_not_wait_is_resumed_between_overflows(train_ahead):
    train_ahead("cut", "--read-every 100 --steps 3 --schedule constant", overflow=(2, 3, 4))
    train_ahead("again", "--read-every 100 --schedule constant", overflow=(2, 3, 4))
    train_ahead("cut", "--resume --steps 6", overflow=(4,))
    assert records("cut") == records("again") and weights("cut") == weights("again")
    assert saved_scale("cut", 6) == saved_scale("again", 6) and saved_scale("cut", 6)["skipped"] == 3


@needs_compiler
@pytest.mark.parametrize("read", [3, 100])
def test_too_many_in_a_row_end_a_training_that_does_not_wait(train_ahead, monkeypatch, capsys, read):
    monkeypatch.setattr(loss_scale, "MOST_SKIPPED", 4)
    with pytest.raises(UserError, match="step 5: loss .*, gradient norm inf: the training has diverged"):
        train_ahead("lost", f"--steps 7 --checkpoint-every 0 --read-every {read}", overflow=range(2, 40))
    assert capsys.readouterr().out.count("the gradients overflow float16") == 3
    assert len(records("lost")) == 4
