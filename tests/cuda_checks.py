"""The requirements of every CUDA kernel, as functions: test_cuda_kernels.py runs them over all ops that have one.

A kernel runs on the CPU (cuda_host.py), in float32 and in mixed precision, with its threads in both orders; or, with
the real CuPy, on a GPU (test_gpu.py).
"""

import contextlib
from unittest import mock

import fake_cublaslt
import numpy as np
import strict_cupy
from cuda_host import running
from kernel_checks import cotangent, error, is_float, run, stacked

from ops.kernels.cuda import cudnn_plans, launch, products
from ops.kernels.cuda.cast import cast
from tinygrad2.deferred import DeferredGradient
from tinygrad2.halves import half_dtype, is_half
from tinygrad2.precision import _precision

# A result that is rounded to 16 bits, from inputs that were: half a unit of its last place, and what sums make of it.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-6, "float16": 2.0**-9}
DTYPES = tuple(TOLERANCE)

# Which inputs of an op are activations: in mixed precision they arrive in 16 bits. Of the others each is what it was.
ACTIVATIONS = {
    "add": (1,),
    "add_layernorm": (1,),
    "attention": (0, 1, 2),
    "embedding": (),
    "layernorm": (),
    "matmul": (0, 1),
}  # fmt: skip
# Which results stay float32 in mixed precision, by their number.
RESIDUALS = {
    "add": (0,),
    "add_layernorm": (0,),
    "cross_entropy": (0,),
    "embedding": (0,),
    "linear_cross_entropy": (0,),
    "matmul": (0,),
}  # fmt: skip
VIEWS = {"split_heads"}  # ops that compute nothing


def in_precision(dtype):
    """A block in which ops compute in float32, with "tf32" its products so, or in mixed precision with activations of
    this dtype."""
    return _precision.set({"float32": "highest", "tf32": "high"}.get(dtype, dtype))


def on_device(cupy, value):
    if isinstance(value, np.ndarray):
        return cupy.asarray(value)
    return tuple(on_device(cupy, item) for item in value) if isinstance(value, tuple) else value


def host(array):
    return None if array is None else array.get().astype(np.float64)


