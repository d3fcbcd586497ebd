// CUDA C++ on the CPU: what a kernel's file needs to be compiled by g++ and run by cuda_host.cpp, which has the rest.
//
// A kernel becomes a plain function. Each of its threads is a fiber: it runs until it waits at a barrier or for its
// warp, and then the next one runs. `threadIdx` and its relatives are calls that ask which fiber this is. With
// -fsanitize=thread g++ calls a function before each access to memory: cuda_host.cpp has these functions, and looks for
// races, for accesses outside of all arrays, and for shared memory that is read before it was written.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define TINYGRAD2_HOST 1
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static                                         // blocks run one after the other: each has it all
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cuda_host_dynamic_shared())
#define NOT_CHECKED __attribute__((no_sanitize_thread))

struct dim3 { unsigned x = 1, y = 1, z = 1; };
extern "C" {
dim3 cuda_host_thread();
dim3 cuda_host_block();
dim3 cuda_host_block_size();
dim3 cuda_host_grid_size();
void* cuda_host_dynamic_shared();
void cuda_host_barrier(const void* where);
void cuda_host_warp_barrier(unsigned mask);
// Lane `lane` of the warp gets the value (of at most 64 bytes) that `source` has brought; all lanes of the mask call.
void cuda_host_exchange(unsigned mask, const void* value, void* result, int size, int source);
void cuda_host_check(const void* where, int size, int is_write, int is_atomic);   // as if the kernel made this access
// As if memcpy, called from there, made its accesses; `from` is null for memset.
void cuda_host_check_copy(void* to, const void* from, size_t size, const void* called_from);
void cuda_host_fail(const char* message);                         // ends the launch with this error
long cuda_host_blocks_begun();                                    // differs from block to block and launch to launch
void cuda_host_group_barrier();                                   // for all 128 threads of a warpgroup; orders nothing
void cuda_host_proxy_fence();                                     // what this thread has written is there for products
void cuda_host_check_product(const void* where, int size);        // as if a product of a warpgroup read shared memory
}

// The compiler may read a struct member by member, and does not call the checks where a function's result is a struct
// that goes to memory: so these say themselves that all of their bytes are read or written at once. uint4 can be a
// member of a union, and is not looked at where a variable is made from it.
#define VECTOR_ASSIGNMENT(name) \
    NOT_CHECKED inline name& operator=(const name& other) { \
        cuda_host_check(&other, sizeof(name), 0, 0); \
        cuda_host_check(this, sizeof(name), 1, 0); \
        std::memcpy(this, &other, sizeof(name)); \
        return *this; \
    }
#define VECTOR_COPY(name) \
    NOT_CHECKED inline name(const name& other) { \
        cuda_host_check(&other, sizeof(name), 0, 0); \
        std::memcpy(this, &other, sizeof(name)); \
    }
#define VECTOR_2(name, X) struct alignas(2 * sizeof(X)) name { \
    X x, y; \
    name() = default; \
    NOT_CHECKED inline name(X x, X y) : x(x), y(y) {} \
    VECTOR_COPY(name) VECTOR_ASSIGNMENT(name) }
VECTOR_2(float2, float);
VECTOR_2(uint2, unsigned);
struct alignas(16) float4 {
    float x, y, z, w;
    float4() = default;
    NOT_CHECKED inline float4(float x, float y, float z, float w) : x(x), y(y), z(z), w(w) {}
    VECTOR_COPY(float4) VECTOR_ASSIGNMENT(float4)
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
    uint4() = default;
    uint4(const uint4&) = default;
    NOT_CHECKED inline uint4(unsigned x, unsigned y, unsigned z, unsigned w) : x(x), y(y), z(z), w(w) {}
    VECTOR_ASSIGNMENT(uint4)
};
NOT_CHECKED inline float2 make_float2(float x, float y) { return {x, y}; }
NOT_CHECKED inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
NOT_CHECKED inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
NOT_CHECKED inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#define threadIdx cuda_host_thread()
#define blockIdx cuda_host_block()
#define blockDim cuda_host_block_size()
#define gridDim cuda_host_grid_size()
#define warpSize 32

NOT_CHECKED __attribute__((noinline)) static void cuda_host_here() { cuda_host_barrier(__builtin_return_address(0)); }
#define __syncthreads() cuda_host_here()
NOT_CHECKED inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_host_warp_barrier(mask); }
NOT_CHECKED inline void __threadfence() {}

