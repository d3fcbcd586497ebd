# %% [markdown]
# # 5 · Bigram: counted and trained
#
# The smallest language model there is: a table. One can fill it by counting, or learn it by gradients from zeros,
# and both must come to the same numbers. They do, and so you know that the whole machine of lessons 1 to 4 works.
#
# ## Read
#
# A bigram model predicts the next token from the current one alone. Its table has a row of scores for each token;
# softmax makes probabilities of them. Which table is the best one? For the mean surprise (lesson 7) it is the one
# that can be **counted**: the share of each successor among all successors in the text.
#
# That makes it the ideal test. Training by gradients starts with a table of zeros, knows nothing of counting, and
# has only one way to lower its loss: find the same shares.

# %%
import math

import numpy as np

import ops
from learn import show
from models.bigram import Bigram, BigramConfig, count_bigrams
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optimizers import SGD

plt = show.pyplot()
show.source(Bigram)
show.source(SGD)

# %% [markdown]
# ## Predict
#
# The text below is the beginning of the stories, in small letters: 26 of them and the space, 27 tokens. Knowing
# nothing costs ln 27 = 3.30 nats per letter. **What is left if one knows the letter before?**

# %%
my_guess = None

# %% [markdown]
# ## Run
#
# First count.

# %%
LETTERS = " abcdefghijklmnopqrstuvwxyz"
text = "".join(c if c in LETTERS else " " for c in show.stories(30_000).lower())
ids = np.array([LETTERS.index(c) for c in " ".join(text.split())])
x, y = ids[:-1], ids[1:]
counted = count_bigrams(ids, 27)                                  # (27, 27): ln of the share of each successor
floor = -counted[x, y].mean()
print(f"{len(ids):,} letters: {''.join(LETTERS[i] for i in ids[:60])}...")
show.guess(my_guess, floor, "loss of the counted table")
for letter in "qt ":
    row = np.exp(counted[LETTERS.index(letter)])
    print(f"after {letter!r}:", ", ".join(f"{LETTERS[i]!r} {row[i]:.0%}" for i in np.argsort(-row)[:4]))

# %% [markdown]
# Then train: a table of zeros, the whole text in each step, gradient descent with momentum (the two lines of SGD above;
# lesson 6 takes them apart). `FlatBuffers` puts all parameters into one array, and all gradients into another.

# %%
model = Bigram(BigramConfig(block_size=len(x), vocab_size=27))
flat = FlatBuffers(model)
optimizer, losses = SGD(flat, momentum=0.9), []
for _ in range(600):
    flat.zero_grad()
    loss = model.loss(x[None], y[None])
    loss.backward()
    optimizer.step(15.0)
    losses.append(float(loss))
trained = ops.softmax(model.table.weight).numpy()
print(f"first loss {losses[0]:.4f} = ln 27; after 600 steps {losses[-1]:.4f}; counted {floor:.4f}")
for letter in "qt ":
    row = trained[LETTERS.index(letter)]
    print(f"after {letter!r}:", ", ".join(f"{LETTERS[i]!r} {row[i]:.0%}" for i in np.argsort(-row)[:4]))
assert abs(losses[0] - math.log(27)) < 1e-5 and 0 <= losses[-1] - floor < 2e-3

# %% [markdown]
# (A learning rate of 15 is no misprint: the loss is a mean over all letters, so the row of a rare letter gets a
# tiny gradient. This is the first reason for Adam, lesson 13.)
#
# ## Build
#
# Count. `ids` is an array of token ids; return the table (V, V) of shares: entry [a, b] is how often b follows a,
# divided by how often anything follows a. Rows of tokens that are never followed: 1 / V everywhere.

# %%
def my_shares(ids, V):
    """The probability of each successor, rows sum to 1."""
    # your lines


# %%
def check_shares(shares):
    small = np.asarray(shares(np.array([0, 1, 0, 1, 0, 0]), 3))
    assert small.shape == (3, 3), f"the shape is {small.shape}"
    np.testing.assert_allclose(small.sum(1), 1, err_msg="each row sums to 1")
    assert np.allclose(small[2], 1 / 3), f"token 2 is never followed: 1 / V everywhere, not {small[2]}"
    np.testing.assert_allclose(small, [[1 / 3, 2 / 3, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-12)
    np.testing.assert_allclose(shares(ids, 27), np.exp(counted), atol=1e-12)


show.exercise(my_shares, check_shares)

# %% tags=["answer"]
def shares_answer(ids, V):
    table = np.zeros((V, V))
    np.add.at(table, (ids[:-1], ids[1:]), 1)
    table[table.sum(1) == 0] = 1
    return table / table.sum(1, keepdims=True)


show.answer(shares_answer, check_shares)

# %% [markdown]
# ## Break
#
# A table from somebody else, counted from the same text. All entries are between 0 and 1, and its loss is ours, to
# three digits. A text drawn from it looks odd. **What did they count, and why does the loss not show it?** Look at
# the sums.

# %%
def their_shares(ids, V):
    table = np.zeros((V, V))
    np.add.at(table, (ids[:-1], ids[1:]), 1)
    return table / np.maximum(1, table.sum(0))


theirs = their_shares(ids, 27)
print(f"loss: ours {floor:.3f}, theirs {-np.log(theirs[x, y]).mean():.3f}")
print("sums of the rows of theirs, first five:", theirs.sum(1)[:5].round(2))
print("sums of its columns, first five:       ", theirs.sum(0)[:5].round(2))
assert abs(-np.log(theirs[x, y]).mean() - floor) < 1e-3 and not np.allclose(theirs.sum(1), 1)


# %%
def write(table, n=60, seed=3):
    rng, token, written = np.random.default_rng(seed), 0, ""
    for _ in range(n):
        token = rng.choice(27, p=table[token] / table[token].sum())
        written += LETTERS[token]
    return written


print("ours:  ", write(np.exp(counted)))
print("theirs:", write(theirs))

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `table.sum(0)` makes each *column* sum to 1: that is the probability of the letter **before**, given the one
# behind. The shapes fit, because the table is square. And the loss is the same, since every letter of the text is
# once the first and once the second of a pair: to guess the letter before is as hard as to guess the next one. But
# theirs is no distribution over the next letter, and a loss computed from such numbers means nothing. Check that
# probabilities sum to 1 before you believe a loss. Right: `table.sum(1, keepdims=True)`.
#
# </details>
#
# ## Look
#
# The table that you counted (row: the letter, column: the next one; ␣ is the space), and how the trained one came
# close to it.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4), gridspec_kw={"width_ratios": [1.1, 1]})
picture = left.imshow(np.exp(counted), cmap="Blues", vmin=0, vmax=1)
names = ["␣", *LETTERS[1:]]
left.set_xticks(range(27), names, fontsize=7)
left.set_yticks(range(27), names, fontsize=7)
left.set(xlabel="next letter", ylabel="letter", title="counted shares")
left.grid(False)
figure.colorbar(picture, ax=left, shrink=0.7)
right.loglog(np.arange(1, 601), np.array(losses) - floor)
right.set(xlabel="step", ylabel="loss above that of the counted table (nats)", title="trained, from zeros")
plt.show()

# %% [markdown]
# **Next:** one letter of context is little. A table for four would have half a million rows; lesson 6 does it
# differently.
