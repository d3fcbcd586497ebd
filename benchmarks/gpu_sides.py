"""The processes that a part of benchmarks.gpu compares, and which may fail: an error of one is its answer."""

import json

from benchmarks.harness import Side


class Sides:
    """Sides of one module by their names, each started when it is asked first: `python -m MODULE ROLE-or-NAME CONFIG`.

    An answer {"error": text} is that of a side that failed. It is started again when it is asked next: after an error
    of a kernel nothing works on a GPU in the same process.
    """

    def __init__(self, module, role, config):
        self.module, self.role, self.config, self.running = module, role, json.dumps(config), {}

    def ask(self, name, **request):
        try:
            if name not in self.running:
                self.running[name] = Side(name, self.module, self.role, name, self.config)
            answer = self.running[name].ask(**request)
        except (SystemExit, OSError) as error:
            answer = dict(error=str(error))
        if "error" in answer:
            self.end(name)
            print(f"{name}: {answer['error']}", flush=True)
        return answer

    def end(self, name):
        side = self.running.pop(name, None)
        if side is not None:
            side.process.kill()
            side.process.communicate()

    def close(self):
        for name in list(self.running):
            self.end(name)
