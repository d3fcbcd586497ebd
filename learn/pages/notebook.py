"""An executed notebook as a page: text, code, what it printed, figures."""

import ast
import base64
import json
import re

from learn import lesson
from learn.pages.text import ROOT, fence, linked_paths, output, relative

FIRST_IN_SEARCH = "---\nsearch:\n  boost: 2\n---"  # a lesson explains what other pages only name


def page_of(path):
    """The path of the page of a lesson or notebook."""
    return f"learn/notebooks/{path.stem}.md"


def page(path, links):
    """(Markdown, {path of a figure: its bytes}) of a notebook's page."""
    here, figures = page_of(path), {}
    is_lesson = path.parent == lesson.NOTEBOOKS
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    made = [FIRST_IN_SEARCH] if is_lesson else []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            made.append(text(source, here, links))
            continue
        code = fence(source, "python")
        for out in cell["outputs"]:
            data = out.get("data", {})
            if "image/png" in data:
                name = f"figures/{path.stem}-{len(figures) + 1}.png"
                figures[f"learn/notebooks/{name}"] = base64.b64decode("".join(data["image/png"]))
                code += f"\n![Figure {len(figures)} of {title(path)}]({name})\n"
            else:
                code += "\n" + printed("".join(out.get("text") or data.get("text/plain", "")))
        if "answer" in cell.get("metadata", {}).get("tags", ()):
            code = f'<details markdown="1"><summary>Show the answer</summary>\n\n{code}\n</details>\n'
        made.append(code)
    made.append(f"\n---\n\nTo run it yourself: `jupyter lab {path.relative_to(ROOT).as_posix()}`.\n")
    return "\n".join(made), figures


def printed(text):
    """What a cell has printed; shipped source that it quotes is shown as code."""
    try:
        quoted = text.startswith("# ") and ast.parse(text)
    except SyntaxError:
        quoted = False
    return fence(text, "{ .python .output }") if quoted else output(text)


def title(path):
    """The title of a notebook: its first line."""
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    return "".join(first["source"]).splitlines()[0].removeprefix("# ")


def text(source, here, links):
    """A cell of text: what is folded stays folded, files and other lessons are links."""
    source = source.replace("<details>", '<details markdown="1">')
    lines = []
    for line in source.splitlines():
        if not line.startswith(("    ", "#")):
            line = linked_paths(line, here, links)
            line = re.sub(r"(?<!\[)\b([Ll]esson (\d+))\b(?!\])", lambda match: _lesson(match, here), line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _lesson(match, here):
    found = [path for path in lesson.lessons() if path.name.startswith(f"{int(match[2]):02}_")]
    target = found and relative(here, page_of(found[0]))
    return f"[{match[1]}]({target})" if found and page_of(found[0]) != here else match[0]
