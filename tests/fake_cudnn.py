"""A stand-in for the module `cudnn`, NVIDIA's front end of cuDNN, as far as attention is called: over NumPy.

    def test_something(monkeypatch):
        fake = fake_cudnn.install(monkeypatch)       # `import cudnn` returns it until the test ends
        ...
        fake.plans, fake.executed                    # what was built, and what has run: names of nodes

It has the names and the keywords of the front end (the real one, where it is installed, is asked for the same graphs in
test_attention_cudnn.py) and refuses what that refuses or does wrong: a tensor without its dims, strides or type, heads
of other sizes, addresses that are no multiple of 16 bytes or outside of every array, a stream or a handle that is not
the current one, a call before the plan is built, a plan that is built while a stream captures. A run fills its
workspace.
"""

import ctypes
import functools
import math
import sys
import threading
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import strict_cupy
from strict_capture import recorded, refused

from ops.attention import Attention
from ops.kernels.cuda import attention_cudnn, cudnn_library, cudnn_plans
from tinygrad2.halves import half_dtype

VERSION = 91900
data_type = Enum("data_type", "NOT_SET FLOAT HALF BFLOAT16")
heur_mode = Enum("heur_mode", "A B FALLBACK")
diagonal_alignment = Enum("diagonal_alignment", "TOP_LEFT BOTTOM_RIGHT")
WORKSPACE = {"sdpa": 0, "sdpa_backward": 4096}  # bytes


class cudnnGraphNotSupportedError(Exception):
    """The library has no engine for a graph."""


class tensor:
    """A tensor of a graph, not an array: what set_... was told."""

    def __init__(self, dim=(), stride=(), data_type=data_type.NOT_SET, name=""):
        self.dim, self.stride, self.kind, self.name, self.is_output = list(dim), list(stride), data_type, name, False

    def set_output(self, value):
        self.is_output = value
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, data_type):
        self.kind = data_type
        return self

    def set_name(self, name):
        self.name = name
        return self


class pygraph:
    """A graph with one node."""

    def __init__(self, name="test_graph", io_data_type=data_type.NOT_SET, intermediate_data_type=data_type.NOT_SET,
                 compute_data_type=data_type.NOT_SET, handle=None):
        assert intermediate_data_type == compute_data_type == data_type.FLOAT
        assert handle in library.handles, "not a handle of create_handle"
        self.io, self.handle, self.state, self.node, self.tensors = io_data_type, handle, "", "", {}

    def tensor(self, dim, stride, data_type=data_type.NOT_SET, name=""):
        return tensor(dim, stride, data_type, name)

    def sdpa(self, q, k, v, attn_scale=None, generate_stats=None, diagonal_alignment=diagonal_alignment.TOP_LEFT,
             diagonal_band_right_bound=None, name=""):
        assert generate_stats is True
        self._node("sdpa", dict(q=q, k=k, v=v), attn_scale, diagonal_alignment, diagonal_band_right_bound)
        self.tensors |= dict(out=tensor(), stats=tensor())
        return [self.tensors["out"], self.tensors["stats"]]

    def sdpa_backward(self, q, k, v, o, dO, stats, attn_scale=None, diagonal_alignment=diagonal_alignment.TOP_LEFT,
                      diagonal_band_right_bound=None, use_deterministic_algorithm=False, name=""):
        assert use_deterministic_algorithm is True
        inputs = dict(q=q, k=k, v=v, out=o, dout=dO, stats=stats)
        self._node("sdpa_backward", inputs, attn_scale, diagonal_alignment, diagonal_band_right_bound)
        self.tensors |= dict(dq=tensor(), dk=tensor(), dv=tensor())
        return [self.tensors[name] for name in ("dq", "dk", "dv")]

    def _node(self, node, inputs, scale, alignment, bound):
        assert not self.node and alignment == diagonal_alignment.TOP_LEFT and bound == 0
        self.node, self.scale, self.tensors = node, scale, dict(inputs)

    # -- from a graph to a plan, in this order

    def validate(self):
        B, nh, T, hs = self.tensors["q"].dim
        for name, x in self.tensors.items():
            outputs = ("out", "stats") if self.node == "sdpa" else ("dq", "dk", "dv")
            assert x.is_output == (name in outputs), name
            expected = [B, nh, T, 1] if name == "stats" else [B, nh, T, hs]
            assert x.dim == expected and len(x.stride) == 4 and x.stride[3] == 1, name
            assert x.kind == (data_type.FLOAT if name == "stats" else data_type.NOT_SET), name
        if hs % 8 or hs > 128:
            raise cudnnGraphNotSupportedError("hidden_dim should be less than or equal to 128 and a multiple of 8")
        assert math.isclose(self.scale, hs**-0.5)
        self._then("", "validated")

    def build_operation_graph(self):
        self._then("validated", "lowered")

    def create_execution_plans(self, modes):
        assert modes == [heur_mode.A, heur_mode.FALLBACK]
        if library.has_no_engine:
            raise RuntimeError("No valid engine configs")
        self._then("lowered", "planned")

    def check_support(self):
        self._then("planned", "supported")

    def build_plans(self):
        refused("building a plan of cuDNN")
        self._then("supported", "built")
        library.plans.append((self.node, *self.tensors["q"].dim))

    def _then(self, before, after):
        assert self.state == before, f"{after} after {self.state or 'nothing'}"
        self.state = after

    def get_workspace_size(self):
        assert self.state == "built"
        return WORKSPACE[self.node]

    # -- the work

    def execute(self, tensor_to_device_buffer, workspace, handle=None):
        assert self.state == "built" and handle == self.handle
        assert library.streams[handle] == strict_cupy.cupy.cuda.get_current_stream().ptr, "another stream"
        names = {id(x): name for name, x in self.tensors.items()}
        places = {names[id(x)]: address for x, address in tensor_to_device_buffer.items()}
        assert places.keys() == self.tensors.keys()
        assert all(type(address) is int for address in (*places.values(), workspace))
        arrays = {name: self._array(name, address) for name, address in places.items()}
        memory = _view(workspace, max(1, WORKSPACE[self.node]), np.uint8, (WORKSPACE[self.node],), (1,))

        def run():
            memory[...] = 0xFF
            library.executed.append(self.node)
            compute = _forward if self.node == "sdpa" else _backward
            compute(arrays, self.scale)

        recorded(run)

    def _array(self, name, address):
        x = self.tensors[name]
        assert address % 16 == 0, f"{name} begins at an address that is no multiple of 16"
        dtype = np.dtype(np.float32) if x.kind == data_type.FLOAT else half_dtype(
            "bfloat16" if self.io == data_type.BFLOAT16 else "float16")  # fmt: skip
        strides = [stride * dtype.itemsize for stride in x.stride]
        size = sum((n - 1) * stride for n, stride in zip(x.dim, strides)) + dtype.itemsize
        return _view(address, size, dtype, x.dim, strides)


