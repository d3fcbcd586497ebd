"""Dynamic loss scaling: gradients below the range of float16 are kept by a loss that is multiplied by a large number.

A float16 has 5 bits of exponent: what is smaller than 2^-25 (3e-8) becomes zero, and gradients of activations are often
smaller. The derivative is linear: with the loss multiplied by s, every gradient is s times as large, and the norm and
the optimizer divide by s again, exactly, if s is a power of two. If s is too large, gradients overflow to infinity. So

    at the start                                        s = 2^16
    a gradient is infinite or not a number              s <- s / 2, and the step is left out: the weights stay
    2000 steps in a row without that                    s <- 2 s
    always                                              1 <= s <= 2^24

Micikevicius et al., "Mixed precision training", ICLR 2018, sections 3.2 and 4.1; the numbers are those of PyTorch's
GradScaler, and the bounds ours. A training needs it with float16 only: bfloat16 has float32's range.

Where the host does not wait for a GPU, the GPU applies this rule (decide_step of step_numbers.py), and the host does so
again with the same losses and norms when it reads them: then a LossScale is what the GPU has arrived at.
"""

import math

START, LEAST, MOST = 2.0**16, 1.0, 2.0**24
GOOD_STEPS = 2000  # after which a larger scale is tried
MOST_SKIPPED = 20  # in a row: so many mean that the gradients themselves are not finite


class LossScale:
    """The scale of a training's loss; without `dynamic` it is always 1.

        loss.backward(scale.value)
        overflow = scale.overflows(loss, norm)     norm: that of the scaled gradients, or divided by the scale
        scale.update(overflow)                     and the optimizer steps unless it overflows

    value       a power of two
    good        steps since it has changed
    skipped     steps left out so far
    in_a_row    of these, the last ones, if no other step came after them
    """

    def __init__(self, dynamic=False):
        self.dynamic, self.value = dynamic, START if dynamic else 1.0
        self.good = self.skipped = self.in_a_row = 0

    def overflows(self, loss, norm):
        """Is this step to be left out: a finite loss, gradients that are not? Not if it would be one too many: then
        the training has diverged."""
        return self.dynamic and math.isfinite(loss) and not math.isfinite(norm) and self.in_a_row + 1 < MOST_SKIPPED

    def update(self, overflow):
        """A step is done."""
        if not self.dynamic:
            return
        if overflow:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            self.value, self.good = max(LEAST, self.value / 2), 0
            return
        self.good, self.in_a_row = self.good + 1, 0
        if self.good == GOOD_STEPS:
            self.value, self.good = min(MOST, 2 * self.value), 0

    def notice(self):
        """A line about the last step, if it was left out, else ""."""
        if not self.in_a_row:
            return ""
        return (f"the gradients overflow float16: the weights stay as they are, and the loss is scaled by "
                f"{self.value:g} from now on")  # fmt: skip

    def state_dict(self):
        """{name: number} for a checkpoint; {} if the scale is fixed."""
        if not self.dynamic:
            return {}
        return {"value": self.value, "good": self.good, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state):
        """Continue with what state_dict() returned; from {} (another dtype, an older version) at the start."""
        if self.dynamic and state:
            self.value, self.good = float(state["value"]), state["good"]
            self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def is_state(state):
    """Can a training have written this state?"""
    if not isinstance(state, dict) or not state:
        return state == {}
    if set(state) != {"value", "good", "skipped", "in_a_row"} or type(state["value"]) is not float:
        return False
    counts = [state[name] for name in ("good", "skipped", "in_a_row")]
    powers = LEAST <= state["value"] <= MOST and math.frexp(state["value"])[0] == 0.5
    return powers and all(type(n) is int and 0 <= n < 1 << 62 for n in counts) and state["good"] < GOOD_STEPS
