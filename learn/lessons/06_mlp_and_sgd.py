# %% [markdown]
# # 6 · MLP and SGD
#
# More context without a larger table: letters become vectors, and a small network looks at several of them. And the
# plainest of all optimizers, its one number, and what happens when that number is wrong.
#
# ## Read
#
# A table for the last k tokens has V^k rows, nearly all of them never seen. Bengio and others (2003) gave each
# token a short learned *vector* instead, put the vectors of the last k tokens side by side, and let a network with
# one hidden layer compute the scores. What is learned for one context serves all similar ones, because similar
# tokens get similar vectors.
#
# **SGD**, stochastic gradient descent: take a random part of the data (a *batch*), compute the gradient, take a
# step against it. The gradient of a batch is that of the whole text plus noise, and far cheaper.

# %%
import numpy as np

from learn import show
from models.bigram import count_bigrams
from models.mlp_lm import MLPConfig, MLPLanguageModel
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optimizers import SGD

plt = show.pyplot()
show.source(MLPLanguageModel)
show.source(SGD.update)

# %% [markdown]
# ## Predict
#
# A table for the last **four** of 27 letters: **how many rows?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
LETTERS = " abcdefghijklmnopqrstuvwxyz"
text = "".join(c if c in LETTERS else " " for c in show.stories(100_000).lower())
ids = np.array([LETTERS.index(c) for c in " ".join(text.split())])
seen = len({tuple(ids[i : i + 4].tolist()) for i in range(len(ids) - 4)})
show.guess(my_guess, 27**4, "rows")
print(f"of these {seen:,} occur in our {len(ids):,} letters")


def mlp(k, seed=1):
    """A model of the last k letters: 10 numbers per letter, 64 hidden units."""
    return MLPLanguageModel(MLPConfig(block_size=32, vocab_size=27, n_context=k, n_embd=10, n_hidden=64), seed=seed)


def train(model, lr, steps=400, momentum=0.0, batches=None):
    """Plain SGD; returns the loss of each step."""
    flat, batches, position = FlatBuffers(model), batches or DataLoader(ids, 16, 32, order="shuffled", seed=1), (0, 0)
    optimizer, losses = SGD(flat, momentum=momentum), []
    for _ in range(steps):
        x, y = batches.batch(position)
        position = batches.after(position)
        flat.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step(lr)
        losses.append(float(loss))
    return np.array(losses)


bigram_floor = -count_bigrams(ids, 27)[ids[:-1], ids[1:]].mean()
model = mlp(4)
print(f"{model.count_parameters():,} parameters instead of {27**4 * 27:,} entries of a table")
curve = train(model, lr=0.1, momentum=0.9)
print(f"first loss {curve[0]:.2f}, last {curve[-20:].mean():.2f}; the best bigram {bigram_floor:.2f}")
assert curve[-20:].mean() < bigram_floor

# %% [markdown]
# The learning rate, without momentum: too small, about right, too large.

# %%
rates = {lr: train(mlp(4), lr, steps=200) for lr in (0.003, 0.3, 30.0)}
for lr, losses in rates.items():
    print(f"lr {lr:6}: loss after 200 steps {losses[-20:].mean():.2f}, largest {losses.max():.2f}")
assert rates[0.3][-20:].mean() < min(rates[0.003][-20:].mean(), rates[30.0][-20:].mean())

# %% [markdown]
# And the context: more letters, lower loss, with few parameters more.

# %%
contexts = {k: train(mlp(k), lr=0.1, momentum=0.9)[-50:].mean() for k in (1, 2, 4, 8)}
print({k: round(float(loss), 2) for k, loss in contexts.items()})
assert contexts[1] > contexts[2] > contexts[4]

# %% [markdown]
# ## Build
#
# One step of SGD with momentum: `u` is the velocity, `u <- momentum u + g`, then `p <- p - lr u`. Return the new
# `(p, u)`.

# %%
def my_sgd(p, g, u, lr, momentum):
    """(p, u) after the step."""
    # your lines