def settled(gradient):
    """A gradient as an array; a deferred one is written twice, set and added, and must be the same."""
    if not isinstance(gradient, DeferredGradient):
        return gradient
    written, added = gradient.copy(), gradient.copy()
    added.fill(1)
    gradient.write_to(added, accumulate=True)
    is_sum = np.allclose(host(added), host(written) + 1, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert is_sum, "added, a gradient is another one"
    assert written.shape == gradient.shape and written.dtype == gradient.dtype
    return written


def rounded_inputs(name, arrays, dtype):
    """The arrays as they arrive at a kernel in this precision: activations in 16 bits."""
    if dtype == "float32":
        return arrays
    activations = ACTIVATIONS.get(name, (0,))
    return [a.astype(half_dtype(dtype)) if i in activations and is_float(a) else a for i, a in enumerate(arrays)]


def widened(arrays):
    return [a.astype(np.float64) if is_floats(a) else a for a in arrays]


def is_floats(value):
    return is_float(value) or (isinstance(value, np.ndarray) and is_half(value.dtype))


@contextlib.contextmanager
def work_on(cupy, reverse):
    """Within the block kernels run: those of the stand-in with their threads in this order, those of a GPU as it likes.
    Yields the list of the kernels, on a GPU also of products and cuDNN's plans, that were started."""
    if cupy is strict_cupy.cupy:
        with running(reverse=reverse) as started:
            yield started
        return
    started, multiply, run_plan = [], products._multiply, cudnn_plans.Plan.run

    class Functions(dict):
        def get(self, key):
            started.append(key[-1])
            return super().get(key)

    def counted(*args, **options):
        started.append("a product")
        multiply(*args, **options)

    def planned(plan, *args):
        started.append("a plan of cuDNN")
        run_plan(plan, *args)

    functions = Functions(launch._functions)
    with mock.patch.object(launch, "_functions", functions), mock.patch.object(products, "_multiply", counted):
        with mock.patch.object(cudnn_plans.Plan, "run", planned):
            yield started


def run_kernel(kernel, cupy, arrays, options, dtype, douts=None, reverse=False):
    """([results], [gradients]), float64 on the host, of the kernel's forward and backward; and what was started."""
    with in_precision(dtype), work_on(cupy, reverse) as launches:
        needs = list(map(is_floats, arrays))
        node = kernel(cupy, needs)
        with strict_cupy.no_sync():
            boxed = [on_device(cupy, a) for a in arrays]
            results = node.forward(*boxed, **{key: on_device(cupy, value) for key, value in options.items()})
            several = isinstance(results, tuple)
            results = results if several else (results,)
        if douts is None:
            return [host(r) for r in results], [r.dtype for r in results], launches
        boxed = tuple(cupy.asarray(d.astype(r.dtype)) for d, r in zip(douts, results))
        with strict_cupy.no_sync():
            gradients = node.backward(boxed if several else boxed[0])
        gradients = [host(settled(g)) if need else None for g, need in zip(gradients, needs)]
    return [host(r) for r in results], gradients, launches


def check_kernel(kernel, op, cupy, sample, dtype, orders=(False, True)):
    """Results and gradients are those of the reference in float64, in both orders, bit for bit the same in both.
    False, if the kernel leaves these arrays to the reference. What is zero except for rounding (everything cancels) is
    measured by the largest input value."""
    arrays = rounded_inputs(op.name, sample.arrays(np.float32), dtype)
    with in_precision(dtype):
        if not kernel.supports(*(on_device(cupy, a) for a in arrays)):
            return False
    results, dtypes, _ = run_kernel(kernel, cupy, arrays, sample.options, dtype, reverse=orders[0])
    kept = RESIDUALS.get(op.name, ())
    for i, found in enumerate(dtypes):
        assert found == (np.float32 if dtype == "float32" or i in kept else half_dtype(dtype)), f"result {i}: {found}"
    rng_douts = [cotangent(np.empty(r.shape, np.float32)) for r in results]
    douts = [d.astype(found).astype(np.float64) for d, found in zip(rng_douts, dtypes)]
    wide = widened(arrays)
    exact, _, exact_gradients = run(op, wide, sample.options, np.stack(douts) if len(douts) > 1 else douts[0])
    exact = list(exact) if stacked_is_several(op, wide, sample.options) else [exact]
    largest = max(np.abs(a).max(initial=0.0) for a in [*filter(is_floats, wide), *douts])
    first = None
    for reverse in orders:
        got, gradients, launches = run_kernel(kernel, cupy, arrays, sample.options, dtype, douts, reverse)
        computed = launches or (cupy is strict_cupy.cupy and fake_cublaslt.products_since_install())
        assert computed or op.name in VIEWS, "neither a kernel nor a product ran"
        for values, expected in zip([*got, *gradients], [*exact, *exact_gradients]):
            if expected is not None:
                assert values.shape == expected.shape
                size = largest if np.abs(expected).max(initial=0.0) < 1e-13 * largest else 0.0
                off = error(values, expected, size)
                assert off <= TOLERANCE[dtype], f"differs from the reference by {off:.1e}"
        if first is None:
            first = got, gradients
        for a, b in zip([*first[0], *first[1]], [*got, *gradients]):
            assert (a is None) == (b is None) and (a is None or np.array_equal(a, b))
    return True


def stacked_is_several(op, arrays, options):
    return stacked(op(np, [False] * len(arrays)).forward(*arrays, **options))[1]


def check_casts(cupy, dtype):
    """Casts to 16 bits and back give NumPy's bits: rounded to nearest, ties to even, NaN, infinities, subnormals."""
    bits = np.random.default_rng(0).integers(0, 2**32, 4003, dtype=np.uint32)
    bits[:2000] &= 0xFFFF8000  # ties of bfloat16
    bits[2000:3000] = (bits[2000:3000] & 0x8FFFFFFF) | 0x30000000  # of float16's size
    bits[3000:3500] &= 0xFFFFF000  # ties of float16
    bits[-9:-3] = 0x7F800001, 0xFF800000, 0x7F800000, 0x7FFFFFFF, 0x477FF000, 0x477FEFFF
    values = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(half_dtype(dtype))
    with running():
        got = cast(cupy, cupy.asarray(values), half_dtype(dtype)).get()
        back = cast(cupy, cupy.asarray(expected), np.float32).get()
    is_nan = np.isnan(values)
    assert np.isnan(got.astype(np.float32))[is_nan].all(), "casts lose NaN"
    wrong = got.view(np.uint16)[~is_nan] != expected.view(np.uint16)[~is_nan]
    assert not wrong.any(), f"casts of {values[~is_nan][wrong][:3]} are wrong"
    with np.errstate(invalid="ignore"):
        assert np.array_equal(back, expected.astype(np.float32), equal_nan=True), "casts back are wrong"


@contextlib.contextmanager
def planted(file, old, new):
    """Within the block a file (its name may lack .cu or .cuh) has a fault: the only place with the text `old` has `new`
    instead."""

    def faulty(name, read=launch._read):
        text = read(name)
        if file in (name, name.partition(".")[0]):
            assert text.count(old) == 1, f"{text.count(old)} places have {old!r}"
            text = text.replace(old, new)
        return text

    with mock.patch.object(launch, "_read", faulty), mock.patch.object(launch, "_functions", {}):
        forget()
        try:
            yield
        finally:
            forget()


def forget():
    launch.source.cache_clear()
    launch._module.cache_clear()
