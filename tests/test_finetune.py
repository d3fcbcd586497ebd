"""--init-from: a training that starts from any supported model and reports its loss before and after."""

import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from forked import python
from test_train import ROOT

from models import GPT, GPTConfig
from models.pretrained import load_pretrained
from tinygrad2.datasets.dataset import open_dataset
from tinygrad2.datasets.token_files import write_tokens
from tinygrad2.distributed.mpirun import find_mpirun, have_mpi
from tinygrad2.distributed.world import World
from tinygrad2.interop import hf, llmc, nanogpt
from tinygrad2.io.weights import load_weights, save_weights
from tinygrad2.tensor import no_grad
from tinygrad2.tokenizers.export import write_tokenizer
from tinygrad2.tokenizers.tokenizer import Tokenizer

OLD = "The cat sat on the mat. The dog sat on the log. A bird in a tree sang. " * 30
NEW = "A fish swam in the sea, and the sea was deep. The fish was glad. The sea sang to the fish. " * 60
CONFIG = GPTConfig(block_size=32, vocab_size=300, n_layer=2, n_head=2, n_embd=32)
TOKENIZER = Tokenizer.train(OLD, 300)
FLAGS = "--steps 12 --lr 1e-2 --sample-tokens 6 --prompt The --eval-every 6 --eval-batches 2".split()


