"""Network file systems: what a training does where locks, fsync, renames, dates and file numbers are not those of a
disk. odd_files.py has random trainings; here are the single facts."""

import errno
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import odd_files
import pytest

from tinygrad2.datasets import dataset, text_cache, token_files
from tinygrad2.datasets.text_cache import tokens_of_text
from tinygrad2.datasets.token_files import ChangedData, TokenFile, TokenStream, write_tokens
from tinygrad2.errors import UserError
from tinygrad2.io import file_systems
from tinygrad2.io.file_systems import Lock, exists, move, retried, status_of, sync_folder
from tinygrad2.io.files import atomic_write, write_json
from tinygrad2.io.outputs import check_output, is_same_file
from tinygrad2.system import temporary
from tinygrad2.training import checkpoint as checkpoints
from tinygrad2.training import owner
from tinygrad2.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    remove_old_checkpoints,
    write_checkpoint,
)
from tinygrad2.training.owner import FolderInUse, Owner
from tinygrad2.training.run_dir import RunDir

ROOT = pathlib.Path(__file__).parents[1]
SMALL = odd_files.FLAGS.split()


def failing(monkeypatch, name, number, times=None, first=False, only=""):
    """os.NAME raises this error `times` times (None: always) for paths that contain `only`; with `first` it is done
    before that. Returns the list of calls that failed."""
    real, failed = getattr(os, name), []

    def call(path, *more, **keywords):
        meant = only in str(path) and (times is None or len(failed) < times)
        if not meant:
            return real(path, *more, **keywords)
        failed.append(path)
        if first:
            real(path, *more, **keywords)
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, name, call)
    return failed


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(file_systems, "_WAITS", (0.0, 0.0, 0.0))


def small_checkpoint(step):
    weights = {"a": np.full(3, step, np.float32)}
    return Checkpoint(weights, {"m.a": np.zeros(3, np.float32), "v.a": np.zeros(3, np.float32)}, step,
                      {"step": step, "position": [0, step]}, "{}", {"n_layer": 1})  # fmt: skip


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EEXIST, errno.ETXTBSY, errno.EACCES, errno.ESTALE])
def test_a_rename_that_is_refused_for_a_moment_is_tried_again(tmp_path, monkeypatch, number):
    refused = failing(monkeypatch, "replace", number, times=3)
    write_json(tmp_path / "a.json", [1])
    write_json(tmp_path / "a.json", [2])
    assert len(refused) == 3 and json.loads((tmp_path / "a.json").read_bytes()) == [2]
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_errors_of_closing_are_a_line(tmp_path, monkeypatch, number):
    failing(monkeypatch, "close", number, first=True)
    failing(monkeypatch, "fsync", number)
    with pytest.raises(UserError, match="the checkpoint of step 1 cannot be written"):
        write_checkpoint(str(tmp_path), small_checkpoint(1))


def test_a_text_that_cannot_be_read_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("Tom saw 17 birds.\n" * 2000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    class Stale(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(text_cache.TextSource, "open", lambda self, i, start=0: Stale())
    with pytest.raises(UserError, match="text.txt: cannot be read .Stale file handle."):
        tokens_of_text([str(tmp_path / "text.txt")], None, 280, print)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.EEXIST])
def test_a_rename_that_is_done_and_reports_an_error_is_done(tmp_path, monkeypatch, number):
    failing(monkeypatch, "replace", number, first=True)
    write_json(tmp_path / "a.json", [1])
    assert json.loads((tmp_path / "a.json").read_bytes()) == [1]
    path = write_checkpoint(str(tmp_path), small_checkpoint(1))
    assert read_checkpoint(path).step == 1 and sorted(os.listdir(tmp_path)) == ["a.json", "step_00000001"]


def test_a_rename_of_something_else_is_not_taken_for_done(tmp_path, monkeypatch):
    (tmp_path / "source").write_text("new")
    (tmp_path / "target").write_text("old one")

    def removed(source, target):
        os.remove(source)
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "replace", removed)
    with pytest.raises(OSError):
        move(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_file_systems_without_fsync(tmp_path, monkeypatch, number):
    failing(monkeypatch, "fsync", number)
    write_json(tmp_path / "a.json", [1])
    assert read_checkpoint(write_checkpoint(str(tmp_path), small_checkpoint(1))).step == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.EINVAL])
def test_folders_that_cannot_be_opened_need_no_fsync(tmp_path, monkeypatch, number):
    failing(monkeypatch, "open", number)
    sync_folder(tmp_path)


