# %% [markdown]
# # 16 · Is my loss normal?
#
# The question that is asked most about small language models. You get three answers: a number to compare tokenizers
# with, a band that says how far apart correct trainings are, and what "too good" means.
#
# ## Read
#
# A loss alone says little. It depends on
#
# - **the tokenizer**: a token that stands for more text is harder to guess. Loss per token is not comparable between
#   tokenizers; *bits per byte* is: `loss / ln 2 / (bytes per token)`;
# - **the text**: the bundled stories are made from templates, so a model gets below 0.4 on them, which nobody will
#   ever see on real books;
# - **the seed**: the same training with another seed has another curve. The difference between seeds is the
#   yardstick for every other difference.
#
# `python -m tinygrad2 compare run` uses the last point: the project ships the curves of five seeds for each preset,
# and a band around them that correct trainings stay in.

# %%
import math
import zlib

import numpy as np

from learn import show, small
from tinygrad2 import Tokenizer, no_grad
from tinygrad2.datasets.dataloader import DataLoader
from tinygrad2.monitor.reference_curves import band_of, first_outside, load_curves

plt = show.pyplot()
show.source(band_of)
show.source(first_outside)

# %% [markdown]
# ## Predict
#
# A model has a loss of 2.9 nats per token, and its tokens stand for 2.6 bytes on average. **How many bits per byte
# is that?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
show.guess(my_guess, 2.9 / math.log(2) / 2.6, "bits per byte")
STEPS, LR = 150, 3e-3
text = show.stories()
bytes_per_token = len(text.encode()) / len(small.tokens())


def trained(seed, lr=LR):
    """A model and its losses; the seed decides its first weights and the order of the batches."""
    model = small.gpt(seed=seed)
    return model, small.train(model, STEPS, lr, batches=small.loader(seed=seed))


curves = {seed: trained(seed)[1] for seed in (1, 2, 3, 4)}
print(f"small tokenizer, {bytes_per_token:.2f} bytes per token")
print("last losses of four seeds:", [round(float(c[-20:].mean()), 2) for c in curves.values()])

# %% [markdown]
# The same model on single bytes, a vocabulary of 257. Its loss per token looks better. Is it?

# %%
letters = Tokenizer([])
stream = np.array(letters.encode(text, special="allowed"))
batches = DataLoader(stream, 16, 32, order="shuffled", seed=1)
by_letter = small.train(small.gpt(vocab_size=257), STEPS, LR, batches=batches)
for name, loss, size in (
    ("tokens", curves[1][-20:].mean(), bytes_per_token),
    ("bytes", by_letter[-20:].mean(), len(text.encode()) / len(stream)),
):
    print(f"{name:7} loss {loss:.2f} nats per token, {loss / math.log(2) / size:.2f} bits per byte")
compressed = zlib.compress(text.encode(), 9)
print(f"a file compressor (zlib): {8 * len(compressed) / len(text.encode()):.2f} bits per byte")
assert by_letter[-20:].mean() < curves[1][-20:].mean()

# %% [markdown]
# Fewer nats per token, and far worse: in the same number of steps it has read two fifths of the text. (After 150
# steps both are behind a file compressor. The demo of the project, 0.37 nats per token of a few bytes after 1,000
# steps, is not.)

# %% [markdown]
# **Your band.** From the four seeds: the logarithm of the loss, smoothed over 21 steps, its mean, and how far apart
# the seeds are. A fifth seed stays inside; a learning rate ten times too high does not.

# %%
band = band_of({seed: curve.tolist() for seed, curve in curves.items()})


def verdict(curve):
    """Where does a curve leave the band?"""
    outside = first_outside(curve.tolist(), band)
    if outside is None:
        return "inside the band"
    step, value = outside
    return f"outside from step {step + 1}: {value:.2f}, the band is {band.low[step]:.2f} to {band.high[step]:.2f}"


