// Attention without tensor cores, for every T: float32, and GPUs that lack the products of 16 bits. The file that
// includes this one sets HS, the most channels of a head.
//
// A block is 64 rows of one head and passes by tiles of 64 rows of the other side, 16 x 16 threads with 4 x 4 results
// each; scores are products of 16 channels at a time. Scores are multiplied by scale, log2 e / sqrt(hs), with q, before
// the product: it may be too large where that of scaled q is not. The rest is as in attention_forward.cuh.

const int ROWS = 64, DEPTH = 16;                                  // of a tile; channels at once
const int SIDE = 16, PART = ROWS / SIDE;                          // a block has SIDE x SIDE threads of PART rows
const int COLUMNS = HS / SIDE;                                    // of a thread, in sums of rows
const int UNROLLED = HS <= 64 ? 8 : 2;                            // rows of a tile; more take long to compile

typedef float Slice[ROWS][DEPTH + 1];                             // one column more: rows begin in different banks
typedef float Square[ROWS][ROWS + 1];

// Channels from `depth` of rows 0 .. 63, of which `valid` exist, times a factor.
__device__ __forceinline__ void load_slice(
    Slice& slice, const T* rows, long long stride, int valid, int depth, int hs, float factor) {
    int column = threadIdx.x % DEPTH;
#pragma unroll
    for (int row = threadIdx.x / DEPTH; row < ROWS; row += SIDE) {
        bool inside = row < valid && depth + column < hs;
        slice[row][column] = inside ? to_float(rows[row * stride + depth + column]) * factor : 0.0f;
    }
}

// s = x yT for two tiles of rows (64, hs): thread (y, x) has rows y, y + 16, ... and columns x, x + 16, ...
__device__ __forceinline__ void multiply(
    float (&s)[PART][PART], Slice& a, Slice& b, const T* x, long long x_row, int x_valid, const T* y, long long y_row,
    int y_valid, int hs, float factor) {
    int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int r = 0; r < PART; r++)
#pragma unroll
        for (int c = 0; c < PART; c++) s[r][c] = 0;
    for (int depth = 0; depth < hs; depth += DEPTH) {
        __syncthreads();
        load_slice(a, x, x_row, x_valid, depth, hs, factor);
        load_slice(b, y, y_row, y_valid, depth, hs, 1);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int r = 0; r < PART; r++)
#pragma unroll
                for (int c = 0; c < PART; c++) s[r][c] += a[ty + SIDE * r][k] * b[tx + SIDE * c][k];
    }
}

// sum (64, hs) += w x for weights w (64, 64), or their transpose, and a tile of rows x (64, hs), 64 channels at a time.
template <bool TRANSPOSED> __device__ __forceinline__ void accumulate(
    float (&sum)[PART][COLUMNS], const Square& w, Square& b, const T* x, long long x_row, int valid, int hs) {
    int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int first = 0; first < HS; first += ROWS) {
        if (first >= hs) break;
        __syncthreads();
        int column = threadIdx.x % ROWS;
        for (int row = threadIdx.x / ROWS; row < ROWS; row += SIDE * SIDE / ROWS) {
            bool inside = row < valid && first + column < hs;
            b[row][column] = inside ? to_float(x[row * x_row + first + column]) : 0.0f;
        }
        __syncthreads();
#pragma unroll UNROLLED
        for (int j = 0; j < ROWS; j++)
#pragma unroll
            for (int r = 0; r < PART; r++)
#pragma unroll
                for (int c = 0; c < PART; c++) {
                    float weight = TRANSPOSED ? w[j][ty + SIDE * r] : w[ty + SIDE * r][j];
                    sum[r][first / SIDE + c] += weight * b[j][tx + SIDE * c];
                }
    }
}

__device__ __forceinline__ void store_rows(
    T* rows, long long stride, int valid, int hs, const float (&x)[PART][COLUMNS], const float (&factor)[PART]) {
    int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int r = 0; r < PART; r++)
#pragma unroll
        for (int part = 0; part < COLUMNS; part++) {
            int row = ty + SIDE * r, column = part * SIDE + tx;
            if (row < valid && column < hs) set(rows[row * stride + column], x[r][part] * factor[r]);
        }
}

