"""cuDNN's attention, called through its front end (cudnn_library.py).

What is to be computed is described as a graph of tensors, each with its dims, its strides and a type; here it has one
node, attention or its backward. The library chooses an engine for it and compiles it, some tenths of a second, once
for each kind of problem: that is a Plan. Running it takes addresses, memory that the engine may use, and a stream, so a
CUDA graph can contain it, if it has run before.

A plan and a handle of the library belong to one thread and one GPU. Neither is ever freed: a CUDA graph that was
recorded may still launch their kernels. That is bounded, since attention_cudnn.py asks for few lengths.
"""

import math
import threading
from typing import Any, NamedTuple

from ops.kernels.cuda.cudnn_library import handle, load_library
from tinygrad2.errors import UserError

_here = threading.local()
_workspaces: dict[tuple[int, int], list[Any]] = {}  # (device, stream) -> memory for engines; the last is the largest


class Problem(NamedTuple):
    """What a plan is for.

    kind       "forward" or "backward"
    dtype      "bfloat16" or "float16"
    shape      (B, nh, T, hs)
    strides    name of a tensor -> its strides, in elements; as a tuple of pairs
    device     the number of the GPU
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[tuple[str, tuple[int, ...]], ...]
    device: int


class Plan:
    """A graph that the library has built, and the bytes of memory that it needs to run."""

    def __init__(self, problem, handle):
        cudnn = load_library()
        kinds = cudnn.data_type
        self.problem, self.handle = problem, handle
        self.graph = cudnn.pygraph(
            io_data_type=kinds.BFLOAT16 if problem.dtype == "bfloat16" else kinds.HALF,
            intermediate_data_type=kinds.FLOAT, compute_data_type=kinds.FLOAT, handle=handle,
        )  # fmt: skip
        self.tensors = self._forward(cudnn) if problem.kind == "forward" else self._backward(cudnn)
        try:
            self.graph.validate()
            self.graph.build_operation_graph()
            self.graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            self.graph.check_support()
            self.graph.build_plans()
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as error:
            raise UserError(f"--gpu-attention cudnn: cuDNN has no attention ({problem.kind}) for {problem.dtype} "
                            f"{problem.shape} here ({error}): use --gpu-attention own") from error  # fmt: skip
        self.workspace = self.graph.get_workspace_size()

    def run(self, addresses, workspace):
        """addresses    {name of a tensor: where it is}; workspace: where self.workspace bytes are. Starts the work on
        the stream of the handle."""
        pack = {self.tensors[name]: address for name, address in addresses.items()}
        self.graph.execute(pack, workspace, handle=self.handle)

    def _forward(self, cudnn):
        q, k, v = (self._input(name) for name in "qkv")
        out, stats = self.graph.sdpa(q=q, k=k, v=v, generate_stats=True, name="attention", **self._options(cudnn))
        return dict(q=q, k=k, v=v, out=self._output(out, "out"), stats=self._statistics(cudnn, stats.set_output(True)))

    def _backward(self, cudnn):
        found = {name: self._input(name) for name in ("q", "k", "v", "out", "dout")}
        q, k, v, out, dout = found.values()
        *batch, _ = self.problem.shape
        stats = self.graph.tensor(dim=[*batch, 1], stride=self._rows(), data_type=cudnn.data_type.FLOAT, name="stats")
        gradients = self.graph.sdpa_backward(
            q=q, k=k, v=v, o=out, dO=dout, stats=stats, use_deterministic_algorithm=True, name="attention_backward",
            **self._options(cudnn),
        )  # fmt: skip
        outputs = {name: self._output(tensor, name) for name, tensor in zip(("dq", "dk", "dv"), gradients)}
        return found | dict(stats=stats) | outputs

    def _options(self, cudnn):
        """The scale, and the mask: key j <= query i, the bound on the right of the diagonal that begins at (0, 0)."""
        scale = 1 / math.sqrt(self.problem.shape[-1])
        top_left = cudnn.diagonal_alignment.TOP_LEFT
        return dict(attn_scale=scale, diagonal_alignment=top_left, diagonal_band_right_bound=0)

    def _input(self, name):
        strides = dict(self.problem.strides)[name]
        return self.graph.tensor(dim=list(self.problem.shape), stride=list(strides), name=name)

    def _output(self, tensor, name):
        strides = dict(self.problem.strides)[name]
        return tensor.set_output(True).set_dim(list(self.problem.shape)).set_stride(list(strides)).set_name(name)

    def _statistics(self, cudnn, stats):
        *batch, _ = self.problem.shape
        return stats.set_dim([*batch, 1]).set_stride(self._rows()).set_data_type(cudnn.data_type.FLOAT)

    def _rows(self):
        """The strides of a contiguous (B, nh, T, 1)."""
        _, nh, T, _ = self.problem.shape
        return [nh * T, T, 1, 1]


def run(xp, problem, arrays):
    """Run the plan of a problem, built if there is none yet, on the current stream. arrays: {name of a tensor: array}.

    Raises UserError if the library has no plan for the problem.
    """
    stream = xp.cuda.get_current_stream().ptr
    plans = vars(_here).setdefault("plans", {})
    plan = plans.get(problem)
    if plan is None:
        plan = plans[problem] = Plan(problem, handle(problem.device))
    load_library().set_stream(handle=plan.handle, stream=stream)
    memory = _workspace(xp, problem.device, stream, plan.workspace)
    plan.run({name: array.data.ptr for name, array in arrays.items()}, memory.data.ptr)


def _workspace(xp, device, stream, size):
    """Memory that the calls on a stream use in turn. One that is too small stays: recorded graphs have its address."""
    kept = _workspaces.setdefault((device, stream), [])
    if not kept or kept[-1].nbytes < size:
        kept.append(xp.empty(max(size, 1), dtype=xp.uint8))
    return kept[-1]
