"""Reference curves: the losses of the presets on the bundled text, and how far apart seeds are.

curves/<preset>.json holds the losses of five trainings that differ in nothing but their seed. Smoothed over WIDTH steps
they stay close together, and a sixth seed stays with them. Logarithms are compared: seeds differ by percents.

    mean(t), sd(t)       of ln(loss) over the five; sd smoothed over AROUND steps: of five values it is rough
    band(t)              exp(mean +- max(SDS sd(t), LEAST))

docs/log.md explains how SDS and LEAST were chosen, and which mistakes leave the band.
"""

import math
import os
from dataclasses import dataclass

from tinygrad2.errors import UserError
from tinygrad2.io.files import read_json
from tinygrad2.monitor.metrics import smooth

FORMAT, VERSION = "tinygrad2-curves", 1
WIDTH, AROUND = 21, 201  # steps of smoothing: of the losses, of their spread
SDS, LEAST = 7.0, 0.05
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "curves")

# The flags on which a loss depends. Everything else (threads, micro-batches, where files go) may differ.
MATTERS = ("steps", "batch_size", "lr", "final_lr", "schedule", "warmup_steps", "weight_decay", "beta1", "beta2",
           "grad_clip", "order", "val_fraction")  # fmt: skip


@dataclass
class Band:
    """Where the smoothed loss of a correct training is expected: lists over the steps 0, 1, ..."""

    low: list
    mean: list
    high: list


def load_curves(preset):
    """The reference of a preset, checked: dict with losses {seed: [loss of step 0, 1, ...]}, config, machine, date."""
    path = os.path.join(FOLDER, f"{preset}.json")
    if not os.path.exists(path):
        presets = sorted(name[:-5] for name in os.listdir(FOLDER) if name.endswith(".json"))
        raise UserError(f"there are no reference curves of {preset!r}; choose one of: {', '.join(presets)}")
    curves = read_json(path)
    if not isinstance(curves, dict) or curves.get("format") != FORMAT or curves.get("version") != VERSION:
        raise UserError(f"{path}: is not a reference of this version of tinygrad2")
    losses, config = curves.get("losses"), curves.get("config")
    valid = isinstance(losses, dict) and len(losses) > 1 and isinstance(config, dict)
    valid = valid and set(config) == {"training", "model", "data"} and all(map(_is_curve, losses.values()))
    if not valid or not all(isinstance(curves.get(name), str) for name in ("preset", "machine", "date")):
        raise UserError(f"{path}: damaged: losses, config or their origin are not valid; fetch it again")
    return curves


def _is_curve(values):
    return isinstance(values, list) and len(values) > 0 and all(type(v) is float and 0 < v < 1e9 for v in values)


def band_of(losses):
    """The Band of several curves {seed: [losses]}, as long as the shortest of them."""
    n = min(map(len, losses.values()))
    curves = [[math.log(value) for value in smooth(curve[:n], WIDTH)] for curve in losses.values()]
    mean = [math.fsum(values) / len(values) for values in zip(*curves)]
    squares = [math.fsum((value - m) ** 2 for value in values) for values, m in zip(zip(*curves), mean)]
    variance = smooth([value / (len(curves) - 1) for value in squares], AROUND)
    reach = [max(SDS * math.sqrt(max(0.0, value)), LEAST) for value in variance]
    low, high = ([math.exp(m + sign * r) for m, r in zip(mean, reach)] for sign in (-1, 1))
    return Band(low, [math.exp(m) for m in mean], high)


def first_outside(losses, band):
    """(step, smoothed loss) where a curve of losses first leaves the band (NaN does), or None."""
    n = min(len(losses), len(band.mean))
    for step, value in enumerate(smooth(losses[:n], WIDTH)):
        if not band.low[step] <= value <= band.high[step]:
            return step, value
    return None


def differences(reference, training, model, data):
    """Lines "lr: 0.006 in the reference, 0.001 here" for what a loss depends on and differs from the reference."""
    def facts(training, model, data):
        flags = {name: training.get(name) for name in MATTERS}
        return flags | {f"model {name}": value for name, value in model.items()} | {"data": data}

    here, there = facts(training, model, data), facts(**reference["config"])
    return [f"{name.replace('_', '-')}: {there[name]} in the reference, {here.get(name)} here"
            for name in there if there[name] != here.get(name)]  # fmt: skip
