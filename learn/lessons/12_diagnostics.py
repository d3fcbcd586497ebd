# %% [markdown]
# # 12 · Diagnostics: activations, gradients, updates
#
# The loss is one number. When it does not fall, you need more: how large is what flows forward, what flows back,
# and how much does a step change each weight? You collect all three from a run, and diagnose a sick model.
#
# ## Read
#
# Three measurements per layer, each as a root mean square (rms):
#
# - **activations**: what each block hands on. Growing or shrinking by a factor per block is a warning.
# - **gradients** of the parameters. Zero means that a part learns nothing; one layer a thousand times the others
#   means that clipping will throw away everybody else's gradient.
# - **update-to-weight ratio**: rms(change in one step) / rms(weight). About 1e-3 is healthy: a weight can turn into
#   another one within a thousand steps. 1e-6 means that the layer is as good as frozen; 0.1 means that it is
#   overwritten every ten steps.
#
# The activations need no change to the model: an *observer* is told of every operation, while it happens.

# %%
import math

import numpy as np

from learn import show, small
from tinygrad2.function import observe
from tinygrad2.monitor.module_path import ModulePath

plt = show.pyplot()
show.source(observe)
show.source(ModulePath)

# %% [markdown]
# ## Predict
#
# Adam with a learning rate of 0.003 moves each weight by about 0.003 per step at first (lesson 13). The matrices
# start with a standard deviation of 0.02. **What is the update-to-weight ratio of a matrix in the first steps at
# full learning rate?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


class Record:
    """Watches a training: gradients, weights, and update-to-weight ratios of each matrix, step by step."""

    def __init__(self):
        self.before, self.ratios, self.gradients = {}, {}, {}

    def __call__(self, step, model, flat):
        for name, p in model.named_parameters():
            if p.ndim == 2:
                if name in self.before:
                    change = rms(p.data - self.before[name])
                    self.ratios.setdefault(name, []).append(change / rms(self.before[name]))
                self.before[name] = p.data.copy()
                self.gradients.setdefault(name, []).append(rms(p.grad))


class Activations(ModulePath):
    """Notes the size of what each block hands on (its last operation)."""

    def __init__(self, model):
        super().__init__(model)
        self.sizes = {}

    def before(self, node):
        pass

    def after_forward(self, node, arrays, results):
        self.sizes[self.path[-1]] = rms(results[0])


model, record = small.gpt(n_layer=3, n_embd=48), Record()
losses = small.train(model, 80, watch=record)
with observe(Activations(model)) as seen:
    model.loss(*small.loader(rows=2).batch((0, 0)))
print("size of what each part returns, after training:")
for name in ("h.0.attn", "h.0", "h.1.attn", "h.1", "h.2.attn", "h.2", "ln_f"):
    print(f"    {name:10} {seen.sizes[name]:.2f}")

# %%
print(f"{'matrix':22} {'gradient':>10} {'ratio, step 20':>15} {'ratio, step 79':>15}")
for name, ratios in record.ratios.items():
    print(f"{name:22} {record.gradients[name][20]:10.1e} {ratios[20]:15.1e} {ratios[-1]:15.1e}")
show.guess(my_guess, record.ratios["h.1.mlp.c_fc.weight"][20], "ratio of h.1.mlp.c_fc, step 20")
assert 1e-3 < record.ratios["h.1.mlp.c_fc.weight"][-1] < 0.2

# %% [markdown]
# All far above 1e-3, so each weight becomes another one within fifty steps. A model that is to learn in seconds
# gets a high learning rate; a GPT-2 with 6e-4 is near 1e-3 once its weights have grown. The quotient 0.003 / 0.02 =
# 0.15 is too high a guess: a gradient that changes its sign now and then moves a weight by less than the learning
# rate.
#
# ## Build
#
# The ratio itself. Careful with a weight that is all zeros at the start (biases): return `inf` then, not an error.

# %%
def my_ratio(before, after):
    """rms(after - before) / rms(before), one float; inf if before is all zeros."""
    # your lines


# %%
def check_ratio(ratio):
    w = np.array([[3.0, 4.0]])
    assert abs(ratio(w, w * 1.001) - 1e-3) < 1e-12, f"a change of a thousandth gives {ratio(w, w * 1.001)}"
    assert ratio(w, w) == 0, "no change is a ratio of 0"
    assert ratio(0 * w, w) == math.inf, "from zeros: inf"
    assert abs(ratio(w, -w) - 2) < 1e-12, "signs count: the change is after - before"


show.exercise(my_ratio, check_ratio)

# %% tags=["answer"]
def ratio_answer(before, after):
    size = rms(before)
    return rms(after - before) / size if size else math.inf


show.answer(ratio_answer, check_ratio)

# %% [markdown]
# ## Break
#
# A model from a colleague. It learns much worse than ours with the same settings. Her code is the shipped one,
# except for one line where the model is made. **What did she change?** Look at the first loss, then at the table,
# and say it in numbers before you unfold.

# %%
def her_gpt():
    return small.gpt(n_layer=3, n_embd=48)


def change_one_line(model):
    rng = np.random.default_rng(0)
    model.wte.weight.data[...] = rng.standard_normal(model.wte.weight.shape)


hers, her_record = her_gpt(), Record()
change_one_line(hers)
her_losses = small.train(hers, 80, watch=her_record)
print(f"first loss: ours {losses[0]:.2f}, hers {her_losses[0]:.2f}")
print(f"after 80 steps: ours {losses[-1]:.2f}, hers {her_losses[-1]:.2f}")
print(f"{'matrix':22} {'ratio, ours':>12} {'hers':>9} {'weight, ours':>13} {'hers':>6}")
for name, ratios in record.ratios.items():
    sizes = rms(record.before[name]), rms(her_record.before[name])
    print(f"{name:22} {ratios[20]:12.1e} {her_record.ratios[name][20]:9.1e} {sizes[0]:13.2f} {sizes[1]:6.2f}")
assert her_losses[0] > 12 and her_losses[-1] > losses[-1] + 0.5

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The embedding starts with a standard deviation of 1 (the default of many libraries) instead of 0.02. Since the
# head is tied to it, the scores of the untrained model are 50 times too large: it is sure of itself and wrong, and
# the first loss is far above ln 512 = 6.24. Adam's steps do not depend on the size of a weight, so the ratio of
# `wte` is 50 times smaller: it needs thousands of steps to get away from random numbers. The first loss alone would
# have told you: compare it with ln V, always.
#
# </details>
#
# ## Look
#
# The update-to-weight ratio of every matrix of your run, and of hers. Lines that stay together move together; a
# line far below the others is a part that hardly learns.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 4), sharey=True)
colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, 12))
for ax, shown, title in (axes[0], record, "ours"), (axes[1], her_record, "hers"):
    blocks = [name for name in shown.ratios if name.startswith("h.")]
    for name, color in zip(blocks, colors):
        label = "matrices of the blocks (dark: first)" if name == blocks[0] else None
        ax.semilogy(shown.ratios[name], color=color, linewidth=1, label=label)
    ax.semilogy(shown.ratios["wte.weight"], color="firebrick", label="wte (embedding and head)")
    ax.semilogy(shown.ratios["wpe.weight"], color="orange", label="wpe (positions)")
    ax.axhline(1e-3, color="gray", linestyle="--", label="1e-3")
    ax.set(xlabel="step", title=title)
axes[0].set_ylabel("update-to-weight ratio")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** who decides how large an update is? Lesson 13: Adam.
