// Attention, backward, by products of warpgroups. The formulas and the arguments are those of attention_backward.cuh;
// those of dropout are not used. A warpgroup owns 64 rows of keys (dk, dv) or queries (dq); tiles of 64 pass by.
//
// Two products are begun together. While the second one runs, the weights are computed from the first; while the sum
// that takes the weights runs, ds is computed from the second. The other warpgroups of the multiprocessor do the same
// at other times: one more for dk and dv, three more for dq.
//
// 7 products in all, where 5 in one kernel would do: that one would write dq once for each block of keys, float32, and
// read it again to add in a fixed order. At T = 1024 and B nh = 768 this is about 1.8 GB, 0.4 ms; the two products more
// are 0.13 ms, their 2^x alike.

const int DKDV_GROUPS = 2, DQ_GROUPS = 2;

extern "C" __global__ void __launch_bounds__(128 * DKDV_GROUPS, 1) attention_hopper_dkdv(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    const T* __restrict__ dout, long long dout_batch, long long dout_head, long long dout_row,
    const float* __restrict__ logsum, const float* __restrict__ delta,
    T* __restrict__ dk, T* __restrict__ dv, long long dk_batch, long long dk_head, long long dk_row,
    int nh, int Tq, int Tk, int hs, int wide, float scale, float ds_scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const int GROUPS = DKDV_GROUPS, QUERIES = 64, ROWS = 64 * GROUPS, TILE = QUERIES * 64;
    DYNAMIC_SHARED(T, memory);
    T* k_tile = aligned_tiles(memory);                            // (ROWS, 64), v alike
    T *v_tile = k_tile + ROWS * 64, *q_tiles = v_tile + ROWS * 64;   // two of (QUERIES, 64), dout alike
    T* dout_tiles = q_tiles + 2 * TILE;
    float* logsums = reinterpret_cast<float*>(dout_tiles + 2 * TILE);   // (2, QUERIES)
    float* deltas = logsums + 2 * QUERIES;                        // (2, QUERIES)
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tiles = (Tk + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (int)(blockIdx.x % tiles) * ROWS;                 // the keys that most queries see begin first
    int begin = max(0, first - ahead) / QUERIES * QUERIES;        // no query before sees a key of the block
    int own = 64 * group_of_thread(), group = first + own;        // the warpgroup's first key
    int mine = group + (int)threadIdx.x % 128 / 32 * 16;          // the warp's first key
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh);
    const T* dout_rows = rows_of(dout, dout_batch, dout_head, head, nh);
    logsum += (size_t)head * Tq, delta += (size_t)head * Tq;

    auto load_queries = [&](int query, int turn) {
        load_rows<QUERIES, GROUPS>(q_tiles + turn * TILE, q_rows + query * q_row, q_row, Tq - query, hs, wide);
        load_rows<QUERIES, GROUPS>(
            dout_tiles + turn * TILE, dout_rows + query * dout_row, dout_row, Tq - query, hs, wide);
        int i = threadIdx.x;
        if (i < QUERIES) {
            bool inside = query + i < Tq;
            cp_async<4>(logsums + turn * QUERIES + i, inside ? logsum + query + i : logsum, inside);
            cp_async<4>(deltas + turn * QUERIES + i, inside ? delta + query + i : delta, inside);
        }
        cp_async_commit();
    };
    load_rows<ROWS, GROUPS>(k_tile, k_rows + first * k_row, k_row, Tk - first, hs, wide);
    load_rows<ROWS, GROUPS>(v_tile, v_rows + first * v_row, v_row, Tk - first, hs, wide);
    load_queries(begin, 0);

    float dk_sum[8][4], dv_sum[8][4];
    clear(dk_sum);
    clear(dv_sum);
    for (int query = begin, turn = 0; query < Tq; query += QUERIES, turn ^= 1) {
        wait_for_tiles();                                         // and all have left the one before
        if (query + QUERIES < Tq) load_queries(query + QUERIES, turn ^ 1);
        if (group > query + QUERIES - 1 + ahead) continue;        // no query of the tile sees a key of the warpgroup
        const T *q_tile = q_tiles + turn * TILE, *dout_tile = dout_tiles + turn * TILE;
        const float *shifts = logsums + turn * QUERIES + 2 * t, *means = deltas + turn * QUERIES + 2 * t;
        float w[8][4], ds[8][4];                                  // transposed: (64 keys, QUERIES)
        unsigned w_packed[4][4], ds_packed[4][4];
        begin_scores(w, k_tile + own * 64, q_tile);
        begin_scores(ds, v_tile + own * 64, dout_tile);
        wgmma_wait<1>();
        hold(w);
        if (mine + 15 > query + ahead)                            // some query of the tile does not see all keys
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (mine + g + i / 2 * 8 > query + 8 * n + 2 * t + i % 2 + ahead) w[n][i] = minus_infinity();
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) w[n][i] = exp2_approx(w[n][i] * scale - shifts[8 * n + i % 2]);
        pack_weights(w_packed, w);
        begin_sums(dv_sum, w_packed, dout_tile);
        wgmma_wait<1>();
        hold(ds);
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) ds[n][i] = w[n][i] * (ds[n][i] - means[8 * n + i % 2]);
        pack_weights(ds_packed, ds);
        begin_sums(dk_sum, ds_packed, q_tile);
        wgmma_wait<0>();
        hold(dv_sum);
        hold(w_packed);
        hold(dk_sum);
        hold(ds_packed);
    }
    T* dk_rows = rows_of(dk, dk_batch, dk_head, head, nh) + mine * dk_row;
    T* dv_rows = rows_of(dv, dk_batch, dk_head, head, nh) + mine * dk_row;
    store_rows<64>(dk_rows, dk_row, Tk - mine, hs, dk_sum, ds_scale, ds_scale);
    store_rows<64>(dv_rows, dk_row, Tk - mine, hs, dv_sum, 1, 1);
}

