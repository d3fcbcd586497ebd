// Attention, backward, on tensor cores: two kernels, each of which computes the weights w = 2^(s scale - logsum) again.
//
//     attention_dkdv    a block owns 64 keys, a warp 16; tiles of queries pass by. Transposed, w and ds are in the
//                       registers as the next products need them:
//                           dv = (w keep)T dout      ds = w (dout vT keep - delta)      dk = dsT q
//     attention_dq      a block owns 64 queries, a warp 16; tiles of keys pass by: dq = ds k
//
// Of 7 products 2 are done twice. The other way, dq summed up over the blocks of keys, needs atomic additions, whose
// order, and so the result, differs from run to run. delta is the sum over channels of dout * out (attention_delta.cu).

const bool KEPT = HS <= 64 && !DROPS;                             // the owned rows stay in registers, if they fit

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_dkdv(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    const T* __restrict__ dout, long long dout_batch, long long dout_head, long long dout_row,
    const float* __restrict__ logsum, const float* __restrict__ delta,
    T* __restrict__ dk, T* __restrict__ dv, long long dk_batch, long long dk_head, long long dk_row,
    int nh, int Tq, int Tk, int hs, int wide, float scale, float ds_scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const Dropout dropout = {hash_key ? hash_key[0] : 0, hash_first, threshold, Tk};
    const int ROWS = 16 * WARPS;
    DYNAMIC_SHARED(T, k_tile);                                    // (ROWS, HS), v alike
    T *v_tile = k_tile + ROWS * HS, *q_tiles = v_tile + ROWS * HS;   // two of (QUERIES, HS), dout alike
    T* dout_tiles = q_tiles + 2 * QUERIES * HS;
    float* logsums = reinterpret_cast<float*>(dout_tiles + 2 * QUERIES * HS);   // (2, QUERIES)
    float* deltas = logsums + 2 * QUERIES;                        // (2, QUERIES)
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tiles = (Tk + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (int)(blockIdx.x % tiles) * ROWS;                 // the keys that most queries see begin first
    int begin = max(0, first - ahead) / QUERIES * QUERIES;        // no query before sees a key of the block
    int own = (int)threadIdx.x / 32 * 16, mine = first + own;     // the warp's first key
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh);
    const T* dout_rows = rows_of(dout, dout_batch, dout_head, head, nh);
    logsum += (size_t)head * Tq, delta += (size_t)head * Tq;

    auto load_queries = [&](int query, int turn) {
        load_tile<QUERIES, HS>(q_tiles + turn * QUERIES * HS, q_rows + query * q_row, q_row, Tq - query, hs, wide);
        load_tile<QUERIES, HS>(
            dout_tiles + turn * QUERIES * HS, dout_rows + query * dout_row, dout_row, Tq - query, hs, wide);
        int i = threadIdx.x;
        if (i < QUERIES) {
            bool inside = query + i < Tq;
            cp_async<4>(logsums + turn * QUERIES + i, inside ? logsum + query + i : logsum, inside);
            cp_async<4>(deltas + turn * QUERIES + i, inside ? delta + query + i : delta, inside);
        }
        cp_async_commit();
    };
    load_tile<ROWS, HS>(k_tile, k_rows + first * k_row, k_row, Tk - first, hs, wide);
    load_tile<ROWS, HS>(v_tile, v_rows + first * v_row, v_row, Tk - first, hs, wide);
    load_queries(begin, 0);

    unsigned k_kept[1][KEPT ? HS / DEPTH : 1][4], v_kept[1][KEPT ? HS / DEPTH : 1][4];
    float dk_sum[1][HS / 8][4], dv_sum[1][HS / 8][4];
    clear(dk_sum);
    clear(dv_sum);
    if constexpr (KEPT) {
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < HS / DEPTH; i++) {
            load_a<HS>(k_kept[0][i], k_tile, own, i);
            load_a<HS>(v_kept[0][i], v_tile, own, i);
        }
    }
    for (int query = begin, turn = 0; query < Tq; query += QUERIES, turn ^= 1) {
        cp_async_wait<0>();
        __syncthreads();                                          // the tile is there, and all have left the one before
        if (query + QUERIES < Tq) load_queries(query + QUERIES, turn ^ 1);
        if (mine > query + QUERIES - 1 + ahead) continue;         // no query of the tile sees a key of the warp
        const T *q_tile = q_tiles + turn * QUERIES * HS, *dout_tile = dout_tiles + turn * QUERIES * HS;
        float w[1][QUERIES / 8][4], ds[1][QUERIES / 8][4];        // transposed: (16 keys, QUERIES)
        clear(w);
        clear(ds);
        multiply<HS, 1, QUERIES, KEPT>(w, k_kept, k_tile, own, q_tile);
        multiply<HS, 1, QUERIES, KEPT>(ds, v_kept, v_tile, own, dout_tile);
        if (mine + 15 > query + ahead)                            // some query of the tile does not see all keys
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (mine + g + i / 2 * 8 > query + 8 * n + 2 * t + i % 2 + ahead) w[0][n][i] = minus_infinity();
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int column = 8 * n + 2 * t + c;
                float shift = logsums[turn * QUERIES + column], mean = deltas[turn * QUERIES + column];
                unsigned long long row = DROPS ? dropout.row((size_t)head * Tq + query + column) : 0;
#pragma unroll
                for (int i = c; i < 4; i += 2) {
                    int key = mine + g + 8 * (i / 2);
                    float weight = exp2_approx(w[0][n][i] * scale - shift), dw = ds[0][n][i];
                    bool keeps = !DROPS || dropout.keeps(row, key);
                    if (DROPS) dw = keeps ? dw * kept_factor : 0;
                    w[0][n][i] = keeps ? weight : 0;
                    ds[0][n][i] = weight * (dw - mean);
                }
            }
        accumulate<HS, 1, QUERIES>(dv_sum, w, dout_tile);
        accumulate<HS, 1, QUERIES>(dk_sum, ds, q_tile);
    }
    T* dk_rows = rows_of(dk, dk_batch, dk_head, head, nh) + mine * dk_row;
    T* dv_rows = rows_of(dv, dk_batch, dk_head, head, nh) + mine * dk_row;
    store_rows<HS>(dk_rows, dk_row, Tk - mine, hs, dk_sum[0], ds_scale, ds_scale);
    store_rows<HS>(dv_rows, dk_row, Tk - mine, hs, dv_sum[0], kept_factor, kept_factor);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_dq(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    const T* __restrict__ dout, long long dout_batch, long long dout_head, long long dout_row,
    const float* __restrict__ logsum, const float* __restrict__ delta,
    T* __restrict__ dq, long long dq_batch, long long dq_head, long long dq_row,
    int nh, int Tq, int Tk, int hs, int wide, float scale, float ds_scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const Dropout dropout = {hash_key ? hash_key[0] : 0, hash_first, threshold, Tk};
    const int ROWS = 16 * WARPS;
    DYNAMIC_SHARED(T, q_tile);                                    // (ROWS, HS), dout alike
    T *dout_tile = q_tile + ROWS * HS, *k_tiles = dout_tile + ROWS * HS;   // two of (KEYS, HS), v alike
    T* v_tiles = k_tiles + 2 * KEYS * HS;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tiles = (Tq + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (tiles - 1 - (int)(blockIdx.x % tiles)) * ROWS;   // the longest rows begin first
    int keys = min(Tk, first + ROWS + ahead);                     // that the block's last query sees
    int own = (int)threadIdx.x / 32 * 16, mine = first + own;     // the warp's first query
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh);
    const T* dout_rows = rows_of(dout, dout_batch, dout_head, head, nh);

    auto load_keys = [&](int key, int turn) {
        load_tile<KEYS, HS>(k_tiles + turn * KEYS * HS, k_rows + key * k_row, k_row, Tk - key, hs, wide);
        load_tile<KEYS, HS>(v_tiles + turn * KEYS * HS, v_rows + key * v_row, v_row, Tk - key, hs, wide);
        cp_async_commit();
    };
    load_tile<ROWS, HS>(q_tile, q_rows + first * q_row, q_row, Tq - first, hs, wide);
    load_tile<ROWS, HS>(dout_tile, dout_rows + first * dout_row, dout_row, Tq - first, hs, wide);
    load_keys(0, 0);

    unsigned q_kept[1][KEPT ? HS / DEPTH : 1][4], dout_kept[1][KEPT ? HS / DEPTH : 1][4];
    float sum[1][HS / 8][4], shift[2], mean[2];                   // of rows g and g + 8
    clear(sum);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = mine + g + 8 * half;
        shift[half] = query < Tq ? logsum[(size_t)head * Tq + query] : 0;
        mean[half] = query < Tq ? delta[(size_t)head * Tq + query] : 0;
    }
    if constexpr (KEPT) {
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < HS / DEPTH; i++) {
            load_a<HS>(q_kept[0][i], q_tile, own, i);
            load_a<HS>(dout_kept[0][i], dout_tile, own, i);
        }
    }
    for (int key = 0, turn = 0; key < keys; key += KEYS, turn ^= 1) {
        cp_async_wait<0>();
        __syncthreads();                                          // the tile is there, and all have left the one before
        if (key + KEYS < keys) load_keys(key + KEYS, turn ^ 1);
        if (key > mine + 15 + ahead) continue;                    // no query of the warp sees this tile
        const T *k_tile = k_tiles + turn * KEYS * HS, *v_tile = v_tiles + turn * KEYS * HS;
        float w[1][KEYS / 8][4], ds[1][KEYS / 8][4];
        clear(w);
        clear(ds);
        multiply<HS, 1, KEYS, KEPT>(w, q_kept, q_tile, own, k_tile);
        multiply<HS, 1, KEYS, KEPT>(ds, dout_kept, dout_tile, own, v_tile);
        if (key + KEYS - 1 > mine + ahead)                        // some query of the warp does not see the whole tile
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (key + 8 * n + 2 * t + i % 2 > mine + g + i / 2 * 8 + ahead) w[0][n][i] = minus_infinity();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = mine + g + 8 * half;
            unsigned long long row = DROPS ? dropout.row((size_t)head * Tq + query) : 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    int column = key + 8 * n + 2 * t + i % 2;
                    float weight = exp2_approx(w[0][n][i] * scale - shift[half]), dw = ds[0][n][i];
                    if (DROPS) dw = dropout.keeps(row, column) ? dw * kept_factor : 0;
                    ds[0][n][i] = weight * (dw - mean[half]);
                }
        }
        accumulate<HS, 1, KEYS>(sum, ds, k_tile);
    }
    T* dq_rows = rows_of(dq, dq_batch, dq_head, head, nh) + mine * dq_row;
    store_rows<HS>(dq_rows, dq_row, Tq - mine, hs, sum[0], ds_scale, ds_scale);
}