ours, our_losses = trained(7)
runs = {"another seed": our_losses, "lr ten times too high": trained(7, lr=10 * LR)[1]}
for name, curve in runs.items():
    print(f"{name:22} {verdict(curve)}")
assert first_outside(runs["another seed"].tolist(), band) is None
assert first_outside(runs["lr ten times too high"].tolist(), band)

# %% [markdown]
# ## Build
#
# Bits per byte, from a loss in nats per token, the number of tokens, and the text they stand for.

# %%
def my_bits_per_byte(loss, n_tokens, text):
    """Bits per byte of UTF-8."""
    # your line


# %%
def check_bits(bits_per_byte):
    assert abs(bits_per_byte(math.log(2), 4, "four") - 1) < 1e-12, "one bit per token, one byte per token"
    assert abs(bits_per_byte(math.log(2), 2, "four") - 0.5) < 1e-12, "two tokens for four bytes: half"
    assert abs(bits_per_byte(math.log(256), 2, "é") - 8) < 1e-12, "é is two bytes: characters are not bytes"


show.exercise(my_bits_per_byte, check_bits)

# %% tags=["answer"]
def bits_answer(loss, n_tokens, text):
    return loss / math.log(2) * n_tokens / len(text.encode())


show.answer(bits_answer, check_bits)

# %% [markdown]
# ## Break
#
# A colleague's loader. Their curve is outside the band as well, but **below** it: better than all of ours. What is
# wrong with the line `after`, and what should they have printed beside the training loss?

# %%
class TheirLoader:
    """Batches in another order each epoch."""

    def __init__(self):
        self.inner = small.loader(seed=7)

    def batch(self, position):
        return self.inner.batch(position)

    def after(self, position):
        epoch, index = self.inner.after(position)
        return epoch, index % (4 * self.inner.B)


theirs = small.gpt(seed=7)
runs["theirs"] = small.train(theirs, STEPS, LR, batches=TheirLoader())
print(f"theirs: {verdict(runs['theirs'])}")
assert runs["theirs"][-1] < band.low[-1]

# %% tags=["answer"]
x, y = small.loader(rows=64, seed=99).batch((0, 0))
with no_grad():
    ours_elsewhere, theirs_elsewhere = float(ours.loss(x, y)), float(theirs.loss(x, y))
print(f"on other batches: ours {ours_elsewhere:.2f}, theirs {theirs_elsewhere:.2f}")
assert theirs_elsewhere > ours_elsewhere + 0.5

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `index % (4 * B)`: after four batches the first one comes again. The model sees 64 windows of text forever and
# learns them by heart (lesson 14). The training loss is wonderful, and on any other text the model is bad. The same
# curve comes from a resumed training that starts the data from the beginning each time. Print a validation loss, on
# text that is never trained on; a loss below the band is as suspicious as one above it.
#
# </details>
#
# ## Look
#
# Left: your band and your runs. Right: the shipped band of the preset `demo`, five seeds of a thousand steps: what
# `python -m tinygrad2 compare run` holds against your training.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.8))
steps = np.arange(STEPS)
left.fill_between(steps[: len(band.low)], band.low, band.high, color="lightgray", label="band of four seeds")
smooth = np.ones(9) / 9
for name, curve in runs.items():
    left.plot(steps[4:-4], np.convolve(curve, smooth, mode="valid"), linewidth=1.2, label=name)
left.set(xlabel="step", ylabel="training loss (nats per token)", ylim=(0, 7), title="the small model")
left.legend(fontsize=8, loc="lower left")
reference = load_curves("demo")
demo = band_of(reference["losses"])
right.fill_between(np.arange(len(demo.low)), demo.low, demo.high, color="lightgray", label="band")
for seed, curve in reference["losses"].items():
    right.plot(curve, linewidth=0.3, color="steelblue", label="five seeds" if seed == "1" else None)
right.set(xlabel="step", ylim=(0, 7.2), title="shipped: preset demo")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Next:** lesson 17, thirty planted bugs, each with its curve.
