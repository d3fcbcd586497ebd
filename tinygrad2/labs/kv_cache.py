"""Lab kv_cache: the keys and values of earlier tokens are kept, not computed again."""

import numpy as np

from models.config import GPTConfig
from models.gpt import GPT
from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab, Wrong
from tinygrad2.tensor import Tensor, no_grad

LAB = Lab(
    "kv_cache", "models/kv_cache.py", "a cache of keys and values",
    "k and v are Tensors (B, nh, T, hs) of T new tokens. self.k and self.v are the arrays of this layer, (B, nh, size, "
    "hs), filled up to self.cache.position. Write the new ones behind what is there, and return two Tensors (B, nh, "
    "position + T, hs): all keys and all values so far. The position stays as it is: the model advances it once, when "
    "the tokens have passed through all layers.",
    (
        "The new tokens belong to the places position, position + 1, ..., position + T - 1 of axis 2.",
        "k.shape[2] is T, k.data the array of the Tensor.",
        "self.k[:, :, start:end] = k.data; return Tensor(self.k[:, :, :end]): up to end, not the whole array, of which "
        "the rest is empty.",
    ),
)  # fmt: skip

_CONFIG = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)


def _new(rng, T, batch=1):
    return [Tensor(rng.standard_normal((batch, 2, T, 4)).astype(np.float32)) for _ in range(2)]


def _put(layer, k, v):
    """What append returns, (keys, values)."""
    returned = layer.append(k, v)
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise Wrong(f"append returns {type(returned).__name__}; it must be two Tensors, keys and values")
    return returned


def _append(student, rng, pieces, batch=1):
    """Appends pieces of these lengths to one layer; checks what is returned each time."""
    cache = student.KVCache(_CONFIG, batch)
    past = [np.zeros((batch, 2, 0, 4), np.float32) for _ in range(2)]
    for T in pieces:
        start, new = cache.position, _new(rng, T, batch)
        returned = _put(cache.layer(0), *new)
        if cache.position != start:
            raise Wrong(f"append has moved the position from {start} to {cache.position}: the model advances it once "
                        "for all layers, the next layer would write to the wrong place")  # fmt: skip
        old, past = past, [np.concatenate([a, b.numpy()], 2) for a, b in zip(past, new)]
        for i, name in enumerate(("keys", "values")):
            _compare_part(f"the {name} after {start} + {T} tokens", returned[i], past, old, new, i)
        cache.advance(T)


def _compare_part(what, found, past, old, new, i, more=None):
    own = new[i].numpy()
    suspects = {"keys and values are swapped": past[1 - i]}
    over = np.concatenate([old[i], np.zeros_like(own)], 2)
    over[:, :, : own.shape[2]] = own
    suspects["the new tokens are written at place 0, over the first ones"] = over
    if old[i].shape[2]:
        suspects["the new tokens stand before the old ones"] = np.concatenate([own, old[i]], 2)
    empty = np.concatenate([old[i], np.zeros_like(own)], 2)
    suspects["the new tokens were not stored"] = empty
    shape = getattr(found, "shape", None)
    if shape == own.shape != past[i].shape:
        raise Wrong(f"{what} are the {own.shape[2]} new ones only: attention needs all of the past")
    if shape is not None and len(shape) == 4 and shape[2] == _CONFIG.block_size != past[i].shape[2]:
        raise Wrong(f"{what} have {shape[2]} places: the whole array, with places that hold nothing yet; cut it at "
                    "position + T")  # fmt: skip
    if not isinstance(found, Tensor):
        raise Wrong(f"{what} are {type(found).__name__}, not a Tensor: return Tensor(...)")
    compare(what, found, past[i], suspects=suspects | (more or {}))


@LAB.case(2, "a prompt of 3 tokens in an empty cache")
def _(student, rng):
    _append(student, rng, [3])


@LAB.case(2, "a prompt, then token by token until the cache is full")
def _(student, rng):
    _append(student, rng, [3, 1, 1, 1, 1, 1])


@LAB.case(1, "pieces of any length, and three texts at once")
def _(student, rng):
    _append(student, rng, [1, 4, 2])
    _append(student, rng, [2, 3, 1], batch=3)


@LAB.case(1, "each layer has its own, and all see the same position")
def _(student, rng):
    cache = student.KVCache(_CONFIG)
    first, second = _new(rng, 2), _new(rng, 2)
    empty = [np.zeros((1, 2, 0, 4), np.float32)] * 2
    _put(cache.layer(0), *first)
    returned = _put(cache.layer(1), *second)
    own, other = ([tensor.numpy() for tensor in pair] for pair in (second, first))
    for i, name in enumerate(("keys", "values")):
        more = {"they are those of layer 0": other[i]}
        _compare_part(f"the {name} of layer 1", returned[i], own, empty, second, i, more)


@LAB.case(1, "they stay in the arrays of the cache: it can be copied, and reset")
def _(student, rng):
    cache, copy, new = student.KVCache(_CONFIG), student.KVCache(_CONFIG), _new(rng, 3)
    _put(cache.layer(0), *new)
    cache.advance(3)
    copy.copy_from(cache)
    suspects = {"they were not written into the array: self.k = ... makes another one": np.zeros((1, 2, 3, 4))}
    compare("the keys in cache.k[0]", cache.k[0][:, :, :3], new[0].numpy(), suspects=suspects)
    compare("the keys in a copy of the cache", copy.k[0][:, :, :3], new[0].numpy())
    cache.reset()
    again = _new(rng, 2)
    keys, past = _put(cache.layer(0), *again)[0], [tensor.numpy() for tensor in again]
    _compare_part("the keys after a reset", keys, past, [np.zeros((1, 2, 0, 4), np.float32)] * 2, again, 0)


@LAB.case(3, "a GPT with the cache has the same logits as without")
def _(student, rng):
    model = GPT(_CONFIG, seed=int(rng.integers(1 << 30)))
    for parameter in model.parameters():
        parameter.data = (0.3 * rng.standard_normal(parameter.shape)).astype(np.float32)
    tokens, cache = rng.integers(0, 11, (1, 8)), student.KVCache(_CONFIG)
    with no_grad():
        right = model(tokens)[0].numpy()
        for start, end in ((0, 3), (3, 4), (4, 6), (6, 8)):
            found = model.logits(model.hidden(tokens[:, start:end], cache)).numpy()
            compare(f"the logits at positions {start} .. {end - 1}", found, right[:, start:end], 1e-4)
