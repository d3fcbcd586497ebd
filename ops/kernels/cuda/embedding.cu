#include "common.cuh"

// N neighbouring numbers: 16 bytes at once, or one.
template <int N> __device__ __forceinline__ void load_some(const float* p, float (&x)[N]) {
    if constexpr (N == 1) x[0] = p[0];
    else load(p, x);
}

template <int N> __device__ __forceinline__ void store_some(float* p, const float (&x)[N]) {
    if constexpr (N == 1) p[0] = x[0];
    else store(p, x);
}

template <int N> __device__ __forceinline__ void look_up(
    const float* weight, const long long* ids, float* out, int n_ids, int V, int C) {
    int n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (n >= n_ids) return;
    long long id = ids[n];
    bool exists = id >= 0 && id < V;
    const float* row = weight + (exists ? id : 0) * (size_t)C;
    float x[N];
    for (int j = threadIdx.x % 32 * N; j < C; j += 32 * N) {
        load_some(row + j, x);
        for (int i = 0; i < N; i++) x[i] = exists ? x[i] : __uint_as_float(0x7fc00000u);
        store_some(out + n * (size_t)C + j, x);
    }
}

// out[n] = weight[ids[n]], NaN for an id outside the table. A warp per id.
extern "C" __global__ void __launch_bounds__(256) embedding_forward(
    const float* __restrict__ weight, const long long* __restrict__ ids, float* __restrict__ out, int n_ids, int V,
    int C, int wide) {
    if (wide) look_up<4>(weight, ids, out, n_ids, V, C);
    else look_up<1>(weight, ids, out, n_ids, V, C);
}

// A block for each sorted key (sorted_ids.cu) and each N blockDim.x columns. The block of an id's first key adds up the
// rows of all keys of that id, in order, and the others have nothing to do. Positions are read blockDim.x at a time.
template <int N> __device__ __forceinline__ void add_rows(
    const float* dout, const long long* keys, float* dweight, int n_ids, int C, int accumulate, int* positions,
    int* count) {
    int t = threadIdx.x, step = blockDim.x, first = blockIdx.x, j = (blockIdx.y * step + t) * N;
    long long id = keys[first] >> 32;
    if (id < 0 || (first > 0 && keys[first - 1] >> 32 == id)) return;
    float total[N], x[N];
    for (int i = 0; i < N; i++) total[i] = 0;
    for (int start = first, found = step; found == step; start += step) {
        int k = start + t;
        bool is_ours = k < n_ids && keys[k] >> 32 == id;
        bool is_last = t == step - 1 || k + 1 >= n_ids || keys[k + 1] >> 32 != id;
        positions[t] = is_ours ? (int)(unsigned)keys[k] : 0;
        if (is_ours && is_last) *count = t + 1;                   // one thread writes it
        if (t == 0 && !is_ours) *count = 0;
        __syncthreads();
        found = *count;
        if (j < C) {
#pragma unroll 8
            for (int r = 0; r < found; r++) {
                load_some(dout + positions[r] * (size_t)C + j, x);
                for (int i = 0; i < N; i++) total[i] += x[i];
            }
        }
        __syncthreads();
    }
    if (j >= C) return;
    float* out = dweight + id * (size_t)C + j;
    if (accumulate) {
        load_some(out, x);
        for (int i = 0; i < N; i++) total[i] += x[i];
    }
    store_some(out, total);
}

// dweight[id] = the sum of dout[n] over all n with ids[n] == id, or += that, for the ids that occur. keys are sorted.
extern "C" __global__ void __launch_bounds__(256) embedding_backward(
    const float* __restrict__ dout, const long long* __restrict__ keys, float* __restrict__ dweight, int n_ids, int C,
    int accumulate, int wide) {
    __shared__ int positions[256], count;
    if (wide) add_rows<4>(dout, keys, dweight, n_ids, C, accumulate, positions, &count);
    else add_rows<1>(dout, keys, dweight, n_ids, C, accumulate, positions, &count);
}
