#include "softmax.cuh"

// losses[n] = -ln softmax(z[n])[target], and dz[n] = softmax(z[n]) - onehot(target) if there is a dz; both are 0 if the
// target is `ignored`, and NaN if it is no column. Rows of z and dz are `stride` elements apart; dz may be z.
//
// A block per row. For dz the row is read again, from the L2 cache: all rows in work together are smaller than that.
extern "C" __global__ void __launch_bounds__(1024) softmax_loss(
    const T* z, T* dz, const long long* __restrict__ targets, float* __restrict__ losses, int V, long long stride,
    long long ignored, int wide) {
    __shared__ float scratch[32];
    const T* row = z + blockIdx.x * (size_t)stride;
    long long target = targets[blockIdx.x];
    bool counts = target != ignored, exists = counts && target >= 0 && target < V;
    float nan = __uint_as_float(0x7fc00000u), x[ELEMENTS];
    float score = exists ? to_float(row[target]) : nan;           // before it is overwritten
    float2 both = counts ? largest_and_sum(row, V, wide, scratch) : make_float2(0, 1);
    if (threadIdx.x == 0) losses[blockIdx.x] = counts ? logf(both.y) - (score - both.x) : 0;
    if (!dz) return;
    T* drow = dz + blockIdx.x * (size_t)stride;
    float factor = exists ? 1 / both.y : nan;
    for (int j = threadIdx.x * ELEMENTS; j < V; j += blockDim.x * ELEMENTS) {
        if (counts) load_elements(row, j, V, wide, x);
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++)
            x[i] = counts ? __expf(x[i] - both.x) * factor - (j + i == target ? 1 : 0) : 0;
        store_elements(drow, j, V, wide, x);
    }
}

// loss = the sum of the losses, in a fixed order, times share = 1 / the number of targets that are not `ignored`, at
// least 1. One block.
extern "C" __global__ void __launch_bounds__(1024) mean_loss(
    const float* __restrict__ losses, const long long* __restrict__ targets, float* __restrict__ loss,
    float* __restrict__ share, int rows, long long ignored) {
    __shared__ float scratch[32];
    float total = 0, count = 0;
    for (int n = threadIdx.x; n < rows; n += blockDim.x) {
        total += losses[n];
        count += targets[n] != ignored;
    }
    total = block_sum(total, scratch);
    count = fmaxf(block_sum(count, scratch), 1);
    if (threadIdx.x > 0) return;
    loss[0] = total / count;
    share[0] = 1 / count;
}

// out = x * (factor * share), or out += that: of n elements, with factors that only the GPU knows. out may be x.
extern "C" __global__ void __launch_bounds__(256) scale(
    const T* x, T* out, long long n, int wide, const float* __restrict__ factor, const float* __restrict__ share,
    int accumulate) {
    size_t first = first_element();
    float values[ELEMENTS], sums[ELEMENTS], by = factor[0] * share[0];
    load_elements(x, first, n, wide, values);
    if (accumulate) load_elements(out, first, n, wide, sums);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) values[i] = values[i] * by + (accumulate ? sums[i] : 0);
    store_elements(out, first, n, wide, values);
}
