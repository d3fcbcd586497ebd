"""train_gpt2.py and inference.py as their users meet them: real processes, real files, bad input."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tinygrad2.io.weights import load_weights

ROOT = pathlib.Path(__file__).parents[1]
TEXT = "The cat sat on the mat. The dog sat on the log.\n<|endoftext|>\nA bird in a tree sang \u201cpip!\u201d \u263c\n"
SMALL = "--n-layer 1 --n-embd 32 --n-head 2 --block-size 16 --vocab-size 290 --batch-size 8 --warmup-steps 2"


def python(*arguments, cwd, **environment):
    """Run a script of the project in another folder."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=600, env=environment)


def train(folder, flags="", script=ROOT / "train_gpt2.py", **environment):
    return python(script, *SMALL.split(), "--data", folder / "text.txt", *flags.split(), cwd=folder, **environment)


def metrics(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder in which a training has run: text.txt, trained_weights.bin, run.jsonl, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    flags = "--steps 30 --lr 1e-2 --eval-every 10 --sample-every 15 --sample-tokens 8 --metrics run.jsonl --prompt The"
    result = train(folder, flags)
    assert result.returncode == 0, result.stderr
    (folder / "printed.txt").write_text(result.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return tmp_path


# -- training --------------------------------------------------------------------------------------------------------


def test_a_training_prints_what_it_does(trained):
    printed = (trained / "printed.txt").read_text(encoding="utf-8")
    config = json.loads((trained / "run" / "config.json").read_text())
    assert config["training"]["seed"] == 1337 and config["training"]["lr"] == 1e-2 and config["model"]["n_embd"] == 32
    size = len((TEXT * 40).encode())
    assert f"text.txt: {size:,} bytes, " in printed
    for words in (
        r"^config +preset demo with these changes \(run/config.json has the complete configuration\)$",
        r"^ +--steps +30 +instead of 1000$",
        r"^ +--data +/.*text\.txt +instead of the bundled stories$",
        r"^ +--n-embd +32 +instead of 128$",
        r"^model +22,\d\d\d parameters: 1 layers, 2 heads, 32 channels, 16 positions, 290 tokens$",
        r"^tokenizer +\d+ different tokens; the model has 290 rows",
        r"^split +[\d,]+ tokens to train, \d+ to validate",
        r"^batch +128 tokens per step = 1 rank\(s\) x 1 micro-batch\(es\) x 8 rows x 16; [\d.]+ epochs",
        r"^machine +\d+ GFLOP/s in matrix products",
        r"^expected first loss ln\(290\) = 5\.6699, measured 5\.[67]",
        r"^step 30/30 \[#{12}\] loss \d\.\d{4} \| lr [\d.e-]+ \| norm [\d.]+ \| \d+ ms \| [\d,]+ tok/s \| .*\| 0s left",
        r"^validation loss \d\.\d{4} after 10 steps",
        r"^sample: The",
        r"^trained +30 steps, 3,840 tokens in ",
        r"^greedy +The",
        r'^weights in trained_weights.bin; now: python inference.py --prompt The$',
    ):
        assert re.search(words, printed, re.MULTILINE), words
    assert len(re.findall(r"^step ", printed, re.MULTILINE)) == 30  # into a pipe goes every step
    assert "\r" not in printed and "\x1b" not in printed


def test_the_metrics_file_has_one_object_per_step(trained):
    records = metrics(trained / "run.jsonl")
    assert [record["step"] for record in records] == list(range(30))
    always = {"step", "loss", "lr", "grad_norm", "ms", "tokens_per_s"}
    for record in records:
        assert set(record) == always | ({"val_loss"} if record["step"] in (9, 19, 29) else set())
    assert records[-1]["loss"] < records[0]["loss"] - 2


def test_the_weights_file_holds_model_tokenizer_and_run(trained):
    weights = load_weights(trained / "trained_weights.bin")
    assert weights.config["vocab_size"] == 290 and weights.training["steps_done"] == 30
    assert weights.training["loss"] == metrics(trained / "run.jsonl")[-1]["loss"]
    assert "h.0.attn.c_attn.weight" in weights.tensors


def test_the_seed_fixes_every_bit(folder):
    files = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        flags = f"--steps 6 --seed {seed} --dropout 0.1 --weights-out w --metrics {name}.jsonl"
        assert train(folder, flags).returncode == 0
        records = [{k: r[k] for k in ("loss", "grad_norm", "lr")} for r in metrics(folder / f"{name}.jsonl")]
        tensors = load_weights(folder / "w").tensors
        files.append((records, {name: tensors[name].tobytes() for name in tensors}))
    assert files[0] == files[1]
    assert files[0][0] != files[2][0]


def test_micro_batches_do_not_change_what_is_learned(folder):
    curves = []
    for micro in (8, 4, 2, 1):
        flags = f"--steps 10 --dropout 0.1 --grad-clip 0.3 --micro-batch-size {micro} --metrics m.jsonl"
        assert train(folder, flags).returncode == 0
        curves.append([record["loss"] for record in metrics(folder / "m.jsonl")])
        assert max(record["grad_norm"] for record in metrics(folder / "m.jsonl")) > 0.3  # clipping was at work
    assert np.abs(np.array(curves) - curves[0]).max() < 1e-5


def test_a_text_shorter_than_a_batch_is_padded_and_that_is_printed(folder):
    (folder / "text.txt").write_text("Hello, world!")
    result = train(folder, "--steps 2")
    assert result.returncode == 0 and "padded by repeating it" in result.stdout


def test_any_bytes_are_a_text(folder):
    (folder / "text.txt").write_bytes(bytes(range(256)) * 10)
    assert train(folder, "--steps 2").returncode == 0


def test_the_users_own_tokenizer_is_used(folder):
    from tinygrad2.tokenizers.tokenizer import Tokenizer

    Tokenizer.train("aaaa bbbb " * 50, 262).save(folder / "mine.json")
    result = train(folder, "--steps 1 --tokenizer mine.json")
    assert "tokenizer 262 different tokens; the model has 290 rows" in result.stdout
    assert "do not fit --vocab-size 260" in train(folder, "--tokenizer mine.json --vocab-size 260").stderr


def test_without_numba_the_reference_implementations_run_and_that_is_printed(folder):
    (folder / "bare.py").write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\nsys.modules['numba'] = None\n"
        f"runpy.run_path({str(ROOT / 'train_gpt2.py')!r}, run_name='__main__')\n"
    )
    result = train(folder, "--steps 2", script=folder / "bare.py")
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("kernels"))
    assert line.startswith('kernels   none, because numba is missing: pip install -e ".[fast]" makes')
    assert "kernels   none (--kernels reference)" in train(folder, "--steps 1 --kernels reference").stdout


