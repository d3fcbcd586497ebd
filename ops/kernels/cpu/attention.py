"""Attention on the CPU. Same formulas; what changes, and what it bought:

- Queries go in blocks of 64. A block multiplies only the keys up to its own last query, so nothing above the diagonal
  is computed (half of all work at long T), and no T x T matrix exists: one block of scores per thread.
- Not w but the logarithm of each row's sum is kept (as in FlashAttention, Dao et al. 2022): backward computes w again.
- sum over keys of dw * w is the sum over channels of dout * out: put dw = dout vT in, and out = w v comes out.
- Heads are divided among the threads, their small products each on one BLAS thread (a single query's: single_query.py).
- q, k and v are read in place, as slices of the packed (B, T, 3C) projection; dq, dk and dv are written side by side,
  and so are the gradient of the projection without a copy (split_heads.py).
- Dropout's mask is computed where it is used, element by element.
"""

import math

import numpy as np

from ops.attention import Attention
from ops.kernels.cpu import single_query
from ops.kernels.cpu.attention_gemm import add_transposed, four_axes, rows_times_rows, weights_times_rows
from ops.kernels.cpu.blas_gemm import address, available, switch_for
from ops.kernels.cpu.dropout import drop_block
from ops.kernels.cpu.fast_math import exp32, max32
from ops.kernels.cpu.numba_jit import helper, is_float32, jit
from ops.kernels.cpu.spread import spread
from tinygrad2.system.threads import POOL

_BLOCK, _ZERO = 64, np.float32(0)


