"""A Tensor as people use it who know NumPy or PyTorch: comparisons, truth, conversions, updates in place, keywords, and
messages where something is missing."""

import copy
import io
import math
import operator
import pickle

import numpy as np
import pytest

import ops
from models import GPT, GPTConfig
from tinygrad2 import Module, Parameter, Tensor, no_grad
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.missing import _ADVICE, _OPS
from tinygrad2.optim import Adam


def leaf(values, dtype=np.float32):
    return Tensor(np.array(values, dtype), requires_grad=True)


# -- comparisons and truth -------------------------------------------------------------------------------------------

RELATIONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("relation", RELATIONS)
def test_comparisons_are_elementwise(relation):
    a, b = np.array([[1.0, 2.0], [3.0, np.nan]], np.float32), np.array([2.0, 2.0], np.float32)
    for x, y in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b)), (leaf(a), Tensor(b))):
        out = relation(x, y)
        assert isinstance(out, Tensor) and out.dtype == bool and not out.requires_grad
        assert np.array_equal(out.numpy(), relation(a, b))
    assert np.array_equal(relation(Tensor(a), 2.0).numpy(), relation(a, 2.0))
    assert np.array_equal(relation(2, Tensor(a)).numpy(), relation(2, a))
    assert np.array_equal(relation(np.float64(2), Tensor(a)).numpy(), relation(2, a))


def test_floats_of_different_dtypes_can_be_compared():
    assert (Tensor([0.5, 0.1]) == np.array([0.5, 0.1])).tolist() == [True, False]  # 0.1 in float32 is another number


def test_what_is_no_number_is_not_equal():
    x = Tensor([1.0, 2.0])
    assert (x == None) is False and (x != None) is True and (x == "x") is False  # noqa: E711
    with pytest.raises(TypeError):
        _ = x < "x"


def test_a_mask_selects_and_its_gradient_goes_where_it_selected():
    x = leaf([1.0, 2.0, 3.0])
    assert x[x == 2].tolist() == [2.0] and x[x != 2].shape == (2,)
    x[x > 1].sum().backward()
    assert x.grad.tolist() == [0, 1, 1]


def test_masks_combine():
    x = Tensor([1.0, 2.0, 3.0, 4.0])
    assert ((x > 1) & (x < 4)).tolist() == [False, True, True, False]
    assert ((x < 2) | ~(x < 4)).tolist() == [True, False, False, True]
    assert ((x > 1) ^ (x > 3)).tolist() == [False, True, True, False]
    assert (np.array([True, False, True, False]) & (x > 1)).tolist() == [False, False, True, False]
    assert (~Tensor([0, 5])).tolist() == [-1, -6] and (Tensor([6]) & 3).tolist() == [2]
    with pytest.raises(TypeError, match=r"masks and integers, not float32; compare first"):
        x & (x > 1)


def test_the_truth_of_one_element_and_of_several():
    assert bool(Tensor([0.0])) is False and bool(Tensor(2.0)) is True and not (Tensor(1.0) == 2)
    with pytest.raises(ValueError, match=r"shape \(2,\) is neither true nor false: x.any\(\) and x.all\(\)"):
        bool(Tensor([0.0, 0.0]))
    with pytest.raises(ValueError, match="neither true nor false"):
        bool(Tensor([]))
    assert (Tensor([1.0, 2.0]) > 0).all() and not (Tensor([1.0, 2.0]) > 1).all() and (Tensor([1.0, 2.0]) > 1).any()


def test_a_value_is_in_a_tensor_if_an_element_equals_it():
    assert 3.0 in Tensor([[1.0, 3.0]]) and 4 not in Tensor([1, 2]) and np.float64(2) in Tensor([2.0])


def test_tensors_are_keys_each_its_own():
    x, y = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    table = {x: "x", y: "y"}
    assert table[x] == "x" and table[y] == "y" and len({x, y, x}) == 2 and hash(x) != hash(y)


# -- to Python ---------------------------------------------------------------------------------------------------------


