# %% [markdown]
# # 9 · Layernorm: three paths
#
# Its forward is one line of statistics. Its gradient has three terms, and most people meet them as a formula to be
# believed. You measure each of them on its own.
#
# ## Read
#
# Layernorm takes each row of C numbers (one token's vector), subtracts the row's mean, divides by its standard
# deviation, and applies a learned scale and shift:
#
#     xhat = (x - mean) * rstd,   rstd = 1 / sqrt(var + eps)          out = xhat * weight + bias
#
# So an input `x_j` reaches the output on **three paths**: directly, through the mean of the row, and through
# `rstd`. The gradient is the sum over the paths (lesson 1). Read the derivation in the docstring with a pencil; the
# code below it is its last line.

# %%
import numpy as np

import ops
from learn import show
from ops.layernorm import LayerNorm
from tinygrad2 import Function, Tensor, gradcheck

plt = show.pyplot()
show.source(LayerNorm)

# %% [markdown]
# ## Predict
#
# `weight` is all ones, `bias` zeros. **What is the gradient of `layernorm(x).sum()` with respect to `x`?** Give the
# largest absolute value of its elements. (What is the sum of a row that has mean 0?)

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
rng = np.random.default_rng(0)
C = 8
x = Tensor(rng.standard_normal((1, C)), requires_grad=True)
ones, zeros = Tensor(np.ones(C)), Tensor(np.zeros(C))
ops.layernorm(x, ones, zeros).sum().backward()
show.guess(my_guess, abs(x.grad).max(), "largest element of the gradient")
assert abs(x.grad).max() < 1e-12

# %% [markdown]
# Zero but for rounding, whatever `x` is: the sum of a normalised row never changes. (This is why lesson 4 asks for a
# *random* `dout`.)
#
# Now the three paths, each measured on its own: move `x` in one place only, and keep the other two places fixed.

# %%
row, weight, dout = rng.standard_normal(C), rng.standard_normal(C), rng.standard_normal(C)


def out(direct, for_mean, for_rstd, eps=1e-5):
    """Layernorm of a row that may differ in the three places where it is used."""
    rstd = 1 / np.sqrt(for_rstd.var() + eps)
    return (direct - for_mean.mean()) * rstd * weight


def slope(f, h=1e-5):
    """The gradient of sum(dout * f(x)) at `row`, element by element."""
    moves = h * np.eye(C)
    return np.array([(dout * (f(row + move) - f(row - move))).sum() / (2 * h) for move in moves])


direct = slope(lambda x: out(x, row, row))
through_mean = slope(lambda x: out(row, x, row))
through_rstd = slope(lambda x: out(row, row, x))
whole = slope(lambda x: out(x, x, x))

rstd = 1 / np.sqrt(row.var() + 1e-5)
xhat, g = (row - row.mean()) * rstd, dout * weight
for name, measured, formula in (
    ("directly", direct, rstd * g),
    ("through mean", through_mean, -rstd * g.mean() * np.ones(C)),
    ("through rstd", through_rstd, -rstd * xhat * (g * xhat).mean()),
    ("all together", whole, rstd * (g - g.mean() - xhat * (g * xhat).mean())),
):
    print(f"{name:13} measured {measured[:3].round(4)} ..., formula {formula[:3].round(4)} ...")
    assert np.allclose(measured, formula, atol=1e-7)

# %% [markdown]
# And what the sum of the three means: the gradient of `x` has no component along the constant row and none along
# `xhat`. Those are the two directions in which layernorm forgets: adding a constant to a row, or stretching it,
# does not change the output, so no gradient may point there.

# %%
dx = rstd * (g - g.mean() - xhat * (g * xhat).mean())
print(f"sum of dx: {dx.sum():.0e}; dx along xhat: {(dx * xhat).sum():.1e} (not exactly 0 because of eps)")
assert abs(dx.sum()) < 1e-12 and abs((dx * xhat).sum()) < 1e-4

# %% [markdown]
# ## Build
#
# Write `dx` for many rows at once: `x` and `dout` (..., C), `weight` (C,). Three terms.
#
# The lab of this lesson, on the shipped source: `layernorm_backward`
# (`python -m tinygrad2 lab start layernorm_backward`).

# %%
def my_layernorm_dx(x, weight, dout, eps=1e-5):
    """The gradient of x."""
    # your lines