def test_threads_are_printed_and_chosen(folder):
    assert "1 rank(s) with 3 thread(s) each" in train(folder, "--steps 1 --threads 3").stdout
    assert "--threads must be in 1 .. 4,096, not 0" in train(folder, "--threads 0").stderr


def test_recompute_changes_nothing_but_memory(folder):
    outs = [train(folder, f"--steps 3 --dropout 0.1 {flag}").stdout for flag in ("", "--recompute")]
    losses = [re.findall(r"loss (\d\.\d+)", out) for out in outs]
    assert losses[0] == losses[1] and len(losses[0]) >= 3


def test_alone_no_mpi_and_no_cupy_is_imported(folder):
    (folder / "spy.py").write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"try:\n    runpy.run_path({str(ROOT / 'train_gpt2.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    print('code', end.code)\n"
        "print('imported', sorted({'mpi4py', 'cupy', 'torch'} & set(sys.modules)))\n"
    )
    result = train(folder, "--steps 1", script=folder / "spy.py")
    assert "code 0\nimported []" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--data nowhere.txt", "nowhere.txt: cannot be read (No such file or directory)"),
        ("--data nothing", "nothing: contains neither texts (.txt .text .md) nor token files (.bin .npy)"),
        ("--data *.csv", "*.csv: cannot be read (No such file or directory); --data takes a file, a folder"),
        ("--data empty.txt", "empty.txt: the file is empty"),
        ("--micro-batch-size 3", "--batch-size 8 does not split evenly into --micro-batch-size 3"),
        ("--n-head 5", "n_head = 5 does not divide n_embd = 32"),
        ("--steps 0", "--steps must be at least 1, not 0"),
        (f"--steps {10**30}", f"--steps must be at most 1000000000000, not {10**30}"),
        ("--lr -1", "--lr must be in 0 .. 1e+38, not -1.0"),
        ("--lr nan", "--lr must be in 0 .. 1e+38, not nan"),
        ("--steps many", "argument --steps: invalid int value: 'many'"),
        ("--schedule zigzag", "argument --schedule: invalid choice: 'zigzag'"),
        ("--model gpt5", "argument --model: invalid choice: 'gpt5'"),
        ("--colour red", "unrecognized arguments: --colour red (see --help)"),
        ("--step 5", "unrecognized arguments: --step 5"),  # no guessing of abbreviations
        ("--vocab-size 100", "choose 257 or more"),
        ("--weights-out no/w.bin", "no/w.bin: the folder"),
        ("--weights-out .", ".: this is a folder"),
        ("--weights-out=", "--weights-out: the path is empty; give one, or leave"),
        ("--run-dir=", "--run-dir: the path is empty; give one, or leave"),
        ("--metrics no/m.jsonl", "no/m.jsonl: the folder "),
        ("--tokenizer text.txt", "text.txt"),
        ("--tokenizer nowhere.json", "nowhere.json"),
        ("--lr 1e30 --warmup-steps 0 --grad-clip 0 --steps 9", "the training has diverged"),
        ("--lr 1e38 --warmup-steps 0 --grad-clip 0 --steps 1", "validation loss nan: the training has diverged"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(folder, flags, says):
    (folder / "empty.txt").write_text("\n")
    (folder / "nothing").mkdir()
    result = train(folder, flags)
    assert result.returncode == 2
    assert says in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (folder / "trained_weights.bin").exists()
    if "diverged" not in says and "metrics" not in flags:
        assert not (folder / "run").exists()  # nothing is begun that cannot go on


def test_cuda_without_cupy_is_one_line(folder):
    (folder / "cupy").mkdir()
    (folder / "cupy" / "__init__.py").write_text("raise ImportError('planted')")
    result = train(folder, "--device cuda", PYTHONPATH=str(folder))
    assert result.returncode == 2 and "pip install -e" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["train_gpt2.py", "inference.py"])
