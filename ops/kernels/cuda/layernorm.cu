#include "common.cuh"

// One warp per row. A lane reads, computes and writes the elements j = (32 k + lane) N ... + N - 1 of the row, so what it
// stages in shared memory is read by itself alone, and no barrier is needed. N = 8 where rows and addresses are multiples
// of 16 bytes, else 1: the host says so by `wide`.

template <int N, class X> __device__ __forceinline__ void load_row(const X* p, float (&x)[N]) {
    if constexpr (N == 1) x[0] = to_float(p[0]);
    else load(p, x);
}

template <int N, class X> __device__ __forceinline__ void store_row(X* p, const float (&x)[N]) {
    if constexpr (N == 1) set(p[0], x[0]);
    else store(p, x);
}

template <int N> __device__ __forceinline__ void forward(
    const float* x, const T* delta, const float* weight, const float* bias, float* sum, T* out, float* mean, float* rstd,
    int rows, int C, float eps) {
    DYNAMIC_SHARED(float, shared);                                // (warps, C)
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x * (blockDim.x / 32) + warp;
    if (row >= rows) return;                                      // a whole warp
    float* staged = shared + (size_t)warp * C;
    size_t first = (size_t)row * C;
    float total = 0, values[N], other[N];
    for (int j = lane * N; j < C; j += 32 * N) {
        load_row(x + first + j, values);
        if (delta) {
            load_row(delta + first + j, other);
            for (int n = 0; n < N; n++) values[n] += other[n];
            store_row(sum + first + j, values);
        }
        store_row(staged + j, values);
        for (int n = 0; n < N; n++) total += values[n];
    }
    float m = warp_sum(total) / C;
    total = 0;
    for (int j = lane * N; j < C; j += 32 * N) {
        load_row(staged + j, values);
        for (int n = 0; n < N; n++) total += (values[n] - m) * (values[n] - m);
    }
    float r = 1 / sqrtf(warp_sum(total) / C + eps);
    for (int j = lane * N; j < C; j += 32 * N) {
        load_row(staged + j, values);
        load_row(weight + j, other);
        for (int n = 0; n < N; n++) values[n] = (values[n] - m) * r * other[n];
        if (bias) {
            load_row(bias + j, other);
            for (int n = 0; n < N; n++) values[n] += other[n];
        }
        store_row(out + first + j, values);
    }
    if (lane == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
}

// sum = x + delta, out = layernorm(sum); without delta (null) it is layernorm(x), and sum is not written.
extern "C" __global__ void layernorm_forward(
    const float* __restrict__ x, const T* __restrict__ delta, const float* __restrict__ weight,
    const float* __restrict__ bias, float* __restrict__ sum, T* __restrict__ out, float* __restrict__ mean,
    float* __restrict__ rstd, int rows, int C, float eps, int wide) {
    if (wide) forward<8>(x, delta, weight, bias, sum, out, mean, rstd, rows, C, eps);
    else forward<1>(x, delta, weight, bias, sum, out, mean, rstd, rows, C, eps);
}

// Each block takes the rows blockIdx.x * warps + warp, then gridDim.x * warps further, and so on; each warp adds up what
// its rows give to dweight and dbias in shared memory. At the end the block writes its sums, in the order of the warps.
template <int N> __device__ __forceinline__ void backward(
    const float* x, const float* weight, const float* mean, const float* rstd, const T* dout, const float* dresidual,
    float* dx, float* partial, int rows, int C) {
    DYNAMIC_SHARED(float, shared);                                // (warps, 2, C)
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float* dweight = shared + (size_t)warp * 2 * C;
    float* dbias = dweight + C;
    float xs[N], ds[N], ws[N], sums[N];
    for (int j = lane * N; j < C; j += 32 * N) {
        for (int n = 0; n < N; n++) sums[n] = 0;
        store_row(dweight + j, sums);
        store_row(dbias + j, sums);
    }
    for (int row = blockIdx.x * warps + warp; row < rows; row += gridDim.x * warps) {
        size_t first = (size_t)row * C;
        float m = mean[row], r = rstd[row], sum_g = 0, sum_gx = 0;
        for (int j = lane * N; j < C; j += 32 * N) {
            load_row(x + first + j, xs);
            load_row(dout + first + j, ds);
            load_row(weight + j, ws);
            for (int n = 0; n < N; n++) {
                float g = ds[n] * ws[n];
                sum_g += g;
                sum_gx += g * ((xs[n] - m) * r);
            }
        }
        float avg_g = warp_sum(sum_g) / C, avg_gx = warp_sum(sum_gx) / C;
        for (int j = lane * N; j < C; j += 32 * N) {              // the row again: it is in the cache
            load_row(x + first + j, xs);
            load_row(dout + first + j, ds);
            load_row(weight + j, ws);
            load_row(dweight + j, sums);
            for (int n = 0; n < N; n++) {
                xs[n] = (xs[n] - m) * r;
                sums[n] += ds[n] * xs[n];
                ws[n] = r * (ds[n] * ws[n] - avg_g - xs[n] * avg_gx);
            }
            store_row(dweight + j, sums);
            load_row(dbias + j, sums);
            for (int n = 0; n < N; n++) sums[n] += ds[n];
            store_row(dbias + j, sums);
            if (dresidual) {
                load_row(dresidual + first + j, xs);
                for (int n = 0; n < N; n++) ws[n] += xs[n];
            }
            store_row(dx + first + j, ws);
        }
    }
    __syncthreads();
    for (int j = threadIdx.x; j < 2 * C; j += blockDim.x) {
        float total = 0;
        for (int w = 0; w < warps; w++) total += shared[(size_t)w * 2 * C + j];
        partial[(size_t)blockIdx.x * 2 * C + j] = total;
    }
}

// dx, and partial (blocks, 2, C): the sums of each block for dweight and dbias. dresidual (or null) is added to dx.
extern "C" __global__ void layernorm_backward(
    const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ mean,
    const float* __restrict__ rstd, const T* __restrict__ dout, const float* __restrict__ dresidual,
    float* __restrict__ dx, float* __restrict__ partial, int rows, int C, int wide) {
    if (wide) backward<8>(x, weight, mean, rstd, dout, dresidual, dx, partial, rows, C);
    else backward<1>(x, weight, mean, rstd, dout, dresidual, dx, partial, rows, C);
}
