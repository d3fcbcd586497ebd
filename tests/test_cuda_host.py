"""The checks of kernels that run on the CPU (cuda_host.cpp) find each kind of fault, and pass the kernel without it."""

import functools

import cuda_host
import numpy as np
import pytest
from cuda_host import KernelFault, needs_compiler, running

from ops.kernels.cuda import launch

pytestmark = needs_compiler

COMMON = launch._read("common.cuh")
TENSOR_CORES = COMMON + launch._read("tensor_cores.cuh")
RACE, SHARED_RACE, UNWRITTEN = "race in an array", "race in shared memory", "shared memory that nothing has written"
OUTSIDE, MISALIGNED, INDEX = "outside of all arrays|beyond the end", "no multiple", "outside of an array"

NEIGHBOUR = """
    __shared__ float s[64];
    s[t] = x[t];
    {}
    y[t] = s[(t + 1) % n];
"""
TWO = """
    __shared__ float a[64], b[64];
    a[t] = b[t] = t;
    __syncthreads();
    {}
    y[t] = a[t] + b[t];
"""
COPY = """
    __shared__ __align__(16) f16 s[8 * 32];
    cp_async<16>(s + {to}, h + {source}, true);
    cp_async_commit();
    {wait}
    {barrier}
    y[t] = to_float(s[{read}]);
"""
MATRIX = """
    __shared__ __align__(16) f16 s[8 * 32 + 8];
    for (int i = 0; i < 8; i++) s[8 * t + i] = h[8 * t + i];
    {barrier}
    unsigned parts[4];
    {load}(parts, s + {row});
    y[t] = parts[0] + parts[1] + parts[2] + parts[3];
"""
COPIED = dict(to="8 * t", source="8 * t", wait="cp_async_wait<0>();", barrier="__syncthreads();", read="8 * t")
LOADED = dict(barrier="__syncthreads();", load="ldmatrix_x4", row="8 * t")

