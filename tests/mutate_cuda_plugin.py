"""A plugin of pytest that mutate_cuda.py uses: one line of one CUDA file is changed, as TINYGRAD2_MUTANT says."""

import os

from ops.kernels.cuda import launch

_name, _number, _changed = os.environ["TINYGRAD2_MUTANT"].split(":", 2)
_text = launch._text


def text_with_fault(name):
    lines = _text(name).splitlines()
    if name == _name:
        lines[int(_number) - 1] = _changed
    return "\n".join(lines) + "\n"


launch._text = text_with_fault
