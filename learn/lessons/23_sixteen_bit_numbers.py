# %% [markdown]
# # 23 · 16-bit numbers: what is lost
#
# Half the bits are half the memory, and on the right hardware more than twice the speed. You find out what is lost,
# where it does not matter, and the one place where it ruins a training.
#
# ## Read
#
# A float32 has 1 bit of sign, 8 of exponent and 23 of mantissa: 7 digits, from 1e-38 to 3e38. There are two ways to
# save half of them:
#
# | | exponent | mantissa | digits | largest | smallest normal |
# |---|---|---|---|---|---|
# | float32 | 8 bits | 23 | 7 | 3.4e38 | 1.2e-38 |
# | float16 | 5 | 10 | 3 | 65,504 | 6.1e-5 |
# | bfloat16 | 8 | 7 | 2 to 3 | 3.4e38 | 1.2e-38 |
#
# float16 has more digits, but gradients are often below 6e-5: with it the loss is multiplied by a large number
# before backward ("loss scaling"). bfloat16 is simply the upper half of a float32, keeps its range, and needs no
# such trick. The project rounds like this:

# %%
import numpy as np

from learn import show, small
from ops.bfloat16 import round_to_bfloat16
from tinygrad2.mixed_precision import TABLE, mixed_precision

plt = show.pyplot()
show.source(round_to_bfloat16)

# %% [markdown]
# ## Predict
#
# A weight of 1.0 in bfloat16 gets 1,000 updates of +0.001 each, rounded to bfloat16 after each. **What is it at the
# end?** (In exact numbers: 2.0.)

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
def bf16(x):
    return round_to_bfloat16(np, np.asarray(x, np.float32))


weight = bf16(1.0)
for _ in range(1000):
    weight = bf16(weight + np.float32(0.001))
show.guess(my_guess, float(weight), "the weight after 1,000 updates")
print(f"the number after 1 is {1 + 2.0**-7} in bfloat16 and {1 + 2.0**-10:.6f} in float16; half a step is rounded away")
assert weight == 1.0

# %% [markdown]
# It does not move at all: an update of less than half the distance to the next number (1/256 of the weight) is
# rounded away, each time. And an update-to-weight ratio of 1e-3 is the healthy one (lesson 12)! **So weights are
# kept in float32** (master weights), and so are Adam's moments.
#
# Sums have the same problem: a sum that has grown swallows what is added. Products do not. Here is a matrix product
# of 16-bit numbers whose *sum* is float32, and the same with a 16-bit sum:

# %%
rng = np.random.default_rng(0)
a, b = rng.random(4096, dtype=np.float32), rng.random(4096, dtype=np.float32)
exact = float((a.astype(np.float64) * b).sum())
products = bf16(a) * bf16(b)  # exact in float32: 8 + 8 bits fit into 24
in_float32 = float(products.sum())
running = np.float32(0)
for product in products:
    running = bf16(running + product)
print(f"exact {exact:.2f}; 16-bit factors, float32 sum {in_float32:.2f}; 16-bit sum {float(running):.2f}")
assert abs(in_float32 / exact - 1) < 1e-2 < abs(float(running) / exact - 1)

# %% [markdown]
# Rounding a factor makes an error of up to 1/512 of it, up or down by chance, and over thousands of products the
# errors cancel. This is why a training in "bfloat16" is *mixed*: the table of the project says what is rounded,
# what is kept, and why.

# %%
for row in TABLE:
    print(f"{', '.join(row.ops):27} products: {row.operands or '-':18} waits: {row.waits}")
    print(f"{'':27} because: {row.why}")

# %% [markdown]
# Does it harm? The same small training twice, from the same weights:

# %%
curves = {}
for dtype in ("float32", "bfloat16"):
    with mixed_precision(dtype):
        curves[dtype] = small.train(small.gpt(), 100)
    print(f"{dtype:9} mean of the last ten losses {curves[dtype][-10:].mean():.3f}")
gap = np.abs(curves["float32"] - curves["bfloat16"])
assert gap[:5].max() < 0.02 and gap[-10:].mean() < 0.3

