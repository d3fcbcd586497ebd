"""Options of a training that change which updates are made, what is kept of them, and where they are recorded."""

import json
import os
import re

import numpy as np
import pytest
from forked import train
from test_train import TEXT

from tinygrad2.monitor.metrics import read_metrics
from tinygrad2.training.checkpoint import list_checkpoints, read_checkpoint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return tmp_path


def records(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def newest(folder):
    return read_checkpoint(list_checkpoints(folder / "run" / "checkpoints")[0])


# -- --overfit-one-batch, --schedule wsd -------------------------------------------------------------------------------


def test_one_batch_is_learnt_by_heart(folder):
    result = train(folder, "--steps 150 --lr 0.02 --overfit-one-batch --eval-every 0")
    assert "every step trains on the same batch (--overfit-one-batch)" in result.stdout
    assert records(folder)[-1]["loss"] < 0.1 and newest(folder).state["position"] == [0, 0]
    train(folder, "--steps 3 --eval-every 0")
    assert newest(folder).state["position"] != [0, 0]


def test_a_resumed_training_takes_a_switch_back(folder):
    train(folder, "--steps 3 --overfit-one-batch --eval-every 0")
    result = train(folder, "--resume --steps 5 --no-overfit-one-batch")
    assert "resume    --overfit-one-batch True is now False" in result.stdout
    assert newest(folder).state["position"] != [0, 0]


def test_wsd_stays_and_decays_at_the_end_and_a_resumed_training_may_go_on(folder):
    flags = "--schedule wsd --decay-steps 4 --lr 0.01 --warmup-steps 2"
    train(folder, f"{flags} --steps 10")
    rates = [record["lr"] for record in records(folder)]
    assert rates == pytest.approx([0.005, *6 * [0.01], 0.00775, 0.0055, 0.00325])
    assert train(folder, "--resume --steps 20").returncode == 0
    assert [record["lr"] for record in records(folder)][10:17] == pytest.approx(6 * [0.01] + [0.01])
    refused = train(folder, "--decay-steps 4")
    assert refused.returncode == 2 and "--decay-steps is for --schedule wsd, not cosine" in refused.stderr


def test_a_resumed_training_drops_what_a_new_flag_makes_meaningless(folder):
    train(folder, "--schedule wsd --decay-steps 4 --skip-outliers --steps 5")
    result = train(folder, "--resume --steps 8 --schedule linear --outlier-z 0")
    assert result.returncode == 0 and "--decay-steps 4 is now None" in result.stdout
    assert newest(folder).state["training"]["skip_outliers"] is False
    refused = train(folder, "--resume --steps 7 --schedule linear --decay-steps 2")
    assert refused.returncode == 2 and "--decay-steps is for --schedule wsd, not linear" in refused.stderr


# -- --skip-outliers ---------------------------------------------------------------------------------------------------


def test_updates_of_outliers_are_skipped_and_a_resumed_training_skips_the_same_ones(folder, tmp_path_factory):
    """The learning rate is so high that the loss jumps now and then; the threshold is low."""
    flags = "--lr 0.3 --outlier-z 2 --skip-outliers --sample-every 0"
    printed = train(folder, f"{flags} --steps 200").stdout
    lines = re.findall(r"^warning   step (\d+): .*; the weights stay as they are$", printed, re.MULTILINE)
    said = set(map(int, lines))
    marked = {record["step"] + 1 for record in records(folder) if record.get("skipped")}
    assert said == marked and len(said) > 1 and f"skipped   the updates of {len(said)} steps" in printed
    assert newest(folder).t == 200 - len(said) and "skipped" not in read_metrics(str(folder / "run"))

    other = tmp_path_factory.mktemp("other")
    (other / "text.txt").write_bytes((folder / "text.txt").read_bytes())
    middle = sorted(said)[len(said) // 2]
    train(other, f"{flags} --steps 200 --checkpoint-every {middle - 1} --keep-checkpoints 9")
    for path in list_checkpoints(other / "run" / "checkpoints"):
        if read_checkpoint(path).step > middle - 1:
            os.rename(path, other / os.path.basename(path))
    train(other, "--resume")
    one, two = newest(folder), newest(other)
    assert one.t == two.t and all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_skipping_needs_a_threshold(folder):
    refused = train(folder, "--skip-outliers --outlier-z 0")
    assert refused.returncode == 2 and "--skip-outliers needs an --outlier-z above 0" in refused.stderr


# -- --keep-every ------------------------------------------------------------------------------------------------------


def test_milestones_are_never_removed(folder):
    train(folder, "--steps 20 --keep-every 6 --checkpoint-every 4 --keep-checkpoints 1 --eval-every 0")
    steps = [read_checkpoint(path).step for path in list_checkpoints(folder / "run" / "checkpoints")]
    assert steps == [20, 18, 12, 6]
    train(folder, "--resume --steps 30 --keep-every 0")
    steps = [read_checkpoint(path).step for path in list_checkpoints(folder / "run" / "checkpoints")]
    assert steps == [30, 18, 12, 6]


# -- --log-to wandb ----------------------------------------------------------------------------------------------------

STAND_IN = '''
import json, os

class Settings(dict):
    pass

class Run:
    def __init__(self, settings):
        name = self.id = settings["id"] or "abc123"
        n = 1 + len(os.listdir(os.path.join(settings["dir"], "wandb")))
        self.dir = os.path.join(settings["dir"], "wandb", f"offline-run-20260101_00000{n}-{name}", "files")
        os.makedirs(self.dir)
        self.lines = [settings]

    def log(self, values, step):
        self.lines.append([step, values])

    def finish(self):
        with open(os.path.join(self.dir, "log.json"), "w") as file:
            json.dump(self.lines, file)

def init(**settings):
    os.makedirs(os.path.join(settings["dir"], "wandb"), exist_ok=True)
    return Run(settings)
'''


def test_wandb_gets_every_record_offline_and_a_resumed_training_continues_its_run(folder):
    (folder / "wandb").mkdir()
    (folder / "wandb" / "__init__.py").write_text(STAND_IN)
    environment = {"PYTHONPATH": str(folder), "WANDB_MODE": ""}
    result = train(folder, "--steps 3 --log-to wandb", **environment)
    assert result.returncode == 0 and "offline; to upload: wandb sync" in result.stdout, result.stderr
    assert train(folder, "--resume --steps 5", **environment).returncode == 0
    first, second = sorted((folder / "run" / "wandb").iterdir())
    settings, *logged = json.loads((first / "files" / "log.json").read_text())
    assert settings["mode"] == "offline" and settings["id"] is None and settings["config"]["training"]["steps"] == 3
    assert [step for step, _ in logged] == [0, 1, 2]
    assert logged[2][1] == {name: value for name, value in records(folder)[2].items() if name != "step"}
    settings, *logged = json.loads((second / "files" / "log.json").read_text())
    assert settings["id"] == "abc123" and settings["resume"] == "allow" and [step for step, _ in logged] == [3, 4]


def test_without_wandb_one_line_says_how_to_install_it(folder):
    (folder / "wandb.py").write_text("raise ImportError('planted')")
    result = train(folder, "--steps 1 --log-to wandb", PYTHONPATH=str(folder))
    assert result.returncode == 2 and '--log-to wandb needs wandb: pip install -e ".[wandb]"' in result.stderr
    assert result.stderr.count("\n") == 1
