#include "common.cuh"

template <int N, class X> __device__ __forceinline__ void load_part(const X* p, float (&x)[N]) {
    if constexpr (N == 1) x[0] = to_float(p[0]);
    else load(p, x);
}

// out[r, o] = scale[o] (sum over i of x[r, i] w[o, i]) + bias[o], for at most ROWS rows. A warp takes a row of w,
// which is read once for all rows of x: N numbers a lane, 16 bytes of w, or 1 where rows do not begin at multiples of
// 16 bytes.
template <int ROWS, int N, class W> __device__ __forceinline__ void multiply(
    const T* x, const W* w, const float* scale, const float* bias, T* out, int rows, int I, int O) {
    int lane = threadIdx.x % 32, o = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (o >= O) return;                                           // a whole warp
    float totals[ROWS], ws[N], xs[N];
    for (int r = 0; r < ROWS; r++) totals[r] = 0;
    for (int i = lane * N; i < I; i += 32 * N) {
        load_part(w + (size_t)o * I + i, ws);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r < rows) {
                load_part(x + (size_t)r * I + i, xs);
                for (int n = 0; n < N; n++) totals[r] += xs[n] * ws[n];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float total = warp_sum(totals[r]) * (scale ? scale[o] : 1) + (bias ? bias[o] : 0);
        if (lane == 0 && r < rows) set(out[(size_t)r * O + o], total);
    }
}

template <int N, class W> __device__ __forceinline__ void multiply_rows(
    const T* x, const W* w, const float* scale, const float* bias, T* out, int rows, int I, int O, int wide) {
    if (!wide) multiply<8, 1>(x, w, scale, bias, out, rows, I, O);
    else if (rows == 1) multiply<1, N>(x, w, scale, bias, out, rows, I, O);
    else multiply<8, N>(x, w, scale, bias, out, rows, I, O);
}

// For up to 8 rows x (rows, I), and w (O, I). bias may be null.
extern "C" __global__ void __launch_bounds__(128) rows_by_int8(
    const T* __restrict__ x, const signed char* __restrict__ w, const float* __restrict__ scale,
    const float* __restrict__ bias, T* __restrict__ out, int rows, int I, int O, int wide) {
    multiply_rows<16>(x, w, scale, bias, out, rows, I, O, wide);
}

extern "C" __global__ void __launch_bounds__(128) rows_by_bfloat16(
    const T* __restrict__ x, const bf16* __restrict__ w, const float* __restrict__ bias, T* __restrict__ out, int rows,
    int I, int O, int wide) {
    multiply_rows<8>(x, w, nullptr, bias, out, rows, I, O, wide);
}

// out = scale[o] q[o, i], a row for each block.
extern "C" __global__ void __launch_bounds__(256) dequantize(
    const signed char* __restrict__ q, const float* __restrict__ scale, T* __restrict__ out, int I, int wide) {
    size_t first = (size_t)blockIdx.x * I;
    float factor = scale[blockIdx.x], values[16];
    if (wide) {
        for (int i = threadIdx.x * 16; i < I; i += blockDim.x * 16) {
            load(q + first + i, values);
            for (int n = 0; n < 16; n++) values[n] *= factor;
            store(out + first + i, values);
        }
    } else {
        for (int i = threadIdx.x; i < I; i += blockDim.x) set(out[first + i], q[first + i] * factor);
    }
}
