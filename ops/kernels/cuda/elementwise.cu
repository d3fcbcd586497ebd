#include "elements.cuh"

// One struct per op: its formula, and its gradient from what forward kept, x or out (elementwise.py). All is float32.

struct Exp {
    static __device__ float forward(float x) { return expf(x); }
    static __device__ float backward(float out, float d) { return d * out; }
};
struct Log {
    static __device__ float forward(float x) { return logf(x); }
    static __device__ float backward(float x, float d) { return d / x; }
};
struct Tanh {
    static __device__ float forward(float x) { return tanhf(x); }
    static __device__ float backward(float out, float d) { return d * (1 - out * out); }
};
struct Sqrt {
    static __device__ float forward(float x) { return sqrtf(x); }
    static __device__ float backward(float out, float d) { return d / (2 * out); }
};
struct Relu {                                                     // NaN is not below 0, and stays
    static __device__ float forward(float x) { return x < 0 ? 0 : x; }
    static __device__ float backward(float x, float d) { return x > 0 ? d : 0; }
};
struct Sigmoid {
    static __device__ float forward(float x) {
        float e = expf(-fabsf(x));                                // in 0 .. 1
        return (x >= 0 ? 1 : e) / (1 + e);
    }
    static __device__ float backward(float out, float d) { return d * out * (1 - out); }
};
struct Abs {
    static __device__ float forward(float x) { return fabsf(x); }
    static __device__ float backward(float x, float d) { return x > 0 ? d : x < 0 ? -d : x * d; }   // 0, or NaN
};
struct Neg {                                                      // its gradient is itself, of dout
    static __device__ float forward(float x) { return -x; }
};

template <class Op> __device__ __forceinline__ void run(const float* x, float* out, size_t n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS];
    load_elements(x, first, n, wide, values);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) values[i] = Op::forward(values[i]);
    store_elements(out, first, n, wide, values);
}

template <class Op> __device__ __forceinline__ void run_backward(
    const float* kept, const float* dout, float* dx, size_t n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS], ds[ELEMENTS];
    load_elements(kept, first, n, wide, values);
    load_elements(dout, first, n, wide, ds);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) ds[i] = Op::backward(values[i], ds[i]);
    store_elements(dx, first, n, wide, ds);
}

// out = op(x), of n elements; `op` is a place in the list UNARY of elementwise.py.
extern "C" __global__ void __launch_bounds__(256) unary(
    const float* __restrict__ x, float* __restrict__ out, long long n, int wide, int op) {
    switch (op) {
        case 0: return run<Exp>(x, out, n, wide);
        case 1: return run<Log>(x, out, n, wide);
        case 2: return run<Tanh>(x, out, n, wide);
        case 3: return run<Sqrt>(x, out, n, wide);
        case 4: return run<Relu>(x, out, n, wide);
        case 5: return run<Sigmoid>(x, out, n, wide);
        case 6: return run<Abs>(x, out, n, wide);
        case 7: return run<Neg>(x, out, n, wide);
    }
}

// dx, from dout and what forward kept.
extern "C" __global__ void __launch_bounds__(256) unary_backward(
    const float* __restrict__ kept, const float* __restrict__ dout, float* __restrict__ dx, long long n, int wide,
    int op) {
    switch (op) {
        case 0: return run_backward<Exp>(kept, dout, dx, n, wide);
        case 1: return run_backward<Log>(kept, dout, dx, n, wide);
        case 2: return run_backward<Tanh>(kept, dout, dx, n, wide);
        case 3: return run_backward<Sqrt>(kept, dout, dx, n, wide);
        case 4: return run_backward<Relu>(kept, dout, dx, n, wide);
        case 5: return run_backward<Sigmoid>(kept, dout, dx, n, wide);
        case 6: return run_backward<Abs>(kept, dout, dx, n, wide);
    }
}
