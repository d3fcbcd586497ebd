"""Files with one thing changed and right checksums, other things in place of files: refused in one line, or harmless.
And files under odd names.

The lists of all files, and many more tries: forged_readers.py, forged_files.py, odd_kinds.py and odd_paths.py.
"""

import json
import os
import random
import shutil

import forged_files
import forged_readers
import numpy as np
import odd_kinds
import odd_paths
import pytest
import scarce_memory
from forged import enter, sign_container, sign_record
from inputs import READS, SHAPE, STEP, mains, make_inputs, quick

from tinygrad2.errors import UserError
from tinygrad2.io import pipes
from tinygrad2.io.open_file import open_file, read_bounded
from tinygrad2.system import gemm_peak
from tinygrad2.training.checkpoint import read_checkpoint
from tinygrad2.training.run_state import RunState

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names, and no fork, here")
RUN = mains()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs") / "base"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        make_inputs(folder)
    return folder


def hurry(patch):
    """quick(), taken back afterwards."""
    patch.setattr(os, "fsync", os.fsync)
    patch.setattr(gemm_peak, "_fastest_product", gemm_peak._fastest_product)
    quick()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(pipes, "NO_WRITER", 0.3)
    hurry(monkeypatch)


@pytest.mark.parametrize("n", [pytest.param(2, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("i", range(0, len(forged_files.targets()), 3))
def test_forged_files_are_refused_or_harmless(base, tmp_path, i, n):
    rng = random.Random(i)
    for read, path in forged_files.targets()[i : i + 3]:
        for _ in range(n):
            what, outcome, problem = forged_files.attempt(read, path, base, tmp_path / "try", RUN, rng)
            assert not problem, (str(read), path, what, outcome)


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "terabyte", "socket", "folder"])
@pytest.mark.parametrize("read", READS[:: len(READS) // 6], ids=str)
def test_other_things_in_place_of_files_are_refused_or_harmless(base, tmp_path, read, kind):
    for path in read.files:
        outcome, problem = odd_kinds.attempt(read, path, kind, base, tmp_path / "try", RUN)
        assert not problem, (path, outcome)


@pytest.mark.parametrize("n", [
    20, pytest.param(250, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.long),
])  # fmt: skip
@pytest.mark.parametrize("reader", forged_readers.READERS)
def test_readers_refuse_forged_files_in_a_line_or_read_them(base, monkeypatch, reader, n):
    monkeypatch.chdir(base)
    rng = random.Random(f"{reader} {n}")
    for _ in range(n):
        path, what, _, problem = forged_readers.attempt(reader, rng)
        assert not problem, (path, what, problem)


@pytest.mark.parametrize("share", [
    0.02, pytest.param(0.2, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long),
])  # fmt: skip
@pytest.mark.parametrize("reader", forged_readers.READERS)
def test_long_values_and_control_characters_are_cut_and_escaped(base, monkeypatch, reader, share):
    monkeypatch.chdir(base)
    assert not list(forged_readers.attempt_long_values(reader, random.Random(reader), share))


@pytest.mark.parametrize("n", [pytest.param(12, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)])
def test_odd_paths_are_used_like_others_or_refused_in_a_line(base, tmp_path, n):
    places, kinds = list(odd_paths.places(base)), [*odd_paths.spellings(), *odd_paths.REFUSED]
    rng, expected = random.Random(n), {}
    for _ in range(n):
        place, what = rng.choice(places), rng.choice(kinds)
        words, outcome, problem = odd_paths.fault_of(*place, what, base, tmp_path / "try", RUN, expected)
        assert not problem, (words, what, outcome)


@pytest.mark.parametrize("n", [8, pytest.param(300, marks=pytest.mark.long)])
def test_programs_to_which_memory_is_refused_end_in_a_line(base, tmp_path, n):
    rng, requests = random.Random(n), {}
    for _ in range(n):
        what, outcome, problem = scarce_memory.draw(rng, requests, base, tmp_path / "try", RUN)
        assert not problem, (what, outcome)


def test_a_dump_without_its_finding_is_refused(base, monkeypatch):
    monkeypatch.chdir(base)
    before = (base / "dump" / "dump.json").read_text()
    for field, value in (("size", "3"), ("inf", []), ("nan", None), ("layer", 1), ("phase", None), ("op", 2)):
        dump = json.loads(before)
        dump["finding"][field] = value
        (base / "dump" / "dump.json").write_text(json.dumps(dump))
        with pytest.raises(UserError, match=f"field '{field}' of 'finding'"):
            forged_readers.READERS["dump"][1]()
    (base / "dump" / "dump.json").write_text(before)


def test_a_cache_without_shards_is_made_again(base, tmp_path, monkeypatch):
    shutil.copytree(base / "data", tmp_path / "data", ignore=shutil.ignore_patterns(".tinygrad2"))
    monkeypatch.chdir(tmp_path)
    forged_readers.READERS["cached tokens"][1]()                  # base may have other caches, of other tests
    (path,) = (tmp_path / "data" / ".tinygrad2").glob("*/progress.json")
    before = json.loads(path.read_text())
    del before["checksum"]
    for shards in ([], [before["shards"][0] | {"name": "a\0"}]):
        path.write_bytes(sign_record(json.dumps(before | {"shards": shards}).encode()))
        forged_readers.READERS["cached tokens"][1]()
        assert json.loads(path.read_text())["shards"] == before["shards"]


def changed_state(base, tmp_path, **fields):
    """The message about a checkpoint whose state.json has other values, and all checksums right."""
    folder = tmp_path / "c"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base / STEP, folder)
    state = json.loads((folder / "state.json").read_text()) | fields
    state = {name: value for name, value in state.items() if value != "absent"}
    (folder / "state.json").write_text(json.dumps(state))
    enter(folder / "manifest.json", "state.json", (folder / "state.json").read_bytes())
    with pytest.raises(UserError) as error:
        RunState.from_checkpoint(read_checkpoint(folder))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def test_a_state_that_no_training_writes_is_refused(base, tmp_path):
    for position in ([-1, 0], [0, 1.5], ["0", 0], [0], [0, 0, 0], None, [0, 2**70], [True, 0], "absent"):
        assert "field 'position'" in changed_state(base, tmp_path, position=position)
    for windows in ({"loss": 1}, {"loss": [float("nan")]}, {"loss": ["1"]}, {"loss": [1]}, [], None):
        assert "field 'windows'" in changed_state(base, tmp_path, windows=windows)
    for preset in ("dem", 1, None, [], "x" * 100_000, "absent"):
        assert "field 'preset'" in changed_state(base, tmp_path, preset=preset)
    for best in (-1.0, "1", float("nan"), True, [1.0]):
        assert "field 'best'" in changed_state(base, tmp_path, best=best)
    state = json.loads((base / STEP / "state.json").read_text())
    model = state["model"] | {"n_layer": 2}
    assert "another model than that of weights.bin" in changed_state(base, tmp_path, model=model)
    for name, value in (("order", "shuffle"), ("steps", None), ("lr", None), ("final_lr", None), ("seed", 1.5),
                        ("nothing", 1), ("bias", "x" * 100_000)):  # fmt: skip
        assert name in changed_state(base, tmp_path, training=state["training"] | {name: value})
    assert "has made 2 steps ('t')" in changed_state(base, tmp_path, step=1)


def set_first_value(path, tensor, value):
    """Change the first value of a tensor in a container, and set its checksum right."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + n]), bytearray(raw[8 + n :])
    at = header[tensor]["data_offsets"][0]
    data[at : at + 4] = np.float32(value).tobytes()
    path.write_bytes(sign_container(raw[8 : 8 + n], bytes(data)))


def resume_with(base, tmp_path, file, tensor, value):
    """Outcome of a resumed training whose checkpoint has another first value in a tensor, and right checksums."""
    shutil.copytree(base, tmp_path / "try", symlinks=True)
    path = tmp_path / "try" / STEP / file
    set_first_value(path, tensor, value)
    enter(path.parent / "manifest.json", file, path.read_bytes())
    read = next(read for read in READS if "--resume" in read.words)
    return forged_files.run_forked(RUN[read.program], read.words, tmp_path / "try", seconds=120)


@pytest.mark.parametrize("name, value", [("v", -1.0), ("v", np.nan), ("m", np.nan), ("m", np.inf)])
def test_moments_that_no_optimizer_writes_are_refused(base, tmp_path, name, value):
    outcome = resume_with(base, tmp_path, "optimizer.bin", f"{name}.wte.weight", value)
    assert outcome.code == 2 and f"{name}.wte.weight has values that no optimizer writes" in outcome.err


@pytest.mark.parametrize("file, tensor, value", [
    ("optimizer.bin", "m.wte.weight", 1e38), ("optimizer.bin", "m.ln_f.bias", -3e38),
])  # fmt: skip
def test_a_last_step_that_spoils_the_weights_is_an_error(base, tmp_path, file, tensor, value):
    outcome = resume_with(base, tmp_path, file, tensor, value)
    assert outcome.code == 2 and "new.bin" not in outcome.changed
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert "run/checkpoints/step_00000002" in outcome.err or "checkpoints before it are kept" in outcome.err
    assert not (tmp_path / "try" / "run" / "checkpoints" / "step_00000003").exists()


@pytest.mark.parametrize("value", [1e30, -1e20, np.inf, np.nan])
def test_weights_that_cannot_be_trained_are_refused_when_they_are_read(base, tmp_path, value):
    """The square of 1e20 is more than float32 has: so are norms, and the first step makes all weights NaN."""
    outcome = resume_with(base, tmp_path, "weights.bin", "wpe.weight", value)
    says = "step_00000002: the weights are infinite, not numbers, or too large to be trained: first wpe.weight; remove"
    assert outcome.code == 2 and says in outcome.err and "steps" not in outcome.out.splitlines()[-1]
    path = tmp_path / "w.bin"
    shutil.copy(base / STEP / "weights.bin", path)
    set_first_value(path, "wpe.weight", value)
    words = (*SHAPE[-2:], "--init-from", str(path), "--data", str(base / "text.txt"), "--steps", "2")
    outcome = forged_files.run_forked(RUN["train_gpt2.py"], words, tmp_path / "try", seconds=120)
    assert outcome.code == 2 and "w.bin: the weights are infinite" in outcome.err, outcome
    assert len(outcome.err.strip().splitlines()) == 1


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("pipe", tmp_path / "link")
    for mode in ("rb", "ab", "r+b", "wb"):
        for name, what in (("pipe", "a pipe"), ("link", "a pipe"), ("", "a folder")):
            with pytest.raises(UserError, match=f"is {what}; give the name of a regular file"):
                open_file(tmp_path / name, mode)
    for path, what in (("/dev/zero", "a device"), ("/proc/self/mem", "made by the system")):
        with pytest.raises(UserError, match=f"is {what}"):
            open_file(path)
    for name in ("a\0b", "a\ud800"):
        with pytest.raises(UserError, match="is not the name of a file"):
            open_file(tmp_path / name)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="is not complete: 1,099,511,627,776 of its 1,099,511,627,776 bytes"):
        open_file(tmp_path / "large")
    (tmp_path / "small").write_bytes(b"12345")
    with open_file(tmp_path / "small") as file, pytest.raises(UserError, match="has more than 0 MB"):
        read_bounded(file, "small", 4)
    with open_file(tmp_path / "small") as file:
        assert read_bounded(file, "small", 5) == b"12345"


def test_a_pipe_is_waited_for_with_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pipes.open_pipe(path) as pipe, pytest.raises(UserError, match="nobody has opened for writing"):
        pipe.read()
    monkeypatch.setattr(pipes, "SILENT", 0.2)
    with pipes.open_pipe(path) as pipe:
        writer = os.open(path, os.O_WRONLY)
        with pytest.raises(UserError, match="nothing has come through this pipe"):
            pipe.read(1)
        os.write(writer, b"abc")
        assert pipe.read(3) == b"abc"
        os.close(writer)
        assert pipe.read() == b""