def test_an_error_of_fsync_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("old")
    failing(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(UserError, match="a.json: writing failed .Input/output error.; the old file, if any, is unt"):
        write_json(tmp_path / "a.json", [1])
    assert (tmp_path / "a.json").read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_folder_whose_entries_are_not_confirmed(tmp_path, monkeypatch):
    """The checkpoint is there, and so is the one before it: either may be the one that a power failure leaves."""
    writer, lines = CheckpointWriter(str(tmp_path), keep=1), []
    writer.save(small_checkpoint(1), lines.append)
    writer.join(lines.append)
    real = os.fsync

    def fsync(handle):
        if os.path.samestat(os.fstat(handle), os.stat(tmp_path)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    writer.save(small_checkpoint(2), lines.append)
    writer.join(lines.append)
    assert len(lines) == 1 and "step_00000002: is written, but the file system does not confirm" in lines[0]
    assert [read_checkpoint(path).step for path in list_checkpoints(tmp_path)] == [2, 1]
    with pytest.raises(UserError, match="a.json: is written, but the file system does not confirm"):
        write_json(tmp_path / "a.json", [1])


def test_slow_file_systems_are_reported(tmp_path, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (time.sleep(0.05), real(handle)))
    monkeypatch.setattr(checkpoints, "_LONG", 0.01)
    writer, lines = CheckpointWriter(str(tmp_path), keep=1), []
    writer.save(small_checkpoint(1), lines.append)
    writer.join(lines.append)
    assert lines == [f"note      waiting until the last checkpoint is on disk in {tmp_path}"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_permissions(tmp_path, monkeypatch, number):
    for name in ("chmod", "fchmod", "utime", "link", "symlink", "mkfifo"):
        if hasattr(os, name):
            failing(monkeypatch, name, number)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_errors_that_pass_are_tried_again(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    failed = failing(monkeypatch, "stat", errno.ESTALE, times=3, only="file")
    assert exists(tmp_path / "file") and len(failed) == 3
    failing(monkeypatch, "stat", errno.ESTALE, only="file")
    with pytest.raises(OSError):
        exists(tmp_path / "file")
    monkeypatch.undo()
    assert not exists(tmp_path / "none") and not exists(tmp_path / "file" / "in a file")
    assert status_of(tmp_path / "none") is None
    with pytest.raises(FileNotFoundError):
        retried(os.remove, tmp_path / "none")


# -- nothing is written over because it could not be seen --------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_what_cannot_be_looked_at_is_not_taken_for_missing(tmp_path, monkeypatch, number):
    (tmp_path / "thesis").write_text("mine")
    failing(monkeypatch, "stat", number, only="thesis")
    with pytest.raises(UserError, match="thesis"):
        check_output("--out", str(tmp_path / "thesis"), "ours", lambda path: False)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_run_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path, monkeypatch, number):
    write_checkpoint(str(tmp_path), small_checkpoint(1))
    failing(monkeypatch, "listdir", number, times=3)
    assert newest_checkpoint(str(tmp_path), print)[0].step == 1
    failing(monkeypatch, "listdir", number)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: cannot be read")):
        newest_checkpoint(str(tmp_path), print)
    with pytest.raises(UserError, match="cannot be read"):
        RunDir(str(tmp_path)).find_checkpoint(print)


def test_files_without_a_number_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("")
    monkeypatch.setattr(os.path, "samefile", lambda path, other: False)
    assert is_same_file(tmp_path / "a", f"{tmp_path}/./a")


def test_what_is_left_of_open_files_does_not_stay_for_ever(tmp_path, monkeypatch):
    """NFS renames a file that is open and is removed to .nfs..., and its folder cannot be removed yet."""
    for step in (1, 2):
        write_checkpoint(str(tmp_path), small_checkpoint(step))
    real, refused = os.rmdir, []

    def rmdir(path, **more):
        if not refused:
            refused.append(path)
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        real(path, **more)

    monkeypatch.setattr(os, "rmdir", rmdir)
    remove_old_checkpoints(str(tmp_path), keep=1)
    assert refused
    write_checkpoint(str(tmp_path), small_checkpoint(3))
    remove_old_checkpoints(str(tmp_path), keep=1)
    assert os.listdir(tmp_path) == ["step_00000003"]


def test_a_run_folder_in_which_an_open_file_is_left(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / ".nfs0001").write_text("")
    RunDir(str(tmp_path / "run")).check()


def test_tokens_that_cannot_be_kept_are_the_data_of_those_that_can(tmp_path, monkeypatch):
    """The cache's folder is full or cannot be written today: a training is resumed all the same."""
    ids = np.arange(100_000) % 300
    for content in (ids, ids[:10], ids + 70_000):
        write_tokens(tmp_path / "tokens.bin", content)
        kept, in_memory = TokenStream([TokenFile(tmp_path / "tokens.bin")]), TokenStream.of(content)
        assert kept.fingerprint() == in_memory.fingerprint()
        assert TokenStream.of(content[::-1]).fingerprint() != in_memory.fingerprint()
    monkeypatch.setattr(text_cache, "SHARD", 1000)
    monkeypatch.setattr(text_cache, "BLOCK", 1 << 12)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("Tom saw 17 birds.\n" * 2000)
    kept, tokenizer = tokens_of_text([str(tmp_path / "text.txt")], None, 280, print)
    failing(monkeypatch, "makedirs", errno.EDQUOT)
    lines = []
    in_memory, _ = tokens_of_text([str(tmp_path / "text.txt")], tokenizer, 280, lines.append)
    assert len(kept) > 1 and "they stay in memory" in lines[-1]
    assert TokenStream(kept).fingerprint() == TokenStream(in_memory).fingerprint()


def test_tokens_of_rank_0_that_another_host_does_not_see_at_once(tmp_path, monkeypatch):
    path = str(tmp_path / "tokens.bin")
    write_tokens(path, range(1000))
    whole = pathlib.Path(path).read_bytes()
    states, real, seen = [None, b"", whole[:1500], whole], dataset._has_ids, []

    def later(path, n):
        state = states.pop(0)
        pathlib.Path(path).unlink(missing_ok=True)
        if state is not None:
            pathlib.Path(path).write_bytes(state)
        seen.append(real(path, n))
        return seen[-1]

    monkeypatch.setattr(dataset, "_has_ids", later)
    dataset.wait_until_visible([(path, 1000), ("the text", 5)])
    assert seen == [False, False, False, True]
    monkeypatch.setattr(dataset, "_has_ids", lambda path, n: False)
    monkeypatch.setattr(dataset, "_PATIENCE", 0.01)
    dataset.wait_until_visible([(path, 1000)] * 3)  # a copy of the text on a host of its own


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_token_files_that_cannot_be_read_for_a_moment(tmp_path, monkeypatch, number):
    """On NFS an open file becomes stale when another host replaces it: it is opened again, and compared."""
    write_tokens(tmp_path / "tokens.bin", np.arange(5000) % 300)
    file = TokenFile(tmp_path / "tokens.bin")
    expected = file.read(10, 20)
    for times in (1, 3):
        failed = failing(monkeypatch, "pread", number, times=times)
        assert np.array_equal(file.read(10, 20), expected) and len(failed) == times
        monkeypatch.undo()
    monkeypatch.setattr(file_systems, "_WAITS", (0.0,))
    write_tokens(tmp_path / "tokens.bin", np.arange(5000)[::-1] % 300)
    failing(monkeypatch, "pread", number, times=1)
    with pytest.raises(ChangedData, match="it has other content now"):
        file.read(10, 20)


def test_files_whose_numbers_do_not_last(tmp_path, monkeypatch):
    write_tokens(tmp_path / "tokens.bin", np.arange(5000) % 300)
    numbers = iter(range(10**6))
    real = token_files._state_of
    monkeypatch.setattr(token_files, "_state_of", lambda status: (0, next(numbers), *real(status)[2:]))
    file = TokenFile(tmp_path / "tokens.bin")
    file.read(0, 10)
    assert file.notices() == []


def test_a_clock_of_the_server_that_is_late_does_not_make_files_old(tmp_path, monkeypatch):
    """What another host is writing, where locks do not work, on a server whose clock is days behind ours."""
    monkeypatch.setattr(temporary, "_lock", lambda handle: None)
    path = tmp_path / ".w.bin.tinygrad2-node7-4711-0123abcd.tmp"
    path.write_text("half of it")
    past = time.time() - 10 * 86_400
    for touched in (path, tmp_path):
        os.utime(touched, (past, past))
    temporary.sweep(str(tmp_path))
    assert path.exists()
    os.utime(tmp_path)
    temporary.sweep(str(tmp_path))
    assert not path.exists()


# -- two trainings in one folder ---------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(owner, "_RENEW", 0.05)
    monkeypatch.setattr(owner, "_WATCH", 1.0)


def lock_that_is_always_obtained(monkeypatch, problem=""):
    monkeypatch.setattr(Lock, "of", lambda path: Lock(os.open(path, os.O_RDWR | os.O_CREAT), problem))


def on_another_host(monkeypatch, boot="another boot"):
    monkeypatch.setattr(owner, "_boot", lambda: boot)


@pytest.mark.parametrize("problem", ["", "No locks available"])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_second_training_is_noticed_without_locks(tmp_path, monkeypatch, quick, elsewhere, problem):
    lock_that_is_always_obtained(monkeypatch, problem)
    monkeypatch.setattr(os, "major", lambda device: 0)  # no disk of this machine
    first, second, lines = RunDir(str(tmp_path)), RunDir(str(tmp_path)), []
    first.open(lines.append)
    if elsewhere:
        on_another_host(monkeypatch)
    with pytest.raises(FolderInUse, match=rf"another training is running in this folder .process {os.getpid()} on"):
        second.open(lines.append)
    first.owner.check()
    first.close()
    second.open(lines.append)
    second.close()
    assert not (tmp_path / ".owner").exists()
    assert any("file locks do not work there" in line for line in lines) == bool(problem)


def test_the_note_of_a_process_that_has_ended_is_no_obstacle(tmp_path, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    note = {**owner._this_process(), "pid": child.pid, "started": owner.start_ticks(child.pid), "token": "x"}
    (tmp_path / ".owner").write_text(json.dumps(note))
    assert not owner._has_ended(note, None)
    child.kill()
    child.wait()
    assert owner._has_ended(note, None)
    begin = time.monotonic()
    run = RunDir(str(tmp_path))
    run.open(print)
    assert time.monotonic() - begin < owner._WATCH
    run.close()


def test_a_note_that_does_not_change_is_no_obstacle(tmp_path, monkeypatch, quick):
    """Of a host that is gone: after a while it is clear that nobody renews it."""
    note = {**owner._this_process(), "boot": "another", "host": "node7", "token": "x"}
    (tmp_path / ".owner").write_text(json.dumps(note))
    lines, run = [], RunDir(str(tmp_path))
    run.owner.take(False, lines.append)
    assert len(lines) == 1 and f"was used last by process {os.getpid()} on node7" in lines[0]
    run.owner.release()


def test_the_first_training_ends_if_a_second_one_has_taken_its_folder(tmp_path, monkeypatch, quick):
    lock_that_is_always_obtained(monkeypatch)
    first = RunDir(str(tmp_path))
    first.open(print)
    first._parts = {}
    other = {**owner._this_process(), "host": "node7", "token": "x"}
    (tmp_path / ".owner").write_text(json.dumps(other))
    for _ in range(200):
        try:
            first.restore(print)
        except FolderInUse as error:
            assert "another training has begun in this folder (process" in str(error) and "on node7" in str(error)
            break
        time.sleep(0.05)
    else:
        raise AssertionError("not noticed")
    first.close()
    assert json.loads((tmp_path / ".owner").read_bytes()) == other  # not ours to remove


def test_a_lock_file_that_cannot_be_looked_at_is_not_a_folder_that_was_removed(tmp_path, monkeypatch):
    run, lines = RunDir(str(tmp_path)), []
    run.open(print)
    run._parts = {}
    failing(monkeypatch, "stat", errno.ESTALE, only=".lock")
    assert run.restore(lines.append) is False and not lines
    monkeypatch.undo()
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)  # other numbers each time
    assert run.restore(lines.append) is False and not lines
    run.close()


def test_garbage_and_empty_notes(tmp_path, monkeypatch):
    for content in (b"", b"{", b"\xff" * 900, b"[1]", b'{"pid": "x"}', b"null"):
        (tmp_path / ".owner").write_bytes(content)
        assert Owner(str(tmp_path)).read() is None


# -- trainings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    built = odd_files.build(str(tmp_path_factory.mktemp("library")))
    return built or pytest.skip("needs Linux and gcc")


def test_trainings_on_odd_file_systems(library):
    ended = odd_files.start(library, "9", "7")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("n", [pytest.param("30", marks=pytest.mark.slow), pytest.param("150", marks=pytest.mark.long)])
def test_more_trainings_on_odd_file_systems(library, n):
    ended = odd_files.start(library, n, "8")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def odd(library, folder, rules, *flags, **more):
    environment = {**os.environ, "LD_PRELOAD": library, "ODD_PATH": str(folder), "ODD_RULES": rules}
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *SMALL, *flags]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **more)  # fmt: skip


@pytest.mark.slow
def test_two_trainings_where_every_process_gets_the_lock(library, tmp_path):
    first = odd(library, tmp_path, "flock:ok:0:-1 stat:net:0:-1", "--steps", "1000000", "--log-every", "1")
    try:
        while "step " not in first.stdout.readline():
            assert first.poll() is None
        second = odd(library, tmp_path, "flock:ok:0:-1 stat:net:0:-1")
        out, err = second.communicate(timeout=300)
        assert second.returncode == 2 and f"another training is running in this folder (process {first.pid} on" in err
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=300)
        assert first.returncode == 143, err
    finally:
        first.kill()
