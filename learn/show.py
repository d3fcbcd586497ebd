"""What every lesson uses: quoting shipped code by name, comparing a guess, checking an exercise, drawing.

    from learn import show

    show.source(LayerNorm.backward)             prints the shipped code
    show.guess(guess, measured, "first loss")   compares the number written down with the measured one
    show.exercise(mine, check)                  "blank", "not yet: ..." or "right"; raises nothing
    show.answer(theirs, check)                  the same for the answer, which must pass
    plt = show.pyplot()                         matplotlib with the lessons' style
"""

import inspect
import pathlib
import re
import textwrap

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORPUS = ROOT / "data" / "dummy_data.txt"
GPT2_FILES = ROOT / "data" / "gpt2" / "gpt2"  # where data/gpt2/prepare.py puts them
LONGEST_MESSAGE = 8  # lines of an error that are shown


class Blank(Exception):
    """An exercise that nobody has filled in: it returned None."""


def heading(thing):
    """Returns "file: name" of a function or class of this project, as `source` prints it.

    >>> from ops.add import Add
    >>> heading(Add.backward)
    'ops/add.py: Add.backward'
    """
    thing = inspect.unwrap(thing)
    path = pathlib.Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT)
    return f"{path.as_posix()}: {thing.__qualname__}"


def quoted(thing):
    """The source of a function or class of this project, with its heading, as text, without the marks of labs."""
    code = re.sub(r"^ *# lab: (begin|end) \w+\n", "", inspect.getsource(thing), flags=re.MULTILINE)
    return f"# {heading(thing)}\n{textwrap.dedent(code).rstrip()}\n"


def source(thing):
    """Print the shipped source of a function or class, found by name, never a copy that could become old."""
    print(quoted(thing), end="")


def guess(number, measured, what):
    """Print what was measured, beside the number that the reader wrote down before (None: none)."""
    print(f"{what}: {measured:.4g}")
    if number is None:
        print("You wrote no number down. Do it next time: being wrong is what makes it stick.")
    elif measured:
        print(f"You wrote {number:g}: {abs(number - measured) / abs(measured):.0%} off.")
    else:
        print(f"You wrote {number:g}.")


def exercise(function, check):
    """Run `check(function)` and print the verdict, which is also returned: "blank", "not yet" or "right".

    A function that returns None counts as blank. Nothing is raised, so that a notebook runs to its end.
    """
    try:
        check(_filled_in(function))
    except Blank:
        print(f"{function.__name__} is blank. Fill it in, then run its cell and this one again.")
        return "blank"
    except Exception as error:
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        shown = [line for line in lines if line.strip()][:LONGEST_MESSAGE]
        print(f"{function.__name__}, not yet:\n  " + "\n  ".join(shown))
        return "not yet"
    print(f"{function.__name__} is right.")
    return "right"


def answer(function, check):
    """Check the answer that is folded away. Raises what `check` raises: a wrong answer is our mistake."""
    check(_filled_in(function))
    print("The answer passes the same check.")


def _filled_in(function):
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        if result is None:
            raise Blank(function.__name__)
        return result

    return call


def pyplot():
    """matplotlib.pyplot with the lessons' style. Raises ImportError with the remedy where matplotlib is missing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError('the lessons draw with matplotlib: python -m pip install -e ".[learn]"') from None
    plt.rcParams.update({
        "figure.figsize": (7.2, 3.8),
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    })  # fmt: skip
    return plt


def relative_error(a, b):
    """max |a - b| / max(|a|, |b|), one number for two arrays; 0 if both are zero."""
    a, b = np.asarray(a), np.asarray(b)
    scale = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0) / scale) if scale else 0.0


def stories(characters=None):
    """The bundled stories, or their first characters, as one string."""
    return CORPUS.read_text(encoding="utf-8")[:characters]
