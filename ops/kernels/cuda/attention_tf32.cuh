// Tiles of float32 rows in shared memory, and the products of a warp with them in TF32: the functions of
// attention_tiles.cuh for T = f32. Needs common.cuh and tensor_cores.cuh, and T's GPU sm_80.
//
// A tile is (ROWS, HS) with HS = 64 or 128, zeros behind the head's hs columns and behind its last row. Chunk c (4
// elements, 16 bytes) of row r is stored in place c ^ 2 h(r), h(r) = r % 4 ^ r / 4 % 2. A warp reads 8 neighbouring
// columns of rows that are all in other banks so: of rows 0 .. 3 and 4 .. 7 at a time where a row of the tile is a
// column of the product, and of rows 0, 2, 4, 6 and 1, 3, 5, 7 where it is a row.
//
// A product takes 8 of what it sums over, and lane t of a group has numbers t and t + 4 of them. Which those are is
// free, as long as both factors agree: here columns 2t and 2t + 1. They are neighbours in a row of a tile, and results
// (layout: tensor_cores.cuh) are the A of the next product as they are.

static_assert(sizeof(T) == 4, "of float32 only");
const int DEPTH = 8;                                              // columns of a product

template <int HS> __device__ __forceinline__ int place(int row, int chunk) {
    int h = (row & 3) ^ (row >> 2 & 1);
    return row * HS + ((chunk ^ h << 1) << 2);
}

// Rows 0 .. ROWS - 1 of a head, of which `valid` exist, to a tile: asynchronously if `wide`.
template <int ROWS, int HS> __device__ __forceinline__ void load_tile(
    T* tile, const T* rows, long long stride, int valid, int hs, int wide) {
    const int STEP = 4 * THREADS / HS;
    int row = 4 * threadIdx.x / HS, column = 4 * threadIdx.x % HS;
    const T* from = rows + row * stride + column;
    if (wide) {
        bool inside = column < hs;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++) {
            cp_async<16>(tile + place<HS>(row + i * STEP, column / 4), from, inside && row + i * STEP < valid);
            from += STEP * stride;
        }
        return;
    }
#pragma unroll 1
    for (; row < ROWS; row += STEP, from += STEP * stride)
#pragma unroll 1
        for (int i = 0; i < 4; i++)
            tile[place<HS>(row, column / 4) + i] = row < valid && column + i < hs ? from[i] : 0.0f;
}

// Columns 8 k + 2t and the next one of a row of a tile.
template <int HS> __device__ __forceinline__ float2 load_pair(const T* tile, int row, int k) {
    int t = threadIdx.x % 4;
    return *reinterpret_cast<const float2*>(tile + place<HS>(row, 2 * k + t / 2) + t % 2 * 2);
}

// A's columns 8 k .. 8 k + 7 from a tile of which the warp owns the rows from `row`.
template <int HS> __device__ __forceinline__ void load_a(unsigned (&a)[4], const T* tile, int row, int k) {
    int g = threadIdx.x % 32 / 4;
    float2 upper = load_pair<HS>(tile, row + g, k), lower = load_pair<HS>(tile, row + g + 8, k);
    a[0] = tf32(upper.x), a[1] = tf32(lower.x), a[2] = tf32(upper.y), a[3] = tf32(lower.y);
}

// x (16 M, N) += A (16 M, HS) tileT, for a tile (N, HS). KEPT: A is in registers; else it is read from its own tile.
template <int HS, int M, int N, bool KEPT> __device__ __forceinline__ void multiply(
    float (&x)[M][N / 8][4], const unsigned (&kept)[M][KEPT ? HS / DEPTH : 1][4], const T* a_tile, int a_row,
    const T* tile) {
    int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int k = 0; k < HS / DEPTH; k++) {
        unsigned a[M][4];
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
        for (int n = 0; n < N / 8; n++) {
            float2 pair = load_pair<HS>(tile, 8 * n + g, k);
            unsigned b[2] = {tf32(pair.x), tf32(pair.y)};
#pragma unroll
            for (int m = 0; m < M; m++) mma_1688(x[m][n], a[m], b);
        }
    }
}

// x (16 M, HS) += W (16 M, N) tile, for weights W in the layout of results and a tile (N, HS).
template <int HS, int M, int N> __device__ __forceinline__ void accumulate(
    float (&x)[M][HS / 8][4], const float (&w)[M][N / 8][4], const T* tile) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < N / DEPTH; k++) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) a[m][i] = tf32(w[m][k][i % 2 * 2 + i / 2]);
#pragma unroll
        for (int n = 0; n < HS / 8; n++) {
            unsigned b[2];
#pragma unroll
            for (int i = 0; i < 2; i++)
                b[i] = tf32(tile[place<HS>(8 * k + 2 * t + i, 2 * n + g / 4) + g % 4]);
#pragma unroll
            for (int m = 0; m < M; m++) mma_1688(x[m][n], a[m], b);
        }
    }
}

// Two neighbouring results, where both exist.
__device__ __forceinline__ void store_two(T* to, float low, float high) {
    *reinterpret_cast<float2*>(to) = make_float2(low, high);
}

#include "attention_results.cuh"
