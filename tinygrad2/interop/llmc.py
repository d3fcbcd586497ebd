"""Models and debug states of llm.c (Karpathy, 2024): GPT-2 in C.

    header    int32[256]: magic 20240326, version, longest context T, V, layers L, heads, C, padded vocabulary Vp, 0...
    tensors   wte (Vp, C), wpe (T, C), then each tensor of a block, for all layers one after the other, ln_f

    version   dtype       rows of wte
    1         float32     V
    3         float32     Vp, the multiple of 128 above V; rows from V on are zeros
    5         bfloat16    Vp

Matrices are (out, in), ours are (in, out); the head is the token embedding. A debug state holds one batch and what a
model computes for it: x, y, logits (V wide), loss, and all gradients in the order of the model's tensors, in float32.

    header    int32[256]: magic 20240327, version 2, B, T, 0...       (version 1: gradients without padding)

https://github.com/karpathy/llm.c
"""

import math
from dataclasses import dataclass

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.io.file_bytes import FileBytes
from tinygrad2.io.files import atomic_write
from tinygrad2.io.lazy_tensor import BYTES, LazyTensor, write_elements

MODEL, DEBUG_STATE = 20240326, 20240327
_HEADER = 1024  # bytes
_VERSIONS = {1: "F32", 3: "F32", 5: "BF16"}
_BLOCK = (  # tensors of a block, in the order of the file: name, shape as a function of C
    ("ln_1.weight", lambda C: (C,)),
    ("ln_1.bias", lambda C: (C,)),
    ("attn.c_attn.weight", lambda C: (3 * C, C)),
    ("attn.c_attn.bias", lambda C: (3 * C,)),
    ("attn.c_proj.weight", lambda C: (C, C)),
    ("attn.c_proj.bias", lambda C: (C,)),
    ("ln_2.weight", lambda C: (C,)),
    ("ln_2.bias", lambda C: (C,)),
    ("mlp.c_fc.weight", lambda C: (4 * C, C)),
    ("mlp.c_fc.bias", lambda C: (4 * C,)),
    ("mlp.c_proj.weight", lambda C: (C, 4 * C)),
    ("mlp.c_proj.bias", lambda C: (C,)),
)


def layout(n_layer, C, rows, T):
    """Yields (our name, shape in the file, is it transposed) of every tensor, in file order; wte has `rows`."""
    yield "wte.weight", (rows, C), False
    yield "wpe.weight", (T, C), False
    for name, shape in _BLOCK:
        for i in range(n_layer):
            yield f"h.{i}.{name}", shape(C), len(shape(C)) == 2
    yield "ln_f.weight", (C,), False
    yield "ln_f.bias", (C,), False


def read_model(path):
    """(tensors {our name: LazyTensor}, fields of GPTConfig). Raises UserError, one line, for a file that is not a
    complete model of version 1, 3 or 5."""
    buffer = _opened(path, "model")
    size = len(buffer)
    magic, version, T, V, L, heads, C, padded = np.frombuffer(bytes(buffer[:32]), "<i4").tolist()
    if magic != MODEL:
        raise _corrupt(path, f"its magic is {magic}, not {MODEL}")
    if version not in _VERSIONS:
        raise _corrupt(path, f"version is {version}; 1 and 3 (float32) and 5 (bfloat16) are supported")
    for name, value in (("max_seq_len", T), ("vocab_size", V), ("num_layers", L), ("num_heads", heads),
                        ("channels", C)):  # fmt: skip
        if not 0 < value < 1 << 24:
            raise _corrupt(path, f"{name} is {value}")
    if L > 10_000 or C % heads:
        raise _corrupt(path, f"{L} layers and {heads} heads for {C} channels")
    rows = V if version == 1 else padded
    if not V <= rows < 1 << 24:
        raise _corrupt(path, f"padded_vocab_size is {padded}, with a vocab_size of {V}")
    code = _VERSIONS[version]
    expected = _HEADER + BYTES[code] * sum(math.prod(shape) for _, shape, _ in layout(L, C, rows, T))
    if size != expected:
        raise _corrupt(path, f"{size:,} bytes long instead of {expected:,}")
    tensors = _tensors(buffer[_HEADER:], code, layout(L, C, rows, T))
    tensors["wte.weight"] = tensors["wte.weight"].first(V)
    config = dict(block_size=T, vocab_size=V, n_layer=L, n_head=heads, n_embd=C, dropout=0.0, bias=True,
                  tied_head=True, activation="gelu", n_inner=0, norm_eps=1e-5)  # fmt: skip
    return tensors, config


def _tensors(buffer, code, entries):
    tensors, start = {}, 0
    for name, shape, transposed in entries:
        stop = start + BYTES[code] * math.prod(shape)
        tensors[name] = LazyTensor(buffer[start:stop], code, shape, transposed)
        start = stop
    return tensors


def write_model(path, tensors, config, version=3):
    """Write a model of version 1 or 3 (float32) or 5 (bfloat16). Returns notes for the user.

    tensors   {our name: array or LazyTensor};  config   fields of GPTConfig

    Raises UserError for a model that llm.c's format cannot hold.
    """
    notes, code = check_supported(path, config), _VERSIONS[version]
    header = np.zeros(256, "<i4")
    V, T, L, C = (config[name] for name in ("vocab_size", "block_size", "n_layer", "n_embd"))
    rows = V if version == 1 else padded_vocabulary(V)
    header[:8] = MODEL, version, T, V, L, config["n_head"], C, 0 if version == 1 else rows
    with atomic_write(path) as file:
        file.write(header.tobytes())
        _write_tensors(file, tensors, layout(L, C, rows, T), code)
    return notes


