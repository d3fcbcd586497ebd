"""AdamW and the gradient's norm on the GPU, run on the CPU in both thread orders, against their references."""

import cuda_checks
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running

import ops.kernels.cuda  # noqa: F401
from tinygrad2.dispatch import kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.gpu.step_numbers import StepNumbers, adam_update_by_numbers, bias_corrections, decide_step
from tinygrad2.halves import cast_to_half, current_halves, half_dtype, half_of
from tinygrad2.module import Module, Parameter
from tinygrad2.optim import NORM_BLOCK, Adam, adam_update, block_square_sums, clip_scale, grad_norm, norm_of
from tinygrad2.writes import changed_since, last_write, wrote

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

ORDERS = pytest.mark.parametrize("reverse", [False, True])
DTYPES = ("bfloat16", "float16")


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


def state(n, seed=0):
    """p, g, m, v as a training has them, with some values far from the others."""
    rng = np.random.default_rng(seed)
    p, g, m = rng.standard_normal((3, n)).astype(np.float32)
    v = np.square(rng.standard_normal(n)).astype(np.float32)
    for array in (p, g, m, v):
        array[:: max(1, n // 7)] *= 1e-3
    return [0.1 * p, g, 0.1 * m, v]


def updated(cupy, arrays, *constants, half=None, reverse=False):
    """What the kernel makes of [p, g, m, v], and of `half`; on the host."""
    boxed = [cupy.asarray(a) for a in arrays]
    copies = [] if half is None else [cupy.empty(arrays[0].shape, dtype=half_dtype(half))]
    constants = [cupy.asarray(c) if isinstance(c, np.ndarray) else c for c in constants]
    with running(reverse=reverse) as launches, strict_cupy.no_sync():
        adam_update(*boxed, *constants, *copies)
    assert launches == ["adamw"] * bool(arrays[0].size)
    return [a.get() for a in boxed + copies]


@ORDERS
@pytest.mark.parametrize("n", [0, 1, 7, 8, 255, 2048, 5001])
@pytest.mark.parametrize("t, decay", [(1, 0.0), (1000, 0.1)])
def test_a_step_is_that_of_the_reference(n, t, decay, reverse, cupy):
    arrays = state(n)
    exact = [a.astype(np.float64) for a in arrays]
    with kernels("reference"):
        adam_update(*exact, 0.3, t, 1e-2, 0.9, 0.95, 1e-8, decay)
    got = updated(cupy, arrays, 0.3, t, 1e-2, 0.9, 0.95, 1e-8, decay, reverse=reverse)
    assert np.array_equal(got[1], arrays[1])
    for name, one, other in zip("pgmv", got, exact):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7, err_msg=name)


@ORDERS
@pytest.mark.parametrize("half", DTYPES)
@pytest.mark.parametrize("n", [5, 2048, 3003])
def test_the_copy_in_16_bits_is_the_new_parameters(n, half, reverse, cupy):
    constants = 1.0, 3, 1e-2, 0.9, 0.95, 1e-8, 0.1
    *got, copy = updated(cupy, state(n), *constants, half=half, reverse=reverse)
    assert np.array_equal(copy, got[0].astype(half_dtype(half)))
    for one, other in zip(got, updated(cupy, state(n), *constants)):
        assert one.tobytes() == other.tobytes()


@ORDERS
def test_the_factor_may_be_on_the_gpu(reverse, cupy):
    rest = 3, 1e-2, 0.9, 0.95, 1e-8, 0.1
    on_host = updated(cupy, state(300), 0.3, *rest)
    for dtype in (np.float32, np.float64):
        on_gpu = updated(cupy, state(300), np.asarray(0.3, dtype), *rest, reverse=reverse)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(on_host, on_gpu))


@ORDERS
def test_nothing_changes_if_the_factor_is_not_a_number(reverse, cupy):
    arrays = state(300)
    half = cupy.asarray(np.full(300, 7, np.float16))
    boxed = [cupy.asarray(a) for a in arrays]
    with running(reverse=reverse):
        adam_update(*boxed, cupy.asarray(np.float32(np.nan)), 3, 1e-2, 0.9, 0.95, 1e-8, 0.1, half)
    assert all(np.array_equal(box.get(), a) for box, a in zip(boxed, arrays)) and (half.get() == 7).all()


