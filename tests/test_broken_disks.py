"""Trainings on full and broken disks, a few of those of broken_disks.py."""

import os
import shutil
import subprocess
import sys

import pytest
from marks import slow_but
from test_train import ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("gcc"), reason="needs Linux and gcc")
@pytest.mark.parametrize("first", slow_but([0], range(0, 40, 2)))
def test_nothing_is_lost_on_a_broken_disk(tmp_path, first):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of their own")
    command = ["unshare", "-rm", sys.executable, ROOT / "tests" / "broken_disks.py", "2", "3", str(first)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