# %%
def normalized(x):
    """rstd (..., 1) and xhat (..., C) of rows."""
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return rstd, (x - x.mean(-1, keepdims=True)) * rstd


def check_dx(layernorm_dx):
    rng = np.random.default_rng(4)
    x, w, dout = rng.standard_normal((2, 3, 6)), rng.standard_normal(6), rng.standard_normal((2, 3, 6))

    class Mine(LayerNorm, name="layernorm_mine"):
        def backward(self, dout):
            x, weight, _, _ = self.saved
            _, dweight, dbias = LayerNorm.backward(self, dout)
            return layernorm_dx(x, weight, dout), dweight, dbias

    got = layernorm_dx(x, w, dout)
    assert got.shape == x.shape, f"the shape is {got.shape}"
    g, (rstd, xhat) = dout * w, normalized(x)
    terms = {"directly": g, "through the mean": -g.mean(-1, keepdims=True),
             "through rstd": -xhat * (g * xhat).mean(-1, keepdims=True)}  # fmt: skip
    whole = rstd * sum(terms.values())
    for name, term in terms.items():
        assert not np.allclose(got, whole - rstd * term), f"the path {name} is missing"
    assert not np.allclose(got, whole / rstd), "rstd is missing as a factor: every path ends with it"
    report = gradcheck(Mine, [x, w, np.zeros(6)])
    assert report, str(report)


show.exercise(my_layernorm_dx, check_dx)

# %% tags=["answer"]
def layernorm_dx_answer(x, weight, dout, eps=1e-5):
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    xhat = (x - x.mean(-1, keepdims=True)) * rstd
    g = dout * weight
    return rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))


show.answer(layernorm_dx_answer, check_dx)

# %% [markdown]
# ## Break
#
# This backward passed its author's gradient check, with a random `dout`, in float64, as it should be. He used the
# layer as it is when a training begins. **Which term is wrong, and why did their check not see it?**

# %%
class TheirLayerNorm(Function, name="their_layernorm"):
    """Layernorm with a scale and a shift."""

    def forward(self, x, weight, bias):
        rstd = 1 / self.xp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        xhat = (x - x.mean(-1, keepdims=True)) * rstd
        self.save(xhat, weight, rstd)
        return xhat * weight + bias

    def backward(self, dout):
        xhat, weight, rstd = self.saved
        mean_g, mean_gx = dout.mean(-1, keepdims=True), (dout * weight * xhat).mean(-1, keepdims=True)
        dx = rstd * (dout * weight - mean_g - xhat * mean_gx)
        rows = tuple(range(dout.ndim - 1))
        return dx, (dout * xhat).sum(rows), dout.sum(rows)


x = rng.standard_normal((3, 6))
fresh = gradcheck(TheirLayerNorm, [x, np.ones(6), np.zeros(6)])
print("as a training begins (weight 1, bias 0):", "right" if fresh else "WRONG")
assert fresh

# %% [markdown]
# Choose other inputs for the check, and see it fail. Then find the term.

# %% tags=["answer"]
report = gradcheck(TheirLayerNorm, [x, rng.standard_normal(6), np.zeros(6)])
print(report)
assert not report

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `mean_g` is the mean of `dout`, and should be the mean of `g = dout * weight`: the path through the mean starts at
# `xhat`, so it sees the weight, too. At the beginning of a training every weight is 1, and the two are the same. A
# check at special values (ones, zeros, symmetric arrays) is a weak check; use random values for **every** input.
#
# </details>
#
# ## Look
#
# The three terms for the row that you measured, channel by channel, and their sum. The term through the mean is the
# same for all channels; the one through `rstd` is proportional to `xhat`.

# %%
channels = np.arange(C)
plt.figure()
for i, (values, name) in enumerate((
    (direct, "directly: rstd g"),
    (through_mean, "through mean: -rstd avg(g)"),
    (through_rstd, "through rstd: -rstd xhat avg(g xhat)"),
)):  # fmt: skip
    plt.bar(channels + 0.22 * (i - 1), values, width=0.2, label=name)
plt.plot(channels, whole, "ko", label="sum = dx")
plt.axhline(0, color="black", linewidth=0.8)
plt.xticks(channels)
plt.xlabel("channel")
plt.ylabel("gradient")
plt.title("Three paths from x to the loss, measured one at a time")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** the operation that made GPT possible: lesson 10, one attention head.