def test_one_element_is_a_number():
    x = leaf([[2.75]])
    assert (float(x), int(x), round(x, 1), round(x), x.item(), math.floor(x)) == (2.75, 2, 2.8, 3, 2.75, 2)
    assert f"{x.sum():.3f}" == "2.750" and f"{x:.1f}" == "2.8" and f"{x.sum()}" == "2.75"
    assert f"{Tensor(7):>3d}" == "  7" and str(Tensor(7)) == "Tensor(7, dtype=int64)"
    assert range(5)[Tensor(3)] == 3 and [10, 20, 30][Tensor([2])[0]] == 30
    with pytest.raises(TypeError, match=r"use np.round\(x.numpy\(\), digits\)"):
        round(Tensor([1.0, 2.0]))
    for convert in (float, int, Tensor.item):
        with pytest.raises(ValueError, match=r"shape \(2,\): only one element is one number"):
            convert(Tensor([1.0, 2.0]))
    with pytest.raises(TypeError, match="only one integer is an index, not a float32 Tensor"):
        operator.index(Tensor(1.0))
    with pytest.raises(TypeError, match=r"shape \(2,\) has no format '.2f'"):
        f"{Tensor([1.0, 2.0]):.2f}"
    assert f"{Tensor([1.0, 2.0])}" == repr(Tensor([1.0, 2.0]))


def test_a_tensor_is_iterated_over_by_its_first_axis():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    first, second = x
    (first * 2 + second).sum().backward()
    assert x.grad.tolist() == [[2, 2], [1, 1]] and len(list(zip(x, x))) == 2 and len(x) == 2
    for call in (list, len):
        with pytest.raises(TypeError, match="Tensor without axes"):
            call(Tensor(3.0))


def test_lists_shapes_and_copies():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]] and (x.nbytes, x.size, x.ndim) == (16, 4, 2)
    copied = x.clone()
    (copied * 3).sum().backward()
    assert np.all(x.grad == 3) and not np.shares_memory(copied.data, x.data)
    assert not x.detach().requires_grad and x.copy().requires_grad
    twin = copy.deepcopy(x)
    assert twin.tolist() == x.tolist() and not np.shares_memory(twin.data, x.data)


# -- to and from NumPy -------------------------------------------------------------------------------------------------


def test_numpy_gets_numbers():
    x = leaf([1.0, 2.0])
    assert np.asarray(x) is x.data and np.array(x).dtype == np.float32 and not np.shares_memory(np.array(x), x.data)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64 and np.asarray(Tensor(1.5)).shape == ()
    assert np.stack([x, x]).dtype == np.float32 and np.concatenate([x, x.numpy()]).tolist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="by a copy only"):
        np.array(x, dtype=np.float64, copy=False)
    file = io.BytesIO()
    np.save(file, x)
    file.seek(0)
    assert np.load(file, allow_pickle=False).tolist() == [1, 2]
    assert np.arange(5)[Tensor([0, 3])].tolist() == [0, 3] and np.arange(2)[Tensor([True, False])].tolist() == [0]
    np.testing.assert_allclose(x, [1, 2])


UFUNCS = {
    np.exp: np.exp, np.log: np.log, np.sqrt: np.sqrt, np.tanh: np.tanh, np.sin: np.cos, np.negative: None,
    np.abs: None, np.square: None, np.cos: None,
}  # fmt: skip


@pytest.mark.parametrize("ufunc", UFUNCS, ids=lambda ufunc: ufunc.__name__)
def test_functions_of_numpy_run_the_op_of_that_name(ufunc):
    x = leaf([0.5, 1.5], np.float64)
    out = ufunc(x)
    out.sum().backward()
    h = 1e-6
    assert np.allclose(out.numpy(), ufunc(x.data))
    assert np.allclose(x.grad, (ufunc(x.data + h) - ufunc(x.data - h)) / (2 * h), rtol=1e-6)


BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul, np.maximum]


@pytest.mark.parametrize("operate", BINARY, ids=lambda operate: operate.__name__)
def test_arrays_and_numpy_scalars_on_the_left(operate):
    a = np.array([[1.5, 2.0], [3.0, 0.5]], np.float32)
    x = leaf([[1.0, 3.0], [2.0, 2.0]])
    out = operate(a, x)
    out.sum().backward()
    assert isinstance(out, Tensor) and np.allclose(out.numpy(), operate(a, x.data)) and x.grad is not None
    if operate is not operator.matmul:
        scaled = operate(np.float64(2), x)
        assert scaled.dtype == np.float32 and scaled.requires_grad and np.allclose(scaled.numpy(), operate(2.0, x.data))


