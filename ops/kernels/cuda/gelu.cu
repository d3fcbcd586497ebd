#include "elements.cuh"

const float END = 8, END_PHI = 11;                                // above, gelu(x) = x; x e^(-x^2/2) is lost next to 1
const float SCALE2 = 1.59576912f, CUBIC = 0.044715f;              // 2 sqrt(2/pi)
const float RSQRT2 = 0.707106781f, RSQRT2PI = 0.398942280f;       // 1 / sqrt(2), 1 / sqrt(2 pi)

// x held to -end .. end: beyond, its powers may overflow. NaN passes both comparisons (fminf would drop it).
__device__ __forceinline__ float within(float x, float end) {
    x = x < -end ? -end : x;
    return x > end ? end : x;
}

// (gelu(x), gelu'(x)): two results of which the compiler leaves out the one that is not used.
template <bool EXACT> __device__ __forceinline__ float2 gelu(float x) {
    if constexpr (EXACT) {
        float Phi = 0.5f * erfcf(-RSQRT2 * x), value = within(x, END_PHI);
        return make_float2(x * Phi, Phi + value * (RSQRT2PI * __expf(-0.5f * (value * value))));
    } else {
        float value = within(x, END);
        float e = __expf(SCALE2 * (value + CUBIC * (value * value * value)));   // e^2u; (1 + tanh u) / 2 = e / (e + 1)
        float rest = __fdividef(1.0f, e + 1), s = e * rest;       // 1 - s without a difference: no digits are lost
        float d2u = SCALE2 * (1 + 3 * CUBIC * (value * value));
        return make_float2(x > END ? x : value * s, s + value * (s * rest) * d2u);
    }
}

template <bool EXACT> __device__ __forceinline__ void forward(const T* x, T* out, size_t n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS];
    load_elements(x, first, n, wide, values);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) values[i] = gelu<EXACT>(values[i]).x;
    store_elements(out, first, n, wide, values);
}

template <bool EXACT> __device__ __forceinline__ void backward(
    const T* x, const T* dout, T* dx, T* out, size_t n, int wide) {
    size_t first = first_element();
    float values[ELEMENTS], ds[ELEMENTS];
    load_elements(x, first, n, wide, values);
    load_elements(dout, first, n, wide, ds);
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
        float2 both = gelu<EXACT>(values[i]);
        values[i] = both.x;
        ds[i] *= both.y;
    }
    store_elements(dx, first, n, wide, ds);
    if (out) store_elements(out, first, n, wide, values);
}

// out = gelu(x), of n elements; `exact` chooses the form. out may be x.
extern "C" __global__ void __launch_bounds__(256) gelu_forward(const T* x, T* out, long long n, int wide, int exact) {
    if (exact) forward<true>(x, out, n, wide);
    else forward<false>(x, out, n, wide);
}

// dx = dout gelu'(x), and out = gelu(x) if there is an out. dx may be dout, and out may be x.
extern "C" __global__ void __launch_bounds__(256) gelu_backward(
    const T* x, const T* dout, T* dx, T* out, long long n, int wide, int exact) {
    if (exact) backward<true>(x, dout, dx, out, n, wide);
    else backward<false>(x, dout, dx, out, n, wide);
}
