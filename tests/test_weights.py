"""trained_weights.bin: exact, atomic, and refused if it is damaged."""

import json
import os
import stat

import numpy as np
import pytest

from tinygrad2.errors import UserError
from tinygrad2.io.files import atomic_write, check_writable
from tinygrad2.io.weights import load_weights, save_weights

CONFIG, TRAINING = {"n_layer": 1}, {"step": 3, "loss": 0.1}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (7, 4), "h.0.ln_1.bias": (4,), "empty": (0, 3), "number": ()}
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


@pytest.fixture
def saved(tmp_path, tensors):
    path = tmp_path / "weights.bin"
    save_weights(path, tensors, CONFIG, '{"merges": "é"}', TRAINING)
    return path


def rewritten(path, change_header=lambda header: None, data=None):
    """The file again with its header changed (the checksum is not mended)."""
    raw = path.read_bytes()
    N = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + N])
    header = change_header(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (raw[8 + N :] if data is None else data))
    return path


def refused(path):
    """The one line with which the file is refused."""
    with pytest.raises(UserError) as error:
        load_weights(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def test_what_was_saved_is_loaded_exactly(saved, tensors):
    weights = load_weights(saved)
    assert weights.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        assert weights.tensors[name].dtype == np.float32 and np.array_equal(weights.tensors[name], array)
    assert (weights.config, weights.tokenizer, weights.training) == (CONFIG, '{"merges": "é"}', TRAINING)


def test_a_safetensors_reader_opens_it(saved, tensors):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    loaded = safetensors.load_file(saved)
    assert loaded.keys() == tensors.keys()
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)


def test_the_same_content_gives_the_same_bytes(saved, tensors, tmp_path):
    again = tmp_path / "again.bin"
    save_weights(again, dict(reversed(tensors.items())), CONFIG, '{"merges": "é"}', TRAINING)
    assert saved.read_bytes() == again.read_bytes()


def test_arrays_in_any_memory_layout_are_saved_by_value(tmp_path):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_weights(tmp_path / "w", {"t": a.T, "r": np.broadcast_to(a[:1], (4, 3))}, {}, "", {})
    loaded = load_weights(tmp_path / "w").tensors
    assert np.array_equal(loaded["t"], a.T) and np.array_equal(loaded["r"], np.broadcast_to(a[:1], (4, 3)))


def test_only_float32_is_saved(tmp_path):
    with pytest.raises(TypeError, match="x is float64"):
        save_weights(tmp_path / "w", {"x": np.zeros(3)}, {}, "", {})
    assert os.listdir(tmp_path) == []


# -- damage ----------------------------------------------------------------------------------------------------------


def test_every_truncation_is_refused(saved):
    raw = saved.read_bytes()
    for length in [*range(0, 64), *range(64, len(raw), 37), len(raw) - 1]:
        saved.write_bytes(raw[:length])
        refused(saved)


