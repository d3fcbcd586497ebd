#include "common.cuh"

// One warp per row. A lane has the elements (32 i + lane) N ... + N - 1 of it, for i = 0, 1, ...: the first KEPT of
// these parts stay in registers, and are all requested before the first is used; of a longer row the others are read
// again. N = 8 where rows and addresses are multiples of 16 bytes, else 1: the host says so by `wide`.
#define KEPT 4

template <int N, class X> __device__ __forceinline__ void load_part(const X* p, float (&x)[N]) {
    if constexpr (N == 1) x[0] = to_float(p[0]);
    else load(p, x);
}

template <int N, class X> __device__ __forceinline__ void store_part(X* p, const float (&x)[N]) {
    if constexpr (N == 1) set(p[0], x[0]);
    else store(p, x);
}

// f(j, i) for each part of a row of C elements that this lane has: it begins at j, and is number i, at most KEPT.
template <int N, class F> __device__ __forceinline__ void for_parts(int C, F f) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if ((32 * i + lane) * N < C) f((32 * i + lane) * N, i);
    for (int j = (32 * KEPT + lane) * N; j < C; j += 32 * N) f(j, KEPT);
}

template <int N> __device__ __forceinline__ void forward(
    const float* x, const T* delta, const float* weight, const float* bias, float* sum, T* out, float* mean,
    float* rstd, int rows, int C, float eps) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;                                      // a whole warp
    size_t first = (size_t)row * C;
    const float* s = delta ? sum : x;
    float kept[KEPT + 1][N], other[KEPT + 1][N], total = 0;
    for_parts<N>(C, [&](int j, int i) {
        load_part(x + first + j, kept[i]);
        if (delta) load_part(delta + first + j, other[i]);
        if (i < KEPT) return;                                     // only requested so far
        for (int n = 0; n < N; n++) total += kept[i][n] + (delta ? other[i][n] : 0);
    });
    if (delta) {
        for_parts<N>(C, [&](int j, int i) {
            if (i == KEPT) {
                load_part(x + first + j, kept[i]);
                load_part(delta + first + j, other[i]);
            }
            for (int n = 0; n < N; n++) kept[i][n] += other[i][n];
            store_part(sum + first + j, kept[i]);
        });
    }
    for_parts<N>(C, [&](int j, int i) {
        if (i < KEPT)
            for (int n = 0; n < N; n++) total += kept[i][n];
    });
    float m = warp_sum(total) / C;
    total = 0;
    for_parts<N>(C, [&](int j, int i) {
        if (i == KEPT) load_part(s + first + j, kept[i]);
        for (int n = 0; n < N; n++) total += (kept[i][n] - m) * (kept[i][n] - m);
    });
    float r = 1 / sqrtf(warp_sum(total) / C + eps);
    for_parts<N>(C, [&](int j, int i) {
        if (i == KEPT) load_part(s + first + j, kept[i]);
        load_part(weight + j, other[i]);
        for (int n = 0; n < N; n++) kept[i][n] = (kept[i][n] - m) * r * other[i][n];
        if (bias) {
            load_part(bias + j, other[i]);
            for (int n = 0; n < N; n++) kept[i][n] += other[i][n];
        }
        store_part(out + first + j, kept[i]);
    });
    if (threadIdx.x % 32 == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
}

// sum = x + delta, out = layernorm(sum); without delta (null) it is layernorm(x), and sum is not written.
extern "C" __global__ void __launch_bounds__(128) layernorm_forward(
    const float* __restrict__ x, const T* __restrict__ delta, const float* __restrict__ weight,
    const float* __restrict__ bias, float* sum, T* __restrict__ out, float* __restrict__ mean,
    float* __restrict__ rstd, int rows, int C, float eps, int wide) {
    if (wide) forward<8>(x, delta, weight, bias, sum, out, mean, rstd, rows, C, eps);
    else forward<1>(x, delta, weight, bias, sum, out, mean, rstd, rows, C, eps);
}

