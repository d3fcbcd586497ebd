"""The page of an op: formula, derivation, code, an executed program, cost, usual mistakes, kernels, tests, lessons."""

import ast
import functools
import re

from learn import lesson
from learn.pages import example, formulas
from learn.pages.text import ROOT, cell, docstring, fence, output, relative, signature
from tinygrad2.dispatch import OPS

EVERY = "tests/test_ops.py"  # its tests run on every op
MOST_TESTS = 8


def page_of(name):
    """The path of an op's page. ops/index.md is the list of all ops."""
    return f"ops/{'indexing' if name == 'index' else name}.md"


def file_of(name):
    """The path of an op's file in the project."""
    return OPS[name].__module__.replace(".", "/") + ".py"


def page(name, links):
    """The Markdown of an op's page."""
    here, op, program = page_of(name), OPS[name], example.program(name)
    text = docstring(op.__doc__, here, links, formulas=formulas.block)
    text = re.sub(r"^(?=Backward[.,:])", "## The gradient\n\n", text, flags=re.M)
    made = [f"# {name}\n", f"The whole file: {source_link(here, file_of(name), links)}.\n"]
    made += ["## Formula\n", text, "## Code\n"]
    made += [fence(example.code_without_docstring(op), "python", file_of(name)), "## Call\n"]
    for function in example.functions(name):
        made.append(fence(f"ops.{function.__name__}{signature(function)}", "python"))
        made.append(docstring(function.__doc__, here, links))
    made += ["## Run\n", fence(program, "python"), "prints\n", output(example.printed(program))]
    made += ["## Shapes and cost\n", cost_table(name), cost_note(name, here, links)]
    made += [*mistakes(name, here, links), *elsewhere(name, here, links)]
    return "\n".join(made)


def source_link(here, path, links):
    """A link to the whole file, also of one whose name leads to its op's page elsewhere."""
    links.sources.add(path)
    return f"[`{path}`]({relative(here, f'source/{path}.md')})"


def cost_table(name):
    """A row for GPT-2 and each sample. A column that would be empty is left out."""
    rows = example.costs(name)
    head = ["shapes of", "inputs", "options", "result"]
    head += [f"{what} {way}" for what in ("FLOPs", "bytes") for way in ("forward", "backward")]
    lines = []
    for whose, shapes, options, results, flops, moved in rows:
        numbers = [f"{value:,}" for value in (*flops, *moved)] + ["none"] * (2 - len(moved))
        if len(moved) == 1:
            numbers[1] = "none"
        options = f"`{options}`".replace("|", "\\|") if options else ""
        lines.append([whose, cell(shapes), options, cell(results), *numbers])
    kept = [column for column in zip(head, *lines) if any(column[1:])]
    lines = [f"| {' | '.join(row)} |" for row in zip(*kept)]
    return "\n".join([lines[0], "|---" * len(kept) + "|", *lines[1:]]) + "\n"


def cost_note(name, here, links):
    """What the numbers of the table are."""
    tokens = "one token" if name in ("softmax", "linear_bfloat16", "linear_int8") else f"{example.GPT2_TOKENS} tokens"
    gpt2 = f"In GPT-2's smallest model, {tokens} of one text: the first row. " if name in example.GPT2 else ""
    return (
        "The least the op has to do, as the profiler counts it "
        f"({links.code(here, 'tinygrad2/monitor/op_costs.py')}), for the reference implementation in float32: of "
        "operations those of matrix products only, and each array that goes in or comes out moved once through "
        f"memory. A view moves nothing. {gpt2}The other shapes are those that the tests use "
        f"({links.code(here, 'tests/samples.py')}).\n"
    )


def labs_of(name):
    """The labs that are cut from the op's file."""
    return re.findall(r"# lab: begin (\w+)", (ROOT / file_of(name)).read_text(encoding="utf-8"))


def mistakes(name, here, links):
    """The usual mistakes of the op's labs, from the teachers' table."""
    table = (ROOT / "learn/teachers/mistakes.md").read_text(encoding="utf-8")
    made = []
    for lab in labs_of(name):
        row = re.search(rf"^\| `{lab}` \| (.*) \| (.*) \|$", table, re.M)
        items = "".join(f"- {part.strip()}\n" for part in row[1].split(";")) if row else ""
        asked = f"\nA question that helps: {row[2]}\n" if row else ""
        labs = links.to(here, "learn/labs.md")
        made.append(f"The lab `{lab}` ([labs]({labs})) is cut from this file.\n\n{items}{asked}")
    return ["## Usual mistakes\n", *made] if made else []


def elsewhere(name, here, links):
    """Kernels, tests and lessons of an op."""
    made = ["## Kernels\n"]
    found = kernels()[OPS[name].__name__]
    made += [f"- `{cls}`, CPU: {links.code(here, path)}\n" for cls, path in found]
    made += [] if found else ["None: the reference implementation runs on the CPU and on the GPU.\n"]
    made += ["## Tests\n", f"{links.code(here, EVERY)} runs every op on every sample: "
             + ", ".join(f"`{test}`" for test in tests_of_every_op()) + ".\n"]  # fmt: skip
    named = tests_of(name)
    made += [f"- `{test}` in {links.code(here, path)}" for path, test in named[:MOST_TESTS]]
    if len(named) > MOST_TESTS:
        made.append(f"- and {len(named) - MOST_TESTS} more that name it")
    made += ["", "## Lessons\n"] if lessons_of(name) else [""]
    for path in lessons_of(name):
        target = relative(here, f"learn/notebooks/{path.stem}.md")
        made.append(f"- [{lesson.title(lesson.read(path))}]({target})")
    return made


@functools.cache
def kernels():
    """{name of an op's class: [(kernel, file)]}, read from the source: nothing is compiled, Numba is not needed."""
    found = {op.__name__: [] for op in OPS.values()}
    for path in sorted((ROOT / "ops/kernels/cpu").glob("**/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(keyword.arg == "backend" for keyword in node.keywords):
                found[ast.unparse(node.bases[0])].append((node.name, path.relative_to(ROOT).as_posix()))
    return found


@functools.cache
def all_tests():
    """[(file, name, source)] of every test."""
    found = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                source = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
                found.append((path.relative_to(ROOT).as_posix(), node.name, source))
    return found


def tests_of_every_op():
    """Names of the tests that are run for each op."""
    listed = re.compile(r"parametrize\(.*\b(CASES|WITH_GRADIENT|FAST)\b")
    return [name for path, name, source in all_tests() if path == EVERY and listed.search(source)]


def tests_of(name):
    """[(file, test)] of the tests that name an op: `ops.softmax(` or its class."""
    used = re.compile(rf"\bops\.{name}\(|\b{OPS[name].__name__}\b[(,.\]]")
    return [(path, test) for path, test, source in all_tests() if used.search(source)]


@functools.cache
def _lesson_code():
    return {path: path.read_text(encoding="utf-8") for path in lesson.lessons()}


def lessons_of(name):
    """The lessons that call or quote an op."""
    quoted = rf"\bops\.{name}\(|\bfrom ops\.{name} import|`ops/{name}\.py`"
    return [path for path, text in _lesson_code().items() if re.search(quoted, text)]
