# %% [markdown]
# # Build a GPT
#
# From a table of letter pairs to a GPT that trains on this machine and writes stories, in one long read. It is made
# of lessons 5 to 11: their text, their code, their pictures. What is left out is most of the exercises; each
# chapter's lesson has one, with a check. You need to know what a gradient is, and how an engine finds it: lessons 1
# to 4 build one.
#
# | chapter | what is added |
# |---|---|
# | 5 | the smallest language model: counted, then trained |
# | 6 | more context: vectors for tokens, a hidden layer, stochastic gradient descent |
# | 7 | the loss: softmax and cross-entropy |
# | 8 | tokens become vectors, and vectors tokens: one table, two gradients |
# | 9 | layernorm and the three paths of its gradient |
# | 10 | attention: one head, its mask and its scale |
# | 11 | many heads, blocks, the residual stream, the first weights |
# | at the end | all of it together: a GPT, trained on the bundled stories |

# %% [markdown] tags=["include", "05_bigram", "Read", "Predict", "Run", "Look"]

# %% [markdown] tags=["include", "06_mlp_and_sgd", "Read", "Predict", "Run", "Look"]

# %% [markdown] tags=["include", "07_softmax_and_cross_entropy", "Read", "Predict", "Run", "Break", "Look"]

# %% [markdown] tags=["include", "08_embedding_and_tied_head", "Read", "Predict", "Run", "Break", "Look"]

# %% [markdown] tags=["include", "09_layernorm", "Read", "Predict", "Run", "Look"]

# %% [markdown] tags=["include", "10_one_head", "Read", "Predict", "Run", "Break", "Look"]

# %% [markdown] tags=["include", "11_blocks_and_the_residual_stream", "Read", "Predict", "Run", "Look"]

# %% [markdown]
# ## All together
#
# You have every part. This is the whole model, as shipped; read it once from top to bottom, there is nothing new in
# it:

# %%
import math

from learn import show, small
from models import GPT
from models.bigram import count_bigrams

plt = show.pyplot()
show.source(GPT)

# %% [markdown]
# And this is the loop that trains it: a batch, forward, backward, update. Adam and the clipping of the gradient are
# lesson 13.

# %%
show.source(small.train)

# %% [markdown]
# Two blocks of width 64, 512 tokens learned from the stories, 500 steps. What can be known beforehand: the first
# loss is near ln 512, and a model that is worth its name ends below the best table of pairs.

# %%
model = small.gpt(n_layer=2)
print(f"{model.count_parameters():,} parameters; before training it writes:")
print(small.text(model, length=20))
losses = small.train(model, 500)
ids = small.tokens()
pairs = -count_bigrams(ids, small.VOCAB)[ids[:-1], ids[1:]].mean()
print(f"\nfirst loss {losses[0]:.2f} (ln 512 = {math.log(512):.2f}), best table of pairs {pairs:.2f}, "
      f"last 20 steps {losses[-20:].mean():.2f}")  # fmt: skip
assert abs(losses[0] - math.log(512)) < 0.3 and losses[-20:].mean() < pairs

# %%
for seed in (1, 2, 3):
    print(small.text(model, length=60, seed=seed), "\n")

# %%
plt.figure()
plt.plot(losses, label="GPT, two blocks")
plt.axhline(math.log(512), color="gray", linestyle="--", label="ln 512: knowing nothing")
plt.axhline(pairs, color="firebrick", linestyle=":", label="the best table of pairs")
plt.xlabel("step")
plt.ylabel("loss (nats per token)")
plt.ylim(0, None)
plt.title("A GPT learns")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# That is a GPT. GPT-2's smallest model is the same code with twelve blocks of width 768 and a longer context; lesson 18
# loads its weights. To train one on a text of your own: `python train_gpt2.py --data my.txt`.
