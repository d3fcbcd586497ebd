# %% [markdown]
# # 13 · Adam, decay, clipping, schedules
#
# From the gradient to the change of a weight: why not simply `w -= lr * g`, what each of Adam's five lines does,
# and a weight decay that does not decay.
#
# ## Read
#
# Plain gradient descent moves each weight by `lr * g`. In a transformer gradients differ by factors of a thousand
# between layers, so one `lr` is too much for some and nothing for others. **RMSprop** divides each weight's gradient
# by its own typical size: it keeps a moving average `v` of the gradient's square, and moves by about `lr`, whatever
# the scale. **Adam** averages the gradient itself as well, `m`, as momentum does, and moves in the direction of `m`.
#
# Both averages start at zero and would be too small at first; dividing by `1 - beta^t` corrects that. **Weight
# decay** pulls every weight a little toward zero, outside of that division (that is the W in AdamW).

# %%
import math

import numpy as np

from learn import show, small
from tinygrad2 import Module, Parameter, Tensor
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam, _update_block, adam_update, clip_scale, learning_rate
from tinygrad2.optimizers import SGD, RMSprop

plt = show.pyplot()
show.source(_update_block)

# %% [markdown]
# **Clipping.** A single strange batch can have a gradient a hundred times longer than usual. If the norm over *all*
# parameters together is larger than a limit, everything is scaled down by the same factor, so the direction stays.
# **Schedule.** The learning rate grows over some warm-up steps, while `v` is still a guess, and falls toward the end,
# so that the last steps settle down.

# %%
show.source(clip_scale)
show.source(learning_rate)

# %% [markdown]
# ## Predict
#
# A weight's first gradient is 0.000001 (a millionth). The learning rate is 0.001. **By how much does Adam's first
# step change the weight?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
def adam(gradients, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, start=0.0, eps=1e-8):
    """The values of weights (n,) after each of the steps, by the shipped update; gradients (steps, n)."""
    p = np.full(gradients.shape[1], start)
    m, v, values = np.zeros_like(p), np.zeros_like(p), [p.copy()]
    for t, g in enumerate(gradients, 1):
        adam_update(p, g, m, v, 1.0, t, lr, *betas, eps, weight_decay)
        values.append(p.copy())
    return np.array(values)


first = adam(np.array([[1e-6, 1.0, -1000.0]]))[1]
show.guess(my_guess, abs(first[0]), "first step for a gradient of 1e-6")
print("first steps for gradients of 1e-6, 1 and -1000:", first)
assert np.allclose(np.abs(first), 1e-3, rtol=0.02)

# %% [markdown]
# (The first one is a little shorter because of eps, 1e-8, in the denominator.) Scale does not matter, only the sign
# and how steady it is. A gradient that flips its sign in each step hardly moves a weight:

# %%
steady = np.ones((100, 1))
flipping = np.where(np.arange(100)[:, None] % 2, -1.0, 1.0)
print(f"100 steps of 0.001: steady gradient {adam(steady)[-1, 0]:.4f}, flipping gradient {adam(flipping)[-1, 0]:.4f}")
assert abs(adam(flipping)[-1, 0]) < 0.01 < 0.09 < abs(adam(steady)[-1, 0])

# %% [markdown]
# What the correction `1 - beta^t` is for: without it the first step would be (1 - 0.9) / sqrt(1 - 0.999), about
# three times too long, at the moment when one knows least.
#
# A ravine, steep in one direction and flat in the other, which is what a loss looks like everywhere. Gradient descent
# twice, RMSprop and Adam, as they are shipped; all take 60 steps from the same point. This is what RMSprop does with
# the gradient (`beta` is 0.99):

# %%
show.source(RMSprop.update)
slopes = Tensor(np.array([100.0, 1.0]))


class Point(Module):
    """A point in the ravine; the loss is (100 x² + y²) / 2."""

    def __init__(self):
        self.xy = Parameter(np.array([1.0, 1.0]))

    def loss(self):
        return (slopes * self.xy * self.xy).sum() / 2


def descend(optimizer, lr, steps=60):
    """(The path of a point, (steps + 1, 2), and its last loss.)"""
    point = Point()
    flat = FlatBuffers(point)
    optimizer, path = optimizer(flat), [point.xy.data.copy()]
    for _ in range(steps):
        flat.zero_grad()
        point.loss().backward()
        optimizer.step(lr)
        path.append(point.xy.data.copy())
    return np.array(path), point.loss().item()


paths = {}
for optimizer, lr in (SGD, 0.015), (SGD, 0.021), (RMSprop, 0.05), (Adam, 0.05):
    name = f"{optimizer.__name__}, {lr}"
    paths[name], last = descend(optimizer, lr)
    x, y = paths[name][1] - paths[name][0]
    print(f"{name:14} first step {x:+.2f} and {y:+.3f}, loss after 60 steps: {last:.2g}")
assert np.allclose(paths["RMSprop, 0.05"][1], 0.5) and np.allclose(paths["Adam, 0.05"][1], 0.95)

# %% [markdown]
# At 0.021 the plain step explodes along the steep direction (its limit is 2/100); just below, it crawls along the
# flat one. The other two take steps of the same length in both. RMSprop does not correct its young average: the first
# step is `1 / sqrt(1 - 0.99)`, ten times, too long. Here it was a lucky jump; in a training it is why one warms up.
# Adam begins with `lr`, runs past the lowest point, since `m` remembers the way, and comes back.
#
# ## Build
#
# One step of AdamW: `p`, `g`, `m`, `v` are arrays, `t` counts from 1. Return the new `(p, m, v)`.
#
# The labs of this lesson, on the shipped source: `adamw`, `clip_grad_norm` and `cosine_schedule`
# (`python -m tinygrad2 lab start adamw`).

