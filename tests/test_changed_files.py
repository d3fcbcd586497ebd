"""Files that are cut off, changed, replaced or removed while a training reads and writes them, and disks that fill up.

The training prints a clear line, and leaves a state from which it can be resumed. Trainings in this process, with
something planted before a step."""

import os
import re
import shutil
import signal
import sys
import time

import change_files
import numpy as np
import pytest
from test_train import SMALL, TEXT, metrics

import train_gpt2
from models import GPT, GPTConfig
from tinygrad2.cli import call
from tinygrad2.datasets.token_files import ChangedData, TokenFile, TokenStream, write_raw, write_tokens
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.io import block_sums
from tinygrad2.io.weights import load_weights
from tinygrad2.tokenizers.tokenizer import Tokenizer
from tinygrad2.training.checkpoint import list_checkpoints, read_checkpoint

STEPS, WHEN = 12, 5
FLAGS = [*SMALL.split(), "--data", "train.bin", "--steps", str(STEPS), "--eval-every", "0", "--sample-every", "0",
         "--sample-tokens", "2", "--checkpoint-every", "2"]  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 290, 100_000)


def write_data(folder):
    write_tokens(folder / "train.bin", IDS)
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_data(tmp_path)


def train(monkeypatch, action, *flags):
    """Run a training that calls action() when WHEN steps are done; returns its exit code."""
    step = train_gpt2.Trainer.step

    def planted(self, *args):
        if self.done == WHEN:
            action()
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train_gpt2.Trainer, "step", planted)
        return call(lambda: train_gpt2.main(World(), [*FLAGS, *flags]), "prog")


def wait_for_checkpoint(step):
    """They are written on a thread of their own."""
    for _ in range(6000):
        if [path for path in list_checkpoints("run/checkpoints") if path.endswith(f"{step:08d}")]:
            return
        time.sleep(0.01)
    raise AssertionError(f"there is no checkpoint of step {step}")


def newest_step(folder):
    return read_checkpoint(list_checkpoints(folder / "run" / "checkpoints")[0]).step


