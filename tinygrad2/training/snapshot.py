"""From a trainer to a checkpoint and back: over all ranks, wherever each part of the state lies.

A `trainer` here is a Trainer of train_gpt2.py: model, flat, optimizer, reducer, world, config, done, position.
"""

import contextlib
import math
from dataclasses import replace

import numpy as np

from tinygrad2.backend import to_host
from tinygrad2.datasets.token_files import ChangedData
from tinygrad2.errors import UserError
from tinygrad2.training.checkpoint import Checkpoint, list_checkpoints
from tinygrad2.writes import wrote


def save(trainer, writer, state, log):
    """Write a checkpoint of the current state while the training continues. A collective: every rank calls it. Raises
    UserError if the weights are of no use after the last step.

    writer    CheckpointWriter
    state     RunState
    log       RunLog: its metrics go into the checkpoint, problems with writing are reported through it
    """
    world, buffers = trainer.world, None
    world.on_rank_0("writing the last checkpoint", writer.join, log.note)     # it still reads the buffers
    if trainer.finished:                                          # else the next step notices, and says where it began
        world.on_rank_0("checking the weights", refuse_useless_weights, trainer.flat, trainer.done, writer.folder)
    if world.rank == 0 and not trainer.finished:
        buffers = writer.buffers(trainer.flat.size, trainer.flat.data.dtype)
    checkpoint = snapshot(trainer, state, log.history(), buffers)
    world.on_rank_0(f"starting a checkpoint of step {trainer.done}", writer.save, checkpoint, log.note)


@np.errstate(over="ignore", invalid="ignore")
def useless(flat):
    """The name of the first parameter whose sum of squares is not finite, "" if that of all is: gradients and norms of
    such weights cannot be computed, and after a step all are NaN."""
    if math.isfinite(float(flat.data @ flat.data)):
        return ""
    return next((name for name, part in flat.slices.items()
                 if not math.isfinite(float(flat.data[part] @ flat.data[part]))), "all of them together")  # fmt: skip


def refuse_useless_start(flat, path, remedy="download it or create it again"):
    """Raises UserError if the weights that were loaded from `path` are of no use to train on."""
    if name := useless(flat):
        raise UserError(f"{path}: the weights are infinite, not numbers, or too large to be trained: first {name}; "
                        f"{remedy}")  # fmt: skip


def refuse_useless_weights(flat, done, folder):
    """Raises UserError if the last step has spoilt the weights: only the next one would notice. `folder` has the
    checkpoints."""
    name = useless(flat)
    if not name:
        return
    good = next(iter(list_checkpoints(folder)), None)
    last = f"the last checkpoint is {good}: continue with --resume" if good else "there is no checkpoint of it"
    raise UserError(f"after step {done} the weights are infinite, not numbers, or too large to be used: first {name}; "
                    f"they are not written; try a smaller --lr or a longer --warmup-steps; {last}")  # fmt: skip


@contextlib.contextmanager
def saved_if_data_changes(trainer, writer, state, log):
    """Around the loop: if a token file was changed or removed, the state after the last complete step is saved before
    the error ends the training. Several ranks cannot save it: the others are inside the step that one has left."""
    try:
        yield
    except ChangedData as error:
        if trainer.world.size > 1:
            raise UserError(f"{error}; continue with --resume: from the last checkpoint") from None
        if trainer.done == state.step:
            raise
        log.flush()
        save(trainer, writer, state, log)
        writer.join(log.note)
        saved = f"the state after step {trainer.done} has been saved"
        raise UserError(f"{error}; continue with --resume: {saved}") from None


