"""Fixtures that several test files use."""

import gc

import pytest


@pytest.fixture
def no_collector():
    """Python's cycle collector stands still: what goes away goes by reference count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
