#include "common.cuh"

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