# -- by numbers of the GPU ---------------------------------------------------------------------------------------------


def numbers_of(cupy, **given):
    """The array of StepNumbers."""
    values = dict(RATE=1e-2, COUNT=1, SCALE=1, GOOD=0, IN_A_ROW=0, SKIPPED=0, STOPPED=0, FACTOR=0.3) | given
    return cupy.asarray(np.array(list(values.values()), np.float32))


@ORDERS
@pytest.mark.parametrize("half", [None, "float16"])
@pytest.mark.parametrize("t, skipped, missed", [(1, 0, 0), (7, 3, 2), (40, 0, 0), (5000, 1, 0)])
def test_numbers_of_the_gpu_are_those_of_a_launch(t, skipped, missed, half, reverse, cupy):
    """The same bits, also where t is behind the table's end."""
    rest, corrections = (0.9, 0.95, 1e-8, 0.1), cupy.asarray(bias_corrections((0.9, 0.95), 10**6))
    wanted = updated(cupy, state(300), 0.3, t, 1e-2, *rest, half=half)
    assert 300 < len(corrections) < 500
    for mode in ("auto", "reference"):
        boxed = [cupy.asarray(a) for a in state(300)]
        copies = [] if half is None else [cupy.empty(300, dtype=half_dtype(half))]
        numbers = numbers_of(cupy, COUNT=t + skipped + missed, SKIPPED=skipped)
        with running(reverse=reverse) as launches:
            with strict_cupy.no_sync() if mode == "auto" else kernels(mode):
                adam_update_by_numbers(*boxed, numbers, corrections, missed, *rest, *copies)
        assert launches == (["adamw"] if mode == "auto" else [])
        for got, expected in zip(boxed + copies, wanted, strict=True):
            assert mode == "reference" or got.get().tobytes() == expected.tobytes()
            np.testing.assert_allclose(got.get(), expected, rtol=2e-3 if got.dtype == np.float16 else 3e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_nothing_changes_if_the_factor_of_the_gpu_is_not_a_number(mode, cupy):
    boxed, corrections = [cupy.asarray(a) for a in state(300)], cupy.asarray(bias_corrections((0.9, 0.95), 9))
    with running(), kernels(mode):
        adam_update_by_numbers(*boxed, numbers_of(cupy, FACTOR=np.nan), corrections, 0, 0.9, 0.95, 1e-8, 0.1)
    assert all(np.array_equal(box.get(), a) for box, a in zip(boxed, state(300)))


def test_the_table_of_corrections_ends_where_all_are_1_or_the_training_does():
    table = bias_corrections((0.9, 0.95), 10**6)
    assert (table[-1] == 1).all() and (table[-2] != 1).any() and table.dtype == np.float32
    assert table[5, 1] == np.float32(1 / (1 - 0.95**5)) and len(bias_corrections((0.9, 0.999), 7)) == 8
    assert bias_corrections((0.0, 0.0), 7).tolist() == [[0, 0], [1, 1]]


VALUES = {  # losses and norm
    "as usual": (3.0, 2.5, 0.7), "to be clipped": (3.0, 7.0), "zero": (3.0, 0.0), "a norm of inf": (3.0, 2.0, np.inf),
    "a norm of nan": (3.0, np.nan), "a loss of inf": (3.0, np.inf, 1.0), "a loss of nan": (np.nan, 1.0),
    "both": (np.nan, np.nan), "losses of both signs": (np.inf, -np.inf, 1.0), "many": (*np.arange(70.0), 2.0),
    "the last of many": (*np.arange(95.0), np.inf, 2.0),  # in the last lane
}  # fmt: skip
STATES = ({}, dict(STOPPED=1), dict(SCALE=2.0**16, GOOD=1999), dict(SCALE=2.0**24, GOOD=1999, SKIPPED=3),
          dict(SCALE=1.0, IN_A_ROW=2, SKIPPED=2), dict(SCALE=2.0**10, IN_A_ROW=18), dict(SCALE=2.0**10, IN_A_ROW=19),
          dict(SCALE=2.0**10, GOOD=7, STOPPED=1))  # fmt: skip


@ORDERS
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_the_decision_about_a_step_is_that_of_the_reference(name, dynamic, reverse, cupy):
    values = np.array(VALUES[name], np.float32)
    for given in STATES if dynamic else STATES[:2]:
        for max_norm, micro_batches in ((1.0, 3), (0.0, 8), (1e-3, 5)):
            of_host = numbers_of(cupy, **given).get()
            scaled = values * np.where(np.arange(values.size) == values.size - 1, of_host[2], 1)
            of_gpu, args = cupy.asarray(of_host), (max_norm, micro_batches, dynamic)
            with running(reverse=reverse) as launches, strict_cupy.no_sync():
                decide_step(cupy.asarray(scaled.astype(np.float32)), of_gpu, *args)
            assert launches == ["decide_step"]
            with np.errstate(invalid="ignore"):
                decide_step(scaled.astype(np.float32), of_host, *args)
            assert np.array_equal(of_gpu.get(), of_host, equal_nan=True), (given, args)


def test_the_factor_is_that_of_a_step_that_waits(cupy):
    """To the last bit: norm and factor are divided by the scale, and by micro-batches, as in Trainer.step."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 2.0**16):
        for micro_batches in (1, 3, 8):
            norm = np.float32(rng.random() * 3) * np.float32(scale)
            numbers = numbers_of(cupy, SCALE=scale)
            with running():
                decide_step(cupy.asarray(np.array([1, norm], np.float32)), numbers, 1.0, micro_batches, scale > 1)
            host = float(clip_scale(np.float32(float(norm) / scale), 1.0) / micro_batches) / scale
            assert numbers.get()[-1] == np.float32(host)


def test_parts_that_begin_anywhere(cupy):
    """Addresses that are no multiples of 16 bytes."""
    arrays, constants = state(900), (1.0, 3, 1e-2, 0.9, 0.95, 1e-8, 0.1)
    wanted = updated(cupy, [a[3:700] for a in arrays], *constants)
    boxed = [cupy.asarray(a) for a in arrays]
    half = cupy.asarray(np.zeros(900, half_dtype("bfloat16")))
    with running():
        adam_update(*(box[3:700] for box in boxed), *constants, half[3:700])
    for box, array, part in zip(boxed, arrays, wanted):
        assert np.array_equal(box.get()[3:700], part)
        assert np.array_equal(np.delete(box.get(), range(3, 700)), np.delete(array, range(3, 700)))
    assert np.array_equal(half.get()[3:700], wanted[0].astype(half.dtype)) and not half.get()[700:].any()


def test_several_steps_stay_near_float64(cupy):
    p, g, m, v = (cupy.asarray(a) for a in state(100))
    exact = [a.astype(np.float64) for a in state(100)]
    for t in range(1, 41):
        grad = np.random.default_rng(t).standard_normal(100).astype(np.float32)
        with running(check=False):
            adam_update(p, cupy.asarray(grad), m, v, 0.5, t, 1e-2, 0.9, 0.95, 1e-8, 0.1)
        exact[1] = grad.astype(np.float64)
        with kernels("reference"):
            adam_update(*exact, 0.5, t, 1e-2, 0.9, 0.95, 1e-8, 0.1)
    np.testing.assert_allclose(p.get(), exact[0], rtol=1e-5, atol=1e-6)


# -- the norm ----------------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("n", [1, 77, NORM_BLOCK, NORM_BLOCK + 3, 3 * NORM_BLOCK - 5])
def test_the_sums_of_squares_are_those_of_the_blocks(n, reverse, cupy):
    grad = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    with running(reverse=reverse, check=n < 2 * NORM_BLOCK) as launches, strict_cupy.no_sync():
        sums = block_square_sums(cupy.asarray(grad))
        norm = grad_norm(cupy.asarray(grad))
    assert launches == ["square_sums", "square_sums", "norm_of"]
    wide = grad.astype(np.float64)
    exact = [(wide[i : i + NORM_BLOCK] ** 2).sum() for i in range(0, n, NORM_BLOCK)]
    assert sums.dtype == np.float64 and norm.dtype == np.float32 and norm.shape == ()
    np.testing.assert_allclose(sums.get(), exact, rtol=1e-6)
    np.testing.assert_allclose(norm.get(), np.sqrt(np.sum(exact)), rtol=1e-6)


def test_parts_of_a_gradient_have_the_sums_of_the_whole(cupy):
    """Bit for bit, so that ranks which have a part each (--zero 1) agree; and in both orders; from any address."""
    grad = cupy.asarray(np.random.default_rng(0).standard_normal(2 * NORM_BLOCK + 9).astype(np.float32))
    with running(check=False):
        whole = block_square_sums(grad).get()
        parts = [block_square_sums(grad[i : i + NORM_BLOCK]).get() for i in range(0, grad.size, NORM_BLOCK)]
        shifted = cupy.empty(grad.size + 1, dtype=np.float32)
        shifted[1:] = grad
        anywhere = block_square_sums(shifted[1:]).get()
    with running(check=False, reverse=True):
        again = block_square_sums(grad).get()
    assert whole.tobytes() == np.concatenate(parts).tobytes() == again.tobytes() == anywhere.tobytes()


@ORDERS
def test_many_sums(reverse, cupy):
    sums = np.random.default_rng(0).random(1500)
    with running(reverse=reverse):
        norm = norm_of(cupy.asarray(sums), np.dtype(np.float32))
    np.testing.assert_allclose(norm.get(), np.sqrt(sums.sum()), rtol=1e-7)


@pytest.mark.parametrize("value", [np.inf, np.nan, -np.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(value, cupy):
    grad = np.ones(NORM_BLOCK + 100, np.float32)
    grad[NORM_BLOCK + 50] = value
    with running(check=False):
        assert not np.isfinite(grad_norm(cupy.asarray(grad)).get())
        grad[NORM_BLOCK + 50] = 1
        assert grad_norm(cupy.asarray(grad)).get() == pytest.approx(np.sqrt(grad.size))


# -- casts -------------------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("half", DTYPES)
@pytest.mark.parametrize("start, n", [(0, 1), (0, 2048), (0, 5003), (3, 4000)])
def test_casts_round_to_nearest(start, n, half, reverse, cupy):
    values = np.random.default_rng(0).standard_normal(start + n).astype(np.float32)
    values[start : start + 5] = [np.inf, np.nan, 1 + 2**-9, 1e-8, -0.0][:n]
    out = cupy.asarray(np.zeros(start + n, half_dtype(half)))
    with running(reverse=reverse) as launches, strict_cupy.no_sync():
        cast_to_half(cupy.asarray(values)[start:], out[start:])
    assert launches == ["cast_to_half"] and not out.get()[:start].any()
    got, wanted = (array.astype(np.float32) for array in (out.get()[start:], values[start:].astype(out.dtype)))
    np.testing.assert_array_equal(got, wanted)
    assert np.array_equal(np.signbit(got[4:5]), np.signbit(wanted[4:5]))


# -- planted faults ----------------------------------------------------------------------------------------------------

FAULTS = {
    "the last elements of a block": ("norm", "i < last; i += blockDim", "i + 8 <= last; i += blockDim", None),
    "blocks overlap": ("norm", "blockIdx.x * (size_t)NORM_BLOCK,", "blockIdx.x * (size_t)NORM_BLOCK / 2,", None),
    "the barrier of the sum": ("norm", "    __syncthreads();\n    double", "    double", "race|nothing has"),
    "no decay": ("adam", " + decay * p_[i])", ")", None),
    "the moments of before": ("adam", "m_[i] * unbias1", "(m_[i] - gain1 * grad) * unbias1", None),
    "an unscaled gradient": ("adam", "float grad = g_[i] * by", "float grad = g_[i]", None),
    "elements behind the end": ("elements", "if (first + i < n) set", "set", "beyond the end|outside"),
    "steps that are left out": ("adam", "(int)(numbers[COUNT] - numbers[SKIPPED])", "(int)numbers[COUNT]", None),
    "the end of the table": ("adam", "min((int)", "max((int)", None),
    "one more overflow": ("decide", "+ 1 < most_skipped", "< most_skipped", None),
    "the last losses": ("decide", "i < n; i += 32", "i < 32; i += 32", "outside|beyond the end"),
}  # fmt: skip


@ORDERS
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, reverse, cupy):
    file, old, new, message = FAULTS[fault]
    with cuda_checks.planted(file, old, new), pytest.raises(AssertionError, match=message):
        if fault in ("steps that are left out", "the end of the table"):
            test_numbers_of_the_gpu_are_those_of_a_launch(7, 3, 2, None, reverse, cupy)
        elif file == "decide":
            test_the_decision_about_a_step_is_that_of_the_reference("a norm of inf", True, reverse, cupy)
        elif file == "norm":
            test_the_sums_of_squares_are_those_of_the_blocks(NORM_BLOCK + 3, reverse, cupy)
        else:
            test_a_step_is_that_of_the_reference(7, 1000, 0.1, reverse, cupy)


# -- the optimizer -----------------------------------------------------------------------------------------------------


class Net(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.matrix = Parameter(rng.standard_normal((30, 20)).astype(np.float32))
        self.frozen = Parameter(rng.standard_normal((5, 5)).astype(np.float32))
        self.bias = Parameter(rng.standard_normal(20).astype(np.float32))


@pytest.mark.parametrize("half", DTYPES)
def test_the_optimizer_keeps_the_copy_of_the_weights_up_to_date(half, cupy):
    flat = FlatBuffers(Net(), "cuda")
    flat.freeze({"frozen"})
    optimizer, dtype = Adam(flat, weight_decay=0.1), half_dtype(half)
    copy = half_of(flat.parameters[0].data, dtype)
    for step in range(3):
        flat.grad = cupy.asarray(np.random.default_rng(step).standard_normal(flat.size).astype(np.float32))
        before = flat.data.get()
        with running() as launches, strict_cupy.no_sync():
            optimizer.step(1e-2, clip_scale(grad_norm(flat.grad), 1.0))
            assert half_of(flat.parameters[0].data, dtype) is copy                 # and no cast
        assert launches == ["square_sums", "norm_of", "adamw", "adamw"]
        assert (flat.data.get() != before).sum() == 640                       # the gaps behind them, too
        assert np.array_equal(half_of(flat.data, dtype).get(), flat.data.get().astype(dtype))
    assert len(current_halves(flat.data)) == 1
    flat.parameters[0].data[0, 0] = 5
    wrote(flat.parameters[0].data)
    assert current_halves(flat.data) == [] and half_of(flat.data, dtype)[0].get() == 5


def test_an_update_that_was_started_is_a_write_to_the_weights(cupy):
    """Also one by a CUDA graph: backward of what was computed before it is refused."""
    optimizer, before = Adam(FlatBuffers(Net(), "cuda")), last_write()
    StepNumbers(optimizer, 9).note_update()
    weights = [parameter.data for parameter in optimizer.flat.parameters]
    assert optimizer.t == 1 and all(changed_since(array, before) for array in weights)


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_without_a_kernel_the_copy_is_cast(mode, cupy):
    """Also on the CPU, whose kernel knows no copies."""
    for device in ("cpu", "cuda"):
        flat = FlatBuffers(Net(), device)
        half_of(flat.data, np.dtype(np.float16))
        flat.grad = flat.data.copy()
        with kernels(mode), running():
            Adam(flat).step(1e-2)
        (copy,) = current_halves(flat.data)
        copy, data = (copy, flat.data) if device == "cpu" else (copy.get(), flat.data.get())
        assert np.array_equal(copy, data.astype(np.float16))
