#include "elements.cuh"
#include "dropout.cuh"

// out[i] = x[i] times 0 or `factor`, as the hash of key[0] at position first_position + i says. out may be x.
extern "C" __global__ void __launch_bounds__(256) dropout(
    const T* x, T* out, long long n, int wide, float p, float factor,
    const unsigned long long* __restrict__ key, unsigned long long first_position) {
    size_t first = first_element();
    unsigned long long start = hash_start(key[0], first_position + first);
    float values[ELEMENTS];
    load_elements(x, first, n, wide, values);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) values[i] *= keep_factor(start + i * GOLDEN, p, factor);
    store_elements(out, first, n, wide, values);
}
