// Tiles of 16-bit rows in shared memory, and the products of a warp with them. Needs common.cuh and tensor_cores.cuh.
//
// A tile is (ROWS, HS) with HS = 64 or 128, zeros behind the head's hs columns and behind its last row. Chunk c (8
// elements, 16 bytes) of row r is stored in place c ^ r % 8: the 8 rows that ldmatrix reads at once would otherwise
// begin in the same bank, and be read one after the other.
//
// A warp owns 16 M rows of one matrix, A; the other is the tile, of which it reads each part once for all its rows. Its
// results (16 M, N), float x[M][N / 8][4], are M times N / 8 products side by side (layout: tensor_cores.cuh).

const int DEPTH = 16;                                             // columns of a product

template <int HS> __device__ __forceinline__ int place(int row, int chunk) {
    return row * HS + ((chunk ^ (row & 7)) << 3);
}

// Rows 0 .. ROWS - 1 of a head, of which `valid` exist, to a tile: asynchronously if `wide`.
template <int ROWS, int HS> __device__ __forceinline__ void load_tile(
    T* tile, const T* rows, long long stride, int valid, int hs, int wide) {
    const int STEP = 8 * THREADS / HS;                            // a multiple of 8: the order in a row stays
    int row = 8 * threadIdx.x / HS, column = 8 * threadIdx.x % HS;
    const T* from = rows + row * stride + column;
    T* to = tile + place<HS>(row, column / 8);
    if (wide) {
        bool inside = column < hs;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++) {
            cp_async<16>(to + i * STEP * HS, from, inside && row + i * STEP < valid);
            from += STEP * stride;
        }
        return;
    }
#pragma unroll 1
    for (; row < ROWS; row += STEP, from += STEP * stride, to += STEP * HS)
#pragma unroll 1
        for (int i = 0; i < 8; i++) {
            if (row < valid && column + i < hs) to[i] = from[i];
            else set(to[i], 0);
        }
}

// A's columns 16 k .. 16 k + 15 from a tile of which the warp owns the rows from `row`.
template <int HS> __device__ __forceinline__ void load_a(unsigned (&a)[4], const T* tile, int row, int k) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + place<HS>(row + lane % 16, 2 * k + lane / 16));
}

// x (16 M, N) += A (16 M, HS) tileT, for a tile (N, HS). KEPT: A is in registers; else it is read from its own tile.
template <int HS, int M, int N, bool KEPT> __device__ __forceinline__ void multiply(
    float (&x)[M][N / 8][4], const unsigned (&kept)[M][KEPT ? HS / 16 : 1][4], const T* a_tile, int a_row,
    const T* tile) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < HS / 16; k++) {
        unsigned a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            if constexpr (KEPT) {
#pragma unroll
                for (int i = 0; i < 4; i++) a[m][i] = kept[m][k][i];
            } else {
                load_a<HS>(a[m], a_tile, a_row + 16 * m, k);
            }
        }
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            ldmatrix_x4(b, tile + place<HS>(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16816<T>(x[m][2 * n], a[m], b);
                mma_16816<T>(x[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

// x (16 M, HS) += W (16 M, N) tile, for weights W in the layout of results and a tile (N, HS).
template <int HS, int M, int N> __device__ __forceinline__ void accumulate(
    float (&x)[M][HS / 8][4], const float (&w)[M][N / 8][4], const T* tile) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        unsigned a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = pack<T>(w[m][2 * k + i / 2][i % 2 * 2], w[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < HS / 16; n++) {
            ldmatrix_x4_trans(b, tile + place<HS>(16 * k + lane % 16, 2 * n + lane / 16));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16816<T>(x[m][2 * n], a[m], b);
                mma_16816<T>(x[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

// Two neighbouring results, where both exist.
__device__ __forceinline__ void store_two(T* to, float low, float high) {
    *reinterpret_cast<unsigned*>(to) = pack<T>(low, high);
}

#include "attention_results.cuh"
