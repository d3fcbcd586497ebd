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
    try:
        with kernels("reference"):
            spec.loader.exec_module(module)
            yield module
    finally:
        del sys.modules[name]
        for registry, entries in zip((OPS, KERNELS), before):
            registry.clear()
            registry.update(entries)


def explain_error(error, path):
    """An exception of the student's code in one line, with the line number in the student's file."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, AttributeError) and getattr(error.obj, "__file__", "") == path:
        return (f"the file has no {error.name} any more: write it again, or begin with lab reset (this file "
                "stays)")  # fmt: skip
    if isinstance(error, (SyntaxError, ValueError)) and "null bytes" in text:
        return f"{text}: it seems to be UTF-16; save it as UTF-8"
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, NotImplementedError) and text.startswith("NotImplementedError: lab "):
        return f"line {lines[-1]}: the hole is still empty"
    return f"line {lines[-1]}: {text}" if lines else f"{UNUSABLE}: {text}"
