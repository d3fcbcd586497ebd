"""RunLog: what a training records of each step, on the screen and in files."""

import contextlib
import math
import time

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.io.outputs import set_aside
from tinygrad2.monitor.metrics import MetricsFile
from tinygrad2.monitor.outliers import WINDOW, Outliers
from tinygrad2.monitor.progress import Progress
from tinygrad2.monitor.tensorboard import TensorBoard
from tinygrad2.monitor.wandb_log import WeightsAndBiases


class RunLog:
    """One line per step on the screen, one record per step in metrics.jsonl (and TensorBoard, Weights & Biases); warns
    of outliers.

        with log.timing():
            steps = lookahead.step(loader)
        log.step(steps[0])                         the line; the record of the step before is written, this one begun
        log.validation(val_loss)                   a note, and into the record
        log.flush()                                the record is written

    Rank 0 alone prints and writes. All ranks keep `state` (RunState) up to date, and know `is_best`: the step's
    validation loss is the lowest so far.

    tokens           of one step, over all ranks
    ideal_seconds    what the floating-point operations of a step would take at the peak of this machine
    checkpoint       the one that is resumed, on rank 0: it has the records so far, should metrics.jsonl be lost
    """

    def __init__(self, config, run_dir, state, world, tokens, ideal_seconds, checkpoint=None):
        self.state, self.world, self.tokens, self.ideal_seconds = state, world, tokens, ideal_seconds
        self.outlier_z, self.skips, self.finetunes = config.outlier_z, config.skip_outliers, bool(config.init_from)
        is_rank_0 = world.rank == 0
        self.progress = Progress(config.steps, config.log_every, enabled=is_rank_0, start=state.step)
        self.note = self.progress.note                            # note(text): a separate line, on rank 0
        self.run_dir = run_dir if is_rank_0 else None
        path = (config.metrics or run_dir.metrics) if is_rank_0 else ""
        if path and not state.step:
            set_aside(path, self.note)
        self.metrics = MetricsFile(path, state.step > 0, checkpoint.history if checkpoint else b"", self.note)
        boards = {config.log_to, "tensorboard" if config.tensorboard else ""} if is_rank_0 else ()
        settings = {"preset": state.preset, "training": state.training, "model": state.model}
        self.boards = [
            TensorBoard(run_dir.path if "tensorboard" in boards else "", self.note),
            WeightsAndBiases(run_dir.path if "wandb" in boards else "", settings, state.step > 0, self.note),
        ]
        self.windows = {name: Outliers(state.windows.get(name, ())) for name in ("loss", "grad_norm")}
        state.windows = {name: window.values for name, window in self.windows.items()}
        self.is_best, self._record, self._elapsed, self._begin = False, {}, None, None
        self._shares = None                                       # of the time, of each step that was measured together

    @contextlib.contextmanager
    def timing(self):
        """Around a step: measures it. The times of several add up until `step` is called."""
        start = self._clocks()
        self._begin = start[0] if self._begin is None else self._begin
        yield
        elapsed = self._clocks() - start
        self._elapsed = elapsed if self._elapsed is None else self._elapsed + elapsed

    def seconds(self):
        """The time since the first step of this process began."""
        return 0.0 if self._begin is None else time.perf_counter() - self._begin

    def _clocks(self):
        return np.array([time.perf_counter(), self.world.comm_seconds, self.world.wait_seconds])

    def step(self, step, notices=(), measured=1):
        """A Step (lookahead.py) is done: print its line, and warnings if its gradients overflowed, if loss or norm are
        outliers, or if there are notices about the data. `measured`: how many steps the time was measured for; each
        gets its share."""
        done, loss, lr, norm = step.done, step.loss, step.lr, step.norm
        if self._record:
            self.flush()
        self._shares = self._shares if self._elapsed is None else self._elapsed / measured
        self._elapsed = None
        seconds, comm, wait = self._shares
        ms, tokens_per_s = 1e3 * seconds, self.tokens / seconds
        self._record = dict(step=done - 1, loss=loss, lr=lr, grad_norm=norm, ms=ms, tokens_per_s=tokens_per_s)
        shares = ""
        if self.world.size > 1:
            self._record |= dict(comm_ms=1e3 * comm, wait_ms=1e3 * wait)
            shares = f" | comm {comm / seconds:.1%}, wait {wait / seconds:.1%}"
        self.state.loss, self.state.val_loss, self.is_best = loss, None, False
        if done == 1 and not self.finetunes:
            V = self.state.model["vocab_size"]
            self.note(f"expected first loss ln({V}) = {math.log(V):.4f}, measured {loss:.4f}")
        self.progress.step(done, f"loss {loss:.4f} | lr {lr:.2e} | norm {norm:.3f} | {ms:.0f} ms | "
                                 f"{tokens_per_s:,.0f} tok/s | {self.ideal_seconds / seconds:4.0%} of peak{shares}")
        if step.overflow:
            self._record |= {"grad_norm": None, "skipped": True}
            self.note(f"warning   step {done}: {step.overflow}")
        for line in self._outliers(loss, norm):
            self._record |= {"skipped": True} if self.skips else {}
            self.note(f"warning   step {done}: {line}" + "; the weights stay as they are" * self.skips)
        self.windows["loss"].append(loss)
        if not step.overflow:
            self.windows["grad_norm"].append(norm)
        for notice in notices:
            self.note(f"warning   {notice}")

    def is_outlier(self, loss, norm):
        """Is the loss or the gradient norm of a step an outlier? The same on every rank."""
        return bool(self._outliers(loss, norm))

    def _outliers(self, loss, norm):
        """A line about each of the two that is one."""
        lines = []
        for name, value in (("loss", loss), ("grad_norm", norm)):
            z = self.windows[name].z_score(value)
            if 0 < self.outlier_z < z < math.inf:
                lines.append(f"{name} {value:.4f} is {z:.1f} standard deviations above the last {WINDOW}")
        return lines

    def validation(self, val_loss):
        """The validation loss after this step. Raises UserError, on all ranks, if it is not finite: after the last step
        nothing else would notice."""
        self._record["val_loss"] = self.state.val_loss = val_loss
        self.note(f"validation loss {val_loss:.4f} after {self._record['step'] + 1} steps")
        if not math.isfinite(val_loss):
            raise UserError(f"step {self._record['step'] + 1}: validation loss {val_loss}: the training has diverged; "
                            "try a smaller --lr or a longer --warmup-steps; the checkpoints before it are kept")
        self.is_best = self.state.best is None or val_loss < self.state.best
        if self.is_best:
            self.state.best = val_loss

    def hellaswag(self, accuracy, n):
        """The share of n HellaSwag examples that the model gets right after this step."""
        self._record["hellaswag"] = accuracy
        self.note(f"HellaSwag {accuracy:.3f} of {n} examples after {self._record['step'] + 1} steps")

    def flush(self):
        """Write the record of this step, once."""
        record, self._record = self._record, {}
        restored = self.run_dir and self.run_dir.restore(self.note)
        for board in self.boards:
            if restored:
                self._open_again(board)
            if record:
                board.append(record)
        if record:
            self.metrics.append(record)

    def _open_again(self, board):
        try:
            board.open()
        except UserError as error:                                # telling must not end a training
            self.note(f"warning   {error}")

    def history(self):
        """All records so far, as the bytes of metrics.jsonl; empty on all ranks but 0."""
        return self.metrics.content()

    def close(self):
        """The training is over."""
        self.metrics.close()
        for board in self.boards:
            board.close()
