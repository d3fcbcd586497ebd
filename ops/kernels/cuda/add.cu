#include "elements.cuh"

// out = a + b, float32, of n elements: b, or both, may be of T. b has `period` elements, and begins again behind them.
template <class X> __device__ __forceinline__ void sum(
    const X* a, const T* b, float* out, size_t n, int wide, size_t period) {
    size_t first = first_element();
    float values[ELEMENTS], others[ELEMENTS];
    load_elements(a, first, n, wide, values);
    if (period == n) load_elements(b, first, n, wide, others);
    else if (period % ELEMENTS == 0) load_elements(b, first % period, period, wide, others);
    else
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++) others[i] = first + i < n ? to_float(b[(first + i) % period]) : 0;
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) values[i] += others[i];
    store_elements(out, first, n, wide, values);
}

extern "C" __global__ void __launch_bounds__(256) add(
    const float* __restrict__ a, const T* __restrict__ b, float* __restrict__ out, long long n, int wide,
    long long period) {
    sum(a, b, out, n, wide, period);
}

extern "C" __global__ void __launch_bounds__(256) add_halves(
    const T* __restrict__ a, const T* __restrict__ b, float* __restrict__ out, long long n, int wide,
    long long period) {
    sum(a, b, out, n, wide, period);
}
