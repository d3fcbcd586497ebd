"""A training that is interrupted and resumed is the training that was not: bit for bit, wherever it was cut."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
from marks import slow_but
from test_train import ROOT, SMALL, TEXT, metrics

from tinygrad2.io.weights import load_weights
from tinygrad2.training.checkpoint import list_checkpoints, read_checkpoint

FLAGS = "--steps 24 --dropout 0.1 --micro-batch-size 4 --grad-clip 0.5 --eval-every 5 --eval-batches 1 "
FLAGS += "--sample-every 7 --sample-tokens 4 --checkpoint-every 2 --prompt The --lr 1e-2 "


def command(*flags):
    return [sys.executable, str(ROOT / "train_gpt2.py"), *SMALL.split(), "--data", "text.txt", *" ".join(flags).split()]


def train(folder, *flags):
    result = subprocess.run(command(FLAGS, *flags), cwd=folder, capture_output=True, encoding="utf-8", timeout=3600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def outcome(folder):
    """What must be equal to the last bit: losses, norms, validation losses of every step, and the weights."""
    records = {}
    for record in metrics(folder / "run" / "metrics.jsonl"):
        kept = {name: record[name] for name in ("loss", "grad_norm", "lr", "val_loss") if name in record}
        assert records.get(record["step"], kept) == kept  # a step that was done twice was done alike
        records[record["step"]] = kept
    weights = load_weights(folder / "trained_weights.bin")
    return records, {name: array.tobytes() for name, array in weights.tensors.items()}


def new_folder(path):
    path.mkdir()
    (path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = new_folder(tmp_path_factory.mktemp("resume") / "whole")
    printed = train(folder)
    return outcome(folder), samples(printed)


def samples(printed):
    return [line for line in printed.splitlines() if line.startswith(("sample:", "greedy"))]


@pytest.fixture
def folder(tmp_path):
    return new_folder(tmp_path / "here")


def run_and_signal(folder, number, when, *flags):
    """Start a training, send it a signal when it has done `when` steps, and wait for its end."""
    process = subprocess.Popen(
        command(FLAGS, *flags), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step") and int(line.split()[1].split("/")[0]) >= when:
            process.send_signal(number)
            break
    rest, errors = process.communicate(timeout=600)
    return process.returncode, "".join(lines) + rest, errors


# -- exact resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", slow_but((11,), (1, 11)))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_step_saves_and_says_how_to_go_on(folder, uninterrupted, number, when):
    code, printed, errors = run_and_signal(folder, number, when)
    assert code == 128 + number and "stopping after this step" in errors and "Traceback" not in errors
    assert "continue with: python train_gpt2.py --resume" in printed
    done = read_checkpoint(list_checkpoints(folder / "run" / "checkpoints")[0]).step
    assert when <= done < 24 and load_weights(folder / "trained_weights.bin").training["steps_done"] == done
    second = subprocess.run(
        [sys.executable, str(ROOT / "train_gpt2.py"), "--resume"], cwd=folder, capture_output=True, encoding="utf-8"
    )  # the checkpoint knows all flags
    assert second.returncode == 0, second.stderr
    assert f"resume    from run/checkpoints/step_{done:08d}" in second.stdout
    losses, all_samples = uninterrupted
    assert outcome(folder) == losses
    assert samples(second.stdout) == all_samples[-len(samples(second.stdout)) :]


def test_every_step_can_be_the_last(folder, uninterrupted):
    """Twenty-four trainings of one step each."""
    train(folder, "--keep-checkpoints 100", "--checkpoint-every 1")
    paths = list_checkpoints(folder / "run" / "checkpoints")
    assert [read_checkpoint(path).step for path in paths] == list(range(24, 0, -1))
    import train_gpt2  # in this process: starting twenty-four takes time
    from tinygrad2.datasets.dataloader import DataLoader
    from tinygrad2.datasets.dataset import open_dataset
    from tinygrad2.distributed.world import World
    from tinygrad2.training.run_state import RunState
    from tinygrad2.training.snapshot import restore, snapshot

    world = World()
    states = [read_checkpoint(path) for path in reversed(paths)]
    state = RunState.from_checkpoint(states[0])
    config, gpt_config, _ = train_gpt2.parse(["--data", str(folder / "text.txt")], 1, state)
    data = open_dataset(config.data, "", "", gpt_config.vocab_size, config.val_fraction, world)
    loader = DataLoader(data.train, config.batch_size, gpt_config.block_size, 0, 1, config.order, config.seed)
    for before, after in zip(states, states[1:]):
        trainer = train_gpt2.Trainer(config, gpt_config, world)
        restore(trainer, before)
        trainer.step(loader)
        again = snapshot(trainer, state)
        assert again.t == after.t and again.state["position"] == after.state["position"]
        for mine, theirs in ((again.weights, after.weights), (again.moments, after.moments)):
            assert mine.keys() == theirs.keys()
            assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_killed_at_random_moments_it_still_arrives_at_the_same_bits(folder, uninterrupted):
    kill_until_done(folder, 6, random.Random(5), "--checkpoint-every 1")
    assert outcome(folder) == uninterrupted[0]


@pytest.mark.parametrize("kills", [pytest.param(15, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)])
def test_many_kills(folder, tmp_path, kills):
    """SIGKILL at random moments, saves included, of a training that saves at every step."""
    flags = f"--steps {5 * kills} --checkpoint-every 1 --eval-every 20 --sample-every 50 --kernels reference"
    whole = new_folder(tmp_path / "whole")
    train(whole, flags)
    reached = kill_until_done(folder, kills, random.Random(7), flags)
    print(f"the last of {kills} kills came after step {reached} of {5 * kills}")
    assert kills < reached < 5 * kills
    assert outcome(folder) == outcome(whole)


def kill_until_done(folder, most, rng, *flags):
    """Start with --resume again and again; the first `most` starts are killed at a random moment. After each kill every
    checkpoint that has its final name must be intact, and the newest one never older than before. Then let it finish.
    Returns the step that had been reached when the last kill came.
    """
    newest = ""
    for kill in range(most):
        process = subprocess.Popen(
            command(FLAGS, *flags, "--resume"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if kill % 5:  # most of them between its steps, when it saves, whatever a step takes on this machine
            time.sleep(rng.uniform(0, 1) * watch_steps(process.stdout, rng.randint(3, 6)))
        else:  # some while it starts
            time.sleep(rng.uniform(0, 0.9))
        process.kill()
        process.communicate()
        paths = list_checkpoints(folder / "run" / "checkpoints")
        for path in paths:
            read_checkpoint(path)
        assert (paths[0] if paths else "") >= newest
        newest = paths[0] if paths else ""
    train(folder, *flags, "--resume")
    return int(newest.split("_")[-1].split(".")[0])


def watch_steps(lines, most):
    """Read what a training prints up to step `most` or its end; returns the seconds of the last step."""
    times = [time.monotonic()]
    for line in lines:
        if line.startswith((b"step", b"trained")):
            times.append(time.monotonic())
        if line.startswith(b"trained") or len(times) > most:
            break
    return times[-1] - times[-2] if len(times) > 1 else 0.0


def test_a_second_signal_stops_at_once(folder):
    process = subprocess.Popen(
        command(FLAGS, "--steps 5000"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    for line in process.stdout:
        if line.startswith("step"):
            break
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130


def test_flags_are_checked_with_those_of_the_training_that_is_resumed(folder):
    """Not with the preset's: its batch of 16 does not split into micro-batches of 5."""
    small = "--steps 1 --batch-size 10 --n-embd 33 --n-head 1 --sample-tokens 1"
    train(folder, small, "--micro-batch-size 2")

    def resume(*flags):
        line = [sys.executable, str(ROOT / "train_gpt2.py"), "--resume", "--steps", "2", *flags]
        return subprocess.run(line, cwd=folder, capture_output=True, encoding="utf-8", timeout=600)

    refused = resume("--n-head", "3")
    assert refused.returncode == 2
    assert "--n-head was 1 when this training began, and cannot become 3" in refused.stderr
    resumed = resume("--micro-batch-size", "5")
    assert resumed.returncode == 0 and "resume    --micro-batch-size 2 is now 5" in resumed.stdout, resumed.stderr


