// What the attention kernels share: which keys a query sees, the mask of dropout, and tiles in shared memory.
// Needs common.cuh; what concerns tensor cores, tensor_cores.cuh as well.
//
// A head's q, k, v, out and their gradients are rows of hs neighbouring elements; a view of the packed projection (B, T, 3,
// nh, hs) has three distances, of batches, heads and rows, in elements. Query i sees the keys 0 .. i + Tk - Tq.

// The first row of a head, heads counted through all batches.
template <class X> __device__ __forceinline__ X* rows_of(X* x, long long batch, long long head, int number, int nh) {
    return x + number / nh * batch + number % nh * head;
}

// The mask of dropout, a hash of (key, counter) as tinygrad2/prng.py computes it: of a uniform number in [0, 1) the upper 24
// bits, compared with p 2^24. Counter 1 + first + i belongs to element i of (..., Tq, Tk).
struct Dropout {
    unsigned long long key, first;
    unsigned threshold;                                           // p 2^24, rounded up: 0 is no dropout
    int columns;                                                  // Tk

    // What the hash of (row, column) starts from, without the column's part.
    __device__ __forceinline__ unsigned long long row(size_t row) const {
        return key + (first + 1 + row * (unsigned long long)columns) * 0x9E3779B97F4A7C15ull;
    }

    __device__ __forceinline__ bool keeps(unsigned long long row, int column) const {
        unsigned long long z = row + (unsigned long long)column * 0x9E3779B97F4A7C15ull;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ z >> 27) * 0x94D049BB133111EBull;
        return (unsigned)((z ^ z >> 31) >> 40) >= threshold;
    }
};

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
