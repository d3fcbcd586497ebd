"""The whole site: which pages it has, their order, and the settings of MkDocs, which builds it."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import ops  # noqa: F401  the registry is filled
from learn import lesson
from learn.pages import api, notebook, op
from learn.pages.order import OPS_BY_KIND, STEPS
from learn.pages.text import ROOT, Links, cell, document, escaped, fence, linked_paths, relative, source_page
from tinygrad2.dispatch import OPS
from tinygrad2.errors import UserError

MARK = ".tinygrad2-site"  # in every folder that this program has built
DOCUMENTS = ("README.md", "CHANGELOG.md", "learn/*.md", "learn/teachers/*.md", "docs/*.md")


def documents():
    """Paths of all documents, in the project."""
    return [path.relative_to(ROOT).as_posix() for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]


def page_of_document(path):
    """The page of a document. The README beside index.md would be another index."""
    return {"README.md": "readme.md"}.get(path, path)


def names_of_ops():
    """The ops of this project, without those that others have defined."""
    return [name for name, cls in OPS.items() if cls.__module__.startswith("ops.")]


def notebooks():
    """The notebooks of the lessons, then the long ones."""
    return [*map(lesson.notebook_of, lesson.lessons()), *sorted(lesson.HERE.glob("*.ipynb"))]


def first_links():
    """The Links of the pages that there are in any case."""
    pages = {path: page_of_document(path) for path in documents()}
    pages |= {op.file_of(name): op.page_of(name) for name in names_of_ops()}
    for path in lesson.lessons():
        pages[f"learn/lessons/{path.name}"] = notebook.page_of(path)
    pages |= {path.relative_to(ROOT).as_posix(): notebook.page_of(path) for path in notebooks()}
    return Links(pages)


def files():
    """{path: text or bytes}: what MkDocs is given."""
    links, made = first_links(), {}
    for path in documents():
        page = page_of_document(path)
        made[page] = document((ROOT / path).read_text(encoding="utf-8"), page, links, path)
    for name in names_of_ops():
        made[op.page_of(name)] = op.page(name, links)
    for path in notebooks():
        made[notebook.page_of(path)], figures = notebook.page(path, links)
        made |= figures
    made |= api.pages(links)
    made["index.md"], made["ops/index.md"] = home(links), list_of_ops(links)
    for path in sorted(links.sources):  # last: all links are known
        made[source_page(path)] = source(path, links)
    made |= {path: (ROOT / path).read_bytes() for path in sorted(links.pictures)}
    made["assets/site.css"] = (pathlib.Path(__file__).parent / "site.css").read_text(encoding="utf-8")
    return made


def source(path, links):
    """The page of a file as it is. The search leaves it out: it finds the pages that explain."""
    text = (ROOT / path).read_text(encoding="utf-8")
    kind = {".py": "python", ".js": "javascript", ".toml": "toml", ".cfg": "ini"}.get(pathlib.Path(path).suffix, "text")
    about = links.pages.get(path)
    about = f"[The page of this op]({relative(source_page(path), about)})\n\n" if about else ""
    return f"---\nsearch:\n  exclude: true\n---\n# {escaped(path)}\n\n{about}{fence(text, kind)}"


def home(links):
    """The first page: what there is, and in which order to read it."""
    made = [
        "# tinygrad2\n",
        "GPT-2, trained and run from scratch in readable Python. This site has the lessons with what they print, a "
        "page for each op, the documents, and the public names. Everything is made from the source that trains the "
        "model.\n",
        f"New here? [What it is and how to install it]({relative('index.md', 'readme.md')}), then read in this order. "
        "The lessons take an hour or less each; the files are short.\n",
    ]
    for number, (title, about, lessons, names, paths) in enumerate(STEPS, 1):
        made.append(f"## {number}. {title}\n\n{about}\n")
        for path in lessons_of(lessons):
            made.append(f"- Lesson [{lesson.title(lesson.read(path))}]({notebook.page_of(path)})")
        if names:
            made.append("- Ops: " + ", ".join(f"[{name}]({op.page_of(name)})" for name in names))
        made.append("- Files: " + ", ".join(links.code("index.md", path) for path in paths) + "\n")
    made.append("## Beside it\n")
    made.append("- [Labs](learn/labs.md): write parts of the source yourself; a grader on your machine checks them")
    made.append("- [All ops](ops/index.md), [public names](api/tinygrad2.md), [terms](docs/glossary.md)")
    made.append("- [Where is ...?](docs/layout.md), every file in a line")
    return "\n".join(made) + "\n"


def lessons_of(numbers):
    """The files of the lessons with these numbers."""
    return [path for path in lesson.lessons() if int(path.name[:2]) in numbers]


def list_of_ops(links):
    """The page that lists all ops by kind, each with the first sentence of its derivation."""
    made = ["# Ops\n", "One file each: formula, derivation of the gradient, code. Each page runs what it shows.\n"]
    for kind, names in OPS_BY_KIND.items():
        made += [f"## {kind}\n", "| op | |", "|---|---|"]
        for name in names:
            first = " ".join(OPS[name].__doc__.split("\n\n")[0].split())
            about = linked_paths(cell(first), "ops/index.md", links, bare=True)
            made.append(f"| [{name}]({relative('ops/index.md', op.page_of(name))}) | {about} |")
        made.append("")
    return "\n".join(made)


def navigation():
    """The pages in the order of the menu."""
    lessons = [{notebook.title(path): notebook.page_of(path)} for path in notebooks()]
    more = [path for path in documents() if re.fullmatch(r"learn/(?!README)\w+\.md", path)]
    by_kind = [{kind: [{name: op.page_of(name)} for name in names]} for kind, names in OPS_BY_KIND.items()]
    docs = [path for path in documents() if path.startswith("docs/")]
    return [
        {"Start": ["index.md", {"About and install": "readme.md"}]},
        {"Lessons": ["learn/README.md", *lessons, *more,
                     {"For teachers": [path for path in documents() if path.startswith("learn/teachers/")]}]},
        {"Ops": ["ops/index.md", *by_kind]},
        {"Documents": [*docs, {"Changes": "CHANGELOG.md"}]},
        {"Names": ["api/tinygrad2.md", "api/ops.md", *api.MODULES]},
    ]  # fmt: skip


def settings(folder):
    """The settings of MkDocs. Nothing is loaded from elsewhere when a page is read: no fonts, no scripts."""
    toggle = {"icon": "material/brightness-6"}
    schemes = [("(prefers-color-scheme)", None, "Light or dark: as the system"),
               ("(prefers-color-scheme: light)", "default", "Light"),
               ("(prefers-color-scheme: dark)", "slate", "Dark")]  # fmt: skip
    palette = []
    for media, scheme, name in schemes:
        entry = {"media": media, "toggle": {**toggle, "name": name}, "primary": "indigo", "accent": "indigo"}
        palette.append(entry | ({"scheme": scheme} if scheme else {}))
    return {
        "site_name": "tinygrad2",
        "site_url": "",
        "docs_dir": str(folder),
        "use_directory_urls": False,  # links work in files as well
        "theme": {
            "name": "material",
            "font": False,
            "palette": palette,
            "features": ["navigation.tabs", "navigation.indexes", "navigation.top", "navigation.footer",
                         "navigation.prune", "search.highlight", "content.code.copy", "toc.integrate"],
        },
        "extra": {"generator": False},
        "extra_css": ["assets/site.css"],
        "plugins": ["search"],
        "markdown_extensions": [
            "attr_list", "md_in_html", "tables", {"toc": {"permalink": True}}, "pymdownx.superfences",
            {"pymdownx.highlight": {"use_pygments": True, "pygments_lang_class": True}},
        ],
        "not_in_nav": "/source/",
        "validation": {
            "nav": {"omitted_files": "warn", "not_found": "warn", "absolute_links": "warn"},
            "links": {"not_found": "warn", "anchors": "warn", "absolute_links": "warn", "unrecognized_links": "warn"},
        },
        "nav": navigation(),
    }  # fmt: skip


def build(out):
    """Build the site into the folder `out`; returns the number of its pages.

    A folder built before is replaced; another one that is not empty is left alone. Raises UserError for that, and for
    what MkDocs finds wrong, such as a link that leads nowhere.
    """
    out = pathlib.Path(out)
    if os.path.lexists(out) and not (out.is_dir() and ((out / MARK).is_file() or not any(out.iterdir()))):
        raise UserError(f"--out {out}: there is something that this program has not built; choose another name")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.absolute().parent} does not exist; create it first")
    if not _installed():
        raise UserError('the site needs mkdocs and mkdocs-material: pip install -e ".[learn]"')
    made = files()
    with tempfile.TemporaryDirectory(prefix=".site-", dir=out.absolute().parent) as work:
        pages, built = pathlib.Path(work) / "pages", pathlib.Path(work) / "built"
        for name, content in made.items():
            target = pages / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        config = pathlib.Path(work) / "mkdocs.yml"
        config.write_text(json.dumps(settings(pages)), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(built)]
        quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
        result = subprocess.run(command, capture_output=True, text=True, env=quiet)
        if result.returncode:
            wrong = [line for line in result.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))]
            raise UserError(f"mkdocs: {'; '.join(wrong[:5]) or result.stderr.strip()[-500:]}")
        (built / MARK).write_text("built by python learn/build.py site\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        built.rename(out)
    return sum(name.endswith(".md") for name in made)


def _installed():
    """Can this Python run MkDocs with its theme? Neither is imported here."""
    probe = "import importlib.util as u, sys; sys.exit(not (u.find_spec('mkdocs') and u.find_spec('material')))"
    return subprocess.run([sys.executable, "-c", probe]).returncode == 0
