"""What killed writers leave is removed by the next one, and nothing else is."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from test_train import ROOT

from tinygrad2.io.files import atomic_write, write_json
from tinygrad2.io.outputs import check_output
from tinygrad2.system import temporary
from tinygrad2.system.temporary import create_file, replacing, sweep, temporary_folder

DAY = 86_400
WRITERS = {  # each is killed in the middle of its writing
    "atomic_write": """
        from tinygrad2.io.files import atomic_write
        with atomic_write("w.bin") as file:
            file.write(b"half")
            die()
    """,
    "a piped text": """
        import io, os
        from tinygrad2.datasets import piped
        os.environ["XDG_CACHE_HOME"] = os.getcwd()
        piped._folder = os.getcwd
        class Pipe(io.BytesIO):
            def read(self, n):
                return b"text" if not self.tell() and self.seek(1) else die()
        piped._spool(Pipe(b"x"), "-")
    """,
    "tokens": """
        from tinygrad2.datasets import token_files
        from tinygrad2.io import files
        import os
        os.replace = lambda *_: die()
        token_files.write_tokens("tokens.bin", __import__("numpy").arange(9))
    """,
    "a compiled kernel": """
        from tinygrad2.system.temporary import replacing
        with replacing(__import__("os").path.abspath("kernel.nbc")) as file:
            die()
    """,
    "a folder": """
        import os
        from tinygrad2.system.temporary import temporary_folder
        with temporary_folder(os.getcwd(), "verify") as folder:
            open(os.path.join(folder, "inside"), "w").close()
            die()
    """,
}


def run(code, folder):
    code = "import os, signal\ndie = lambda: os.kill(os.getpid(), signal.SIGKILL)\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("name", WRITERS)
def test_what_a_killed_writer_leaves_is_removed_by_the_next_one(tmp_path, name):
    assert run(WRITERS[name], tmp_path).returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".") and left.endswith(".tmp")
    write_json(str(tmp_path / "other.json"), {})
    assert os.listdir(tmp_path) == ["other.json"]


def test_checking_an_output_sweeps_its_folder(tmp_path):
    handle, path = create_file(str(tmp_path), "w.bin")
    check_output("--out", str(tmp_path / "w.bin"), "a file", lambda path: True)
    assert os.path.exists(path)  # is being written
    os.close(handle)
    check_output("--out", str(tmp_path / "w.bin"), "a file", lambda path: True)
    assert os.listdir(tmp_path) == []


def test_a_file_of_a_living_writer_stays_however_old_it_is(tmp_path):
    handle, path = create_file(str(tmp_path), "w.bin")
    os.utime(path, (0, 0))
    sweep(tmp_path)
    assert os.listdir(tmp_path) == [os.path.basename(path)]
    os.close(handle)
    with temporary_folder(str(tmp_path), "verify") as folder:
        os.utime(folder, (0, 0))
        sweep(tmp_path)
        assert os.listdir(tmp_path) == [os.path.basename(folder)]
    assert os.listdir(tmp_path) == []


def test_files_are_made_where_every_lock_is_held_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary, "try_lock", lambda handle: BlockingIOError())
    write_json(str(tmp_path / "a.json"), {})
    with temporary_folder(str(tmp_path), "b") as folder:
        assert os.path.isdir(folder)
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_writer_whose_file_was_swept_away_before_it_was_locked_takes_another(tmp_path, monkeypatch):
    lock, removed = temporary._lock, []

    def late(handle):
        if not removed:
            removed.append(os.listdir(tmp_path)[0])
            os.remove(tmp_path / removed[0])
        return lock(handle)

    monkeypatch.setattr(temporary, "_lock", late)
    with atomic_write(tmp_path / "w.bin") as file:
        file.write(b"whole")
    assert (tmp_path / "w.bin").read_bytes() == b"whole" and os.listdir(tmp_path) == ["w.bin"]


def leave(folder, host, pid, age=0):
    path = folder / f".w.bin.tinygrad2-{host}-{pid}-0123abcd.tmp"
    path.write_bytes(b"half")
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))
    return path


def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "host, locks, alive, age, stays",
    [
        ("here", True, True, 0, False),  # the lock is free: another process has the number now
        ("here", None, True, 0, True),  # no locks: it may be the writer
        ("here", None, False, 0, False),
        ("here", None, True, 2 * DAY, False),
        ("there", True, False, 0, True),  # a lock of another host may not be seen here
        ("there", None, False, 0, True),
        ("there", True, False, 2 * DAY, False),
        ("there", False, False, 2 * DAY, True),  # locked
    ],
)
def test_owner_and_age_decide_where_the_lock_does_not(tmp_path, monkeypatch, host, locks, alive, age, stays):
    host = temporary._host() if host == "here" else "another.host"
    path = leave(tmp_path, host, os.getpid() if alive else ended_pid(), age)
    monkeypatch.setattr(temporary, "_lock", lambda handle: locks)
    sweep(tmp_path)
    assert path.exists() == stays


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no users")
def test_files_of_other_users_and_other_programs_stay(tmp_path, monkeypatch):
    others = [".w.bin.abcd1234.tmp", "w.tmp", ".nfs0001", "tinygrad2.tmp", ".x.tinygrad2-h-1-0123abcd.tmp.bak"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, 0))
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / ".l.tinygrad2-h-1-0123abcd.tmp").symlink_to(target)
    os.mkfifo(tmp_path / ".p.tinygrad2-h-1-0123abcd.tmp")
    before = sorted(os.listdir(tmp_path))
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before
    path = leave(tmp_path, temporary._host(), ended_pid())
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(path).st_uid + 1)
    sweep(tmp_path)
    assert path.exists()
    monkeypatch.undo()
    sweep(tmp_path)
    assert not path.exists()


def test_names_of_any_length_and_bytes(tmp_path):
    for name in ("é" * 127, "x" * 255, os.fsdecode(b"\xff\xfe")):
        with replacing(str(tmp_path / name)) as file:
            file.write(b"1")
        assert (tmp_path / name).read_bytes() == b"1"
    assert len(os.listdir(tmp_path)) == 3
    sweep(tmp_path / "nowhere")
    sweep(pathlib.Path(os.devnull))
