"""Which target pulls which position: the gradient of each position's own loss, at every position of the stream.

The loss is a mean over T positions, so its gradient is a sum of T parts, one for each target:

    dL/dx_t = sum over s >= t of  1/T dl_s/dx_t               a target reaches no position after its own

The parts are measured together: a batch of copies of the text, each with all targets but one masked. Rows of a batch
do not see each other, so the gradient in row s is part s.
"""

import numpy as np

from tinygrad2.function import observe
from tinygrad2.monitor.module_path import ModulePath

_TOKENS = 4096  # of a batch
_FLOPS = 5e11  # of all batches: some seconds to half a minute


class StreamObserver(ModulePath):
    """Norms of the gradient of the residual stream, where its additions are; for `observe`.

    norms    {module: (rows, T)}: "" is the sum of the embeddings, "h.3" the stream after block 3
    """

    def __init__(self, model):
        super().__init__(model)
        self.norms = {}

    def after_forward(self, node, arrays, results):
        """Called with the op's inputs and its results."""
        node.layer = self.path[-1]

    def after_backward(self, node, dout, dinputs):
        """Called in backward with an op's incoming and outgoing gradients."""
        if node.name == "add":
            self.norms[node.layer] = np.sqrt((dout.astype(np.float64) ** 2).sum(-1))

    def after_leaf(self, node, i, leaf, gradient):
        """Called when a gradient has been added to that of a leaf: nothing to do."""


def pulls(model, x, y, targets):
    """{module: (len(targets), T)}, norms of the parts of the gradient, for ids x and y (1, T) and positions `targets`.

    The gradients of the parameters are lost.
    """
    T = x.shape[1]
    size, found = max(1, _TOKENS // T), {}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "wpe.weight"            # the stream wants a gradient, no matrix needs one
    try:
        for start in range(0, len(targets), size):
            part = targets[start : start + size]
            masked = np.full((len(part), T), -1)
            masked[range(len(part)), part] = y[0, part]
            with observe(StreamObserver(model)) as observer:
                model.loss(np.repeat(x, len(part), 0), masked).backward(len(part) / T)    # from their mean to 1/T each
            for layer, norms in observer.norms.items():
                found.setdefault(layer, []).append(norms)
    finally:
        for parameter, value in zip(model.parameters(), wanted):
            parameter.requires_grad = value
    return {layer: np.concatenate(found[layer]) for layer in sorted(found, key=_depth)}


def choose_targets(config, n_tokens):
    """The positions whose target is followed: all, or for a large model as many as its arithmetic allows, evenly
    spread, the last one among them."""
    most = max(4, int(_FLOPS / (4 * config.count_parameters() * n_tokens)))
    if most >= n_tokens:
        return list(range(n_tokens))
    return sorted({round((i + 1) * n_tokens / most) - 1 for i in range(most)})


def page_of_pulls(found, targets):
    """JSON values for the page: of each target the positions up to its own."""
    points = []
    for layer, norms in found.items():
        rows = [[float(f"{value:.3g}") for value in row[: s + 1]] for row, s in zip(norms, targets)]
        points.append({"layer": layer, "norms": rows})
    return {"targets": list(targets), "points": points}


def _depth(layer):
    return int(layer.split(".")[1]) + 1 if layer else 0