def rewrite(start=1024, stop=201_024, path="train.bin"):
    """Other ids of the same number into the same file, in these bytes."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(IDS[::-1].astype("<u2").tobytes()[: stop - start])


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda: os.truncate("train.bin", 1500), "it ends before byte "),
        (lambda: os.truncate("train.bin", 0), "it ends before byte "),
        (lambda: rewrite(70_000, 130_000), "it has other content now, in bytes "),
        (rewrite, "it has other content now, in bytes "),
    ],
)
def test_data_that_changes_ends_a_training_with_its_state_saved(folder, monkeypatch, capsys, change, says):
    original = (folder / "train.bin").read_bytes()
    assert train(monkeypatch, change) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"prog: train.bin: has been changed or removed since it was opened: {says}")
    assert f"the state after step {WHEN} has been saved" in error and len(error.splitlines()) == 1
    assert newest_step(folder) == WHEN and len(metrics(folder / "run" / "metrics.jsonl")) == WHEN
    (folder / "train.bin").write_bytes(original)
    assert train(monkeypatch, lambda: None, "--resume") == 0
    resumed = load_weights("trained_weights.bin").tensors
    assert train(monkeypatch, lambda: None, "--run-dir", "uncut") == 0
    uncut = load_weights("trained_weights.bin").tensors
    assert all(np.array_equal(resumed[name], uncut[name]) for name in uncut)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda: os.remove("train.bin"), "has been removed while it is read"),
        (lambda: write_tokens("train.bin", IDS[::-1]), "has been replaced while it is read"),
        (lambda: os.utime("train.bin", (1, 1)), "was written to while it is read"),
        (lambda: os.truncate("train.bin", 300_000), "was written to while it is read"),
    ],
)
def test_what_does_not_affect_the_open_file_is_a_warning(folder, monkeypatch, capsys, change, says):
    assert train(monkeypatch, lambda: None) == 0
    undisturbed = load_weights("trained_weights.bin").tensors
    capsys.readouterr()
    assert train(monkeypatch, change) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"warning   train.bin: {says}") == 1 and newest_step(folder) == STEPS
    weights = load_weights("trained_weights.bin").tensors
    assert all(np.array_equal(weights[name], undisturbed[name]) for name in weights)


@pytest.mark.parametrize("at", [1024, 100_000, 200_000])
def test_one_byte_that_has_changed_between_stop_and_resume(folder, monkeypatch, capsys, at):
    """The same date and size: the content decides."""
    def change():
        with open("train.bin", "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    assert train(monkeypatch, lambda: None, "--steps", "6") == 0
    date = os.stat("train.bin").st_mtime_ns
    change()
    os.utime("train.bin", ns=(date, date))
    assert train(monkeypatch, lambda: None, "--resume") == 2
    assert "train.bin: this is not the data that the training in run began with" in capsys.readouterr().err
    assert newest_step(folder) == 6
    change()  # back
    assert train(monkeypatch, lambda: None, "--resume") == 0 and newest_step(folder) == STEPS


def test_the_file_that_has_changed_is_named(folder, monkeypatch, capsys):
    """Of several: of shards, and of texts; and that it is none of them."""
    def refused(*flags):
        assert train(monkeypatch, lambda: None, "--resume", "--data", data, *flags) == 2
        return capsys.readouterr().err

    data = "tokens"
    os.makedirs("tokens")
    for i in range(5):
        write_tokens(f"tokens/s_train_{i:06d}.bin", IDS[: 9000 + i])
    write_tokens("tokens/s_val_000000.bin", IDS[:5000])
    shutil.copytree("tokens", "saved")
    assert train(monkeypatch, lambda: None, "--data", data, "--steps", "6") == 0
    rewrite(1024, 1030, "tokens/s_train_000002.bin")
    assert "began with (s_train_000002.bin has other content); restore it" in refused()
    os.remove("tokens/s_train_000001.bin")
    write_tokens("tokens/s_train_000009.bin", IDS)
    says = "(s_train_000002.bin has other content, s_train_000001.bin is missing, s_train_000009.bin is new); restore"
    assert says in refused()
    for i in range(3, 5):
        os.remove(f"tokens/s_train_{i:06d}.bin")
    assert "s_train_000003.bin is missing, and 2 more); restore" in refused()
    shutil.rmtree("tokens")
    shutil.copytree("saved", "tokens")
    assert train(monkeypatch, lambda: None, "--resume", "--data", data) == 0
    shutil.rmtree("run")
    data = "texts"
    os.makedirs("texts")
    for name in "abc":
        (folder / "texts" / f"{name}.txt").write_text(TEXT * 20)
    assert train(monkeypatch, lambda: None, "--data", data, "--steps", "6") == 0
    (folder / "texts" / "b.txt").write_text(TEXT.replace("cat", "cow") * 20)
    assert "began with (b.txt has other content); restore it" in refused()
    (folder / "texts" / "b.txt").write_text(TEXT * 20)
    assert "its files are the same, but chosen or divided in another way" in refused("--val-fraction", "0.3")


def test_a_tokenizer_that_appears_beside_the_tokens_is_not_used(folder, monkeypatch, capsys):
    """A training goes on without one if it began without one, unless the command line asks for it."""
    tokenizer, all_bits = Tokenizer.train(TEXT * 5, 280), []
    assert train(monkeypatch, lambda: tokenizer.save("tokenizer.json"), "--steps", "6") == 0
    assert load_weights("trained_weights.bin").tokenizer == ""
    os.rename("run", "saved")
    for has_file, flags, json in ((False, (), ""), (True, (), ""), (True, ("--tokenizer", "tokenizer.json"), "...")):
        os.remove("tokenizer.json")
        if has_file:
            tokenizer.save("tokenizer.json")
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("saved", "run")
        capsys.readouterr()
        assert train(monkeypatch, lambda: tokenizer.save("tokenizer.json"), "--resume", *flags) == 0
        says = "not used, for this training began without a tokenizer"
        assert (says in capsys.readouterr().out) == (has_file and not flags)
        weights = load_weights("trained_weights.bin")
        assert weights.tokenizer == (json and tokenizer.to_json())
        all_bits.append({name: np.array(tensor) for name, tensor in weights.tensors.items()})
        tokenizer.save("tokenizer.json")
    for bits in all_bits[1:]:
        assert all(np.array_equal(bits[name], all_bits[0][name]) for name in bits)


def test_checkpoints_claim_what_is_read(folder, monkeypatch, capsys):
    """A file that is replaced while a training reads it: the training goes on with the open one, and is not resumed
    on the other; its weights can be."""
    assert train(monkeypatch, lambda: write_tokens("train.bin", IDS[::-1])) == 0
    assert train(monkeypatch, lambda: None, "--resume", "--steps", "14") == 2
    error = capsys.readouterr().err
    assert "this is not the data that the training in run began with" in error
    start = re.search(r"--init-from (\S+)", error)[1]
    assert start.endswith("step_00000012/weights.bin")
    data = FLAGS[FLAGS.index("--data") :]
    with monkeypatch.context() as patch:
        patch.setattr("test_changed_files.FLAGS", data)
        assert train(monkeypatch, lambda: None, "--init-from", start, "--run-dir", "other") == 0
    write_tokens("train.bin", IDS)
    assert train(monkeypatch, lambda: None, "--resume", "--steps", "14") == 0


def test_the_token_cache_may_be_removed(folder, monkeypatch, capsys):
    flags = "--data", "text.txt", "--eval-every", "4"
    assert train(monkeypatch, lambda: shutil.rmtree(".tinygrad2"), *flags) == 0
    assert newest_step(folder) == STEPS and "tokens_000000.bin: has been removed" in capsys.readouterr().out
    assert train(monkeypatch, lambda: None, *flags, "--resume", "--steps", "14") == 0  # the cache is made again
    assert newest_step(folder) == 14


def test_a_file_that_has_changed_while_it_was_closed(tmp_path):
    path = tmp_path / "x.bin"
    def make_pipe(path):
        os.remove(path)
        os.mkfifo(path)

    changes = [(os.remove, "can no longer be opened"), (lambda path: write_raw(path, IDS[1:]), "other content now"),
               (lambda path: write_raw(path, IDS[::-1]), "other content now")]  # fmt: skip
    changes += [(make_pipe, "no longer a regular file")] if hasattr(os, "mkfifo") else []
    for change, says in changes:
        write_raw(path, IDS)
        file = TokenFile(path)
        assert np.array_equal(file.read(0, 10), IDS[:10])
        file.close()
        change(path)
        with pytest.raises(ChangedData, match=f"x.bin: has been changed or removed .*{says}"):
            file.read(0, 10)
        file.close()
        path.unlink(missing_ok=True)
    write_raw(path, IDS)
    stream = TokenStream([TokenFile(path)])
    stream.read([0], 5)
    stream.files[0].close()
    shutil.copy(path, tmp_path / "copy.bin")
    os.replace(tmp_path / "copy.bin", path)  # another file with the same ids
    assert np.array_equal(stream.read([5], 5)[0], IDS[5:10]) and len(stream.notices()) == 1 and not stream.notices()


@pytest.mark.parametrize("kind", ["raw", "llm.c", "npy"])
def test_every_byte_of_every_block_is_compared_when_it_is_read(tmp_path, monkeypatch, kind):
    path, rng = tmp_path / "x.npy", np.random.default_rng(3)
    for size in (1, 3000, 4096, 10_000):
        ids = IDS[:size].astype(np.uint16)
        {"raw": write_raw, "llm.c": write_tokens, "npy": np.save}[kind](path := path.with_suffix(
            ".npy" if kind == "npy" else ".bin"), ids)  # fmt: skip
        file = TokenFile(path)
        file.read(0, 1)
        raw = path.read_bytes()
        for at in rng.integers(0, len(raw), 20).tolist():
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 16]) + raw[at + 1 :])
            with pytest.raises(ChangedData):
                file.read(0, size)
        path.write_bytes(raw)
        assert np.array_equal(file.read(0, size), ids)


def test_sums_that_are_kept_and_no_longer_true_are_noticed_and_forgotten(tmp_path, monkeypatch):
    """As if a file had changed without any of its dates, which are what kept sums are found by."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(block_sums, "_KEPT", 0)
    monkeypatch.setattr(block_sums, "facts_of", lambda path, status: [status.st_size])
    write_raw(tmp_path / "x.bin", IDS)
    whole = TokenFile(tmp_path / "x.bin").crc()
    read_all = block_sums.read_range
    monkeypatch.setattr(block_sums, "read_range", None)
    assert TokenFile(tmp_path / "x.bin").crc() == whole  # not read again
    monkeypatch.setattr(block_sums, "read_range", read_all)
    rewrite(100_000, 100_001, tmp_path / "x.bin")
    file = TokenFile(tmp_path / "x.bin")
    assert file.crc() == whole and np.array_equal(file.read(0, 40_000), IDS[:40_000])
    with pytest.raises(ChangedData, match="it has other content now, in bytes 98,304 to 106,495"):
        file.read(45_000, 55_000)
    assert TokenFile(tmp_path / "x.bin").crc() != whole


