"""data/gpt2/prepare.py and data/hellaswag/prepare.py: the pinned files or none, whatever server and network do.

The real files are large: the script's tables are replaced by those of a very small model, except in the
tests with the real tokenizer.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
import sys

import pytest
from test_prepare import Server, patience, prepare

from data import download
from tinygrad2.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
NOWHERE = "http://127.0.0.1:9"


def load(name):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_prepare", ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def safetensors(shapes):
    """A file of zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


CONFIG = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 500, "n_positions": 4}
FILES = {
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version: 0.2\nt h\n",
    "tokenizer.json": b'{"version": "1.0"}',
    "config.json": json.dumps(CONFIG).encode(),
    "generation_config.json": b"{}",
    "model.safetensors": safetensors({"wte.weight": [500, 8], "h.0.attn.c_proj.weight": [8, 8]}),
}
SMALL, REST = list(FILES)[:3], list(FILES)[3:]


def known(content):
    return len(content), hashlib.sha256(content).hexdigest()


class Hub:
    """The script with the tables of a small model, and a server that has its files."""

    def __init__(self, monkeypatch, folder):
        self.script, self.folder, self.monkeypatch = load("gpt2"), folder, monkeypatch
        self.server = Server({})
        monkeypatch.setattr(download, "_pause", lambda attempt: 0)
        monkeypatch.setattr(self.script, "VOCAB", 500)
        monkeypatch.setattr(self.script, "CONTEXT", 4)
        monkeypatch.setitem(self.script.SIZES, "gpt2", (1, 2, 8, "124M"))
        monkeypatch.setitem(self.script.SIZES, "gpt2-large", (1, 2, 8, "774M"))
        monkeypatch.setattr(self.script, "TOKENIZER", {name: known(FILES[name]) for name in SMALL})
        self.pin(FILES)
        self.put(FILES)

    def pin(self, files):
        self.monkeypatch.setitem(self.script.WEIGHTS, "gpt2", {name: known(files[name]) for name in REST})

    def place(self, name, model="gpt2"):
        return f"/openai-community/{model}/resolve/{self.script.REVISIONS[model]}/{name}"

    def put(self, files, model="gpt2"):
        self.server.files |= {self.place(name, model): content for name, content in files.items()}

    def run(self, *flags, mirror=None):
        flags = ["--out", str(self.folder), "--mirror", mirror or self.server.url, *flags]
        self.monkeypatch.setattr(sys, "argv", ["prepare.py", *flags])
        self.server.asked.clear()
        return self.script.main()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub(monkeypatch, tmp_path / "out")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_everything_is_fetched_checked_and_not_fetched_again(hub, capsys):
    assert hub.run() == 0
    assert content(hub.folder) == FILES
    assert [path for path, _ in hub.server.asked] == [hub.place(name) for name in FILES]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("needs ")
    assert f"checked {hub.folder}: 1 blocks, 2 heads, width 8, 2 tensors" in said
    assert said[-4:] == [
        f"now: python inference.py --weights {hub.folder} --prompt ...",
        f"     python train_gpt2.py --init-from {hub.folder} --data my.txt",
        f"     python -m tinygrad2 convert {hub.folder} gpt2_124M.bin --to llmc",
        f"     python -m tinygrad2 eval hellaswag --weights {hub.folder}",
    ]
    assert hub.run() == 0
    assert hub.server.asked == [] and content(hub.folder) == FILES


def test_the_tokenizer_alone(hub):
    assert hub.run("--tokenizer-only", "--model", "gpt2-xl") == 0
    assert set(content(hub.folder)) == {"vocab.json", "merges.txt"}


def test_another_content_is_refused_and_does_not_get_the_name(hub):
    hub.put({"model.safetensors": b"\0" * len(FILES["model.safetensors"])})
    with pytest.raises(UserError, match="another file .*SHA-256.*; it has been removed, run this again") as error:
        hub.run()
    assert "\n" not in str(error.value)
    assert set(content(hub.folder)) == set(FILES) - {"model.safetensors"}
    hub.put(FILES)
    assert hub.run() == 0
    assert [path for path, _ in hub.server.asked] == [hub.place("model.safetensors")]


