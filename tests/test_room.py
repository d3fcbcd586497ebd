"""What does not fit on the disk is refused before the first step, in one line with need and room."""

import errno
import os
import random
import sys
from dataclasses import replace

import pytest
from test_train import SMALL, TEXT

import train_gpt2
from tinygrad2 import __main__ as commands
from tinygrad2.cli import call
from tinygrad2.datasets import text_cache
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.io import room
from tinygrad2.io.room import Need, check_room, existing_folder
from tinygrad2.training.disk_plan import checkpoints_at_once

FLAGS = [*SMALL.split(), "--data", "text.txt", "--steps", "12", "--sample-tokens", "2"]
ONE = 12 * 22_560  # bytes of a checkpoint of this model


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def limit():
    """limit(bytes): from now on no file may become longer."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train(capsys, *flags):
    """(exit code, the lines on stderr, were there any steps?)"""
    code = call(lambda: train_gpt2.main(World(), [*FLAGS, *flags]), "prog")
    out, err = capsys.readouterr()
    return code, err.splitlines(), "\nstep " in out


def free(monkeypatch, size):
    monkeypatch.setattr(room, "free_bytes", lambda folder: size)


@pytest.mark.parametrize(
    "flags, checkpoints",
    [
        ("", 1),
        ("--checkpoint-every 1", 3),
        ("--checkpoint-every 1 --keep-checkpoints 20", 12),
        ("--checkpoint-every 4 --keep-checkpoints 1", 2),
        ("--checkpoint-every 1 --keep-checkpoints 1 --keep-every 2", 7),
        ("--checkpoint-every 0", 1),
        ("--checkpoint-every 0 --keep-every 5", 3),
    ],
)
def test_checkpoints_and_weights_that_do_not_fit(here, monkeypatch, capsys, flags, checkpoints):
    free(monkeypatch, (checkpoints - 0.5) * ONE)
    code, (line,), began = train(capsys, *flags.split())
    assert code == 2 and not began and os.listdir(here) == ["text.txt"]
    what = f"{checkpoints} checkpoint(s)" if checkpoints > 1 else "a checkpoint"
    assert line.startswith("prog: --run-dir run: ") and f"({what} " in line and "choose another path" in line
    assert f"and {room.size_text((checkpoints - 0.5) * ONE)} are free on the disk of" in line
    free(monkeypatch, (checkpoints + 0.5) * ONE)
    assert train(capsys, *flags.split(), "--steps", "12")[0] == 0


def test_weights_on_their_own_and_a_resumed_training(here, monkeypatch, capsys):
    assert train(capsys, "--checkpoint-every", "2", "--steps", "8")[0] == 0
    free(monkeypatch, 1.4 * ONE)  # the old checkpoints make room for the new ones: one, and the weights
    assert train(capsys, "--resume", "--steps", "16")[0] == 0
    free(monkeypatch, 0.9 * ONE)
    code, (line,), began = train(capsys, "--resume", "--steps", "20")
    assert code == 2 and "(a checkpoint " in line and not began
    free(monkeypatch, 1000)
    code, (line,), began = train(capsys, "--resume", "--steps", "16")  # complete: only weights are written
    assert code == 2 and line.startswith("prog: --weights-out trained_weights.bin: 0.09 MB are needed")


def test_how_many_checkpoints_there_are_at_once():
    rng, flags = random.Random(1), train_gpt2.parse([])[0]
    for _ in range(2000):
        every, keep_every, steps = (rng.choice((0, rng.randrange(1, 40))) for _ in range(3))
        config = replace(flags, steps=steps + 1, checkpoint_every=every, keep_every=keep_every,
                         keep_checkpoints=rng.randrange(1, 5))  # fmt: skip
        done = rng.randrange(config.steps + 1)
        alive, most = [], 0
        for step in range(done + 1, config.steps + 1):
            if step == config.steps or any(n and step % n == 0 for n in (every, keep_every)):
                alive.append(step)
                most = max(most, len(alive))
                newest = alive[-config.keep_checkpoints :]
                alive = [s for s in alive if s in newest or (keep_every and s % keep_every == 0)]
        assert checkpoints_at_once(config, done) == most, config


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_shows_when_room_is_taken(here, monkeypatch, number):
    monkeypatch.setattr(room, "_reserve", lambda handle, size: number if size > 1000 else 0)
    check_room([Need("--out", "w", "weights", 1000, 1000)])
    with pytest.raises(UserError, match=r"^--out w: a file of 0.00 MB cannot be written in .*; choose another path$"):
        check_room([Need("--out", "w", "weights", 1001, 1001)])
    assert os.listdir(here) == ["text.txt"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's fallocate")
def test_a_limit_of_file_sizes(here, capsys, limit):
    limit(100_000)
    code, (line,), began = train(capsys)
    limit(10**9)
    assert code == 2 and not began and "(the limit of ulimit -f, or of the file system)" in line
    assert os.listdir(here) == ["text.txt"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a device of Linux")
def test_a_folder_that_takes_no_files(here):
    for folder in ("/proc", "/sys"):
        with pytest.raises(UserError, match="--out .*: no file can be created in"):
            check_room([Need("--out", f"{folder}/w", "weights", 0, 0)])


def test_the_folder_that_will_hold_a_file(here):
    (here / "a").mkdir()
    assert existing_folder("a/b/c") == existing_folder("a") == os.path.realpath("a")
    assert existing_folder("w.bin") == os.path.realpath(here)


def test_a_converted_model_that_does_not_fit(here, monkeypatch, capsys):
    assert train(capsys, "--steps", "1")[0] == 0
    free(monkeypatch, 50_000)
    for target, flags in (("model", ["--to", "hf"]), ("m.bin", ["--to", "llmc"]), ("copy.bin", ["--to", "trained"])):
        assert commands.main(["convert", "trained_weights.bin", target, *flags]) == 2
        assert "0.09 MB are needed (the model 0.09 MB), and 0.05 MB are free" in capsys.readouterr().err
        assert not os.path.exists(target)


def test_tokens_go_where_there_is_room(here, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setattr(text_cache, "free_bytes", lambda folder: 10**9 * ("cache" in folder))
    assert train(capsys)[0] == 0
    assert not list(here.glob(".tinygrad2/**/tokens*")) and list(here.glob("cache/tinygrad2/**/tokens*"))
    monkeypatch.setattr(text_cache, "free_bytes", lambda folder: 0)
    (here / "text.txt").write_text(TEXT * 41, encoding="utf-8")
    assert train(capsys)[0] == 0  # in memory
    monkeypatch.setattr(text_cache, "available_bytes", lambda: 100)
    code, (line,), began = train(capsys)
    assert code == 2 and not began and "set XDG_CACHE_HOME to a folder with room" in line
