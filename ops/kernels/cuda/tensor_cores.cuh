// Tensor cores and asynchronous copies: PTX instructions, and on the host (tests/cuda_host.h) what they do.
//
// A product of a warp is D (16, 8) += A (16, 16) B (16, 8), A and B of 16 bits, D float32. The 32 lanes hold the
// matrices together. With g = lane / 4 and t = lane % 4 a lane has (PTX ISA, "Matrix fragments for mma.m16n8k16")
//
//     a[0], a[1], a[2], a[3]    A[g, 2t : 2t+2], A[g+8, 2t : 2t+2], A[g, 2t+8 : 2t+10], A[g+8, 2t+8 : 2t+10]
//     b[0], b[1]                B[2t : 2t+2, g], B[2t+8 : 2t+10, g]
//     d[0 : 2], d[2 : 4]        D[g, 2t : 2t+2], D[g+8, 2t : 2t+2]
//
// so the D of two products side by side, rounded to 16 bits, is the A of the next one. Two values share a register, the
// first in its lower half. ldmatrix_x4 reads four matrices of 8 x 8 from shared memory: lane 8 i + r names row r (16
// bytes) of matrix i; x[i] gets matrix i [g, 2t : 2t+2], or of its transpose.
//
// In TF32, float32 of which 11 significant bits count, a product is D (16, 8) += A (16, 8) B (8, 8):
//
//     a[0], a[1], a[2], a[3]    A[g, t], A[g+8, t], A[g, t+4], A[g+8, t+4]
//     b[0], b[1]                B[t, g], B[t+4, g]
//
// GPUs before sm_80 have no TF32, half of the product (k = 8) for f16 only, and copy in place of copying
// asynchronously. Needs common.cuh.

// Two float32 as one register of X: the first is the lower half.
template <class X> __device__ __forceinline__ unsigned pack(float low, float high) {
    X a, b;
    set(a, low);
    set(b, high);
    return a.bits | (unsigned)b.bits << 16;
}

#ifndef TINYGRAD2_HOST

#if __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ unsigned pack<bf16>(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

template <> __device__ __forceinline__ unsigned pack<f16>(float low, float high) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
#endif

template <class X> __device__ __forceinline__ void mma_16816(float (&d)[4], const unsigned (&a)[4], const unsigned* b);

template <> __device__ __forceinline__ void mma_16816<f16>(float (&d)[4], const unsigned (&a)[4], const unsigned* b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

template <> __device__ __forceinline__ void mma_16816<bf16>(float (&d)[4], const unsigned (&a)[4], const unsigned* b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();                                                     // attention.py does not choose these kernels there
#endif
}

// x in TF32, to nearest, ties away from 0: the lower 13 bits are 0.
__device__ __forceinline__ unsigned tf32(float x) {
    unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
}

__device__ __forceinline__ void mma_1688(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();                                                     // attention_tiles.py chooses other kernels there
#endif
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void ldmatrix_x4(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(row)) : "memory");
}

// SIZE bytes (4, 8 or 16) to shared memory, there after cp_async_wait. With inside = 0, zeros; nothing is read.
template <int SIZE> __device__ __forceinline__ void cp_async(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    if constexpr (SIZE == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
            :: "r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
            :: "r"(shared_address(to)), "l"(from), "n"(SIZE), "r"(inside ? SIZE : 0) : "memory");
#else
#pragma unroll
    for (int i = 0; i < SIZE / 4; i++)
        static_cast<unsigned*>(to)[i] = inside ? static_cast<const unsigned*>(from)[i] : 0u;
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all but the last N groups of this thread's copies have arrived.
template <int N> __device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
#endif
}

__device__ __forceinline__ float exp2_approx(float x) {           // relative error 2^-22; 0 for -inf
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else // -- on the host ------------------------------------------------------------------------------------------------

// What the lanes of a warp bring to a product or a load, twice: a lane may be one call ahead of the others.
struct Brought { float a[16][16], b[8][16]; const void* rows[32]; };
static Brought host_brought[2][32];
static long host_calls[1024], host_block[1024];

NOT_CHECKED inline Brought& host_next() {                         // where this lane puts what it brings
    int thread = threadIdx.x;
    if (host_block[thread] != cuda_host_blocks_begun()) {         // a new block: what an aborted one has left is void
        host_block[thread] = cuda_host_blocks_begun();
        host_calls[thread] = 0;
    }
    return host_brought[host_calls[thread]++ % 2][thread / 32];
}

NOT_CHECKED inline void host_meet(const Brought& brought) {       // from here on all lanes have brought theirs
    const Brought *mine = &brought, *first;
    cuda_host_exchange(0xffffffffu, &mine, &first, sizeof mine, 0);
    if (first != mine) cuda_host_fail("lanes of a warp call different instructions");
}

template <class X> NOT_CHECKED inline void host_unpack(float* to, unsigned pair) {
    X low, high;
    low.bits = (unsigned short)pair, high.bits = (unsigned short)(pair >> 16);
    to[0] = to_float(low), to[1] = to_float(high);
}

template <class X> NOT_CHECKED inline void mma_16816(float (&d)[4], const unsigned (&a)[4], const unsigned* b) {
    Brought& all = host_next();
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) host_unpack<X>(&all.a[g + i % 2 * 8][2 * t + i / 2 * 8], a[i]);
    for (int i = 0; i < 2; i++) host_unpack<X>(&all.b[g][2 * t + 8 * i], b[i]);
    host_meet(all);
    for (int i = 0; i < 4; i++) {
        const float *row = all.a[g + i / 2 * 8], *column = all.b[2 * t + i % 2];
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += row[k] * column[k];
        d[i] += sum;
    }
}

