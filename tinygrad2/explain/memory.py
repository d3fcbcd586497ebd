"""The memory of a step over time: each array that an op makes, who keeps it for backward, and when it dies.

An observer sees the results of each op, what it has saved, and the gradients that its backward returns. It holds no
array: a weak reference tells when one is freed. Time is counted in ops: forward of the first op is 0, and an array dies
in the op that runs when its last reference goes. Arrays that share memory are one buffer. What an op allocates and
frees within itself is not seen; the plan (training/memory_plan.py) has it as work space.
"""

import weakref
from dataclasses import dataclass, field

from tinygrad2.backend import is_array
from tinygrad2.explain.recorder import input_names
from tinygrad2.function import Function
from tinygrad2.monitor.module_path import ModulePath
from tinygrad2.writes import owner_of


@dataclass
class Event:
    """An op's forward or backward. `phase`: "forward" or "backward"."""

    phase: str
    op: str
    layer: str


@dataclass
class Buffer:
    """Memory that an op has made.

    what      what it was first: "result", "saved", "input" (it came from outside), "gradient of x"
    made      number of the event
    keepers   numbers of the events (forward) whose ops keep it for their backward
    dies      number of the event in which it is freed, or None: it is there after the step
    leased    it is work space that is kept from step to step
    """

    nbytes: int
    what: str
    made: int
    keepers: list = field(default_factory=list)
    dies: int | None = None
    leased: bool = False


class MemoryObserver(ModulePath):
    """Notes the buffers of a step; for `observe` (function.py). `events`: Event, `buffers`: Buffer, in their order.

    fixed    arrays that are not counted: weights, gradients
    """

    def __init__(self, model, fixed):
        super().__init__(model)
        self.events, self.buffers = [], []
        self._fixed = {id(owner_of(array)) for array in fixed}
        self._alive = {}                                          # {id of an array with memory: (reference, Buffer)}
        self._forward = weakref.WeakKeyDictionary()               # {node: number of its forward}

    def before(self, node):
        """Called before forward and before backward of a node."""
        phase = "backward" if node in self._forward else "forward"
        if phase == "forward":
            self._forward[node], node.layer = len(self.events), self.path[-1]
        self.events.append(Event(phase, node.name, node.layer))

    def after_forward(self, node, arrays, results):
        """Called with the op's inputs and its results."""
        outside = {id(owner_of(array)) for array in arrays if is_array(array)}
        for result in results:
            self._see(result, "result")
        for array, leased in saved_arrays(node.saved):
            what = "input" if id(owner_of(array)) in outside else "saved"
            if buffer := self._see(array, what):
                buffer.leased |= leased
                if self._forward[node] not in buffer.keepers:
                    buffer.keepers.append(self._forward[node])

    def after_backward(self, node, dout, dinputs):
        """Called in backward with an op's incoming and outgoing gradients."""
        for name, gradient in zip(input_names(node), dinputs):
            if is_array(gradient):
                self._see(gradient, f"gradient of {name}")

    def after_leaf(self, node, i, leaf, gradient):
        """Called when a gradient has been added to that of a leaf: nothing to do."""

    def _see(self, array, what):
        """The Buffer of an array, a new one if it is the first of its memory; None for what is not counted."""
        owner = owner_of(array)
        if id(owner) in self._fixed or not owner.nbytes:
            return None
        if id(owner) not in self._alive:
            buffer = Buffer(owner.nbytes, what, len(self.events) - 1)
            self.buffers.append(buffer)
            self._alive[id(owner)] = weakref.ref(owner, self._note_death(id(owner), buffer)), buffer
        return self._alive[id(owner)][1]

    def _note_death(self, key, buffer):
        def note(reference):
            buffer.dies = len(self.events) - 1
            del self._alive[key]

        return note

    @property
    def forward_ends(self):
        """Number of the last event of forward."""
        return max(i for i, event in enumerate(self.events) if event.phase == "forward")

    def kept(self):
        """The buffers that wait for backward when forward ends."""
        end = self.forward_ends
        return [b for b in self.buffers if b.keepers and b.made <= end and (b.dies is None or b.dies > end)]

    def kept_by(self, layer):
        """Bytes that the ops inside the module `layer` keep; a buffer that several keep counts for the first."""
        inside = [(b, self.events[b.keepers[0]].layer + ".") for b in self.kept()]
        return sum(buffer.nbytes for buffer, keeper in inside if keeper.startswith(layer + "."))

    def alive(self):
        """Bytes of all buffers during each event."""
        last = len(self.events) - 1
        totals = [0] * len(self.events)
        for buffer in self.buffers:
            for i in range(buffer.made, (last if buffer.dies is None else buffer.dies) + 1):
                totals[i] += buffer.nbytes
        return totals


def saved_arrays(saved):
    """Yields (array, is it leased?) for all arrays among saved values, also inside those of an op within the op."""
    for value in saved if isinstance(saved, (tuple, list)) else (saved,):
        if is_array(value):
            yield value, False
        elif isinstance(value, (tuple, list)):
            yield from saved_arrays(value)
        elif isinstance(value, Function):
            yield from saved_arrays(value.saved)
        elif is_array(getattr(value, "array", None)):             # a Lease (ops/kernels/cpu/workspace.py)
            yield value.array, True


def first_fit(buffers, n_events):
    """Where to draw each buffer, in bytes from the bottom: the lowest place that is free as long as it lives."""
    placed, offsets = [], []
    for buffer in buffers:
        end = n_events if buffer.dies is None else buffer.dies
        others = sorted((low, high) for low, high, made, dies in placed if made <= end and buffer.made <= dies)
        low = 0
        for other_low, other_high in others:
            if low + buffer.nbytes <= other_low:
                break
            low = max(low, other_high)
        placed.append((low, low + buffer.nbytes, buffer.made, end))
        offsets.append(low)
    return offsets


def page_of_memory(memory, plan, fixed):
    """JSON values for the page (memory.js).

    plan    {"parts": {what: bytes}, "layer": {what: bytes}} of training/memory_plan.py
    fixed   {what: bytes} of what is there all the time
    """
    buffers = [b for b in memory.buffers if b.nbytes >= 64]       # not the loss, and counters of a few bytes
    parts, kept, end = plan["parts"], memory.kept(), memory.forward_ends
    logits = sum(b.nbytes for b in kept if b.made == end)         # the head's, made by the last op of forward
    beside = [(name, parts[name], nbytes) for name, nbytes in fixed.items()]
    name = "activations kept for backward"
    beside.append((name, parts[name], sum(b.nbytes for b in kept) - logits))
    layers = sorted({event.layer.split(".")[1] for event in memory.events if event.layer.startswith("h.")}, key=int)
    for layer in dict.fromkeys(layers[:1] + layers[-1:]):
        beside.append((f"of them in layer {layer}", sum(plan["layer"].values()), memory.kept_by(f"h.{layer}")))
    if planned := parts["logits, a chunk at a time"]:
        beside.append(("logits, a chunk at a time", planned, logits))
    return {
        "events": [[event.phase, event.op, event.layer] for event in memory.events],
        "buffers": [[b.nbytes, b.what, b.made, b.dies, b.keepers, b.leased, offset]
                    for b, offset in zip(buffers, first_fit(buffers, len(memory.events)))],
        "alive": memory.alive(),
        "beside": beside,
        "fixed": sum(fixed.values()),
    }  # fmt: skip
