"""The gradient of single elements of parameters, measured: by how much does the loss change with the element?

    dL/dw = (L(w + h) - L(w - h)) / 2h  +  O(h^2)

The model computes in float64 for that, with the reference implementations, which take any float. h is 1e-5: the
formula's own error and that of rounding, 1e-16 L / h, are then some 1e-10. tinygrad2/grad_check.py has the reasons.
"""

import numpy as np

from tinygrad2.dispatch import products_alone
from tinygrad2.tensor import no_grad

_STEP = 1e-5
_FLOPS = 8e10  # of all forward passes: some seconds
_PER_TENSOR, _LEAST = 8, 6  # elements
_SMALL = 1 << 28  # multiplications of a product that one thread computes


def choose_elements(config, grads, n_tokens, seed=0):
    """{name: [indices]}, a sample: of each parameter the element with the largest gradient, others drawn among those
    whose gradient is not 0, and, if there are three or more, one whose gradient is exactly 0, where there are such. Of
    a large model only some parameters, evenly spread, for the time it takes."""
    most = max(_LEAST, int(_FLOPS / (4 * config.count_parameters() * n_tokens)))
    names, each = list(grads), min(_PER_TENSOR, most // len(grads))
    if each == 0:
        names, each = [names[i * len(names) // most] for i in range(most)], 1
    rng, chosen = np.random.default_rng(seed), {}
    for name in names:
        flat = np.abs(grads[name]).reshape(-1)
        others, zeros = np.flatnonzero(flat), np.flatnonzero(flat == 0)
        zero = zeros[rng.integers(0, len(zeros), 1)].tolist() if each >= 3 and len(zeros) else []
        drawn = others[rng.integers(0, len(others), 5 * each)].tolist() if len(others) else []
        indices = list(dict.fromkeys([int(flat.argmax()), *drawn]))[: each - len(zero)]
        chosen[name] = [tuple(map(int, np.unravel_index(i, grads[name].shape))) for i in dict.fromkeys(indices + zero)]
    return chosen


def measure(model, x, y, chosen):
    """{name: [dL/dw of each chosen element]}, L the loss for ids x and y (1, T). The weights are as before afterwards;
    the gradients of the parameters stay what they are. Small products run on one thread."""
    widest = max((parameter.size for _, parameter in model.named_parameters() if parameter.ndim > 1), default=0)
    with products_alone(x.size * widest < _SMALL):
        return _measure(model, x, y, chosen)


def _measure(model, x, y, chosen):
    parameters = dict(model.named_parameters())
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.data = parameter.data.astype(np.float64)
        return {name: [_slope(model, x, y, parameters[name].data, index) for index in indices]
                for name, indices in chosen.items()}  # fmt: skip
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


def _slope(model, x, y, weights, index):
    value, losses = weights[index], []
    for step in (_STEP, -_STEP):
        weights[index] = value + step
        with no_grad():
            losses.append(model.loss(x, y).item())
    weights[index] = value
    return (losses[0] - losses[1]) / (2 * _STEP)


def samples(model, grads, chosen, measured):
    """{name: [{"index", "value", "grad", "numeric"}]} for the page, seven significant digits."""
    parameters = dict(model.named_parameters())
    found = {}
    for name, indices in chosen.items():
        found[name] = []
        for index, numeric in zip(indices, measured[name]):
            numbers = {"value": parameters[name].data[index], "grad": grads[name][index], "numeric": numeric,
                       "difference": float(grads[name][index]) - numeric}  # fmt: skip
            numbers = {key: float(f"{number:.7g}") for key, number in numbers.items()}
            found[name].append({"index": index} | numbers)
    return found


def largest_difference(samples):
    """The largest relative difference of a measured gradient and the one that backward computed; of gradients that are
    tiny beside the largest of the sample (1e-4), relative to that."""
    found = [sample for rows in samples.values() for sample in rows]
    floor = 1e-4 * max(abs(one["numeric"]) for one in found)      # "difference" has digits that the other two lack
    return max(abs(one["difference"]) / max(abs(one["grad"]), abs(one["numeric"]), floor, 1e-30) for one in found)
