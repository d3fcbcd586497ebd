# %% [markdown]
# # 24 · Many processes: sums that do not depend on how many
#
# A training on four processes should be *the same* training as on one: same loss, same weights, to the last bit.
# You find out why it usually is not, and what it takes.
#
# ## Read
#
# **Data parallelism**: every process (*rank*) has the whole model and takes a part of the batch; the gradients of
# all ranks are added ("all-reduce"), and each rank makes the same update. Mathematically that is the gradient of
# the whole batch. Two things can still make it another training.
#
# 1. **The mean.** A loss is a mean over tokens. The mean of the ranks' means is the mean of all only if each rank
#    has the same number of tokens. So: add up sums, count tokens, divide once, *then* clip.
# 2. **Rounding.** Floating-point addition is not associative: `(a + b) + c` and `a + (b + c)` differ in the last
#    bit. If the order of the additions depends on the number of ranks, so does the result, and the difference grows
#    from step to step.
#
# The project numbers the micro-batches of a step across all ranks and adds them in a fixed binary tree. One rank
# does all of the tree, two ranks one half each, four a quarter. Within a rank it works like a binary counter:

# %%
import math

import numpy as np

from learn import show, small
from tinygrad2.distributed.reducer import Reducer
from tinygrad2.flat_buffers import FlatBuffers
from train_gpt2 import Trainer

plt = show.pyplot()
show.source(Reducer.carry)
show.source(Trainer.gather_losses)

# %% [markdown]
# ## Predict
#
# In float32, 16,777,216 (2^24) + 1 + 1 is added from left to right. **By how much is the result larger than
# 16,777,216?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
big, one = np.float32(2**24), np.float32(1)
show.guess(my_guess, float((big + one) + one) - 2**24, "larger by, from left to right")
print(f"from right to left: {float(big + (one + one)) - 2**24:.0f}")
assert (big + one) + one == big != big + (one + one)

# %% [markdown]
# Now real gradients: a batch of 8 rows, the gradient of each row on its own, and their sum as 1, 2, 4 or 8 ranks
# would compute it, first each rank adding its rows one after the other, then the ranks' sums.

# %%
model = small.gpt()
small.train(model, 20)
flat = FlatBuffers(model)
x, y = small.loader(rows=8).batch((0, 0))


def gradient(rows):
    flat.zero_grad()
    model.loss(x[rows], y[rows]).backward()
    return flat.grad.copy()


rows = [gradient(slice(i, i + 1)) for i in range(8)]


def one_after_the_other(parts):
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def plain(ranks):
    """Each rank adds its rows, then the ranks' sums are added."""
    n = len(rows) // ranks
    return one_after_the_other([one_after_the_other(rows[i * n : (i + 1) * n]) for i in range(ranks)])


def tree(parts):
    """Neighbours in pairs, then pairs of pairs, ...: the same whoever does which part of it."""
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


def in_tree(ranks):
    n = len(rows) // ranks
    return tree([tree(rows[i * n : (i + 1) * n]) for i in range(ranks)])


different = {}
for ranks in (1, 2, 4, 8):
    different[ranks] = [float(np.mean(f(ranks) != f(1))) for f in (plain, in_tree)]
    print(f"{ranks} ranks: other bits than with one, plain {different[ranks][0]:.0%}, tree {different[ranks][1]:.0%}")
assert all(tree_share == 0 for _, tree_share in different.values()) and different[2][0] > 0.1

# %% [markdown]
# ## Build
#
# The binary tree for any stream of values that come one at a time, without keeping them all: a stack of partial
# sums, like the digits of a binary counter. Return the sum of `values` (a power of two of them) in tree order.
#
# The labs of this lesson, on the shipped source: `exact_checkpoint` and `tree_allreduce`
# (`python -m tinygrad2 lab start exact_checkpoint`). The first is the same promise for a training that is stopped and
# continued: what must be saved, so that not one bit differs?

# %%
def my_tree_sum(values):
    """((v0 + v1) + (v2 + v3)) + ..., one array."""
    # your lines: for each value, while the top of the stack has the same number of terms, add


