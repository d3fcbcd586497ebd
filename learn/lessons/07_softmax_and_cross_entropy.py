# %% [markdown]
# # 7 · Softmax and cross-entropy: why fused, and ln V
#
# From scores to probabilities to one number, the loss; why two operations are one in the code; and a training that
# gets stuck at a floor that you can compute beforehand.
#
# ## Read
#
# A model returns one score, a *logit*, for each of the V tokens of the vocabulary. The softmax makes probabilities
# of them: `p_i = e^(x_i) / sum of e^(x_j)`. The loss at a position is the surprise at the right token t: `-ln p_t`.
# If p_t is 1 the loss is 0; if it is 1/2, 0.69; if it is nearly 0, the loss is large. The mean over all positions
# is the *cross-entropy*, in nats per token.
#
# A model that knows nothing gives every token 1/V, so its loss is `-ln(1/V) = ln V`. This is the number to compare
# every first loss with.
#
# **The gradient, derived once.** The softmax has a table of derivatives, `dp_i/dx_j = p_i (1[i=j] - p_j)`, V by V
# numbers. People multiply it out by hand and drown. Take the logarithm first instead:
#
#     loss = -ln p_t = -x_t + ln(sum of e^(x_j))
#
# The first term has derivative -1 at the right token, 0 elsewhere. The second one's derivative with respect to x_j is
# `e^(x_j) / sum`, which is `p_j`. So
#
#     dloss/dx_j = p_j - 1[j=t]             what was predicted minus what was right
#
# The table has cancelled. That is one reason to make one operation of the two; the other one is rounding, below.

# %%
import math

import numpy as np

import ops
from learn import show, small
from models import GPT, GPTConfig
from ops.cross_entropy import CrossEntropy
from tinygrad2 import Tensor, gradcheck

plt = show.pyplot()
show.source(CrossEntropy)

# %% [markdown]
# ## Predict
#
# GPT-2's vocabulary has 50,257 tokens. **What is the loss of an untrained GPT-2?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
rng = np.random.default_rng(0)
V = 50_257
untrained = 0.1 * rng.standard_normal((4, V)).astype(np.float32)  # small random scores, as before training
loss = float(ops.cross_entropy(untrained, rng.integers(0, V, 4)))
show.guess(my_guess, loss, "first loss")
print(f"ln {V:,} = {math.log(V):.3f}")
assert abs(loss - math.log(V)) < 0.5

# %% [markdown]
# The unit: a difference in the loss is a factor in the probability. From 3.0 to 2.9 each right token becomes
# `e^0.1`, 1.105 times as likely, and a text of 100 tokens 22,000 times.
#
# **Rounding.** In two steps, softmax first and logarithm afterwards, a small probability is rounded to zero before
# its logarithm is taken, and large scores overflow before they are divided:

# %%
def in_two_steps(x, target):
    e = np.exp(x)
    return -np.log(e[target] / e.sum())


for scores in ([2.0, 1.0, 0.0], [0.0, 50.0, 110.0], [0.0, 1.0, -150.0]):
    x = np.array(scores, dtype=np.float32)
    with np.errstate(all="ignore"):
        two = [in_two_steps(x, t) for t in range(3)]
    fused = [float(ops.cross_entropy(x[None], [t])) for t in range(3)]
    print(f"scores {str(scores):21} in two steps {np.array(two).round(3)!s:23} fused {np.array(fused).round(3)}")
    assert np.isfinite(fused).all()

# %% [markdown]
# The fused one never computes a probability: it subtracts the largest score first (that cancels in the fraction) and
# uses `ln p_t = x_t - ln(sum of e^x)`. And the gradient is what the derivation says:

# %%
x = Tensor(np.array([[2.0, 1.0, 0.0]]), requires_grad=True)
ops.cross_entropy(x, [1]).backward()
p = ops.softmax(x.detach()).numpy()
print("p       ", p.round(4), "\ngradient", x.grad.round(4), " right token: 1")
assert np.allclose(x.grad, p - [[0, 1, 0]])

# %% [markdown]
# ## Build
#
# The gradient of the mean cross-entropy: `logits` (N, V), `targets` (N,), integers. Return an array (N, V).
#
# The labs of this lesson, on the shipped source: `softmax_backward` and `softmax_cross_entropy`
# (`python -m tinygrad2 lab start softmax_backward`).

# %%
def my_dlogits(logits, targets):
    """d loss / d logits of the mean over N positions."""
    # your lines: probabilities first, then subtract 1 at the targets, then the mean's factor


