# %% [markdown]
# # 10 · One head: the mask, 1/√d, and what happens without each
#
# Attention is a dictionary whose keys match more or less. You write it, look at its weights on a real text, and take
# away the mask and the scale, one at a time, to see what they are for.
#
# ## Read
#
# In a Python dictionary a query equals one key, and you get that key's value. In attention a query `q` is compared
# with **all** keys (a dot product each), the scores become weights that sum to 1 (softmax), and you get the mix of
# all values with these weights. Each position of the text has its own query ("what am I looking for?"), key ("what
# have I got?") and value ("what do I hand over?").
#
# Two more things. **The mask**: a position may only look at itself and at what came before it, because the model is
# to predict what comes next; a score in the future is set to -inf, its weight is exactly 0. **The scale**: the dot
# product of two random vectors of length d has a standard deviation of √d, so the scores are divided by √d.

# %%
import math

import numpy as np

import ops
from learn import show, small
from models.head import Head
from ops.attention import Attention, future
from tinygrad2 import Module, Tensor

plt = show.pyplot()
show.source(Attention)
show.source(future)

# %% [markdown]
# ## Predict
#
# 32 keys and a query, random vectors of length d = 64 with standard deviation 1. The scores are **not** divided by
# √d. **How large is the largest of the 32 weights, on average?** (If all were equal, each would be 0.031.)

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
rng = np.random.default_rng(0)


def largest_weight(d, scaled, n=32, times=400):
    """The mean largest weight over random queries, and the mean size of the softmax's gradient at the scores."""
    q, k = rng.standard_normal((times, 1, d)), rng.standard_normal((times, n, d))
    s = (q * k).sum(-1) / (math.sqrt(d) if scaled else 1.0)
    x = Tensor(s, requires_grad=True)
    w = ops.softmax(x)
    w.backward(rng.standard_normal(s.shape))
    return w.numpy().max(-1).mean(), np.abs(x.grad).sum(-1).mean()


without, gradient_without = largest_weight(64, scaled=False)
with_scale, gradient_with = largest_weight(64, scaled=True)
show.guess(my_guess, without, "largest weight without the scale")
print(f"with the scale: {with_scale:.3f}")
print(f"gradient that gets through the softmax: with the scale {gradient_with:.2f}, without {gradient_without:.2f}")
assert without > 0.8 > 0.3 > with_scale and gradient_with > 2 * gradient_without

# %% [markdown]
# Without the scale one key gets nearly everything before anything is learned, and the softmax, being almost a
# maximum, lets little gradient through: the head cannot easily change its mind. That is all the scale is for.
#
# **A dictionary.** Three keys with the values 10, 20 and 60; a query in the direction of the second key, longer and
# longer:

# %%
keys = Tensor(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
values = Tensor(np.array([[10.0], [20.0], [60.0]]))
for strength in (0.0, 5.0, 100.0):
    queries = Tensor(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, strength]]))
    print(f"strength {strength:5}: the last position gets {ops.attention(queries, keys, values).numpy()[2, 0]:.2f}")

# %% [markdown]
# **The leak test.** How does one know that a mask is right? Change a token, and see which logits move: none in
# front of it may.

# %%
def first_change(model, position=5):
    """The first position whose logits move if the token at `position` is changed."""
    x = small.tokens()[None, :16].copy()
    before = model(x)[0].numpy()
    x[0, position] = (x[0, position] + 1) % small.VOCAB
    after = model(x)[0].numpy()
    moved = np.abs(after - before).max(-1)[0] > 0
    return int(np.argmax(moved))


model = small.gpt()
small.train(model, 10)
print("token 5 is changed; the first logits that move are at position", first_change(model))
assert first_change(model) == 5

# %% [markdown]
# ## Build
#
# The head for one sequence, in plain NumPy: `q`, `k`, `v` are (T, d). Scores, scale, mask, softmax, mix. A mask is
# `np.where(future, -np.inf, s)` with `future` true where the key's position is larger than the query's.
#
# The labs of this lesson, on the shipped source: `causal_mask` and `attention_backward`
# (`python -m tinygrad2 lab start causal_mask`).

# %%
def my_head(q, k, v):
    """Causal attention, (T, d)."""
    # your lines


# %%
def check_head(head):
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((6, 4)) for _ in range(3))
    expected = ops.attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    got = head(q, k, v)
    assert got.shape == (6, 4), f"the shape is {got.shape}"
    np.testing.assert_allclose(got[0], v[0], err_msg="the first position can only see itself")
    without_scale = ops.attention(Tensor(2 * q), Tensor(k), Tensor(v)).numpy()    # sqrt(4) = 2
    assert not np.allclose(got, without_scale), "the scores are not divided by the root of d"
    np.testing.assert_allclose(got, expected, atol=1e-12)


