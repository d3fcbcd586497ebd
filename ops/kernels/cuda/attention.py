"""Attention on the GPU. Same formulas; what changes, and why:

- No T x T array: a block has 64 or 128 queries and passes by the keys in tiles; of the scores one tile exists, in
  registers. The reference writes and reads (B, nh, T, T) about ten times. Tiles that no query sees are left out, half
  of all work at long T. (FlashAttention, Dao et al. 2022; with the loops in this order, FlashAttention-2, Dao 2023.)
- Not w but the logarithm of each row's sum is kept, float32, to base 2; backward computes w again.
- Products of 16-bit arrays run on tensor cores (attention_forward.cuh, attention_backward.cuh), sums are float32.
  Weights and ds are rounded to 16 bits before they are multiplied.
- So do products of float32 with --matmul-precision high or medium, in TF32 (attention_tf32.cuh): all factors, weights
  and ds among them, are rounded to 11 significant bits. Else float32 has no tensor cores (attention_plain.cuh).
- backward has no atomic additions: dk and dv in one kernel, dq in another, 7 products in place of 5. Two runs give
  the same bits.
- q, k and v are read in place, as slices of the packed (B, T, 3C) projection; dq, dk and dv are written side by side,
  and so are the gradient of the projection without a copy (split_heads.py). out has the memory that merge_heads
  returns.
- Dropout's mask is computed where it is used, the same bits as the reference's.
- GPUs of compute capability 9.0 have other products for this (attention_hopper.py).
- Up to 4 queries (generation): the keys are divided among blocks, so that all of the GPU reads the cache.

Counts for (B, nh, T, hs), N = B nh T hs elements of 2 bytes: forward 4 N T operations, half of that where causal tiles
are left out, and 8 N bytes if the keys of a head stay in the L2 cache; backward 14 N T, half as well, and 26 N bytes.
Per block as NVRTC 13.0 compiles it for sm_80 and sm_90 (bfloat16, no dropout), registers of its 128 threads, and bytes:

              hs <= 64                  hs <= 128
    forward   223, 226    49,152        183, 190    49,152
    dk, dv    228, 232    50,176        252, 245    66,048
    dq        201, 206    49,152        181, 188    65,536
"""

import math

import numpy as np

from ops.attention import Attention
from ops.kernels.cuda.attention_arguments import dropout_hash, four_axes, log2_scale, places, sizes, strides, wide_rows
from ops.kernels.cuda.attention_hopper import tiles_for
from ops.kernels.cuda.attention_tiles import PLAIN
from ops.kernels.cuda.launch import launch, result_dtype
from tinygrad2.halves import is_floating

_FEW = 4                                                          # queries


class AttentionCUDA(Attention, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, q, k, v):
        for x in (q, k, v):
            if not is_floating(x.dtype) or x.dtype.itemsize > 4:
                return False
        if not 2 <= q.ndim <= 4 or k.shape != v.shape or q.size == 0:
            return False
        (*batch, Tq, hs), (*batch_k, Tk, hs_k) = q.shape, k.shape
        return batch == batch_k and hs == hs_k <= 256 and Tq <= Tk

    def forward(self, q, k, v, p=0.0, key=0, first=0):
        xp, shape, dtype = self.xp, q.shape, result_dtype(self)
        q = four_axes(xp, q, dtype)
        k = four_axes(xp, k, dtype)
        v = four_axes(xp, v, dtype)
        B, nh, Tq, hs = q.shape
        out = xp.empty((B, Tq, nh, hs), dtype).transpose(0, 2, 1, 3)
        logsum = xp.empty((B, nh, Tq), np.float32)
        constants = dropout_hash(xp, p, key, first)
        self.save(q, k, v, out, logsum, constants, p)
        if Tq <= _FEW and p == 0:
            attend_few(xp, q, k, v, out, logsum)
        else:
            tiles = tiles_for(AttentionCUDA, xp, dtype, hs, p, self.precision)
            args = *places(q, k, v), out, logsum, *sizes(q, k)
            tail = log2_scale(hs), *constants
            _run(xp, tiles, "forward", q, Tq, args, wide_rows(q, k, v), tail)
        return out.reshape(shape)

    def backward(self, dout):
        xp, (q, k, v, out, logsum, constants, p) = self.xp, self.saved
        shape_q, shape_k = dout.shape, (*dout.shape[:-2], *k.shape[-2:])
        dout = four_axes(xp, dout, q.dtype)
        (B, nh, Tq, hs), Tk, dtype = q.shape, k.shape[2], q.dtype
        if Tq == Tk:
            packed = xp.empty((B, Tk, 3, nh, hs), dtype)
            dq, dk, dv = packed.transpose(2, 0, 3, 1, 4)          # views, each (B, nh, Tk, hs)
        else:
            dq = xp.empty((B, nh, Tq, hs), dtype)
            dk, dv = xp.empty((2, B, nh, Tk, hs), dtype)
        given = *places(q, k, v, dout), logsum, _delta(xp, out, dout)
        tiles = tiles_for(AttentionCUDA, xp, dtype, hs, p, self.precision)
        wide = wide_rows(q, k, v, dout)
        tail = log2_scale(hs), np.float32(1 / math.sqrt(hs)), *constants
        args = *given, dk, dv, *strides(dk), *sizes(q, k)
        _run(xp, tiles, "dkdv", q, Tk, args, wide, tail)
        args = *given, dq, *strides(dq), *sizes(q, k)
        _run(xp, tiles, "dq", q, Tq, args, wide, tail)
        return dq.reshape(shape_q), dk.reshape(shape_k), dv.reshape(shape_k)


def _run(xp, tiles, name, q, rows, args, wide, tail):
    """Launch a kernel for so many rows of each head."""
    block = tiles.blocks[name]
    if tiles in PLAIN.values():
        args = *args, *tail
    else:
        args = *args, wide, *tail
    grid = q.shape[0] * q.shape[1] * -(-rows // block.rows)
    launch(xp, tiles.file, f"{tiles.prefix}_{name}", q.dtype, grid, block.threads, args, block.shared)


def _delta(xp, out, dout):
    """The sums over channels of dout * out, (B, nh, Tq) float32."""
    B, nh, Tq, hs = out.shape
    delta = xp.empty((B, nh, Tq), np.float32)
    rows = B * nh * Tq
    counts = np.int64(rows), np.int32(nh), np.int32(Tq), np.int32(hs)
    args = out, *places(dout), delta, *counts, wide_rows(dout, out)
    launch(xp, "attention_delta", "attention_delta", out.dtype, -(-rows // 8), 256, args)
    return delta


def attend_few(xp, q, k, v, out, logsum, position=None):
    """Forward for a few queries: parts of the keys, then their sum.

    position    (1,) int64, the place of the last key that counts: the GPU knows it, and all is launched for Tk keys.
                The bits are those of so many keys: a part's length does not depend on their number
    """
    (B, nh, Tq, hs), Tk = q.shape, k.shape[2]
    rows = B * nh * Tq
    length = 64 if rows < 64 else 256                             # of a part
    splits = -(-Tk // length)
    partial = xp.empty((rows, splits, 2 + hs), np.float32)
    parts = np.int32(splits), np.int32(length)
    tail = wide_rows(q, k, v), log2_scale(hs), *parts
    args = *places(q, k, v), partial, *sizes(q, k), *tail, position
    launch(xp, "attention_cached", "attention_split", q.dtype, rows * splits, 128, args)
    counts = np.int32(nh), np.int32(Tq), np.int32(hs)
    args = partial, out, logsum, *counts, parts[0]
    launch(xp, "attention_cached", "attention_join", q.dtype, rows, 128, args)
