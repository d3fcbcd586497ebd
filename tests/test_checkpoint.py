"""Checkpoints survive: death at any call, a full disk, damage of any kind; nothing valid is ever lost."""

import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from crash_everywhere import checkpoint
from forked import train
from test_train import ROOT, TEXT

from tinygrad2.errors import UserError
from tinygrad2.io.weights import load_weights
from tinygrad2.training.checkpoint import (
    CheckpointWriter,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    remove_old_checkpoints,
    sweep,
    write_checkpoint,
)
from tinygrad2.training.run_dir import RunDir


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2):
        write_checkpoint(str(folder), checkpoint(step))
    return str(folder)


def steps(folder):
    return [read_checkpoint(path).step for path in list_checkpoints(folder)]


def same(one, other):
    pairs = [(one.weights, other.weights), (one.moments, other.moments)]
    equal = all(a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs)
    return equal and (one.t, one.state, one.tokenizer, one.config, one.history) == (
        other.t, other.state, other.tokenizer, other.config, other.history)  # fmt: skip


def test_what_was_written_is_read(folder):
    newest, damaged = newest_checkpoint(folder)
    assert same(newest, checkpoint(2)) and damaged == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_death_at_every_call_to_the_system_loses_nothing(folder):
    command = [sys.executable, str(ROOT / "tests" / "crash_everywhere.py"), folder]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30  # so many deaths


def test_without_memory_nothing_is_left_half_written(folder, monkeypatch):
    def refused(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("tinygrad2.training.checkpoint.write_tensors", refused)
    before = sorted(os.listdir(folder))
    with pytest.raises(MemoryError):
        write_checkpoint(folder, checkpoint(3))
    assert sorted(os.listdir(folder)) == before


def test_a_full_disk_is_reported_and_changes_nothing(folder, monkeypatch):
    import builtins

    really_open = builtins.open
    for room in (0, 10, 200, 3000, 9000):
        left = [room]

        def small_disk(path, mode="r", *args, left=left, **kwargs):
            file = really_open(path, mode, *args, **kwargs)
            if "w" not in mode:
                return file

            class Full:
                def __getattr__(self, name):
                    return getattr(file, name)

                def write(self, data):
                    left[0] -= len(data)
                    if left[0] < 0:
                        raise OSError(28, "No space left on device")
                    return file.write(data)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

            return Full()

        monkeypatch.setattr(builtins, "open", small_disk)
        full = "step 3 cannot be written .No space left on device.; earlier ones are unchanged"
        with pytest.raises(UserError, match=full):
            write_checkpoint(folder, checkpoint(3))
        monkeypatch.setattr(builtins, "open", really_open)
        assert steps(folder) == [2, 1] and len(os.listdir(folder)) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid(), reason="only root can make a small disk")
