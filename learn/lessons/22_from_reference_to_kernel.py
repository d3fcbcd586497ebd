# %% [markdown]
# # 22 · From reference to kernel
#
# One operation, GELU, from the line of NumPy that defines it to the kernel that the project runs. Each rung changes
# one thing, is compared with float64, and is measured on your machine.
#
# ## Read
#
# `gelu(x) = x (1 + tanh u) / 2` with `u = √(2/π) (x + 0.044715 x³)`. The reference implementation says it in NumPy.
# It is short and right, and it is the version that every faster one is compared with:

# %%
import math
import time
import tracemalloc

import numpy as np

import ops
from learn import show
from ops.gelu import GELU
from tinygrad2 import Tensor, no_grad
from tinygrad2.dispatch import kernels

plt = show.pyplot()
show.source(GELU)

# %% [markdown]
# NumPy executes such a line one operation after the other, each over the whole array. The result of each is a
# *temporary*, an array as large as x. If x is larger than the processor's cache, each temporary is written to
# memory and read again by the next operation. By the roofline of lesson 21 memory is the limit of eight of these nine
# operations: each does one FLOP for 8 to 12 bytes. The ninth is tanh, which computes a lot, and comes back in rung 5.
#
# A *kernel* does the same arithmetic in one pass: read an element, do everything, write the result. That is called
# *fusing*.
#
# ## Predict
#
# A fused GELU moves two numbers per element: it reads x and writes out. **How many numbers per element does the
# reference read and write, all its operations together?**

# %%
my_guess = None

# %% [markdown]
# ## Run
#
# Counting is better than guessing. An array that is told of every operation of NumPy, and counts the elements that go
# in and come out:

# %%
class Counted(np.ndarray):
    """An array that counts what NumPy reads and writes; `moved` is the sum, in numbers."""

    operations, moved = 0, 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        arrays = {id(a): a for a in inputs if isinstance(a, np.ndarray)}         # x * x reads x once
        plain = [np.asarray(a) if isinstance(a, np.ndarray) else a for a in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        Counted.operations += 1
        Counted.moved += sum(a.size for a in arrays.values()) + result.size
        return result.view(Counted)


def reference(x):
    """The shipped forward pass on a plain array, of which no gradient is wanted: nothing is saved."""
    return GELU(np, (False,)).forward(x)


x = np.random.default_rng(0).standard_normal(1 << 21).astype(np.float32) * 3     # 8 MB
reference(x[:1000].view(Counted))
per_element = Counted.moved / 1000
show.guess(my_guess, per_element, "numbers moved per element")
print(f"in {Counted.operations} operations; a fused loop moves 2: {per_element / 2:.1f} times less")
assert Counted.operations == 9 and per_element == 21

# %% [markdown]
# ### The yardstick
#
# Every rung is compared with the formula in float64. The error is taken relative to the largest result, and a rung
# may have at most twice the error of the float32 reference (or 10⁻⁶, if that is more).

# %%
exact = reference(x.astype(np.float64))


def error(got):
    """The largest difference from float64, relative to the largest result."""
    return float(np.abs(got - exact).max() / np.abs(exact).max())


rungs = {}


def to_new_array(loop):
    """A function that makes an array and lets a compiled loop fill it, as the reference makes its result."""

    def run(x):
        out = np.empty_like(x)
        loop(x, out)
        return out

    return run


def rung(name, f):
    """Note a rung for the picture, and hold it to the yardstick."""
    got = f(x)
    assert got.dtype == np.float32 and got.shape == x.shape
    assert error(got) <= max(1e-6, 2 * error(reference(x))), f"{name}: error {error(got):.1e}"
    rungs[name] = f
    print(f"{name}: right to {error(got):.0e} of the largest result")


rung("reference", reference)

# %% [markdown]
# ### Rung 1: no temporaries
#
# The same nine operations, into arrays that exist already. Allocating costs something, for the operating system has
# to fill every new page with zeros. But the same 21 numbers move.

# %%
scratch = np.empty_like(x)


def in_place(x, out=None):
    """GELU with two arrays for all intermediate results."""
    out = np.empty_like(x) if out is None else out
    u = scratch[: x.size]
    np.multiply(x, x, out=u)
    u *= x
    u *= 0.044715
    u += x
    u *= math.sqrt(2 / math.pi)
    np.tanh(u, out=u)
    u += 1
    np.multiply(x, 0.5, out=out)
    out *= u
    return out


rung("1 in place", in_place)

# %% [markdown]
# ### Rung 2: blocks
#
# Do all nine operations on a few thousand elements, then on the next few thousand. The intermediate results are now
# so small that they stay in the cache; only x and the result come from and go to memory. You write this one.
#
# ## Build
#
# `x` is one-dimensional, float32. Return GELU of it, computed block by block, with `in_place(part, out=target)` or
# with operations of your own. The check measures how much memory you use: the result, and one block.

# %%
def my_blocked(x, block=8192):
    """GELU, block by block; the last block may be shorter."""
    # your lines


# %%
def check_blocked(blocked):
    for n in (1, 8191, 8192, 20_001):
        got = blocked(x[:n])
        assert got.shape == (n,) and got.dtype == np.float32, f"{n} elements: {got.dtype} {got.shape}"
        wrong = np.flatnonzero(~(np.abs(got - exact[:n]) < 1e-5))
        assert not wrong.size, f"{n} elements: element {wrong[0]} is {got[wrong[0]]}, should be {exact[wrong[0]]:.4f}"
    tracemalloc.start()
    blocked(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * x.nbytes, f"{peak / x.nbytes:.1f} times the memory of x was allocated"


show.exercise(my_blocked, check_blocked)

# %% tags=["answer"]
def blocked_answer(x, block=8192):
    out = np.empty_like(x)
    for start in range(0, x.size, block):
        in_place(x[start : start + block], out=out[start : start + block])
    return out


show.answer(blocked_answer, check_blocked)
rung("2 blocks", blocked_answer)

# %% [markdown]
# ### Rung 3: a compiled loop
#
# Numba compiles a Python loop to machine code. One pass, no temporaries at all. From here on the rungs need it
# (`pip install -e ".[fast]"`); without it the lesson goes on with the rungs that NumPy alone can do, as the project
# does with its reference implementations.

# %%
try:
    from ops.kernels.cpu.load_numba import load_numba

    numba = load_numba()
except ImportError:
    numba = None
    print('Numba is not on this machine, so rungs 3 to 6 are left out. To get it: pip install -e ".[fast]"')

if numba:

    @numba.njit(error_model="numpy")
    def loop64(x, out):
        for i in range(x.size):
            u = 0.7978845608028654 * (x[i] + 0.044715 * (x[i] * x[i] * x[i]))
            out[i] = 0.5 * x[i] * (1 + math.tanh(u))

    rung("3 compiled loop", to_new_array(loop64))

# %% [markdown]
# ### Rung 4: float32 constants
#
# There is a trap in that loop: 0.044715 is a Python float, a float64. One such constant makes everything behind it
# float64: every element is converted, half as many numbers fit into a vector register, and the slower `tanh` is
# called. NumPy is lenient about Python floats; a compiler is not.

# %%
if numba:
    SCALE, CUBIC, HALF, ONE = (np.float32(c) for c in (math.sqrt(2 / math.pi), 0.044715, 0.5, 1.0))

    @numba.njit(error_model="numpy")
    def loop32(x, out):
        for i in range(x.size):
            u = SCALE * (x[i] + CUBIC * (x[i] * x[i] * x[i]))
            out[i] = HALF * x[i] * (ONE + math.tanh(u))

    rung("4 float32", to_new_array(loop32))

# %% [markdown]
# ### Rung 5: vectors
#
# A core can do 4, 8 or 16 float32 operations at once, if a loop consists of plain arithmetic. `tanh` is a call into
# the C library, one element at a time, and keeps the compiler from it. So the kernel does without: `(1 + tanh u) / 2 =
# e^2u / (e^2u + 1)`, and e to the power of something is a polynomial (`exp32`). All of that is arithmetic.
#
# This is the shipped loop:

# %%
if numba:
    from ops.kernels.cpu import gelu as shipped
    from ops.kernels.cpu.fast_math import exp32

    show.source(shipped._exp_2u)
    show.source(shipped.gelu_row)
    show.source(exp32)

    @numba.njit(error_model="numpy")
    def loop_vectors(x, out):
        shipped.gelu_row(x, out, False)

    rung("5 vectors", to_new_array(loop_vectors))

# %% [markdown]
# Is the call gone? The compiler's own intermediate code tells:

# %%
if numba:

    def calls_tanh(compiled):
        """Is the C library's tanh called in the optimised code of a compiled function?"""
        (code,) = compiled.inspect_llvm().values()
        return "call" in code and "@tanh" in code

    for name, compiled in ("3 compiled loop", loop64), ("4 float32", loop32), ("5 vectors", loop_vectors):
        print(f"{name}: {'calls tanh' if calls_tanh(compiled) else 'calls nothing'}")
    assert not calls_tanh(loop_vectors)

# %% [markdown]
# NumPy's own `tanh` is written with vectors, too. So rungs 3 and 4, though they move ten times less memory, may well
# be **slower** than the reference: compiled is not the same as fast. You see it in the picture.
#
# ### Rung 6: threads
#
# Compiled code does not need Python's lock, so several threads can each take a range of the elements. That is the
# shipped kernel. It is a subclass of the reference: same name, same formula, same saved values, another `forward`:

# %%
def through_the_engine(x):
    """What a model calls: the newest kernel that supports these arrays, or the reference."""
    with no_grad():
        return ops.gelu(Tensor(x)).numpy()


if numba:
    show.source(shipped.GELUCPU)
rung("6 shipped, threads" if numba else "shipped (the reference)", through_the_engine)
with kernels("reference"):
    assert np.array_equal(through_the_engine(x), reference(x))

# %% [markdown]
# Nobody had to change a model for it: `ops.gelu` asks the kernel whether it supports these arrays. `--kernels
# reference` runs everything on the reference implementations, which is the first thing to try when you suspect a
# kernel.
#
# ## Break
#
# A kernel of somebody who read this lesson up to rung 5. It was compared with float64 on a hundred million normally
# distributed numbers, and it passes. After two days of training the loss is NaN. **For which x is it wrong?** Try
# values that a normal distribution does not give you: large, tiny, negative, infinite.

# %%
def their_gelu(x):
    with np.errstate(all="ignore"):                               # "only harmless underflows"
        e = np.exp(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))
        return x * (e / (e + 1))


assert error(their_gelu(x / 3)) < 1 and np.abs(their_gelu(x / 3) - reference(x / 3)).max() < 1e-5
print("on normally distributed numbers: right")

# %% tags=["answer"]
values = np.array([-np.inf, -20, -1e-30, 0, 1e-30, 5, 9.9, 10.2, 20, np.inf], np.float32)
with np.errstate(invalid="ignore"):
    for value, theirs, ours in zip(values, their_gelu(values), through_the_engine(values)):
        print(f"x = {value:8.3g}: theirs {theirs:8.3g}, shipped {ours:8.3g}")
    assert np.isnan(their_gelu(values)[7]) and through_the_engine(values)[7] == values[7]

# %% [markdown]
# <details><summary>What is planted</summary>
#
# Nothing is held to a range: from x = 10.1 on, e^2u is larger than the largest float32, it becomes infinite, and
# inf / inf is NaN. A standard normal number is never that large, but the activations of a trained model are. And
# the warning that NumPy would have given was switched off. The shipped `_within` holds x to -8 .. 8 for the
# exponential, and beyond 8 GELU is x itself. Test a kernel at the ends of its range, at 0, at infinity, with NaN (which
# must stay NaN), and with sizes that no block divides. (At -inf the *reference* gives NaN, 0 times infinity; no
# model gets there.)
#
# </details>
#
# ## Look
#
# Left: how many times faster than the reference each rung is, on the machine that ran this, with other programs at
# work on it. Run it on yours: the order of the rungs can differ. A compiled loop with a call in it loses to NumPy; the
# same loop without the call wins by far; threads help as far as there are free cores and memory to read from.
# Right: the relative error of each element. The reference computes `1 + tanh u`, a difference of nearly equal
# numbers for negative x, and loses all its digits there; the kernel's form has no difference. The absolute errors
# are tiny in both.

# %%
def fastest(f, seconds=0.15):
    """Seconds of the fastest call, of as many as fit into this time, at least three."""
    found, begin = [], time.perf_counter()
    while len(found) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        f(x)
        found.append(time.perf_counter() - start)
    return min(found)


times = {name: fastest(f) for name, f in rungs.items()}
figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 4))
names = list(times)[::-1]
bars = left.barh(names, [times["reference"] / times[name] for name in names])
left.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
left.set(xlabel="times as fast as the reference", xlim=(0, 1.15 * max(times["reference"] / t for t in times.values())))
left.set_title(f"GELU of {x.size / 1e6:.1f} million numbers", fontsize=10)
line = np.linspace(-6, 6, 2001, dtype=np.float32)
truth = reference(line.astype(np.float64))
ahead = truth != 0
for name, f in ("reference, float32", reference), ("shipped kernel", through_the_engine):
    relative = np.abs(f(line)[ahead] / truth[ahead] - 1)
    right.semilogy(line[ahead], np.maximum(relative, 1e-9), ".", markersize=2, label=name)
right.set(xlabel="x", ylabel="relative error", ylim=(1e-9, 3))
right.set_title("against float64", fontsize=10)
right.legend(fontsize=8, markerscale=4)
plt.show()

# %% [markdown]
# What such a ladder looks like for every operation of the project, with what was tried and did not help, is in
# `docs/kernels.md`. The largest one, the matrix product, has ten rungs in `benchmarks/ladder.py`.
#
# **Next:** fewer bits per number. Lesson 23.