# %%
def check_sgd(sgd):
    p, u = sgd(np.array([1.0]), np.array([2.0]), np.array([0.0]), 0.1, 0.9)
    assert np.allclose(p, 0.8) and np.allclose(u, 2), f"first step: p = {p}, u = {u}, should be 0.8 and 2"
    p, u = sgd(p, np.array([2.0]), u, 0.1, 0.9)
    assert np.allclose(u, 3.8) and np.allclose(p, 0.42), f"second step: p = {p}, u = {u}, should be 0.42 and 3.8"
    for _ in range(200):
        _, u = sgd(p, np.array([2.0]), u, 0.1, 0.9)
    assert np.allclose(u, 20), f"a constant gradient of 2 makes the velocity 2 / (1 - 0.9) = 20, not {u}"


show.exercise(my_sgd, check_sgd)

# %% tags=["answer"]
def sgd_answer(p, g, u, lr, momentum):
    u = momentum * u + g
    return p - lr * u, u


show.answer(sgd_answer, check_sgd)

# %% [markdown]
# ## Break
#
# A training that is a hundred times better than ours after 400 steps. **Why is it worthless, and which line is
# it?** Print a row of `x` and `y` as letters.

# %%
class TheirLoader:
    """Batches of letters."""

    def __init__(self):
        self.inner = DataLoader(ids, 16, 33, order="shuffled", seed=1)

    def batch(self, position):
        window, _ = self.inner.batch(position)
        return window[:, 1:], window[:, 1:]

    def after(self, position):
        return self.inner.after(position)


theirs = train(mlp(4), lr=0.1, momentum=0.9, batches=TheirLoader())
print(f"loss: ours {curve[-20:].mean():.3f}, theirs {theirs[-20:].mean():.3f}")
assert theirs[-20:].mean() < 0.3

# %% tags=["answer"]
x, y = TheirLoader().batch((0, 0))
print("x", "".join(LETTERS[i] for i in x[0]))
print("y", "".join(LETTERS[i] for i in y[0]))

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The targets are not shifted: `y` is `x` itself. The model sees the letter that it is to say, learns to repeat it,
# and has learned nothing else. In lesson 0 the targets were shifted twice and the loss was too high; here they are
# not shifted at all and it is too low. The same print finds both. Right: `window[:, :-1], window[:, 1:]`.
#
# </details>
#
# ## Look
#
# Left: three learning rates. Right: the vectors of the letters, ten numbers each, drawn in the two directions in
# which they differ most. Letters that play similar roles tend to lie near each other. After so short a training,
# and with only a part of the differences visible in two directions, the pattern is weak: four of the five vowels
# lie on one side. Nobody told the model what a vowel is.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4))
for lr, losses in rates.items():
    left.plot(np.minimum(losses, 12), label=f"lr = {lr}")
left.axhline(bigram_floor, color="gray", linestyle="--", label="best bigram")
left.set(xlabel="step", ylabel="loss (nats per letter, cut at 12)", ylim=(0, 12.5), title="plain SGD")
left.legend(fontsize=8)
vectors = model.wte.weight.data[:27]
centered = vectors - vectors.mean(0)
_, sizes, directions = np.linalg.svd(centered, full_matrices=False)
places = centered @ directions[:2].T
shown = (sizes[:2] ** 2).sum() / (sizes**2).sum()
for name, place in zip(["␣", *LETTERS[1:]], places):
    color = "firebrick" if name in "aeiou" else "black"
    right.text(*place, name, ha="center", va="center", color=color, fontsize=9)
right.set(xlim=(places[:, 0].min() - 0.3, places[:, 0].max() + 0.3), title="vectors of the letters (vowels red)")
right.set(ylim=(places[:, 1].min() - 0.3, places[:, 1].max() + 0.3))
right.set_xlabel(f"two directions of ten, {shown:.0%} of the variance")
plt.show()

# %% [markdown]
# **Next:** the loss itself. Lesson 7: softmax and cross-entropy.
