#include "common.cuh"

// For kernels that go through flat arrays of n elements: a thread takes ELEMENTS neighbouring ones, which it reads and
// writes by 16 bytes at a time where `wide` says that the addresses permit it. elements.py launches such a kernel.

const int ELEMENTS = 8;

__device__ __forceinline__ size_t first_element() {
    return ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * ELEMENTS;
}

// The elements from `first` on as float32; `beyond` behind the end.
template <class X> __device__ __forceinline__ void load_elements(
    const X* p, size_t first, size_t n, int wide, float (&x)[ELEMENTS], float beyond = 0) {
    if (wide && first + ELEMENTS <= n) return load(p + first, x);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) x[i] = first + i < n ? to_float(p[first + i]) : beyond;
}

template <class X> __device__ __forceinline__ void store_elements(
    X* p, size_t first, size_t n, int wide, const float (&x)[ELEMENTS]) {
    if (wide && first + ELEMENTS <= n) return store(p + first, x);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++)
        if (first + i < n) set(p[first + i], x[i]);
}
