"""Trainings on full and broken disks, a few of those of broken_disks.py."""

import os
import shutil
import subprocess
import sys

import pytest
from test_train import ROOT

EVERY_KIND = (8, 10, 20, 24, 26, 28, 30)  # with those of 0 every kind of fault, and one with two ranks
MORE = sorted({*range(2, 40, 2)} - {*EVERY_KIND})


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("gcc"), reason="needs Linux and gcc")
@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in EVERY_KIND),
                                   *(pytest.param(first, marks=pytest.mark.long) for first in MORE)])  # fmt: skip
def test_nothing_is_lost_on_a_broken_disk(tmp_path, first):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of their own")
    command = ["unshare", "-rm", sys.executable, ROOT / "tests" / "broken_disks.py", "2", "3", str(first)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
