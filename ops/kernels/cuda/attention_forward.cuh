// Attention, forward, on tensor cores: T is f16 or bf16, or f32 for products in TF32 (attention_tf32.cuh). The file
// that includes this one sets HS, M, KEYS and DROPS.
//
// A block is 4 warps and 64 M queries of one head; a warp owns 16 M of them and keeps their out and statistics in
// registers. Keys and values come in tiles of KEYS; while one is used, the next one is copied into the other half of
// the memory. For each tile, s = q kT; the weights are 2^(s scale - largest scale) with the largest of the row so far,
// and what was summed under an older, smaller maximum is scaled down (Milakov and Gimelshein, "Online normalizer
// calculation for softmax", 2018). scale is log2 e / sqrt(hs); logsum is log2 of the sum over keys of 2^(s scale).
//
// grid: B nh tiles of queries, the tiles of a head next to each other: they share its keys in the L2 cache.

const bool Q_KEPT = M == 1;                                       // q stays in registers, if it fits

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    T* __restrict__ out, float* __restrict__ logsum, int nh, int Tq, int Tk, int hs, int wide, float scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const Dropout dropout = {hash_key ? hash_key[0] : 0, hash_first, threshold, Tk};
    const int ROWS = 16 * M * WARPS;
    DYNAMIC_SHARED(T, q_tile);                                    // (ROWS, HS), then two of (KEYS, HS) for k, two for v
    T *k_tiles = q_tile + ROWS * HS, *v_tiles = k_tiles + 2 * KEYS * HS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tiles = (Tq + ROWS - 1) / ROWS;
    int first = (tiles - 1 - (int)(blockIdx.x % tiles)) * ROWS;   // the longest rows begin first
    int head = blockIdx.x / tiles, ahead = Tk - Tq;
    int keys = min(Tk, first + ROWS + ahead);                     // that the block's last query sees
    int own = (int)threadIdx.x / 32 * 16 * M, mine = first + own;   // the warp's first query
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh) + first * q_row;
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);

    load_tile<ROWS, HS>(q_tile, q_rows, q_row, Tq - first, hs, wide);
    load_tile<KEYS, HS>(k_tiles, k_rows, k_row, Tk, hs, wide);
    load_tile<KEYS, HS>(v_tiles, v_rows, v_row, Tk, hs, wide);
    cp_async_commit();

    unsigned q_kept[M][Q_KEPT ? HS / DEPTH : 1][4];
    float o[M][HS / 8][4], largest[M][2], total[M][2];            // of rows g and g + 8: largest score times scale, and
    clear(o);                                                     // the sum of the weights of this lane's columns
#pragma unroll
    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = minus_infinity(), total[m][0] = total[m][1] = 0;

    if constexpr (Q_KEPT) {
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < HS / DEPTH; i++) load_a<HS>(q_kept[0][i], q_tile, own, i);
    }
    for (int key = 0, turn = 0; key < keys; key += KEYS, turn ^= 1) {
        cp_async_wait<0>();
        __syncthreads();                                          // the tile is there, and all have left the one before
        int next = key + KEYS;
        if (next < keys) {
            k_rows += KEYS * k_row, v_rows += KEYS * v_row;
            load_tile<KEYS, HS>(k_tiles + (turn ^ 1) * KEYS * HS, k_rows, k_row, Tk - next, hs, wide);
            load_tile<KEYS, HS>(v_tiles + (turn ^ 1) * KEYS * HS, v_rows, v_row, Tk - next, hs, wide);
            cp_async_commit();
        }
        if (key > mine + 16 * M - 1 + ahead) continue;            // no query of the warp sees this tile
        float s[M][KEYS / 8][4];
        clear(s);
        multiply<HS, M, KEYS, Q_KEPT>(s, q_kept, q_tile, own, k_tiles + turn * KEYS * HS);
        if (key + KEYS - 1 > mine + ahead)                        // some query of the warp does not see the whole tile
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (key + 8 * n + 2 * t + i % 2 > mine + 16 * m + g + i / 2 * 8 + ahead)
                            s[m][n][i] = minus_infinity();
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = mine + 16 * m + g + 8 * half;
                float above = minus_infinity();
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) above = fmaxf(above, s[m][n][i]);
                above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, 1));   // the row is in 4 lanes
                above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, 2));
                float shift = fmaxf(largest[m][half], above * scale), sum = 0;
                float factor = exp2_approx(largest[m][half] - shift);   // exactly 1 while the largest stays
                largest[m][half] = shift;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        s[m][n][i] = exp2_approx(s[m][n][i] * scale - shift);
                        sum += s[m][n][i];
                    }
                total[m][half] = total[m][half] * factor + sum;
#pragma unroll
                for (int n = 0; n < HS / 8; n++) o[m][n][2 * half] *= factor, o[m][n][2 * half + 1] *= factor;
                if constexpr (DROPS) {
                    unsigned long long row = dropout.row((size_t)head * Tq + query);
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 2 * half; i < 2 * half + 2; i++)
                            if (!dropout.keeps(row, key + 8 * n + 2 * t + i % 2)) s[m][n][i] = 0;
                }
            }
        accumulate<HS, M, KEYS>(o, s, v_tiles + turn * KEYS * HS);
    }

    long long row = (long long)nh * hs;                           // out is (B, Tq, nh, hs)
    T* out_rows = out + (size_t)(head / nh) * Tq * row + (size_t)(head % nh) * hs;
#pragma unroll
    for (int m = 0; m < M; m++) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = total[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            int query = mine + 16 * m + g + 8 * half;
            if (t == 0 && query < Tq) logsum[(size_t)head * Tq + query] = largest[m][half] + log2f(sum);
            factor[half] = kept_factor / sum;
        }
        int begin = mine + 16 * m;
        store_rows<HS>(out_rows + begin * row, row, Tq - begin, hs, o[m], factor[0], factor[1]);
    }
}
