// The random numbers of tinygrad2/prng.py, bit for bit: a hash of a key and a position, with the mixing of splitmix64
// (Steele et al., "Fast splittable generators", 2014).

const unsigned long long GOLDEN = 0x9E3779B97F4A7C15ull;

// What the hash of a position is made from; that of the next position is GOLDEN more.
__device__ __forceinline__ unsigned long long hash_start(unsigned long long key, unsigned long long position) {
    return (position + 1) * GOLDEN + key;
}

// 24 random bits. The last step of the mixing, z ^ z >> 31, is left out: it changes none of the upper 31 bits.
__device__ __forceinline__ unsigned hash_bits(unsigned long long start) {
    unsigned long long z = start;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return (unsigned)(z >> 40);
}

// 0 with probability p, else `factor`, which is 1 / (1 - p): keep_mask of ops/dropout.py.
__device__ __forceinline__ float keep_factor(unsigned long long start, float p, float factor) {
    float uniform = (float)hash_bits(start) * 5.9604644775390625e-8f;   // 2^-24
    return uniform >= p ? factor : 0;
}
