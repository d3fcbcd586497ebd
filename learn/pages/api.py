"""The public names, from the source: signatures and docstrings."""

import importlib
import inspect

import ops
import tinygrad2
from learn.pages import op
from learn.pages.text import cell, docstring, fence, relative, signature
from tinygrad2 import Function, Module, Tensor
from tinygrad2.dispatch import OPS

MODULES = {  # page: (title, text, modules whose public names it lists)
    "api/models.md": ("models", "The GPT, its parts, the smaller models, generation.", [
        "models.gpt", "models.config", "models.block", "models.multihead_attention", "models.head", "models.mlp",
        "models.bigram", "models.mlp_lm", "models.head_lm", "models.kv_cache", "models.sampling"]),
    "api/tokenizers.md": ("tinygrad2.tokenizers", "Texts to tokens, and back.", [
        "tinygrad2.tokenizers.tokenizer", "tinygrad2.tokenizers.load", "tinygrad2.tokenizers.bpe"]),
    "api/optim.md": ("tinygrad2.optim", "Optimizers, clipping, learning rates, and the arrays they work on.", [
        "tinygrad2.optim", "tinygrad2.optimizers", "tinygrad2.flat_buffers"]),
}  # fmt: skip


def pages(links):
    """{path: Markdown} of all pages of the API."""
    made = {"api/tinygrad2.md": exported(links), "api/ops.md": table_of_ops()}
    for page, (title, text, modules) in MODULES.items():
        parts = [f"# {title}\n", f"{text}\n"]
        for name in modules:
            module = importlib.import_module(name)
            parts.append(f"## {name}\n")
            parts.append(links.code(page, name.replace(".", "/") + ".py") + "\n")
            parts.append(docstring(module.__doc__ or "", page, links))
            for thing in public(module):
                parts += entry(thing, page, links, "###")
        made[page] = "\n".join(parts)
    return made


def public(module):
    """The classes and functions of a module without an underscore, in the order of the file."""
    own = [
        thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    ]
    return sorted(own, key=lambda thing: inspect.getsourcelines(inspect.unwrap(thing))[1])


def exported(links):
    """What `import tinygrad2` exports; the methods of a Tensor and of a Module."""
    page = "api/tinygrad2.md"
    made = ["# tinygrad2\n", docstring(tinygrad2.__doc__, page, links)]
    for name in tinygrad2.__all__:
        made += entry(getattr(tinygrad2, name), page, links, "##")
    return "\n".join(made)


def table_of_ops():
    """The functions of ops in a table, each with a link to its page."""
    made = ["# ops\n", "Functions of Tensors; each is one op with a page of its own.\n", "| function | |", "|---|---|"]
    files = {cls.__module__: name for name, cls in OPS.items() if cls.__module__.startswith("ops.")}
    for name in ops.__all__:
        function = getattr(ops, name)
        first = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        target = relative("api/ops.md", op.page_of(files[function.__module__]))
        made.append(f"| [`{name}`]({target}) | {cell(first)} |")
    return "\n".join(made) + "\n"


def entry(thing, page, links, level):
    """A class or function: name, signature, docstring; of a class its public methods as well."""
    made = [f"{level} {thing.__name__}\n"]
    if inspect.isclass(thing):
        bases = [base.__name__ for base in thing.__mro__[1:] if base in (Function, Module, Tensor)]
        made.append(fence(f"class {thing.__name__}{signature(thing)}", "python"))
        made.append(docstring(thing.__doc__ or "", page, links))
        if bases:
            target = relative(page, "api/tinygrad2.md") + f"#{bases[0].lower()}"
            made.append(f"It is a [{bases[0]}]({target}) and has its methods as well.\n")
        for name, method in methods(thing):
            made.append(f"{level}# {thing.__name__}.{name}\n")
            made.append(fence(f"{name}{signature(method)}", "python"))
            made.append(docstring(method.__doc__, page, links))
    else:
        made.append(fence(f"{thing.__name__}{signature(thing)}", "python"))
        made.append(docstring(thing.__doc__ or "", page, links))
    return made


def methods(cls):
    """(name, function) of the public methods with a docstring. What every Module, Function or Tensor has is left out of
    the classes derived from them."""
    bases = [base for base in (Function, Module, Tensor) if base is not cls and issubclass(cls, base)]
    common = {name for base in bases for name in dir(base)}
    for name, thing in inspect.getmembers(cls):
        if name in common and name not in vars(cls):
            continue
        function = thing.fget if isinstance(thing, property) else thing
        if name.startswith("_") or not inspect.isroutine(function) or not function.__doc__:
            continue
        if (getattr(function, "__module__", None) or "").startswith(("tinygrad2", "ops", "models")):
            yield name, function
