"""Run the lessons, and build the notebooks and the site from them.

    python learn/build.py run                    run every lesson as a program, one after the other
    python learn/build.py notebooks              build all notebooks, executed
    python learn/build.py notebooks 03 build     only these
    python learn/build.py check                  is every notebook the one that its lesson would become?
    python learn/build.py site --out site        build the site: lessons, ops, documents, names
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import contextlib
import hashlib
import io
import json
import runpy
import tempfile
import time
import warnings

from learn import lesson, show
from tinygrad2.cli import Parser, PathAction, run, summary
from tinygrad2.errors import UserError
from tinygrad2.io.files import atomic_write

TIMEOUT = 600  # seconds for one cell
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def main():
    parser = Parser(prog="build.py", description=summary(__doc__))
    parser.add_argument("what", choices=("run", "notebooks", "check", "site"), help="what to do")
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of the lessons' names (default: all)")
    text = "folder of the site, which is replaced if this program has built it (default: site)"
    parser.add_argument("--out", action=PathAction, role="output", default="site", help=text)
    args = parser.parse_args()
    if args.what == "site":
        return build_site(args)
    paths = chosen(args.names)
    if args.what == "check":
        stale = [path.name for path in paths if stale_cells(path)]
        if stale:
            raise UserError(f"{', '.join(stale)}: the notebook is another one; run: python learn/build.py notebooks")
        print(f"{len(paths)} notebooks are those of their lessons")
        return 0
    if args.what == "notebooks":
        keep_answers(paths)
    for path in paths:
        start = time.process_time(), time.perf_counter()
        if args.what == "run":
            run_lesson(path)
            print(f"{path.name}: {time.process_time() - start[0]:.1f} s of CPU", flush=True)
        else:
            build_notebook(path)
            seconds = time.perf_counter() - start[1]
            print(f"{lesson.notebook_of(path).relative_to(ROOT)}: {seconds:.1f} s", flush=True)
    return 0


def build_site(args):
    """The whole site, into a folder. Raises UserError for names: there are no sites of single lessons."""
    from learn.pages import site

    if args.names:
        raise UserError(f"site {' '.join(args.names)}: the site is built as a whole; the folder is --out")
    start = time.perf_counter()
    pages = site.build(args.out)
    seconds = time.perf_counter() - start
    print(f"{pages} pages in {seconds:.0f} s; to read them: python -m http.server -d {args.out}")
    return 0


def chosen(names):
    """The lessons and long reads whose names begin so; all if there are no names. Raises UserError for a name that
    none has."""
    paths = lesson.lessons() + lesson.long_reads()
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            raise UserError(f"{name}: no lesson has a name that begins so; the last is {lesson.lessons()[-1].stem}")
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def run_lesson(path):
    """Execute a lesson in this process, without showing its pictures; returns what it prints. Raises what it raises."""
    plt = show.pyplot()
    plt.switch_backend("Agg")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
            if path.parent == lesson.LONG:
                run_cells(path)
            else:
                runpy.run_path(str(path), run_name="__main__")
    finally:
        plt.close("all")
    return printed.getvalue()


def run_cells(path):
    """Run a long read: the code of all its cells as one program."""
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, path.name)
        with open(program, "w", encoding="utf-8") as file:
            file.write("\n\n".join(cell.source for cell in lesson.read(path) if cell.kind == "code"))
        runpy.run_path(program, run_name="__main__")


def build_notebook(path):
    """Write the executed notebook of a lesson. Raises UserError if a cell fails or writes to stderr."""
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError:
        raise UserError('notebooks need nbformat, nbclient and ipykernel: pip install -e ".[learn]"') from None
    notebook = nbformat.from_dict(empty_notebook(path))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    os.environ.pop("MPLBACKEND", None)  # the kernel's own one draws into the notebook
    folder = {"metadata": {"path": str(lesson.NOTEBOOKS)}}
    client = NotebookClient(notebook, timeout=TIMEOUT, resources=folder, record_timing=False)
    try:
        client.execute()
    except CellExecutionError as error:
        raise UserError(f"{path.name}: a cell fails ({error.ename}: {error.evalue})") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    raise UserError(f"{path.name}: a cell writes to stderr: {output['text'].strip().splitlines()[-1]}")
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"},  # no versions of this machine
                         "tinygrad2": {"sources": fingerprint(notebook.cells)}}  # fmt: skip
    lesson.NOTEBOOKS.mkdir(exist_ok=True)
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_write(lesson.notebook_of(path)) as file:
        file.write(text.encode())


def keep_answers(paths):
    """Raises UserError, before anything is built, if a notebook would be replaced whose cells somebody has changed."""
    changed = [lesson.notebook_of(path).relative_to(ROOT).as_posix() for path in paths if is_changed(path)]
    if changed:
        raise UserError(f"{', '.join(changed)}: changed since it was built, with answers of yours perhaps; nothing is "
                        "replaced: save it under another name and remove it here, or name the notebooks to build")


def is_changed(path):
    """Has somebody changed cells of a lesson's notebook since it was built? False if it does not say how it was."""
    target = lesson.notebook_of(path)
    if not target.exists():
        return False
    try:
        notebook = json.loads(target.read_text(encoding="utf-8"))
        built = notebook["metadata"].get("tinygrad2", {}).get("sources")
        return built is not None and built != fingerprint(notebook["cells"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return True                                               # no notebook of ours


def fingerprint(cells):
    """Some digits that change with the kind, number, order and text of a notebook's cells; not with what they printed.
    Editors may save a text as a list of its lines."""
    text = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def empty_notebook(path):
    """The notebook of a lesson before it is executed, as a dict of JSON values."""
    made = []
    for number, cell in enumerate(lesson.read(path)):
        entry = {"cell_type": cell.kind, "id": f"{path.name[:2]}-{number}", "metadata": {}, "source": cell.source}
        if cell.tags:
            entry["metadata"] = {"tags": cell.tags, "jupyter": {"source_hidden": "answer" in cell.tags}}
        if cell.kind == "code":
            entry |= {"execution_count": None, "outputs": []}
        made.append(entry)
    return {"cells": made, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def tidy(outputs):
    """The outputs of a cell with what is printed in one piece: in how many a kernel sends it is a matter of timing."""
    joined = []
    for output in outputs:
        if joined and output["output_type"] == "stream" and joined[-1].get("name") == output["name"]:
            joined[-1]["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def stale_cells(path):
    """Numbers of the cells in which the committed notebook of a lesson differs from the lesson; [-1]: no notebook."""
    target = lesson.notebook_of(path)
    if not target.exists():
        return [-1]
    new = empty_notebook(path)["cells"]
    old = json.loads(target.read_text(encoding="utf-8"))["cells"]
    keys = ("cell_type", "id", "metadata", "source")
    differ = [i for i, (a, b) in enumerate(zip(new, old)) if any(a[key] != b.get(key) for key in keys)]
    return differ + list(range(min(len(new), len(old)), max(len(new), len(old))))


if __name__ == "__main__":
    run(main)