def padded_vocabulary(V):
    """V rounded up to a multiple of 128: a GPU multiplies matrices of such a width fast."""
    return -(-V // 128) * 128


def check_supported(path, config):
    """Notes about what llm.c computes differently. Raises UserError for a model that its format cannot hold."""
    C = config["n_embd"]
    if config.get("n_inner", 0) not in (0, 4 * C):
        raise UserError(f"{path}: llm.c's MLPs are 4 x {C} wide, this model's {config['n_inner']}: not supported there")
    if config.get("norm_eps", 1e-5) != 1e-5:
        raise UserError(f"{path}: llm.c's layernorms add 1e-5, this model's {config['norm_eps']}: not supported there")
    if not config["tied_head"]:
        raise UserError(f"{path}: llm.c's head is the token embedding, this model's is not: not supported there")
    notes = []
    if config["activation"] != "gelu":
        notes.append("the model was trained with the exact GELU; llm.c computes its tanh form (off by 5e-4 at most)")
    if not config["bias"]:
        notes.append("the model has no biases; llm.c's always has them, so zeros were written")
    return notes


def _write_tensors(file, tensors, entries, code):
    for name, shape, transposed in entries:
        tensor = tensors.get(name)
        if tensor is None:  # a bias that the model does not have
            write_elements(file, np.zeros(shape, np.float32), code)
            continue
        array = tensor.astype(np.float32, copy=False)
        write_elements(file, array.T if transposed else array, code)
        if len(array) < shape[0] and name == "wte.weight":
            write_elements(file, np.zeros((shape[0] - len(array), shape[1]), np.float32), code)


# -- debug states ------------------------------------------------------------------------------------------------------


@dataclass
class DebugState:
    """One batch and what a model computes for it: ids x, y (B, T), logits (B, T, V) float32, loss in nats, grads {our
    name: float32 array in our orientation}."""

    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    loss: float
    grads: dict


def compute_debug_state(model, x, y):
    """The DebugState of a GPT for the batch x, y (B, T): its logits, loss and gradients (not copied)."""
    model.zero_grad()
    logits, loss = model(x, y)
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return DebugState(x, y, logits.numpy(), loss.item(), grads)


def read_debug_state(path, config):
    """The DebugState of a model with this config. Raises UserError, one line, for a file that is not complete, or of a
    model with another config."""
    V, L, C = (config[name] for name in ("vocab_size", "n_layer", "n_embd"))
    buffer = _opened(path, "debug state")
    size = len(buffer)
    magic, version, B, T = np.frombuffer(bytes(buffer[:16]), "<i4").tolist()
    if magic != DEBUG_STATE or version not in (1, 2):
        raise _corrupt(path, f"magic {magic}, version {version}, not {DEBUG_STATE}, 1 or 2", "debug state")
    if not (0 < B < 1 << 20 and 0 < T <= config["block_size"]):
        raise _corrupt(path, f"B is {B} and T {T}, with a model for {config['block_size']} tokens", "debug state")
    rows = V if version == 1 else padded_vocabulary(V)
    n_grads = sum(math.prod(shape) for _, shape, _ in layout(L, C, rows, config["block_size"]))
    expected = _HEADER + 4 * (2 * B * T + B * T * V + 1 + n_grads)
    more, ragged = divmod(size - expected, 4 * C)  # wte may be padded to another number of rows
    if ragged or rows + more < V or version == 1 and more:
        raise _corrupt(path, f"{size:,} bytes long instead of {expected:,} for this model", "debug state")
    ids = np.frombuffer(bytes(buffer[_HEADER : _HEADER + 8 * B * T]), "<i4").reshape(2, B, T)
    if ids.min() < 0 or ids.max() >= V:
        raise _corrupt(path, f"ids from {ids.min()} to {ids.max()} in a vocabulary of {V}", "debug state")
    start = _HEADER + 8 * B * T
    stop = start + 4 * B * T * V
    logits = np.frombuffer(bytes(buffer[start:stop]), "<f4").reshape(B, T, V)
    loss = float(np.frombuffer(bytes(buffer[stop : stop + 4]), "<f4")[0])
    tensors = _tensors(buffer[stop + 4 :], "F32", layout(L, C, rows + more, config["block_size"]))
    tensors["wte.weight"] = tensors["wte.weight"].first(V)
    return DebugState(ids[0], ids[1], logits, loss, {name: tensor.astype() for name, tensor in tensors.items()})


def write_debug_state(path, state, config):
    """Write a DebugState as llm.c's own program does (version 2). Raises UserError as write_model does."""
    check_supported(path, config)
    header = np.zeros(256, "<i4")
    header[:4] = DEBUG_STATE, 2, *state.x.shape
    rows = padded_vocabulary(config["vocab_size"])
    with atomic_write(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(state.x, "<i4"))
        file.write(np.ascontiguousarray(state.y, "<i4"))
        write_elements(file, state.logits.reshape(-1, state.logits.shape[-1]), "F32")
        file.write(np.array([state.loss], "<f4"))
        entries = layout(config["n_layer"], config["n_embd"], rows, config["block_size"])
        _write_tensors(file, state.grads, entries, "F32")


def _opened(path, what):
    """A FileBytes with a header at least."""
    try:
        buffer = FileBytes.open(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if len(buffer) < _HEADER:
        raise _corrupt(path, f"only {len(buffer)} bytes long", what)
    return buffer


def _corrupt(path, problem, what="model"):
    return UserError(f"{path}: not a complete {what} of llm.c: {problem}; copy it again, or create it again")
