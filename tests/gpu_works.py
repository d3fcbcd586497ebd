"""A fixture for tests on a real GPU: behind a test after which nothing works on it, pytest ends with exit code 3.

After an error of a kernel, such as an access outside of all memory, each further call of CUDA fails in this process.
`python -m benchmarks.gpu --parts tests` then goes on with the other tests in a new one.
"""

import pytest

BROKEN = 3


@pytest.fixture(autouse=True)
def a_gpu_that_works(request):
    yield
    import cupy

    try:
        cupy.cuda.runtime.deviceSynchronize()
    except Exception as error:
        pytest.exit(f"after {request.node.name} nothing works on this GPU any more: {error}", returncode=BROKEN)
