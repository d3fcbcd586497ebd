#include "softmax.cuh"

// p = softmax(x) for each row of n scores, or its logarithm. A block per row, which is read again from the cache.
extern "C" __global__ void __launch_bounds__(1024) softmax_forward(
    const T* __restrict__ x, T* __restrict__ p, int n, int wide, int logarithm) {
    __shared__ float scratch[32];
    size_t first = blockIdx.x * (size_t)n;
    float2 both = largest_and_sum(x + first, n, wide, scratch);
    float factor = 1 / both.y, shift = logf(both.y), values[ELEMENTS];
    for (int j = threadIdx.x * ELEMENTS; j < n; j += blockDim.x * ELEMENTS) {
        load_elements(x + first, j, n, wide, values);
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++) {
            values[i] -= both.x;
            values[i] = logarithm ? values[i] - shift : __expf(values[i]) * factor;
        }
        store_elements(p + first, j, n, wide, values);
    }
}

// dx = p (dout - the sum of dout p), for p = softmax(x); dx = dout - e^p (the sum of dout), for its logarithm.
extern "C" __global__ void __launch_bounds__(1024) softmax_backward(
    const T* __restrict__ p, const T* __restrict__ dout, T* __restrict__ dx, int n, int wide, int logarithm) {
    __shared__ float scratch[32];
    size_t first = blockIdx.x * (size_t)n;
    float values[ELEMENTS], ds[ELEMENTS], total = 0;
    for (int j = threadIdx.x * ELEMENTS; j < n; j += blockDim.x * ELEMENTS) {
        load_elements(p + first, j, n, wide, values);
        load_elements(dout + first, j, n, wide, ds);              // 0 behind the end
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++) total += logarithm ? ds[i] : ds[i] * values[i];
    }
    total = block_sum(total, scratch);
    for (int j = threadIdx.x * ELEMENTS; j < n; j += blockDim.x * ELEMENTS) {
        load_elements(p + first, j, n, wide, values);
        load_elements(dout + first, j, n, wide, ds);
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++)
            ds[i] = logarithm ? ds[i] - __expf(values[i]) * total : values[i] * (ds[i] - total);
        store_elements(dx + first, j, n, wide, ds);
    }
}
