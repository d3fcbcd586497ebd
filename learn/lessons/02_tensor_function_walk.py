# %% [markdown]
# # 2 · Tensor, Function and the walk back
#
# The engine of lesson 1, for arrays, as the project ships it: three short pieces. You add an operation of your own,
# and draw the graph of a run.
#
# ## Read
#
# `Value` of lesson 1 stored the slopes while it computed forward. For arrays that would be wasteful: the slopes of
# a matrix product are a huge table, and all that is ever needed of it is its product with the gradient that comes
# back. So an operation here is a class with two methods on plain NumPy arrays:
#
# - `forward(inputs)` computes the result, and saves what backward will need;
# - `backward(dout)` gets `dout`, the gradient of the loss at the result (same shape as the result), and returns the
#   gradient of the loss at each input (same shape as that input).
#
# The smallest one:

# %%
import numpy as np

from learn import show
from ops.mul import Mul
from tinygrad2 import Function, Tensor, gradcheck
from tinygrad2.autograd import count_uses, walk_back
from tinygrad2.function import observe

plt = show.pyplot()
show.source(Mul)

# %% [markdown]
# (`unbroadcast` matters only if the operands have different shapes: lesson 3.) A `Tensor` is an array plus the
# place where its gradient collects. `apply` runs an operation; the *instance* of the class that computed a result
# is the node of the graph, and its `parents` lead to where the inputs came from. Going back is one loop:

# %%
show.source(walk_back)

# %% [markdown]
# Two lines carry the idea. A node is taken from `ready` only when `uses[parent] == 0`, that is, when **every** use
# of its result has sent its gradient; and gradients that meet are added, in `_sum_in_flight`. The rest checks
# shapes, and frees what forward saved.
#
# ## Predict
#
# `loss = ((x @ w + b).relu() * 2).sum()`, where `w` and `b` require gradients. **How many nodes has the graph?**
# Count operations, not arrays.

# %%
my_guess = None

# %% [markdown]
# ## Run

# %%
rng = np.random.default_rng(0)
x = Tensor(rng.standard_normal((4, 3)))
w = Tensor(rng.standard_normal((3, 2)), requires_grad=True)
b = Tensor(np.zeros(2), requires_grad=True)


def example(x, w, b):
    return ((x @ w + b).relu() * 2.0).sum()


def nodes_of(result):
    """All nodes of a graph, each before its parents, and the number of steps each is away from the result."""
    depth = {result.node: 0}
    order = [result.node]
    for node in order:
        for parent, _ in filter(None, node.parents):
            if not parent.is_leaf:
                depth[parent] = max(depth.get(parent, 0), depth[node] + 1)
                if parent not in order:
                    order.append(parent)
    return order, depth


loss = example(x, w, b)
order, _ = nodes_of(loss)
for node in order:
    kept = sum(a.nbytes for a in node.saved if isinstance(a, np.ndarray))
    leaves = ["leaf" if parent and parent[0].is_leaf else "node" if parent else "-" for parent in node.parents]
    print(f"{node.name:8} inputs from {leaves}, keeps {kept} bytes for backward")
show.guess(my_guess, len(order), "nodes")
assert [node.name for node in order] == ["sum", "mul", "relu", "add", "matmul"]

# %% [markdown]
# `-` is an input without a gradient: `x` and the 2 need none, so nothing is computed for them. The leaves `w` and `b`
# are Tensors, not nodes. After `backward()` they have their gradient, and the nodes have dropped what they kept:

# %%
loss.backward()
print("w.grad", w.grad.shape, "b.grad", b.grad.shape)
print("kept now:", sum(len(node.saved) for node in order), "arrays")

# %% [markdown]
# ## Build
#
# An operation of your own: the *softplus*, a smooth relu, `ln(1 + e^x)`. Its derivative is `1 / (1 + e^-x)`. Fill in
# `backward`. The check is `gradcheck`, which measures the gradient numerically (lesson 4 takes it apart).

# %%
class Softplus(Function):
    """ln(1 + e^x), elementwise."""

    def forward(self, x):
        self.save(x)
        return self.xp.log(1 + self.xp.exp(x))

    def backward(self, dout):
        (x,) = self.saved
        return my_softplus_backward(x, dout)


def my_softplus_backward(x, dout):
    """The gradient at x (an array like x), given the gradient dout at the result."""
    # your line: return ...


# %%
def check_softplus(backward):
    x, dout = np.linspace(-2, 2, 6).reshape(2, 3), np.arange(6.0).reshape(2, 3)
    assert backward(x, dout) is not None

    class Mine(Function, name="softplus_mine"):
        forward = Softplus.forward

        def backward(self, dout):
            return backward(self.saved[0], dout)

    report = gradcheck(Mine, [x])
    assert report, str(report)


show.exercise(my_softplus_backward, check_softplus)

