"""RunState: what a training must remember besides weights and moments; state.json of a checkpoint."""

import math
import os
from dataclasses import asdict, dataclass, field, fields

from tinygrad2.cli import option, saved_values
from tinygrad2.datasets.dataset import difference
from tinygrad2.errors import UserError, short
from tinygrad2.loss_scale import is_state
from tinygrad2.system.shell import quote
from tinygrad2.training.config import OF_THIS_START, RECIPES, TrainConfig
from tinygrad2.training.tuning import is_tuning_record

_SHAPE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_inner", "bias", "tied_head", "n_context",
          "n_hidden")  # fmt: skip
_MOST = 1 << 62  # of counts: what NumPy can count with


@dataclass
class RunState:
    """What a training is (its flags, model, data and tokenizer), how far it is, and what was measured on the way.

    preset           the preset, or "--init-from"
    training, model  the fields of TrainConfig and of the model's config
    data             fingerprint of the tokens
    files            {file of the data: its checksum}, to tell which has changed; {} if that is not kept
    questions        checksum of the questions of --hellaswag, "" without them
    tokenizer        the tokenizer as JSON text, "" if there is none (in weights.bin, not in state.json)
    step, position   optimizer steps done, and where the next batch starts (see DataLoader); in memory those with which
                     this process started, in a checkpoint those of its moment
    loss, val_loss   of the last step; val_loss is None if it was not measured
    best             the lowest validation loss
    before           the loss before a finetuning
    loss_scale       what LossScale.state_dict() returns, {} without --dtype float16
    products         the measured choices of products (tuning.py), {} without any
    windows          the values that outliers are compared with, {"loss": sequence, "grad_norm": sequence}
    """

    preset: str
    training: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    data: str = ""
    files: dict = field(default_factory=dict)
    questions: str = ""
    tokenizer: str = ""
    step: int = 0
    position: tuple = (0, 0)
    loss: float = None
    val_loss: float = None
    best: float = None
    before: float = None
    loss_scale: dict = field(default_factory=dict)
    products: dict = field(default_factory=dict)
    windows: dict = field(default_factory=dict)

    def to_dict(self):
        """Everything except the tokenizer, as JSON values."""
        values = asdict(self)
        del values["tokenizer"]
        windows = {name: list(recent) for name, recent in self.windows.items()}
        return values | {"position": list(self.position), "windows": windows}

    @classmethod
    def from_checkpoint(cls, checkpoint):
        """The RunState in a Checkpoint, also in one of an earlier version. Raises UserError, naming the field, for
        values that no training has written: the checksums may be right all the same."""
        values = {f.name: checkpoint.state[f.name] for f in fields(cls) if f.name in checkpoint.state}
        try:
            _check(values, checkpoint)
            values["training"] = saved_values(TrainConfig, values["training"])
            unset = [name for name in RECIPES[values["preset"]] if values["training"].get(name, 0) is None]
            if unset:
                raise UserError(f"the flag {unset[0]!r} has no value")
        except UserError as error:
            remedy = "remove this folder to go on from the checkpoint before it"
            raise UserError(f"{checkpoint.path}: damaged checkpoint: {error}; {remedy}") from None
        return cls(**values | {"position": tuple(values["position"]), "tokenizer": checkpoint.tokenizer})

    def refuse_changes(self, preset, flags, model_flags):
        """Raises UserError for flags of the command line that a training which is resumed cannot follow.

        preset                the value of --model, or None
        flags, model_flags    {field: value} of the flags that were given
        """
        if preset not in (None, self.preset):
            raise UserError(f"--resume: this training is of --model {self.preset}, not {preset}")
        init_from, tokenizer = flags.get("init_from"), flags.get("tokenizer")
        if init_from not in (None, self.training.get("init_from", "")):
            raise UserError(f"--resume --init-from {init_from}: this training has begun already; leave one out")
        if self.tokenizer and tokenizer not in (None, self.training.get("tokenizer", "")):
            raise UserError(f"--resume --tokenizer {tokenizer}: the checkpoint has its tokenizer; leave one out")
        for name in _SHAPE:
            value = model_flags.get(name, self.model.get(name))
            if value != self.model.get(name):
                raise UserError(f"--resume: {option(name)} was {self.model.get(name)} when this training began, and "
                                f"cannot become {value}")  # fmt: skip

    def flags_of_resumed(self, flags):
        """{field: value} of all flags of a training that is resumed with `flags`: those, and the ones it had before."""
        before = {name: value for name, value in self.training.items() if name not in OF_THIS_START}
        if flags.get("schedule", "wsd") != "wsd":
            before.pop("decay_steps", None)                       # belongs to the schedule that this start leaves
        if flags.get("outlier_z") == 0:
            before.pop("skip_outliers", None)                     # none are looked for any more
        return before | flags

    def refuse_other_data(self, dataset, files, config):
        """Raises UserError if this training began on other data than this Dataset, whose file_sums are `files`."""
        if self.data and not dataset.has_fingerprint(self.data):
            what = difference(self.files, files)
            weights = os.path.join(config.run_dir, "checkpoints", f"step_{self.step:08d}", "weights.bin")
            raise UserError(f"{config.data}: this is not the data that the training in {config.run_dir} began with"
                            f"{what and f' ({what})'}; restore it; to train on this instead, begin another training "
                            f"with the weights: --init-from {quote(weights)} --run-dir FOLDER")  # fmt: skip

    def note_questions(self, checksum, path):
        """Remember the checksum of the questions; returns a line if it is another than before, else ""."""
        before, self.questions = self.questions, checksum
        if before in ("", checksum):
            return ""
        return f"warning   {path}: these are not the questions of before; the accuracies cannot be compared"


def _check(values, checkpoint):
    """Raises UserError for fields of state.json that cannot be, or do not belong to the other files."""
    for name in ("preset", "training", "model", "position"):
        if name not in values:
            raise UserError(f"state.json: field {name!r} is missing")
    for name, value in values.items():
        if not _IS_VALID.get(name, lambda value: True)(value):
            raise UserError(f"state.json: field {name!r} is {short(value)}, which no training writes")
    if {**checkpoint.config, **values["model"]} != checkpoint.config:
        raise UserError("state.json: field 'model' is another model than that of weights.bin")
    t, missed = checkpoint.t, max(checkpoint.missed.values(), default=0)
    if t > checkpoint.step or missed > t:
        raise UserError(f"optimizer.bin: has made {t} steps ('t'), of which a parameter has missed {missed}; the "
                        f"training has made {checkpoint.step}")  # fmt: skip


def _is_count(value):
    return type(value) is int and 0 <= value < _MOST


def _is_loss(value):
    return value is None or type(value) is float and value >= 0


def _is_window(value):
    return isinstance(value, list) and all(type(x) is float and math.isfinite(x) for x in value)


_IS_VALID = {
    "preset": lambda value: isinstance(value, str) and value in RECIPES,
    "training": lambda value: isinstance(value, dict), "model": lambda value: isinstance(value, dict),
    "data": lambda value: isinstance(value, str), "questions": lambda value: isinstance(value, str), "step": _is_count,
    "files": lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
    "position": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)),
    "loss": _is_loss, "val_loss": _is_loss, "best": _is_loss, "before": _is_loss,
    "loss_scale": is_state, "products": is_tuning_record,
    "windows": lambda value: isinstance(value, dict) and all(map(_is_window, value.values())),
}  # fmt: skip
