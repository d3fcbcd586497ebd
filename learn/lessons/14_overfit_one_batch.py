# %% [markdown]
# # 14 · Overfit one batch first
#
# The cheapest test of a training: can the model learn one batch by heart? If not, something is broken, and no
# amount of data or time will help.
#
# ## Read
#
# A model with more parameters than a batch has tokens can simply memorise it. If everything between the tokens and
# the update works, the loss of one batch that is shown again and again falls to nearly 0 within a few hundred
# steps. If it stops above that, some part cannot learn: a gradient that does not arrive, targets that do not belong
# to the inputs, a learning rate that is far off. The test takes seconds, and it separates "my model is broken" from
# "my data is difficult".
#
# The training script has it as a flag, `python train_gpt2.py --overfit-one-batch`: one line in `Trainer.step`,
# which leaves the position in the data where it is.

# %%
import numpy as np

from learn import show, small
from train_gpt2 import Trainer

plt = show.pyplot()
show.source(Trainer.step)

# %% [markdown]
# ## Predict
#
# One batch of 4 texts of 32 tokens, 200 steps. The first loss is 6.24. **What is the last one?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
class OneBatch:
    """A loader that returns the same batch forever."""

    def __init__(self, x, y):
        self.pair = x, y

    def batch(self, position):
        return self.pair

    def after(self, position):
        return position


x, y = small.loader(rows=4).batch((0, 0))
model = small.gpt()
losses = small.train(model, 200, batches=OneBatch(x, y))
show.guess(my_guess, losses[-1], "last loss")
right = (model(x)[0].numpy().argmax(-1) == y).mean()
print(f"first {losses[0]:.2f}, last {losses[-1]:.3f}; {right:.0%} of the {y.size} targets are the most probable token")
assert losses[-1] < 0.3 and right > 0.95

# %% [markdown]
# **What the test does not say.** Nonsense can be learned by heart as well. The same inputs with *random* targets:

# %%
rng = np.random.default_rng(0)
nonsense = small.train(small.gpt(), 200, batches=OneBatch(x, rng.integers(0, small.VOCAB, y.shape)))
validation = float(model.loss(*small.loader(rows=16, seed=9).batch((0, 0))))
print(f"random targets: {nonsense[-1]:.2f}")
print(f"the model that knows its batch by heart, on other text: {validation:.2f}")
assert nonsense[-1] < 3 and validation > 5

# %% [markdown]
# So a low loss on one batch shows that the machine works, and nothing about what it has understood.
#
# ## Build
#
# The *floor*: even a perfect memory cannot reach 0 if the same context is followed by different tokens. For targets
# that follow the same single token (a model that sees only one token), compute the lowest possible mean loss: for
# each token in `x`, the targets seen after it have some distribution; the best guess is that distribution itself.

# %%
def my_floor(x, y):
    """The lowest mean loss of a model that sees only the current token; x, y (n,) integers."""
    # your lines: for each token, count its targets; the loss of each target is -ln(its share)


# %%
def check_floor(floor):
    assert abs(floor(np.array([1, 2, 3]), np.array([4, 4, 4]))) < 1e-12, "each token has one target: the floor is 0"
    mixed = floor(np.array([1, 1, 1, 1]), np.array([5, 6, 5, 6]))
    assert abs(mixed - np.log(2)) < 1e-12, f"half 5, half 6 after token 1: ln 2, not {mixed}"
    third = floor(np.array([1, 1, 1, 2]), np.array([5, 5, 6, 5]))
    expected = (2 * np.log(3 / 2) + np.log(3)) / 4
    assert abs(third - expected) < 1e-12, f"{third}, should be {expected}"


show.exercise(my_floor, check_floor)

# %% tags=["answer"]
def floor_answer(x, y):
    pairs = list(zip(x.tolist(), y.tolist()))
    return float(np.mean([-np.log(pairs.count(p) / x.tolist().count(p[0])) for p in pairs]))


show.answer(floor_answer, check_floor)
print(f"the floor of our batch for a model that sees one token: {floor_answer(x.ravel(), y.ravel()):.2f}")

# %% [markdown]
# ## Break
#
# The same model, and a loader from somebody else that also shows one batch again and again, "with the four texts in
# another order each time, so that the model does not learn the order". The loss stops far above zero. **At which
# number, why exactly there, and which line is wrong?** Print a row of `x` and `y` as text (lesson 0).

# %%
class TheirOneBatch(OneBatch):
    """One batch, its rows in another order each time."""

    rng = np.random.default_rng(0)

    def batch(self, position):
        x, y = self.pair
        return self.rng.permutation(x), self.rng.permutation(y)


theirs = small.train(small.gpt(), 200, batches=TheirOneBatch(x, y))
print(f"after 200 steps: ours {losses[-1]:.3f}, theirs {theirs[-20:].mean():.3f}")
assert 1 < theirs[-20:].mean() < 2

# %% tags=["answer"]
their_x, their_y = TheirOneBatch(x, y).batch((0, 0))
for name, row in ("x", their_x[0]), ("y", their_y[0]):
    print(name, [small.tokenizer().decode([i]) for i in row[:8].tolist()])
print(f"ln 4 = {np.log(4):.3f}")

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `x` and `y` are shuffled *separately*, so a text gets the targets of one of the four texts, by chance. At each
# position one of four targets is right and the model cannot know which: the best it can do is a quarter for each,
# and the loss stops at ln 4 = 1.39. A plateau is a message: e^1.39 = 4 says "four possibilities, equally likely".
# With more data the same bug gives no clear number, only a bad model; with one batch it is found in seconds. Right:
#
# ```python
# order = self.rng.permutation(len(x))
# return x[order], y[order]
# ```
#
# </details>
#
# ## Look
#
# Your three trainings on one batch, and the two lines that can be known beforehand.

# %%
plt.figure()
plt.plot(losses, label="ours: learned by heart")
plt.plot(nonsense, label="random targets: learned by heart as well")
plt.plot(theirs, label="theirs: x and y shuffled separately")
plt.axhline(np.log(small.VOCAB), color="gray", linestyle="--", label="ln 512: knows nothing")
plt.axhline(np.log(4), color="firebrick", linestyle=":", label="ln 4: one of four, equally likely")
plt.xlabel("step")
plt.ylabel("loss on the batch (nats per token)")
plt.title("One batch of 128 tokens, again and again")
plt.ylim(0, 7)
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** what are these tokens? Lesson 15: tokenization, and the strange things that come from it.