# %% tags=["answer"]
def softplus_backward_answer(x, dout):
    return dout / (1 + np.exp(-x))


show.answer(softplus_backward_answer, check_softplus)

# %% [markdown]
# ## Break
#
# This walk is shorter than the shipped one. It is right for chains, such as the example above. **For which graphs
# is it wrong, and what does the shipped walk do that this one does not?** The three graphs below are a hint.

# %%
def their_walk(result):
    """({id of a leaf: gradient}, number of calls of a backward) by going down from the result."""
    gradients, calls, waiting = {}, 0, [(result.node, np.ones_like(result.data))]
    while waiting:
        node, dout = waiting.pop()
        dinputs, calls = node.backward(dout), calls + 1
        for edge, dinput in zip(node.parents, dinputs if isinstance(dinputs, tuple) else (dinputs,)):
            if edge is None:
                continue
            parent, _ = edge
            if parent.is_leaf:
                gradients[id(parent)] = gradients.get(id(parent), 0) + dinput
            else:
                waiting.append((parent, dinput))
    return gradients, calls


class CountCalls:
    """An observer: how often is a backward called?"""

    calls = 0

    def before(self, node):
        pass

    def after_forward(self, node, arrays, results):
        pass

    def after_backward(self, node, dout, dinputs):
        self.calls += 1

    def after_leaf(self, node, i, leaf, gradient):
        pass


def chain(a):
    return (a * a).exp().sum()


def diamond(a):
    square = a * a
    return (square + square.exp()).sum()


def tower(a, height=12):
    for _ in range(height):
        a = a + a * 0.5
    return a.sum()


for f in (chain, diamond, tower):
    a = Tensor(np.array([0.3, -0.8]), requires_grad=True)
    result = f(a)
    n_nodes = len({result.node, *count_uses(result.node)})
    theirs, their_calls = their_walk(result)
    with observe(CountCalls()) as watching:
        result.backward()
    same = np.allclose(theirs[id(a)], a.grad)
    print(f"{f.__name__:8} same gradient: {same}; {n_nodes} nodes", end="; ")
    print(f"backward called {watching.calls} times (shipped), {their_calls:,} times (theirs)")
    assert same and watching.calls == n_nodes

# %% [markdown]
# <details><summary>What is planted</summary>
#
# The gradients are right: gradients are linear, so sending two parts separately is the same as sending their sum.
# But the walk goes on as soon as *one* use has sent its gradient, so a node that is used twice is walked twice, and
# everything below it, too: in `tower` the work doubles with every floor (12 floors: 8,191 calls instead of 25). A
# GPT adds to its residual stream twice in every block; 24 such forks make 2^24 walks. The shipped walk counts the
# uses first (`count_uses`) and goes on when the last one has arrived. A wrong *cost* is a bug as well, and no test
# of values finds it.
#
# </details>
#
# ## Look
#
# The graph of your example, drawn from its nodes: what each keeps for backward, and the size (root of the sum of
# squares) of the gradient that arrived there in this run.

# %%
arrived = {}


class Watch(CountCalls):
    """Notes the norm of the gradient that arrives at each node."""

    def after_backward(self, node, dout, dinputs):
        arrived[node] = float(np.sqrt((dout**2).sum()))


loss = example(x, w, b)
order, depth = nodes_of(loss)
kept = {node: sum(a.nbytes for a in node.saved if isinstance(a, np.ndarray)) for node in order}
edges = [(parent, node) for node in order for parent, _ in filter(None, node.parents)]
with observe(Watch()):
    loss.backward()

names = {id(w): "w", id(b): "b"}
place, leaves = {}, 0
for node in order:
    place[node] = (-depth[node], 0.0)
for parent, node in edges:
    if parent.is_leaf:
        leaves += 1
        place[parent] = (-depth[node] - 0.5, -1.0)

plt.figure(figsize=(7.2, 3))
for parent, node in edges:
    (x0, y0), (x1, y1) = place[parent], place[node]
    arrow = dict(arrowstyle="->", color="gray", shrinkA=9 if y0 else 33, shrinkB=22 if y0 else 33)
    plt.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
for item, (px, py) in place.items():
    if item.is_leaf:
        label, color = f"{names[id(item)]} {item.shape}", "#fde7c8"
    else:
        label, color = f"{item.name}\nkeeps {kept[item]} B\n|dout| {arrived[item]:.2f}", "#dce9f7"
    plt.text(px, py, label, ha="center", va="center", fontsize=9, bbox=dict(boxstyle="round", fc=color, ec="gray"))
plt.xlim(min(px for px, _ in place.values()) - 0.6, 0.6)
plt.ylim(-1.5, 0.7)
plt.axis("off")
plt.title("Forward follows the arrows; gradients go back along them")
plt.show()

# %% [markdown]
# **Next:** `b` has shape (2,), the matrix it is added to has shape (4, 2). How does its gradient get back to (2,)?