def test_a_download_that_breaks_goes_on_even_in_another_run(hub):
    whole = [1 << 30] * 5
    hub.server.cut_after = [*whole, 1000]
    assert hub.run() == 0
    assert [wanted for _, wanted in hub.server.asked] == [None] * 6 + ["bytes=1000-"]
    assert content(hub.folder) == FILES
    (hub.folder / "model.safetensors").unlink()
    hub.server.cut_after = [100] * 5
    with pytest.raises(UserError, match="run this again to resume"):
        hub.run()
    assert hub.run() == 0
    assert hub.server.asked == [(hub.place("model.safetensors"), "bytes=500-")]
    assert content(hub.folder) == FILES


def test_without_a_network_it_says_what_to_put_where_and_takes_it(hub, capsys):
    with pytest.raises(UserError, match="no connection"):
        hub.run(mirror=NOWHERE)
    said = capsys.readouterr().out.splitlines()
    for name in FILES:
        at = said.index(f"          https://huggingface.co{hub.place(name)}")
        assert said[at + 1] == f"              -> {hub.folder / name}"
    for name, data in FILES.items():
        (hub.folder / name).write_bytes(data)
    assert hub.run(mirror=NOWHERE) == 0
    assert "missing" not in capsys.readouterr().out


def test_a_wrong_file_put_there_by_hand_is_refused_and_kept(hub):
    hub.run()
    mine = hub.folder / "model.safetensors"
    mine.write_bytes(b"my own weights")
    with pytest.raises(UserError, match="model.safetensors: is not the expected file .*; move it away"):
        hub.run()
    assert mine.read_bytes() == b"my own weights"
    mine.unlink()
    mine.mkdir()
    with pytest.raises(UserError, match="model.safetensors: .*; move it away"):
        hub.run()


@pytest.mark.parametrize("name, data, says", [
    ("config.json", json.dumps(CONFIG | {"n_layer": 3}).encode(), "n_layer is 3 instead of 1; move it away"),
    ("config.json", b"[]", "model_type is None instead of 'gpt2'"),
    ("config.json", b"<html>", "is a web page"),
    ("generation_config.json", b"<html>", "is a web page"),
    ("model.safetensors", b"<html>", "no weights of gpt2 \\(only 6 bytes long\\)"),
    ("model.safetensors", (1 << 40).to_bytes(8, "little") * 9, "no weights of gpt2 \\(header length"),
    ("model.safetensors", FILES["model.safetensors"][:-1], "no weights of gpt2"),
    ("model.safetensors", safetensors({"wte.weight": [500, 8]}), "there is no h.0.attn.c_proj.weight of \\[8, 8\\]"),
    ("model.safetensors", safetensors({"wte.weight": [50, 8]}), "there is no wte.weight of \\[500, 8\\]"),
])  # fmt: skip
def test_what_is_fetched_is_checked(hub, name, data, says):
    files = FILES | {name: data}
    hub.pin(files)
    hub.put(files)
    with pytest.raises(UserError, match=says) as error:
        hub.run()
    assert "\n" not in str(error.value)


def large(hub, sha256):
    """A model whose hash is not pinned; the hub lists `sha256` for it."""
    hub.put({name: FILES[name] for name in REST}, "gpt2-large")
    entry = {"type": "file", "path": "model.safetensors", "size": len(FILES["model.safetensors"])}
    place = f"/api/models/openai-community/gpt2-large/tree/{hub.script.REVISIONS['gpt2-large']}"
    hub.server.files[place] = json.dumps([entry | ({"lfs": {"oid": sha256}} if sha256 else {})]).encode()


def test_a_hash_that_is_not_pinned_comes_from_the_hub(hub):
    large(hub, known(FILES["model.safetensors"])[1])
    assert hub.run("--model", "gpt2-large") == 0
    assert content(hub.folder) == FILES
    large(hub, "0" * 64)
    with pytest.raises(UserError, match="not the expected file"):
        hub.run("--model", "gpt2-large")
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the download is another file"):
        hub.run("--model", "gpt2-large")
    large(hub, None)
    with pytest.raises(UserError, match="the hub does not list the SHA-256"):
        hub.run("--model", "gpt2-large")