def test_other_libraries_get_the_memory():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = Tensor([1.0, 2.0])
    shared = torch.from_dlpack(x)
    shared += 1
    assert x.tolist() == [2, 3] and torch.tensor(x).tolist() == [2, 3]
    assert Tensor(torch.ones(2)).dtype == np.float32 and x[torch.tensor([1])].tolist() == [3]


def test_functions_that_numpy_hands_on_to_methods():
    x = leaf([[1.0, 3.0], [5.0, 7.0]])
    for function in (np.sum, np.mean, np.max, np.min, np.std, np.var, np.argmax, np.cumsum, np.any, np.squeeze):
        assert np.allclose(function(x).numpy(), function(x.data)), function
    assert np.sum(x, axis=0, keepdims=True).requires_grad and np.var(x, axis=1).tolist() == [1, 1]
    assert np.clip(x, 2, 6).tolist() == [[2, 3], [5, 6]] and np.reshape(x, (4,)).shape == (4,)
    assert np.transpose(x).tolist() == [[1, 5], [3, 7]]


def test_functions_without_an_op_lose_no_gradient_silently():
    x = leaf([1.5, -2.5])
    assert np.isnan(x).tolist() == [False, False] and np.floor(x.detach()).tolist() == [1, -3]
    with pytest.raises(TypeError, match=r"np.floor would lose the gradient: x.detach\(\)"):
        np.floor(x)
    with no_grad():
        assert np.floor(x).tolist() == [1, -3]
    with pytest.raises(TypeError, match="np.add.reduce takes no Tensor"):
        np.add.reduce(x)


def test_an_array_is_updated_by_a_tensor():
    total, alias = (a := np.ones(2, np.float32)), a
    total += Tensor([1.0, 2.0])
    assert total is alias and alias.tolist() == [2, 3]
    with pytest.raises(TypeError, match="would lose the gradient"):
        total += leaf([1.0, 2.0])
    assert alias.tolist() == [2, 3]
    with pytest.raises(TypeError, match="within no_grad"):
        np.add(total, 1, out=Tensor([1.0, 2.0]))


