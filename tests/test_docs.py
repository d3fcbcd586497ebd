"""Examples in docstrings run."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("tinygrad2", "tinygrad2/interop", "ops", "models")
    for path in (ROOT / folder).glob("*.py")
    if path.stem != "__init__"
)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_the_tables_of_scaling_are_what_the_script_makes_of_the_committed_figures():
    from benchmarks import scaling

    with open(scaling.DOC, encoding="utf-8") as file:
        text = file.read()
    assert " cores, 20" in text and "4,096 ranks" in text
    assert scaling.rewrite(text) == text


def test_the_model_of_scaling_does_what_its_formula_says():
    from benchmarks.scaling import LATENCY, LINE, time_of_sum

    node = dict(ranks=2, bandwidth=10e9, latency=1e-6, adding=20e9)
    assert time_of_sum(1e9, 2, 1, node, 10) == 2 * 1e-6 + 0.5 * 1e9 * (2 / 10e9 + 1 / 20e9)
    between = 2 * 2 * LATENCY + 3 / 4 * 1e9 * 2 / (10e9 / 8 * LINE)
    assert abs(time_of_sum(1e9, 4, 4, node, 10) - between) < 1e-12
