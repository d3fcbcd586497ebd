// What the attention kernels share: where the rows of a head are, and the mask of dropout. Needs common.cuh.
//
// A head's q, k, v, out and their gradients are rows of hs neighbouring elements; a view of the packed projection
// (B, T, 3, nh, hs) has three distances, of batches, heads and rows, in elements. Query i sees the keys up to
// i + Tk - Tq.

#include "dropout.cuh"

// The first row of a head, heads counted through all batches.
template <class X> __device__ __forceinline__ X* rows_of(X* x, long long batch, long long head, int number, int nh) {
    return x + number / nh * batch + number % nh * head;
}

// The mask of dropout: of a uniform number in [0, 1) the upper 24 bits are compared with p 2^24. Position first + i
// belongs to element i of (..., Tq, Tk).
struct Dropout {
    unsigned long long key, first;
    unsigned threshold;                                           // p 2^24, rounded up: 0 is no dropout
    int columns;                                                  // Tk

    // What the hashes of a row start from.
    __device__ __forceinline__ unsigned long long row(size_t row) const {
        return hash_start(key, first + row * (unsigned long long)columns);
    }

    __device__ __forceinline__ bool keeps(unsigned long long row, int column) const {
        return hash_bits(row + (unsigned long long)column * GOLDEN) >= threshold;
    }
};

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// On tensor cores: a block's warps, and the results of a warp's products.
const int WARPS = 4, THREADS = 32 * WARPS;

template <int M, int N> __device__ __forceinline__ void clear(float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) x[m][i][j] = 0;
}