def test_help_explains_every_flag_with_its_default(script):
    result = python(ROOT / script, "--help", cwd=ROOT, COLUMNS="200")
    assert result.returncode == 0 and result.stderr == ""
    options = re.split(r"^  (?=--?\w)", result.stdout, flags=re.MULTILINE)[1:]
    assert len(options) > 10
    for option in options:
        assert "default:" in option or option.startswith(("--help", "-h")), option
        assert len(option.split()) > 4, option


# -- writing ---------------------------------------------------------------------------------------------------------


def write(trained, *flags):
    return python(ROOT / "inference.py", *flags, cwd=trained)


def test_the_text_begins_with_the_prompt_and_the_seed_fixes_it(trained):
    texts = [write(trained, "--prompt", "The", "--seed", s, "--temperature", "1.5").stdout for s in (1, 1, 2)]
    assert texts[0].startswith("The") and texts[0] == texts[1] != texts[2]


def test_greedy_writing_does_not_depend_on_the_seed(trained):
    a = write(trained, "--greedy", "--seed", "1", "--prompt", "The cat")
    b = write(trained, "--temperature", "0", "--seed", "2", "--prompt", "The cat")
    assert a.stdout == b.stdout and a.returncode == 0
    assert "cat sat on the" in a.stdout


def test_a_text_ends_with_its_end_token_or_after_the_longest_length(trained):
    lengths = [len(write(trained, "--greedy", "--prompt", "The", "--max-new-tokens", n).stdout) for n in (1, 5, 60)]
    assert lengths[0] < lengths[1] < lengths[2]  # 60 tokens are more than the context of 16
    assert "<|endoftext|>" not in write(trained, "--prompt", "The", "--max-new-tokens", 100).stdout


