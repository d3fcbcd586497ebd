"""verify precision: what the precision of a training (--matmul-precision) costs, for the user's own model and data.

Every op is compared with its float64 reference on the same inputs, forward and backward; then the loss and the gradient
of the whole model with those of the model in float64, where errors have added up. The table of ops has the worst first.

    allowed                        highest    high     medium, bfloat16
    an op, forward or backward     1e-5       2e-5     1e-2
    the loss                       1e-5       1e-4     1e-2
    the whole gradient             1e-4       1e-3     1e-1

All are relative: the root of the mean square of the error, divided by that of the exact value.
"""

import numpy as np

import ops
from models.dropout import set_dropout
from models.families import make_model
from models.pretrained import load_pretrained
from tinygrad2.dispatch import kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe
from tinygrad2.monitor.op_errors import OpErrors
from tinygrad2.precision import computing, matmul_precision, precision_of
from tinygrad2.system.memory import LOGITS_CHUNK

_BFLOAT16 = {"an op": 1e-2, "the loss": 1e-2, "the gradient": 1e-1}
ALLOWED = {
    "highest": {"an op": 1e-5, "the loss": 1e-5, "the gradient": 1e-4},
    "high": {"an op": 2e-5, "the loss": 1e-4, "the gradient": 1e-3},
    "medium": _BFLOAT16,
    "bfloat16": _BFLOAT16,
}
_ROWS = 12  # of the table


def measure(trial):
    """(parts of what is allowed {what: (error, allowed)}, one line of text, lines of the table)."""
    config, T = trial.config, min(256, trial.model_config.block_size)
    tokenizer = None
    if config.init_from:
        model, tokenizer, _ = load_pretrained(config.init_from, trial.model_config.block_size, "cpu", config.tokenizer)
    else:
        model = make_model(trial.model_config, seed=config.seed)
        FlatBuffers(model)
    at_once = max(1, LOGITS_CHUNK // (4 * model.config.vocab_size * T))   # dweight of several chunks is not an array
    x, y = trial.batch(min(4, config.batch_size, at_once), T, tokenizer)
    observer = OpErrors(model)
    with computing(config), observe(observer):
        loss, gradients = _loss_and_gradients(model, x, y, config.seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    FlatBuffers(model)
    with kernels("reference"), matmul_precision("highest"):
        exact_loss, exact = _loss_and_gradients(model, x, y, config.seed)

    errors = sorted(observer.errors, key=lambda error: -error.worst)
    of_layers = {name: _relative(gradients[name], exact[name]) for name in exact}
    worst = max(of_layers, key=of_layers.get)
    found = {
        "an op": errors[0].worst,
        "the loss": abs(loss - exact_loss) / exact_loss,
        "the gradient": _relative(*(np.concatenate([g[name].ravel() for name in exact]) for g in (gradients, exact))),
    }
    precision = precision_of(config)
    parts = {what: (error, ALLOWED[precision][what]) for what, error in found.items()}
    described = ops.describe_products("cpu", config.kernels, precision)
    text = f"{described}; loss {loss:.7f}, in float64 {exact_loss:.7f}; {x.size} tokens"
    table = [
        f"worst gradient: {worst}, {of_layers[worst]:.1e}",
        f"error of the loss: {loss - exact_loss:+.1e}; the shares of all ops add up to "
        f"{sum(error.share for error in errors):+.1e}",
        "",
        f"{'':40s}  forward  backward               share of the loss",
    ]
    for error in errors[:_ROWS]:
        of = f"of {error.name}" if error.name else ""
        place = f"{error.op} in {error.layer}" if error.layer else error.op
        table.append(f"{place:40s}  {error.forward:.1e}  {error.backward:.1e} {of:12s}  {error.share:+.1e}")
    if len(errors) > _ROWS:
        table.append(f"{len(errors) - _ROWS} more, at most {errors[_ROWS].worst:.1e}")
    return parts, text, table


def _loss_and_gradients(model, x, y, seed):
    set_dropout(model, seed, 0)
    loss = model.loss(x, y)
    loss.backward()
    return loss.item(), {name: p.grad.astype(np.float64) for name, p in model.named_parameters() if p.requires_grad}


def _relative(got, exact):
    size = np.linalg.norm(exact)
    return float(np.linalg.norm(got - exact) / size) if size else float(np.linalg.norm(got))
