# %% [markdown]
# # 4 · Is it right? The gradient check
#
# Every gradient of this project is measured numerically in its tests. You build that check, choose its step size with
# your eyes open, and learn three ways in which such a check passes anything.
#
# ## Read
#
# A derivative can be measured: change the input by `h` in both directions and divide.
#
#     dF/dx  ≈  (F(x + h) - F(x - h)) / 2h
#
# Two errors fight each other. The formula's own error shrinks with `h` squared. But a computer keeps only about 16
# digits (7 in float32), so `F(x + h) - F(x - h)` has lost most of its digits when `h` is tiny, and the division by
# `h` magnifies what is left of them. In between lies the best `h`, and the error as a function of `h` is a U.
#
# For an operation with arrays the question has to be a number first. The result is multiplied by a *random* array
# `dout` and summed, `F(x) = sum(dout * f(x))`. Then our `backward(dout)` should return `dF/dx`. And instead of
# moving each element of `x` on its own, one moves all of them along a random direction `d`: two evaluations,
# whatever the size.
#
#     sum(backward(dout) * d)   should equal   (F(x + h d) - F(x - h d)) / 2h
#
# The project's version uses five points instead of two, and adds a report:

# %%
import numpy as np

from learn import show
from ops.softmax import Softmax
from tinygrad2 import Tensor, apply, gradcheck
from tinygrad2.grad_check import _derivative, _direction_error

plt = show.pyplot()
show.source(_derivative)
show.source(_direction_error)

# %% [markdown]
# ## Predict
#
# In float64 numbers have about 16 digits. **Which `h` is best for the two-point formula above?** Write a power of
# ten, for example `1e-10`.

# %%
my_guess = None

# %% [markdown]
# ## Run
#
# The derivative of a function whose slope we know, measured with every `h`, in three ways.

# %%
steps = 10.0 ** np.arange(-13, 0.1, 0.25)


def f(x):
    return np.exp(np.sin(x))


def true_slope(x):
    return np.cos(x) * np.exp(np.sin(x))


def errors(dtype, points):
    """The relative error of the measured slope at x = 1 for each h."""
    x, found = dtype(1.0), []
    for h in steps.astype(dtype):
        if points == 2:
            slope = (f(x + h) - f(x - h)) / (2 * h)
        else:
            slope = (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)
        found.append(abs(float(slope) - true_slope(1.0)) / true_slope(1.0))
    return np.array(found)


two, five, single = errors(np.float64, 2), errors(np.float64, 5), errors(np.float32, 2)
show.guess(my_guess, steps[two.argmin()], "best h, two points, float64")
for name, found in ("two points, float64", two), ("five points, float64", five), ("two points, float32", single):
    print(f"{name:22} smallest error {found.min():.0e} at h = {steps[found.argmin()]:.0e}")
assert 1e-7 < steps[two.argmin()] < 1e-4 and five.min() < two.min() < 1e-9 < 1e-5 < np.median(single)

# %% [markdown]
# In float32 three or four digits are left for most steps: small mistakes pass. So gradients are checked in
# **float64**, even if training uses float32; the code is the same. "How close is close enough?" has an answer then:
# five points in float64 reach about 1e-12, and `gradcheck` passes relative errors below 1e-7. Real mistakes are
# never that small.
#
# Does the check find a wrong gradient? A test that has never failed proves nothing, so try a **negative control**. The
# operation is the *softmax*, which makes positive numbers that sum to 1 of each row: e to the power of each number,
# divided by the sum of these (what it is good for comes in lessons 5 and 7).

# %%
class SloppySoftmax(Softmax, name="sloppy_softmax"):
    """Softmax whose backward forgets that raising one probability lowers the others."""

    def backward(self, dout):
        p, axis = self.saved
        return (p * dout,)


x = np.random.default_rng(0).standard_normal((3, 4))
right, wrong = gradcheck(Softmax, [x]), gradcheck(SloppySoftmax, [x])
print(right)
print(wrong)
assert right and not wrong