def test_several_samples_are_numbered_and_differ(trained):
    printed = write(trained, "--prompt", "A", "--num-samples", "3", "--temperature", "2").stdout
    parts = re.split(r"--- sample \d of 3\n", printed)
    assert len(parts) == 4 and len(set(parts[1:])) == 3
    assert parts[1] == write(trained, "--prompt", "A", "--temperature", "2").stdout


def test_what_is_streamed_is_what_is_decoded(trained):
    import inference

    model, tokenizer, _ = inference.load(str(trained / "trained_weights.bin"))
    prompt = tokenizer.encode("A bird")
    ids = list(model.generate([tokenizer.eot, *prompt], 40, stop=tokenizer.eot, n_vocab=tokenizer.n_vocab))
    printed = write(trained, "--prompt", "A bird", "--greedy", "--max-new-tokens", "40").stdout
    assert printed == "A bird" + tokenizer.decode(ids) + "\n"


@pytest.mark.parametrize("prompt", ["日本語 🙂", "naïve", "\t", "<|endoftext|>"])
def test_any_prompt_will_do(trained, prompt):
    result = write(trained, "--prompt", prompt, "--max-new-tokens", "3", "--special", "ordinary")
    assert result.returncode == 0 and result.stdout.startswith(prompt)


def test_a_reader_that_goes_away_is_no_error(trained):
    command = f'"{sys.executable}" "{ROOT / "inference.py"}" --num-samples 50 --max-new-tokens 20 | head -c 5'
    result = subprocess.run(command, shell=True, cwd=trained, capture_output=True, text=True, timeout=600)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--weights", "nowhere.bin"], "nowhere.bin: no such file or folder; train first"),
        (["--weights", "half.bin"], "half.bin: not a valid tinygrad2 weights file"),
        (["--weights", "text.txt"], "text.txt: is not a model of a known format"),
        (["--weights", "."], ".: has neither model.safetensors nor"),
        (["--prompt", "<|endoftext|>"], "<|endoftext|>"),
        (["--top-p", "0"], "--top-p must be above 0 and at most 1, not 0.0"),
        (["--temperature", "-1"], "--temperature must be at least 0, not -1.0"),
        (["--temperature", "nan"], "--temperature must be at least 0, not nan"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, not 0"),
        (["--num-samples", "x"], "argument --num-samples: invalid int value: 'x'"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_bad_input_for_inference_gets_one_line_and_exit_code_2(trained, flags, says):
    whole = (trained / "trained_weights.bin").read_bytes()
    (trained / "half.bin").write_bytes(whole[: len(whole) // 2])
    result = write(trained, *flags)
    assert result.returncode == 2 and result.stdout == ""
    assert says in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_weights_file_whose_parts_do_not_fit_together_is_refused(trained):
    from tinygrad2.io.weights import save_weights

    w = load_weights(trained / "trained_weights.bin")
    for name, config, tokenizer, says in (
        ("layers", {**w.config, "n_layer": 2}, w.tokenizer, "h.1.ln_1.weight is missing"),
        ("field", {**w.config, "rope": 1}, w.tokenizer, "unknown config field 'rope'"),
        ("vocabulary", w.config, '{"format": "other"}', "vocabulary.bin"),
    ):
        save_weights(trained / f"{name}.bin", w.tensors, config, tokenizer, {})
        result = write(trained, "--weights", f"{name}.bin")
        assert result.returncode == 2 and says in result.stderr and len(result.stderr.splitlines()) == 1
