"""--resume with any other flag: it has an effect, which is reported, or it is refused. Never neither."""

import contextlib
import io
import json
import re
import shutil
from dataclasses import fields

import pytest

import train_gpt2
from models import GPTConfig
from models.config import ACTIVATIONS
from tinygrad2.cli import option
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.io.weights import load_weights
from tinygrad2.training.config import OF_THIS_START, TrainConfig

TEXT = "The cat sat on the mat. The dog sat on the log.\n<|endoftext|>\nA bird in a tree sang.\n" * 60
START = ("--n-layer 1 --n-head 2 --n-embd 8 --block-size 8 --vocab-size 300 --batch-size 4 --data text.txt --steps 6 "
         "--checkpoint-every 3 --keep-checkpoints 9 --eval-every 1 --eval-batches 1 --sample-every 1 --sample-tokens 3 "
         "--warmup-steps 1 --lr 1e-2 --hellaswag questions.jsonl").split()  # fmt: skip
OTHER = {  # field: another value than the one the training began with; of the rest, one of its kind is taken
    "data": "other.txt", "dataset": "other", "init_from": "trained_weights.bin", "order": "sequential",
    "tokenizer": "trained_weights.bin", "batch_size": "8", "micro_batch_size": "2", "val_fraction": "0.2",
    "prompt": "A bird", "hellaswag": "question.jsonl", "hellaswag_examples": "1", "grad_clip": "0.1", "steps": "5",
    "schedule": "linear", "outlier_z": "0.001", "weights_out": "w.bin", "run_dir": "other", "metrics": "m.jsonl",
    "checkpoint_every": "1", "model": "baby", "n_embd": "16", "n_head": "4", "dropout": "0.3", "n_inner": "16",
    "norm_eps": "0.1", "threads": "1", "device": "cuda", "activation": ACTIVATIONS[1], "log_to": "tensorboard",
    "keep_every": "2", "keep_checkpoints": "1",
}  # fmt: skip
NOT_SEEN = {  # fields whose effect this test cannot see
    **dict.fromkeys(("zero", "comm_dtype", "overlap", "timeout", "compare_every"), "needs several ranks"),
    **dict.fromkeys(("gpu_allreduce",), "needs several GPUs"),
    **dict.fromkeys(("reduce_order",), "needs several ranks or micro-batches"),
    **dict.fromkeys(("checkpoint_every", "keep_every"), "each step here is the best so far, and saved for that"),
    **dict.fromkeys(("outlier_z", "skip_outliers"), "needs more steps than these"),
    **dict.fromkeys(("read_every", "cuda_graph", "gpu_attention", "tune_products"), "is for a GPU"),
    **dict.fromkeys(("log_every",), "changes what a terminal shows"),
    **dict.fromkeys(("decay_steps",), "is of another schedule"),
}
FLAGS = {f.name: f for f in (*fields(TrainConfig), *fields(GPTConfig)) if f.name not in ("resume",)}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with a training of 6 steps that was stopped after 3."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(TEXT.replace("cat", "cow"))
    question = '{"ind": 1, "ctx": "The cat", "label": 0, "endings": ["sat", "ran", "is", "on"], "split": "val"}\n'
    (folder / "questions.jsonl").write_text(question * 2)
    (folder / "question.jsonl").write_text(question)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_gpt2.main(World(), START) == 0
    for number in (4, 5, 6):  # the best one so far is saved as well
        shutil.rmtree(folder / "run" / "checkpoints" / f"step_{number:08d}", ignore_errors=True)
    (folder / "trained_weights.bin").rename(folder / "w0.bin")
    shutil.copy(folder / "w0.bin", folder / "trained_weights.bin")
    return folder


