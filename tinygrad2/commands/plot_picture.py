"""The picture of `python -m tinygrad2 plot`, by matplotlib, which is imported late."""

import math
import warnings

from tinygrad2.commands.ticks import linear_ticks, log_ticks, spread, tick_labels, value_range
from tinygrad2.errors import one_line
from tinygrad2.io.files import atomic_write, first_bytes

_SOFTWARE = "tinygrad2 plot"  # in the file's metadata: how a picture of ours is recognized
_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.8)), (0, (6, 2, 1.5, 2)))  # those of plot.html


def write_picture(names, panels, colours, width, path):
    """Write a PNG with one plot per panel. Panels and their lines are those of plot.py; width: values of a mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    top, bottom = 0.2 + 0.22 * -(-len(names) // columns), 0.2  # inches for the legend and the note
    size = 5 * columns, 3.6 * rows + top + bottom
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(rect=(0, bottom / size[1], 1, 1 - (top + bottom) / size[1]))
    styles = []
    for run in range(len(names)):
        dash = _DASHES[run // len(colours) % len(_DASHES)]
        styles.append(dict(color=colours[run % len(colours)], linestyle=dash))
    ends = [(axis, _draw(axis, panel, styles)) for axis, panel in zip(axes.flat, panels)]
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    lines = [line for panel in panels for line in panel["lines"]]
    notes = []
    if any(line["mean"] for line in lines):
        notes.append(f"strong: mean of the {width} values around each step (fewer at the ends); pale: the values")
    if any(None in line["y"] for line in lines):
        notes.append("x: not a finite number")
    figure.text(0.995, 0.002, ";   ".join(notes), fontsize=8, color="#666666", ha="right")
    warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font does not have
    keys = [pyplot.Line2D([], [], linewidth=1.8, **style) for style in styles]
    texts = [_plain(name, i + 1 if len(names) > 1 else None) for i, name in enumerate(names)]
    figure.legend(keys, texts, loc="upper left", ncols=columns, frameon=False, fontsize=9)
    if len(names) > 1:
        figure.draw_without_rendering()  # from here on the axes have their places
        for axis, points in ends:
            _number_the_ends(axis, points, styles)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png", metadata={"Software": _SOFTWARE})
    pyplot.close(figure)


def is_picture(path):
    """Is this file a PNG that write_picture has written?"""
    return _SOFTWARE.encode() in first_bytes(path, 1000)


def _plain(name, number):
    """A run's name as text without mathematics, of at most 60 characters, with its number."""
    text = one_line(name, 60).replace("$", r"\$")
    return text if number is None else f"{number}  {text}"


def _draw(axis, panel, styles):
    """Draw one panel; returns [(run, step, value)], the last points of the curves."""
    lines = [(run, line) for run, line in enumerate(panel["lines"]) if any(v is not None for v in line["y"])]
    finite = [value for _, line in lines for value in line["y"] if value is not None]
    log = panel["log"] and min(finite) > 0
    if log:
        axis.set_yscale("log")
    low, high = value_range(finite, log)
    ends = []
    for run, line in lines:
        xs, ys = line["x"], _with_gaps(line["y"])
        style = dict(styles[run], solid_joinstyle="round")
        if line["mean"]:
            axis.plot(xs, ys, color=style["color"], linewidth=0.8, alpha=0.2 if len(lines) > 3 else 0.35)
            ys = _with_gaps(line["mean"])
        points = dict(marker="o", markersize=3) if len(xs) < 40 or _any_alone(ys) else {}
        axis.plot(xs, ys, linewidth=1.7, **style, **points)
        bad = [x for x, y in zip(xs, line["y"]) if y is None]
        if bad:
            axis.plot(bad, [high] * len(bad), "x", markersize=5, color=style["color"], clip_on=False)
        last = max(i for i, y in enumerate(ys) if not math.isnan(y))
        ends.append((run, xs[last], ys[last]))
    axis.set_ylim(low, high)
    first, last = min(line["x"][0] for _, line in lines), max(line["x"][-1] for _, line in lines)
    room = 0.02 * (last - first) or 0.5
    axis.set_xlim(first - room, last + room)
    _mark(axis.yaxis, log_ticks(low, high, 8) if log else linear_ticks(low, high, 8))
    _mark(axis.xaxis, linear_ticks(first - room, last + room, 6, whole=True))
    axis.set_title(panel["title"], fontsize=12, loc="left", fontweight="bold")
    axis.set_ylabel(panel["unit"])
    axis.set_xlabel("step")
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return ends


def _mark(axis, ticks):
    """The given ticks and no others."""
    axis.set_ticks(ticks, labels=tick_labels(ticks))
    axis.set_ticks([], minor=True)


def _with_gaps(values):
    return [math.nan if value is None else value for value in values]


def _any_alone(values):
    """Is there a value between two that are not finite, of which a line would show nothing?"""
    missing = [True, *map(math.isnan, values), True]
    return any(missing[i - 1] and not missing[i] and missing[i + 1] for i in range(1, len(values) + 1))


def _number_the_ends(axis, ends, styles):
    """Each curve's number next to its last point."""
    scale = 72 / axis.figure.dpi
    places = [axis.transData.transform((x, y)) * scale for _, x, y in ends]
    low = axis.transAxes.transform((0, 0))[1] * scale
    high = axis.transAxes.transform((0, 1))[1] * scale
    heights = spread([tuple(place) for place in places], 14, 10, low, high)
    for (run, x, y), place, height in zip(ends, places, heights):
        look = dict(va="center", fontsize=8, fontweight="bold", color=styles[run]["color"])
        offset = (5, height - place[1])
        text = str(run + 1)
        axis.annotate(text, (x, y), xytext=offset, textcoords="offset points", annotation_clip=False, **look)
