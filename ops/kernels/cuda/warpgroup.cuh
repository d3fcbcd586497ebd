// Products of a warpgroup: PTX instructions of compute capability 9.0 (-arch=sm_90a), and on the host
// (tests/cuda_host.h) what they do. Needs common.cuh and tensor_cores.cuh.
//
// A warpgroup is 4 warps next to each other, 128 threads. Its product is D (64, 64) += A (64, 16) B (16, 64), A
// and B of 16 bits, D float32. Warp w has rows 16 w .. 16 w + 15 of D, as 8 products of a warp side by side
// (tensor_cores.cuh): d[n][0 : 4]. B is read from shared memory, A from there or from registers, a[0 : 4] as in
// tensor_cores.cuh: so what has become of one D, rounded to 16 bits, is the A of the next product.
//
// A product is asynchronous. wgmma_fence() comes before the first one of a group, and makes visible what was written to
// registers; wgmma_commit() ends the group; wgmma_wait<G>() waits until all but the last G groups are done. Until then
// D is neither read nor written, and A and its shared memory are not written. hold(x) keeps the compiler from moving
// accesses of x across it: it stands on both sides, in front of the fence and behind the wait.
//
// A in registers must be written again for each product. ptxas 13.0 gives the registers of an A to other values behind
// the product, although the next iteration of a loop needs them: a q that stayed in registers was lost.
//
// A matrix in shared memory is described by 64 bits (PTX ISA, "Matrix descriptor"; addresses and distances without
// their lowest 4 bits):
//
//     bits 0-13      where it begins                   bits 49-51    0: tiles begin at multiples of 1024 bytes
//     bits 16-29     LBO, not used here                bits 62-63    1: rows of 128 bytes, swizzled
//     bits 32-45     SBO, from one 8 rows to the next
//
// A tile has rows of 64 elements, 128 bytes; of row r the chunk c of 16 bytes is in place c ^ r % 8. Its rows can be
// those of A, or of B's transpose ("K-major"): 16 columns further are 32 bytes further. Or they are those of B itself
// ("MN-major", the instruction's transpose bit): 16 rows further are 2048 bytes further.
//
// What loads, stores and cp.async have written is there for products after the writing thread's proxy_fence(), and a
// barrier.

#ifndef TINYGRAD2_HOST

template <class X> const bool IS_F16 = false;
template <> const bool IS_F16<f16> = true;

#define REGISTERS \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define FOUR(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
#define OUT FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7])
#define WGMMA(TYPE, ADDS, A, B, TRANSPOSED) \
    "{.reg .pred p; setp.ne.b32 p, " ADDS ", 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " \
    REGISTERS ", " A ", " B ", p, 1, 1" TRANSPOSED ";}"
#define WGMMA_SHARED(TYPE) \
    asm volatile(WGMMA(TYPE, "%34", "%32", "%33", ", 0, %35") : OUT : "l"(a), "l"(b), "r"((int)adds), "n"(TRANS))
#define WGMMA_REGISTERS(TYPE) \
    asm volatile(WGMMA(TYPE, "%37", "{%32,%33,%34,%35}", "%36", ", %38") \
        : OUT : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)adds), "n"(TRANS))

// D = A B, plus D if `adds`; TRANS is B's transpose bit. A is a matrix in shared memory,
template <class X, int TRANS> __device__ __forceinline__ void wgmma(
    float (&d)[8][4], unsigned long long a, unsigned long long b, bool adds) {
    if constexpr (IS_F16<X>) WGMMA_SHARED("f16");
    else WGMMA_SHARED("bf16");
}

// or it is in registers.
template <class X, int TRANS> __device__ __forceinline__ void wgmma(
    float (&d)[8][4], const unsigned (&a)[4], unsigned long long b, bool adds) {
    if constexpr (IS_F16<X>) WGMMA_REGISTERS("f16");
    else WGMMA_REGISTERS("bf16");
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int GROUPS> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(GROUPS) : "memory");
}

template <int N> __device__ __forceinline__ void hold(float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : FOUR(x[n]) :: "memory");
}

