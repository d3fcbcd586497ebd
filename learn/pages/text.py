"""Text for MkDocs: docstrings as they stand, fences, and links between the pages.

A docstring is prose with indented formulas. Prose becomes a paragraph in which no sign is markup; what is indented, or
is a table of names and meanings, keeps its columns in a block of its own.
"""

import html
import inspect
import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PATH = r"(?:[\w-]+/)*[\w-]+\.(?:py|md|js|css|html|cfg|toml)"
_COLUMNS = re.compile(r"[\w\"'(\[*-][^.:!?]*? {2,}\S|\S.* {4,}\S")  # `rtol    largest relative error`
LONGEST = 80  # signs of a signature on one line
_MARKUP = re.compile(r"([\\`*_{}\[\]])")


class Links:
    """Which page of the site shows a file of the project.

    pages     {path of a file in the project: path of its page}
    sources   paths of files that have been linked and have no page of their own: they are shown as they are
    pictures  paths of the pictures of documents
    """

    def __init__(self, pages):
        self.pages, self.sources, self.pictures = dict(pages), set(), set()

    def page_of(self, path):
        """The page that shows a file of the project; None if there is no such text file."""
        if path in self.pages:
            return self.pages[path]
        if not re.fullmatch(_PATH, path) or not (ROOT / path).is_file():
            return None
        self.sources.add(path)
        return source_page(path)

    def to(self, page, path, anchor=""):
        """The link from a page to the page of a file; None if there is none."""
        target = self.page_of(path)
        return target and relative(page, target) + anchor

    def code(self, page, path):
        """The name of a file as code, linked if it is shown."""
        target = self.to(page, path)
        return f"[`{path}`]({target})" if target and target != posixpath.basename(page) else f"`{path}`"


def source_page(path):
    """The page of a file that is shown as it is."""
    return f"source/{path}.md"


def relative(page, target):
    """The link from one page to another."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def fence(text, kind="text", title=""):
    """A block of code or output; the fence is longer than any in it. A `kind` with a dot lists classes."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`{3,}", text)), default=0))
    title = f' title="{title}"' if title else ""
    return f"{ticks}{kind}{title}\n{text.rstrip()}\n{ticks}\n"


def output(text):
    """What a program has printed."""
    return fence(text, "{ .text .output }")


def escaped(prose):
    """Prose in which no sign is markup, except code between backticks."""
    parts = re.split(r"(`[^`\n]+`)", prose)
    parts[::2] = [_MARKUP.sub(r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    return re.sub(r"^([#+-]|\d+\.)(?= )", r"\\\1", "".join(parts))


def cell(prose):
    """Prose for a cell of a table."""
    return escaped(prose).replace("|", "\\|")


def blocks(doc):
    """[(is it preformatted?, text)] of a docstring.

    >>> blocks("The sum.\\n\\n    out = x + y\\n\\nIn words:\\nboth.")
    [(False, 'The sum.'), (True, 'out = x + y'), (False, 'In words:\\nboth.')]
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        lines = paragraph.splitlines() or [""]
        kept = [line.startswith("    ") for line in lines]
        if lines[0].startswith(">>>") or any(map(_COLUMNS.match, lines)):
            kept = [True] * len(lines)
        elif any(kept):  # prose that runs into a formula, or the other way round
            kept = [line.startswith("  ") for line in lines]
        for line, keep in zip(lines, kept):
            same = found and found[-1][0] == keep and line is not lines[0]
            if same:
                found[-1][1].append(line)
            elif keep and found and found[-1][0]:
                found[-1][1].extend(["", line])  # one block, with the empty line in it
            else:
                found.append((keep, [line]))
    texts = ((keep, "\n".join(lines)) for keep, lines in found)
    return [(keep, inspect.cleandoc("\n" + text) if keep else text) for keep, text in texts if text]


def docstring(doc, page, links, formulas=fence):
    """A docstring as Markdown: prose with its files linked, the rest as it stands, or as `formulas` shows it."""
    made = []
    for keep, text in blocks(doc):
        made.append(formulas(text) if keep else linked_paths(escaped(text), page, links, bare=True) + "\n")
    return "\n".join(made)


def linked_paths(prose, page, links, bare=False, folder=""):
    """Prose in which files of the project are links: those between backticks, or with `bare` all that are named.

    A name is looked for in `folder` as well.
    """

    def link(match):
        path = match["path"].replace("\\", "")
        target = links.to(page, path) or (folder and links.to(page, folder + path))
        return f"[`{path}`]({target})" if target else match[0]

    plain = r"(?<![\w/`\]])(?P<path>(?:[\w\\-]+/)+[\w\\-]+\.py)(?![\w`/])"
    return re.sub(plain if bare else rf"(?<!\[)`(?P<path>{_PATH})`(?!\])", link, prose)


def document(text, page, links, origin):
    """A document of the project, `origin`, for its page: links lead to pages, files named in it are links."""
    folder, section, fenced, made = posixpath.dirname(origin), "", False, []

    def link(match):
        name, _, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(folder, name))
        if not name or name.startswith("http"):
            return match[0]
        if name.endswith((".png", ".svg")):
            links.pictures.add(path)
            return f"]({relative(page, path)})"
        target = links.to(page, path, f"#{anchor}" * bool(anchor))
        return f"]({target})" if target else match[0]  # the build reports it

    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            if line.startswith("## "):
                section = line[3:].strip() if line.endswith("/") else ""
            line = re.sub(r"\]\((?P<target>[^)\s]+)\)", link, line)
            if not line.startswith("#"):
                line = linked_paths(line, page, links, folder=section)
            if line.startswith("|") and made and made[-1].strip() and not made[-1].startswith("|"):
                made.append("")  # GitHub needs no empty line in front of a table
        made.append(line)
    return "\n".join(made) + "\n"


def signature(thing):
    """The signature as text, names without their modules; "" where there is none."""
    try:
        found = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))
        found = re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", found)
    except (ValueError, TypeError):
        return ""
    found = re.sub(r"<[^<>]* at 0x[^<>]*>", "...", found)
    if len(found) <= LONGEST:
        return found
    inside = ",\n    ".join(re.split(r", (?![^\[(]*[\])])", found[1 : found.rindex(")")]))
    return f"(\n    {inside},\n{found[found.rindex(')') :]}"
