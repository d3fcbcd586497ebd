"""The same ops and the same training on a real GPU, if CuPy finds one."""

import contextlib

import numpy as np
import pytest
from kernel_checks import is_float, run, stacked
from test_backends import CASES, REFERENCE, on_device, training_steps

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if not cupy.cuda.is_available():
    pytest.skip("CuPy finds no GPU here", allow_module_level=True)


@pytest.mark.parametrize("name, sample", CASES)
def test_every_op_equals_the_cpu(name, sample):
    arrays = sample.arrays(np.float32)
    out, dout, gradients = run(REFERENCE[name], arrays, sample.options)
    node = REFERENCE[name](cupy, [is_float(a) for a in arrays])
    options = {key: on_device(value, cupy) for key, value in sample.options.items()}
    got_out, several = stacked(node.forward(*(on_device(a, cupy) for a in arrays), **options), cupy)
    ddout = cupy.asarray(dout)
    got_gradients = node.backward(tuple(ddout) if several else ddout)
    for got, expected in zip([got_out, *got_gradients], [out, *gradients]):
        if expected is not None:
            assert np.allclose(cupy.asnumpy(got), expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()))


def test_training_equals_the_cpu():
    losses, _ = training_steps("cpu", 5, contextlib.nullcontext)
    gpu_losses, _ = training_steps("cuda", 5, contextlib.nullcontext)
    assert np.allclose(losses, gpu_losses, rtol=1e-4)