def test_what_becomes_a_tensor_and_what_does_not():
    assert Tensor([Tensor([1.0]), Tensor([2.0])]).tolist() == [[1], [2]]
    assert Tensor(range(3)).dtype == np.int64 and Tensor((1.0, 2)).dtype == np.float32
    assert type(Tensor(np.ones((2, 2)).view(np.matrix)).data) is np.ndarray
    with pytest.raises(TypeError, match="use ops.stack"):
        Tensor([leaf([1.0]), Tensor([2.0])])
    with no_grad():
        assert Tensor([leaf([1.0])]).tolist() == [[1]]
    for data, word in (
        ("abc", "tokenizer"), ([1.0, None], "numbers only"), ({1, 2}, "numbers only"), ([1j], "real"),
        (np.array(["2020"], "M8[D]"), "convert"), (np.ma.masked_array([1.0], [True]), "filled"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=word):
            Tensor(data)
    with pytest.raises(ValueError, match="inhomogeneous"):
        Tensor([[1.0], [1.0, 2.0]])


# -- updates in place --------------------------------------------------------------------------------------------------

UPDATES = {"+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "/=": operator.itruediv, "**=": operator.ipow,
           "@=": operator.imatmul}  # fmt: skip
PLAIN = {"+=": operator.add, "-=": operator.sub, "*=": operator.mul, "/=": operator.truediv, "**=": operator.pow,
         "@=": operator.matmul}  # fmt: skip


@pytest.mark.parametrize("sign", UPDATES)
@pytest.mark.parametrize("wrap", [Tensor, lambda a: Tensor(a, requires_grad=True), Parameter])
def test_within_no_grad_the_array_is_updated(sign, wrap):
    a, b = np.array([[1.5, 2.0], [3.0, 0.5]], np.float32), np.array([[2.0, 1.0], [1.0, 3.0]], np.float32)
    x = wrap(a.copy())
    array, same = x.data, x
    with no_grad():
        x = UPDATES[sign](x, Tensor(b))
    assert x is same and x.data is array and np.array_equal(array, PLAIN[sign](a, b)) and x.is_leaf


@pytest.mark.parametrize("sign", UPDATES)
def test_outside_a_leaf_with_gradient_is_left_alone(sign):
    for x in (leaf([[1.0, 2.0], [3.0, 4.0]]), Parameter([[1.0, 2.0], [3.0, 4.0]])):
        with pytest.raises(RuntimeError, match=r"with no_grad\(\):.* changes the array; .* is x = x "):
            UPDATES[sign](x, np.full((2, 2), 2, np.float32))
        with pytest.raises(RuntimeError, match=r"not recorded.* within no_grad\(\), or make a new Tensor by ops.where"):
            x[0] = 1.0
        assert x.tolist() == [[1, 2], [3, 4]]


def test_gradient_descent_as_in_the_books():
    ps = [Parameter([1.0]), Parameter([2.0])]
    (ps[0] * ps[1]).backward()
    with no_grad():
        for p in ps:
            p -= 0.1 * p.grad
    assert np.allclose([p.item() for p in ps], [0.8, 1.9])


def test_parameters_in_flat_buffers_are_updated_there():
    class Net(Module):
        def __init__(self):
            self.w, self.b = Parameter(np.ones((2, 3), np.float32)), Parameter(np.zeros(3, np.float32))

    net = Net()
    flat = FlatBuffers(net)
    with no_grad():
        net.w *= 3.0
        net.b[1] = 5.0
        net.w[0] += 1.0
        net.w[net.w > 3.5] = -1.0
    assert np.array_equal(flat.data[flat.slices["w"]], [-1, -1, -1, 3, 3, 3])
    assert np.array_equal(flat.data[flat.slices["b"]], [0, 5, 0])
    net.b.requires_grad = False  # frozen: still no result of an op, which would leave the buffer
    with pytest.raises(RuntimeError, match="parameter"):
        net.b += leaf([1.0, 1.0, 1.0])
    assert np.shares_memory(net.b.data, flat.data)


def test_a_running_sum_keeps_its_gradient():
    x = leaf([1.0, 2.0])
    loss, same = x.sum(), None
    same = loss
    loss += (x * x).sum()
    loss *= 2
    assert same is loss
    loss.backward()
    assert x.grad.tolist() == [2 * (1 + 2), 2 * (1 + 4)]
    total = Tensor(0.0)
    for _ in range(3):
        total += x.sum()
    x.grad = None
    total.backward()
    assert total.item() == 9 and x.grad.tolist() == [3, 3]


def test_assignment():
    x = Tensor(np.zeros((2, 3), np.float32))
    x[0] = Tensor([1.0, 2.0, 3.0])
    x[1, 1] = 5
    x[:, 2] = [7, 8]
    x[Tensor([1]), 0] = 9.0
    x[x == 2] = -2.0
    assert x.tolist() == [[1, -2, 7], [9, 5, 8]]
    x[0][1] = 4.0  # x[0] is a view
    row = x[1]
    row += 1
    assert x.tolist() == [[1, 4, 7], [10, 6, 9]]
    assert x.fill_(2.0) is x and np.all(x.data == 2) and np.all(x.zero_().data == 0)


def test_updates_that_do_not_fit_change_nothing():
    x, counts = Tensor([1.0, 2.0]), Tensor([1, 2])
    with pytest.raises(ValueError, match=r"makes shape \(3, 2\) of a Tensor of shape \(2,\)"):
        x += np.ones((3, 2), np.float32)
    with pytest.raises(TypeError, match="makes float32 of a Tensor of int64; a new one is x = x \\+"):
        counts += 0.5
    frozen = Tensor(1.0).expand(2)
    for change in (lambda: operator.iadd(frozen, 1.0), lambda: operator.setitem(frozen, 0, 1.0)):
        with pytest.raises(ValueError, match=r"read-only.* x = x.clone\(\)"):
            change()
    assert x.tolist() == [1, 2] and counts.tolist() == [1, 2] and frozen.tolist() == [1, 1]
    copied = frozen.clone()
    copied += 1
    assert copied.tolist() == [2, 2]


@pytest.mark.parametrize("change", ["leaf", "constant", "result"])
def test_backward_notices_that_what_it_needs_was_changed(change):
    x, c = leaf([1.0, 2.0]), Tensor([3.0, 4.0])
    h = x + 1
    loss = (x * c * h).sum()
    with no_grad():
        if change == "leaf":
            x += 1
        elif change == "constant":
            c[0] = 7.0
        else:
            h *= 2
    with pytest.raises(RuntimeError, match=r"backward of mul needs an input or a result that was changed in place"):
        loss.backward()
    assert x.grad is None


@pytest.mark.parametrize("op", ["exp", "tanh", "sigmoid", "sqrt", "softmax", "log_softmax"])
@pytest.mark.parametrize("change", ["update", "item", "zero_", "view", "detach"])
def test_backward_notices_that_a_saved_result_was_changed(op, change):
    x = leaf([1.0, 2.0, 3.0])
    h = getattr(x, op)()
    with no_grad():
        if change == "update":
            h *= 0.5
        elif change == "item":
            h[1] = 0.0
        elif change == "zero_":
            h.zero_()
        elif change == "view":
            rows = h.reshape(3, 1)[1:]
            rows += 1
        else:
            h.detach().fill_(2.0)
    with pytest.raises(RuntimeError, match=rf"backward of {op} needs an input or a result that was changed in place"):
        h.sum().backward()
    assert x.grad is None


def test_backward_notices_a_change_through_a_view_of_an_input():
    for view in (lambda x: x[1:], lambda x: x.reshape(3, 1), lambda x: x.detach(), lambda x: x.expand(1, 3)[0]):
        x = leaf([1.0, 2.0, 3.0])
        loss = (x * x).sum()
        with no_grad():
            view(x).data.setflags(write=True)
            part = view(x)
            part += 1
        with pytest.raises(RuntimeError, match=r"changed in place"):
            loss.backward()


def test_a_change_of_other_memory_or_at_another_time_is_none():
    model = Module()
    model.a, model.b = Parameter(np.ones(3, np.float32)), Parameter(np.ones(3, np.float32))
    FlatBuffers(model)  # neighbours in one array
    model.a.zero_grad()
    model.b.zero_grad()
    with no_grad():
        model.a += 1  # before it is used
    loss, other = (model.a * model.a).sum(), (model.b * model.b).sum()
    other.backward()
    with no_grad():
        model.b -= 0.5 * model.b.grad
    loss.backward()
    assert model.a.grad.tolist() == [4, 4, 4] and model.b.tolist() == [0, 0, 0]


def test_what_backward_does_not_need_may_change():
    x, c = leaf([1.0, 2.0]), Tensor([3.0, 4.0])
    loss = ((x + c) * x.clone()).sum()  # an addition saves shapes only
    with no_grad():
        c += 1
    loss.backward()
    assert x.grad.tolist() == [5, 8]


# -- dtypes and messages -----------------------------------------------------------------------------------------------


def test_integers_and_masks_take_part():
    x = leaf([1.0, 2.0, 3.0])
    for out, expected in (
        (x * Tensor([1, 0, 1]), [1, 0, 3]), (x * (x > 1), [0, 2, 3]), (Tensor([6, 6, 6]) / x, [6, 3, 2]),
        (x ** Tensor([2, 1, 0]), [1, 2, 1]), (np.array([1, 2, 3]) - x, [0, 0, 0]), (np.array(2.0) * x, [2, 4, 6]),
        (x @ np.array([[1], [1], [1]]), [6]), (ops.where(x > 1, Tensor([7, 7, 7]), x), [1, 7, 7]),
    ):  # fmt: skip
        assert out.dtype == np.float32 and out.tolist() == expected
        out.sum().backward()
    ids = Tensor([7, 8, 9])
    assert (ids // 2).tolist() == [3, 4, 4] and (ids % 4).tolist() == [3, 0, 1] and (20 // ids).tolist() == [2, 2, 2]
    assert (ids * 2).dtype == ids.dtype and (ids / 2).dtype == (ids * 0.5).dtype == ids.mean().dtype == np.float32
    assert (ids / 2 + Tensor([1.0, 1.0, 1.0])).tolist() == [4.5, 5, 5.5]
    with pytest.raises(TypeError, match="would lose the gradient"):
        x % 2


def test_a_conversion_passes_the_gradient_on():
    x = leaf([1.5, 2.5])
    y = x.astype("float64") * np.array([2.0, 3.0])
    assert y.dtype == np.float64 and x.to("float32") is x and x.to(np.float64).dtype == np.float64
    y.sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [2, 3]
    counts = x.astype(int)
    assert counts.tolist() == [1, 2] and not counts.requires_grad


@pytest.mark.parametrize(
    "operand, shown",
    [([1, 0, 1], r"a list, \[1, 0, 1\]; .* make it a Tensor: Tensor\(\[1, 0, 1\]\)"),
     ((1, 2, 3), r"a tuple, \(1, 2, 3\)"), ("a", "a str, 'a'"), ({}, "a dict"), (object(), "an? object")],
)  # fmt: skip
def test_an_operand_that_is_none_is_named(operand, shown):
    x = leaf([1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="mul: operand 2 is " + shown):
        x * operand
    with pytest.raises(TypeError, match="sub: operand 1 is " + shown):
        operand - x
    with pytest.raises(TypeError, match="maximum: operand 2 is "):
        ops.maximum(x, operand)


def test_none_is_no_operand():
    x = Tensor([1.0])
    for call in (lambda: x + None, lambda: None * x, lambda: x ** None, lambda: x < None):
        with pytest.raises(TypeError, match="'Tensor' and 'NoneType'|'NoneType' and 'Tensor'"):
            call()


def test_backward_takes_numbers_and_lists():
    for start, expected in ((1.0, [2, 2, 2]), (3, [6, 6, 6]), ([1, 1, 2], [2, 2, 4]), (np.float32(1), [2, 2, 2]),
                            (Tensor([1.0, 0.0, 1.0]), [2, 0, 2]), (np.ones(3, ">f4"), [2, 2, 2])):  # fmt: skip
        x = leaf([1.0, 2.0, 3.0])
        (x * 2).backward(start)
        assert x.grad.tolist() == expected
        if isinstance(start, (int, float)):
            x.sum().backward(start)
    for wrong, words in ((np.ones(3), "the gradient is float64"), ([1, 1], r"float32 \(2,\)"), ("1", "tokenizer")):
        with pytest.raises((ValueError, TypeError), match=words):
            (leaf([1.0, 2.0, 3.0]) * 2).backward(wrong)


def test_ids_and_targets_may_be_lists():
    logits, weight = leaf(np.eye(3)), leaf(np.arange(6).reshape(3, 2))
    expected = ops.cross_entropy(logits, np.array([0, 1, 2])).item()
    for targets in ([0, 1, 2], (0, 1, 2), Tensor([0, 1, 2]), np.array([0, 1, 2], ">i8")):
        assert ops.cross_entropy(logits, targets).item() == expected
    assert ops.embedding(weight, [[0, 2], [1, 1]]).shape == (2, 2, 2) and ops.embedding(weight, []).shape == (0, 2)
    assert ops.embedding(weight, 1).tolist() == [2, 3]
    assert np.isfinite(ops.linear_cross_entropy(weight, weight, [0, 1, 2]).item())
    with pytest.raises(TypeError, match="token ids must be integers, not float32"):
        ops.cross_entropy(logits, [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"targets of shape \(2,\)"):
        ops.cross_entropy(logits, [0, 1])


def test_a_model_takes_lists():
    model = GPT(GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=2, n_embd=8), seed=1)
    ids = np.arange(8).reshape(2, 4)
    expected = model.loss(ids, ids + 1).item()
    for convert in (np.ndarray.tolist, Tensor, lambda a: a.astype(">i4")):
        assert model.loss(convert(ids), convert(ids + 1)).item() == expected
        assert model(convert(ids))[0].shape == (2, 4, 16)
    with pytest.raises(IndexError, match="token id 99 is outside the vocabulary of 16"):
        model([[1, 99]])
    with pytest.raises(ValueError, match=r"tokens of shape \(2,\): a model takes \(B, T\)"):
        model([1, 2])


# -- names and keywords ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "amax", "amin", "argmax", "all", "cumsum", "softmax"])
def test_axes_are_spelled_as_in_numpy_or_pytorch(name):
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3)))
    method = getattr(x, name)
    assert np.array_equal(method(axis=1).numpy(), method(dim=1).numpy())
    assert np.array_equal(method(1).numpy(), method(dim=-1).numpy())
    if name not in ("cumsum", "softmax"):
        assert method(dim=1, keepdim=True).shape == method(axis=1, keepdims=True).shape == (2, 1)
        function = getattr(ops, {"amax": "max", "amin": "min"}.get(name, name))
        assert np.array_equal(function(x, dim=1, keepdim=True).numpy(), method(axis=1, keepdims=True).numpy())
    with pytest.raises(TypeError, match=rf"{name}\(\) has no keyword 'dims_'; it has: axis"):
        method(dims_=1)
    with pytest.raises(TypeError, match="an axis is an integer"):
        method(dim=1.5)


