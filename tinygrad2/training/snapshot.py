"""From a trainer to a checkpoint and back: over all ranks, wherever each part of the state lies."""

import numpy as np

from tinygrad2.backend import to_host
from tinygrad2.errors import UserError
from tinygrad2.training.checkpoint import Checkpoint


class Snapshots:
    """What a Trainer with model, flat, optimizer, reducer, world, config, done and position needs for checkpoints."""

    copies = loaded = None                                        # of weights and moments, whole

    def gather(self, copy=True):
        """On rank 0: weights and both moments, whole, on the host; copies where the training goes on."""
        m, v = self.optimizer.m, self.optimizer.v
        if self.world.rank == 0 and copy:  # into the same memory each time: fresh memory costs ten times as much
            self.copies = self.copies or [np.empty(self.flat.size, self.flat.data.dtype) for _ in range(3)]
        outs = self.copies if copy and self.copies else [None] * 3
        if not copy and self.reducer.shards and self.config.device == "cpu":
            outs = [None, self.flat.grad, None]                   # the training ends: gradients are needed no more
        whole = [self.flat.data, *(self.reducer.gather(own, "moments", out) for own, out in zip((m, v), outs[1:]))]
        if self.world.rank:
            return None
        whole = [to_host(array) for array in whole]
        for out, array in zip(outs, whole):
            if out is not None and out is not array:
                np.copyto(out, array)
        return [array if out is None else out for out, array in zip(outs, whole)]

    def checkpoint(self, arrays, state, tokenizer, history):
        """Everything, with the arrays of `gather`. `state` is what the loop wants back besides."""
        state = state | {"step": self.done, "position": list(self.position)}
        weights, m, v = map(self.flat.named_views, arrays)
        moments = {f"m.{name}": array for name, array in m.items()} | {f"v.{name}": array for name, array in v.items()}
        return Checkpoint(weights, moments, self.optimizer.t, state, tokenizer, self.model.config.to_dict(), history)

    def restore(self, checkpoint):
        """Go back to where the checkpoint was made."""
        try:
            self.model.load_state_dict(checkpoint.weights)
            self.optimizer.load_state_dict(checkpoint.moments, checkpoint.t)
            self.loaded = self.optimizer.whole_moments(checkpoint.moments) if self.reducer.shards else None
        except ValueError as error:
            raise UserError(f"{checkpoint.path}: {error}") from None
        self.done, self.position = checkpoint.step, tuple(checkpoint.state["position"])

    def synchronize(self):
        """Every rank takes over what rank 0 has: it alone reads checkpoints."""
        place = self.optimizer.t, self.done, self.position
        self.optimizer.t, self.done, self.position = self.world.broadcast_object(place)
        self.world.broadcast(self.flat.data, "weights")
        for i, moment in enumerate((self.optimizer.m, self.optimizer.v) if self.done else ()):
            if self.reducer.shards:
                self.reducer.scatter(self.loaded and self.loaded[i], moment, "moments")
            else:
                self.world.broadcast(moment, "moments")
        self.loaded = None