template <class X> NOT_CHECKED inline X __shfl_sync(unsigned mask, X value, int source, int width = 32) {
    int lane = threadIdx.x % 32;
    X result;
    cuda_host_exchange(mask, &value, &result, sizeof(X), (lane & ~(width - 1)) | (source & (width - 1)));
    return result;
}
template <class X> NOT_CHECKED inline X __shfl_xor_sync(unsigned mask, X value, int bits, int width = 32) {
    int lane = threadIdx.x % 32, source = lane ^ bits;
    X result;
    cuda_host_exchange(mask, &value, &result, sizeof(X), source / width == lane / width ? source : lane);
    return result;
}
template <class X> NOT_CHECKED inline X __shfl_down_sync(unsigned mask, X value, int distance, int width = 32) {
    int lane = threadIdx.x % 32, source = lane + distance;
    X result;
    cuda_host_exchange(mask, &value, &result, sizeof(X), source / width == lane / width ? source : lane);
    return result;
}
template <class X> NOT_CHECKED inline X __shfl_up_sync(unsigned mask, X value, int distance, int width = 32) {
    int lane = threadIdx.x % 32, source = lane - distance;
    X result;
    cuda_host_exchange(mask, &value, &result, sizeof(X), source >= 0 && source / width == lane / width ? source : lane);
    return result;
}
NOT_CHECKED inline unsigned __ballot_sync(unsigned mask, int yes) {
    unsigned result = 0;
    for (int lane = 0; lane < 32; lane++) {
        int its = 0;
        cuda_host_exchange(mask, &yes, &its, sizeof(int), lane);
        result |= (its != 0) * (1u << lane);
    }
    return result;
}
NOT_CHECKED inline int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
NOT_CHECKED inline int __all_sync(unsigned mask, int yes) { return __ballot_sync(mask, !yes) == 0; }

template <class X> NOT_CHECKED inline X atomicAdd(X* p, X value) {
    cuda_host_check(p, sizeof(X), 1, 1);
    X old = *p;
    *p = old + value;
    return old;
}

template <class X> inline X __ldg(const X* p) { return *p; }
NOT_CHECKED inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
NOT_CHECKED inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
NOT_CHECKED inline float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }
NOT_CHECKED inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
NOT_CHECKED inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
NOT_CHECKED inline float __expf(float x) { return std::exp(x); }
NOT_CHECKED inline float __exp2f(float x) { return std::exp2(x); }
NOT_CHECKED inline float __logf(float x) { return std::log(x); }
NOT_CHECKED inline float __fdividef(float a, float b) { return a / b; }
NOT_CHECKED inline float __frcp_rn(float x) { return 1.0f / x; }
NOT_CHECKED inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
NOT_CHECKED inline float __fadd_rn(float a, float b) { return a + b; }
NOT_CHECKED inline float __fsub_rn(float a, float b) { return a - b; }
NOT_CHECKED inline float __fmul_rn(float a, float b) { return a * b; }
NOT_CHECKED inline float __fdiv_rn(float a, float b) { return a / b; }
NOT_CHECKED inline float __fsqrt_rn(float x) { return std::sqrt(x); }
NOT_CHECKED inline int __float2int_rn(float x) { return (int)std::nearbyint(x); }
NOT_CHECKED inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
template <class X> inline X min(X a, X b) { return b < a ? b : a; }
template <class X> inline X max(X a, X b) { return a < b ? b : a; }

NOT_CHECKED inline float f16_to_float(unsigned short bits) {
    unsigned exponent = bits >> 10 & 31, mantissa = bits & 1023, sign = (unsigned)(bits & 0x8000) << 16;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint((float)mantissa * 0x1p-24f));
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
NOT_CHECKED inline unsigned short float_to_f16(float x) {         // to nearest, ties to even
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (unsigned short)(sign | 0x7fff);
    if (bits >= 0x477ff000u) return (unsigned short)(sign | 0x7c00);   // 65520 and above: infinite
    if (bits < 0x38800000u)                                       // below 2^-14: subnormal, a multiple of 2^-24
        return (unsigned short)(sign | (unsigned)std::nearbyint(__uint_as_float(bits) * 0x1p24f));
    bits += 0xfffu + (bits >> 13 & 1);
    return (unsigned short)(sign | ((bits >> 13) - (112u << 10)));
}

// g++ calls no check for these: they do it themselves. cuda_host.py refuses them by the names that compilers give them.
NOT_CHECKED inline void* cuda_host_memcpy(void* to, const void* from, size_t size) {
    cuda_host_check_copy(to, from, size, __builtin_return_address(0));
    return std::memmove(to, from, size);
}
NOT_CHECKED inline void* cuda_host_memset(void* to, int value, size_t size) {
    cuda_host_check_copy(to, nullptr, size, __builtin_return_address(0));
    return std::memset(to, value, size);
}
namespace std { using ::cuda_host_memcpy, ::cuda_host_memset; }
#define memcpy cuda_host_memcpy
#define memmove cuda_host_memcpy
#define memset cuda_host_memset
