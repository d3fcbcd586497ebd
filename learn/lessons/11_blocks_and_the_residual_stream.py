# %% [markdown]
# # 11 · Many heads, the block, the residual stream, and how it starts
#
# Why a stack of 12 or 48 blocks can be trained at all: every block only *adds* to a stream, and the first weights are
# chosen so that the sum stays at its size.
#
# ## Read
#
# **Many heads.** One head returns one mix of values per position. To look at several things at once, the C channels
# are cut into nh heads of hs = C / nh channels each, every head attends on its own, and a matrix mixes their
# outputs. One matrix makes q, k and v of all heads; the rest is reshaping:

# %%
import math

import numpy as np

import ops
from learn import show, small
from models.block import Block
from models.gpt import initialize
from models.mlp import MLP
from models.multihead_attention import MultiHeadAttention
from ops.split_heads import SplitHeads
from tinygrad2 import Module, Tensor, no_grad

plt = show.pyplot()
show.source(MultiHeadAttention.forward)
show.source(SplitHeads.forward)

# %% [markdown]
# **The block.** Attention moves information between positions, the MLP works on each position; both read the stream
# through a layernorm and *add* to it:

# %%
show.source(Block)

# %% [markdown]
# The MLP is that of lesson 6, at each position on its own: a matrix to four times the width, a nonlinearity, a matrix
# back. GPT-2's nonlinearity is **GELU**, `x (1 + tanh u) / 2` with `u = √(2/π) (x + 0.044715 x³)`: nearly 0 for a
# very negative x, nearly x for a very positive one, and a smooth curve between, where relu has a corner.

# %%
show.source(MLP.forward)

# %% [markdown]
# An addition passes its gradient on unchanged (lesson 3: both operands get `dout`). So the gradient of the loss
# has a direct path through every block to the embedding, however deep the stack is; that is why it is a *residual
# stream*, x + f(x), and not f(x).
#
# **The start.** 2 n terms add up in the stream of n blocks. If they are independent and of equal size, the sum grows
# with √(2n). GPT-2 therefore starts the matrices that write into the stream with a standard deviation that is smaller
# by that factor:

# %%
show.source(initialize)

# %% [markdown]
# ## Predict
#
# 24 blocks; each of the 48 terms has, at the start, the same size 1 (root mean square), and they are independent.
# **How large is their sum?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
rng = np.random.default_rng(0)
total = sum(rng.standard_normal(10_000) for _ in range(48))
show.guess(my_guess, np.sqrt((total**2).mean()), "size of the sum of 48 terms")

# %% [markdown]
# The same in a real stack. A GPT of 24 blocks and width 64 with its shipped start, and with the small factor left
# out. (In a model this narrow a standard deviation of 0.02 makes tiny terms; both are therefore multiplied by 6,
# which brings the terms to about the size that they have in GPT-2's width.)

# %%
def rms(x):
    return float(np.sqrt((x**2).mean()))


def deep(scaled, n_layer=24):
    """A model of many blocks, not trained, with or without the factor 1 / sqrt(2 n_layer)."""
    model = small.gpt(n_layer=n_layer)
    for name, p in model.named_parameters():
        if p.ndim == 2 and name.startswith("h."):
            p.data *= 6.0
        if name.endswith("c_proj.weight") and not scaled:
            p.data *= math.sqrt(2 * n_layer)
    return model


def stream(model, x):
    """The stream after the embedding and after each block, as Tensors."""
    states = [model.wte(x) + model.wpe(np.arange(x.shape[1]))]
    for block in model.h:
        states.append(block(states[-1]))
    return states


x = small.tokens()[None, :32]
with no_grad():                                                   # forward only: nothing is kept for a backward
    sizes = {scaled: [rms(s.numpy() - states[0].numpy()) for s in states[1:]]
             for scaled in (True, False) for states in [stream(deep(scaled), x)]}  # fmt: skip
for scaled, name in (True, "with"), (False, "without"):
    after = [round(sizes[scaled][i], 2) for i in (0, 5, 23)]
    print(f"{name:8} the factor: 1, 6 and 24 blocks have added {after}")
growth = sizes[False][-1] / sizes[False][0]
print(f"24 blocks have added {growth:.1f} times as much as one (independent terms: {math.sqrt(24):.1f})")
assert sizes[False][-1] > 4 * sizes[True][-1]

# %% [markdown]
# ## Build
#
# Split one array into heads: `x` (B, T, C) becomes (B, nh, T, C / nh). Channels of one head are neighbours in `x`.
#
# The lab of this lesson, on the shipped source: `gelu_backward` (`python -m tinygrad2 lab start gelu_backward`).