// Each block takes the rows blockIdx.x * warps + warp, then gridDim.x * warps further, and so on; each warp adds up
// what its rows give to dweight and dbias in shared memory. At the end the block writes its sums, in the order of the
// warps.
template <int N> __device__ __forceinline__ void backward(
    const float* x, const float* weight, const float* mean, const float* rstd, const T* dout, const float* dresidual,
    float* dx, T* ddelta, float* partial, int rows, int C) {
    DYNAMIC_SHARED(float, shared);                                // (warps, 2, C)
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float* dweight = shared + (size_t)warp * 2 * C;
    float* dbias = dweight + C;
    float xs[KEPT + 1][N], ds[KEPT + 1][N], part[N];
    for (int n = 0; n < N; n++) part[n] = 0;
    for_parts<N>(C, [&](int j, int i) {
        store_part(dweight + j, part);
        store_part(dbias + j, part);
    });
    for (int row = blockIdx.x * warps + warp; row < rows; row += gridDim.x * warps) {
        size_t first = (size_t)row * C;
        float m = mean[row], r = rstd[row], sum_g = 0, sum_gx = 0;
        auto read = [&](int j, int i) {
            load_part(x + first + j, xs[i]);
            load_part(dout + first + j, ds[i]);
        };
        auto add_up = [&](int j, int i) {
            if (i == KEPT) read(j, i);
            load_part(weight + j, part);
            for (int n = 0; n < N; n++) {
                xs[i][n] = (xs[i][n] - m) * r;                    // xhat
                float g = ds[i][n] * part[n];
                sum_g += g;
                sum_gx += g * xs[i][n];
            }
        };
        for_parts<N>(C, [&](int j, int i) { if (i < KEPT) read(j, i); });
        for_parts<N>(C, add_up);
        float avg_g = warp_sum(sum_g) / C, avg_gx = warp_sum(sum_gx) / C;
        for_parts<N>(C, [&](int j, int i) {
            if (i == KEPT) {                                      // again: it is in the cache
                read(j, i);
                for (int n = 0; n < N; n++) xs[i][n] = (xs[i][n] - m) * r;
            }
            load_part(dweight + j, part);
            for (int n = 0; n < N; n++) part[n] += ds[i][n] * xs[i][n];
            store_part(dweight + j, part);
            load_part(dbias + j, part);
            for (int n = 0; n < N; n++) part[n] += ds[i][n];
            store_part(dbias + j, part);
            load_part(weight + j, part);
            for (int n = 0; n < N; n++) xs[i][n] = r * (ds[i][n] * part[n] - avg_g - xs[i][n] * avg_gx);
            if (dresidual) {
                load_part(dresidual + first + j, part);
                for (int n = 0; n < N; n++) xs[i][n] += part[n];
            }
            store_part(dx + first + j, xs[i]);
            if (ddelta) store_part(ddelta + first + j, xs[i]);
        });
    }
    __syncthreads();
    for (int j = threadIdx.x; j < 2 * C; j += blockDim.x) {
        float total = 0;
        for (int w = 0; w < warps; w++) total += shared[(size_t)w * 2 * C + j];
        partial[(size_t)blockIdx.x * 2 * C + j] = total;
    }
}

// dx, and partial (blocks, 2, C): the sums of each block for dweight and dbias. dresidual (or null, or dx itself) is
// added to dx. ddelta (or null) is dx once more, as T.
extern "C" __global__ void __launch_bounds__(128) layernorm_backward(
    const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ mean,
    const float* __restrict__ rstd, const T* __restrict__ dout, const float* dresidual, float* dx,
    T* __restrict__ ddelta, float* __restrict__ partial, int rows, int C, int wide) {
    if (wide) backward<8>(x, weight, mean, rstd, dout, dresidual, dx, ddelta, partial, rows, C);
    else backward<1>(x, weight, mean, rstd, dout, dresidual, dx, ddelta, partial, rows, C);
}
