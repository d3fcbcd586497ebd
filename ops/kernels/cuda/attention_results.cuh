// How the results of a warp's products are written. Needs store_two, of attention_tiles.cuh or attention_tf32.cuh.

// Results (16, HS), each row times its factor, to rows `stride` apart, of which `valid` exist.
template <int HS> __device__ __forceinline__ void store_rows(
    T* rows, long long stride, int valid, int hs, const float (&x)[HS / 8][4], float factor_0, float factor_1) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = g + 8 * half;
        float factor = half ? factor_1 : factor_0;
        if (row >= valid) continue;
#pragma unroll
        for (int n = 0; n < HS / 8; n++) {
            int column = 8 * n + 2 * t;
            T* to = rows + row * stride + column;
            float low = x[n][2 * half] * factor, high = x[n][2 * half + 1] * factor;
            if (hs % 2 == 0) {
                if (column < hs) store_two(to, low, high);
            } else {
                if (column < hs) set(to[0], low);
                if (column + 1 < hs) set(to[1], high);
            }
        }
    }
}