# %%
def my_split(x, n_head):
    """(B, nh, T, hs)"""
    # your line: a reshape and a transpose


# %%
def check_split(split):
    x = np.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    got = split(x, 4)
    assert got.shape == (2, 4, 3, 2), f"the shape is {got.shape}"
    assert got[1, 2, 0].tolist() == x[1, 0, 4:6].tolist(), "head 2 at position 0 has channels 4 and 5 of position 0"
    expected = ops.split_heads(Tensor(np.concatenate([x, x, x], -1)), 4)[0].numpy()
    np.testing.assert_array_equal(got, expected)


show.exercise(my_split, check_split)

# %% tags=["answer"]
def split_answer(x, n_head):
    B, T, C = x.shape
    return x.reshape(B, T, n_head, C // n_head).transpose(0, 2, 1, 3)


show.answer(split_answer, check_split)

# %% [markdown]
# ## Break
#
# Their attention has the right shapes everywhere and trains. **Which line is wrong? Find it with the leak test of
# lesson 10**, then say what their heads are made of.

# %%
class TheirAttention(Module):
    """Multi-head attention around our own parameters."""

    def __init__(self, attn):
        self.n_head, self.c_attn, self.c_proj, self.head = attn.n_head, attn.c_attn, attn.c_proj, attn.head

    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split([C, C, C], axis=-1)
        shape = (B, self.n_head, T, C // self.n_head)
        out = self.head(q.reshape(shape), k.reshape(shape), v.reshape(shape))
        return self.c_proj(out.reshape(B, T, C))


def moved(model, position=9):
    """Which logits move if the token at `position` is changed?"""
    x = small.tokens()[None, :16].copy()
    before = model(x)[0].numpy()
    x[0, position] = (x[0, position] + 1) % small.VOCAB
    return np.flatnonzero(np.abs(model(x)[0].numpy() - before).max(-1)[0]).tolist()


ours, theirs = small.gpt(), small.gpt()
theirs.h[0].attn = TheirAttention(theirs.h[0].attn)
our_losses, their_losses = small.train(ours, 150), small.train(theirs, 150)
print(f"loss: ours {our_losses[-10:].mean():.2f}, theirs {their_losses[-10:].mean():.2f}")
assert their_losses[-1] < 6

# %% tags=["answer"]
print("token 9 is changed. Ours, logits that move:  ", moved(ours))
print("token 9 is changed. Theirs, logits that move:", moved(theirs))
assert moved(ours) == list(range(9, 16)) != moved(theirs)

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `reshape(B, nh, T, hs)` without a transpose. Reshape keeps the order in memory, (position, channel), so "head 0"
# gets the first quarter of the *positions* with all their channels, cut into T rows. What is called a position
# there is a piece of a real one, the mask is laid over the wrong axis, and the leak test shows logits that move at
# positions before the change, or not at all behind it. First `reshape(B, T, nh, hs)`, then `transpose(0, 2, 1, 3)`;
# and on the way back the same in reverse.
#
# </details>
#
# ## Look
#
# Left: how the stream grows from block to block in your stacks. Right: two models of six blocks, width 32, from the
# same first weights. In one each block adds to the stream, `x + f(x)`. In the other it replaces the stream by what
# it would have added, `f(x)`: such a model learns how frequent each token is, and then nothing more for a long
# time.

# %%
class Replacing(Block):
    """A block without the residual path."""

    def forward(self, x, cache=None):
        return super().forward(x, cache) - x


curves = {}
for name, kind in ("x + f(x)", Block), ("f(x) alone", Replacing):
    model = small.gpt(n_layer=6, n_embd=32)
    for block in model.h:
        block.__class__ = kind
    curves[name] = small.train(model, 120)
    print(f"{name:10} loss after 120 steps: {curves[name][-10:].mean():.2f}")
assert curves["x + f(x)"][-10:].mean() < curves["f(x) alone"][-10:].mean() - 0.5

figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.6))
blocks = np.arange(1, 25)
left.plot(blocks, sizes[False], ".-", label="without 1/√(2n)")
left.plot(blocks, sizes[True], ".-", label="with 1/√(2n)")
left.set(xlabel="after block", ylabel="size of what was added (rms)", title="24 blocks, not trained", ylim=(0, None))
left.legend(fontsize=8)
for name, curve in curves.items():
    right.plot(curve, label=name)
right.set(xlabel="step", ylabel="loss (nats per token)", title="6 blocks, trained", ylim=(0, 6.6))
right.legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# **Next:** is a training healthy inside? Lesson 12 looks at activations, gradients and updates, layer by layer.