extern "C" __global__ void __launch_bounds__(256, 1) attention_plain_forward(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    T* __restrict__ out, float* __restrict__ logsum, int nh, int Tq, int Tk, int hs, float scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const Dropout dropout = {hash_key ? hash_key[0] : 0, hash_first, threshold, Tk};
    __shared__ Slice a, b;
    __shared__ Square w, tile;
    int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    int tiles = (Tq + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (tiles - 1 - (int)(blockIdx.x % tiles)) * ROWS;   // the longest rows begin first
    int keys = min(Tk, first + ROWS + ahead);                     // that the block's last query sees
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh) + first * q_row;
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);
    float o[PART][COLUMNS] = {}, largest[PART], total[PART] = {};
#pragma unroll
    for (int r = 0; r < PART; r++) largest[r] = minus_infinity();
    for (int key = 0; key < keys; key += ROWS) {
        float s[PART][PART];
        multiply(s, a, b, q_rows, q_row, Tq - first, k_rows + key * k_row, k_row, Tk - key, hs, scale);
#pragma unroll
        for (int r = 0; r < PART; r++) {
            int query = first + ty + SIDE * r;
            float above = largest[r], sum = 0;
#pragma unroll
            for (int c = 0; c < PART; c++) {
                if (key + tx + SIDE * c > query + ahead) s[r][c] = minus_infinity();
                above = fmaxf(above, s[r][c]);
            }
#pragma unroll
            for (int distance = 8; distance > 0; distance /= 2)
                above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, distance));
            float factor = exp2f(largest[r] - above);
            unsigned long long row = dropout.row((size_t)head * Tq + query);
#pragma unroll
            for (int c = 0; c < PART; c++) {
                int column = key + tx + SIDE * c;
                float weight = exp2f(s[r][c] - above);
                sum += weight;
                w[ty + SIDE * r][tx + SIDE * c] = !threshold || dropout.keeps(row, column) ? weight : 0.0f;
            }
            total[r] = total[r] * factor + sum;
            largest[r] = above;
#pragma unroll
            for (int part = 0; part < COLUMNS; part++) o[r][part] *= factor;
        }
        accumulate<false>(o, w, tile, v_rows + key * v_row, v_row, Tk - key, hs);
    }
    float factor[PART];
#pragma unroll
    for (int r = 0; r < PART; r++) {
        int query = first + ty + SIDE * r;
        float sum = total[r];
#pragma unroll
        for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (tx == 0 && query < Tq) logsum[(size_t)head * Tq + query] = largest[r] + log2f(sum);
        factor[r] = kept_factor / sum;
    }
    long long row = (long long)nh * hs;                           // out is (B, Tq, nh, hs)
    T* out_rows = out + (size_t)(head / nh) * Tq * row + (size_t)(head % nh) * hs;
    store_rows(out_rows + first * row, row, Tq - first, hs, o, factor);
}

