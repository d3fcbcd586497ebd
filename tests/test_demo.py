"""What the README promises: `make train` results in a model that writes short grammatical stories."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from test_dummy_data import STORIES, make

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", params=[pytest.param(400, marks=pytest.mark.slow),
                                        pytest.param(1000, marks=pytest.mark.long)])  # fmt: skip
def folder(request, tmp_path_factory):
    """A folder in which the training of `make train` has run; only the paths of its files differ. 400 of its 1,000
    steps write stories as well; with names and pronouns that fit together only the whole of it does."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "train_gpt2.py", "--seed", "1337", "--metrics", "run.jsonl", "--steps",
               request.param]  # fmt: skip
    subprocess.run(list(map(str, command)), cwd=folder, check=True, capture_output=True, timeout=1200)
    return folder


def stories(folder, *flags):
    command = [sys.executable, str(ROOT / "inference.py"), *flags]
    printed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300).stdout
    return [text.strip() for text in re.split(r"--- sample \d+ of \d+\n", printed) if text.strip()]


def test_the_demo_writes_stories(folder):
    records = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    assert records[-1]["val_loss"] < 0.6 < 6 < records[0]["loss"]

    told = stories(folder, "--prompt", "Once upon a time", "--num-samples", "12")
    assert len(set(told)) == 12
    known = set(re.findall(r"[A-Za-z]+", " ".join(STORIES)))
    for text in told:
        assert text.startswith("Once upon a time") and text not in STORIES
        words = re.findall(r"[A-Za-z]+", text)
        assert len(words) > 40
        assert sum(word in known for word in words) / len(words) > 0.97, text
    sentences = set(re.split(r'(?<=[.!?]) |(?<=[.!?]") ', " ".join(STORIES)))
    written = [s for text in told for s in re.split(r'(?<=[.!?]) |(?<=[.!?]") ', text)[1:-1]]
    assert sum(s in sentences for s in written) / len(written) > 0.6  # and the others are not far from it


@pytest.mark.parametrize("folder", [pytest.param(1000, marks=pytest.mark.long)], indirect=True)
def test_the_demo_follows_its_prompt(folder):
    """A story that begins with a girl goes on with her name, and with "she" and "her"."""
    right = wrong = 0
    for name in make.GIRLS[:3]:
        prompt = f"Once upon a time there was a kind girl named {name}."
        for text in stories(folder, "--prompt", prompt, "--num-samples", "4"):
            right += len(re.findall(rf"\b{name}\b|\b[Ss]he\b|\b[Hh]er\b", text))
            wrong += len(re.findall(r"\b(?:" + "|".join(make.BOYS) + r")\b", text))
    assert right > 4 * wrong
    assert stories(folder, "--seed", "1") == stories(folder, "--seed", "1") != stories(folder, "--seed", "2")