inline unsigned tf32(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffe000u;   // NaN
    return (bits + 0x1000u) & 0xffffe000u;
}

NOT_CHECKED inline float host_tf32(unsigned bits) { return __uint_as_float(bits & 0xffffe000u); }

NOT_CHECKED inline void mma_1688(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Brought& all = host_next();
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) all.a[g + i % 2 * 8][t + i / 2 * 4] = host_tf32(a[i]);
    for (int i = 0; i < 2; i++) all.b[g][t + 4 * i] = host_tf32(b[i]);
    host_meet(all);
    for (int i = 0; i < 4; i++) {
        const float *row = all.a[g + i / 2 * 8], *column = all.b[2 * t + i % 2];
        float sum = 0;
        for (int k = 0; k < 8; k++) sum += row[k] * column[k];
        d[i] += sum;
    }
}

NOT_CHECKED inline void host_ldmatrix(unsigned (&x)[4], const void* row, bool transposed) {
    Brought& all = host_next();
    all.rows[threadIdx.x % 32] = row;
    host_meet(all);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        unsigned pair[2];
        for (int k = 0; k < 2; k++) {
            int r = transposed ? 2 * t + k : g, c = transposed ? g : 2 * t + k;
            const unsigned short* from = static_cast<const unsigned short*>(all.rows[8 * i + r]);
            if ((uintptr_t)from % 16) cuda_host_fail("ldmatrix: the address of a row is no multiple of 16 bytes");
            cuda_host_check(from + c, 2, 0, 0);
            pair[k] = from[c];
        }
        x[i] = pair[0] | pair[1] << 16;
    }
}

NOT_CHECKED inline void ldmatrix_x4(unsigned (&x)[4], const void* row) { host_ldmatrix(x, row, false); }
NOT_CHECKED inline void ldmatrix_x4_trans(unsigned (&x)[4], const void* row) { host_ldmatrix(x, row, true); }

// Copies arrive as late as they may: at the wait. Until then 0xff is there, NaN in each type.
struct Copy { char* to; const char* from; int size, inside; };
static const int HOST_COPIES = 128, HOST_GROUPS = 4;
struct Copies {
    Copy copy[HOST_GROUPS][HOST_COPIES];
    int n[HOST_GROUPS], first, open;                              // groups first .. open - 1 wait, `open` is filled
    long block;
};
static Copies* host_copies[1024];

NOT_CHECKED inline Copies& host_copies_of_thread() {
    Copies*& copies = host_copies[threadIdx.x];
    if (!copies) copies = new Copies();
    if (copies->block != cuda_host_blocks_begun()) {
        copies->block = cuda_host_blocks_begun();
        copies->first = copies->open = copies->n[0] = 0;
    }
    return *copies;
}

template <int SIZE> NOT_CHECKED inline void cp_async(void* to, const void* from, bool inside) {
    Copies& copies = host_copies_of_thread();
    int group = copies.open % HOST_GROUPS, n = copies.n[group]++;
    if (n >= HOST_COPIES) cuda_host_fail("cp.async: too many copies without a commit");
    if ((uintptr_t)to % SIZE || (inside && (uintptr_t)from % SIZE)) cuda_host_fail("cp.async: address not aligned");
    memset(to, 0xff, SIZE);
    copies.copy[group][n] = {static_cast<char*>(to), static_cast<const char*>(from), SIZE, inside};
}

NOT_CHECKED inline void cp_async_commit() {
    Copies& copies = host_copies_of_thread();
    if (++copies.open - copies.first >= HOST_GROUPS) cuda_host_fail("cp.async: copies that nothing waits for");
    copies.n[copies.open % HOST_GROUPS] = 0;
}

template <int N> NOT_CHECKED inline void cp_async_wait() {
    Copies& copies = host_copies_of_thread();
    for (; copies.first < copies.open - N; copies.first++) {
        int group = copies.first % HOST_GROUPS;
        for (int i = 0; i < copies.n[group]; i++) {
            Copy& copy = copies.copy[group][i];
            if (copy.inside) memcpy(copy.to, copy.from, copy.size);
            else memset(copy.to, 0, copy.size);
        }
    }
}

NOT_CHECKED inline float exp2_approx(float x) { return std::exp2(x); }

#endif