def test_flags_that_had_other_names_are_understood_on_the_command_line_and_in_checkpoints(tmp_path):
    import train_gpt2
    from tinygrad2.errors import UserError
    from tinygrad2.training.checkpoint import Checkpoint
    from tinygrad2.training.run_state import RunState

    old, new = ("--sum plain --wire bfloat16 --gpu-sum host --threads 3 --ranks 1",
                "--reduce-order plain --comm-dtype bfloat16 --gpu-allreduce host --threads 3 --ranks 1")  # fmt: skip
    config, gpt_config, preset = train_gpt2.parse(old.split())
    assert (config, gpt_config, preset) == train_gpt2.parse(new.split())
    state = RunState(preset, asdict(config), gpt_config.to_dict(), step=3, position=(1, 2)).to_dict()
    training = state["training"]
    for before, now in (("sum", "reduce_order"), ("wire", "comm_dtype"), ("gpu_sum", "gpu_allreduce")):
        training[before] = training.pop(now)
    del state["before"]                                           # older checkpoints do not have it
    saved = RunState.from_checkpoint(Checkpoint({}, {}, 3, state, "", gpt_config.to_dict()))
    resumed, _, _ = train_gpt2.parse(["--resume", "--threads", "2"], 1, saved)
    assert (resumed.reduce_order, resumed.comm_dtype, resumed.gpu_allreduce) == ("plain", "bfloat16", "host")
    assert (resumed.threads, resumed.ranks, saved.step, saved.position) == (2, None, 3, (1, 2))
    state["training"]["colour"] = "red"
    with pytest.raises(UserError, match="the checkpoint has a flag 'colour' that is unknown here"):
        RunState.from_checkpoint(Checkpoint({}, {}, 3, state, "", gpt_config.to_dict()))