extern "C" __global__ void __launch_bounds__(128 * DQ_GROUPS, 2) attention_hopper_dq(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    const T* __restrict__ dout, long long dout_batch, long long dout_head, long long dout_row,
    const float* __restrict__ logsum, const float* __restrict__ delta,
    T* __restrict__ dq, long long dq_batch, long long dq_head, long long dq_row,
    int nh, int Tq, int Tk, int hs, int wide, float scale, float ds_scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const int GROUPS = DQ_GROUPS, KEYS = 64, ROWS = 64 * GROUPS, TILE = KEYS * 64;
    DYNAMIC_SHARED(T, memory);
    T* q_tile = aligned_tiles(memory);                            // (ROWS, 64), dout alike
    T *dout_tile = q_tile + ROWS * 64, *k_tiles = dout_tile + ROWS * 64;   // two of (KEYS, 64), v alike
    T* v_tiles = k_tiles + 2 * TILE;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tiles = (Tq + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (tiles - 1 - (int)(blockIdx.x % tiles)) * ROWS;   // the longest rows begin first
    int keys = min(Tk, first + ROWS + ahead);                     // that the block's last query sees
    int own = 64 * group_of_thread(), group = first + own;        // the warpgroup's first query
    int mine = group + (int)threadIdx.x % 128 / 32 * 16;          // the warp's first query
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh);
    const T* dout_rows = rows_of(dout, dout_batch, dout_head, head, nh);

    auto load_keys = [&](int key, int turn) {
        load_rows<KEYS, GROUPS>(k_tiles + turn * TILE, k_rows + key * k_row, k_row, Tk - key, hs, wide);
        load_rows<KEYS, GROUPS>(v_tiles + turn * TILE, v_rows + key * v_row, v_row, Tk - key, hs, wide);
        cp_async_commit();
    };
    load_rows<ROWS, GROUPS>(q_tile, q_rows + first * q_row, q_row, Tq - first, hs, wide);
    load_rows<ROWS, GROUPS>(dout_tile, dout_rows + first * dout_row, dout_row, Tq - first, hs, wide);
    load_keys(0, 0);

    float sum[8][4], shift[2], mean[2];                           // of rows g and g + 8
    clear(sum);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = mine + g + 8 * half;
        shift[half] = query < Tq ? logsum[(size_t)head * Tq + query] : 0;
        mean[half] = query < Tq ? delta[(size_t)head * Tq + query] : 0;
    }
    for (int key = 0, turn = 0; key < keys; key += KEYS, turn ^= 1) {
        wait_for_tiles();                                         // and all have left the one before
        if (key + KEYS < keys) load_keys(key + KEYS, turn ^ 1);
        if (key > group + 63 + ahead) continue;                   // no query of the warpgroup sees this tile
        const T *k_tile = k_tiles + turn * TILE, *v_tile = v_tiles + turn * TILE;
        float w[8][4], ds[8][4];
        unsigned ds_packed[4][4];
        begin_scores(w, q_tile + own * 64, k_tile);
        begin_scores(ds, dout_tile + own * 64, v_tile);
        wgmma_wait<1>();
        hold(w);
        if (key + KEYS - 1 > mine + ahead)                        // some query of the warp does not see the whole tile
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (key + 8 * n + 2 * t + i % 2 > mine + g + i / 2 * 8 + ahead) w[n][i] = minus_infinity();
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) w[n][i] = exp2_approx(w[n][i] * scale - shift[i / 2]);
        wgmma_wait<0>();
        hold(ds);
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) ds[n][i] = w[n][i] * (ds[n][i] - mean[i / 2]);
        pack_weights(ds_packed, ds);
        begin_sums(sum, ds_packed, k_tile);
        wgmma_wait<0>();
        hold(sum);
        hold(ds_packed);
    }
    T* dq_rows = rows_of(dq, dq_batch, dq_head, head, nh) + mine * dq_row;
    store_rows<64>(dq_rows, dq_row, Tq - mine, hs, sum, ds_scale, ds_scale);
}
