// The newest keys and values go to their place in a cache, which the GPU alone knows. See kv_cache.py.

#include "common.cuh"

// keys[head, position] = k[head] and values[head, position] = v[head]: the cache is (nh, size, hs), heads of k and v
// are k_head and v_head elements apart. A thread for each of the nh hs channels.
extern "C" __global__ void __launch_bounds__(256) kv_append(
    const T* __restrict__ k, long long k_head, const T* __restrict__ v, long long v_head, T* __restrict__ keys,
    T* __restrict__ values, const long long* __restrict__ position, int nh, int size, int hs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, head = i / hs, channel = i % hs;
    long long row = *position;
    if (i >= nh * hs || row < 0 || row >= size) return;
    size_t place = ((size_t)head * size + row) * hs + channel;
    keys[place] = k[head * k_head + channel];
    values[place] = v[head * v_head + channel];
}
