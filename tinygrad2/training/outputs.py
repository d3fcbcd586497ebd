"""What a training writes, --run-dir, --weights-out and --metrics, checked before anything is computed."""

import glob
import os
import unicodedata

from tinygrad2.errors import UserError
from tinygrad2.io.outputs import check_output, files_of, is_inside, is_same_file
from tinygrad2.io.weights import is_weights, training_of
from tinygrad2.monitor.metrics import is_metrics
from tinygrad2.monitor.tensorboard import load_tensorboard
from tinygrad2.monitor.wandb_log import load_wandb

_MODEL_FILES = ("config.", "generation_config.", "model.", "model-", "pytorch_model")
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens")


def check_outputs(config, run_dir, log):
    """Raises UserError if a training with this TrainConfig would replace what is not its own, or what it reads, or if
    it could not write something at its end. What will be replaced is reported by log(line)."""
    _check_loggers(config)
    inputs = list(inputs_of(config))
    run_dir.check(inputs)
    for flag, path in (("--weights-out", config.weights_out), ("--metrics", config.metrics)):
        if path and _is_part(path):
            raise UserError(f"{flag} {path}: belongs to a checkpoint or a dump, and is not replaced; choose another")
    made = run_dir.path
    replaced = check_output("--weights-out", config.weights_out, "weights of tinygrad2", is_weights, inputs, made)
    if config.metrics:
        what, added = "metrics of tinygrad2", config.resume
        check_output("--metrics", config.metrics, what, is_metrics, inputs, made, appended=added)
    for flag, path in (("--weights-out", config.weights_out), ("--metrics", config.metrics)):
        if path and (is_same_file(path, run_dir.path) or is_inside(run_dir.path, path)):
            raise UserError(f"{flag} {path}: --run-dir {run_dir.path} needs a folder there; choose another path")
        is_default = flag == "--metrics" and is_same_file(path, run_dir.metrics)
        if path and run_dir.owns(path) and not is_default:
            raise UserError(f"{flag} {path}: --run-dir {run_dir.path} keeps something else there; choose another path")
    if config.metrics and (is_same_file(config.metrics, config.weights_out)
                           or _plain(config.metrics) == _plain(config.weights_out)):  # fmt: skip
        raise UserError(f"--metrics {config.metrics}: --weights-out is the same file; choose another path")
    if replaced:
        steps = training_of(config.weights_out).get("steps_done")
        what = f"the weights after {steps:,} steps" if type(steps) is int else "the weights"
        log(f"note      {config.weights_out}: {what} that are there will be replaced")


def _check_loggers(config):
    """Raises UserError if the library of --tensorboard or --log-to is missing: now, not when files have been moved."""
    if config.tensorboard or config.log_to == "tensorboard":
        load_tensorboard()
    if config.log_to == "wandb":
        load_wandb()


def inputs_of(config):
    """(flag, file) of all that is read, except the files in a folder of texts or tokens: among them our own are told by
    their content, and the others are not replaced anyhow."""
    if not os.path.isdir(config.data):
        paths = [config.data] if os.path.exists(config.data) else glob.glob(config.data, recursive=True)
        yield from (("--data", path) for path in paths)
    for flag, path, names in (
        ("--init-from", config.init_from, _MODEL_FILES + _TOKENIZER_FILES),
        ("--tokenizer", config.tokenizer, _TOKENIZER_FILES),
        ("--hellaswag", config.hellaswag, ()),
    ):
        for file in files_of(path) if path else ():
            if file == path or os.path.basename(file).startswith(names):
                yield flag, file


def _plain(path):
    """The path as a file system sees it to which upper and lower case, or forms of Unicode, are the same."""
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()


def _is_part(path):
    """Is this a file of a checkpoint or of a dump?"""
    folder = os.path.dirname(os.path.realpath(path))
    markers = ("manifest.json", "dump.json")
    return os.path.exists(path) and any(os.path.exists(os.path.join(folder, name)) for name in markers)

