#include "elements.cuh"

const float LOWEST = -3.402823466e38f;                            // finite: e^(-inf - LOWEST) = 0, e^(-inf - -inf) NaN

// (the largest score of a row of n, the sum of e^(score - largest)), in every thread of the block. A thread keeps both
// for its scores, and scales its sum down when a larger score comes (Milakov and Gimelshein, "Online normalizer
// calculation for softmax", 2018), so the row is read once. scratch is shared memory for 32 floats.
__device__ __forceinline__ float2 largest_and_sum(const T* row, int n, int wide, float* scratch) {
    float x[ELEMENTS], largest = LOWEST, total = 0;
    for (int j = threadIdx.x * ELEMENTS; j < n; j += blockDim.x * ELEMENTS) {
        load_elements(row, j, n, wide, x, __uint_as_float(0xff800000u));   // -inf behind the end
        float top = x[0];
#pragma unroll
        for (int i = 1; i < ELEMENTS; i++) top = fmaxf(top, x[i]);
        if (top > largest) {
            total *= __expf(largest - top);
            largest = top;
        }
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++) total += __expf(x[i] - largest);
    }
    float of_row = block_max(largest, scratch);
    return make_float2(of_row, block_sum(total * __expf(largest - of_row), scratch));
}