def test_every_flipped_bit_is_refused_or_changes_nothing(saved, tensors):
    """A flip inside white space or an escape may leave the content the same; other content is never accepted."""
    raw = saved.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(len(raw) * 8)][:: max(1, len(raw) * 8 // 1500)] + list(rng.integers(0, len(raw) * 8, 300)):
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << (place % 8)
        saved.write_bytes(damaged)
        try:
            weights = load_weights(saved)
        except UserError as error:
            assert str(saved) in str(error) and "\n" not in str(error)
        else:
            assert (weights.config, weights.tokenizer, weights.training) == (CONFIG, '{"merges": "é"}', TRAINING)
            assert all(np.array_equal(weights.tensors[name], tensors[name]) for name in tensors)


def set_in(header, name, **fields):
    header[name].update(fields)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda h: b"not json", "not valid JSON"),
        (lambda h: b"[" * 100_000, "not valid JSON"),
        (lambda h: b'{"a": 1, "a": 2}', "not valid JSON"),
        (lambda h: b"\xff\xfe", "not valid JSON"),
        (lambda h: b"[1]", "not a JSON object"),
        (lambda h: h.pop("__metadata__") and None, "no field 'tinygrad2'"),
        (lambda h: set_in(h, "__metadata__", tinygrad2="99"), "version '99'"),
        (lambda h: set_in(h, "__metadata__", config=5), "'config' is not a string"),
        (lambda h: h["__metadata__"].pop("checksum") and None, "'checksum' is missing"),
        (lambda h: set_in(h, "__metadata__", checksum="crc32:00000000"), "checksum does not match"),
        (lambda h: set_in(h, "__metadata__", config='{"n_layer": 2}'), "checksum does not match"),
        (lambda h: set_in(h, "__metadata__", tokenizer="{}"), "checksum does not match"),
        (lambda h: set_in(h, "wte.weight", dtype="F16"), "dtype 'F16'"),
        (lambda h: set_in(h, "wte.weight", shape=[-7, -4]), "shape [-7, -4]"),
        (lambda h: set_in(h, "wte.weight", shape=[7.0, 4]), "shape [7.0, 4]"),
        (lambda h: set_in(h, "wte.weight", shape="ab"), "shape 'ab'"),
        (lambda h: set_in(h, "wte.weight", shape=[10**30, 10**30]), "has shape [1000"),
        (lambda h: set_in(h, "wte.weight", shape=[4, 4]), "claims bytes"),
        (lambda h: set_in(h, "wte.weight", data_offsets=[0, 10**18]), "claims bytes"),
        (lambda h: set_in(h, "wte.weight", data_offsets=[1, 2, 3]), "data_offsets [1, 2, 3]"),
        (lambda h: set_in(h, "wte.weight", data_offsets=None), "data_offsets None"),
        (lambda h: h.update({"wte.weight": "gone"}), "data_offsets None"),
        (lambda h: h.pop("wte.weight") and None, "bytes after the last tensor"),
    ],
)
def test_headers_that_lie_are_refused_with_the_field(saved, change, says):
    assert says in refused(rewritten(saved, change))


def test_a_config_that_is_not_an_object_is_refused(tmp_path):
    save_weights(tmp_path / "w", {}, [1, 2], "", {})
    assert "'config' is not a JSON object" in refused(tmp_path / "w")


def test_bytes_after_the_end_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert "1 bytes after the last tensor" in refused(saved)


def test_an_absurd_header_length_takes_no_memory(saved):
    raw = saved.read_bytes()
    saved.write_bytes((2**63).to_bytes(8, "little") + raw[8:])
    assert "header length 9,223,372,036,854,775,808 does not fit" in refused(saved)


def test_missing_files_folders_and_foreign_files_are_refused(tmp_path):
    assert "no such file; train first" in refused(tmp_path / "nowhere.bin")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    assert "header length" in refused(tmp_path / "picture")
    of_others = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "other").write_bytes(len(of_others).to_bytes(8, "little") + of_others + bytes(4))
    assert "safetensors file of another program" in refused(tmp_path / "other")


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_failing_disk_leaves_the_old_file_and_no_litter(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*old file, if any, is untouched"):
        save_weights(saved, {"x": np.zeros(3, np.float32)}, {}, "", {})
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["weights.bin"]


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(saved):
    before = saved.read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_write(saved) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["weights.bin"]


def test_the_new_file_has_ordinary_permissions(saved):
    mask = os.umask(0)
    os.umask(mask)
    assert saved.stat().st_mode & 0o777 == 0o666 & ~mask


def test_where_nothing_can_be_written_is_reported_before_the_work(tmp_path):
    check_writable(tmp_path / "fine.bin")
    with pytest.raises(UserError, match="the folder .* does not exist"):
        check_writable(tmp_path / "no" / "w.bin")
    with pytest.raises(UserError, match="this is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="cannot write into"), atomic_write(tmp_path / "no" / "w.bin"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_not_a_regular_file_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (check_writable, lambda path: atomic_write(path).__enter__()):
        with pytest.raises(UserError, match="pipe: this is a device, pipe or socket; give the name of a regular"):
            write(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights on Windows")
def test_a_symbolic_link_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, real = tmp_path / "w.bin", tmp_path / "elsewhere" / "real.bin"
    link.symlink_to(real)
    check_writable(link)
    for content in (b"new", b"newer"):
        with atomic_write(link) as file:
            file.write(content)
        assert link.is_symlink() and real.read_bytes() == content