# What it is: (text in front, body without the fault, body with it, what the checks say, threads and blocks). The kernel
# gets x and y, float32, 256 numbers each, and `alias`, which is a part of y; h, as many f16; n = 32, and t, the number
# of the thread in its block.
KERNELS = {
    "blocks write to one place": ("", "y[blockIdx.x] = 1;", "y[0] = 1;", RACE, 1, 2),
    "a block reads what another one writes": (
        "", "y[32 * blockIdx.x + t] = x[t];", "y[32 * blockIdx.x + t] = y[32 - 32 * blockIdx.x + t];", RACE, 32, 2),
    "a block writes what another one has read": (
        "", "y[64 + 32 * blockIdx.x + t] = y[t];", "y[32 * blockIdx.x + t] = y[t];", RACE, 32, 2),
    "threads write to one place": ("", "y[t] = t;", "y[t / 2] = t;", RACE, 32, 1),
    "sums without atomic additions": ("", "atomicAdd(&y[0], 1.0f);", "y[0] += 1;", RACE, 64, 1),
    "no barrier": ("", NEIGHBOUR.format("__syncthreads();"), NEIGHBOUR.format(""), f"{SHARED_RACE}|{UNWRITTEN}", 64, 1),
    "no barrier in a warp": (
        "", NEIGHBOUR.format("__syncwarp();"), NEIGHBOUR.format(""), f"{SHARED_RACE}|{UNWRITTEN}", 32, 1),
    "a warp's barrier for two warps": (
        "", NEIGHBOUR.format("__syncthreads();"), NEIGHBOUR.format("__syncwarp();").replace("% n", "% 64"),
        SHARED_RACE, 64, 1),
    "no barrier before the next round": (
        "", "__shared__ float s[64]; for (int i = 0; i < 2; i++) { s[t] = i; __syncthreads(); y[t] = s[63 - t]; "
        "__syncthreads(); }",
        "__shared__ float s[64]; for (int i = 0; i < 2; i++) { s[t] = i; __syncthreads(); y[t] = s[63 - t]; }",
        SHARED_RACE, 64, 1),
    "a barrier for some threads": (
        "", "__syncthreads(); y[t] = 1;", "if (t < 32) __syncthreads(); y[t] = 1;", "not all threads reach", 64, 1),
    "a thread ends before a barrier": (
        "", "if (t < 50) y[t] = 1; __syncthreads(); y[t + 64] = 1;",
        "if (t >= 50) return; y[t] = 1; __syncthreads(); y[t + 64] = 1;", "not all threads reach", 64, 1),
    "two barriers at once": (
        "", "if (t < 32) y[t] = 1; else x[t] = 1; __syncthreads();",
        "if (t < 32) { y[t] = 1; __syncthreads(); } else { x[t] = 1; __syncthreads(); }", "two barriers", 64, 1),
    "an exchange of half a warp": (
        "", "float v = __shfl_xor_sync(0xffffffffu, x[t], 1); if (t < 16) y[t] = v;",
        "if (t < 16) y[t] = __shfl_xor_sync(0xffffffffu, x[t], 1);", "waits for its warp", 32, 1),
    "behind the end of an array": ("", "y[8 * n - 1 - t] = 1;", "y[8 * n - t] = 1;", OUTSIDE, 32, 1),
    "before the start of an array": ("", "y[t] = x[t];", "y[t] = x[t - 1];", OUTSIDE, 32, 1),
    "behind the end of dynamic shared memory": (
        COMMON, "DYNAMIC_SHARED(float, s); s[t] = 1; y[t] = s[t];", "DYNAMIC_SHARED(float, s); s[t + 1] = 1;", OUTSIDE,
        32, 1),
    "shared memory: an index outside": ("", TWO.format("a[t] = 1;"), TWO.format("a[t + n] = 1;"), INDEX, 64, 1),
    "shared memory: a pointer behind the end": (
        "", TWO.format("float* p = t % 2 ? a : b; p[t] = 2;"), TWO.format("float* p = t % 2 ? a : b; p[t + n] = 2;"),
        OUTSIDE, 64, 1),
    "shared memory: a pointer before the start": (
        "", TWO.format("float* p = t % 2 ? a : b; p[t] = 2;"), TWO.format("float* p = t % 2 ? a : b; p[t - n] = 2;"),
        OUTSIDE, 64, 1),
    "shared memory: the next row": (
        "", "__shared__ float s[2][32]; s[0][t] = s[1][t] = t; y[t] = s[0][t];",
        "__shared__ float s[2][32]; s[0][t] = s[1][t] = t; y[t] = s[0][t + n];", INDEX, 32, 1),
    "a thread's array: an index outside": (
        "", "float a[4]; for (int i = 0; i < n / 8; i++) a[i] = x[i]; y[t] = a[t % 4];",
        "float a[4]; for (int i = 0; i <= n / 8; i++) a[i] = x[i]; y[t] = a[t % 4];", INDEX, 32, 1),
    "a variable of another thread": (
        "", "__shared__ float s; float v = x[t]; if (t == 0) s = v; __syncthreads(); y[t] = s;",
        "__shared__ float* s; float v[2] = {x[t], x[t]}; if (t == 0) s = v + n % 2; __syncthreads(); y[t] = *s;",
        "accesses a variable of thread 0", 32, 1),
    "shared memory that is not set": (
        "", "__shared__ float s[64]; s[t] = 1; y[t] = s[t];", "__shared__ float s[64]; s[t] = 1; y[t] = s[t + n];",
        UNWRITTEN, 32, 1),
    "shared memory of the block before": (
        "", "__shared__ float s[32]; s[t] = 0; y[32 * blockIdx.x + t] = s[t];",
        "__shared__ float s[32]; if (blockIdx.x == gridDim.x / 2) s[t] = 0; y[32 * blockIdx.x + t] = s[t];", UNWRITTEN,
        32, 3),
    "dynamic shared memory that is not set": (
        COMMON, "DYNAMIC_SHARED(float, s); s[t] = 1; y[t] = s[t];", "DYNAMIC_SHARED(float, s); y[t] = s[t];", UNWRITTEN,
        32, 1),
    "two arguments for one array: blocks": (
        "", "y[blockIdx.x] = 1; alias[blockIdx.x] = 2;", "y[blockIdx.x] = 1; alias[1 - blockIdx.x] = 2;", RACE, 1, 2),
    "two arguments for one array: threads": (
        "", "y[t] = 1; alias[t] += 2;", "y[t] = 1; alias[31 - t] += 2;", RACE, 32, 1),
    "16 bytes anywhere: read": (
        COMMON, "store_chunk(y + 4 * t, load_chunk(x + 4 * t));", "store_chunk(y + 4 * t, load_chunk(x + 2 * t));",
        MISALIGNED, 32, 1),
    "16 bytes anywhere: written": (
        COMMON, "store_chunk(y + 4 * t, load_chunk(x + 4 * t));", "store_chunk(y + 4 * t + 2, load_chunk(x + 4 * t));",
        MISALIGNED, 32, 1),
    "8 bytes anywhere: written": (
        "", "*(float2*)(y + 2 * t) = make_float2(1, 2);", "*(float2*)(y + 2 * t + 1) = make_float2(1, 2);", MISALIGNED,
        32, 1),
    "16 bytes anywhere: a variable made of them": (
        "", "float4 v = *(float4*)(x + 4 * t); y[t] = v.y;", "float4 v = *(float4*)(x + 2 * t); y[t] = v.y;",
        MISALIGNED, 32, 1),
    "16 bytes by two threads: a function's result": (
        "", "*(float4*)(y + 4 * t) = make_float4(1, 2, 3, t);", "*(float4*)(y + t / 2 * 4) = make_float4(1, 2, 3, t);",
        RACE, 32, 1),
    "16 bits by two threads": (
        COMMON, "((f16*)y)[t] = h[t];", "((f16*)y)[t / 2] = h[t];", RACE, 32, 1),
    "16 bytes beyond the end: read": (
        COMMON, "float v[4]; load(x + 4 * (t + n), v); y[t] = v[0];", "float v[4]; load(x + 4 * (t + n + 1), v);"
        "y[t] = v[0];", OUTSIDE, 32, 1),
    "16 bytes beyond the end: written": (
        COMMON, "float v[4] = {}; store(y + 4 * (t + n), v);", "float v[4] = {}; store(y + 4 * (t + n + 1), v);",
        OUTSIDE, 32, 1),
    "16 bytes of 16 bits: read beyond the end": (
        COMMON, "float v[8]; load(h + 8 * t, v); y[t] = v[0];", "float v[8]; load(h + 8 * (t + 1), v); y[t] = v[0];",
        OUTSIDE, 32, 1),
    "memcpy: read beyond the end": (
        "", "memcpy(y + 2 * t, x + 8 * n - 64 + t, 8);", "memcpy(y + 2 * t, x + 8 * n - t, 8);", OUTSIDE, 31, 1),
    "memmove: written beyond the end": (
        "", "memmove(y + 8 * n - 3, x + t, 12);", "std::memmove(y + 8 * n - 2, x + t, 12);", OUTSIDE, 1, 1),
    "memcpy: a struct, by two threads": (
        "struct Three { float x[3]; };", "Three v = {x[t]}; memcpy(y + 3 * t, &v, sizeof v);",
        "Three v = {x[t]}; memcpy(y + 2 * t, &v, sizeof v);", RACE, 32, 1),
    "memset: by two threads": ("", "memset(y + 2 * t, 0, 8);", "memset(y + t, 0, 8);", RACE, 32, 1),
    "memset: shared memory of another warp": (
        "", "__shared__ float s[64]; memset(s + t, 0, 4); y[t] = s[t];",
        "__shared__ float s[64]; memset(s + (t ^ 32), 0, 4); y[t] = s[t];", f"{SHARED_RACE}|{UNWRITTEN}", 64, 1),
    "16 bytes by two threads": (
        COMMON, "float v[4] = {}; store(y + 4 * t, v);", "float v[8] = {}; store(y + 4 * t, v);", RACE, 31, 1),
    "cp.async: no barrier": (
        TENSOR_CORES, COPY.format(**COPIED | dict(read="255 - 8 * t")),
        COPY.format(**COPIED | dict(barrier="", read="255 - 8 * t")), f"{SHARED_RACE}|{UNWRITTEN}", 32, 1),
    "cp.async: it waits behind the barrier": (
        TENSOR_CORES, COPY.format(**COPIED | dict(read="255 - 8 * t")),
        COPY.format(**COPIED | dict(wait="__syncthreads();", barrier="cp_async_wait<0>();", read="255 - 8 * t")),
        SHARED_RACE, 32, 1),
    "cp.async: 16 bytes from anywhere": (
        TENSOR_CORES, COPY.format(**COPIED), COPY.format(**COPIED | dict(source="4 * t")), "not aligned", 32, 1),
    "cp.async: 16 bytes to anywhere": (
        TENSOR_CORES, COPY.format(**COPIED), COPY.format(**COPIED | dict(to="7 * t")), "not aligned", 32, 1),
    "cp.async: read beyond the end": (
        TENSOR_CORES, COPY.format(**COPIED), COPY.format(**COPIED | dict(source="8 * (t + 1)")), OUTSIDE, 32, 1),
    "cp.async: written beyond the end": (
        TENSOR_CORES, COPY.format(**COPIED), COPY.format(**COPIED | dict(to="8 * (t + 1)")), OUTSIDE, 32, 1),
    "ldmatrix: no barrier": (
        TENSOR_CORES, MATRIX.format(**LOADED), MATRIX.format(**LOADED | dict(barrier="")), SHARED_RACE, 32, 1),
    "ldmatrix: a row anywhere": (
        TENSOR_CORES, MATRIX.format(**LOADED), MATRIX.format(**LOADED | dict(row="4 * t")), "no multiple of 16", 32, 1),
    "ldmatrix: a row beyond the end": (
        TENSOR_CORES, MATRIX.format(**LOADED), MATRIX.format(**LOADED | dict(row="(t < 31 ? 8 * t : 8 * 33)")), OUTSIDE,
        32, 1),
    "ldmatrix: a row that is not set": (
        TENSOR_CORES, MATRIX.format(**LOADED | dict(load="ldmatrix_x4_trans")),
        MATRIX.format(**LOADED | dict(load="ldmatrix_x4_trans", row="8 * (t + 1)")), UNWRITTEN, 32, 1),
    "a product of half a warp": (
        TENSOR_CORES, "float d[4] = {}; unsigned a[4] = {}, b[2] = {}; mma_16816<f16>(d, a, b); y[t] = d[0];",
        "float d[4] = {}; unsigned a[4] = {}, b[2] = {}; if (t < 16) mma_16816<f16>(d, a, b); y[t] = d[0];",
        "waits for its warp", 32, 1),
}  # fmt: skip


