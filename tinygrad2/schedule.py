"""Schedules: the learning rate of each step."""

import math

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(step, schedule, peak, final, warmup, total):
    """The learning rate of step 0, 1, ..., total - 1.

    Warmup: peak (step + 1) / warmup. Then, with x going from 0 to 1 over the rest:

        constant   peak
        linear     peak + x (final - peak)
        cosine     final + (1 + cos(pi x)) / 2 (peak - final)         Loshchilov and Hutter, "SGDR", ICLR 2017, eq. 5
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    x = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak + x * (final - peak)
    if schedule == "cosine":
        return final + 0.5 * (1 + math.cos(math.pi * x)) * (peak - final)
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
