# %% [markdown]
# # 20 · Finetuning
#
# A model that has learned stories is to write recipes. You continue its training on another text, see how fast that
# is, and what it forgets meanwhile.
#
# ## Read
#
# Finetuning is training that does not start from random weights. Nothing else changes: the same loss, the same
# loop. What the model has learned about letters, words and sentences is useful
# for the new text as well, so it needs fewer steps. Two knobs matter:
#
# - **the learning rate**: usually a tenth or less of the first training's. The larger it is, the faster the new
#   text is learned, and the old one forgotten;
# - **what is trained**: parts can be *frozen* (`requires_grad = False`); they keep their values and cost no gradient.
#
# What is not trained on is forgotten, step by step. With the project's script it is one flag:
#
#     python train_gpt2.py --init-from data/gpt2/gpt2 --data my.txt --block-size 256
#
# The code that loads a foreign model into ours only copies arrays whose names and shapes match:

# %%
import math

import numpy as np

from learn import show, small
from models.pretrained import load_into
from tinygrad2 import Module, no_grad
from tinygrad2.datasets.dataloader import DataLoader

plt = show.pyplot()
show.source(load_into)
show.source(Module.load_state_dict)

# %% [markdown]
# ## Predict
#
# A model trained for 300 steps on stories, loss about 2.2, sees a **recipe** for the first time. A model that knows
# nothing has ln 512 = 6.24. **What is its loss on recipes?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
recipes_text = (show.ROOT / "data" / "dummy_data2.txt").read_text(encoding="utf-8")
recipes = np.array(small.tokenizer().encode(recipes_text, special="allowed"))
split = len(recipes) - 8000                                       # the end is only for measuring


def recipe_loader(seed=1):
    return DataLoader(recipes[:split], 16, 32, order="shuffled", seed=seed)


def losses_on(model):
    """(loss on stories, loss on recipes), on texts that are not in the finetuning's batches."""
    elsewhere = DataLoader(recipes[split:], 64, 32, order="shuffled", seed=99)
    with no_grad():
        return [float(model.loss(*batches.batch((0, 0)))) for batches in (small.loader(rows=64, seed=99), elsewhere)]


base = small.gpt()
small.train(base, 300)
weights = base.state_dict()
stories_before, recipes_before = losses_on(base)
show.guess(my_guess, recipes_before, "loss on recipes")
print(f"on stories {stories_before:.2f}; it writes: {small.text(base, 'Recipe:', 20)}")

# %% [markdown]
# Hardly better than a model that knows nothing! It is sure of itself, and in the wrong place: it gives "2 cups of" next
# to no probability. Yet what it knows is worth something: see how fast it learns, compared with random weights.


# %%
def continued(lr, steps=100, every=20, from_zero=False):
    """Finetune a copy on recipes; returns the model and [(step, loss on stories, loss on recipes), ...]."""
    model = small.gpt()
    if not from_zero:
        model.load_state_dict(weights)
    history = []

    def watch(step, model, flat):
        if step % every == 0:
            history.append((step, *losses_on(model)))

    small.train(model, steps, lr, batches=recipe_loader(), watch=watch)
    history.append((steps, *losses_on(model)))
    return model, np.array(history)


tuned, gentle = continued(lr=1e-3)
_, wild = continued(lr=1e-2)
_, fresh = continued(lr=3e-3, from_zero=True)
for name, history in ("finetuned, lr 0.001", gentle), ("finetuned, lr 0.01", wild), ("from random weights", fresh):
    print(f"{name:20} after 100 steps: stories {history[-1, 1]:.2f}, recipes {history[-1, 2]:.2f}")
print("it writes:", small.text(tuned, "Recipe:", 30))
assert gentle[-1, 2] < recipes_before - 1 and gentle[-1, 2] < fresh[-1, 2]
assert stories_before + 0.1 < gentle[-1, 1] < wild[-1, 1]

# %% [markdown]
# ## Build
#
# Freeze everything but the last layernorm and the token table: set `requires_grad` of every other parameter of
# `model` to False. Return the number of parameters that are still trained. (`model.named_parameters()` yields names
# and parameters; the names are `wte.weight`, `ln_f.weight`, `ln_f.bias`.)

# %%
def my_freeze(model):
    """The number of trained parameters."""
    # your lines


# %%
def check_freeze(freeze):
    model = small.gpt()
    n = freeze(model)
    trained = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert trained == ["ln_f.bias", "ln_f.weight", "wte.weight"], f"trained are {trained}"
    assert n == 512 * 64 + 2 * 64, f"{n} parameters, should be {512 * 64 + 2 * 64}"
    before = model.h[0].mlp.c_fc.weight.data.copy()
    small.train(model, 2)
    assert (model.h[0].mlp.c_fc.weight.data == before).all(), "a frozen weight has changed"


show.exercise(my_freeze, check_freeze)

# %% tags=["answer"]
def freeze_answer(model):
    for name, p in model.named_parameters():
        p.requires_grad = name in ("wte.weight", "ln_f.weight", "ln_f.bias")
    return model.count_parameters(trainable_only=True)


show.answer(freeze_answer, check_freeze)

# %% [markdown]
# ## Break
#
# A finetuning that brings nothing: it is exactly as bad as a training from random weights. No error, no warning.
# **What happened to the pretrained weights?** Compare the first loss with the one you measured above.

# %%
def their_load(model, state):
    """Copy the pretrained weights into a model."""
    for name, p in model.named_parameters():
        pretrained = state.get("transformer." + name)
        if pretrained is not None and pretrained.shape == p.shape:
            p.data[...] = pretrained
    return model


theirs = their_load(small.gpt(), weights)
print(f"loss on recipes before the first step: theirs {losses_on(theirs)[1]:.2f}, ours {recipes_before:.2f}")
assert abs(losses_on(theirs)[1] - math.log(512)) < 0.1 < abs(losses_on(theirs)[1] - recipes_before)

# %% tags=["answer"]
print("names in the file:  ", list(weights)[:3])
print("names looked up:    ", ["transformer." + name for name in list(weights)[:3]])
same = [name for name, p in small.gpt().named_parameters() if "transformer." + name in weights]
print("found:", len(same), "of", len(weights))
assert not same

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The names in the file have no prefix `transformer.`, so nothing is ever found, and `if pretrained is not None`
# hides it. Files of some libraries have that prefix, others do not. Loading must fail if *one* name is missing or
# left over, as `Module.load_state_dict` does above. And the first loss of a finetuning tells: ln V, to two digits,
# means that nothing was loaded. (Here it is not far above ours, and yet a far worse start.)
#
# </details>
#
# ## Look
#
# What your finetunings learn (recipes, left) and what they forget (stories, right), measured on texts that are not
# in their batches.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), sharey=True)
for ax, column, title in (axes[0], 2, "recipes: what is learned"), (axes[1], 1, "stories: what is forgotten"):
    for name, history in ("lr 0.001", gentle), ("lr 0.01", wild), ("random weights, lr 0.003", fresh):
        ax.plot(history[:, 0], history[:, column], "o-", markersize=3, label=name)
    ax.axhline(math.log(512), color="gray", linestyle="--", label="ln 512")
    ax.set(xlabel="step of finetuning on recipes", title=title, ylim=(0, 9))
axes[0].set_ylabel("loss (nats per token)")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** how fast could it be? Lesson 21, the roofline.