def snapshot(trainer, state, history=b"", buffers=None):
    """The Checkpoint of the current state on rank 0, None on the others. A collective: every rank calls it.

    buffers   three arrays (flat.size,) into which weights and moments are copied. None: the checkpoint shares the
              trainer's arrays if it can, and is valid until the next step; gradients may be overwritten
    """
    arrays = _gather(trainer, buffers)
    if trainer.world.rank:
        return None
    weights, m, v = map(trainer.flat.named_views, arrays)
    moments = {f"m.{name}": array for name, array in m.items()} | {f"v.{name}": array for name, array in v.items()}
    loss_scale = trainer.loss_scale.state_dict()
    state = replace(state, step=trainer.done, position=trainer.position, loss_scale=loss_scale)
    config = trainer.model.config.to_dict()
    flat, optimizer = trainer.flat, trainer.optimizer
    return Checkpoint(
        weights, moments, optimizer.t, state.to_dict(), state.tokenizer, config, history, flat.frozen,
        dict(optimizer.missed),
    )  # fmt: skip


def _gather(trainer, buffers):
    """Weights, m and v of all parameters as NumPy arrays (flat.size,) on rank 0; None on the others."""
    flat, reducer, optimizer = trainer.flat, trainer.reducer, trainer.optimizer
    outs = buffers or [None] * 3
    if buffers is None and reducer.shards and trainer.config.device == "cpu":
        outs = [None, flat.grad, None]                            # unused memory at the end of a training
    m, v = (reducer.gather(own, "moments", out) for own, out in zip((optimizer.m, optimizer.v), outs[1:]))
    if outs[1] is not None and buffers is None:
        flat.use_grad(flat.grad_buffer)                           # what is frozen has no gradient, whatever is in there
    if trainer.world.rank:
        return None
    arrays = [to_host(array) for array in (flat.data, m, v)]
    for i, out in enumerate(outs):
        if out is not None and out is not arrays[i]:
            np.copyto(out, arrays[i])
            arrays[i] = out
    return arrays


def restore(trainer, checkpoint):
    """Load a checkpoint into this rank's trainer. Raises UserError if it does not fit the model, or is of no use.

    Parameters that were frozen are frozen again; those that are frozen already remain so.
    """
    try:
        # lab: begin exact_checkpoint
        trainer.model.load_state_dict(checkpoint.weights)
        trainer.optimizer.load_state_dict(checkpoint.moments, checkpoint.t, checkpoint.missed)
        trainer.flat.freeze({*trainer.flat.frozen, *checkpoint.frozen})
        # lab: end exact_checkpoint
    except ValueError as error:
        raise UserError(f"{checkpoint.path}: {error}") from None
    refuse_useless_start(trainer.flat, checkpoint.path, "remove this folder to go on from the checkpoint before it")
    # lab: begin exact_checkpoint
    trainer.done, trainer.position = checkpoint.step, tuple(checkpoint.state["position"])
    # lab: end exact_checkpoint
    trainer.loss_scale.load_state_dict(checkpoint.state.get("loss_scale", {}))


def synchronize(trainer, checkpoint=None):
    """Every rank takes over rank 0's weights, moments, frozen parameters and position in the data. A collective.

    checkpoint   what rank 0 has restored, None on the other ranks: if each rank keeps a part of the moments
                 (--zero 1), rank 0 has no other complete ones
    """
    world, reducer, optimizer = trainer.world, trainer.reducer, trainer.optimizer
    trainer.loss_scale.load_state_dict(world.broadcast_object(trainer.loss_scale.state_dict()))
    progress = optimizer.t, optimizer.missed, trainer.flat.frozen, trainer.done, trainer.position
    optimizer.t, optimizer.missed, frozen, trainer.done, trainer.position = world.broadcast_object(progress)
    trainer.flat.freeze(frozen)
    world.broadcast(trainer.flat.data, "weights")
    wrote(trainer.flat.data)
    if trainer.done and reducer.shards:
        moments = optimizer.full_moments(checkpoint.moments) if checkpoint else (None, None)
        for complete, own in zip(moments, (optimizer.m, optimizer.v)):
            reducer.scatter(complete, own, "moments")
    elif trainer.done:
        for own in (optimizer.m, optimizer.v):
            world.broadcast(own, "moments")
