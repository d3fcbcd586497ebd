// What the kernels share: the types of 16 bits, loads and stores of 16 bytes, and sums over a warp or a block.
//
// A kernel's file is compiled once per type of the activations, T (f32, f16 or bf16); all arithmetic is float32. There
// is no header of CUDA in here: conversions are PTX instructions, so NVRTC is all that is needed. On the host, where
// tests run the same files (tests/cuda_host.h), TINYGRAD2_HOST is defined and they are computed from the bits.

typedef float f32;
struct f16 { unsigned short bits; };                              // IEEE 754 binary16
struct bf16 { unsigned short bits; };                             // the upper half of a float32

#ifndef TINYGRAD2_HOST
#define DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)

__device__ __forceinline__ float f16_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ __forceinline__ unsigned short float_to_f16(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

__device__ __forceinline__ unsigned short float_to_bf16(float x) {
#if !defined(TINYGRAD2_HOST) && __CUDA_ARCH__ >= 800
    unsigned short result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(x));
    return result;
#else                                                             // to nearest, ties to even; NaN stays NaN
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) { return f16_to_float(x.bits); }

__device__ __forceinline__ void set(float& out, float x) { out = x; }
__device__ __forceinline__ void set(bf16& out, float x) { out.bits = float_to_bf16(x); }
__device__ __forceinline__ void set(f16& out, float x) { out.bits = float_to_f16(x); }

// 16 bytes of an array of X: what a thread reads or writes at once. p must be a multiple of 16 bytes.
template <class X> union Chunk {
    static const int size = 16 / sizeof(X);
    uint4 raw;
    X x[size];
};

template <class X> __device__ __forceinline__ Chunk<X> load_chunk(const X* p) {
    Chunk<X> chunk;
    chunk.raw = *reinterpret_cast<const uint4*>(p);
    return chunk;
}

template <class X> __device__ __forceinline__ void store_chunk(X* p, const Chunk<X>& chunk) {
    *reinterpret_cast<uint4*>(p) = chunk.raw;
}

// N neighbouring values as float32: by 16 bytes at a time if that is possible, N times sizeof(X) a multiple of 16.
template <int N, class X> __device__ __forceinline__ void load(const X* p, float (&x)[N]) {
    static_assert(N * sizeof(X) % 16 == 0, "whole chunks only");
#pragma unroll
    for (int i = 0; i < N; i += Chunk<X>::size) {
        Chunk<X> chunk = load_chunk(p + i);
#pragma unroll
        for (int j = 0; j < Chunk<X>::size; j++) x[i + j] = to_float(chunk.x[j]);
    }
}

template <int N, class X> __device__ __forceinline__ void store(X* p, const float (&x)[N]) {
    static_assert(N * sizeof(X) % 16 == 0, "whole chunks only");
#pragma unroll
    for (int i = 0; i < N; i += Chunk<X>::size) {
        Chunk<X> chunk;
#pragma unroll
        for (int j = 0; j < Chunk<X>::size; j++) set(chunk.x[j], x[i + j]);
        store_chunk(p + i, chunk);
    }
}

// The sum over the 32 lanes of a warp, in every lane. The order is fixed: pairs 16 apart first.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// The sum over all threads of a block (a multiple of 32), in every thread. `scratch` is shared memory for 32 floats; it
// may be used again at once.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) total += scratch[warp];
    __syncthreads();
    return total;
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float largest = scratch[0];
    for (int warp = 1; warp < blockDim.x / 32; warp++) largest = fmaxf(largest, scratch[warp]);
    __syncthreads();
    return largest;
}