def test_a_file_that_is_written_to_while_its_sums_are_made(tmp_path, monkeypatch):
    write_raw(tmp_path / "x.bin", IDS)
    read = block_sums.read_range

    def read_and_write(*args):
        with open(tmp_path / "x.bin", "ab") as file:
            file.write(b"more")
        return read(*args)

    monkeypatch.setattr(block_sums, "read_range", read_and_write)
    with pytest.raises(UserError, match="x.bin: is being written to while it is read; start again when it is complete"):
        TokenFile(tmp_path / "x.bin").crc()


# -- the run folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--metrics", "other.jsonl"), ("--tensorboard",)], ids=str)
def test_a_run_folder_that_is_removed_is_created_again(folder, monkeypatch, capsys, flags):
    if "--tensorboard" in flags:
        pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    assert train(monkeypatch, lambda: (wait_for_checkpoint(4), shutil.rmtree("run")), *flags) == 0
    assert "warning   run: was removed while the training runs; created again" in capsys.readouterr().out
    names = set(os.listdir("run"))
    assert {"config.json", "checkpoints", ".lock"} <= names and newest_step(folder) == STEPS
    assert any(name.startswith("events.out.tfevents") for name in names) == ("--tensorboard" in flags)
    path = "other.jsonl" if "--metrics" in flags else "run/metrics.jsonl"
    steps = [record["step"] for record in metrics(folder / path)]
    assert steps == list(range(STEPS))
    assert train(monkeypatch, lambda: None, "--resume", "--steps", "14") == 0
    assert load_weights("trained_weights.bin").training["steps_done"] == 14