def test_the_divisor_of_a_variance():
    values = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0]])
    x = Tensor(values)
    for keyword in ({}, {"ddof": 1}, {"correction": 1}, {"unbiased": True}):
        assert np.allclose(x.var(1, **keyword).numpy(), values.var(1, ddof=1))
        assert np.allclose(ops.std(x, 1, **keyword).numpy(), values.std(1, ddof=1))
    for keyword in ({"ddof": 0}, {"correction": 0}, {"unbiased": False}):
        assert np.allclose(x.var(**keyword).numpy(), values.var())
    assert np.allclose(np.var(x, axis=0).numpy(), np.var(values, axis=0))  # NumPy's function says ddof=0
    with pytest.raises(ValueError, match="variance of 1 value.* use ddof=0"):
        Tensor([1.0]).var()
    with pytest.raises(TypeError):
        x.var(1, False)  # unbiased in PyTorch, keepdims elsewhere


@pytest.mark.parametrize("name", ["max", "min"])
def test_what_returns_something_else_in_pytorch_is_refused(name):
    x = Tensor([[1.0, 2.0], [4.0, 3.0]])
    assert getattr(x, name)(axis=1).tolist() == getattr(np, name)(x.data, 1).tolist()
    with pytest.raises(TypeError, match=rf"x.a{name}\(dim=...\) .* x.arg{name}\(dim=...\) the indices"):
        getattr(x, name)(dim=1)
    with pytest.raises(TypeError, match=rf"elementwise: x.{name}imum\(y\)"):
        getattr(x, name)(x)
    with pytest.raises(ValueError, match=r"x.swapaxes\(0, 1\)"):
        x.transpose(0, 1)
    with pytest.raises(ValueError, match=r"x.swapaxes\(1, 2\)"):
        Tensor(np.zeros((2, 3, 4))).transpose(1, 2)


