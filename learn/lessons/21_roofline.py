# %% [markdown]
# # 21 · FLOPs, bytes, and the roofline of this machine
#
# How fast could this be? A calculation with two numbers per operation answers it, and tells you which operation is
# worth making faster, and how.
#
# ## Read
#
# A processor is limited by two things: how many multiplications and additions it can do per second (FLOP/s), and
# how many bytes per second come from memory. An operation needs at least
#
#     time = max( FLOPs / (FLOPs per second),  bytes / (bytes per second) )
#
# The ratio FLOPs / bytes of an operation is its *arithmetic intensity*. Below a certain intensity, memory is the
# limit and the processor waits; above it, arithmetic is. Drawn over the intensity, the attainable speed is a roof:
# a slope, then flat.
#
# Two facts to keep: a matrix product of (M, K) and (K, N) is `2 M N K` FLOPs (a multiplication and an addition
# each). And a training step of a model with N weights costs about `6 N` FLOPs per token: 2 N forward, 4 N backward,
# because backward has two products for each one of forward, one for the input's gradient and one for the weight's.

# %%
import contextlib
import itertools
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one core, before NumPy is imported: fewer things to disturb it

import numpy as np

from learn import show, small
from models import GPTConfig
from tinygrad2.function import observe
from tinygrad2.monitor.op_costs import forward_bytes, products
from tinygrad2.system.gemm_peak import gemm_peak

plt = show.pyplot()
show.source(GPTConfig.train_flops_per_token)
show.source(forward_bytes)

# %% [markdown]
# ## Predict
#
# GPT-2's smallest model has 124 million parameters. **How many FLOPs is one training step on 1,024 tokens, in units
# of 10¹² (tera)?**

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
gpt2 = GPTConfig.preset("gpt2")
step = gpt2.train_flops_per_token() * 1024
show.guess(my_guess, step / 1e12, "10^12 FLOPs per step of 1,024 tokens")
print(f"6 N alone: {6 * gpt2.count_parameters() * 1024 / 1e12:.3f}; the rest is attention's T x T")
for speed, name in (1e11, "a laptop core or two (0.1 TFLOP/s)"), (5e13, "a graphics card in float32 (50 TFLOP/s)"):
    print(f"at least {step / speed:6.2f} s per step on {name}")
assert 0.7 < step / 1e12 < 1.0

# %% [markdown]
# Now each operation of one forward pass of the small model, by counting. An observer is told of every operation; the
# project has a formula for the products, and counts every array that goes in or comes out once.

# %%
class Count:
    """FLOPs and bytes of every operation of a forward pass."""

    def __init__(self):
        self.rows = {}

    def inside(self, module):
        return contextlib.nullcontext()

    def before(self, node):
        pass

    def after_forward(self, node, arrays, results):
        flops, moved = products(node, arrays, results)[0], forward_bytes(node, arrays, results)
        so_far = self.rows.get(node.name, (0, 0))
        self.rows[node.name] = (so_far[0] + flops, so_far[1] + moved)


model = small.gpt(n_layer=2, n_embd=128, block_size=64)
x, y = small.loader(rows=16, block_size=64).batch((0, 0))
count = Count()
with observe(count):
    model.loss(x, y)
print(f"{'operation':22} {'MFLOP':>8} {'MB':>6} {'FLOP per byte':>14}")
for name, (flops, moved) in count.rows.items():
    ratio = f"{flops / moved:.1f}" if moved else "moves nothing"
    print(f"{name:22} {flops / 1e6:8.1f} {moved / 1e6:6.2f} {ratio:>14}")
assert count.rows["linear"][0] > 0 == count.rows["layernorm"][0]

# %% [markdown]
# Products have tens of FLOPs for each byte; everything else (additions, layernorm, lookups) has hardly one. So the
# same change, "touch memory once less", is worthless for one and everything for the other. That is why the project
# fuses small operations, and splits products into blocks that stay in the cache.
#
# **A product's intensity depends on its shape.** When a model *generates*, one token goes through: the matrix has
# one row, each weight is read from memory and used once.

# %%
def intensity(M, K, N):
    """FLOPs per byte of a float32 product (M, K) x (K, N), each array moved once."""
    return 2 * M * N * K / (4 * (M * K + K * N + M * N))


for rows in (1, 8, 64, 1024):
    print(f"{rows:5} tokens at a time through a 768 x 3072 matrix: {intensity(rows, 768, 3072):6.1f} FLOP per byte")
assert intensity(1, 768, 3072) < 0.6

# %% [markdown]
# ## Build
#
# The roof: the attainable FLOP/s of an operation with a given intensity, on a machine with `peak` FLOP/s and
# `bandwidth` bytes/s.

# %%
def my_roof(intensity, peak, bandwidth):
    """FLOP/s that are possible at most."""
    # your line


