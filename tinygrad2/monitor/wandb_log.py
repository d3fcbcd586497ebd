"""Weights & Biases (--log-to wandb): the records of metrics.jsonl as a run of its own.

Nothing leaves the machine unless the user asks for it: without WANDB_MODE=online the run is written into a folder, for
`wandb sync`. The library is imported only then.
"""

import os
import re
import shlex

from tinygrad2.errors import UserError

_FOLDER = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(\w+)$")  # as the library names the folder of a run


def load_wandb():
    """The module wandb. Raises UserError, with the command that installs it."""
    try:
        import wandb
    except ImportError as error:
        raise UserError('--log-to wandb needs wandb: pip install -e ".[wandb]"') from error
    return wandb


class WeightsAndBiases:
    """Logs each record as one step of a run. Without a folder it does nothing.

    folder     the run's folder: files go into folder/wandb
    config     all flags, a dict of JSON values
    resumed    continue the last run in this folder instead of starting one

    Problems with writing are reported by log(line), once, and the run ends there. Raises UserError, with the command
    that installs it, if wandb is missing, or if it cannot start.
    """

    def __init__(self, folder, config, resumed=False, log=print):
        self.folder, self.config, self.log = folder, config, log
        self._id, self._run = _last_run(folder) if folder and resumed else None, None
        self.open()

    def open(self):
        """Begin the run, or begin to log to it again."""
        self.close()
        if not self.folder:
            return
        wandb = load_wandb()
        mode = os.environ.get("WANDB_MODE") or "offline"
        project = os.environ.get("WANDB_PROJECT") or "tinygrad2"
        try:
            quiet = wandb.Settings(silent=True, console="off", disable_git=True)  # it leaves stdout to the training
            self._run = wandb.init(project=project, dir=self.folder, mode=mode, config=self.config, settings=quiet,
                                   id=self._id, resume="allow" if self._id else None)  # fmt: skip
        except Exception as error:  # its own classes of errors: no account, no network, a folder it cannot write
            reason = " ".join(str(error).split())
            problem = f"--log-to wandb: it cannot start ({reason})"
            raise UserError(f"{problem}; WANDB_MODE=offline needs no network") from error
        self._id = self._run.id
        if mode == "offline":
            self.log(f"wandb     offline; to upload: wandb sync {shlex.quote(os.path.dirname(self._run.dir))}")

    def append(self, record):
        """Log the record of one step."""
        if self._run:
            values = {name: value for name, value in record.items() if name != "step"}
            self._attempt(self._run.log, values, step=record["step"])

    def close(self):
        """Write what is still buffered."""
        if self._run:
            self._attempt(self._run.finish)
            self._run = None

    def _attempt(self, write, *args, **options):
        try:
            write(*args, **options)
        except Exception as error:
            self.log(f"warning   wandb: cannot be written ({' '.join(str(error).split())}); the run ends here")
            self._run = None


def _last_run(folder):
    """The id of the newest run in folder/wandb, None if there is none."""
    folder = os.path.join(folder, "wandb")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    runs = [(re.sub(r"^offline-", "", name), match[1]) for name in names if (match := _FOLDER.match(name))]
    return max(runs)[1] if runs else None
