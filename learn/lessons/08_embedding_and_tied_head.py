# %% [markdown]
# # 8 · Embedding, scatter-add, the tied head
#
# A token becomes a vector by looking up a row of a table; a vector becomes scores by comparing it with every row of
# the same table. So the table gets two gradients, and there are two classic ways to lose one.
#
# ## Read
#
# The embedding `wte` is a table with a row of C numbers for each of the V tokens. Forward is indexing: `wte[ids]`.
# Backward is its mirror image: the gradient of each position is *added* to the row that was used there. A token that
# occurs three times adds three gradients to its row (lesson 1, again). This is called scatter-add.

# %%
import math

import numpy as np

from learn import show, small
from models import GPT
from ops.embedding import Embedding

plt = show.pyplot()
show.source(Embedding)

# %% [markdown]
# At the other end the model needs a score for each token. GPT-2 compares its final vector with each row of the
# **same** table (a dot product): the head is *tied* to the embedding. Tokens with similar meaning then have similar
# rows, and a quarter of the parameters of GPT-2's smallest model is saved (38.6 of 163 million).

# %%
show.source(GPT.logits)

# %% [markdown]
# ## Predict
#
# One training step on **8 tokens**. The table has 512 rows. **How many of its rows get a gradient that is not zero?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
x = small.tokens()[None, 100:108]
y = small.tokens()[None, 101:109]
tied, untied = small.gpt(), small.gpt(tied_head=False)
tied.loss(x, y).backward()
untied.loss(x, y).backward()


def rows_used(model):
    return int((np.abs(model.wte.weight.grad).sum(1) > 0).sum())


print(f"{len(set(x[0].tolist()))} different tokens among the 8")
print(f"untied: {rows_used(untied)} rows of the table have a gradient")
show.guess(my_guess, rows_used(tied), "tied: rows with a gradient")
assert rows_used(untied) == len(set(x[0].tolist())) and rows_used(tied) == 512

# %% [markdown]
# As a lookup, only the rows in the batch are used. As a head, every row takes part: the softmax pushes the score of
# every wrong token down a little. The gradient of the tied table is the sum of both. To see it, take the same weights
# with two separate tables and add up their gradients:

# %%
same = small.gpt(tied_head=False)
same.load_state_dict(tied.state_dict() | {"lm_head.weight": tied.wte.weight.data.T})
same.loss(x, y).backward()
lookup, head = same.wte.weight.grad, same.lm_head.weight.grad.T
print(f"largest difference: {show.relative_error(tied.wte.weight.grad, lookup + head):.0e}")
print(f"size of the two parts: lookup {np.linalg.norm(lookup):.3f}, head {np.linalg.norm(head):.3f}")
print(f"parameters: tied {tied.count_parameters():,}, untied {untied.count_parameters():,}")
assert show.relative_error(tied.wte.weight.grad, lookup + head) < 1e-4

# %% [markdown]
# ## Build
#
# The scatter-add: `ids` (n,) integers, `dout` (n, C); return the gradient (n_rows, C) of the table. Beware of ids
# that occur twice.
#
# The labs of this lesson, on the shipped source: `embedding_backward` and `tied_head`
# (`python -m tinygrad2 lab start embedding_backward`).

# %%
def my_scatter_add(ids, dout, n_rows):
    """The gradient of the table."""
    # your lines


# %%
def check_scatter_add(scatter_add):
    dout = np.arange(8.0).reshape(4, 2)
    got = scatter_add(np.array([3, 0, 3, 3]), dout, 5)
    assert got.shape == (5, 2), f"the shape is {got.shape}"
    assert got[0].tolist() == [2, 3], f"row 0 is {got[0]}"
    assert got[3].tolist() == [10, 13], f"row 3 is {got[3]}: token 3 occurs three times, its gradients add up"
    assert not got[[1, 2, 4]].any(), "rows that were not used have no gradient"


show.exercise(my_scatter_add, check_scatter_add)

