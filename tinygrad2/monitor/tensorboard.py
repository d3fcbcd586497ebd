"""TensorBoard files (--tensorboard), written by tensorboardX, which needs neither TensorFlow nor PyTorch."""

from tinygrad2.errors import UserError

TAGS = {"loss": "loss/train", "val_loss": "loss/validation", "lr": "learning_rate", "grad_norm": "gradient_norm",
        "tokens_per_s": "tokens_per_second"}  # fmt: skip


class TensorBoard:
    """Writes the records of metrics.jsonl into `folder` as TensorBoard's scalars. Without a folder it does nothing.

    Raises UserError, with the command that installs it, if tensorboardX is missing.
    """

    def __init__(self, folder):
        self._writer = None
        if folder:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise UserError('--tensorboard needs tensorboardX: pip install -e ".[tensorboard]"') from error
            self._writer = SummaryWriter(folder, flush_secs=10)

    def append(self, record):
        """Add the record of one step."""
        if self._writer:
            for name, tag in TAGS.items():
                if name in record:
                    self._writer.add_scalar(tag, record[name], record["step"])

    def close(self):
        """Write what is still buffered."""
        if self._writer:
            self._writer.close()
