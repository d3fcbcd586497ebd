#include "elements.cuh"

// out = x rounded to T, to nearest, ties to even.
extern "C" __global__ void __launch_bounds__(256) cast_to_half(
    const float* __restrict__ x, T* __restrict__ out, long long n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS];
    load_elements(x, first, n, wide, values);
    store_elements(out, first, n, wide, values);
}

// out = x, of T, as float32.
extern "C" __global__ void __launch_bounds__(256) cast_to_float(
    const T* __restrict__ x, float* __restrict__ out, long long n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS];
    load_elements(x, first, n, wide, values);
    store_elements(out, first, n, wide, values);
}