def test_a_run_folder_that_cannot_be_created_again(folder, monkeypatch, capsys):
    def replace():
        wait_for_checkpoint(4)
        shutil.rmtree("run")
        (folder / "run").write_text("a file")

    assert train(monkeypatch, replace) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning   run: was removed while the training runs, and cannot be created again") == 1
    assert printed.count("run/metrics.jsonl: cannot be written") == 1
    assert (folder / "run").read_text() == "a file"
    assert load_weights("trained_weights.bin").training["steps_done"] == STEPS


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def limit():
    """limit(n): no file of this process grows beyond n bytes; limit(None): all may."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(n):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if n is None else (n, before[1]))

    yield set_limit
    set_limit(None)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
def test_a_disk_that_is_full_for_a_while(folder, monkeypatch, capsys, limit):
    step, kept = train_gpt2.Trainer.step, []

    def planted(self, *args):
        if self.done == 5:
            wait_for_checkpoint(4)
            limit(500)
        if self.done == 9:
            kept.extend(list_checkpoints("run/checkpoints"))
            limit(None)
        return step(self, *args)

    monkeypatch.setattr(train_gpt2.Trainer, "step", planted)
    assert call(lambda: train_gpt2.main(World(), [*FLAGS, "--keep-checkpoints", "1"]), "prog") == 0
    printed = capsys.readouterr().out
    assert "warning   run/checkpoints: the checkpoint of step 6 cannot be written (File too large); earlier" in printed
    assert printed.count("warning   run/metrics.jsonl: cannot be written (File too large); the training goes") == 1
    assert os.path.basename(kept[0]) == "step_00000004" and newest_step(folder) == STEPS
    steps = [record["step"] for record in metrics(folder / "run" / "metrics.jsonl")]
    assert steps == list(range(STEPS))  # those of the full disk were kept in memory
    assert "run/metrics.jsonl: is written again, with 4 lines that were kept" in printed


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
def test_a_disk_that_is_full_at_the_end(folder, monkeypatch, capsys, limit):
    (folder / "trained_weights.bin").write_bytes(b"")
    assert train(monkeypatch, lambda: (wait_for_checkpoint(4), limit(500))) == 2
    limit(None)
    captured = capsys.readouterr()
    assert "trained_weights.bin: writing failed (File too large); the old file, if any, is untouched; the last " \
           "checkpoint has weights that inference.py reads: run/checkpoints/step_00000004/weights.bin" in captured.err
    assert load_weights("run/checkpoints/step_00000004/weights.bin").training["steps_done"] == 4
    assert newest_step(folder) == 4 and "Traceback" not in captured.err
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["trained", "hf", "llmc", "nanogpt"])
def test_weights_that_are_cut_off_while_they_are_read(folder, monkeypatch, capsys, to):
    """They are mapped: touching what is missing would end the process with SIGBUS."""
    from models.pretrained import load_into, open_model
    from tinygrad2.commands.convert import main as convert

    assert train(monkeypatch, lambda: None) == 0
    assert call(lambda: convert(["trained_weights.bin", "m", "--to", to]), "prog") == 0
    path = "m/model.safetensors" if to == "hf" else "m"
    opened = open_model("m")
    model = GPT(GPTConfig.from_dict(opened.config))
    load_into(model, opened)
    os.truncate(path, 5000)
    with pytest.raises(UserError, match=r"m.*: was cut off while it is read: 5,000 bytes, [\d,]+ at first"):
        load_into(model, opened)


# -- random changes ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs signals and pipes of POSIX")
@pytest.mark.parametrize("seed", [1, 2, 3, *(pytest.param(i, marks=pytest.mark.slow) for i in range(4, 13)),
                                  *(pytest.param(i, marks=pytest.mark.long) for i in range(13, 31))])  # fmt: skip
def test_random_changes_of_random_files(tmp_path, monkeypatch, seed):
    """Those of `python tests/change_files.py 30`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    what, problem = change_files.attempt_in(tmp_path, seed)
    assert not problem, f"{what}: {problem}"
