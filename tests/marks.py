"""Marks for the cases of a parametrized test."""

import pytest


def slow_but(quick, cases, long=()):
    """The cases, all marked slow except those in `quick`: `make test` has an example of each kind, CI has them all,
    except those in `long`, which only combine what others have."""
    assert {*quick, *long} <= set(cases)
    marks = {case: pytest.mark.long if case in long else pytest.mark.slow for case in cases}
    return [case if case in quick else pytest.param(case, marks=marks[case]) for case in cases]