class AttentionCPU(Attention, backend="numpy"):
    @classmethod
    def supports(cls, q, k, v):
        if not (available and is_float32(q, k, v) and 2 <= q.ndim <= 4 and q.size and k.shape == v.shape):
            return False
        alike = k.shape[:-2] == q.shape[:-2] and k.shape[-1] == q.shape[-1]
        return alike and k.shape[-2] >= q.shape[-2]

    def forward(self, q, k, v, p=0.0, key=0, first=0):
        shape = q.shape
        q, k, v = map(four_axes, (q, k, v))                      # (B, nh, T, hs)
        B, nh, Tq, hs = q.shape
        out = np.empty((B, Tq, nh, hs), np.float32).transpose(0, 2, 1, 3)
        logsum = np.empty((B, nh, Tq), np.float32)
        constants = np.float32(1 / math.sqrt(hs)), np.float32(p), np.uint64(key), np.uint64(first)
        self.save(q, k, v, out, logsum, constants)
        if Tq == 1 and p == 0:
            single_query.attend(q, k, v, out, logsum)
            return out.reshape(shape)
        grain = 1 + (1 << 18) // (Tq * k.shape[2] * hs)           # heads for which waking a thread pays
        within = switch_for(min(_BLOCK, Tq) * k.shape[2] * hs)    # for one product of a block
        POOL.split(_forward, B * nh, address, q, k, v, out, logsum, *constants, grain=grain, within=within)
        return out.reshape(shape)

    def backward(self, dout):
        q, k, v, out, logsum, constants = self.saved
        shape_q, shape_k = dout.shape, (*dout.shape[:-2], *k.shape[-2:])
        dout = four_axes(dout)
        (B, nh, Tq, hs), Tk = q.shape, k.shape[2]
        if Tq == Tk:
            packed = np.empty((B, Tk, 3, nh, hs), np.float32)
            dq, dk, dv = (packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        else:
            dq, dk, dv = (np.empty((B, nh, T, hs), np.float32) for T in (Tq, Tk, Tk))
        arrays = q, k, v, out, logsum, dout, dq, dk, dv
        POOL.split(_backward, B * nh, address, *arrays, *constants, within=switch_for(min(_BLOCK, Tq) * Tk * hs))
        return dq.reshape(shape_q), dk.reshape(shape_k), dv.reshape(shape_k)


@helper
def _softmax_block(w, seen, logsum):
    """In place: scores w (m, n), of which row i sees the first seen + i, become weights. logsum (m,): ln(sum e^s)."""
    for i in range(len(w)):
        row, past = w[i], w[i][: seen + i]
        largest = row[0]
        for j in range(past.size):
            largest = max32(largest, past[j])
        total = _ZERO
        for j in range(row.size):                                 # the full row: ragged ones vectorise badly
            e = exp32(row[j] - largest)
            e = e if j < past.size else _ZERO
            row[j] = e
            total += e
        logsum[i] = largest + np.float32(math.log(total))
        factor = np.float32(1) / total
        for j in range(row.size):
            row[j] *= factor


@helper
def _ds_block(w, dw, seen, logsum, average, scale):
    """In place: scores w become weights again, and dw becomes ds (times scale)."""
    for i in range(len(w)):
        row, drow, shift, mean = w[i], dw[i], logsum[i], average[i]
        for j in range(row.size):
            e = exp32(row[j] - shift)
            e = e if j < seen + i else _ZERO
            row[j] = e
            drow[j] = e * (drow[j] - mean) * scale


@jit
def _forward(lo, hi, gemm, q, k, v, out, logsum, scale, p, key, first):
    if spread(lo, hi):
        return
    (nh, Tq, hs), Tk = q.shape[1:], k.shape[2]
    scores, rows, step = np.empty(_BLOCK * Tk, np.float32), np.empty((_BLOCK, hs), np.float32), np.uint64(Tk)
    for head in range(lo, hi):
        b, h = head // nh, head % nh
        for t in range(0, Tq, _BLOCK):
            m = min(_BLOCK, Tq - t)
            n = Tk - Tq + t + m                                   # keys up to the block's last query
            w = scores[: m * n].reshape(m, n)
            rows_times_rows(gemm, q, k, b, h, t, scale, rows, w)
            _softmax_block(w, n - m + 1, logsum[b, h, t : t + m])
            if p > 0:
                drop_block(w, p, key, first + np.uint64(head * Tq + t) * step, step)
            weights_times_rows(gemm, w, v, b, h, t, out)


@jit
def _backward(lo, hi, gemm, q, k, v, out, logsum, dout, dq, dk, dv, scale, p, key, first):
    if spread(lo, hi):
        return
    (nh, Tq, hs), Tk = q.shape[1:], k.shape[2]
    scores, dscores = np.empty(_BLOCK * Tk, np.float32), np.empty(_BLOCK * Tk, np.float32)
    average, rows, step = np.empty(_BLOCK, np.float32), np.empty((_BLOCK, hs), np.float32), np.uint64(Tk)
    for head in range(lo, hi):
        b, h = head // nh, head % nh
        beta = 0.0                                                # the last block sees all keys: it sets dk and dv
        for block in range((Tq - 1) // _BLOCK, -1, -1):
            t = block * _BLOCK
            m = min(_BLOCK, Tq - t)
            n = Tk - Tq + t + m
            w, dw = scores[: m * n].reshape(m, n), dscores[: m * n].reshape(m, n)
            rows_times_rows(gemm, q, k, b, h, t, scale, rows, w)
            rows_times_rows(gemm, dout, v, b, h, t, np.float32(1), rows, dw)
            for i in range(m):
                average[i] = 0
                for j in range(hs):
                    average[i] += out[b, h, t + i, j] * dout[b, h, t + i, j]
            position = first + np.uint64(head * Tq + t) * step
            if p > 0:
                drop_block(dw, p, key, position, step)
            _ds_block(w, dw, n - m + 1, logsum[b, h, t : t + m], average, scale)
            if p > 0:
                drop_block(w, p, key, position, step)
            add_transposed(gemm, w, dout, b, h, t, beta, dv)
            add_transposed(gemm, dw, q, b, h, t, beta, dk)
            weights_times_rows(gemm, dw, k, b, h, t, dq)
            beta = 1.0
