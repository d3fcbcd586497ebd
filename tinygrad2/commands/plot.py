"""python -m tinygrad2 plot RUN...: curves of one or several runs, as a picture (PNG) and as an HTML page.

RUN is a run's folder, or its metrics.jsonl. The page needs nothing but a browser: point at a curve to read it, click a
run's name to hide it. The picture needs matplotlib; without it only the page is written.
"""

import json
import math
import os

from tinygrad2.cli import Parser, summary
from tinygrad2.errors import UserError
from tinygrad2.io.files import atomic_write, check_writable
from tinygrad2.monitor.metrics import read_metrics, smooth, thin
from tinygrad2.system.installation import adapt_hint

PANELS = (  # name, title, unit, logarithmic?
    ("loss", "Training loss", "nats per token", False),
    ("val_loss", "Validation loss", "nats per token", False),
    ("lr", "Learning rate", "", False),
    ("grad_norm", "Gradient norm", "", True),
    ("tokens_per_s", "Throughput", "tokens per second", False),
)
# Distinguishable with colour blindness, too: Okabe and Ito, 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
_MOST = 3000  # points of a curve
_SMOOTHED = ("loss", "grad_norm", "tokens_per_s")
_TEMPLATE = os.path.join(os.path.dirname(__file__), "plot.html")


def main(argv):
    parser = Parser(prog="tinygrad2 plot", description=summary(__doc__))
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its metrics.jsonl")
    parser.add_argument("--out", default="curves", metavar="NAME",
                        help="NAME.png and NAME.html are written (default: curves)")  # fmt: skip
    parser.add_argument("--smooth", type=int, default=20, metavar="N",
                        help="draw the mean over N steps on top of the pale curve itself (default: 20)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.smooth < 1:
        raise UserError(f"--smooth must be at least 1, not {args.smooth}")
    runs = dict(zip(_labels(args.runs), map(read_metrics, args.runs)))
    if not any(_finite(*curves[name])[0] for curves in runs.values() for name, *_ in PANELS if name in curves):
        raise UserError(f"{args.runs[0]}: has nothing to draw: no loss, no learning rate, ...")
    for ending in (".png", ".html"):
        check_writable(args.out + ending)
    _write_page(runs, args.out + ".html", args.smooth)
    print(f"page      {args.out}.html")
    try:
        import matplotlib
    except ImportError:
        print(adapt_hint('note      no picture: matplotlib is missing: pip install -e ".[plot]"'))
        return 0
    matplotlib.use("Agg")
    _write_picture(runs, args.out + ".png", args.smooth)
    print(f"picture   {args.out}.png")
    return 0


def _labels(paths):
    """Short names for the runs, each once."""
    names = [os.path.normpath(path).removesuffix("metrics.jsonl").rstrip(os.sep) or path for path in paths]
    short = [os.path.basename(name) or name for name in names]
    names = short if len(set(short)) == len(short) else names
    return [name if names.index(name) == i else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _finite(steps, values):
    pairs = [(step, value) for step, value in zip(steps, values) if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _write_picture(runs, path, width):
    from matplotlib import pyplot

    shown = [panel for panel in PANELS if any(panel[0] in curves for curves in runs.values())]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    size = 5 * columns, 3.6 * rows
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, (name, title, unit, logarithmic) in zip(axes.flat, shown):
        for (label, curves), colour in zip(runs.items(), COLOURS * len(runs)):
            steps, values = _finite(*curves.get(name, ([], [])))
            if name in _SMOOTHED and len(steps) > 2 * width > 2:
                axis.plot(*thin(steps, values, _MOST), color=colour, alpha=0.25, linewidth=0.8)
                axis.plot(steps, smooth(values, width), color=colour, linewidth=1.6, label=label)
            else:
                few = len(steps) < 40
                points = dict(marker="o", markersize=3) if few else {}
                axis.plot(steps, values, color=colour, linewidth=1.6, label=label, **points)
        if logarithmic and any(name in curves and min(curves[name][1]) > 0 for curves in runs.values()):
            axis.set_yscale("log")
            axis.yaxis.set_minor_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.set_title(title, fontsize=12, loc="left", fontweight="bold")
        axis.set_ylabel(unit)
        axis.set_xlabel("step")
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    axes.flat[0].legend(frameon=False, fontsize=9)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _write_page(runs, path, width):
    """One self-contained file: plot.html with the data inserted."""
    data = {"smooth": width, "panels": [], "runs": list(runs), "colours": COLOURS}
    for name, title, unit, logarithmic in PANELS:
        lines = []
        for curves in runs.values():
            steps, values = _finite(*curves.get(name, ([], [])))
            pale = thin(steps, values, _MOST)
            strong = thin(steps, smooth(values, width), _MOST) if name in _SMOOTHED else None
            lines.append({"pale": pale, "strong": strong})
        if any(line["pale"][0] for line in lines):
            data["panels"].append({"title": title, "unit": unit, "log": logarithmic, "lines": lines})
    text = json.dumps(data).replace("<", "\\u003c")  # no name can end the script
    with open(_TEMPLATE, encoding="utf-8") as file:
        page = file.read().replace('"DATA"', text)
    with atomic_write(path) as file:
        file.write(page.encode())