# %% [markdown]
# ## Build
#
# Round float32 to bfloat16 by *cutting off* the lower 16 bits (toward zero). `x.view(np.uint32)` has the bits, a
# mask keeps the upper half, `.view(np.float32)` makes it a number again. (The project rounds to nearest; the check
# will tell you what cutting costs.)

# %%
def my_cut(x):
    """float32 x with its lower 16 bits zero."""
    # your line


# %%
def check_cut(cut):
    x = np.array([1.0, 1.0039, -3.14159, 1e-30, 65504.0], np.float32)
    got = cut(x)
    assert got.dtype == np.float32, f"the result is {got.dtype}"
    assert not (got.view(np.uint32) & 0xFFFF).any(), "the lower 16 bits must be zero"
    assert (np.abs(got) <= np.abs(x)).all() and (np.abs(got) > np.abs(x) * (1 - 1 / 128)).all(), f"{x} became {got}"


show.exercise(my_cut, check_cut)

# %% tags=["answer"]
def cut_answer(x):
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


show.answer(cut_answer, check_cut)
x = rng.random(100_000, dtype=np.float32) + 1
nearest, cut = float((bf16(x) - x).mean()), float((cut_answer(x) - x).mean())
print(f"mean error: rounding to nearest {nearest:+.1e}, cutting {cut:+.1e}")

# %% [markdown]
# Cutting is not only twice as inexact: all its errors point the same way, and errors that point the same way do not
# cancel in a sum.
#
# ## Break
#
# Somebody trains "in bfloat16" and keeps everything in 16 bits, to save memory. The loss falls more slowly than
# ours. **Which line is it?** The last column, the share of the weights that a step changes, is a hint.

# %%
class Training:
    """A training in bfloat16 that notes which share of the weights each step changes."""

    def __init__(self, rounded):
        self.rounded, self.last, self.changed = rounded, None, []

    def watch(self, step, model, flat):
        if self.rounded:
            flat.data[...] = bf16(flat.data)
        if self.last is not None:
            self.changed.append(float(np.mean(flat.data != self.last)))
        self.last = flat.data.copy()

    def run(self, steps=200, lr=1e-3):
        with mixed_precision("bfloat16"):
            return small.train(small.gpt(), steps, lr=lr, watch=self.watch)


our_training, their_training = Training(rounded=False), Training(rounded=True)
ours, theirs = our_training.run(), their_training.run()
for name, losses, training in ("ours", ours, our_training), ("theirs", theirs, their_training):
    print(f"{name:6} last losses {losses[-20:].mean():.3f}; a step changes {training.changed[-1]:.0%} of the weights")
assert theirs[-20:].mean() > ours[-20:].mean() + 0.05 and their_training.changed[-1] < our_training.changed[-1] - 0.2

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `flat.data[...] = bf16(flat.data)` rounds the **weights** after each step. Products with rounded weights are what
# mixed precision computes anyway; but here the rounded values are all that is left for the next step, and every
# update below half the distance to the next number (1/512 to 1/256 of the weight) is lost, as in Predict. Measure
# how many weights really change in a step, or the update-to-weight ratio. Keep a float32 master copy, and round only
# what goes into a product.
#
# </details>
#
# ## Look
#
# Left: the weight of Predict, in three formats. Between 1 and 2 bfloat16 has only 128 numbers, so it never leaves 1;
# float16 has 1,024, and arrives a little too low. Right: the two trainings of Break.

# %%
history = {"float32": [np.float32(1)], "float16": [np.float16(1)], "bfloat16": [bf16(1.0)]}
for _ in range(1000):
    history["float32"].append(history["float32"][-1] + np.float32(0.001))
    history["float16"].append(history["float16"][-1] + np.float16(0.001))
    history["bfloat16"].append(bf16(history["bfloat16"][-1] + np.float32(0.001)))
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
for name, values in history.items():
    left.plot(np.array(values, np.float64), label=f"{name}: ends at {float(values[-1]):.3f}")
left.set(xlabel="update of +0.001", ylabel="weight", title="a weight that gets small updates")
left.legend(fontsize=8)
right.plot(ours, label="ours: float32 weights")
right.plot(theirs, label="theirs: weights rounded each step")
right.set(xlabel="step", ylabel="loss (nats per token)", title="trainings in bfloat16", ylim=(0, 6.6))
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** many processes, and sums that do not depend on how many.
