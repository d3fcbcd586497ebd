"""Plots: ticks and their labels, colours, means, and what a reader of the page is told about a step."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import warnings

import numpy as np
import pytest

from tinygrad2.commands import plot, plot_picture
from tinygrad2.commands.ticks import linear_ticks, log_ticks, spread, tick_labels, value_range
from tinygrad2.errors import UserError
from tinygrad2.monitor.metrics import mean_around, smooth, thin

RANGES = [
    (0.95e-4, 1.05e-4), (9.4e-5, 1.01e-4), (1.2, 1.9), (0.7, 4.1), (0, 7.3), (-3, 3), (2.5, 2.5001), (19_000, 25_000),
    (0, 999), (1_000_000, 1_000_049), (0, 1e6), (1e-9, 3e-9), (0, 1e18), (1e-30, 1e20), (0.99, 1.3), (3.1, 9.9),
    (11, 13), (0.011, 0.012), (1e299, 2e299), (0, 3_400_000), (-0.7, 0.03), (-80, 0.5),
]  # fmt: skip


def value_of(label):
    unit = {"k": 1e3, "M": 1e6}.get(label[-1], 1)
    return float(label.rstrip("kM").replace(",", "")) * unit


@pytest.mark.parametrize("low, high", RANGES)
def test_ticks_are_several_in_range_and_labelled_exactly(low, high):
    kinds = {"linear": linear_ticks(low, high, 8)}
    if low > 0:
        kinds["log"] = log_ticks(low, high, 10)
    for kind, ticks in kinds.items():
        assert 4 <= len(ticks) <= 13, kind
        assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)
        assert ticks == sorted(set(ticks))
        labels = tick_labels(ticks)
        assert len(set(labels)) == len(ticks), labels
        assert list(map(value_of, labels)) == pytest.approx(ticks, rel=1e-9, abs=1e-12 * high), labels


@pytest.mark.parametrize("low, high", [(0, 1), (-0.5, 0.5), (4.5, 5.5), (0, 9), (0, 12_345)])
def test_steps_are_whole_numbers(low, high):
    ticks = linear_ticks(low, high, 8, whole=True)
    assert ticks and all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize("values", [[1e-4] * 5, [0.0], [5e-324, 0.0], [1e-300, 1e-300], [-2.0, -2.0], [1, 1 + 2e-16]])
def test_a_constant_has_room_around_it_and_ticks(values):
    low, high = value_range(values, log=False)
    assert low < min(values) and max(values) < high
    labels = tick_labels(linear_ticks(low, high, 8))
    assert len(labels) >= 4 and len(set(labels)) == len(labels)


def test_a_range_without_values():
    assert value_range([math.nan, math.inf], log=False) is None
    assert value_range([0.0, -1.0], log=True) is None
    low, high = value_range([0.0, 1.0, 10.0, math.nan], log=True)  # only what a log scale can show
    assert 0.8 < low < 1 and 10 < high < 12


def test_labels_of_curves_are_kept_apart():
    ys = spread([(9, 1.0), (9, 1.0), (9, 1.5), (9, 50.0), (300, 1.0)], 14, 10, 0, 100)
    assert ys[3] == 50 and ys[4] == 1  # alone
    assert sorted(ys[:3]) == [0, 10, 20]
    assert spread([(0, 99.0), (0, 99.0)], 14, 10, 0, 100) == [90, 100]


# -- colours -----------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of colour vision deficiency", 2009: the
# complete lack of one kind of cone, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def linear_rgb(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = TO_XYZ @ rgb / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [plot.LIGHT, plot.DARK], ids=["light", "dark"])
def test_colours_stay_apart_also_for_the_colour_blind(palette, vision):
    seen = [lab(np.clip(VISION[vision] @ linear_rgb(colour), 0, 1)) for colour in palette]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 20  # 2.3 is what the eye can just tell apart


@pytest.mark.parametrize("palette, name", [(plot.LIGHT, "light"), (plot.DARK, "dark")])
def test_colours_stand_out_from_the_background(palette, name):
    with open(plot._TEMPLATE, encoding="utf-8") as file:
        card = re.findall(r"--card: (#\w{6});", file.read())[name == "dark"]
    for colour in palette:
        low, high = sorted(float(TO_XYZ[1] @ linear_rgb(c)) for c in (colour, card))
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.2, 1.4.11: graphics


def test_twelve_runs_differ_in_colour_or_dash():
    assert len(set(plot.LIGHT)) == len(set(plot.DARK)) == len(plot.LIGHT) == len(plot.DARK)
    assert len(plot.LIGHT) * len(set(plot.DASHES)) >= 12
    assert len(plot.DASHES) == len(plot_picture._DASHES)


# -- means and points --------------------------------------------------------------------------------------------------


def test_smoothing():
    assert smooth([0, 0, 3, 0, 0], 3) == [0, 1, 1, 1, 0]
    assert smooth([1.0, 2.0, 4.0], 1) == [1, 2, 4]
    spike = [1.0] * 5 + [1e20] + [1.0] * 20
    assert smooth(spike, 3)[7:] == [1.0] * 19  # the spike is over
    gap = [1.0, math.nan, 3.0, math.inf, 5.0]
    assert mean_around(gap, 2, 3) == 3.0 and math.isnan(mean_around(gap, 1, 3)) and mean_around(gap, 2, 5) == 3.0


def test_thinning_keeps_spikes_and_gaps():
    values = [0.0] * 10_000
    values[7777], values[33], values[5000] = 5.0, -3.0, math.nan
    kept = thin(values, 100)
    assert kept == sorted(set(kept)) and len(kept) <= 110 and {0, 33, 5000, 7777, 9999} <= set(kept)
    assert thin(values[:100], 100) == list(range(100))


def test_the_lines_of_a_page():
    steps = list(range(100))
    losses = [math.inf if i == 50 else 1e9 if i == 60 else float(i) for i in steps]
    runs = {"a": {"loss": (steps, losses), "lr": (steps, [1e-4] * 100)}, "b": {"loss": ([7], [2.0])}, "c": {}}
    loss, lr = plot.panels_of(runs, 5)
    assert [loss["title"], lr["title"]] == ["Training loss", "Learning rate"]
    a, b, c = loss["lines"]
    assert a["x"] == steps and a["y"][50] is None and a["mean"][50] is None and a["mean"][49] == 48.75
    assert a["mean"][70] == 70 and b == {"x": [7], "y": [2.0], "mean": None} and c["x"] == []
    assert lr["lines"][0]["mean"] is None and lr["lines"][1]["y"] == []


NAMES = ["a $b", "_c", "<b>'\"&", "日本 😀", "x" * 200, "tab\tnew\nline", "\udcff"]


def write_run(folder, name, records):
    path = folder / name
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_odd_runs_and_names_are_drawn_without_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [{"step": i, "loss": 2 / (i + 1), "grad_norm": 1.3, "lr": 1e-4} for i in range(60)]
    records[30]["loss"], records[40]["loss"], records[41]["grad_norm"] = math.nan, math.inf, 1e30
    runs = [write_run(tmp_path, f"run {i}", records[: 5 * i + 1]) for i in range(12)]
    runs.append(write_run(tmp_path, "late", [{"step": 10**6 + i, "loss": 0.0} for i in range(3)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot.main([*runs, "--out", "c"]) == 0
        if os.path.exists("c.png"):
            panels = plot.panels_of({name: {"loss": ([0, 1], [1.0, 2.0])} for name in NAMES}, 21)
            plot_picture.write_picture(NAMES, panels, plot.LIGHT, 21, "names.png")
            assert (tmp_path / "names.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    data = page_data(tmp_path / "c.html")
    assert data["runs"][0] == "run 0" and data["runs"][12] == "late" and data["smooth"] == 21


def page_data(path):
    return json.loads(re.search(r"^const data = (.*);$", path.read_text(encoding="utf-8"), re.MULTILINE)[1])


def test_an_even_width_is_named_as_what_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path, "run", [{"step": i, "loss": float(i * i)} for i in range(50)])
    plot.main([run, "--out", "c", "--smooth", "20"])
    data = page_data(tmp_path / "c.html")
    assert data["smooth"] == 21
    assert data["panels"][0]["lines"][0]["mean"][25] == pytest.approx(sum(i * i for i in range(15, 36)) / 21)
    plot.main([run, "--out", "c", "--smooth", "1"])
    assert page_data(tmp_path / "c.html")["panels"][0]["lines"][0]["mean"] is None


def test_one_panel_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path, "run", [{"step": i, "loss": 1.0, "val_loss": 2.0, "lr": 3.0} for i in range(5)])
    plot.main([run, "--out", "c", "--panel", "val_loss"])
    assert [panel["title"] for panel in page_data(tmp_path / "c.html")["panels"]] == ["Validation loss"]
    with pytest.raises(UserError, match="has nothing to draw: no grad_norm$"):
        plot.main([run, "--out", "c", "--panel", "grad_norm"])


# -- the page's own numbers --------------------------------------------------------------------------------------------


def in_javascript(expression, values):
    """[expression for each value v], computed by the functions of plot.html."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    with open(plot._TEMPLATE, encoding="utf-8") as file:
        page = file.read()
    functions = page[page.index("// -- numbers") : page.index("// -- drawing")]
    script = f"{functions}\nconsole.log(JSON.stringify({json.dumps(values)}.map(v => {expression})));"
    result = subprocess.run([node, "-"], input=script, capture_output=True, encoding="utf-8", timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_page_has_the_ticks_and_labels_of_the_picture():
    rng = random.Random(1)
    ranges = RANGES + [(low, low + 10 ** rng.uniform(-8, 8)) for low in (10 ** rng.uniform(-6, 6) for _ in range(200))]
    for function, own in (("linearTicks", linear_ticks), ("logTicks", log_ticks)):
        cases = [pair for pair in ranges if pair[0] > 0 or own is linear_ticks]
        ticks = [own(low, high, 8) for low, high in cases]
        assert in_javascript(f"{function}(v[0], v[1], 8)", cases) == ticks
        assert in_javascript("labels(v)", ticks) == list(map(tick_labels, ticks))
    values = [[1.0, 2.0], [1e-4] * 3, [0.0], [-1.0, 0.0, 5.0], [0.5, 40.0, 1e9], [3e-300, 1e300]]
    for log in (False, True):
        expected = [list(value_range(case, log)) for case in values if value_range(case, log)]
        given = in_javascript(f"range(v, {str(log).lower()})", [case for case in values if value_range(case, log)])
        assert np.allclose(given, expected, rtol=1e-12)
    points = [[rng.uniform(0, 60), rng.uniform(0, 100)] for _ in range(12)]
    labels = [{"x": x, "y": y, "i": i} for i, (x, y) in enumerate(points)]
    moved = sorted(in_javascript("spread(v, 14, 11, 0, 200)", [labels])[0], key=lambda label: label["i"])
    assert np.allclose([label["y"] for label in moved], spread(list(map(tuple, points)), 14, 11, 0, 200))


LINES = [
    {"x": [0, 1, 2, 3], "y": [4.0, 3.0, None, 1.0], "mean": None, "run": 0},
    {"x": [0, 2], "y": [5.0, 2.5], "mean": [4.5, 3.0], "run": 1},
    {"x": [2, 1000], "y": [0.5, 1234567.0], "mean": None, "run": 2},
]


def test_the_mark_and_the_numbers_are_of_the_same_step():
    far, start, near, gap = in_javascript(f"reading({json.dumps(LINES)}, v)", [900.2, -5, 1.1, 1.9])
    assert far["step"] == 1000  # the marked one: that of the nearest point of any line
    assert [row["text"] for row in far["rows"]] == ["ends at step 3", "ends at step 2", "1,234,567"]
    assert [row["i"] for row in far["rows"]] == [-1, -1, 1]
    assert start["step"] == 0
    assert [row["text"] for row in start["rows"]] == ["4", "5", "begins at step 2"]
    assert [row["mean"] for row in start["rows"]] == ["", "mean 4.5", ""]
    assert near["step"] == 1
    assert near["rows"][0]["text"] == "3" and near["rows"][1]["text"] == "5 at step 0"  # it has no point at step 1
    assert gap["step"] == 2 and [row["text"] for row in gap["rows"]] == ["not finite", "2.5", "0.5"]


def test_numbers_of_the_page():
    values = [0, 1.0, 0.123456789, 99999.4, 123456.7, 9.5e-5, 1e-30, 2.5e20, -3.25, None]
    assert in_javascript("number(v)", values) == [
        "0", "1", "0.12346", "99,999", "123,457", "9.5e-5", "1e-30", "2.5e20", "-3.25", "not finite"]  # fmt: skip
