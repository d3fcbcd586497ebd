# %% [markdown]
# # 19 · KV cache and sampling
#
# How a model writes: one token at a time, without computing everything again each time, and with dice.
#
# ## Read
#
# The model returns scores for the next token. **Sampling** turns them into one token: the scores are divided by a
# *temperature*, become probabilities, some are cut away (the k largest stay, or the smallest set with a total of p,
# the "nucleus"), and one is drawn. Then the new token is appended, and the model runs again.
#
# Run on what? Of the earlier tokens attention needs the keys and values only, and these never change, since no
# token looks at what comes after it (lesson 10). So they are kept: the **KV cache**. A new token costs the work of
# one token.

# %%
import numpy as np

from learn import show, small
from models.kv_cache import KVCache
from models.sampling import sample
from tinygrad2 import no_grad

plt = show.pyplot()
show.source(KVCache)
show.source(sample)

# %% [markdown]
# ## Predict
#
# Three tokens have the probabilities 0.5, 0.25, 0.25. **What is the first one's at temperature 0.5?** (Dividing the
# scores by 0.5 is squaring the probabilities, before they are made to sum to 1 again.)

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
def at_temperature(logits, temperature):
    e = np.exp((logits - logits.max()) / temperature)
    return e / e.sum()


p = at_temperature(np.log([0.5, 0.25, 0.25]), 0.5)
show.guess(my_guess, p[0], "at temperature 0.5")
assert abs(p[0] - 2 / 3) < 1e-9

# %% [markdown]
# A trained model, and its texts at several temperatures:

# %%
model, tokenizer = small.gpt(), small.tokenizer()
small.train(model, 300)
model.eval()
prompt = tokenizer.encode("Once upon a time")


def write(**knobs):
    ids = prompt + list(model.generate(prompt, 20, np.random.default_rng(4), n_vocab=small.VOCAB, **knobs))
    return tokenizer.decode(ids).replace("\n", " ")


for knobs in (dict(temperature=0.0), dict(temperature=0.5), dict(), dict(temperature=2.0), dict(top_p=0.8)):
    print(f"{str(knobs):22} {write(**knobs)}")

# %% [markdown]
# **The cache returns the same scores.** Once with all tokens at once, once token by token through a cache:

# %%
text = small.tokens()[:24].tolist()
with no_grad():
    at_once = model(np.array([text]))[0].numpy()[0]               # (24, V)
    cache, one_by_one = KVCache(model.config), []
    for token in text:
        one_by_one.append(model.next_logits([[token]], cache).numpy()[0])
difference = np.abs(np.array(one_by_one) - at_once).max()
print(f"largest difference below 1e-4: {difference < 1e-4}; the scores go up to {at_once.max():.1f}")
assert difference < 1e-4

# %% [markdown]
# ## Build
#
# The nucleus: `p` (V,) sums to 1. Keep the fewest most probable tokens with a total of at least `top_p`, set the
# others to 0, and make the rest sum to 1.
#
# The lab of this lesson, on the shipped source: `kv_cache` (`python -m tinygrad2 lab start kv_cache`).

# %%
def my_nucleus(p, top_p):
    """The probabilities after the cut."""
    # your lines: sort, add up, find how many stay


# %%
def check_nucleus(nucleus):
    p = np.array([0.1, 0.5, 0.3, 0.06, 0.04])
    np.testing.assert_allclose(nucleus(p, 0.7), np.array([0, 0.5, 0.3, 0, 0]) / 0.8, atol=1e-12)
    np.testing.assert_allclose(nucleus(p, 0.4), [0, 1, 0, 0, 0], err_msg="at least one token stays")
    np.testing.assert_allclose(nucleus(p, 1.0), p)
    assert p.tolist() == [0.1, 0.5, 0.3, 0.06, 0.04], "p itself must not change"


show.exercise(my_nucleus, check_nucleus)

# %% tags=["answer"]
def nucleus_answer(p, top_p):
    order = np.argsort(-p)
    n = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-12)) + 1
    kept = np.zeros_like(p)
    kept[order[:n]] = p[order[:n]]
    return kept / kept.sum()


show.answer(nucleus_answer, check_nucleus)

# %% [markdown]
# ## Break
#
# A sampler in which the temperature "does not work": whatever one sets, the texts are equally wild. **Why?**
# Compute what the probabilities are at two temperatures.

# %%
def their_probabilities(logits, temperature):
    e = np.exp(logits - logits.max())
    p = e / e.sum()
    p = p / temperature
    return p / p.sum()


logits = at_once[-1].astype(np.float64)


def entropy(p):
    """The mean surprise of a draw, in nats: 0 if one token is certain, ln V if all are equally likely."""
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum())


for temperature in (0.5, 1.0, 2.0):
    ours, theirs = (entropy(f(logits, temperature)) for f in (at_temperature, their_probabilities))
    print(f"temperature {temperature}: entropy ours {ours:.2f}, theirs {theirs:.2f}")
assert entropy(their_probabilities(logits, 0.5)) == entropy(their_probabilities(logits, 2.0))

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The temperature divides the *probabilities*, and the next line makes them sum to 1 again: the division cancels. It
# has to divide the **scores**, before the exponential. The entropy is the measure to print: it must grow with the
# temperature.
#
# </details>
#
# ## Look
#
# Left: the ten most probable next tokens of your model at three temperatures. Right: how many tokens go through the
# model to write a text, with the cache and without, counted: with it as many as there are, without it one more each
# time.

# %%
best = np.argsort(-logits)[:10]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.8))
rows = np.arange(10)
for i, temperature in enumerate((0.5, 1.0, 2.0)):
    left.barh(rows + 0.27 * (i - 1), at_temperature(logits, temperature)[best], height=0.25, label=f"{temperature}")
left.set_yticks(rows, [repr(tokenizer.decode([i])) for i in best.tolist()])
left.invert_yaxis()
left.set(xlabel="probability", title=f"after {tokenizer.decode(text[-4:])!r}")
left.legend(title="temperature", fontsize=8)
length = np.arange(1, 1025)
right.plot(length, np.cumsum(length), label="without: 1 + 2 + ... + n")
right.plot(length, length, label="with the cache: n")
right.set(xlabel="tokens written", ylabel="tokens through the model", yscale="log")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** a trained model, and a text of your own: finetuning.
