# %% [markdown]
# # 1 · A number that remembers
#
# You write an autograd engine for single numbers, 60 lines in all, train a network with it, and meet the mistake that
# nearly everybody makes with it once.
#
# ## Read
#
# A derivative answers: if I change this input a little, how much does the result change? For a chain of operations
# the answers multiply (the *chain rule*): if `c` changes 3 times as much as `b`, and `b` changes 2 times as much as
# `a`, then `c` changes 6 times as much as `a`.
#
# If a number is used in several places, its change reaches the result on several paths, and the answers **add**.
#
# That is all. An engine needs two things: every result must *remember* which numbers it was made from and how
# strongly it depends on each; and somebody must walk back from the result to the inputs, multiplying along each
# path and adding where paths meet. Here is the whole engine.

# %%
import math

import numpy as np

from learn import show
from tinygrad2 import Tensor

plt = show.pyplot()


class Value:
    """A number that remembers how it was made: `parents` are pairs (Value, d self / d that Value)."""

    def __init__(self, data, parents=()):
        self.data, self.parents, self.grad = data, parents, 0.0

    def __add__(self, other):
        other = as_value(other)
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        other = as_value(other)
        return Value(self.data * other.data, [(self, other.data), (other, self.data)])

    def __pow__(self, n):
        return Value(self.data**n, [(self, n * self.data ** (n - 1))])

    def exp(self):
        e = math.exp(self.data)
        return Value(e, [(self, e)])

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -as_value(other)

    def __truediv__(self, other):
        return self * as_value(other) ** -1.0

    __radd__, __rmul__ = __add__, __mul__

    def backward(self):
        """Add d self / d v to v.grad, for every Value v that this one was made from."""
        self.grad = 1.0
        for value in reversed(in_order(self)):                    # a value's turn comes when its grad is complete
            for parent, slope in value.parents:
                parent.grad += slope * value.grad                 # multiply along a path, add where paths meet


def as_value(x):
    return x if isinstance(x, Value) else Value(x)


def in_order(value):
    """All values below `value`, each after those that it was made from."""
    done, order = set(), []

    def visit(v):
        if id(v) not in done:
            done.add(id(v))
            for parent, _ in v.parents:
                visit(parent)
            order.append(v)

    visit(value)
    return order


# %% [markdown]
# ## Predict
#
# `a = 2`, `b = -3`, `y = a * b + a`. **What is dy/da?** (`a` is used twice.)

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
a, b = Value(2.0), Value(-3.0)
y = a * b + a
y.backward()
show.guess(my_guess, a.grad, "dy/da")
print(f"the two paths: {b.data} through a * b, and 1.0 directly; dy/db = {b.grad}")
assert (a.grad, b.grad) == (-2.0, 2.0)

# %% [markdown]
# How do we know that it is right? Measure: change `a` a little, and see how `y` changes.

# %%
def f(a, b):
    return (a * b + a).exp() / (1.0 + a**2)


def measured_slope(f, a, b, h=1e-6):
    return (f(Value(a + h), Value(b)).data - f(Value(a - h), Value(b)).data) / (2 * h)


a, b = Value(0.7), Value(-0.4)
f(a, b).backward()
print(f"engine {a.grad:.9f}, measured {measured_slope(f, 0.7, -0.4):.9f}")
assert abs(a.grad - measured_slope(f, 0.7, -0.4)) < 1e-8

# %% [markdown]
# The engine of this project is the same idea for arrays. Compare with `Value.backward`: where a leaf collects
# its gradient, it also says `+=`.

# %%
show.source(Tensor.add_to_grad)

# %% [markdown]
# ## Build
#
# Add an operation: `tanh`, the nonlinearity of the network below. Return the new `Value` with its one parent and the
# slope there. (d tanh(x)/dx = 1 - tanh(x)^2; `math.tanh` computes the value.)

# %%
def tanh(x):
    """A Value that is tanh of the Value x."""
    # your lines: t = ...; return Value(...)


# %%
def check_tanh(tanh):
    for at in (-1.5, 0.0, 0.3):
        x = Value(at)
        y = tanh(x) * 3.0
        y.backward()
        numeric = 3 * (math.tanh(at + 1e-6) - math.tanh(at - 1e-6)) / 2e-6
        assert abs(y.data - 3 * math.tanh(at)) < 1e-12, f"tanh({at}) is {y.data / 3}, should be {math.tanh(at)}"
        assert abs(x.grad - numeric) < 1e-6, f"the slope at {at} is {x.grad / 3}, measured {numeric / 3}"


