"""Matrix products of our own, from three loops to tile registers. This page is the whole idea; each file is one part.

**The problem.** C = A B with A (M, K), B (K, N) takes M N K multiply-adds on only M K + K N + M N numbers. A processor
core starts a multiply-add of 16 numbers each cycle, but main memory sends one or two numbers in that time. So each
number that was read must be used many times before it leaves the cache. Three plain loops use it once, and then read
it again.

**The answer** (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008; there, for matrices
stored by columns, A lies in L2 and B in L3, here the other way round). C is computed in blocks, and each level of
memory keeps what is used again soonest. The sizes are those of the kernel for AVX-512, for processors with 1 MiB of L2
and more; with less, a strip of B comes from L3 in part:

    registers   8 x 48 of C, its sums          one number of A meets 48 of B: 8 + 48 numbers for 384 multiply-adds
    L1 cache    8 rows of A, 384 deep          12 KiB: meets all columns of the strip
    L2 cache    a strip of B, 480 wide         720 KiB: meets all rows of the block of A
    L3 cache    a block of A, 960 rows         1.4 MiB
    memory      A, B and C                     read or written once per block

    for m in range(0, M, 960):                 a block of rows of C                        blocks.py
        for k in range(0, K, 384):             C is a sum over pieces of K
            pack A[m, k]                                                                   packing.py, tiles.py
            for n in range(0, N, 480):
                pack B[k, n]
                for i in range(0, 960, 8):     these 8 rows of A stay in L1
                    for j in range(0, 480, 48):
                        C[m+i, n+j] += A[i] B[j]     the micro-kernel, a loop over 384     microkernel.py, amx.py

**Why packing pays.** The micro-kernel reads A and B in one fixed order, again and again. Packing copies them into just
that order, once per block. It costs one pass over numbers that will each be used some hundred times, and it buys: reads
of consecutive addresses, which the processor fetches before they are asked for; all of a cache line and of a memory
page used, where a column of B would touch a line and a page per number; no two numbers that compete for one place in
the cache, whatever the distance of rows; any layout of A and B (transposed, sliced) at nearly one speed; and
conversion to bfloat16 for nothing, in registers on the way. The price grows where C has few rows: B is packed again for
each 960 rows of A, and by each thread that takes other rows of C.

**bfloat16** is a float32 without its lower 16 bits. Two of them fit where one float32 was, so one instruction does
twice the multiply-adds (AVX512-BF16), and on tile registers (AMX) many times as many. Products are exact and sums
float32; what is lost is the rounding of A and B to 8 bits (ops/bfloat16.py does the same in plain NumPy).

**The ladder**, each rung a function that can be run and measured (`python -m benchmarks.ops gemm --ladder`):

    three_loops, blocked, packed   plain_loops.py    loops as Numba compiles them
    vector                         microkernel.py    8 numbers per instruction: AVX2, and any other processor
    avx512                                           16 numbers
    bf16                                             32 numbers, bfloat16
    amx                            amx.py            8,192 products, bfloat16
    amx x3, amx x6                                   float32 numbers as sums of two or three bfloat16 numbers

`product` (product.py) runs any from "vector" on. emit.py writes their instructions; target.py tells which of them the
compiler and the operating system permit. A processor without AVX-512 or AMX never sees such instructions.

**Every thread count gives the same bits.** An element of C is the sum over K in one order, whoever computes it: threads
divide rows or columns of C, never K, and the pieces of K depend on K alone. Blocks at an edge go through a whole block
in scratch memory, by the same instructions.
"""
