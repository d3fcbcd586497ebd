#include "elements.cuh"

// One struct per op of two operands of one shape: its formula, and the gradients (da, db). All is float32.

struct Sub {                                                      // its gradients are dout and -dout
    static __device__ float forward(float a, float b) { return a - b; }
};
struct Mul {
    static __device__ float forward(float a, float b) { return a * b; }
    static __device__ float2 backward(float a, float b, float d) { return make_float2(d * b, d * a); }
};
struct Div {
    static __device__ float forward(float a, float b) { return a / b; }
    static __device__ float2 backward(float a, float b, float d) { return make_float2(d / b, -d * a / (b * b)); }
};
struct Maximum {                                                  // NaN if one of them is (fmaxf would drop it)
    static __device__ float forward(float a, float b) { return a > b || a != a ? a : b; }
    static __device__ float2 backward(float a, float b, float d) {
        float shared = a == b ? d / 2 : d;
        return make_float2(a < b ? 0 : shared, a > b ? 0 : shared);
    }
};
struct Minimum {
    static __device__ float forward(float a, float b) { return a < b || a != a ? a : b; }
    static __device__ float2 backward(float a, float b, float d) {
        float shared = a == b ? d / 2 : d;
        return make_float2(a > b ? 0 : shared, a < b ? 0 : shared);
    }
};

template <class Op> __device__ __forceinline__ void run(
    const float* a, const float* b, float* out, size_t n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS], others[ELEMENTS];
    load_elements(a, first, n, wide, values);
    load_elements(b, first, n, wide, others, 1);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) values[i] = Op::forward(values[i], others[i]);
    store_elements(out, first, n, wide, values);
}

template <class Op> __device__ __forceinline__ void run_backward(
    const float* a, const float* b, const float* dout, float* da, float* db, size_t n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS], others[ELEMENTS], ds[ELEMENTS];
    load_elements(a, first, n, wide, values);
    load_elements(b, first, n, wide, others, 1);
    load_elements(dout, first, n, wide, ds);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
        float2 both = Op::backward(values[i], others[i], ds[i]);
        values[i] = both.x;
        others[i] = both.y;
    }
    if (da) store_elements(da, first, n, wide, values);
    if (db) store_elements(db, first, n, wide, others);
}

// out = op(a, b), of n elements; `op` is a place in the list BINARY of elementwise.py.
extern "C" __global__ void __launch_bounds__(256) binary(
    const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ out, long long n, int wide, int op) {
    switch (op) {
        case 0: return run<Sub>(a, b, out, n, wide);
        case 1: return run<Mul>(a, b, out, n, wide);
        case 2: return run<Div>(a, b, out, n, wide);
        case 3: return run<Maximum>(a, b, out, n, wide);
        case 4: return run<Minimum>(a, b, out, n, wide);
    }
}

// da and db, those of them that are not null.
extern "C" __global__ void __launch_bounds__(256) binary_backward(
    const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ dout, float* __restrict__ da,
    float* __restrict__ db, long long n, int wide, int op) {
    switch (op) {
        case 1: return run_backward<Mul>(a, b, dout, da, db, n, wide);
        case 2: return run_backward<Div>(a, b, dout, da, db, n, wide);
        case 3: return run_backward<Maximum>(a, b, dout, da, db, n, wide);
        case 4: return run_backward<Minimum>(a, b, dout, da, db, n, wide);
    }
}
