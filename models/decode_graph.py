"""New tokens of texts on a GPU as a CUDA graph: the host starts all kernels of a token by one call.

A token is some hundred small kernels, of which the host needs 5 us and more to start each one. The graph
(tinygrad2/gpu/graph.py) is recorded once for the texts of a pack. What changes from token to token is read on the GPU:
the ids of the newest tokens, and their positions, which are also the number of keys in each cache
(ops/kernels/cuda/kv_cache.py). Tokens are drawn on the host, as always.
"""

import functools
import warnings

import numpy as np

from models.kv_cache import KVCache
from tinygrad2.backend import array_module
from tinygrad2.dispatch import fast_version, kernel_mode
from tinygrad2.function import observers
from tinygrad2.gpu.graph import NotRecorded, graph_stream, record
from tinygrad2.precision import precision
from tinygrad2.tensor import Tensor, no_grad
from tinygrad2.writes import last_write


class DecodeGraph:
    """Sends the newest token of each of some texts through the model; the first time as usual, which compiles kernels
    and fills the pool of memory, then by a graph. For other texts, another precision, or once weights have been written
    (their 16-bit copies are not part of the graph) it begins again."""

    def __init__(self, model):
        self.model, self.xp = model, array_module("cuda")
        self.stream, self.pool = graph_stream(), self.xp.cuda.MemoryPool()
        self.recorded_for, self.failed = None, False

    def scores_after(self, caches, tokens):
        """The scores (n, V) after one new token of each of n texts, which joins the text's cache: a NumPy array.

        tokens    n lists of ids. None if it is not one each, or there is no graph for these caches and settings: the
                  usual way then has nothing to undo
        """
        if self.failed or not self._is_for(caches, tokens):
            return None
        texts = caches, precision(), last_write()
        if texts != self.recorded_for:
            self.recorded_for, self.graph = texts, None
            self.state, self.scores = self.xp.empty((2, len(caches)), np.int64), None
        self.stream.wait_event(self.xp.cuda.get_current_stream().record())
        with self.stream, no_grad():
            self.state.set(np.array([[id for (id,) in tokens], [cache.position for cache in caches]]))
            try:
                logits = self._computed(caches).numpy().astype(np.float32, copy=False)
            except NotRecorded as error:
                self.failed = True
                _say_once(str(error))
                return None
        for cache in caches:
            cache.advance(1)
        return logits

    def _is_for(self, caches, tokens):
        model = self.model
        if kernel_mode() != "auto" or observers() or (model.training and getattr(model.config, "dropout", 0)):
            return False
        for cache, new in zip(caches, tokens):
            if len(new) != 1 or not isinstance(cache, KVCache) or not 0 < cache.position < cache.size:
                return False
        return True

    def _computed(self, caches):
        """The scores, as a Tensor (n, V) that the next token overwrites."""
        run = functools.partial(self._forward, _PackOnGPU(caches, self.state[1]))
        if self.scores is None:
            with self.xp.cuda.using_allocator(self.pool.malloc):
                self.scores = run()
            return self.scores
        if self.graph is None:
            self.graph, self.scores = record(self.stream, self.pool, run)
        self.graph.launch(self.stream)
        return self.scores

    def _forward(self, pack):
        return self.model.logits(self.model.hidden(self.state[:1], pack)[0])


class _PackOnGPU:
    """What a CachePack is to a model, for one new token of each text, at positions (n,) that are on the GPU."""

    def __init__(self, caches, positions):
        self.caches, self.all_positions = caches, positions

    def positions(self, batch, T):
        return self.all_positions

    def advance(self, T):
        """The host does it, when the graph has been launched."""

    def layer(self, i):
        return _LayerOnGPU([cache.layer(i) for cache in self.caches], self.all_positions)


class _LayerOnGPU:
    def __init__(self, layers, positions):
        self.layers, self.positions, self.xp = layers, positions, array_module("cuda")

    def attend(self, head, q, k, v):                              # each (1, nh, n, hs)
        """Attention as `head` has it without dropout; k and v join the caches. (1, nh, n, hs)"""
        _, nh, n, hs = q.shape
        out = self.xp.empty((1, n, nh, hs), q.dtype).transpose(0, 2, 1, 3)
        for i, layer in enumerate(self.layers):
            q_i, k_i, v_i, out_i = (x[:, :, i : i + 1] for x in (q.data, k.data, v.data, out))
            arrays = q_i, k_i, v_i, out_i, layer.k, layer.v, self.positions[i : i + 1]
            kernel = fast_version("attend_cached", self.xp, *arrays)
            if kernel is None:
                raise NotRecorded(f"no kernel attends to a cache of {layer.k.dtype} {layer.k.shape}")
            kernel(*arrays)
        return Tensor(out)


@functools.cache
def _say_once(reason):
    warnings.warn(f"no CUDA graph of decoding: {reason}. Tokens take longer", RuntimeWarning, stacklevel=2)