def test_shapes():
    x = leaf(np.arange(24).reshape(2, 1, 3, 4))
    assert x.squeeze().shape == x.squeeze(1).shape == x.squeeze(dim=-3).shape == (2, 3, 4)
    assert x.unsqueeze(0).shape == (1, 2, 1, 3, 4) and x.unsqueeze(dim=-1).shape == (2, 1, 3, 4, 1)
    assert x.flatten().shape == x.ravel().shape == (24,) and x.flatten(1).shape == (2, 12)
    assert x.flatten(1, 2).shape == (2, 3, 4) and x.view(6, -1).shape == (6, 4) and Tensor(1.0).flatten().shape == (1,)
    assert x.swapaxes(0, -1).shape == (4, 1, 3, 2) and x.permute(3, 2, 1, 0).shape == x.T.shape == (4, 3, 1, 2)
    assert x.expand(2, 5, -1, -1).shape == (2, 5, 3, 4) and [part.shape[3] for part in x.split(3, dim=3)] == [3, 1]
    assert [part.shape[3] for part in x.split([1, 0, 3], axis=-1)] == [1, 0, 3] and len(x.chunk(3, dim=2)) == 3
    assert ops.stack([x, x], dim=1).shape == (2, 2, 1, 3, 4) and ops.concatenate([x, x], dim=1).shape == (2, 2, 3, 4)
    wrongs = [lambda: x.squeeze(0), lambda: x.unsqueeze(7), lambda: x.split([1, 1], 3), lambda: x.split(0)]
    for wrong in [*wrongs, lambda: x.chunk(0), lambda: x.expand(3, 1, 3, 4), lambda: x.flatten(3, 1)]:
        with pytest.raises(ValueError):
            wrong()
    parts = x.split([1, 3], axis=3)  # of different sizes; one of them unused
    (parts[0] * 2).sum().backward()
    assert x.grad[..., 0].tolist() == np.full((2, 1, 3), 2).tolist() and not x.grad[..., 1:].any()


