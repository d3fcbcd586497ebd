#include "elements.cuh"

const int NORM_BLOCK = 1 << 16;                                   // as in tinygrad2/optim.py

// The sum over all threads of a block of up to 1,024, in its first thread: lanes 16 apart first, then warps in order.
__device__ __forceinline__ double block_total(double x) {
    __shared__ double sums[32];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    double total = 0;
    if (threadIdx.x == 0)
        for (int warp = 0; warp < blockDim.x / 32; warp++) total += sums[warp];
    return total;
}

// sums[b] = the sum of grad[i]^2 over the b-th NORM_BLOCK elements of n: a block of threads each.
extern "C" __global__ void __launch_bounds__(1024) square_sums(
    const float* __restrict__ grad, double* __restrict__ sums, long long n, int wide) {
    size_t first = blockIdx.x * (size_t)NORM_BLOCK, last = min((size_t)n, first + NORM_BLOCK);
    float x[ELEMENTS], total = 0;                                 // of at most 64 squares
    for (size_t i = first + threadIdx.x * ELEMENTS; i < last; i += blockDim.x * ELEMENTS) {
        load_elements(grad, i, last, wide, x);
#pragma unroll
        for (int j = 0; j < ELEMENTS; j++) total += x[j] * x[j];
    }
    double of_block = block_total(total);
    if (threadIdx.x == 0) sums[blockIdx.x] = of_block;
}

// norm = sqrt(the sum of n sums), in a fixed order: one block.
extern "C" __global__ void __launch_bounds__(1024) norm_of(
    const double* __restrict__ sums, float* __restrict__ norm, int n) {
    double total = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += sums[i];
    total = block_total(total);
    if (threadIdx.x == 0) norm[0] = (float)sqrt(total);
}