@pytest.fixture
def folder(tmp_path):
    """new.txt, and the same model in five forms, each with its tokenizer."""
    (tmp_path / "new.txt").write_text(NEW)
    state, config = GPT(CONFIG, seed=1).state_dict(), CONFIG.to_dict()
    hf.write_folder(tmp_path / "hf", state, config, [TOKENIZER.eot])
    write_tokenizer(TOKENIZER, tmp_path / "hf", "hf")
    for name, write in (("llmc", llmc.write_model), ("nanogpt", nanogpt.write_nanogpt)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.bin", state, config)
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(tmp_path / "hf" / file, tmp_path / name / file)
    save_weights(tmp_path / "own.bin", state, config, TOKENIZER.to_json(), {})
    return tmp_path


def finetune(folder, *flags, text="new.txt"):
    return python(ROOT / "train_gpt2.py", "--data", text, *FLAGS, *flags, cwd=folder)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_it_prints_the_loss_and_the_same_samples_before_and_after(folder):
    result = finetune(folder, "--init-from", "own.bin")
    assert result.returncode == 0, result.stderr
    printed = result.stdout
    before, after = (float(x) for x in re.search(r"new text (\S+) before, (\S+) after 12 steps", printed).groups())
    assert after < before - 0.5
    assert f"before    loss on the new text {before:.4f}" in printed and "expected first loss" not in printed
    samples = {when: re.findall(rf"^{when:9s} sample \d: (.*)$", printed, re.MULTILINE) for when in ("before", "after")}
    assert len(samples["before"]) == len(samples["after"]) == 3
    assert samples["before"][0].startswith("The") and samples["after"][0].startswith("The")
    for old, new in zip(samples["before"], samples["after"]):
        assert old[:3] == new[:3] and old != new
    data = open_dataset(str(folder / "new.txt"), "", "", 300, 0.05, World(), TOKENIZER)
    model = load_pretrained(folder / "own.bin")[0]
    x, y = data.val.read([0], 33)[:, :-1], data.val.read([0], 33)[:, 1:]
    with no_grad():
        assert abs(model.loss(x, y).item() - before) < 0.3  # one row of those that the validation has


@pytest.mark.slow
def test_any_form_of_a_model_begins_the_same_training(folder):
    curves = {}
    for path in ("own.bin", "hf", "hf/model.safetensors", "llmc/model.bin", "nanogpt/model.bin"):
        result = finetune(folder, "--init-from", path)
        assert result.returncode == 0, result.stderr
        curves[path] = losses(folder)
    gelu_erf = curves.pop("nanogpt/model.bin")  # nanoGPT's files say nothing of GELU; its own is erf's
    assert all(curve == curves["own.bin"] for curve in curves.values())
    assert gelu_erf != curves["own.bin"] and np.allclose(gelu_erf, curves["own.bin"], atol=0.02)
    saved = load_weights(folder / "trained_weights.bin")
    assert saved.config["activation"] == "gelu_erf" and saved.tokenizer == TOKENIZER.to_json()


def weights(folder):
    return {name: array.tobytes() for name, array in load_weights(folder / "trained_weights.bin").tensors.items()}


@pytest.mark.slow
def test_a_killed_finetuning_goes_on_and_remembers_what_was_before(folder):
    whole = finetune(folder, "--init-from", "hf", "--checkpoint-every", "6")
    expected = weights(folder)
    shutil.rmtree(folder / "run" / "checkpoints" / "step_00000012")  # as if it had been killed before
    shutil.rmtree(folder / "hf")  # the checkpoint has all that it needs
    resumed = finetune(folder, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    line = next(line for line in whole.stdout.splitlines() if line.startswith("finetuned"))
    assert line in resumed.stdout and "before    sample" not in resumed.stdout and "step  6/12" not in resumed.stdout
    assert weights(folder) == expected


@pytest.mark.slow
def test_a_training_that_goes_on_does_not_begin_with_another_model(folder):
    assert finetune(folder, "--init-from", "hf").returncode == 0
    result = finetune(folder, "--resume", "--init-from", "own.bin", "--steps", "14")
    assert result.returncode == 2 and "has begun already" in result.stderr and len(result.stderr.splitlines()) == 1
    assert finetune(folder, "--resume", "--init-from", "hf", "--steps", "14").returncode == 0


def test_a_wrong_hellaswag_file_is_noticed_before_the_work_begins(folder):
    assert finetune(folder, "--init-from", "hf").returncode == 0
    result = finetune(folder, "--init-from", "hf", "--hellaswag", "nofile")
    assert result.returncode == 2 and "nofile: cannot be read" in result.stderr and "before" not in result.stdout
    assert "previous-1" not in [path.name for path in (folder / "run").iterdir()]


@pytest.mark.skipif(not have_mpi(), reason="there is no mpirun, or no mpi4py")
def test_ranks_finetune_together_to_the_same_bits(folder):
    flags = ("--init-from", "hf", "--micro-batch-size", "2")
    assert finetune(folder, *flags).returncode == 0
    alone, curve = weights(folder), losses(folder)
    command = [find_mpirun(), "-n", "2", sys.executable, ROOT / "train_gpt2.py", "--data", "new.txt", *FLAGS, *flags]
    together = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert together.returncode == 0, together.stderr
    assert losses(folder) == curve and "finetuned loss on the new text" in together.stdout
    assert together.stdout.count("before    loss") == 1 and weights(folder) == alone


@pytest.mark.slow
def test_context_and_dropout_may_be_chosen_and_nothing_else(folder):
    result = finetune(folder, "--init-from", "hf", "--block-size", "16", "--dropout", "0.1")
    assert result.returncode == 0, result.stderr
    config = load_weights(folder / "trained_weights.bin").config
    assert config["block_size"] == 16 and config["dropout"] == 0.1 and config["n_layer"] == 2
    for flags, says in (
        (["--n-layer", "3"], "--n-layer 3: hf has 2, which can no longer be changed"),
        (["--vocab-size", "512"], "--vocab-size 512: hf has 300"),
        (["--block-size", "64"], "--block-size 64: hf has 32 positions and can only be cropped"),
        (["--model", "baby"], "--model baby: --init-from sets the model's shape"),
    ):
        result = finetune(folder, "--init-from", "hf", *flags)
        assert result.returncode == 2 and says in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_model_without_tokenizer_needs_one_for_text_but_not_for_tokens(folder):
    for name in ("vocab.json", "merges.txt"):
        shutil.move(folder / "llmc" / name, folder / name)
    result = finetune(folder, "--init-from", "llmc/model.bin")
    assert result.returncode == 2 and "specify it with --tokenizer" in result.stderr
    result = finetune(folder, "--init-from", "llmc/model.bin", "--tokenizer", "merges.txt")
    assert result.returncode == 0, result.stderr
    with_text = losses(folder)
    ids = TOKENIZER.encode(NEW) + [TOKENIZER.eot]
    (folder / "tokens").mkdir()
    write_tokens(folder / "tokens" / "new.bin", ids)
    result = finetune(folder, "--init-from", "llmc/model.bin", text="tokens")
    assert result.returncode == 0, result.stderr
    assert losses(folder) == with_text


def test_what_was_finetuned_is_a_model_like_any_other(folder):
    assert finetune(folder, "--init-from", "hf").returncode == 0
    said = python(ROOT / "inference.py", "--prompt", "The fish", "--max-new-tokens", "5", "--greedy", cwd=folder)
    assert said.returncode == 0 and said.stdout.startswith("The fish")
    kept = (folder / "trained_weights.bin").read_bytes()
    lost = finetune(folder, "--init-from", "trained_weights.bin", "--run-dir", "again")
    says = "--weights-out trained_weights.bin: is what --init-from reads, and would be replaced; choose another path\n"
    assert lost.returncode == 2 and says in lost.stderr
    assert (folder / "trained_weights.bin").read_bytes() == kept and not (folder / "again").exists()
    inside = finetune(folder, "--init-from", "hf", "--weights-out", "hf/model.safetensors", "--run-dir", "again")
    assert inside.returncode == 2
    assert "--weights-out hf/model.safetensors: is what --init-from reads" in inside.stderr
    compared = python("-m", "tinygrad2", "compare", "run", cwd=folder)
    assert compared.returncode == 2 and "run: is a finetuning, and" in compared.stderr
    planned = python("-m", "tinygrad2", "plan", "--init-from", "hf", "--data", "text.txt", cwd=folder)
    assert planned.returncode == 0 and "model     hf: " in planned.stdout, planned.stderr
    again = finetune(folder, "--init-from", "trained_weights.bin", "--run-dir", "again", "--weights-out", "b.bin")
    first = float(re.search(r"new text (\S+) before", again.stdout)[1])
    assert again.returncode == 0 and first < math.log(300) - 0.5