def test_a_hash_that_cannot_be_known_is_said_so(hub, capsys):
    with pytest.raises(UserError, match="cannot be listed"):
        hub.run("--model", "gpt2-large", mirror=NOWHERE)
    assert hub.place("model.safetensors", "gpt2-large") in capsys.readouterr().out
    for name, data in FILES.items():
        (hub.folder / name).write_bytes(data)
    assert hub.run("--model", "gpt2-large", mirror=NOWHERE) == 0
    assert "is not known, and only its shapes are checked" in capsys.readouterr().out
    (hub.folder / "model.safetensors").write_bytes(FILES["model.safetensors"][:-1])
    with pytest.raises(UserError, match="no weights of gpt2-large"):
        hub.run("--model", "gpt2-large", mirror=NOWHERE)


@pytest.mark.skipif(not SHARED.is_dir(), reason="GPT-2's encoder.json and vocab.bpe are not in ../shared/data")
def test_the_pinned_tokenizer_is_openai_s():
    tokenizer = load("gpt2").TOKENIZER
    assert tokenizer["vocab.json"] == known((SHARED / "encoder.json").read_bytes())
    assert tokenizer["merges.txt"] == known((SHARED / "vocab.bpe").read_bytes())
    assert tokenizer["merges.txt"][1] == download.GPT2_MERGES_SHA256


def test_the_tables_are_complete():
    script = load("gpt2")
    assert set(script.SIZES) == set(script.REVISIONS) == set(script.WEIGHTS)
    for model, files in script.WEIGHTS.items():
        assert list(files) == REST and len(script.REVISIONS[model]) == 40
        assert all(sha256 is None or len(bytes.fromhex(sha256)) == 32 for _, sha256 in files.values())
    masks, weights = 12 * 1024 * 1024, 124_439_808
    assert script._megabytes("gpt2", "no/model.safetensors", None) * 1e6 == 4 * (weights + masks)


@pytest.mark.parametrize("name", ["gpt2", "hellaswag"])
def test_scripts_explain_themselves_and_refuse_in_one_line(tmp_path, name):
    helped = prepare(name, "--help", cwd=tmp_path)
    assert helped.returncode == 0 and "--mirror" in helped.stdout and "default" in helped.stdout
    wrong = prepare(name, "--colour", "red", cwd=tmp_path)
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    environment = os.environ | {"PYTHONPATH": str(patience(tmp_path))}
    away = prepare(name, "--mirror", NOWHERE, "--out", tmp_path / "out", cwd=tmp_path, env=environment)
    assert away.returncode == 2 and len(away.stderr.splitlines()) == 1, away.stderr
    assert "no connection" in away.stderr and "Traceback" not in away.stderr
    assert away.stdout.startswith("needs ") and away.stdout.count("https://") == (6 if name == "gpt2" else 1)
    (tmp_path / "file").touch()
    blocked = prepare(name, "--out", tmp_path / "file", cwd=tmp_path)
    assert blocked.returncode == 2 and "file: cannot be written to" in blocked.stderr
    assert len(blocked.stderr.splitlines()) == 1


def test_hellaswag_is_fetched_and_checked(hub, monkeypatch, capsys):
    script, lines = load("hellaswag"), b'{"ind": 24, "label": 3}\n' * 50
    place = "/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
    hub.server.files[place] = lines
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--out", str(hub.folder), "--mirror", hub.server.url])
    with pytest.raises(UserError, match="the download is another file .1,200 bytes long instead of 12,246,618"):
        script.main()
    assert content(hub.folder) == {}
    monkeypatch.setattr(script, "SIZE", len(lines))
    monkeypatch.setattr(script, "SHA256", known(lines)[1])
    for _ in range(2):
        assert script.main() == 0
    assert content(hub.folder) == {"hellaswag_val.jsonl": lines}
    assert [path for path, _ in hub.server.asked] == [place] * 2
    assert "now: python -m tinygrad2 eval hellaswag" in capsys.readouterr().out
