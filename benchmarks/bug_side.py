"""One training with a bug in it, for bug_curves.py: bug_side.py MODULE FILE KERNELS FIRST [flags of train_gpt2.py].

MODULE is imported from FILE, the text with the bug; `-` for none. KERNELS are the compiled versions that would run in
its place, separated by commas. The training ends after FIRST steps, its schedule is that of all.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Planted(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds and loads one module: with the text of another file, at its own place."""

    def __init__(self, module, file):
        super().__init__(module, os.path.join(ROOT, *module.split(".")) + ".py")
        self.file = file

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname):
        with open(self.file, "rb") as file:
            return self.source_to_code(file.read(), self.path)


def main(module, file, kernels, first, *flags):
    sys.path.insert(0, ROOT)
    if module != "-":
        sys.meta_path.insert(0, Planted(module, file))

    import train_gpt2
    from tinygrad2.dispatch import KERNELS
    from tinygrad2.distributed.world import World

    for name in filter(None, kernels.split(",")):
        del KERNELS[name, "numpy"]  # KeyError: the bug names one that is not there
    train_gpt2.Trainer.finished = property(lambda trainer: trainer.done >= int(first))
    return train_gpt2.main(World(), list(flags))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
