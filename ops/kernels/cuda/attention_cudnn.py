"""Attention on the GPU by NVIDIA's library cuDNN, with --gpu-attention cudnn (the default, "own", is attention.py).

Same formulas, other kernels: FlashAttention as NVIDIA writes it for each generation of GPUs. What changes against
attention.py, whose layouts are kept (q, k and v in place as slices of the packed projection, dq, dk and dv side by
side, out as merge_heads returns it):

- What is kept of each row is cuDNN's statistic, (B, nh, T, 1) float32: the *natural* logarithm of the sum over keys of
  e^(q k / sqrt(hs)). Ours is to base 2. So backward belongs to the forward that ran.
- Backward is the deterministic one, slower than the other: two runs give the same bits. It may keep the gradients of
  all scores in memory, 2 bytes for each of the B nh T T (training/gpu_plan.py).
- It takes 16-bit arrays, T a multiple of 64, hs a multiple of 8 up to 128, as many queries as keys, no dropout: cuDNN
  draws other masks than ops/dropout.py. All else runs attention.py. T is that of a training: a plan takes some tenths
  of a second to build, and texts that are scored or continued have any length.
"""

import numpy as np

from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.attention_arguments import four_axes
from ops.kernels.cuda.cudnn_library import load_library, text_of
from ops.kernels.cuda.cudnn_plans import Problem, run
from ops.kernels.cuda.launch import result_dtype
from tinygrad2.errors import UserError
from tinygrad2.halves import is_half
from tinygrad2.precision import MIXED

_LENGTHS = 64  # T is a multiple of it
_LEAST = 80  # compute capability


class AttentionCuDNN(AttentionCUDA, backend="cudnn"):
    by_cudnn = False  # did forward run cuDNN's?

    @classmethod
    def supports(cls, q, k, v):
        if not (q.ndim == 4 and q.shape == k.shape == v.shape and is_half(q.dtype) and q.size):
            return False
        return q.dtype == k.dtype == v.dtype and _fits(*q.shape[2:]) and all(map(_aligned, (q, k, v)))

    def forward(self, q, k, v, p=0.0, key=0, first=0):
        if p or result_dtype(self) != q.dtype:
            return super().forward(q, k, v, p, key, first)
        self.by_cudnn, xp, (B, nh, T, hs) = True, self.xp, q.shape
        out = xp.empty((B, T, nh, hs), q.dtype).transpose(0, 2, 1, 3)
        stats = xp.empty((B, nh, T, 1), np.float32)
        _compute(xp, "forward", dict(q=q, k=k, v=v, out=out), stats)
        self.save(q, k, v, out, stats)
        return out

    def backward(self, dout):
        if not self.by_cudnn:
            return super().backward(dout)
        xp, (q, k, v, out, stats) = self.xp, self.saved
        dout = four_axes(xp, dout, q.dtype)
        dout = dout if _aligned(dout) else dout.copy()
        B, nh, T, hs = q.shape
        dq, dk, dv = xp.empty((B, T, 3, nh, hs), q.dtype).transpose(2, 0, 3, 1, 4)      # views, each (B, nh, T, hs)
        _compute(xp, "backward", dict(q=q, k=k, v=v, out=out, dout=dout, dq=dq, dk=dk, dv=dv), stats)
        return dq, dk, dv


def _compute(xp, kind, arrays, stats):
    """Run cuDNN's kernel on arrays of one shape and dtype, and on the statistics."""
    q = arrays["q"]
    strides = tuple((name, tuple(stride // x.itemsize for stride in x.strides)) for name, x in arrays.items())
    problem = Problem(kind, q.dtype.name, q.shape, strides, xp.cuda.runtime.getDevice())
    run(xp, problem, arrays | dict(stats=stats))


def _fits(T, hs):
    return T % _LENGTHS == 0 and hs % 8 == 0 and hs <= 128


def _aligned(x):
    """Are the channels of a row neighbours, and do all rows begin at multiples of 16 bytes?"""
    return x.strides[-1] == x.itemsize and not any(place % 16 for place in (x.data.ptr, *x.strides[:-1]))


def describe_attention(config, model_config, xp):
    """One line for the user: which attention a training runs. "" where no kernel does.

    config    a TrainConfig. Raises UserError where --gpu-attention cudnn asks for what cuDNN does not have
    """
    if config.gpu_attention != "cudnn":
        is_own = xp is not np and config.kernels != "reference"
        return f"ops/kernels/cuda (--gpu-attention {config.gpu_attention})" if is_own else ""
    refuse_attention(config, model_config)
    capability = xp.cuda.Device().compute_capability
    if int(capability) < _LEAST:
        raise _error(f"this GPU, of compute capability {capability[:-1]}.{capability[-1]}, is too old (8.0)")
    version = text_of(load_library().backend_version())
    return (f"cuDNN {version} (--gpu-attention cudnn), backward deterministic; ops/kernels/cuda where texts have "
            "another length, as in samples")  # fmt: skip


def refuse_attention(config, model_config):
    """Raises UserError where other flags keep cuDNN from computing the attention that --gpu-attention cudnn asks for;
    no GPU is needed to know it."""
    if config.gpu_attention == "cudnn" and (reason := _why_not(config, model_config)):
        raise _error(reason)


def _error(reason):
    return UserError(f"--gpu-attention cudnn: {reason}; or use --gpu-attention own")


def _why_not(config, model_config):
    """What keeps cuDNN from computing a training's attention, and the remedy; "" if nothing does."""
    if config.device == "cpu":
        return "it needs --device cuda"
    if config.kernels == "reference":
        return "with --kernels reference no kernel runs: use --kernels auto"
    if config.dtype not in MIXED:
        return "cuDNN's attention takes 16-bit numbers: use --dtype bfloat16 or float16"
    T, hs = model_config.block_size, model_config.n_embd // model_config.n_head
    if not _fits(T, hs):
        return (f"it needs --block-size a multiple of {_LENGTHS} and heads of a multiple of 8 channels, at most 128, "
                f"not {T} and {hs}")  # fmt: skip
    if model_config.dropout:
        return "cuDNN's dropout has other masks than ours: use --dropout 0"
    return ""
