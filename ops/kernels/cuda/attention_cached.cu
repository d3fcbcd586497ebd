// One query, or a few, against a long cache of keys: what generation does. Formulas and choices: attention.py.
//
// There are few queries and each key is used once per query, so the time is that of reading k and v; to read with
// the whole GPU the keys are divided among blocks. attention_split computes for each part of the keys the largest
// score, the sum of the weights and the sum of the weighted values; attention_join adds the parts in their order.

#include "common.cuh"
#include "attention.cuh"

const int PARTS = 4;                                              // of a head's channels, 64 each
const int LANES = 8, GROUPS = 16;                                 // lanes of a key; keys of a block at once

// 8 channels from `column` on; zeros behind the head's end.
__device__ __forceinline__ void load_8(const T* row, int column, int hs, int wide, float (&x)[8]) {
    if (wide) return load(row + column, x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = column + i < hs ? to_float(row[column + i]) : 0.0f;
}

// partial (rows, splits, 2 + hs): largest score, sum of weights, weighted values; rows = B nh Tq. With `position`, the
// place of the last key, which the GPU knows alone, the others of the Tk keys do not count.
extern "C" __global__ void __launch_bounds__(128) attention_split(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    float* __restrict__ partial, int nh, int Tq, int Tk, int hs, int wide, float scale, int splits, int length,
    const long long* __restrict__ position) {
    __shared__ float largest_of[GROUPS], total_of[GROUPS], sums[GROUPS][64 * PARTS];
    int split = blockIdx.x % splits, row = blockIdx.x / splits, head = row / Tq, query = row % Tq;
    if (position) Tk = min((long long)Tk, *position + 1);
    int begin = split * length, end = min(begin + length, query + Tk - Tq + 1);   // keys of this block
    int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const T* q_at = rows_of(q, q_batch, q_head, head, nh) + query * q_row;
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);
    float query_part[PARTS][8], sum[PARTS][8] = {}, largest = minus_infinity(), total = 0, x[8];
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int column = 64 * part + 8 * lane;
        if (column >= hs) continue;
        load_8(q_at, column, hs, wide, query_part[part]);
#pragma unroll
        for (int i = 0; i < 8; i++) query_part[part][i] *= scale;
    }
    for (int first = begin + group / 4 * 4; first < end; first += GROUPS) {   // the same for the 4 keys of a warp
        int key = first + group % 4;
        bool inside = key < end;
        float s = 0;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int column = 64 * part + 8 * lane;
            if (!inside || column >= hs) continue;
            load_8(k_rows + key * k_row, column, hs, wide, x);
#pragma unroll
            for (int i = 0; i < 8; i++) s += query_part[part][i] * x[i];
        }
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) s += __shfl_xor_sync(0xffffffffu, s, distance);
        if (!inside) continue;
        float above = fmaxf(largest, s), factor = exp2f(largest - above), weight = exp2f(s - above);
        largest = above;
        total = total * factor + weight;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int column = 64 * part + 8 * lane;
            if (column >= hs) continue;
            load_8(v_rows + key * v_row, column, hs, wide, x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[part][i] = sum[part][i] * factor + weight * x[i];
        }
    }
    if (lane == 0) largest_of[group] = largest, total_of[group] = total;
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int i = 0; i < 8; i++) sums[group][64 * part + 8 * lane + i] = sum[part][i];
    __syncthreads();
    partial += ((size_t)row * splits + split) * (2 + hs);
    float above = minus_infinity(), all = 0;
    for (int i = 0; i < GROUPS; i++) above = fmaxf(above, largest_of[i]);
    for (int i = 0; i < GROUPS; i++) all += begin < end ? total_of[i] * exp2f(largest_of[i] - above) : 0.0f;
    if (threadIdx.x == 0) partial[0] = above, partial[1] = all;
    for (int column = threadIdx.x; column < hs; column += blockDim.x) {
        float value = 0;
        for (int i = 0; i < GROUPS; i++) value += begin < end ? sums[i][column] * exp2f(largest_of[i] - above) : 0.0f;
        partial[2 + column] = value;
    }
}

// out (B, Tq, nh, hs) and logsum (B, nh, Tq), a block for each row.
extern "C" __global__ void __launch_bounds__(128) attention_join(
    const float* __restrict__ partial, T* __restrict__ out, float* __restrict__ logsum, int nh, int Tq, int hs,
    int splits) {
    int row = blockIdx.x, head = row / Tq, query = row % Tq;
    partial += (size_t)row * splits * (2 + hs);
    float above = minus_infinity(), total = 0;
    for (int i = 0; i < splits; i++) above = fmaxf(above, partial[(size_t)i * (2 + hs)]);
    for (int i = 0; i < splits; i++) {
        const float* part = partial + (size_t)i * (2 + hs);
        total += part[1] * exp2f(part[0] - above);
    }
    if (threadIdx.x == 0) logsum[row] = above + log2f(total);
    out += (((size_t)(head / nh) * Tq + query) * nh + head % nh) * hs;
    for (int column = threadIdx.x; column < hs; column += blockDim.x) {
        float value = 0;
        for (int i = 0; i < splits; i++) {
            const float* part = partial + (size_t)i * (2 + hs);
            value += part[2 + column] * exp2f(part[0] - above);
        }
        set(out[column], value / total);
    }
}
