#include "elements.cuh"

// out = a + b: float32, of which b, or both, may be of T.
template <class X> __device__ __forceinline__ void sum(const X* a, const T* b, float* out, size_t n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS], others[ELEMENTS];
    load_elements(a, first, n, wide, values);
    load_elements(b, first, n, wide, others);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) values[i] += others[i];
    store_elements(out, first, n, wide, values);
}

extern "C" __global__ void __launch_bounds__(256) add(
    const float* __restrict__ a, const T* __restrict__ b, float* __restrict__ out, long long n, int wide) {
    sum(a, b, out, n, wide);
}

extern "C" __global__ void __launch_bounds__(256) add_halves(
    const T* __restrict__ a, const T* __restrict__ b, float* __restrict__ out, long long n, int wide) {
    sum(a, b, out, n, wide);
}
