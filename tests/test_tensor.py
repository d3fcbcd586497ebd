"""The graph: what is recorded, how gradients walk back, what is freed when, and what is refused."""

import contextlib
import tracemalloc
import weakref

import numpy as np
import pytest

import ops
from tinygrad2 import Function, Tensor, apply, no_grad
from tinygrad2.autograd import count_uses
from tinygrad2.dispatch import OPS
from tinygrad2.function import observe
from tinygrad2.module import Module, Parameter


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


# -- what a Tensor is ------------------------------------------------------------------------------------------------


def test_lists_and_floats_become_float32_and_arrays_keep_their_dtype():
    assert Tensor([1.0, 2]).dtype == Tensor(0.5).dtype == np.float32
    assert Tensor(np.zeros(2)).dtype == Tensor(np.float64(1)).dtype == np.float64
    assert Tensor([1, 2]).dtype == np.int64 and Tensor([1], dtype="float32").dtype == np.float32


def test_attributes():
    x = Tensor(np.zeros((2, 3), np.float32), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.device, len(x), x.grad) == ((2, 3), 2, 6, "cpu", 2, None)
    assert "float32" in repr(x) and "requires_grad=True" in repr(x)
    assert Tensor([[4.0]]).item() == 4.0


def test_integers_cannot_require_a_gradient():
    with pytest.raises(TypeError, match="int64 Tensor cannot require a gradient"):
        Tensor([1, 2], requires_grad=True)


# -- arithmetic ------------------------------------------------------------------------------------------------------


def test_every_operator_and_its_reflected_form():
    a, b = np.array([[1.5, 2.0], [3.0, 0.5]]), np.array([2.0, 4.0])
    x, y = Tensor(a), Tensor(b)
    pairs = [
        (x + y, a + b), (x + 2, a + 2), (2 + x, 2 + a), (b + x, b + a),
        (x - y, a - b), (x - 2, a - 2), (2 - x, 2 - a), (b - x, b - a),
        (x * y, a * b), (x * 2, a * 2), (2 * x, 2 * a), (b * x, b * a),
        (x / y, a / b), (x / 2, a / 2), (2 / x, 2 / a), (b / x, b / a),
        (x**y, a**b), (x**2, a**2), (2**x, 2**a), (b**x, b**a),
        (x @ y, a @ b), (a @ y, a @ b), (x @ b, a @ b), (-x, -a),
        (x[0], a[0]), (x[:, 1:], a[:, 1:]), (x.T, a.T), (x.exp(), np.exp(a)), (x.log(), np.log(a)),
        (x.sum(), a.sum()), (x.sum(0), a.sum(0)), (x.mean(1, keepdims=True), a.mean(1, keepdims=True)),
        (x.reshape(4), a.reshape(4)), (x.reshape((1, -1)), a.reshape(1, -1)), (x.transpose(1, 0), a.transpose(1, 0)),
    ]  # fmt: skip
    for got, expected in pairs:
        assert isinstance(got, Tensor) and np.allclose(got.numpy(), expected)


def test_numpy_scalars_do_not_widen():
    assert (Tensor([1.0]) * np.float64(3)).dtype == np.float32
    assert (np.float64(3) * Tensor([1.0])).dtype == np.float32


def test_mixed_dtypes_are_refused_with_op_and_operands():
    operands = r"mul: .* \(1: float32 \(1,\) on cpu, 2: float64 \(1,\) on cpu\)"
    with pytest.raises(TypeError, match=operands + r"; convert operand 2: x.astype\('float32'\)"):
        Tensor([1.0]) * Tensor(np.ones(1))


def test_an_op_that_widens_is_caught():
    class Widen(Function):
        def forward(self, x):
            return x * np.float64(2)

    with pytest.raises(TypeError, match="widen: float32 in, float64 out"):
        apply(Widen, Tensor([1.0]))
    del OPS["widen"]


def test_a_missing_op_says_what_to_do():
    with pytest.raises(KeyError, match="no op called 'frobnicate'"):
        OPS["frobnicate"]


# -- backward --------------------------------------------------------------------------------------------------------


def test_shared_nodes_get_the_sum_of_all_uses():
    """micrograd's classic: c is used by many, and by itself."""
    x = leaf(3)
    c = x * x  # dc/dx = 2x
    c = c + c + c * x  # 2x^2 + x^3
    (c * c).sum().backward()
    v = x.numpy()
    f, df = 2 * v**2 + v**3, 4 * v + 3 * v**2
    assert np.allclose(x.grad, 2 * f * df)