@functools.cache
def module(front):
    """All kernels with this text in front, compiled at once: right0, wrong0, right1, ..."""
    halves = "f16" if COMMON in front else "unsigned short"
    text = [front]
    for number, (own, right, wrong, *_) in enumerate(KERNELS.values()):
        for name, body in (("right", right), ("wrong", wrong)) if own == front else ():
            arguments = f"float* x, float* y, float* alias, const {halves}* h, int n"
            text.append(f'extern "C" __global__ void {name}{number}({arguments}) {{ int t = threadIdx.x;\n{body}\n}}')
    return cuda_host.RawModule(code="\n".join(text))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("number, fault", [*enumerate(KERNELS)], ids=KERNELS)
def test_a_fault_is_found(number, fault, reverse):
    front, _, _, message, threads, blocks = KERNELS[fault]

    def run(name):
        y = np.zeros(256, np.float32)
        halves = np.zeros(256, np.float16 if COMMON in front else np.uint16)
        args = np.zeros(256, np.float32), y, y[:200], halves, np.int32(32)
        kernel = module(front).get_function(f"{name}{number}")
        kernel((blocks,), (threads,), args, shared_mem=4 * threads)

    with running(reverse=reverse):
        run("right")
        with pytest.raises(KernelFault, match=message):
            run("wrong")