# %% tags=["answer"]
def scatter_add_answer(ids, dout, n_rows):
    table = np.zeros((n_rows, dout.shape[1]), dout.dtype)
    np.add.at(table, ids, dout)  # table[ids] += dout would keep only the last of several gradients
    return table


show.answer(scatter_add_answer, check_scatter_add)

# %% [markdown]
# The tempting line `table[ids] += dout` is wrong: NumPy reads `table[ids]` once, adds, and writes back, so of three
# gradients of one token only the last survives:

# %%
wrong = np.zeros((5, 2))
wrong[np.array([3, 0, 3, 3])] += np.arange(8.0).reshape(4, 2)
print("row 3:", wrong[3], "instead of [10. 13.]")

# %% [markdown]
# ## Break
#
# A model whose author says that its head is tied. **Is it?** The first loss is the same as ours to the last digit.
# Find two observations that prove it is not, before you unfold. (Count something; or train and compare.)

# %%
def their_gpt():
    """A GPT whose head has the weights of the embedding."""
    model = small.gpt(tied_head=False)
    model.load_state_dict(tied.state_dict() | {"lm_head.weight": tied.wte.weight.data.T})
    return model


ours, theirs = small.gpt(), their_gpt()
ours_losses, their_losses = small.train(ours, 150), small.train(theirs, 150)
print(f"first loss: ours {ours_losses[0]:.4f}, theirs {their_losses[0]:.4f}")
assert abs(ours_losses[0] - their_losses[0]) < 1e-4

# %% tags=["answer"]
print(f"parameters: ours {ours.count_parameters():,}, theirs {theirs.count_parameters():,}: a table of 512 x 64 more")
apart = np.abs(theirs.wte.weight.data - theirs.lm_head.weight.data.T).max()
print(f"after training, embedding and head of theirs differ by up to {apart:.2f}")
assert theirs.count_parameters() - ours.count_parameters() == 512 * 64 and apart > 0.01

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The head is a **copy**. `load_state_dict` copies values, so there are two tables that start equal and then go their
# own ways, each with one half of the gradient. Nothing fails: such a model trains well, but it is another model, with
# more parameters, and the memory that was to be saved is used. Tied means *one array*, with one gradient. Count the
# parameters of a model that you did not write: 124 million or 163 million, for the smallest GPT-2?
#
# </details>
#
# ## Look
#
# The two parts of the gradient of the tied table in your step of 8 tokens, row by row: what came back through the
# lookup and what came back through the head. Tokens in the middle of the text were both looked up and right
# answers, and get both parts; the first one was only looked up, the last one only a right answer. Of all other rows
# only the head's part is there, and it is small, since each was believed with about 1/512.

# %%
tokenizer = small.tokenizer()
used = list(dict.fromkeys(x[0].tolist() + y[0].tolist()))
others = [i for i in range(300, 512) if i not in used][:5]
shown = used + others
rows = np.arange(len(shown))
plt.figure(figsize=(7.2, 4.2))
plt.barh(rows - 0.2, np.linalg.norm(lookup, axis=1)[shown], height=0.4, label="through the lookup")
plt.barh(rows + 0.2, np.linalg.norm(head, axis=1)[shown], height=0.4, label="through the head")
plt.yticks(rows, [repr(tokenizer.decode([i])) for i in shown])
plt.gca().invert_yaxis()
plt.axhline(len(used) - 0.5, color="gray", linestyle=":")
plt.text(0.3, len(used) - 0.4, "tokens not in the text", va="top", color="gray", fontsize=9)
plt.xlabel("norm of the row's gradient")
plt.title("Two gradients for one table (a step on 8 tokens)")
plt.legend(loc="lower right")
plt.show()
print(f"first loss {ours_losses[0]:.2f}, ln 512 = {math.log(512):.2f}")

# %% [markdown]
# **Next:** between embedding and head, every vector is normalised again and again. Lesson 9: layernorm.