def resume(stopped, folder, monkeypatch, capsys, *flags):
    """(what a resumed training prints about its flags, all else that it does: prints, files, records, weights)"""
    shutil.copytree(stopped, folder)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert train_gpt2.main(World(), ["--resume", *flags]) == 0
    lines = [re.sub(r"\d+ ms \|.*", "", line) for line in capsys.readouterr().out.splitlines()]
    reported = [line for line in lines if line.startswith("resume ")]
    ignored = "resume ", "config ", " ", "trained ", "memory ", "machine "
    rest = [line for line in lines if not line.startswith(ignored)]
    records = [json.loads(line) for path in sorted(folder.glob("**/*.jsonl")) for line in path.read_text().splitlines()]
    numbers = [{k: v for k, v in record.items() if k not in ("ms", "tokens_per_s")} for record in records]
    files = sorted(re.sub(r"tfevents.*", "tfevents", str(path.relative_to(folder))) for path in folder.glob("**/*"))
    paths = [folder / name for name in ("trained_weights.bin", "w.bin") if (folder / name).exists()]
    bits = [{name: t.tobytes() for name, t in load_weights(path).tensors.items()} for path in paths]
    memory = [line for line in lines if "activations" in line]
    config = json.loads((folder / "run" / "config.json").read_text())
    return reported, (rest, numbers, files, bits, memory), config["training"] | config["model"]


@pytest.fixture(scope="module")
def plain(stopped, tmp_path_factory):
    """What a training does that is resumed without another flag."""
    folder = tmp_path_factory.mktemp("plain") / "run"

    class Capture:
        def __init__(self):
            self.text = io.StringIO()

        def readouterr(self):
            class Result:
                out = self.text.getvalue()

            return Result

    capture = Capture()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(capture.text):
        return resume(stopped, folder, patch, capture)


def other_value(name):
    f = FLAGS.get(name)
    if name in OTHER:
        return [OTHER[name]]
    kind = f.metadata.get("kind") or type(f.default)
    if kind is bool:
        return []
    if "choices" in f.metadata:
        return [str(next(choice for choice in f.metadata["choices"] if choice != f.default))]
    started = dict(zip(START[::2], START[1::2])).get(option(name), f.default)
    if kind is int:
        return [str(int(started or 0) + 1)]
    return [repr(float(started) * 0.5)]


@pytest.mark.parametrize("name", [*FLAGS, "model"])
def test_a_flag_is_reported_and_has_an_effect_or_is_refused(stopped, plain, tmp_path, monkeypatch, capsys, name):
    f = FLAGS.get(name)
    flag = option(name)
    if f is not None and type(f.default) is bool and f.default:
        flag = "--no-" + name.replace("_", "-")
    argv = [flag, *other_value(name), *(START if name == "run_dir" else ())]
    try:
        reported, effect, config = resume(stopped, tmp_path / "run", monkeypatch, capsys, *argv)
    except UserError as error:
        words = (flag, option(name), "CuPy", "this is not the data", "dataset")
        assert any(word in str(error) for word in words) and "\n" not in str(error)
        return
    if name == "run_dir":
        assert reported == ["resume    nothing here yet: starting a new training"]
        return
    if name not in OF_THIS_START:
        assert any(line.startswith(f"resume    {option(name)} ") and " is now " in line for line in reported), reported
        assert config[name] != plain[2][name]
    if name not in NOT_SEEN and name not in OF_THIS_START:
        assert effect != plain[1]


def test_a_training_that_is_resumed_without_a_flag_reports_none(plain):
    assert [line.split("run/")[0] for line in plain[0]] == ["resume    from "]


def test_other_questions_than_before_are_told(stopped, tmp_path, monkeypatch, capsys, plain):
    assert not any("questions" in line for line in plain[1][0])
    folder = tmp_path / "stopped"
    shutil.copytree(stopped, folder)
    questions = (folder / "questions.jsonl").read_text()
    (folder / "questions.jsonl").write_text(questions.replace('"sat"', '"sang"'))
    told = resume(folder, tmp_path / "run", monkeypatch, capsys)[1][0]
    assert any(line.startswith("warning   questions.jsonl: these are not the questions of before") for line in told)
