"""The optimizer of a step that `explain` takes apart: that of a run, where its checkpoint is there, else a new one.

A run's checkpoint has Adam's moments and the number of its steps; the update is then the one that this run would make
with the gradient of the text. A new Adam, whose moments are zero, moves nearly every element by the learning rate.
"""

import math
import os
from types import SimpleNamespace

import numpy as np

from tinygrad2.errors import UserError, one_line
from tinygrad2.explain.step import Moments
from tinygrad2.monitor.metrics import is_run_config
from tinygrad2.training.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint
from tinygrad2.training.config import RECIPES, TrainConfig, learning_rate_at
from tinygrad2.training.run_state import RunState


def weights_of(path, log):
    """The weights file that --weights means: of a checkpoint's folder the one in it, of a run's folder that of the
    newest intact checkpoint; any other path, such as a third-party model's folder, is itself. Damaged checkpoints are
    reported by log(line).

    Raises UserError if a run's folder has no checkpoint that is intact.
    """
    if all(os.path.isfile(os.path.join(path, name)) for name in ("manifest.json", "weights.bin")):
        return os.path.join(path, "weights.bin")
    folder, config = (os.path.join(path, name) for name in ("checkpoints", "config.json"))
    if os.path.isdir(folder) and (list_checkpoints(folder) or is_run_config(config)):
        checkpoint, _ = newest_checkpoint(folder, log)
        if checkpoint is None:
            raise UserError(f"{path}: is the folder of a run that has no checkpoint yet; give a model's own path")
        return os.path.join(checkpoint.path, "weights.bin")
    return path


def checkpoint_of(path, pretrained):
    """The Checkpoint to which the weights at `path` belong, or None.

    They are the weights.bin of its folder; or run/checkpoints/ beside them has one of the same step with the same
    weights, bit for bit, as after `python train_gpt2.py`. Raises UserError if the folder of a weights.bin is damaged.
    """
    folder, name = os.path.split(path)
    if name == "weights.bin" and os.path.isfile(os.path.join(folder, "manifest.json")):
        return read_checkpoint(folder)
    done = pretrained.training.get("steps_done") if pretrained.trained_here else None
    if type(done) is not int:
        return None
    near = os.path.join(folder, "run", "checkpoints", f"step_{done:08d}")
    if not os.path.isfile(os.path.join(near, "manifest.json")):
        return None
    try:
        checkpoint = read_checkpoint(near)
    except UserError:                                             # nobody has asked for it
        return None
    return checkpoint if _same(checkpoint.weights, pretrained.tensors) else None


def _same(ours, theirs):
    """Are these {name: LazyTensor} the same, bit for bit?"""
    if set(ours) != set(theirs):
        return False
    pairs = ((ours[name].astype(np.float32), theirs[name].astype(np.float32)) for name in ours)
    return all(np.array_equal(a, b) for a, b in pairs)


def optimizer_of(lr, pretrained, checkpoint):
    """({"lr", "betas", "weight_decay", "grad_clip", "run"} for the page, Moments or None).

    lr    of --lr, or None: what the run's schedule has for the next step, else the highest of the training of these
          weights, else a default
    run   None, or of a checkpoint {"path", "step", "t": Adam's steps, "scheduled": is lr that of the schedule?,
          "frozen": number of parameters that do not move}
    """
    if checkpoint is None:
        recorded = pretrained.training if pretrained.trained_here else {}
        peak = _value(recorded, "lr", RECIPES["gpt2"]["lr"])
        return _settings(recorded, peak if lr is None else lr) | {"run": None}, None
    state = RunState.from_checkpoint(checkpoint)
    names = "schedule", "lr", "final_lr", "warmup_steps", "steps", "decay_steps"
    flags = {name: state.training.get(name, getattr(TrainConfig, name)) for name in names}
    scheduled = learning_rate_at(state.step, SimpleNamespace(**flags))
    run = {"path": one_line(checkpoint.path, 200), "step": state.step, "t": checkpoint.t, "scheduled": lr is None,
           "frozen": len(checkpoint.frozen)}  # fmt: skip
    moments = Moments(checkpoint.moments, checkpoint.t, checkpoint.missed, checkpoint.frozen)
    return _settings(state.training, scheduled if lr is None else lr) | {"run": run}, moments


def _settings(recorded, lr):
    betas = _value(recorded, "beta1", TrainConfig.beta1), _value(recorded, "beta2", TrainConfig.beta2)
    decay, clip = (_value(recorded, name, getattr(TrainConfig, name)) for name in ("weight_decay", "grad_clip"))
    return {"lr": lr, "betas": betas, "weight_decay": decay, "grad_clip": clip}


def _value(recorded, name, default):
    given = recorded.get(name)
    return given if type(given) in (int, float) and 0 <= given < math.inf else default