def test_choosing_and_limiting():
    x = leaf([-1.0, 0.5, 3.0])
    assert x.clip(0, 1).tolist() == x.clamp(min=0, max=1).tolist() == np.clip(x.data, 0, 1).tolist()
    assert x.clamp(min=0.0).tolist() == x.relu().tolist() and abs(x).tolist() == x.abs().tolist() == [1, 0.5, 3]
    assert x.where(x > 0, 0.0).tolist() == x.masked_fill(x < 0, 0.0).tolist() == [0, 0.5, 3]
    masked = ops.masked_fill(x, np.array([True, False, False]), float("-inf"))
    ops.softmax(masked)[1].backward()
    assert masked.tolist()[0] == -np.inf and np.isfinite(x.grad).all() and x.grad[0] == 0


def test_names_that_are_missing_say_what_to_use():
    x = Tensor([1.0])
    with pytest.raises(AttributeError, match=r"a Tensor has no 'numel'; use x.size"):
        x.numel()
    with pytest.raises(AttributeError, match=r"no 'frobnicate'; docs/library.md lists"):
        x.frobnicate()
    with pytest.raises(AttributeError, match=r"no op 'cat'; use ops.concatenate"):
        ops.cat([x, x])
    with pytest.raises(AttributeError, match=r"no op 'frobnicate'; use what docs/layout.md lists"):
        ops.frobnicate(x)
    assert not hasattr(x, "__cuda_array_interface__") and getattr(x, "nothing", 3) == 3
    assert len(_ADVICE) > 150 and not [name for name in _ADVICE if hasattr(Tensor, name)]  # none that is there
    assert not set(_OPS) & set(ops.__all__)


