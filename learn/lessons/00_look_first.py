# %% [markdown]
# # 0 · Look first: train, sample, explain one step
#
# You train a language model, let it write, and take one step of its training apart. Nothing is explained to the
# bottom yet: each piece you see here has its own lesson.
#
# **You need** Python and a little NumPy. Every lesson has the same six parts: Read, Predict, Run, Build, Break, Look.
#
# ## Read
#
# A language model gets some *tokens* (numbers that stand for pieces of text) and returns, at every position, a
# probability for each token that could come next. Training repeats five lines:
#
# 1. take a batch: tokens `x`, and `y`, the tokens that follow them;
# 2. **forward**: compute the loss, the mean of -ln(probability that the model gave to the right next token);
# 3. **backward**: compute the gradient, that is, for each parameter, how the loss changes if it grows a little;
# 4. clip the gradient if it is very long;
# 5. **update**: move each parameter a little against its gradient.
#
# This is the loop of the lessons. The training script `train_gpt2.py` has the same five lines, and around them what a
# training of days needs (checkpoints, several processes, validation).

# %%
import math

import numpy as np

import ops
from learn import show, small
from train_gpt2 import Trainer

plt = show.pyplot()
show.source(small.train)

# %% [markdown]
# And the same step in the training script. Look for the five lines; do not try to understand the rest today.

# %%
show.source(Trainer.step)

# %% [markdown]
# ## Predict
#
# The vocabulary of this small model has 512 tokens. Before training it knows nothing, so each token gets about the
# same probability. **What is its first loss?** Replace `None` by a number, even a bad one, before you go on.

# %%
my_guess = None

# %% [markdown]
# ## Run
#
# The text first: the stories that come with the project, as tokens.

# %%
tokenizer, tokens = small.tokenizer(), small.tokens()
print(show.stories(150))
print(f"{len(show.stories()):,} characters, {len(tokens):,} tokens; the first ten:")
print([tokenizer.decode([token]) for token in tokens[:10].tolist()])

# %% [markdown]
# Now the model writes, learns for 300 steps, and writes again.

# %%
model = small.gpt()
print(f"{model.count_parameters():,} parameters\n")
print("before:", small.text(model))
losses = small.train(model, 300)
print("\nafter: ", small.text(model))

# %%
show.guess(my_guess, losses[0], "first loss")
print(f"ln 512 = {math.log(512):.4g}: all tokens equally likely")
print(f"mean loss of the last ten steps: {losses[-10:].mean():.3g}")
print(f"so the right token gets {math.exp(-losses[-10:].mean()):.0%} (geometric mean) instead of {1 / 512:.1%}")
assert abs(losses[0] - math.log(512)) < 0.2 and losses[-10:].mean() < 3

# %% [markdown]
# ### One step, explained
#
# The gradient says how the loss changes if a parameter changes. So a very small step of size `h` against the
# gradient `g` should lower the loss of the same batch by `h * sum(g * g)`. That is a prediction; the second forward
# pass checks it.

# %%
x, y = small.loader().batch((0, 0))
model.zero_grad()
before = model.loss(x, y)
before.backward()
slope = sum(float((p.grad**2).sum()) for p in model.parameters())

h = 1e-3 / slope                                                  # small enough for a straight line
for p in model.parameters():
    p.data -= h * p.grad
after = model.loss(x, y)

predicted, measured = -h * slope, float(after) - float(before)
print(f"loss {float(before):.4f}; predicted change {predicted:.5f}, measured {measured:.5f}")
assert abs(measured / predicted - 1) < 0.1

# %% [markdown]
# ## Build
#
# A stream of tokens becomes a pair: `x` is what the model sees, `y` what it should say. At every position the
# target is the token that follows. Write it: from `ids`, return `x` of `length` tokens from position `start`, and
# its `y`.

# %%
def pair(ids, start, length):
    """(x, y), two arrays of `length` ids, y one further than x."""
    # your line: return ...


# %%
def check_pair(pair):
    ids = np.arange(100, 120)
    x, y = pair(ids, 3, 5)
    np.testing.assert_array_equal(x, [103, 104, 105, 106, 107])
    np.testing.assert_array_equal(y, [104, 105, 106, 107, 108], "y is x, one further")


show.exercise(pair, check_pair)

# %% [markdown]
# The next cell is the answer. In a notebook it is folded; open it when you have tried.

# %% tags=["answer"]
def pair_answer(ids, start, length):
    return ids[start : start + length], ids[start + 1 : start + length + 1]


show.answer(pair_answer, check_pair)

# %% [markdown]
# ## Break
#
# Somebody wrote their own loader on top of ours. Their training runs, the loss falls, nothing crashes, and the texts
# are worse. **One line is wrong.** Compare the two losses below, then look at the pairs as text, and say which line.

# %%
class TheirLoader:
    """Batches for small.train."""

    def __init__(self):
        self.inner = small.loader()

    def batch(self, position):
        x, y = self.inner.batch(position)
        y = np.roll(y, -1, axis=1)                                # targets are the tokens that follow
        return x, y

    def after(self, position):
        return self.inner.after(position)


theirs = small.gpt()
their_losses = small.train(theirs, 150, batches=TheirLoader())
print(f"after 150 steps: ours {losses[140:150].mean():.2f}, theirs {their_losses[140:].mean():.2f}")
print("theirs:", small.text(theirs))

# %%
for name, batches in ("ours", small.loader()), ("theirs", TheirLoader()):
    x, y = batches.batch((0, 0))
    print(f"{name:6}  x {[tokenizer.decode([t]) for t in x[0, :6].tolist()]}")
    print(f"{'':6}  y {[tokenizer.decode([t]) for t in y[0, :6].tolist()]}")
assert their_losses[140:].mean() > losses[140:150].mean() + 0.3

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `y = np.roll(y, -1, axis=1)` shifts targets that are shifted already: the loader returns `y` one further than `x`.
# The model learns to predict the token after the next one, which is harder, so its loss stays higher; and as it is
# asked for the *next* token when it writes, it leaves out every second word. This mistake has been made in
# well-known libraries: whoever gets `(x, y)` should print one pair as text before the first training.
#
# </details>
#
# ## Look
#
# Your run: the loss of every step, beside what a model that knows nothing gets.

# %%
plt.figure()
plt.plot(losses, label="ours")
plt.plot(their_losses, label="theirs: targets shifted twice")
plt.axhline(math.log(512), color="gray", linestyle="--", label="ln 512: knows nothing")
plt.xlabel("step")
plt.ylabel("loss (nats per token)")
plt.title("Training loss of two models with 85 thousand parameters")
plt.ylim(0, 7)
plt.legend(loc="lower left")
plt.show()

# %% [markdown]
# And what the trained model says after "Once upon a": its eight most probable next tokens.

# %%
logits, _ = model(np.array([tokenizer.encode("Once upon a")]))
p = ops.softmax(logits)[0, -1].numpy()
best = np.argsort(-p)[:8]
plt.figure(figsize=(7.2, 3))
plt.barh([repr(tokenizer.decode([i])) for i in best.tolist()][::-1], p[best][::-1])
plt.xlabel("probability")
plt.title("The next token after 'Once upon a'")
plt.show()

# %% [markdown]
# More of such pictures, of a model and a text of yours: after `python train_gpt2.py`, the command `python -m
# tinygrad2 explain --prompt "Once upon a"` writes a page with each head's attention and what every layer would say,
# and with `--step` one with the gradients of a training step.
#
# **Next:** how does `backward()` know the gradient of each parameter? Lesson 1 builds it for single numbers, in 60
# lines.