# %%
def check_tree_sum(tree_sum):
    order = np.random.default_rng(0)
    values = [(1000 * order.standard_normal(200)).astype(np.float32) ** 3 for _ in range(8)]
    got = tree_sum([value.copy() for value in values])
    assert got.shape == (200,), f"the shape is {got.shape}"
    assert np.allclose(got, np.sum(values, 0, dtype=np.float64), rtol=1e-3, atol=1e5), "it is not the sum"
    assert (got == tree(values)).all(), "the sum is right, but the bits are those of another order"


show.exercise(my_tree_sum, check_tree_sum)

# %% tags=["answer"]
def tree_sum_answer(values):
    stack = []                                                    # (number of terms, their sum)
    for value in values:
        terms = 1
        while stack and stack[-1][0] == terms:
            left = stack.pop()
            terms, value = 2 * terms, left[1] + value
        stack.append((terms, value))
    return stack[0][1]


show.answer(tree_sum_answer, check_tree_sum)

# %% [markdown]
# ## Break
#
# A data-parallel training, two ranks. Rank 0's texts are full; rank 1's end early, and the rest of its targets is
# -1 (ignored). With one rank their gradient is right. **Which line makes two ranks another training?**

# %%
targets = y.copy()
targets[4:, 6:] = -1                                              # rank 1: rows 4 to 7 have six targets each


def loss_and_gradient(rows):
    flat.zero_grad()
    loss = model.loss(x[rows], targets[rows])
    loss.backward()
    return float(loss), flat.grad.copy()


def their_step(ranks):
    n = 8 // ranks
    found = [loss_and_gradient(slice(i * n, (i + 1) * n)) for i in range(ranks)]
    return sum(loss for loss, _ in found) / ranks, sum(gradient for _, gradient in found) / ranks


for ranks in (1, 2):
    loss, found = their_step(ranks)
    print(f"{ranks} rank(s): loss {loss:.4f}, norm of the gradient {np.linalg.norm(found):.4f}")
assert abs(their_step(1)[0] - their_step(2)[0]) > 1e-3

# %% tags=["answer"]
def right_step(ranks):
    n = 8 // ranks
    parts = [slice(i * n, (i + 1) * n) for i in range(ranks)]
    counts = [int((targets[part] != -1).sum()) for part in parts]
    found = [loss_and_gradient(part) for part in parts]
    loss = sum(count * loss for count, (loss, _) in zip(counts, found)) / sum(counts)
    return loss, sum(count * gradient for count, (_, gradient) in zip(counts, found)) / sum(counts)


print(f"one rank {right_step(1)[0]:.5f}, two ranks {right_step(2)[0]:.5f}")
assert math.isclose(right_step(1)[0], right_step(2)[0], rel_tol=1e-5)
assert np.allclose(right_step(1)[1], right_step(2)[1], atol=1e-5)

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `/ ranks`: a mean of means. Rank 1 has 24 targets and rank 0 has 128, but both get the weight one half, so each of
# rank 1's tokens counts five times as much. The same mistake is made with gradient accumulation, where the last
# micro-batch is shorter. Weight with the number of tokens, and divide once.
#
# </details>
#
# ## Look
#
# The share of the 85 thousand gradients whose bits depend on the number of ranks, in your run; and, for the plain
# order, by how much they differ.

# %%
ranks = (1, 2, 4, 8)
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
places = np.arange(4)
left.bar(places - 0.2, [100 * different[r][0] for r in ranks], width=0.4, label="one after the other")
left.bar(places + 0.2, [100 * different[r][1] for r in ranks], width=0.4, label="fixed tree (all zero)")
left.set_xticks(places, [str(r) for r in ranks])
left.set(xlabel="ranks", ylabel="gradients with other bits (%)", ylim=(0, 100), title="compared with one rank")
left.legend(fontsize=8)
a, b = plain(1), plain(4)
changed = (a != b) & (a != 0)
right.hist(np.log10(np.abs(a[changed] - b[changed]) / np.abs(a[changed])), bins=40)
right.set(xlabel="log10 of the relative difference, 4 ranks", ylabel="number of gradients", title="one after the other")
plt.show()

# %% [markdown]
# (With eight ranks each has one row, so the plain order is again that of one rank.)
#
# Differences in the seventh digit; but a training is a long chain, and they grow from step to step. Identical bits
# are worth having for one reason above all: *any* difference is then a mistake. Try it:
#
#     mpirun -n 4 python train_gpt2.py --seed 1337
#
# and what happens when one of the four dies is on the page `docs/cluster.md`: the job ends with a message that
# names it.