def test_what_is_no_number_is_in_no_tensor():
    x = Tensor([1.0, 2.0])
    assert None not in x and "a" not in x and 2 in x and np.float64(3) not in x


def test_two_names_of_one_keyword_must_agree():
    x = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    for call in (
        lambda: x.sum(axis=0, dim=1), lambda: x.sum(1, dim=0), lambda: x.mean(dim=0, dims=1),
        lambda: x.softmax(1, dim=0), lambda: x.var(correction=0, unbiased=True, dim=0, axis=1),
        lambda: x.clip(0, min=1), lambda: x.sum(axis=0, keepdims=True, keepdim=False),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"\(\): \w+ is \w+, which is given as well"):
            call()
    assert x.sum(axis=0, dim=0).tolist() == [3, 5, 7]


def test_a_result_is_copied_without_its_graph_or_not_at_all():
    x = leaf([1.0, 2.0])
    h = x * 2
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"a result of mul is not copied with its graph: x.detach\(\)"):
            copied(h)
        copied(h.detach())
    copy.copy(h).sum().backward()
    assert x.grad.tolist() == [2, 2] and copy.deepcopy(x).grad.tolist() == [2, 2]


def test_backward_notices_that_the_optimizer_has_changed_the_weights():
    model = GPT(GPTConfig(block_size=4, vocab_size=8, n_layer=1, n_head=1, n_embd=8), seed=1)
    flat = FlatBuffers(model)
    tokens = np.arange(4).reshape(1, 4)
    first, second = model.loss(tokens, tokens), model.loss(tokens, tokens)
    first.backward()
    Adam(flat).step(0.1)
    with pytest.raises(RuntimeError, match=r"changed in place"):
        second.backward()
    model.loss(tokens, tokens).backward()
