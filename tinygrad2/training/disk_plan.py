"""How much a training is going to write, and is there room for it?

A checkpoint takes 12 bytes per parameter: weights, and Adam's two moments. A new one is complete before an old one is
removed. With --keep-checkpoints K there are K + 1 for a moment, and those of --keep-every stay in addition.
"""

from tinygrad2.io.room import Need, check_room
from tinygrad2.training.checkpoint import list_checkpoints

_LINE = 140  # bytes of a step in metrics.jsonl, at least
_FLOAT = 4


def check_disk(config, parameters, run_dir, done):
    """Raises UserError, naming need and room, if what a training must write does not fit on its disks.

    config        TrainConfig
    parameters    their number
    done          steps done before, which a resumed training continues
    """
    n, lines = checkpoints_at_once(config, done), _LINE * (config.steps - done)
    if n and done:
        n = max(1, n - len(list_checkpoints(run_dir.checkpoints)))  # they make room for the new ones
    weights = _FLOAT * parameters
    one = 3 * weights + _LINE * config.steps
    what = f"{n:,} checkpoint(s)" if n != 1 else "a checkpoint"
    check_room([
        Need("--run-dir", run_dir.path, what, n * one, 2 * weights if n else 0),
        Need("--weights-out", config.weights_out, "weights", weights, weights),
        Need("--metrics", config.metrics or run_dir.metrics, "metrics", lines, lines),
    ])  # fmt: skip


def checkpoints_at_once(config, done):
    """How many new checkpoints there are at once before the training ends; at least, since the best one stays too."""
    newest, step = [], config.steps
    while step > done and len(newest) <= config.keep_checkpoints:
        newest.append(step)
        intervals = filter(None, (config.checkpoint_every, config.keep_every))
        step = max(((step - 1) // interval * interval for interval in intervals), default=0)
    if not config.keep_every:
        return len(newest)
    forever = config.steps // config.keep_every - done // config.keep_every
    return forever + sum(step % config.keep_every > 0 for step in newest)