@pytest.mark.parametrize("check, message", [(True, "outside of all arrays"), (False, "where there is no memory")])
def test_an_address_that_is_none_ends_the_launch(check, message):
    code = 'extern "C" __global__ void kernel(float* y, long long n) { y[n + threadIdx.x] = 1; }'
    kernel, y = cuda_host.RawModule(code=code).get_function("kernel"), np.zeros(64, np.float32)
    for _ in range(2):
        with running(check=check):
            with pytest.raises(KernelFault, match=message):
                kernel((1,), (64,), (y, np.int64(2**44)))
            kernel((1,), (64,), (y, np.int64(0)))
    assert (y == 1).all()


@pytest.mark.parametrize("first, second, refused", [
    ("const float* x", "float* y", False), ("const float* __restrict__ x", "float* y", True),
    ("const float* x", "float* __restrict__ y", True), ("float* x", "float* y", False),
    ("const float* __restrict__ x", "const float* __restrict__ y", False),
])  # fmt: skip
def test_arrays_that_share_memory_are_not_restricted(first, second, refused):
    """The compiler may read such an array through a cache that does not see what is written."""
    code = f'extern "C" __global__ void kernel({first}, {second}, float* z) {{ z[0] = x[0] + y[0]; }}'
    kernel, memory = cuda_host.RawModule(code=code).get_function("kernel"), np.zeros((4, 2), np.float32)
    z = np.zeros(1, np.float32)
    kernel((1,), (1,), (memory[:, 0], memory[:, 1], z))           # next to each other
    if refused:
        with pytest.raises(AssertionError, match="shares memory"):
            kernel((1,), (1,), (memory[:3], memory[2:], z))
    else:
        kernel((1,), (1,), (memory[:3], memory[2:], z))


