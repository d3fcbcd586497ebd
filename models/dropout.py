import ops
from tinygrad2.module import Module
from tinygrad2.prng import make_key


class Dropout(Module):
    """Drop a fraction p of the values in training, none in evaluation (ops/dropout.py).

    Which ones is decided by (seed, step, this layer's number in the model, the sequence's number in the global batch,
    the position in the sequence): `set_dropout` below sets these before each forward pass. Nothing is hidden in a
    generator's state, so accumulation, ranks and restarts do not change the masks.
    """

    def __init__(self, p):
        self.p = p
        self.key = None
        self.first_sequence = 0                                   # number of row 0 in the global batch

    @property
    def active(self):
        if self.training and self.p and self.key is None:
            raise RuntimeError("dropout in training needs the step: call set_dropout(model, seed, step) before forward")
        return self.training and self.p > 0

    def forward(self, x):                                         # (B, ...)
        if not self.active:
            return x
        return ops.dropout(x, self.p, self.key, self.first_sequence * (x.size // len(x)))

    def inside(self, size_per_sequence):
        """(p, key, first) for an op that drops values itself, out of so many per sequence; p is 0 when inactive."""
        if not self.active:
            return 0.0, 0, 0
        return self.p, self.key, self.first_sequence * size_per_sequence


def set_dropout(model, seed, step, first_sequence=0, keys=None):
    """Give every Dropout of the model its own masks for this step; row 0 is sequence `first_sequence` of the batch.

    keys    arrays () with what dropout_keys returns, where a GPU is to read them; by default the numbers themselves
    """
    keys = dropout_keys(model, seed, step) if keys is None else keys
    for layer, key in zip(_layers(model), keys, strict=True):
        layer.key, layer.first_sequence = key, first_sequence


def dropout_keys(model, seed, step):
    """The key of each Dropout of the model in this step, integers of 64 bits."""
    return [make_key(seed, step, number) for number in range(len(_layers(model)))]


def _layers(model):
    return [module for _, module in model.named_modules() if isinstance(module, Dropout)]
