#include "common.cuh"

const int APART = 36;                                             // so that no two lanes want the same bank

// Sums over blocks of rows: partial[b, j] = sum over the rows b rows_of_block ... of x[row, j], x (rows, columns). A
// lane takes N neighbouring columns, and a warp every 8th row of the block; then the sums of the warps are added in
// order. N = 8 where rows and addresses are multiples of 16 bytes, else 1.
template <int N> __device__ __forceinline__ void sum_block(
    const T* x, float* partial, int rows, int columns, int rows_of_block, float (*sums)[8 * APART]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, j = (blockIdx.x * 32 + lane) * N;
    int first = blockIdx.y * rows_of_block, last = min(rows, first + rows_of_block);
    float totals[N], values[N];
    for (int n = 0; n < N; n++) totals[n] = 0;
    if (j < columns) {
#pragma unroll 4
        for (int row = first + warp; row < last; row += 8) {
            const T* p = x + (size_t)row * columns + j;
            if constexpr (N == 1) values[0] = to_float(p[0]);
            else load(p, values);
            for (int n = 0; n < N; n++) totals[n] += values[n];
        }
    }
    for (int n = 0; n < N; n++) sums[warp][n * APART + lane] = totals[n];
    __syncthreads();
    int own = threadIdx.x % N * APART + threadIdx.x / N;          // where the sums of the thread's column are
    j = blockIdx.x * 32 * N + threadIdx.x;
    if (threadIdx.x >= 32 * N || j >= columns) return;
    float total = 0;
    for (int w = 0; w < 8; w++) total += sums[w][own];
    partial[(size_t)blockIdx.y * columns + j] = total;
}

extern "C" __global__ void __launch_bounds__(256) sum_blocks_of_rows(
    const T* __restrict__ x, float* __restrict__ partial, int rows, int columns, int rows_of_block, int wide) {
    __shared__ float sums[8][8 * APART];
    if (wide) sum_block<8>(x, partial, rows, columns, rows_of_block, sums);
    else sum_block<1>(x, partial, rows, columns, rows_of_block, sums);
}

// out[j] = sum over rows of x[row, j], x (rows, columns) float32: 32 columns a block, whose 32 warps each add up every
// 32nd row; then their sums are added in the order of the warps. For a few hundred rows: what other kernels leave.
extern "C" __global__ void __launch_bounds__(1024) sum_rows(
    const float* __restrict__ x, float* __restrict__ out, int rows, int columns, int stride, int accumulate) {
    __shared__ float sums[32][33];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, j = blockIdx.x * 32 + lane;
    float total = 0;
    if (j < columns)
        for (int row = warp; row < rows; row += 32) total += x[(size_t)row * stride + j];
    sums[warp][lane] = total;
    __syncthreads();
    if (warp > 0 || j >= columns) return;
    total = accumulate ? out[j] : 0;
    for (int w = 0; w < 32; w++) total += sums[w][lane];
    out[j] = total;
}
