"""Autograd: the walk back through the graph. It knows nodes (function.py) and leaves, and no op.

A node's `parents` are its edges: (node, number of its output) or (leaf, 0) for each input, None if no gradient is
wanted. The walk takes the nodes in reverse topological order, that is, a node's turn comes when every use of its
outputs has sent its gradient:

    dL/dx = sum over all uses u of x of  (du/dx)^T dL/du                     the chain rule

This is reverse-mode differentiation (Linnainmaa 1970; Baydin et al., "Automatic differentiation in machine learning",
JMLR 2018, section 3.2).
"""

from tinygrad2.deferred import DeferredGradient
from tinygrad2.dispatch import AROUND
from tinygrad2.function import observers
from tinygrad2.halves import may_meet
from tinygrad2.saved16 import Packed


def walk_back(root, output, grad):
    """Send `grad`, that of one output of the node `root`, to the leaves.

    A gradient in flight is a pair (array, owned). The first one to arrive at an output is only borrowed: it may be the
    dout of another node, or a view. The second makes a sum, which is ours; every later one is added to it in place.
    Raises RuntimeError if a part of the graph was already walked, ValueError or TypeError for a gradient that does
    not fit its input.
    """
    uses = count_uses(root)
    gradients = {root: [None] * len(root.outputs)}  # node -> for each of its outputs what has arrived, or None
    gradients[root][output] = (grad, False)
    ready = [root]
    while ready:
        node = ready.pop()
        parents = node.parents
        dout = _arrived(node, gradients.pop(node))
        for observer in (watching := observers()):
            observer.before(node)
        if isinstance(node.saved, Packed):
            node.saved = node.saved.unpack()
        if type(node) in AROUND:
            with AROUND[type(node)]:
                dinputs = node.backward(dout)
        else:
            dinputs = node.backward(dout)
        dinputs = dinputs if isinstance(dinputs, (tuple, list)) else (dinputs,)
        for observer in watching:
            observer.after_backward(node, dout, dinputs)
        node.release()  # frees what forward saved, before the next gradients are made
        del dout
        if len(dinputs) != len(parents):
            raise ValueError(
                f"{node.name}.backward returned {len(dinputs)} gradients for {len(parents)} inputs: return one each, "
                "None if there is none (and pass None for an optional input that is left out)"
            )
        for i, (edge, dinput) in enumerate(zip(parents, dinputs)):
            if edge is None:
                continue
            parent, output = edge
            if parent.is_leaf and not parent.requires_grad:  # frozen since forward
                continue
            dinput = _checked_gradient(node, i, parent, output, dinput)
            if parent.is_leaf:
                parent.add_to_grad(dinput)
                for observer in watching:
                    observer.after_leaf(node, i, parent, dinput)
                continue
            if parent not in gradients:
                gradients[parent] = [None] * len(parent.outputs)
            gradients[parent][output] = _sum_in_flight(gradients[parent][output], dinput)
            uses[parent] -= 1
            if uses[parent] == 0:
                del uses[parent]  # the last reference except `ready`: the node is freed when its turn is over
                ready.append(parent)
        dinputs = dinput = None  # a deferred one holds what it is computed from


def count_uses(root):
    """How many edges lead to each node below `root`: {node: uses}. Iterative: depth costs no Python stack.

    Raises RuntimeError if a backward pass has been here already, or if saved values were changed in place.
    """
    uses = {}
    stack = [root]
    while stack:
        node = stack.pop()
        node.check_saved()
        if node.released:
            raise RuntimeError(
                f"backward() was already called through this {node.name}: its saved values are freed, and a second "
                "pass would add the same gradients again. Run the forward pass again; several losses: add them first"
            )
        for edge in node.parents:
            if edge is None or edge[0].is_leaf:
                continue
            parent, _ = edge
            if parent not in uses:
                uses[parent] = 0
                stack.append(parent)
            uses[parent] += 1
    return uses


def _arrived(node, gradients):
    """The dout of a node: an array, or a tuple with zeros for the outputs that nothing used."""
    if not node.several:
        return gradients[0][0]
    return tuple(
        node.xp.zeros(shape, dtype=dtype) if gradient is None else gradient[0]
        for gradient, (shape, dtype) in zip(gradients, node.outputs)
    )


def _sum_in_flight(so_far, dinput):
    deferred = isinstance(dinput, DeferredGradient)
    if so_far is None:
        return (dinput.copy(), True) if deferred else (dinput, False)
    array, owned = so_far
    if not owned:
        return (dinput.plus(array) if deferred else array + dinput), True
    if deferred:
        dinput.write_to(array, accumulate=True)
    else:
        array += dinput
    return array, True


def _checked_gradient(node, i, parent, output, dinput):
    """The gradient of input i. In mixed precision it gets the dtype of the input."""
    shape, dtype = (parent.shape, parent.dtype) if parent.is_leaf else parent.outputs[output]
    dshape = None if dinput is None else dinput.shape
    if dshape != shape:
        raise ValueError(
            f"{node.name}.backward: the gradient of input {i} has shape {dshape}, the input has {shape}. "
            "If an input was broadcast, its gradient is summed over the broadcast axes (see ops/broadcast.py)"
        )
    if dinput.dtype == dtype:
        return dinput
    if not may_meet(node.precision, dinput.dtype, dtype):
        raise TypeError(f"{node.name}.backward: the gradient of input {i} is {dinput.dtype}, the input {dtype}")
    return (dinput.copy() if isinstance(dinput, DeferredGradient) else dinput).astype(dtype)