// Of a tile of queries and one of keys: the weights that dv needs (dropped ones are 0), and ds.
__device__ __forceinline__ void gradients_of_scores(
    Square* w, Square& ds, const float (&s)[PART][PART], const float (&dw)[PART][PART], const float* logsum,
    const float* delta, int head, int query, int key, int Tq, int ahead, const Dropout& dropout, float kept_factor) {
    int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int r = 0; r < PART; r++) {
        int i = query + ty + SIDE * r;
        size_t number = (size_t)head * Tq + i;
        float shift = i < Tq ? logsum[number] : 0, mean = i < Tq ? delta[number] : 0;
        unsigned long long row = dropout.row(number);
#pragma unroll
        for (int c = 0; c < PART; c++) {
            int j = key + tx + SIDE * c;
            float weight = j > i + ahead ? 0.0f : exp2f(s[r][c] - shift);
            bool keeps = !dropout.threshold || dropout.keeps(row, j);
            if (w) (*w)[ty + SIDE * r][tx + SIDE * c] = keeps ? weight : 0.0f;
            ds[ty + SIDE * r][tx + SIDE * c] = weight * ((keeps ? dw[r][c] * kept_factor : 0.0f) - mean);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 1) attention_plain_dkdv(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    const T* __restrict__ dout, long long dout_batch, long long dout_head, long long dout_row,
    const float* __restrict__ logsum, const float* __restrict__ delta,
    T* __restrict__ dk, T* __restrict__ dv, long long dk_batch, long long dk_head, long long dk_row,
    int nh, int Tq, int Tk, int hs, float scale, float ds_scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const Dropout dropout = {hash_key ? hash_key[0] : 0, hash_first, threshold, Tk};
    __shared__ Slice a, b;
    DYNAMIC_SHARED(Square, squares);                              // weights, ds, a tile of rows
    int tiles = (Tk + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (int)(blockIdx.x % tiles) * ROWS;                 // the keys that most queries see begin first
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh);
    const T* dout_rows = rows_of(dout, dout_batch, dout_head, head, nh);
    const T* k_rows = rows_of(k, k_batch, k_head, head, nh) + first * k_row;
    const T* v_rows = rows_of(v, v_batch, v_head, head, nh) + first * v_row;
    float dk_sum[PART][COLUMNS] = {}, dv_sum[PART][COLUMNS] = {};
    for (int query = max(0, first - ahead) / ROWS * ROWS; query < Tq; query += ROWS) {
        const T *q_tile = q_rows + query * q_row, *dout_tile = dout_rows + query * dout_row;
        float s[PART][PART], dw[PART][PART];
        multiply(s, a, b, q_tile, q_row, Tq - query, k_rows, k_row, Tk - first, hs, scale);
        multiply(dw, a, b, dout_tile, dout_row, Tq - query, v_rows, v_row, Tk - first, hs, 1);
        gradients_of_scores(
            squares, squares[1], s, dw, logsum, delta, head, query, first, Tq, ahead, dropout, kept_factor);
        accumulate<true>(dv_sum, squares[0], squares[2], dout_tile, dout_row, Tq - query, hs);
        accumulate<true>(dk_sum, squares[1], squares[2], q_tile, q_row, Tq - query, hs);
    }
    float dk_factor[PART], dv_factor[PART];
#pragma unroll
    for (int r = 0; r < PART; r++) dk_factor[r] = ds_scale, dv_factor[r] = kept_factor;
    T* dk_rows = rows_of(dk, dk_batch, dk_head, head, nh) + first * dk_row;
    T* dv_rows = rows_of(dv, dk_batch, dk_head, head, nh) + first * dk_row;
    store_rows(dk_rows, dk_row, Tk - first, hs, dk_sum, dk_factor);
    store_rows(dv_rows, dk_row, Tk - first, hs, dv_sum, dv_factor);
}

extern "C" __global__ void __launch_bounds__(256, 1) attention_plain_dq(
    const T* __restrict__ q, long long q_batch, long long q_head, long long q_row,
    const T* __restrict__ k, long long k_batch, long long k_head, long long k_row,
    const T* __restrict__ v, long long v_batch, long long v_head, long long v_row,
    const T* __restrict__ dout, long long dout_batch, long long dout_head, long long dout_row,
    const float* __restrict__ logsum, const float* __restrict__ delta,
    T* __restrict__ dq, long long dq_batch, long long dq_head, long long dq_row,
    int nh, int Tq, int Tk, int hs, float scale, float ds_scale,
    const unsigned long long* __restrict__ hash_key, unsigned long long hash_first, unsigned threshold,
    float kept_factor) {
    const Dropout dropout = {hash_key ? hash_key[0] : 0, hash_first, threshold, Tk};
    __shared__ Slice a, b;
    __shared__ Square ds, tile;
    int tiles = (Tq + ROWS - 1) / ROWS, head = blockIdx.x / tiles, ahead = Tk - Tq;
    int first = (tiles - 1 - (int)(blockIdx.x % tiles)) * ROWS;   // the longest rows begin first
    int keys = min(Tk, first + ROWS + ahead);                     // that the block's last query sees
    const T *k_rows = rows_of(k, k_batch, k_head, head, nh), *v_rows = rows_of(v, v_batch, v_head, head, nh);
    const T* q_rows = rows_of(q, q_batch, q_head, head, nh) + first * q_row;
    const T* dout_rows = rows_of(dout, dout_batch, dout_head, head, nh) + first * dout_row;
    float sum[PART][COLUMNS] = {}, factor[PART];
    for (int key = 0; key < keys; key += ROWS) {
        const T *k_tile = k_rows + key * k_row, *v_tile = v_rows + key * v_row;
        float s[PART][PART], dw[PART][PART];
        multiply(s, a, b, q_rows, q_row, Tq - first, k_tile, k_row, Tk - key, hs, scale);
        multiply(dw, a, b, dout_rows, dout_row, Tq - first, v_tile, v_row, Tk - key, hs, 1);
        gradients_of_scores(nullptr, ds, s, dw, logsum, delta, head, first, key, Tq, ahead, dropout, kept_factor);
        accumulate<false>(sum, ds, tile, k_tile, k_row, Tk - key, hs);
    }
#pragma unroll
    for (int r = 0; r < PART; r++) factor[r] = ds_scale;
    T* dq_rows = rows_of(dq, dq_batch, dq_head, head, nh) + first * dq_row;
    store_rows(dq_rows, dq_row, Tq - first, hs, sum, factor);
}
