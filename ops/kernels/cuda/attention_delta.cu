// What backward of attention begins with, on every path: the sums of dout * out.
#include "common.cuh"

// delta (B, nh, Tq): the sum over channels of dout * out, a warp for each row. out is (B, Tq, nh, hs).
extern "C" __global__ void __launch_bounds__(256) attention_delta(
    const T* __restrict__ out,
    const T* __restrict__ dout, long long dout_batch, long long dout_head, long long dout_row,
    float* __restrict__ delta, long long rows, int nh, int Tq, int hs, int wide) {
    long long number = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;   // (b Tq + query) nh + h
    int lane = threadIdx.x % 32;
    if (number >= rows) return;                                   // the whole warp
    int h = (int)(number % nh), query = (int)(number / nh % Tq);
    long long b = number / nh / Tq;
    const T *x = out + number * hs, *y = dout + b * dout_batch + h * dout_head + query * dout_row;
    float sum = 0;
    if (wide) {
        for (int i = 8 * lane; i < hs; i += 256) {
            float a[8], c[8];
            load(x + i, a);
            load(y + i, c);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += a[j] * c[j];
        }
    } else {
        for (int i = lane; i < hs; i += 32) sum += to_float(x[i]) * to_float(y[i]);
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[(b * nh + h) * Tq + query] = sum;
}
