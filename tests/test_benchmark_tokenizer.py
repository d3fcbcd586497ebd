"""The benchmark of the tokenizer runs, with its rivals and without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script):
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("rivals", [True, False])
def test_it_runs_and_adds_rows(rivals, tmp_path):
    """Twice, so that the second run finds the rows of the first; as if texts of 50 KB were large."""
    script = f"""
import sys
if not {rivals}:
    sys.modules["tokenizers"] = sys.modules["tiktoken"] = None
from benchmarks import harness, tokenizer as benchmark
harness.ROOT = {str(tmp_path)!r}
harness.RESULTS = {str(tmp_path / "rows")!r}
benchmark.parallel.PARALLEL_FROM = 50_000
sys.argv[1:] = ["--mb", "0.1", "--repeats", "1", "--save"]
benchmark.main()
benchmark.main()
"""
    out = run(script)
    assert "dummy_data.txt, repeated to 0.1 MB" in out and "encode documents     1 process" in out
    assert ("tiktoken is not installed and left out" in out) >= (not rivals)
    runs = json.loads((tmp_path / "rows" / "tokenizer.json").read_text())
    table = (tmp_path / "rows" / "tokenizer.csv").read_text().splitlines()
    assert len(runs) == 2 and len(table) == 1 + sum(len(run["rows"]) for run in runs)
    assert {"date", "cpu", "load", "versions", "text", "rows"} == set(runs[0])
    assert {row["job"] for row in runs[0]["rows"]} == {"train 1,000 merges", "encode", "encode documents"}
