"""Fixtures that several test files use."""

import gc

import pytest


@pytest.fixture
def no_collector():
    """Python's cycle collector is off: what is freed is freed by its reference count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
