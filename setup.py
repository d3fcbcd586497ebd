"""What setup.cfg cannot declare: a wheel also contains the texts and scripts of data/, as tinygrad2/bundled/data/."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLED = "data/*.txt", "data/*.py", "data/*/prepare.py"


class BuildWithData(build_py):
    """Copies data/ into the package; an editable install finds it where it is (tinygrad2/system/installation.py)."""

    def _copies(self):
        files = sorted(path for pattern in BUNDLED for path in Path().glob(pattern))
        return {str(path): str(Path(self.build_lib, "tinygrad2", "bundled", path)) for path in files}

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._copies().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else list(self._copies().values()))


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithData})