# %%
def check_roof(roof):
    assert roof(0.5, 100.0, 20.0) == 10.0, "half a FLOP per byte, 20 bytes per second: 10"
    assert roof(50.0, 100.0, 20.0) == 100.0, "never more than the peak"
    assert roof(5.0, 100.0, 20.0) == 100.0, "the corner is at peak / bandwidth"


show.exercise(my_roof, check_roof)

# %% tags=["answer"]
def roof_answer(intensity, peak, bandwidth):
    return min(peak, intensity * bandwidth)


show.answer(roof_answer, check_roof)

# %% [markdown]
# ## Break
#
# Somebody counts the FLOPs of a training step, divides by the measured time, and finds that the program runs at
# 130% of the processor's peak. **Which of the three lines cannot be right?** (A GPT with 2 blocks of width 128, T =
# 64, vocabulary 512, head tied.)

# %%
def their_flops_per_token(C=128, n_layer=2, T=64, V=512):
    matrices = n_layer * 12 * C * C + V * C
    lookup = 6 * (V * C + T * C)
    return 6 * matrices + lookup + 12 * n_layer * C * T


theirs = their_flops_per_token()
ours = model.config.train_flops_per_token()
print(f"theirs / ours: {theirs / ours:.2f}")
assert theirs / ours > 1.1

# %% [markdown]
# <details><summary>What is planted</summary>
#
# `lookup = 6 * (V * C + T * C)`: an embedding is a lookup. It reads one row per token, and does no multiplication
# at all. The table of the tokens is counted already, where it really is a matrix in a product, as the tied head (`V
# * C` in `matrices`). The table of positions is never in a product. For GPT-2, V * C is a third of the parameters,
# so the mistake is not small. A utilisation above 100% is a bug in the counting; one just below it should make you
# as suspicious.
#
# </details>
#
# ## Look
#
# The roof of one core of **your** machine, measured now: the flat part is the fastest of several large products, the
# slope the most bytes per second of several ways to go through a large array: copy it, read it only, multiply it with
# a vector. Below the roof, measured as well: products of all shapes from above. Dotted: the intensity of two operations
# of the model above. (The committed picture is that of one machine, with others at work on it; run it on yours.)

# %%
def fastest(f, seconds=0.15):
    """Seconds of the fastest call, of as many as fit into this time, at least three."""
    found, begin = [], time.perf_counter()
    while len(found) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        f()
        found.append(time.perf_counter() - start)
    return min(found)


big = np.ones(16 << 20, np.float32)
target = np.empty_like(big)
table, vector = big.reshape(4096, 4096), np.ones(4096, np.float32)
ways = {
    "copied": 2 * big.nbytes / fastest(lambda: np.copyto(target, big), 0.5),      # read once, written once
    "read": big.nbytes / fastest(lambda: big.max(), 0.5),
    "times a vector": big.nbytes / fastest(lambda: table @ vector, 0.5),
}
bandwidth = max(ways.values())
print("GB per second:", ", ".join(f"{way} {speed / 1e9:.1f}" for way, speed in ways.items()))

points = []
weights = itertools.cycle([np.ones((768, 3072), np.float32) for _ in range(12)])  # 113 MB: too many for most caches
for rows in (1, 2, 4, 8, 16, 64, 256, 1024):
    a, out = np.ones((rows, 768), np.float32), np.empty((rows, 3072), np.float32)
    seconds = fastest(lambda a=a, out=out: np.matmul(a, next(weights), out=out))
    points.append((rows, intensity(rows, 768, 3072), 2 * rows * 768 * 3072 / seconds))
peak = max(gemm_peak(np, seconds=0.5), *(speed for _, _, speed in points))

line = np.logspace(-2, 3, 200)
plt.figure()
roof = [roof_answer(i, peak, bandwidth) / 1e9 for i in line]
plt.loglog(line, roof, "k-", label="roof: min(peak, intensity x bandwidth)")
plt.loglog([p[1] for p in points], [p[2] / 1e9 for p in points], "o-", label="(rows, 768) x (768, 3072), measured")
for rows, at, speed in points[::7] + points[3:4]:
    name = "1 row" if rows == 1 else f"{rows} rows"
    plt.annotate(name, (at, speed / 1e9), textcoords="offset points", xytext=(0, -16), ha="center", fontsize=8)
for name in ("layernorm", "linear", "attention"):
    if name in count.rows and count.rows[name][0]:
        at = count.rows[name][0] / count.rows[name][1]
        plt.axvline(at, color="gray", linestyle=":", linewidth=1)
        plt.text(at, plt.ylim()[0] * 1.3, f" {name}", fontsize=8, rotation=90, va="bottom", ha="right", color="gray")
plt.xlabel("arithmetic intensity (FLOP per byte)")
plt.ylabel("GFLOP/s")
plt.title("The roofline of one core of the machine that ran this")
plt.legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# The measured products use twelve weight matrices in turn, so that they come from memory, as those of a large model
# do. With a single one, still in the processor's cache from the last call, the first points can lie above the
# slope. Try it.
#
# **Next:** from reference to kernel: one operation, made faster one step at a time.
