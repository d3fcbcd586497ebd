// Attention by products of warpgroups: tiles of 64 columns in shared memory, and what all kernels do with them. Needs
// common.cuh, tensor_cores.cuh and warpgroup.cuh; place and store_rows are those of attention_tiles.cuh.
//
// The number of warpgroups of a block, each of which owns 64 rows, is a constant of its kernel, GROUPS.

// The block's shared memory, from a multiple of 1024 bytes on.
__device__ __forceinline__ T* aligned_tiles(T* memory) {
    return memory + (0u - shared_address(memory)) % 1024 / sizeof(T);
}

// This thread's warpgroup, and its warp in there: the same in all lanes, which the compiler learns from the shuffle.
__device__ __forceinline__ int group_of_thread() { return __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0); }

// Rows 0 .. ROWS - 1 of a head, of which `valid` exist, to a tile: asynchronously if `wide`.
template <int ROWS, int GROUPS> __device__ __forceinline__ void load_rows(
    T* tile, const T* rows, long long stride, int valid, int hs, int wide) {
    const int STEP = 16 * GROUPS;                                 // a thread copies 16 bytes, 8 threads a row
    int row = threadIdx.x / 8, column = threadIdx.x % 8 * 8;
    const T* from = rows + row * stride + column;
    T* to = tile + place<64>(row, column / 8);
    if (wide) {
        bool inside = column < hs;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++) {
            cp_async<16>(to + i * STEP * 64, from, inside && row + i * STEP < valid);
            from += STEP * stride;
        }
        return;
    }
#pragma unroll 1
    for (; row < ROWS; row += STEP, from += STEP * stride, to += STEP * 64)
#pragma unroll 1
        for (int i = 0; i < 8; i++) {
            if (row < valid && column + i < hs) to[i] = from[i];
            else set(to[i], 0);
        }
}

// The tiles that this thread has asked for are there, for products, too, once all threads are here.
__device__ __forceinline__ void wait_for_tiles() {
    cp_async_wait<0>();
    proxy_fence();
    __syncthreads();
}

// Begins a group: x (64, 64) = A BT for tiles A and B, (64, 64) both.
__device__ __forceinline__ void begin_scores(float (&x)[8][4], const T* a_tile, const T* b_tile) {
    unsigned long long a = matrix_at(a_tile), b = matrix_at(b_tile);
    hold(x);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) wgmma<T, 0>(x, a + 2 * k, b + 2 * k, k > 0);   // 32 bytes further
    wgmma_commit();
}

// Begins a group: x (64, 64) += W tile, W in registers, w[k] its columns from 16 k on.
__device__ __forceinline__ void begin_sums(float (&x)[8][4], unsigned (&w)[4][4], const T* tile) {
    unsigned long long b = matrix_at(tile);
    hold(x);
    hold(w);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) wgmma<T, 1>(x, w[k], b + 128 * k, true);   // 16 rows further
    wgmma_commit();
}

// Weights (64, 64) in the layout of results, rounded, as the A of the next product.
__device__ __forceinline__ void pack_weights(unsigned (&w)[4][4], const float (&x)[8][4]) {
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) w[k][i] = pack<T>(x[2 * k + i / 2][i % 2 * 2], x[2 * k + i / 2][i % 2 * 2 + 1]);
}

template <class X, int N> __device__ __forceinline__ void clear(X (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[n][i] = 0;
}
