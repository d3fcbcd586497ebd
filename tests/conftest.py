"""Fixtures that several test files use."""

import gc
import os
import signal
import sys

import pytest

from tinygrad2.system.gemm_peak import gemm_peak

# Compiled modules are kept, whatever the environment says: each of the processes that the tests start would compile
# 250 of them, a quarter of the time that a short training takes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what runs in its background with Ctrl-C ignored, and so would be each program that the tests start, and
# wait for, and stop by Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def two_looks_at_the_machine():
    """Trainings in this process measure its speed by two products instead of by a tenth of a second of them."""
    defaults = gemm_peak.__defaults__
    gemm_peak.__defaults__ = tuple(0.0 if value == 0.1 else value for value in defaults)
    yield
    gemm_peak.__defaults__ = defaults


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
