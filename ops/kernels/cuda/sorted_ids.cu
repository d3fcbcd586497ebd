#include "common.cuh"

const int RUN = 1024;                                             // keys that a block of half as many threads sorts

// keys[n] = ids[n] 2^32 + n, sorted within each run of RUN keys; -2^32 + n for an id that is not in 0 .. V - 1. No two
// keys are equal. A bitonic sort (Batcher, "Sorting networks and their applications", 1968): its steps compare keys
// that are j apart, upwards or downwards by bit k of their place.
extern "C" __global__ void __launch_bounds__(512) sort_runs(
    const long long* __restrict__ ids, long long* __restrict__ keys, int n_ids, int V) {
    __shared__ long long run[RUN];
    int first = blockIdx.x * RUN;
    for (int i = threadIdx.x; i < RUN; i += RUN / 2) {
        int n = first + i;
        long long id = n < n_ids ? ids[n] : 0;
        bool exists = id >= 0 && id < V;
        run[i] = n < n_ids ? (exists ? id : -1) * 4294967296LL + n : 0x7fffffffffffffffLL;
    }
    for (int k = 2; k <= RUN; k *= 2)
        for (int j = k / 2; j > 0; j /= 2) {
            __syncthreads();
            int i = 2 * threadIdx.x - (threadIdx.x & (j - 1));    // the place of the lower key of a pair
            long long low = run[i], high = run[i + j];
            if ((low > high) == ((i & k) == 0)) {
                run[i] = high;
                run[i + j] = low;
            }
        }
    __syncthreads();
    for (int i = threadIdx.x; i < RUN && first + i < n_ids; i += RUN / 2) keys[first + i] = run[i];
}

// Merges runs of `length` sorted keys, two by two: a key moves as far behind as keys of the other run are lower.
extern "C" __global__ void __launch_bounds__(256) merge_runs(
    const long long* __restrict__ keys, long long* __restrict__ merged, int n, int length) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long key = keys[i];
    int own = i / length * length, pair = own / (2 * length) * 2 * length;
    int other = own == pair ? own + length : pair;                // where the other run begins
    int low = min(other, n), end = min(other + length, n), begin = low;
    while (low < end) {
        int middle = (low + end) / 2;
        if (keys[middle] < key) low = middle + 1;
        else end = middle;
    }
    merged[pair + i - own + low - begin] = key;
}