template <int N> __device__ __forceinline__ void hold(unsigned (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+r"(x[n][0]), "+r"(x[n][1]), "+r"(x[n][2]), "+r"(x[n][3]) :: "memory");
}

__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#else // -- on the host ------------------------------------------------------------------------------------------------

// All happens as late as it may: at the wait, operands are read and results appear. Until then D is NaN, of bits that
// nothing else makes, which must still be there. The addresses of shared memory begin at some multiple of 128.
const unsigned HOST_UNTIL_THEN = 0x7fc0dead, HOST_WINDOW = 1152;
const int HOST_PRODUCTS = 64;

NOT_CHECKED inline unsigned shared_address(const void* p) {
    return (unsigned)(static_cast<const char*>(p) - static_cast<char*>(cuda_host_dynamic_shared())) + HOST_WINDOW;
}

struct Product {
    int number, transposed, adds;                                 // number: of its accumulators
    const unsigned* a;                                            // registers, or null
    unsigned long long a_matrix, b_matrix;
};
struct Accumulators { float (*d)[4]; int waiting; float values[32]; };
struct Products {
    long block;
    int first, end, committed, group_ends[HOST_PRODUCTS], fenced, turn;   // products first .. end - 1 wait
    Product queue[HOST_PRODUCTS];
    Accumulators d[8];
};
static Products* host_products[1024];
struct OfWarps { float a[32][16][16], b[32][64][16]; Product asked[2][1024]; };   // a[row][k], b[column][k]
static OfWarps* host_warps = new OfWarps();

NOT_CHECKED inline Products& host_products_of_thread() {
    Products*& products = host_products[threadIdx.x];
    if (!products) products = new Products();
    if (products->block != cuda_host_blocks_begun()) {
        *products = Products();
        products->block = cuda_host_blocks_begun();
    }
    return *products;
}

// Where element (row, k) of a matrix (rows, 16) is; of a transposed one the rows are its columns.
NOT_CHECKED inline const unsigned short* host_element(unsigned long long matrix, int transposed, int row, int k) {
    int swizzle = (int)(matrix >> 62), bits = swizzle ? 4 - swizzle : 0, width = 16 << bits;   // bytes of a row
    if (!bits || matrix >> 49 & 7) cuda_host_fail("wgmma: a descriptor of a kind that is not emulated");
    long begin = (long)(matrix & 0x3fff) << 4, lbo = (long)(matrix >> 16 & 0x3fff) << 4;
    long sbo = (long)(matrix >> 32 & 0x3fff) << 4, place = begin;
    if (transposed) place += 2 * row / width * lbo + 2 * row % width + k / 8 * sbo + k % 8 * width;
    else place += row / 8 * sbo + row % 8 * width + 2 * k;
    place ^= (place >> 7 & ((1 << bits) - 1)) << 4;
    return reinterpret_cast<unsigned short*>(static_cast<char*>(cuda_host_dynamic_shared()) + place - HOST_WINDOW);
}

// This lane's share of reading a matrix, rows begin .. begin + rows - 1: to values[row][k], if not null.
template <class X> NOT_CHECKED inline void host_read_matrix(
    float (*values)[16], unsigned long long matrix, int transposed, int begin, int rows) {
    for (int chunk = threadIdx.x % 32; chunk < 2 * rows; chunk += 32) {   // of 8 elements, 16 bytes
        int row = transposed ? chunk % (rows / 8) * 8 : chunk / 2, k = transposed ? chunk / (rows / 8) : chunk % 2 * 8;
        const unsigned short* from = host_element(matrix, transposed, begin + row, k);
        cuda_host_check_product(from, 16);
        for (int i = 0; values && i < 8; i++) {
            X x;
            x.bits = from[i];
            values[row + (transposed ? i : 0)][k + (transposed ? 0 : i)] = to_float(x);
        }
    }
}

template <class X> NOT_CHECKED inline void host_read(const Product& product, float (*a)[16], float (*b)[16]) {
    int row = threadIdx.x % 128 / 32 * 16;
    if (!product.a) host_read_matrix<X>(a, product.a_matrix, 0, row, 16);
    host_read_matrix<X>(b, product.b_matrix, product.transposed, 0, 64);
}

template <class X> NOT_CHECKED inline void host_wgmma(float (*d)[4], Product product) {
    Products& products = host_products_of_thread();
    if (!products.fenced) cuda_host_fail("wgmma: no wgmma.fence at the beginning of its group");
    products.turn ^= 1;
    host_warps->asked[products.turn][threadIdx.x] = product;
    cuda_host_group_barrier();
    const Product& first = host_warps->asked[products.turn][threadIdx.x / 128 * 128];
    bool alike = first.transposed == product.transposed && first.adds == product.adds;
    alike = alike && first.b_matrix == product.b_matrix && first.a_matrix == product.a_matrix;
    if (!alike || !first.a != !product.a) cuda_host_fail("wgmma: the threads of a warpgroup call different products");
    host_read<X>(product, nullptr, nullptr);
    if (products.end - products.first >= HOST_PRODUCTS) cuda_host_fail("wgmma: products that nothing waits for");
    int number = 0;
    while (number < 8 && !(products.d[number].waiting && products.d[number].d == d)) number++;
    if (number == 8) {                                            // nothing waits for this D
        for (number = 0; number < 8 && products.d[number].waiting;) number++;
        if (number == 8) cuda_host_fail("wgmma: too many accumulators at once");
        products.d[number].d = d;
        for (int i = 0; i < 32; i++) {
            products.d[number].values[i] = d[i / 4][i % 4];
            d[i / 4][i % 4] = __uint_as_float(HOST_UNTIL_THEN);
        }
    }
    products.d[number].waiting++;
    product.number = number;
    products.queue[products.end++ % HOST_PRODUCTS] = product;
}

template <class X, int TRANS> NOT_CHECKED inline void wgmma(
    float (&d)[8][4], unsigned long long a, unsigned long long b, bool adds) {
    host_wgmma<X>(d, {0, TRANS, adds, nullptr, a, b});
}

template <class X, int TRANS> NOT_CHECKED inline void wgmma(
    float (&d)[8][4], const unsigned (&a)[4], unsigned long long b, bool adds) {
    host_wgmma<X>(d, {0, TRANS, adds, a, 0, b});
}

NOT_CHECKED inline void wgmma_fence() { host_products_of_thread().fenced = 1; }

NOT_CHECKED inline void wgmma_commit() {
    Products& products = host_products_of_thread();
    products.group_ends[products.committed++ % HOST_PRODUCTS] = products.end;
    products.fenced = 0;
}

template <class X> NOT_CHECKED inline void host_finish(Products& products, const Product& product) {
    Accumulators& d = products.d[product.number];
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, turn = 0, ignored;
    float (*a)[16] = host_warps->a[threadIdx.x / 32], (*b)[16] = host_warps->b[threadIdx.x / 32];
    for (int i = 0; product.a && i < 4; i++) host_unpack<X>(&a[g + i % 2 * 8][2 * t + i / 2 * 8], product.a[i]);
    host_read<X>(product, a, b);
    cuda_host_exchange(0xffffffffu, &turn, &ignored, sizeof turn, 0);   // here all lanes have read their share
    for (int i = 0; i < 32; i++) {
        const float *row = a[g + i % 4 / 2 * 8], *column = b[i / 4 * 8 + 2 * t + i % 2];
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += row[k] * column[k];
        d.values[i] = (product.adds ? d.values[i] : 0) + sum;
    }
    cuda_host_exchange(0xffffffffu, &turn, &ignored, sizeof turn, 0);
    if (--d.waiting) return;
    for (int i = 0; i < 32; i++) {
        if (__float_as_uint(d.d[i / 4][i % 4]) != HOST_UNTIL_THEN)
            cuda_host_fail("wgmma: an accumulator was written before the wait");
        d.d[i / 4][i % 4] = d.values[i];
    }
}

template <int GROUPS> NOT_CHECKED inline void wgmma_wait() {
    Products& products = host_products_of_thread();
    products.fenced = 0;
    int end = products.committed > GROUPS ? products.group_ends[(products.committed - GROUPS - 1) % HOST_PRODUCTS] : 0;
    if (GROUPS == 0 && end != products.end) cuda_host_fail("wgmma: products that are in no group");
    for (; products.first < end; products.first++)
        host_finish<T>(products, products.queue[products.first % HOST_PRODUCTS]);
}

template <class X> inline void hold(X&) {}
NOT_CHECKED inline void proxy_fence() { cuda_host_proxy_fence(); }

#endif

// The matrix that begins with a row of a tile: 8 rows are 1024 bytes.
__device__ __forceinline__ unsigned long long matrix_at(const void* row) {
    return (shared_address(row) & 0x3ffffu) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
