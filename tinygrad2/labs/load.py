"""A student's file as a module, alone in its place: what it registers is forgotten afterwards."""

import contextlib
import importlib.machinery
import importlib.util
import sys
import traceback

import ops  # noqa: F401  (a graph needs the ops that the student's file does not define)
from tinygrad2.dispatch import KERNELS, OPS, kernels
from tinygrad2.io.files import read_bytes

UNUSABLE = "what came back cannot be used"
_MOST_TEXT = 300  # characters of an exception that are shown
_shipped: dict = {}  # while a file is loaded: the ops that it replaces, by name


def shipped_op(name):
    """The shipped op of this name, also while a student's file is loaded."""
    return _shipped.get(name) or OPS[name]


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        """From the source, whatever __pycache__ holds: two versions may be written within one tick of the clock."""
        return self.source_to_code(read_bytes(self.path), self.path)


@contextlib.contextmanager
def loaded(path):
    """Within the block: the module in this file, executed, with reference implementations of all ops.

    Its ops replace those of the same name in the registry, and the former ones come back at the end. Raises what the
    file raises.
    """
    name = "lab_in_work"
    before = dict(OPS), {key: list(versions) for key, versions in KERNELS.items()}
    spec = importlib.util.spec_from_loader(name, _Loader(name, path), origin=path)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[name] = module
    _shipped.update(before[0])
    try:
        with kernels("reference"):
            spec.loader.exec_module(module)
            yield module
    finally:
        del sys.modules[name]
        _shipped.clear()
        for registry, entries in zip((OPS, KERNELS), before):
            registry.clear()
            registry.update(entries)


def explain_error(error, path):
    """An exception of the student's code in one line, with the line number in the student's file."""
    kind, text = type(error).__name__, _text_of(error)
    text = f"{kind}: {text}" if text else kind
    if isinstance(error, AttributeError) and getattr(error.obj, "__file__", "") == path:
        return (f"the file has no `{error.name}` any more: write it again, or begin with lab reset (this file "
                "stays)")  # fmt: skip
    if isinstance(error, (SyntaxError, ValueError)) and "null bytes" in text:
        return f"{text}: it seems to be UTF-16; save it as UTF-8"
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, NotImplementedError) and text.startswith("NotImplementedError: lab "):
        return f"line {lines[-1]}: the hole is still empty"
    if kind in ("EOFError", "BdbQuit"):
        text = f"{text}: a check has no keyboard, so input() and breakpoint() end here"
    if isinstance(error, SystemExit):
        text = f"{text.removesuffix(': None')}: it ends the program; leave out exit() and sys.exit()"
    return f"line {lines[-1]}: {text}" if lines else f"{UNUSABLE}: {text}"


def _text_of(error):
    """Its message in one line, of a limited length."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a __str__ that the student has written
        return ""
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT].rstrip()} ..."
