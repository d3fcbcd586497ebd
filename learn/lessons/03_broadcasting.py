# %% [markdown]
# # 3 · Broadcasting and its undoing
#
# NumPy copies small arrays silently so that shapes fit. Every copy sends a gradient back. You write the sum that
# undoes it, and find the version of it that has the right shape and wrong values.
#
# ## Read
#
# `b` of shape (3,) added to a matrix of shape (2, 3) is used once in every row. Lesson 1: a number that is used twice
# gets **the sum** of both gradients. So the gradient of `b` is the sum of the gradient of the result over the rows:
#
#     out[i, j] = a[i, j] + b[j]        db[j] = sum over i of dout[i, j]
#
# There are two ways to be copied. Both are undone by a sum, but the shapes differ:
#
# | regime | example | undone by |
# |---|---|---|
# | a new axis in front | (3,) -> (2, 3) | sum over axis 0; the axis goes away |
# | an axis of size 1 | (2, 1) -> (2, 3) | sum over axis 1; the axis stays, with size 1 |
#
# One function of the project does it for all elementwise operations; here is one that calls it. You are going to
# write it below, so it is not quoted yet.

# %%
import numpy as np

from learn import show
from ops.add import Add
from ops.broadcast import unbroadcast
from tinygrad2 import Function, Tensor, gradcheck

plt = show.pyplot()
show.source(Add.backward)

# %% [markdown]
# ## Predict
#
# A bias `b` of shape (10,) is added to activations of shape (32, 8, 10): 32 texts of 8 tokens. The loss is the
# **sum** of the result. **What is each element of `b.grad`?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
activations = Tensor(np.zeros((32, 8, 10)))
b = Tensor(np.zeros(10), requires_grad=True)
(activations + b).sum().backward()
print("b.grad has shape", b.grad.shape)
show.guess(my_guess, b.grad[0], "each element of b.grad")
assert (b.grad == 256).all()

# %% [markdown]
# Both regimes at once, with numbers that you can add up in your head. `dout` is what came back; every operand gets it
# summed down to its own shape.

# %%
a = Tensor(np.zeros((2, 1)), requires_grad=True)
b = Tensor(np.zeros(3), requires_grad=True)
dout = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
(a + b).backward(dout)
print("dout\n", dout)
print("a (2, 1): sum along each row\n", a.grad)
print("b (3,): sum down each column\n", b.grad)
assert a.grad.tolist() == [[6.0], [60.0]] and b.grad.tolist() == [11.0, 22.0, 33.0]

# %% [markdown]
# ## Build
#
# Write it. `dout` has the shape of the result, `shape` is the operand's. First sum away the axes in front that the
# operand does not have; then sum, with `keepdims=True`, over the axes in which it has size 1 and `dout` has not.
#
# The lab of this lesson, on the shipped source: `unbroadcast` (`python -m tinygrad2 lab start unbroadcast`).

# %%
def my_unbroadcast(dout, shape):
    """Sum dout down to `shape`."""
    # your lines


# %%
def check_unbroadcast(unbroadcast):
    rng = np.random.default_rng(1)
    for full, shape in [((2, 3), (3,)), ((2, 3), (2, 1)), ((2, 3), (1, 1)), ((4, 2, 3), (2, 1)), ((4, 2, 3), ()),
                        ((2, 3), (2, 3)), ((1, 3), (1, 1)), ((5, 1, 3), (1, 3))]:  # fmt: skip
        dout, x = rng.standard_normal(full), rng.standard_normal(shape)
        got = np.asarray(unbroadcast(dout, shape))
        assert got.shape == shape, f"dout {full} for an operand {shape}: the result has shape {got.shape}"
        direction = rng.standard_normal(shape)  # the chain rule says that these two numbers are the same
        through_result = (dout * np.broadcast_to(direction, full)).sum()
        at_operand = (got * direction).sum()
        assert abs(through_result - at_operand) < 1e-9, f"dout {full} for an operand {shape}: wrong values"
        assert x.shape == shape


show.exercise(my_unbroadcast, check_unbroadcast)

# %% tags=["answer"]
show.source(unbroadcast)
show.answer(unbroadcast, check_unbroadcast)

# %% [markdown]
# Look at the check once more, because the trick will come back: it does not know the right gradient. It only uses
# what a gradient *is*. If the operand moves along `direction`, the loss changes by the gradient times the
# direction, wherever you count it.
#
# ## Break
#
# A version that passed its author's tests, which looked at shapes. **Which of the two regimes is wrong, and when do
# the values happen to be right?**

# %%
def their_unbroadcast(dout, shape):
    while dout.ndim > len(shape):
        dout = dout.sum(0)
    for axis, size in enumerate(shape):
        if size == 1 and dout.shape[axis] != 1:
            dout = dout.take([0], axis)
    return dout


class TheirMul(Function, name="their_mul"):
    """a * b with their function."""

    def forward(self, a, b):
        self.save(a, b)
        return a * b

    def backward(self, dout):
        a, b = self.saved
        return their_unbroadcast(dout * b, a.shape), their_unbroadcast(dout * a, b.shape)


rng = np.random.default_rng(2)
for shapes in ((2, 3), (3,)), ((2, 3), (2, 1)):
    a, b = (rng.standard_normal(shape) for shape in shapes)
    report = gradcheck(TheirMul, [a, b])
    print(f"a {shapes[0]}, b {shapes[1]}: {'right' if report else 'WRONG'}")
print()
print(report)
assert not report

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `dout.take([0], axis)` takes the gradient of the first copy instead of the sum over all copies: the axis of size 1
# (the second regime). The shape is right, so nothing complains, and if all columns of `dout` are zero but the
# first, even the values are. `gradcheck` tries this mistake on purpose when a gradient is wrong, and names it in
# its hint.
#
# Right:
#
# ```python
# dout = dout.sum(axis, keepdims=True)
# ```
#
# </details>
#
# ## Look
#
# Your own `dout` from above, and where it goes. Left: what came back to the result of a (2, 1) plus a (3,) array.
# Each operand collects along the direction in which it was copied.

# %%
dout = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
pictures = [
    (dout, "dout (2, 3)"),
    (unbroadcast(dout, (2, 1)), "gradient of a\n(2, 1): sum\nalong a row"),
    (unbroadcast(dout, (3,))[None], "gradient of b (3,):\nsum down a column"),
    (their_unbroadcast(dout, (2, 1)), "theirs for a:\nthe first\ncolumn"),
]
figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.6), gridspec_kw={"width_ratios": [3, 1, 3, 1]})
for ax, (values, name) in zip(axes, pictures):
    ax.imshow(values, cmap="Blues", vmin=0, vmax=90)
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:g}", ha="center", va="center")
    ax.set_title(name, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_ylim(1.5, -0.5)  # the same size of a cell in each
    ax.spines[:].set_visible(False)
    ax.grid(False)
axes[3].title.set_color("firebrick")
plt.show()

# %% [markdown]
# **Next:** `gradcheck` found the mistake and named it. How does it know, and when would it be fooled?