def test_of_many_blocks_the_first_and_the_last_may_do():
    code = 'extern "C" __global__ void kernel(float* y) { if (threadIdx.x == 0) y[blockIdx.x] = 1; }'
    kernel = cuda_host.RawModule(code=code).get_function("kernel")
    for blocks, expected in ((9, [1, 1, 0, 0, 0, 0, 0, 1, 1]), (4, [1] * 4), (3, [1] * 3)):
        for reverse in (False, True):
            y = np.zeros(blocks, np.float32)
            with running(reverse=reverse, ends=2):
                kernel((blocks,), (32,), (y,))
            assert np.array_equal(y, expected)


def test_a_copy_that_is_not_checked_is_refused():
    code = 'extern "C" __global__ void kernel(float* y) { __builtin_memcpy(y, y + 1, 4); }'
    with pytest.raises(AssertionError, match="call memcpy"):
        cuda_host.RawModule(code=code).get_function("kernel")((1,), (1,), (np.zeros(2, np.float32),))


def test_accesses_that_are_too_small_to_follow_are_refused():
    """Bytes of an array of larger elements; of smaller ones, each has a history of its own."""
    code = 'extern "C" __global__ void kernel(void* y) { ((unsigned char*)y)[threadIdx.x] = 1; }'
    kernel = cuda_host.RawModule(code=code).get_function("kernel")
    kernel((1,), (32,), (np.zeros(32, np.uint8),))
    with pytest.raises(KernelFault, match="fewer bytes than the smallest element"):
        kernel((1,), (32,), (np.zeros(32, np.float16),))


def test_the_gap_behind_a_row_is_outside_of_the_array():
    code = """extern "C" __global__ void kernel(float* x, int row) { x[row * blockIdx.x + threadIdx.x] = 1; }"""
    kernel, memory = cuda_host.RawModule(code=code).get_function("kernel"), np.zeros((3, 40), np.float32)
    for view in (memory[:, :32], memory[:, 8:]):
        kernel((3,), (32,), (view, np.int32(40)))
        with pytest.raises(KernelFault, match="between the rows"):
            kernel((3,), (33,), (view, np.int32(40)))
    assert memory.sum() == 3 * 40
    kernel((1,), (32,), (memory[::-1, 31::-1][:1, ::-1], np.int32(40)))


def test_a_variable_that_is_not_set_is_not_zero():
    if not cuda_host._uninitialised():
        pytest.skip("this compiler cannot fill variables")
    body = "float v[4]; for (int i = 0; i < n; i++) v[i] = 0; y[0] = v[1];"
    code = f'extern "C" __global__ void kernel(float* y, int n) {{ {body} }}'
    y = np.zeros(1, np.float32)
    for n, is_zero in ((1, False), (2, True)):
        cuda_host.RawModule(code=code).get_function("kernel")((1,), (1,), (y, np.int32(n)))
        assert (y[0] == 0) == is_zero