def test_a_diamond_of_diamonds_is_walked_once_per_node():
    calls = []

    class Count(Function):
        def forward(self, x):
            return x + 0

        def backward(self, dout):
            calls.append(1)
            return (dout,)

    x = leaf(2)
    y = x
    for _ in range(30):  # 2^30 paths
        y = apply(Count, y)
        y = y + y
    y.sum().backward()
    assert len(calls) == 30 and np.allclose(x.grad, 2.0**30)
    del OPS["count"]


def test_gradients_accumulate_in_leaves():
    x = leaf(3)
    (x * 2).sum().backward()
    (x * 3).sum().backward()
    assert np.allclose(x.grad, 5)


def test_the_gradient_of_a_number_is_an_array_and_can_be_set_to_zero():
    x = Tensor(2.0, requires_grad=True)
    (x * x).backward()
    assert type(x.grad) is np.ndarray and x.grad == 4
    x.zero_grad()
    assert x.grad == 0


def test_a_leaf_gradient_does_not_alias_what_it_was_given():
    x = leaf(3)
    seed = np.ones(3)
    (x + 0).backward(seed)
    x.grad += 1
    assert np.all(seed == 1)


def test_the_first_gradient_is_only_borrowed():
    """Both inputs of an addition get the same array; adding to one must not change the other."""
    x, y = leaf(3), leaf(3, seed=1)
    a, b = x * 1, y * 1
    out = (a + b) + a * 10 + a * 100
    out.sum().backward()
    assert np.allclose(x.grad, 111) and np.allclose(y.grad, 1)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_many_uses_add_up_for_numbers_as_for_arrays(shape):
    x = leaf(*shape)
    y = x * 1
    (y + y * 10 + y * 100 + y * 1000).sum().backward()
    assert np.allclose(x.grad, 1111)


def test_a_gradient_of_another_dtype_is_refused():
    class Widen(Function):
        def forward(self, x):
            return x + 0

        def backward(self, dout):
            return (dout.astype(np.float64),)

    with pytest.raises(TypeError, match="widen.backward: the gradient of input 0 is float64, the input float32"):
        apply(Widen, Tensor([1.0], requires_grad=True)).backward(np.ones(1, np.float32))
    del OPS["widen"]


def test_5000_nodes_deep():
    x = leaf(2)
    y = x
    for _ in range(5000):
        y = y + 1
    y.sum().backward()
    assert np.all(x.grad == 1)


def test_a_deep_graph_that_is_never_walked_goes_quietly():
    y = leaf(2)
    for _ in range(100_000):
        y = y + 1
    del y


def test_second_backward_is_refused_with_the_reason():
    x = leaf(3)
    y = (x * x).sum()
    y.backward()
    grad = x.grad.copy()
    with pytest.raises(RuntimeError, match="already called through this .*freed"):
        y.backward()
    assert np.array_equal(x.grad, grad)


def test_second_backward_through_a_shared_trunk_is_refused_before_any_gradient_is_added():
    x = leaf(3)
    trunk = x * x
    one, two = trunk.sum(), (trunk * 2).sum()
    one.backward()
    grad = x.grad.copy()
    with pytest.raises(RuntimeError, match="add them first"):
        (two + x.sum()).backward()
    assert np.array_equal(x.grad, grad)


def test_backward_needs_a_number_or_a_gradient():
    x = leaf(3)
    with pytest.raises(RuntimeError, match=r"shape \(3,\) needs the gradient to start from"):
        (x * x).backward()
    with pytest.raises(ValueError, match="the gradient is float64"):
        (x * x).backward(np.ones(4))
    with pytest.raises(RuntimeError, match="does not depend on anything"):
        Tensor([1.0]).backward()


def test_a_leaf_may_be_its_own_end():
    x = Tensor([2.0], requires_grad=True)
    x.backward()
    assert x.grad == 1


def test_a_gradient_of_the_wrong_shape_names_op_input_and_cure():
    class NoSum(Function):
        def forward(self, a, b):
            return a + b

        def backward(self, dout):
            return dout, dout

    with pytest.raises(ValueError, match=r"nosum.backward: .* 1 has shape \(2, 3\), the input has \(3,\).*summed"):
        apply(NoSum, leaf(2, 3), leaf(3)).sum().backward()
    del OPS["nosum"]


def test_too_few_gradients_are_refused():
    class OneOfTwo(Function):
        def forward(self, a, b):
            return a + b

        def backward(self, dout):
            return (dout,)

    with pytest.raises(ValueError, match="returned 1 gradients for 2 inputs"):
        apply(OneOfTwo, leaf(2), leaf(2)).sum().backward()
    del OPS["oneoftwo"]


