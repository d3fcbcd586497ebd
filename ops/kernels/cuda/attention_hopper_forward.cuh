// Attention, forward, by products of warpgroups. The formulas and the arguments are those of attention_forward.cuh;
// those of dropout are not used.
//
// A block is two warpgroups of 64 queries. A warpgroup waits for s, computes the weights, which stay in registers, and
// begins out += weights v, for which it waits together with the next s. Tiles come one ahead, and that of this sum is
// still in use: so there are three. While a warpgroup waits or computes weights, the tensor cores have work from the
// other three of the multiprocessor: two blocks of up to 128 registers.
//
// Of 64 x 64 scores the products take 256 cycles of a multiprocessor at least; so do their 2^x, 16 a cycle; operands
// from shared memory take 192. (A tile of 128 keys needs 155 registers: that is three warpgroups, and T = 1024 is no
// multiple of their rows.)

const int FORWARD_GROUPS = 2;

// The place of the tile behind the one in this place, of three.
__device__ __forceinline__ int after(int turn) { return turn < 2 ? turn + 1 : 0; }

extern "C" __global__ void __launch_bounds__(128 * FORWARD_GROUPS, 2) attention_hopper_forward(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    T* __restrict__ out, float* __restrict__ logsum, int nh, int Tq, int Tk, int hs, int wide, float scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const int GROUPS = FORWARD_GROUPS, KEYS = 64, ROWS = 64 * GROUPS, TILE = KEYS * 64;
    DYNAMIC_SHARED(T, memory);
    T* q_tile = aligned_tiles(memory);                            // (ROWS, 64), then 3 of (KEYS, 64) for k, 3 for v
    T *k_tiles = q_tile + ROWS * 64, *v_tiles = k_tiles + 3 * TILE;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tiles = (Tq + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (tiles - 1 - (int)(blockIdx.x % tiles)) * ROWS;   // the longest rows begin first
    int keys = min(Tk, first + ROWS + ahead);                     // that the block's last query sees
    int own = 64 * group_of_thread(), group = first + own;        // the warpgroup's first query
    int mine = group + (int)threadIdx.x % 128 / 32 * 16;          // the warp's first query
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh) + first * q_row;
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);

    load_rows<ROWS, GROUPS>(q_tile, q_rows, q_row, Tq - first, hs, wide);
    load_rows<KEYS, GROUPS>(k_tiles, k_rows, k_row, Tk, hs, wide);
    load_rows<KEYS, GROUPS>(v_tiles, v_rows, v_row, Tk, hs, wide);
    cp_async_commit();

    unsigned w[4][4];
    float o[8][4], largest[2], total[2];                          // of rows g and g + 8
    clear(o);
    clear(w);
    largest[0] = largest[1] = minus_infinity(), total[0] = total[1] = 0;
    for (int key = 0, turn = 0; key < keys; key += KEYS, turn = after(turn)) {
        wait_for_tiles();                                         // and all have left the one before the last
        int next = key + KEYS;
        if (next < keys) {
            k_rows += KEYS * k_row, v_rows += KEYS * v_row;
            load_rows<KEYS, GROUPS>(k_tiles + after(turn) * TILE, k_rows, k_row, Tk - next, hs, wide);
            load_rows<KEYS, GROUPS>(v_tiles + after(turn) * TILE, v_rows, v_row, Tk - next, hs, wide);
            cp_async_commit();
        }
        if (key > group + 63 + ahead) {                           // no query of the warpgroup sees this tile, the last
            wgmma_wait<0>();                                      // one: nothing more is copied to where v is read
            continue;
        }
        float s[KEYS / 8][4];
        begin_scores(s, q_tile + own * 64, k_tiles + turn * TILE);
        wgmma_wait<0>();
        hold(s);
        hold(o);
        hold(w);
        if (key + KEYS - 1 > mine + ahead)                        // some query of the warp does not see the whole tile
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (key + 8 * n + 2 * t + i % 2 > mine + g + i / 2 * 8 + ahead) s[n][i] = minus_infinity();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float above = minus_infinity(), sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) above = fmaxf(above, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, 1));   // the row is in 4 lanes
            above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, 2));
            float shift = fmaxf(largest[half], above * scale);
            float factor = exp2_approx(largest[half] - shift);    // exactly 1 while the largest stays
            largest[half] = shift;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[n][i] = exp2_approx(s[n][i] * scale - shift);
                    sum += s[n][i];
                }
            total[half] = total[half] * factor + sum;
#pragma unroll
            for (int n = 0; n < 8; n++) o[n][2 * half] *= factor, o[n][2 * half + 1] *= factor;
        }
        pack_weights(w, s);
        begin_sums(o, w, v_tiles + turn * TILE);
    }
    wgmma_wait<0>();
    hold(o);
    hold(w);

    long long row = (long long)nh * hs;                           // out is (B, Tq, nh, hs)
    T* out_rows = out + (size_t)(head / nh) * Tq * row + (size_t)(head % nh) * hs;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        int query = mine + g + 8 * half;
        if (t == 0 && query < Tq) logsum[(size_t)head * Tq + query] = largest[half] + log2f(sum);
        factor[half] = 1 / sum;
    }
    store_rows<64>(out_rows + mine * row, row, Tq - mine, hs, o, factor[0], factor[1]);
}
