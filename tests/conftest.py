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


def pytest_make_parametrize_id(val):
    """Long bytes are not the name of a case: they may hold the time, and each worker collects the tests for itself."""
    return "bytes" if isinstance(val, bytes) and len(val) > 20 else None
