"""The gradient of a parameter as a small picture: for each block of its elements the largest gradient.

A value is stored in 8 bits, with its sign, on a logarithmic scale over four powers of ten below the parameter's largest
gradient. 0 is kept for blocks whose gradients are all exactly 0: what is small, however small, is at least 1 or -1.
"""

import base64
import math

import numpy as np

DECADES = 4  # of the scale
_ROWS, _COLUMNS = 64, 128  # of a picture, at most
_CELLS = 400_000  # of all pictures together, each 1.3 bytes on the page


def gradient_maps(grads):
    """{name: gradient_map} of {name: gradient}, smaller ones if there are very many."""
    share = min(1.0, _CELLS / (_ROWS * _COLUMNS * max(1, len(grads)))) ** 0.5
    rows, columns = max(1, int(_ROWS * share)), max(1, int(_COLUMNS * share))
    return {name: gradient_map(grad, rows, columns) for name, grad in grads.items()}


def gradient_map(grad, rows=_ROWS, columns=_COLUMNS):
    """JSON values for the page (step.js): the picture of an array (n,), (R, C), or of more axes, the first ones joined.

    {"matrix": [R, C], "block": [rows, columns of a block], "values": base64 of one signed byte per block, by rows}
    """
    width = grad.shape[-1] if grad.ndim else 1
    matrix = grad.reshape(-1, width)                              # (R, C)
    block = [math.ceil(len(matrix) / rows), math.ceil(width / columns)]
    values = _in_bytes(_largest(matrix, *block))
    text = base64.b64encode(values.tobytes()).decode("ascii")
    return {"matrix": list(matrix.shape), "block": block, "values": text}


def _largest(matrix, rows, columns):
    """Of each block of so many rows and columns the element that is largest by size, in float64."""
    height, width = matrix.shape
    starts = np.arange(0, height, rows), np.arange(0, width, columns)
    high = low = matrix
    for axis, start in enumerate(starts):
        high = np.maximum.reduceat(high, start, axis)
        low = np.minimum.reduceat(low, start, axis)
    return np.where(high >= -low, high, low).astype(np.float64)


def _in_bytes(gradients):
    """From -127 to 127: how deep a gradient is below the largest of them, see above."""
    sizes = np.abs(gradients)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 1 + np.log10(sizes / sizes.max()) / DECADES      # 1 for the largest
    bytes_ = np.rint(127 * np.clip(share, 0, 1))
    bytes_ = np.where(sizes > 0, np.maximum(1, bytes_), 0)
    return (np.sign(gradients) * bytes_).astype(np.int8)
