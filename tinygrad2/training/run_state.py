"""RunState: what a training must remember besides weights and moments; state.json of a checkpoint."""

import os
from dataclasses import asdict, dataclass, field, fields

from tinygrad2.cli import option, saved_values
from tinygrad2.errors import UserError
from tinygrad2.system.shell import quote
from tinygrad2.training.config import TrainConfig

_SHAPE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_inner", "bias", "tied_head")


@dataclass
class RunState:
    """What a training is (its flags, model, data and tokenizer), how far it is, and what was measured on the way.

    preset           the preset, or "--init-from"
    training, model  the fields of TrainConfig and GPTConfig
    data             fingerprint of the tokens
    tokenizer        the tokenizer as JSON text, "" if there is none (in weights.bin, not in state.json)
    step, position   optimizer steps done, and where the next batch starts (see DataLoader); in memory those with which
                     this process started, in a checkpoint those of its moment
    loss, val_loss   of the last step; val_loss is None if it was not measured
    best             the lowest validation loss
    before           the loss before a finetuning
    windows          the values that outliers are compared with, {"loss": sequence, "grad_norm": sequence}
    """

    preset: str
    training: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    data: str = ""
    tokenizer: str = ""
    step: int = 0
    position: tuple = (0, 0)
    loss: float = None
    val_loss: float = None
    best: float = None
    before: float = None
    windows: dict = field(default_factory=dict)

    def to_dict(self):
        """Everything except the tokenizer, as JSON values."""
        values = asdict(self)
        del values["tokenizer"]
        windows = {name: list(recent) for name, recent in self.windows.items()}
        return values | {"position": list(self.position), "windows": windows}

    @classmethod
    def from_checkpoint(cls, checkpoint):
        """The RunState in a Checkpoint, also in one of an earlier version. Raises UserError for unknown flags."""
        values = {f.name: checkpoint.state[f.name] for f in fields(cls) if f.name in checkpoint.state}
        values["training"] = saved_values(TrainConfig, values["training"])
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

    def refuse_other_data(self, dataset, config):
        """Raises UserError if this training began on other data than this Dataset."""
        if self.data and not dataset.has_fingerprint(self.data):
            weights = os.path.join(config.run_dir, "checkpoints", f"step_{self.step:08d}", "weights.bin")
            raise UserError(f"{config.data}: this is not the data that the training in {config.run_dir} began with; "
                            "restore it; to train on this instead, begin another training with the weights: "
                            f"--init-from {quote(weights)} --run-dir FOLDER")  # fmt: skip
