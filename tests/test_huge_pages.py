"""Large arrays in pages of 2 MB: they are what np.zeros returns, to whoever uses them."""

import mmap
import os

import numpy as np
import pytest

from tinygrad2.system import huge_pages
from tinygrad2.system.memory import resident_bytes

LARGE = 8 << 20


@pytest.mark.parametrize("shape", [0, 1, 1000, LARGE, (3, LARGE // 4), (0, 5), ()])
@pytest.mark.parametrize("dtype", [np.float32, "float64", np.uint16])
def test_zeros_that_can_be_written(shape, dtype):
    array = huge_pages.zeros(shape, dtype)
    same = np.zeros(shape, dtype)
    assert array.shape == same.shape and array.dtype == same.dtype
    assert array.flags.c_contiguous and array.flags.writeable
    assert array.ctypes.data % 64 == 0 or array.nbytes < LARGE
    assert not array.any()
    array[...] = 3
    assert (array == 3).all()


def test_memory_is_taken_when_it_is_written_and_given_back():
    before = resident_bytes()
    array = huge_pages.zeros(64 << 20, np.float32)               # 268 MB
    assert resident_bytes() - before < 50e6
    array[:] = 1
    assert resident_bytes() - before > 250e6
    part = array[:10]
    del array
    assert (part == 1).all() and resident_bytes() - before > 250e6  # a view keeps it
    del part
    assert resident_bytes() - before < 50e6


def test_more_than_there_can_be_is_a_memory_error():
    with pytest.raises(MemoryError):
        huge_pages.zeros(1 << 56, np.float32)


def test_a_system_without_such_pages(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert not huge_pages.zeros(LARGE, np.float32).any()
    monkeypatch.setattr(huge_pages, "_AVAILABLE", False)
    assert not huge_pages.zeros(LARGE, np.float32).any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_its_own():
    array = huge_pages.zeros(LARGE, np.float32)
    if not os.fork():
        array[:] = 1
        os._exit(0)
    assert os.wait()[1] == 0 and not array.any()
