"""python -m tinygrad2 plot RUN...: curves of one or several runs, as a picture (PNG) and as an HTML page.

RUN is a run's folder, or its metrics.jsonl. The page needs nothing but a browser: point at a curve to read it, click a
run's name to hide it. The picture needs matplotlib; without it only the page is written.
"""

import json
import math
import os

from tinygrad2.cli import Parser, PathAction, summary
from tinygrad2.commands.plot_picture import is_picture, write_picture
from tinygrad2.errors import UserError, one_line
from tinygrad2.io.files import atomic_write, first_bytes
from tinygrad2.io.outputs import check_output
from tinygrad2.monitor.metrics import mean_around, read_metrics, thin
from tinygrad2.system.installation import adapt_hint

PANELS = (  # name, title, unit, logarithmic?
    ("loss", "Training loss", "nats per token", False),
    ("val_loss", "Validation loss", "nats per token", False),
    ("lr", "Learning rate", "", False),
    ("grad_norm", "Gradient norm", "", True),
    ("tokens_per_s", "Throughput", "tokens per second", False),
)
# For each background six colours that stay apart with each kind of colour blindness (tests/test_plot.py measures it);
# from the seventh run on they come again, dashed. And each curve has its run's number at its end.
LIGHT = ("#005DCB", "#C87A00", "#00A065", "#A45D9D", "#813B00", "#30483D")
DARK = ("#4CA2F0", "#E64F3B", "#3CF7A6", "#937C88", "#F2E048", "#D0E4FF")
DASHES = ("", "7 3", "1.5 3", "8 3 2 3")
_MOST = 3000  # points of a curve
_SMOOTHED = ("loss", "grad_norm", "tokens_per_s")
_TEMPLATE = os.path.join(os.path.dirname(__file__), "plot.html")


def main(argv):
    parser = Parser(prog="tinygrad2 plot", description=summary(__doc__))
    parser.add_argument("runs", nargs="+", action=PathAction, role="input", metavar="RUN",
                        help="a run's folder, or its metrics.jsonl")  # fmt: skip
    parser.add_argument("--out", action=PathAction, role="output", default="curves", metavar="NAME",
                        help="NAME.html and NAME.png are written (default: curves)")  # fmt: skip
    parser.add_argument("--smooth", type=int, default=21, metavar="N",
                        help="draw the mean of the N values around each step (N + 1 if N is even) on top of the pale "
                             "curve itself; 1: no mean (default: 21)")  # fmt: skip
    shown = [name for name, *_ in PANELS]
    parser.add_argument("--panel", action="append", choices=shown, metavar="NAME",
                        help=f"draw this one only; may be repeated: {', '.join(shown)} (default: all)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.smooth < 1:
        raise UserError(f"--smooth must be at least 1, not {args.smooth}")
    width = args.smooth // 2 * 2 + 1  # as many on either side
    stem = _stem(args.out)
    replaced = _check_outputs(stem, args.runs)
    runs = dict(zip(_labels(args.runs), map(read_metrics, args.runs)))
    panels, names = panels_of(runs, width, args.panel or shown), list(runs)
    if not panels:
        raise UserError(f"{args.runs[0]}: has nothing to draw: no {', no '.join(args.panel or ('loss', 'lr', '...'))}")
    for path in replaced:
        print(f"note      {path}: the plot that was there is replaced")
    _write_page(names, panels, stem + ".html", width)
    print(f"page      {stem}.html")
    try:
        write_picture(names, panels, LIGHT, width, stem + ".png")
    except ImportError:
        print(adapt_hint('note      no picture: matplotlib is missing: pip install -e ".[plot]"'))
        return 0
    print(f"picture   {stem}.png")
    return 0


def _stem(out):
    """--out without its ending, if somebody has given it one: curves.html -> curves."""
    stem, ending = os.path.splitext(out)
    return stem if ending.lower() in (".html", ".png") else out


def _check_outputs(stem, runs):
    """The plots that will be replaced. Raises UserError if the files cannot be written, or if one of them is neither
    ours nor new."""
    if os.path.basename(stem) in ("", ".", ".."):
        raise UserError(f"--out {stem}: is a folder; give a name in it, such as {os.path.join(stem, 'curves')}")
    inputs = [("RUN", os.path.join(run, "metrics.jsonl") if os.path.isdir(run) else run) for run in runs]
    kinds = ((stem + ".html", is_page), (stem + ".png", is_picture))
    return [path for path, is_ours in kinds if check_output("--out", path, "a plot of tinygrad2", is_ours, inputs)]


def is_page(path):
    """Is this file a page that `plot` has written?"""
    return b"<title>tinygrad2: curves</title>" in first_bytes(path, 1000)


def _labels(paths):
    """Short names for the runs, each once."""
    names = [os.path.normpath(path).removesuffix("metrics.jsonl").rstrip(os.sep) or path for path in paths]
    short = [os.path.basename(os.path.abspath(name)) or name for name in names]
    names = short if len(set(short)) == len(short) else names
    return [name if names.index(name) == i else f"{name} ({i + 1})" for i, name in enumerate(names)]


def panels_of(runs, width, shown=None):
    """[{"title", "unit", "log", "lines"}], of every panel (in `shown`, if that is given) for which a run {name: (steps,
    values)} has values.

    A line has x: steps, y: values, None where they are not finite, and mean: for each the mean of the `width` values
    around it, or None for a curve that is not smoothed.
    """
    panels = []
    for name, title, unit, logarithmic in PANELS:
        if shown is not None and name not in shown:
            continue
        lines = [_line(*curves.get(name, ([], [])), width if name in _SMOOTHED else 1) for curves in runs.values()]
        if any(value is not None for line in lines for value in line["y"]):
            panels.append({"title": title, "unit": unit, "log": logarithmic, "lines": lines})
    return panels


def _line(steps, values, width):
    kept = thin(values, _MOST)
    mean = [_rounded(mean_around(values, i, width)) for i in kept] if 2 < 2 * width < len(values) else None
    return {"x": [steps[i] for i in kept], "y": [_rounded(values[i]) for i in kept], "mean": mean}


def _rounded(value):
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _write_page(names, panels, path, width):
    """One self-contained file: plot.html with the data inserted."""
    shown = [one_line(name, 200) for name in names]
    data = {"smooth": width, "panels": panels, "runs": shown, "colours": len(LIGHT), "dashes": DASHES}
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # no name can end the script
    with open(_TEMPLATE, encoding="utf-8") as file:
        page = file.read()
    for word, colours in (("LIGHT", LIGHT), ("DARK", DARK)):
        page = page.replace(word, " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours)))
    with atomic_write(path) as file:
        file.write(page.replace('"DATA"', text).encode())