@pytest.mark.slow
def test_a_training_on_a_disk_that_fills_up_continues_and_reports_it(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], capture_output=True).returncode:
        pytest.skip("this container may not mount a small disk")
    try:
        (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
        flags = f"--steps 30 --checkpoint-every 1 --run-dir {small / 'run'}"
        refused = train(tmp_path, f"{flags} --keep-checkpoints 20")
        assert refused.returncode == 2 and not os.listdir(small)
        assert "21 checkpoint(s) 5.7" in refused.stderr and "2.10 MB are free on the disk of" in refused.stderr
        filler = subprocess.Popen(["bash", "-c", f"until ls {small}/run/checkpoints/step_*2; do sleep 0.02; done; "
                                   f"cat /dev/zero > {small}/zeros"], stderr=subprocess.DEVNULL)  # fmt: skip
        result = train(tmp_path, f"{flags} --keep-checkpoints 3")
        filler.wait()
        assert result.returncode == 0, result.stderr
        warnings = [line for line in result.stdout.splitlines() if line.startswith("warning")]
        reasons = "No space left on device|could not be written, and are lost"
        assert warnings and all(re.search(reasons, line) for line in warnings)
        written = steps(small / "run" / "checkpoints")
        assert 1 <= len(written) <= 5 and written[0] < 30
        assert not [name for name in os.listdir(small / "run" / "checkpoints") if not name.startswith("step_")]
        (small / "zeros").unlink()
        again = train(tmp_path, f"--resume --run-dir {small / 'run'} --weights-out {tmp_path / 'w'}")
        assert again.returncode == 0 and f"step_{written[0]:08d}" in again.stdout
        full = train(tmp_path, f"--steps 2 --run-dir {tmp_path / 'r'} --weights-out {small / 'w.bin'}")
        assert full.returncode in (0, 2)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("name", ["weights.bin", "optimizer.bin", "state.json", "metrics.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["half", "empty", "missing", "flipped"])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_taken(folder, name, damage):
    path = os.path.join(folder, "step_00000002", name)
    with open(path, "rb") as file:
        raw = bytearray(file.read())
    os.remove(path)
    if damage != "missing":
        raw[len(raw) // 2] ^= 4
        with open(path, "wb") as file:
            file.write({"half": raw[: len(raw) // 2], "empty": b"", "flipped": raw}[damage])
    said = []
    newest, damaged = newest_checkpoint(folder, said.append)
    assert same(newest, checkpoint(1)) and damaged == [os.path.join(folder, "step_00000002")]
    assert len(said) == 1 and path in said[0] and "damaged checkpoint" in said[0] and "\n" not in said[0]
    remove_old_checkpoints(folder, keep=1, distrusted=damaged)
    assert same(newest_checkpoint(folder, said.append)[0], checkpoint(1))  # the damaged one does not count


def test_where_all_are_damaged_it_is_an_error_and_nothing_is_removed(folder):
    for name in os.listdir(folder):
        os.remove(os.path.join(folder, name, "weights.bin"))
    with pytest.raises(UserError, match="none of the 2 checkpoint.s. is intact"):
        newest_checkpoint(folder, lambda line: None)
    assert len(os.listdir(folder)) == 2
    assert newest_checkpoint(os.path.join(folder, "nowhere")) == (None, [])


def test_the_newest_and_the_best_stay(folder):
    for step, loss in ((3, 0.1), (4, 0.9), (5, 0.8), (6, None), (7, 0.7)):
        later = checkpoint(step)
        later.state["val_loss"] = loss
        write_checkpoint(folder, later)
        remove_old_checkpoints(folder, keep=2)
    assert steps(folder) == [7, 6, 3]


def test_a_checkpoint_of_the_same_step_never_overwrites(folder):
    path = write_checkpoint(folder, checkpoint(2))
    assert path.endswith("step_00000002.2") and steps(folder) == [2, 2, 1]
    assert list_checkpoints(folder)[0] == path


def test_what_a_killed_process_left_half_done_is_swept_away(folder):
    for name in (".writing-00000003-77", ".deleting-step_00000001-77"):
        os.mkdir(os.path.join(folder, name))
    assert steps(folder) == [2, 1]
    sweep(folder)
    assert sorted(os.listdir(folder)) == ["step_00000001", "step_00000002"]


def test_the_writer_works_in_parallel_and_reports_failures(folder, monkeypatch):
    said = []
    writer = CheckpointWriter(folder, keep=2)
    for step in (3, 4, 5):
        writer.save(checkpoint(step), said.append)
    writer.join(said.append)
    assert steps(folder) == [5, 4] and said == []

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        writer.save(checkpoint(6), said.append)
        writer.join(said.append)
    assert len(said) == 1 and "step 6 cannot be written" in said[0] and steps(folder) == [5, 4]

    def none_left(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    writer.save(checkpoint(6), said.append)
    writer.join(said.append)
    assert len(said) == 1 and steps(folder) == [6, 5]


def test_manifests_with_impossible_fields_are_refused_even_with_a_right_checksum(folder):
    import zlib

    path = os.path.join(folder, "step_00000002", "manifest.json")
    with open(path) as file:
        sound = json.load(file)
    entry = sound["files"]["weights.bin"]
    for change in (
        {"step": -1}, {"step": 2.0}, {"step": True}, {"step": 3}, {"val_loss": "low"}, {"files": []}, {"version": 2},
        {"files": {}}, {"files": {**sound["files"], "weights.bin": 5}}, {"format": None},
        {"files": {**sound["files"], "weights.bin": {**entry, "bytes": "many"}}},
        {"files": {**sound["files"], "weights.bin": {**entry, "bytes": 10**30}}},
        {"files": {**sound["files"], "../weights.bin": entry}},
    ):  # fmt: skip
        changed = {**sound, **change}
        changed.pop("checksum")
        changed["checksum"] = f"crc32:{zlib.crc32(json.dumps(changed, sort_keys=True).encode()):08x}"
        with open(path, "w") as file:
            json.dump(changed, file)
        with pytest.raises(UserError, match="damaged checkpoint"):
            read_checkpoint(os.path.dirname(path))


# -- the folder of a run -----------------------------------------------------------------------------------------------


def test_a_new_training_moves_an_older_one_aside_and_two_cannot_share_a_folder(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    for _ in range(3):
        assert train(tmp_path, "--steps 2").returncode == 0
    run = tmp_path / "run"
    assert {"previous-1", "previous-2", "checkpoints", "metrics.jsonl", "config.json"} <= set(os.listdir(run))
    for older in ("previous-1", "previous-2"):
        assert steps(run / older / "checkpoints") == [2] and (run / older / "metrics.jsonl").exists()
    first = RunDir(str(run))
    first.open()
    result = train(tmp_path, "--steps 2")
    assert result.returncode == 2 and "another training is running in this folder" in result.stderr
    del first
    assert train(tmp_path, "--steps 2").returncode == 0


def test_resume_needs_the_same_data_and_shape_and_says_what_has_changed(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    assert "nothing here yet: starting a new training" in train(tmp_path, "--steps 4 --resume").stdout
    more = train(tmp_path, "--steps 6 --lr 1e-3 --resume")
    assert more.returncode == 0 and "resume    --steps 4 is now 6" in more.stdout
    assert "resume    --lr 0.006 is now 0.001" in more.stdout and more.stdout.count("\nstep ") == 2
    assert "--n-layer was 1 when this training began" in train(tmp_path, "--resume --n-layer 2").stderr
    assert "is of --model demo, not baby" in train(tmp_path, "--resume --model baby").stderr
    refused = train(tmp_path, "--resume --tokenizer mine.json")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "--resume --tokenizer mine.json: the checkpoint has its tokenizer" in refused.stderr
    assert "resume    --dropout 0.0 is now 0.1" in train(tmp_path, "--steps 6 --dropout 0.1 --resume").stdout
    (tmp_path / "text.txt").write_text(TEXT * 41, encoding="utf-8")
    result = train(tmp_path, "--steps 8 --resume")
    assert result.returncode == 2 and "this is not the data that the training in run began with" in result.stderr


def test_a_finished_training_that_is_resumed_is_just_finished(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    train(tmp_path, "--steps 3")
    before = load_weights(tmp_path / "trained_weights.bin").tensors
    (tmp_path / "trained_weights.bin").unlink()
    again = train(tmp_path, "--steps 3 --resume")
    assert again.returncode == 0 and "\nstep " not in again.stdout, again.stderr
    after = load_weights(tmp_path / "trained_weights.bin").tensors
    assert all(np.array_equal(before[name], after[name]) for name in before) and before.keys() == after.keys()


def test_run_folders_that_cannot_be_are_one_line(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    result = train(tmp_path, "--run-dir text.txt/run")
    assert result.returncode == 2 and "text.txt/run: cannot be written (Not a directory)" in result.stderr
    assert len(result.stderr.splitlines()) == 1
