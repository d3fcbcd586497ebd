"""Which module of a model an op belongs to: what observers (function.py) have in common."""

import contextlib


class ModulePath:
    """Follows the modules that a forward enters. `path` ends with the name of the innermost, "" outside of all."""

    def __init__(self, model):
        self.names = {id(module): name for name, module in model.named_modules()}
        self.path = [""]

    @contextlib.contextmanager
    def inside(self, module):
        """Within the block, ops belong to this module."""
        self.path.append(self.names.get(id(module), self.path[-1]))
        try:
            yield
        finally:
            self.path.pop()

    def before(self, node):
        """Called before an op computes: nothing to do."""