def _view(address, size, dtype, shape, strides):
    """The array there, if the memory belongs to one of the stand-in for CuPy."""
    for owner in list(strict_cupy._owners.values()):
        start = owner._a.ctypes.data
        if start <= address and address + size <= start + max(1, owner._a.nbytes):
            buffer = (ctypes.c_char * size).from_address(address)
            buffer.owner = owner
            return np.ndarray(shape, dtype, buffer, 0, strides)
    raise AssertionError(f"{size} bytes at {address:#x} are outside of every array")


def _forward(arrays, scale):
    q, k, v = (arrays[name].astype(np.float64) for name in "qkv")
    arrays["out"][...] = Attention(np, [False] * 3).forward(q, k, v)
    scores = np.where(np.tri(q.shape[2], dtype=bool), scale * q @ k.swapaxes(-1, -2), -np.inf)
    arrays["stats"][...] = np.logaddexp.reduce(scores, -1, keepdims=True)        # natural


def _backward(arrays, scale):
    q, k, v, out, dout, stats = (arrays[name].astype(np.float64) for name in ("q", "k", "v", "out", "dout", "stats"))
    w = np.where(np.tri(q.shape[2], dtype=bool), np.exp(scale * q @ k.swapaxes(-1, -2) - stats), 0)
    ds = scale * w * (dout @ v.swapaxes(-1, -2) - (dout * out).sum(-1, keepdims=True))
    arrays["dq"][...], arrays["dk"][...] = ds @ k, ds.swapaxes(-1, -2) @ q
    arrays["dv"][...] = w.swapaxes(-1, -2) @ dout


# -- the module --------------------------------------------------------------------------------------------------------


class _Library:
    """plans           (node, B, nh, T, hs) of each plan that was built
    executed        the node of each run
    has_no_engine   the next plan cannot be built
    """

    def __init__(self):
        self.plans, self.executed, self.handles, self.streams, self.has_no_engine = [], [], [], {}, False


library = _Library()


def create_handle():
    library.handles.append(1000 + len(library.handles))
    return library.handles[-1]


def set_stream(handle, stream):
    assert handle in library.handles
    library.streams[handle] = stream


def install(monkeypatch, version=VERSION):
    """Make `import cudnn` return the stand-in until the test ends; nothing has been built then. Returns its state."""
    module = ModuleType("cudnn")
    names = data_type, heur_mode, diagonal_alignment, cudnnGraphNotSupportedError, pygraph, create_handle, set_stream
    for value in names:
        setattr(module, value.__name__, value)
    module.backend_version, module.__spec__ = lambda: version, ModuleSpec("cudnn", None)
    monkeypatch.setitem(sys.modules, "cudnn", module)
    library.__init__()
    forget(monkeypatch)
    return library


def forget(monkeypatch):
    """Nothing of an earlier module is kept."""
    load = functools.cache(cudnn_library.load_library.__wrapped__)
    for module in (cudnn_library, cudnn_plans, attention_cudnn):
        monkeypatch.setattr(module, "load_library", load)
    for module in (cudnn_library, cudnn_plans):
        monkeypatch.setattr(module, "_here", threading.local())
    monkeypatch.setattr(cudnn_plans, "_workspaces", {})