show.exercise(tanh, check_tanh)

# %% tags=["answer"]
def tanh_answer(x):
    t = math.tanh(x.data)
    return Value(t, [(x, 1 - t * t)])


show.answer(tanh_answer, check_tanh)

# %% [markdown]
# ### A network of single numbers
#
# Two inputs, four hidden neurons, one output: 17 parameters that learn the XOR of the signs of two numbers. In every
# step the values in between are new objects, but the 17 parameters stay, and so do their gradients: **before each
# backward the gradients of the parameters must be set to zero**, or each step adds to those of the last.

# %%
def train(zero_grad=True, steps=60, lr=0.2, seed=5):
    rng = np.random.default_rng(seed)
    w = [Value(x) for x in rng.normal(0, 0.8, 17).tolist()]
    points = [((1.0, 1.0), -1.0), ((-1.0, -1.0), -1.0), ((1.0, -1.0), 1.0), ((-1.0, 1.0), 1.0)]
    losses = []
    for _ in range(steps):
        if zero_grad:
            for p in w:
                p.grad = 0.0
        loss = Value(0.0)
        for (x1, x2), target in points:
            hidden = [tanh_answer(w[3 * i] * x1 + w[3 * i + 1] * x2 + w[3 * i + 2]) for i in range(4)]
            out = sum((w[12 + i] * hidden[i] for i in range(4)), w[16])
            loss = loss + (out - target) ** 2.0 * 0.25
        loss.backward()
        for p in w:
            p.data -= lr * p.grad
        losses.append(loss.data)
    return losses


right, forgotten = train(), train(zero_grad=False)
print(f"loss {right[0]:.2f} -> {right[-1]:.1e}")
print(f"zeroing forgotten: {min(forgotten[-30:]):.2g} to {max(forgotten[-30:]):.2g} in the last 30 steps")
assert right[-1] < 1e-4 < max(forgotten[-30:])

# %% [markdown]
# What if `backward()` is called twice on the same result? `Value` adds the same gradients again, silently. The
# shipped engine frees the graph as it walks back, and the second call says why it cannot be right:

# %%
a = Value(3.0)
y = a * a
y.backward()
y.backward()
print("Value:  d(a*a)/da at 3 =", a.grad, "after two calls (should be 6)")

x = Tensor([3.0], requires_grad=True)
y = (x * x).sum()
y.backward()
try:
    y.backward()
except RuntimeError as error:
    print("Tensor:", error)

# %% [markdown]
# ## Break
#
# Below is the walk back of somebody who tested it on `a * b`, where it is right. On which expressions is it wrong,
# and **which character is missing?** Find a small expression whose gradient is wrong before you unfold the answer.

# %%
def their_backward(result):
    for value in in_order(result):
        value.grad = 0.0
    result.grad = 1.0
    for value in reversed(in_order(result)):
        for parent, slope in value.parents:
            parent.grad = slope * value.grad


def gradients(walk, f, *numbers):
    values = [Value(x) for x in numbers]
    result = f(*values)
    walk(result)
    return [v.grad for v in values]


for text, f in (
    ("a * b", lambda a, b: a * b),
    ("a * b + a", lambda a, b: a * b + a),
    ("a * a + b", lambda a, b: a * a + b),
):
    ours, theirs = gradients(Value.backward, f, 2.0, -3.0), gradients(their_backward, f, 2.0, -3.0)
    print(f"{text:10}  right {ours}, theirs {theirs}")
assert gradients(their_backward, lambda a, b: a * b + a, 2.0, -3.0) != [-2.0, 2.0]

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `parent.grad = ...` instead of `parent.grad += ...`. As soon as a value is used twice, the second path overwrites
# the first instead of being added to it. The original author of the best-known scalar engine made this mistake,
# too. In a network every weight is used once per example, so almost nothing would be right.
#
# </details>
#
# ## Look
#
# The loss of your two trainings: with gradients set to zero in each step, and with that line forgotten. The forgotten
# zero does not stop the learning at once: old gradients act like a ball that keeps rolling, and it rolls past every
# valley.

# %%
plt.figure()
plt.plot(right, label="gradients set to zero in every step")
plt.plot(forgotten, label="zeroing forgotten")
plt.xlabel("step")
plt.ylabel("loss (mean squared error)")
plt.title("XOR with 17 numbers that remember")
plt.legend()
plt.show()

# %% [markdown]
# **Next:** the same for arrays: a Tensor, its operations, and the walk back that the project ships.
