"""TensorBoard files (--tensorboard), written by tensorboardX, which needs neither TensorFlow nor PyTorch.

Its SummaryWriter is not used: that writes on a thread of its own, and on a full disk the thread dies and the training
waits for it forever. The writer beneath it writes at once, so that a failure is met, and reported, here.
"""

import os
import time

from tinygrad2.errors import UserError

TAGS = {"loss": "loss/train", "val_loss": "loss/validation", "lr": "learning_rate", "grad_norm": "gradient_norm",
        "tokens_per_s": "tokens_per_second"}  # fmt: skip
_FLUSH_SECONDS = 10


def load_tensorboard():
    """The module tensorboardX. Raises UserError, with the command that installs it.

    Call it before memory is measured: it imports PyTorch, where that is installed, 200 MB.
    """
    try:
        import tensorboardX
        import tensorboardX.event_file_writer
    except ImportError as error:
        raise UserError('--tensorboard needs tensorboardX: pip install -e ".[tensorboard]"') from error
    return tensorboardX


class TensorBoard:
    """Writes the records of metrics.jsonl into `folder` as TensorBoard's scalars. Without a folder it does nothing.

    Problems with writing are reported by log(line), once, and the files end there. Raises UserError, with the command
    that installs it, if tensorboardX is missing, and if the folder cannot be written to.
    """

    def __init__(self, folder, log=print):
        self.folder, self.log, self._writer = folder, log, None
        if folder:
            self.open()

    def open(self):
        """Begin a new file. Its name has time and process in it, so none that is there is replaced."""
        self.close()
        if not self.folder:
            return
        writer = load_tensorboard().event_file_writer.EventsWriter
        try:
            self._writer = writer(os.path.join(self.folder, "events"), f".{os.getpid()}-{time.time_ns()}")
        except OSError as error:
            raise UserError(f"{self.folder}: not writable ({error.strerror}); leave out --tensorboard") from None
        self._flushed = 0.0

    def append(self, record):
        """Add the record of one step."""
        if self._writer:
            self._attempt(self._write, record)

    def close(self):
        """Write what is still buffered."""
        if self._writer:
            self._attempt(self._writer.close)
            self._writer = None

    def _attempt(self, write, *args):
        try:
            write(*args)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self.log(f"warning   {self.folder}: TensorBoard's file cannot be written ({reason}); it ends here")
            self._writer = None

    def _write(self, record):
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, tag in TAGS.items():
            if record.get(name) is not None:                      # there is no norm of gradients that are not finite
                summary = scalar(tag, record[name])
                self._writer.write_event(Event(summary=summary, step=record["step"], wall_time=time.time()))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()