def test_no_grad_records_nothing_and_ends_with_its_block():
    x = leaf(3)
    with no_grad():
        assert not (x * x).requires_grad
    assert (x * x).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert (x * x).requires_grad


def test_detach_cuts_the_graph():
    x = leaf(3)
    assert not (x * x).detach().requires_grad


def test_constants_get_no_gradient():
    x, c = leaf(3), Tensor(np.ones(3))
    (x * c).sum().backward()
    assert c.grad is None and x.grad is not None


# -- memory: by reference count alone --------------------------------------------------------------------------------


def test_dropping_a_result_frees_its_graph_at_once(no_collector):
    x = leaf(3)
    y = ops.softmax(x * x + 1)
    tensor, node = weakref.ref(y), weakref.ref(y.node)
    del y
    assert tensor() is None and node() is None


def test_backward_frees_nodes_and_saved_arrays_as_it_passes(no_collector):
    x = leaf(3)
    alive = []

    class Spy(Function):
        def forward(self, x):
            self.save(x)
            return x + 0

        def backward(self, dout):
            alive.append(sum(ref() is not None for ref in later))
            return (dout,)

    first = apply(Spy, x)
    later = []
    y = first
    for _ in range(10):
        y = y * 2
        later.append(weakref.ref(y.node))
    loss = y.sum()
    del y
    loss.backward()
    # When the first op's turn comes, the ten after it are gone, but for the one whose turn was just before.
    assert alive[0] <= 1
    del OPS["spy"]


def test_an_intermediate_array_that_no_op_saved_is_freed_in_the_forward_pass(no_collector):
    x = leaf(1000, 1000)
    tracemalloc.start()
    y = x
    for _ in range(10):
        y = y + 1  # addition saves shapes only
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1.5 * x.data.nbytes
    y.sum().backward()


def test_memory_is_flat_over_200_steps_without_the_collector(no_collector):
    w = leaf(64, 64)
    x = Tensor(np.ones((32, 64)))

    def step():
        w.grad = None
        ops.gelu(ops.layernorm(x @ w, Tensor(np.ones(64)))).mean().backward()

    for _ in range(5):
        step()
    tracemalloc.start()
    step()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(200):
        step()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 50_000  # one array kept per step would be 3 million


def test_observers_stack():
    """An inner `observe` does not switch off the outer one, and both end with their blocks."""

    class Log:
        def __init__(self):
            self.calls = []

        @contextlib.contextmanager
        def inside(self, module):
            self.calls.append("inside")
            yield

        def before(self, node):
            self.calls.append(f"before {node.name}")

        def after_forward(self, node, arrays, results):
            self.calls.append(f"forward {node.name}")

        def after_backward(self, node, dout, dinputs):
            self.calls.append(f"backward {node.name}")

        def after_leaf(self, node, i, leaf, gradient):
            self.calls.append(f"leaf {i}")

    class Double(Module):
        def forward(self, x):
            return x * 2

    outer, inner = Log(), Log()
    with observe(outer):
        with observe(inner):
            out = Double()(leaf(3)).sum()
        out.backward()
    Double()(leaf(3)).sum().backward()
    assert inner.calls == ["inside", "before mul", "forward mul", "before sum", "forward sum"]
    backward = ["before sum", "backward sum", "before mul", "backward mul", "leaf 0"]
    assert outer.calls == [*inner.calls, *backward]


def test_uses_are_counted():
    x = leaf(3)
    a = x * x
    out = a + a * a
    uses = count_uses(out.node)
    assert uses[a.node] == 3 and len(uses) == 2


def test_what_people_type_from_habit_works_or_is_named():
    x = Tensor(np.arange(3, dtype=np.float32), requires_grad=True)
    assert x.reshape(shape=(3, 1)).shape == (3, 1)
    with pytest.raises(TypeError, match=r"reshape\(\) has no keyword 'axis'; it has none"):
        x.reshape(3, axis=1)
    with pytest.raises(TypeError, match="no keyword 'retain_graph': it frees the graph, so compute the loss again"):
        x.sum().backward(retain_graph=True)

    @no_grad
    def double(value):
        return value * 2

    assert not double(x).requires_grad and (x * 2).requires_grad
    p = Parameter([1.0, 2.0])
    with pytest.raises(TypeError, match=r"the gradient of this parameter is an array, float32 \(2,\), or None"):
        p.grad = [1.0, 2.0]
    p.grad = np.ones(2, np.float32)
    p.grad = None
