"""gradcheck passes what is right and finds, and names, the classic mistakes."""

import numpy as np
import pytest

import ops
from tinygrad2 import Function, Tensor, apply, gradcheck
from tinygrad2.dispatch import OPS

R = np.random.default_rng(0).standard_normal


@pytest.fixture(autouse=True)
def forget_toy_ops():
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def check(forward, backward, *arrays):
    """gradcheck of a toy op made of two functions; forward also returns what to save."""

    class Toy(Function):
        def forward(self, *inputs):
            out, saved = forward(*inputs)
            self.save(*saved)
            return out

        def backward(self, dout):
            return backward(dout, *self.saved)

    return gradcheck(Toy, arrays)


def product(a, b):
    return a * b, (a, b)


def test_a_right_op_passes_and_the_report_says_so():
    report = gradcheck(lambda x, w: ops.softmax(x @ w), [R((3, 4)), R((4, 2))])
    assert report and report.ok
    assert str(report).splitlines()[0].endswith("PASS") and "input 1, shape (4, 2): ok" in str(report)
    assert all(i.error < 1e-9 for i in report.inputs)


def test_a_function_class_can_be_checked_itself():
    report = check(product, lambda d, a, b: (d * b, d * a), R((2, 3)), R((2, 3)))
    assert report and "gradcheck of toy" in str(report)


def test_integers_lists_and_none_are_passed_on():
    assert gradcheck(ops.embedding, [R((5, 2)), np.array([1, 4, 1])])
    assert gradcheck(ops.linear, [[[1.0, 2.0]], R((2, 3)), None])
    assert gradcheck(lambda x: x * 2, [Tensor([1.0, 2.0])])


def test_without_floating_point_inputs_nothing_is_checked():
    for inputs in ([np.array([1, 2])], [None], []):
        report = gradcheck(lambda *_: Tensor([1.0]), inputs)
        assert not report and "nothing was checked" in str(report)


def test_the_worst_element_is_shown_with_both_values():
    def backward(d, a):
        g = 2 * d * a
        g[1, 2] += 7
        return (g,)

    report = check(lambda a: (a * a, (a,)), backward, R((3, 4)))
    assert not report and "worst element [1][2]: analytic" in str(report) and "numeric" in str(report)
    wrong = report.inputs[0]
    assert wrong.analytic[1, 2] - wrong.numeric[1, 2] == pytest.approx(7)


def test_missing_sum_over_a_new_axis_is_named():
    report = check(product, lambda d, a, b: (d * b, d * a), R((3, 4)), R((4,)))
    assert not report and "summed over the broadcast axes" in str(report) and "(3, 4)" in str(report)


@pytest.mark.parametrize("pick", [lambda g: g[:, :1], lambda g: g[:, -1:], lambda g: g.mean(1, keepdims=True)])
def test_missing_sum_over_an_axis_of_size_one_is_named(pick):
    report = check(product, lambda d, a, b: (d * b, pick(d * a)), R((3, 4)), R((3, 1)))
    assert not report
    assert "broadcast along axis 1" in report.inputs[1].hint or "4 times too small" in report.inputs[1].hint


def test_missing_sum_over_a_new_axis_with_a_shape_that_looks_right_is_named():
    report = check(product, lambda d, a, b: (d * b, (d * a)[0]), R((3, 4)), R((4,)))
    assert "broadcast along axis 0" in report.inputs[1].hint


def test_sum_instead_of_mean_is_named():
    report = check(lambda a: (a.mean(0), (a,)), lambda d, a: (d + 0 * a,), R((5, 3)))
    assert "5 times too large" in report.inputs[0].hint and "mean" in report.inputs[0].hint


def test_mean_instead_of_sum_is_named():
    report = check(lambda a: (a.sum(0), (a,)), lambda d, a: ((d + 0 * a) / 5,), R((5, 3)))
    assert "5 times too small" in report.inputs[0].hint


def test_wrong_sign_is_named():
    assert "wrong sign" in check(lambda a: (-a, ()), lambda d: (d,), R((3,))).inputs[0].hint


def test_any_other_constant_factor_is_named():
    report = check(lambda a: (a * a, (a,)), lambda d, a: (0.7 * d * a,), R((4,)))
    assert "constant factor 0.35" in report.inputs[0].hint


def test_swapped_gradients_are_named():
    report = check(product, lambda d, a, b: (d * a, d * b), R((2, 3)), R((2, 3)))
    assert "swapped" in report.inputs[0].hint and "swapped" in report.inputs[1].hint


def test_a_transposed_gradient_is_named():
    report = check(lambda a, b: (a @ b, (a, b)), lambda d, a, b: ((d @ b.T).T, a.T @ d), R((3, 3)), R((3, 3)))
    assert "transpose" in report.inputs[0].hint and report.inputs[1].ok


def test_a_forgotten_gradient_is_named():
    report = check(product, lambda d, a, b: (d * b, 0 * d), R((3,)), R((3,)))
    assert "zero everywhere" in report.inputs[1].hint


def test_a_gradient_that_is_none_is_an_error_with_the_input_named():
    assert "gradient of input 1 has shape None" in str(check(product, lambda d, a, b: (d * b, None), R((3,)), R((3,))))


def test_not_finite_gradients_fail():
    report = check(lambda a: (a * a, (a,)), lambda d, a: (d * np.nan,), R((3,)))
    assert not report and "not finite" in report.inputs[0].hint


def test_random_functions_are_refused():
    rng = np.random.default_rng()
    assert "different results" in str(gradcheck(lambda x: x * rng.random(), [R((3,))]))


def test_an_op_that_writes_into_its_input_is_refused():
    def forward(a):
        a *= 2
        return a, ()

    assert not check(forward, lambda d: (2 * d,), R((3,)))


def test_all_ones_would_have_proved_nothing():
    """The rows of a softmax sum to one, so with a cotangent of ones the right gradient is zero, and so is this one."""
    report = check(lambda a: (np.exp(a) / np.exp(a).sum(-1, keepdims=True), (a,)), lambda d, a: (0 * a,), R((3, 4)))
    assert not report


def test_a_tiny_error_in_one_of_many_elements_is_found():
    def backward(d, a):
        g = 2 * d * a
        g[37] *= 1.001
        return (g,)

    assert not check(lambda a: (a * a, (a,)), backward, R((1000,)))


def test_large_inputs_are_checked_by_directions():
    assert gradcheck(lambda x: ops.gelu(x), [R((300, 100))])


def test_0_d_and_empty_inputs():
    assert gradcheck(lambda x: x * x, [np.float64(3.0)])
    assert gradcheck(lambda x: apply(OPS["sum"], x), [np.zeros((0, 3))])
