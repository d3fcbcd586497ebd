"""The gradient of single elements of parameters, measured: by how much does the loss change with the element?

    dL/dw = (L(w + h) - L(w - h)) / 2h  +  O(h^2)

The model computes in float64 for that, with the reference implementations, which take any float. h is 1e-5: the
formula's own error and that of rounding, 1e-16 L / h, are then some 1e-10. tinygrad2/grad_check.py has the reasons.
"""

import numpy as np

from tinygrad2.tensor import no_grad

_STEP = 1e-5
_FLOPS = 1.5e10  # of all forward passes: a second or some
_PER_TENSOR, _LEAST = 3, 6  # elements


def choose_elements(config, grads, n_tokens, seed=0):
    """{name: [indices]}, a sample: of each parameter the element with the largest gradient, and others drawn among
    those whose gradient is not 0. Of a large model only some parameters, evenly spread, for the time it takes."""
    most = max(_LEAST, int(_FLOPS / (4 * config.count_parameters() * n_tokens)))
    names, each = list(grads), min(_PER_TENSOR, most // len(grads))
    if each == 0:
        names, each = [names[i * len(names) // most] for i in range(most)], 1
    rng, chosen = np.random.default_rng(seed), {}
    for name in names:
        flat = np.abs(grads[name]).reshape(-1)
        others = np.flatnonzero(flat)
        drawn = others[rng.integers(0, len(others), 20)] if len(others) else others
        indices = list(dict.fromkeys([int(flat.argmax()), *drawn.tolist()]))[:each]
        chosen[name] = [tuple(map(int, np.unravel_index(i, grads[name].shape))) for i in indices]
    return chosen


def measure(model, x, y, chosen):
    """{name: [dL/dw of each chosen element]}, L the loss for ids x and y (1, T). The weights are as before afterwards;
    the gradients of the parameters stay what they are."""
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
            numbers = {"value": parameters[name].data[index], "grad": grads[name][index], "numeric": numeric}
            numbers = {key: float(f"{number:.7g}") for key, number in numbers.items()}
            found[name].append({"index": index} | numbers)
    return found


def largest_difference(samples):
    """The largest relative difference of a measured gradient and the one that backward computed; of gradients that are
    tiny beside the largest of the sample (1e-4), relative to that."""
    pairs = [(sample["grad"], sample["numeric"]) for rows in samples.values() for sample in rows]
    floor = 1e-4 * max(abs(numeric) for _, numeric in pairs)
    return max(abs(a - b) / max(abs(a), abs(b), floor, 1e-30) for a, b in pairs)