# %%
def check_dlogits(dlogits):
    rng = np.random.default_rng(1)
    logits, targets = rng.standard_normal((5, 7)), rng.integers(0, 7, 5)
    x = Tensor(logits, requires_grad=True)
    ops.cross_entropy(x, targets).backward()
    got = dlogits(logits.copy(), targets)
    assert got.shape == logits.shape, f"the shape is {got.shape}"
    assert abs(got.sum(1)).max() < 1e-12, "each row must sum to zero: what one token gains, the others lose"
    assert not np.allclose(got, 5 * x.grad), "N times too large: the loss is the mean over N positions"
    np.testing.assert_allclose(got, x.grad, atol=1e-12)
    assert dlogits(logits + 1000, targets).round(9).tolist() == got.round(9).tolist(), "overflows for large scores"


show.exercise(my_dlogits, check_dlogits)

# %% tags=["answer"]
def dlogits_answer(logits, targets):
    e = np.exp(logits - logits.max(1, keepdims=True))
    d = e / e.sum(1, keepdims=True)
    d[np.arange(len(targets)), targets] -= 1
    return d / len(targets)


show.answer(dlogits_answer, check_dlogits)

# %% [markdown]
# ## Break
#
# A model of somebody else. Its first loss is right, its gradients pass `gradcheck`, the training runs, and the loss
# stays above
# 5. **What is wrong, and where exactly is the floor?** The floor can be computed with a pencil.

# %%
class Theirs(GPT):
    """A GPT with their loss."""

    def loss(self, tokens, targets):
        logits, _ = self(tokens)
        probabilities = ops.softmax(logits)
        return ops.cross_entropy(probabilities, targets)


config = GPTConfig(block_size=32, vocab_size=small.VOCAB, n_layer=1, n_head=4, n_embd=64)
ours = small.train(GPT(config, seed=1), 150)
theirs = small.train(Theirs(config, seed=1), 150)
print(f"first loss: ours {ours[0]:.3f}, theirs {theirs[0]:.3f}; last: ours {ours[-1]:.2f}, theirs {theirs[-1]:.3f}")
print(gradcheck(lambda z: ops.cross_entropy(ops.softmax(z), np.array([1, 0])), [rng.standard_normal((2, 5))]))

# %%
floor = -math.log(math.e / (math.e + small.VOCAB - 1))
print(f"the floor: {floor:.3f}")
assert theirs.min() > floor and ours[-1] < 4

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The softmax twice: `cross_entropy` applies its own to what it is given, and gets probabilities instead of scores.
# They lie between 0 and 1, so even a perfect prediction, 1 for the right token and 0 for all others, becomes `e /
# (e + V - 1)` after the second softmax: with V = 512 the loss cannot get below 5.24. `gradcheck` cannot find it,
# since the gradient of this loss is right; it is the wrong loss. What finds it is the question "how low could this
# number get?".
#
# ```python
# return ops.cross_entropy(logits, targets)
# ```
#
# </details>
#
# ## Look
#
# Left: both trainings and the two lines that one can know beforehand. Right: one position of your model, the
# predicted probabilities of some tokens and the gradient at their scores. Only the right token is pushed up; all
# others are pushed down, each by as much as it was believed.

# %%
model = small.gpt()
small.train(model, 150)
tokenizer = small.tokenizer()
ids = np.array([tokenizer.encode("Once upon a time there")])
logits, _ = model(ids[:, :-1])
z = Tensor(logits.numpy()[0, -1:].astype(np.float64), requires_grad=True)
target = int(ids[0, -1])
ops.cross_entropy(z, [target]).backward()
p = ops.softmax(z.detach()).numpy()[0]
shown = [i for i in np.argsort(-p)[:7].tolist() if i != target][:6]
shown = [target, *shown]

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
left.plot(ours, label="ours")
left.plot(theirs, label="softmax twice")
left.axhline(math.log(512), color="gray", linestyle="--", label="ln 512")
left.axhline(floor, color="firebrick", linestyle=":", label="floor, softmax twice")
left.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, 7), title="two trainings")
left.legend(loc="lower left", fontsize=8)
rows = np.arange(len(shown))
right.barh(rows - 0.2, p[shown], height=0.4, label="p")
right.barh(rows + 0.2, z.grad[0, shown], height=0.4, label="gradient p - 1[right]")
right.set_yticks(rows, [repr(tokenizer.decode([i])) for i in shown])
right.invert_yaxis()
right.axvline(0, color="black", linewidth=0.8)
right.set(title=f"after 'Once upon a time'; right: {tokenizer.decode([target])!r}", xlabel="probability; gradient")
right.title.set_fontsize(9)
right.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# **Next:** where do the scores come from? From a table of vectors that is used twice.