# %%
def my_adam(p, g, m, v, t, lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1):
    """(p, m, v) after the step."""
    # your lines


# %%
def check_adam(adam):
    rng = np.random.default_rng(0)
    p, m, v = rng.standard_normal(5), np.zeros(5), np.zeros(5)
    ours = [p.copy(), m.copy(), v.copy()]
    for t in range(1, 6):
        g = rng.standard_normal(5) * 10.0 ** rng.integers(-3, 3)
        p, m, v = adam(p, g, m, v, t)
        adam_update(ours[0], g, ours[1], ours[2], 1.0, t, 1e-3, 0.9, 0.99, 1e-8, 0.1)
        for name, a, b in zip("mvp", (m, v, p), (ours[1], ours[2], ours[0])):
            np.testing.assert_allclose(a, b, rtol=1e-9, err_msg=f"{name} after step {t}")


show.exercise(my_adam, check_adam)

# %% tags=["answer"]
def adam_answer(p, g, m, v, t, lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1):
    m = m + (1 - beta1) * (g - m)
    v = v + (1 - beta2) * (g * g - v)
    mhat, vhat = m / (1 - beta1**t), v / (1 - beta2**t)
    return p - lr * (mhat / (np.sqrt(vhat) + eps) + weight_decay * p), m, v


show.answer(adam_answer, check_adam)

# %% [markdown]
# ## Break
#
# An optimizer called AdamW in somebody's repository. **Its weight decay does something else than ours. Which line,
# and for which weights does it hardly decay at all?** Two weights start at 1; both get noise as gradients, one
# loud, one quiet.

# %%
def their_adam(p, g, m, v, t, lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1):
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    mhat, vhat = m / (1 - beta1**t), v / (1 - beta2**t)
    return p - lr * mhat / (np.sqrt(vhat) + eps), m, v


def decayed(step, scale, n=2000, times=50):
    """The mean of weights that start at 1 and get only noise of this scale as gradients."""
    rng = np.random.default_rng(1)
    p, m, v = np.ones(times), np.zeros(times), np.zeros(times)
    for t in range(1, n + 1):
        p, m, v = step(p, scale * rng.standard_normal(times), m, v, t)
    return p.mean()


table = {(name, scale): decayed(step, scale)
         for name, step in (("ours", adam_answer), ("theirs", their_adam)) for scale in (0.01, 10.0)}  # fmt: skip
print(f"by decay alone: {(1 - 1e-4) ** 2000:.2f}")
for (name, scale), value in table.items():
    print(f"{name:6} gradients of size {scale:5}: 1 has become {value:.2f}")
assert abs(table["ours", 0.01] - table["ours", 10.0]) < 0.05 < table["theirs", 10.0] - table["theirs", 0.01]

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `g = g + weight_decay * p`: the decay is added to the gradient (L2 regularisation), and then divided by the
# gradient's own size like everything else. A weight with loud gradients hardly decays, one with quiet ones decays
# at full learning rate. In plain gradient descent both are the same; with Adam they are not. The decay belongs
# outside of the division:
#
# ```python
# p = p - lr * (mhat / (np.sqrt(vhat) + eps) + weight_decay * p)
# ```
#
# A neighbour of this mistake: decaying biases and layernorm gains. The shipped Adam decays matrices only.
#
# </details>
#
# ## Look
#
# Left: the ravine, and the four ways. RMSprop and Adam go along the same straight line: divided by its own size, the
# gradient is as large in one direction as in the other. Right: the learning rates of the four schedules, 100 steps of
# warm-up in 1000.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8))
X, Y = np.meshgrid(np.linspace(-1.3, 1.3, 80), np.linspace(-0.3, 1.3, 80))
left.contour(X, Y, (100 * X**2 + Y**2) / 2, levels=np.logspace(-2, 2, 9), colors="lightgray", linewidths=0.8)
for name, path in paths.items():
    shown = path[:9] if "0.021" in name else path
    style = dict(linestyle="none", marker="o", zorder=3) if "RMSprop" in name else dict(marker=".", linewidth=1.2)
    left.plot(*shown.T, markersize=4, label=name, **style)
left.plot(0, 0, "k*")
left.set(xlim=(-1.3, 1.3), ylim=(-0.3, 1.3), xlabel="steep direction", ylabel="flat direction")
left.set_title("60 steps from (1, 1); of 0.021 only 8", fontsize=9)
left.legend(fontsize=8, loc="lower left")
for schedule in ("constant", "linear", "cosine", "wsd"):
    rates = [learning_rate(t, schedule, 6e-4, 6e-5, 100, 1000, decay=200) for t in range(1000)]
    right.plot(rates, label=schedule)
right.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# And clipping in a real run: the norm of the gradient of your small model in each step, and the limit of 1.

# %%
norms = []
losses = small.train(small.gpt(), 100, watch=lambda step, model, flat: norms.append(float(np.linalg.norm(flat.grad))))
plt.figure(figsize=(7.2, 3))
plt.plot(norms, label="norm of the whole gradient")
plt.axhline(1.0, color="firebrick", linestyle="--", label="limit: longer ones are scaled down to 1")
plt.xlabel("step")
plt.ylabel("norm")
plt.ylim(0, None)
plt.title(f"Clipped in {sum(norm > 1 for norm in norms)} of 100 steps")
plt.legend(fontsize=8)
plt.show()
assert math.isfinite(losses[-1])

# %% [markdown]
# **Next:** before a long training, a short question: can the model learn anything at all? Lesson 14.
