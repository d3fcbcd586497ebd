"""Marks for the cases of a parametrized test."""

import pytest


def slow_but(quick, cases):
    """The cases, all marked slow except those in `quick`: `make test` has an example of each kind, CI has them all."""
    assert set(quick) <= set(cases)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