show.exercise(my_head, check_head)

# %% tags=["answer"]
def head_answer(q, k, v):
    T, d = q.shape
    s = q @ k.T / math.sqrt(d)
    s = np.where(np.arange(T)[None, :] > np.arange(T)[:, None], -np.inf, s)
    w = np.exp(s - s.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True) @ v


show.answer(head_answer, check_head)

# %% [markdown]
# ## Break
#
# Here is a head from a blog post, put into our model in place of the shipped one. Look at the two losses: **theirs
# is better.** Then at the text that each model writes. What is wrong, and with which test of this lesson do you
# find it in one line?

# %%
class TheirHead(Module):
    """Causal attention."""

    def __init__(self, scale=True):
        self.scale = scale

    def forward(self, q, k, v):
        T, d = k.shape[-2], q.shape[-1]
        scores = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(d) if self.scale else 1.0)
        causal = np.triu(np.ones((T, T), bool), k=2)[-q.shape[-2] :]  # True: in the future
        mask = np.where(causal, -np.inf, 0.0).astype(np.float32)
        return ops.softmax(scores + mask) @ v


def trained(head, steps=300):
    model = small.gpt()
    model.h[0].attn.head = head
    return model, small.train(model, steps)


ours, our_losses = trained(Head())
theirs, their_losses = trained(TheirHead())
for name, m, losses in ("ours", ours, our_losses), ("theirs", theirs, their_losses):
    print(f"{name:6} loss {losses[-10:].mean():.2f}; {small.text(m, length=24)}")
assert their_losses[-10:].mean() < our_losses[-10:].mean() - 0.2

# %% tags=["answer"]
print("ours:   the first logits that move are at position", first_change(ours), "(token 5 was changed)")
print("theirs: the first logits that move are at position", first_change(theirs))
assert first_change(ours) == 5 and first_change(theirs) == 4

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The mask is off by one: `k=2` forbids position t to look at t+2 and later, but t+1, the very token it is to predict,
# it may see. The model learns to copy it, so the loss falls below anything that an honest model reaches. When it
# writes there is no next token yet, and it has learned little else. A loss that is too good is a symptom. Right:
#
# ```python
# causal = np.triu(np.ones((T, T), bool), k=1)
# ```
#
# A second mistake of this kind: a *finite* mask, -10,000 instead of -inf. It works until the model learns scores
# below -10,000, and it will, since that is the way to cheat. This has happened in a well-known small GPT.
#
# </details>
#
# ## Look
#
# The attention weights of your trained model on a text, one of its four heads: each row is a position that looks,
# each column a position that is looked at. The upper triangle is exactly zero. And on the right, why the scale is
# there: the largest of 32 weights for random vectors of each length.

# %%
ids = small.tokens()[:13]
block = ours.h[0]
x = ours.wte(ids[None]) + ours.wpe(np.arange(len(ids)))
q, k, _ = ops.split_heads(block.attn.c_attn(block.ln_1(x)), 4)   # of four heads; lesson 11 takes this line apart
q, k = q.numpy()[0], k.numpy()[0]
scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
weights = ops.softmax(Tensor(np.where(future(np, len(ids), len(ids)), -np.inf, scores))).numpy()   # (heads, T, T)
assert np.allclose(weights.sum(-1), 1, atol=1e-6) and not np.triu(weights, 1).any()
head = int((weights * (1 - np.eye(len(ids)))).sum((1, 2)).argmax())   # the one that looks away from itself most

names = [repr(small.tokenizer().decode([i]))[1:-1] for i in ids.tolist()]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.4), gridspec_kw={"width_ratios": [1.4, 1]})
picture = left.imshow(weights[head], cmap="Blues", vmin=0, vmax=1)
left.set_xticks(range(len(ids)), names, rotation=90, fontsize=8)
left.set_yticks(range(len(ids)), names, fontsize=8)
left.set(xlabel="token that is looked at", ylabel="token that looks", title=f"attention weights, head {head}")
left.grid(False)
figure.colorbar(picture, ax=left, shrink=0.7)
lengths = [4, 8, 16, 32, 64, 128]
right.plot(lengths, [largest_weight(d, False)[0] for d in lengths], "o-", label="without 1/√d")
right.plot(lengths, [largest_weight(d, True)[0] for d in lengths], "o-", label="with 1/√d")
right.set_xscale("log", base=2)
right.set_xticks(lengths, [str(d) for d in lengths])
right.set(xlabel="length d of the vectors", ylabel="largest of 32 weights (mean)", ylim=(0, 1))
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** one head gives one mix per position. Lesson 11: many heads, blocks, and what holds a deep stack together.