# %% [markdown]
# ## Build
#
# The measured side: the derivative of `F(x) = sum(dout * f(x))` along the direction `d`, with two points and a step
# `h`.
#
# The lab of this lesson, on the shipped source: `matmul_backward` (`python -m tinygrad2 lab start matmul_backward`).

# %%
def my_slope(f, x, d, dout, h=1e-5):
    """dF along d, one number; f takes and returns arrays."""
    # your line: return ...


# %%
def check_slope(slope):
    rng = np.random.default_rng(3)
    x, d, dout = (rng.standard_normal((2, 3)) for _ in range(3))
    expected = (dout * 3 * x**2 * d).sum()  # f = x^3, whose derivative we know
    found = slope(lambda x: x**3, x, d, dout)
    assert abs(found - expected) < 1e-7 * abs(expected), f"x^3: {found}, should be {expected}"


show.exercise(my_slope, check_slope)

# %% tags=["answer"]
def slope_answer(f, x, d, dout, h=1e-5):
    return (dout * (f(x + h * d) - f(x - h * d))).sum() / (2 * h)


show.answer(slope_answer, check_slope)

# %% [markdown]
# ## Break
#
# A gradient check from a course. It passes the right softmax. It also passes a softmax whose backward returns
# zeros. **Why? Which line makes it blind?** (Print what the two sides are.)

# %%
def their_check(op, x):
    rng = np.random.default_rng(0)
    t = Tensor(x, requires_grad=True)
    out = apply(op, t)
    dout = np.ones_like(out.data)
    out.backward(dout)
    d = rng.standard_normal(x.shape)
    analytic = (t.grad * d).sum()
    numeric = slope_answer(lambda a: apply(op, Tensor(a)).data, x, d, dout)
    return abs(analytic - numeric) < 1e-3 * max(abs(analytic), abs(numeric), 1.0)


class ZeroSoftmax(Softmax, name="zero_softmax"):
    """Softmax whose backward returns zeros: certainly wrong."""

    def backward(self, dout):
        return (np.zeros_like(self.saved[0]),)


for op in (Softmax, ZeroSoftmax):
    print(f"{op.__name__:12} theirs: {'passes' if their_check(op, x) else 'FAILS'}; ours: {bool(gradcheck(op, [x]))}")
assert their_check(ZeroSoftmax, x) and not gradcheck(ZeroSoftmax, [x])

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `dout = np.ones_like(out.data)`. With all ones, `F` is the **sum** of the softmax, which is 1 per row whatever `x`
# is: its gradient is zero. The check compares 0 with 0, and a backward that returns zeros passes. The same holds
# for `layernorm(x).sum()`, whose rows always sum to the same. `dout` must be random:
#
# ```python
# dout = rng.standard_normal(out.shape)
# ```
#
# The `max(..., 1.0)` in the last line is a second way to be blind: gradients below 1e-3 are all called right.
# (`SloppySoftmax`, by the way, does not pass even this check: its gradient at all ones is p, not zero. Try it.)
#
# </details>
#
# ## Look
#
# The U of your run. On the right the formula's error falls with h² (two points) and h⁴ (five points) until rounding
# takes over on the left, where the error grows as 1/h.

# %%
plt.figure()
for name, found, color in (
    ("two points, float32", single, "firebrick"),
    ("two points, float64", two, "steelblue"),
    ("five points, float64", five, "seagreen"),
):
    plt.loglog(steps, np.maximum(found, 1e-16), ".-", color=color, label=name, markersize=4)
plt.axvline(1e-3, color="gray", linestyle=":", label="h of gradcheck")
plt.axhline(1e-7, color="gray", linestyle="--", label="tolerance of gradcheck")
plt.xlabel("step h")
plt.ylabel("relative error of the measured slope")
plt.ylim(1e-16, 30)
plt.title("Too large a step, too small a step")
plt.legend(fontsize=8, ncols=2)
plt.show()

# %% [markdown]
# **Next:** with gradients that you can trust, the first language model: lesson 5, the bigram.
