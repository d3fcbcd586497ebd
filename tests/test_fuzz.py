"""Every reader of files on damaged ones: one clear error line, or the content that was written; never anything else."""

import json
import os
import random
import shutil
import struct
import time

import numpy as np
import pytest
from crash_everywhere import checkpoint
from test_token_files import IDS, write

import inference
from models import GPT, GPTConfig
from tinygrad2.datasets.text_cache import _shards
from tinygrad2.datasets.token_files import TokenFile, TokenStream
from tinygrad2.errors import UserError
from tinygrad2.interop import hf, llmc, nanogpt
from tinygrad2.interop.llmc import compute_debug_state
from tinygrad2.io.files import read_record, write_record
from tinygrad2.io.weights import load_weights, save_weights
from tinygrad2.monitor.dump import read_dump, write_dump
from tinygrad2.monitor.metrics import read_metrics, read_run_config
from tinygrad2.monitor.reference_curves import load_curves
from tinygrad2.system.memory import resident_bytes
from tinygrad2.tokenizers.char import CharTokenizer
from tinygrad2.tokenizers.load import load_tokenizer
from tinygrad2.tokenizers.tokenizer import Tokenizer
from tinygrad2.training.checkpoint import read_checkpoint, write_checkpoint

SPOILT = ((b'"', b""), (b":", b",:"), (b"[", b"[" * 2000), (b"true", b"null"), (b"{", b"["), (b"1", b"1e999"))
LARGE = (0, 1, -1, 2**15, 2**16, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 10**30)


def mutate(raw, rng):
    """The bytes with one to three kinds of damage: cut, flipped, numbers replaced, pieces moved, lengthened, empty."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 3])):
        n = len(raw)
        kind = rng.randrange(9)
        if kind == 0 or n < 16:
            raw = raw[: rng.randrange(n + 1)]
        elif kind == 1:
            for _ in range(rng.choice([1, 1, 8])):
                raw[rng.randrange(n)] ^= 1 << rng.randrange(8)
        elif kind == 2:  # a number in a header
            place = 4 * rng.randrange(min(n - 8, 64) // 4)
            raw[place : place + 4] = struct.pack("<q", rng.choice(LARGE[:-1]))[:4]
        elif kind == 3:
            raw[:8] = struct.pack("<q", rng.choice(LARGE[:-1]))
        elif kind == 4:  # a number in a text
            digits = [i for i in range(min(n, 4000)) if chr(raw[i]).isdigit()]
            if digits:
                i = rng.choice(digits)
                raw[i : i + 1] = str(rng.choice(LARGE)).encode()
        elif kind == 5:
            a, b = sorted(rng.randrange(n) for _ in range(2))
            raw = raw[:a] + raw[b:]
        elif kind == 6:
            raw += bytes(rng.randrange(256) for _ in range(rng.choice([1, 3, 1000])))
        elif kind == 7:  # another JSON value
            for old, new in SPOILT:
                if rng.random() < 0.3:
                    raw = raw.replace(old, new, 1)
        else:
            raw = bytearray(rng.choice([b"", b"{}", b"[]", b"null", b"\xff" * 100, b"{" * 50_000, bytes(99), raw * 2]))
    return bytes(raw)


def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("a", (5, 7)), ("b", (64,)))}


# Each gives (file to damage, function that reads and gives something to compare).


def weights(folder):
    path = folder / "w.bin"
    save_weights(path, tensors(), {"n_layer": 1}, "{}", {"step": 3})

    def read():
        w = load_weights(path)
        return {name: array.tobytes() for name, array in w.tensors.items()}, w.config, w.tokenizer

    return [path], read


def a_model(folder):
    """Through inference.load: config, tokenizer and tensors must fit together."""
    path = folder / "m.bin"
    config = GPTConfig(block_size=4, vocab_size=258, n_layer=1, n_head=1, n_embd=4)
    tokenizer = Tokenizer([(64, 65)])
    save_weights(path, GPT(config, seed=1).state_dict(), config.to_dict(), tokenizer.to_json(), {})

    def read():
        model, loaded, _ = inference.load(str(path))
        return {name: array.tobytes() for name, array in model.state_dict().items()}, loaded.to_json()

    return [path], read


def a_checkpoint(folder):
    path = write_checkpoint(str(folder), checkpoint(2))

    def read():
        c = read_checkpoint(path)
        arrays = [tensor.astype().tobytes() for tensor in [*c.weights.values(), *c.moments.values()]]
        return arrays, c.state, c.t, c.history

    return [folder / "step_00000002" / name for name in os.listdir(path)], read


def a_dump(folder):
    config = GPTConfig(block_size=4, vocab_size=258, n_layer=1, n_head=1, n_embd=4)
    x = np.arange(8).reshape(2, 4)
    finding = dict(phase="forward", op="add", kernel="", layer="", value="output", nan=1, inf=0, size=1, inputs=[])
    facts = dict(format="tinygrad2-dump", version=1, step=3, first_row=0, batch_size=2, seed=1, recompute=False)
    write_dump(str(folder / "d"), GPT(config, seed=1), None, x, x, {**facts, "kernels": "auto", "finding": finding})

    def read():
        dump, w, x, y = read_dump(str(folder / "d"))
        return None  # dump.json carries no checksum: it must be read or refused, that is all

    return [folder / "d" / name for name in os.listdir(folder / "d")], read


def token_files(kind):
    def make(folder):
        path = write(folder / "t.bin", kind)

        def read():
            file = TokenFile(path)
            TokenStream([file], vocab_size=50257).read([0, file.n - 1, 3], 50)

        return [path], read

    return make


def a_tokenizer(content):
    def make(folder):
        (folder / "t").write_text(content, encoding="utf-8")
        return [folder / "t"], lambda: load_tokenizer(folder / "t").encode("abc the") and None

    return make


def some_metrics(folder):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": 1.5 / (i + 1), "lr": 1e-3}) + "\n" for i in range(20)))
    return [path], lambda: read_metrics(str(folder)) and None


def run_config(folder):
    config = {"training": {"lr": 1}, "model": {}, "preset": "demo", "data": "ab"}
    (folder / "config.json").write_text(json.dumps(config))
    return [folder / "config.json"], lambda: read_run_config(str(folder)) and None


def cached_tokens(folder):
    """The record of a tokenized text: what is damaged counts as not there."""
    write(folder / "tokens_000000.bin", "llm.c")
    file = TokenFile(folder / "tokens_000000.bin")
    shards = [{"name": "tokens_000000.bin", "tokens": file.n, "ends": file.ends(), "crc": file.crc()}]
    record = {"dates": [["x", 1, 2]], "sha256": "ab", "shards": shards, "place": [1, 0, False], "done": True}
    write_record(folder / "progress.json", record)

    def read():
        noted = read_record(folder / "progress.json")
        assert noted is None or noted == record
        found = _shards(noted, str(folder))
        assert found is None or np.array_equal(found[0].read(0, found[0].n), IDS)

    return [folder / "progress.json", folder / "tokens_000000.bin"], read


def others_model(form):
    """A model in a form that has no checksum: it must be read, or refused in a line, and no more."""

    def make(folder):
        config = GPTConfig(block_size=4, vocab_size=258, n_layer=1, n_head=1, n_embd=4)
        path, state = folder / "m", GPT(config, seed=1).state_dict()
        {"hf": hf.write_folder, "llm.c": llmc.write_model, "nanoGPT": nanogpt.write_nanogpt}[form](
            path, state, config.to_dict()
        )
        files = [path / "config.json", path / "model.safetensors"] if form == "hf" else [path]

        def read():
            with np.errstate(all="ignore"):
                inference.load_pretrained(path)

        return files, read

    return make


def a_debug_state(folder):
    config = GPTConfig(block_size=4, vocab_size=258, n_layer=1, n_head=1, n_embd=4)
    x = np.arange(8).reshape(2, 4)
    llmc.write_debug_state(folder / "d", compute_debug_state(GPT(config, seed=1), x, x), config.to_dict())
    return [folder / "d"], lambda: llmc.read_debug_state(folder / "d", config.to_dict()) and None


READERS = {
    **{f"model of {form}": others_model(form) for form in ("hf", "llm.c", "nanoGPT")}, "debug state": a_debug_state,
    "weights": weights, "model": a_model, "checkpoint": a_checkpoint, "dump": a_dump, "metrics": some_metrics,
    "run config": run_config, "cached tokens": cached_tokens,
    **{f"tokens {kind}": token_files(kind) for kind in ("llm.c", "llm.c, llama-3", "llm.c, legacy", "nanoGPT", "npy")},
    "tokenizer": a_tokenizer(Tokenizer.train("the cat the mat " * 9, 280).to_json()),
    "characters": a_tokenizer(CharTokenizer.train(" abcdefghijklmnopqrstuvwxyz").to_json()),
    "merges": a_tokenizer("#version: 0.2\nt h\nth e\nĠ the\n"),
}  # fmt: skip


def fuzz(reader, folder, times, seed):
    paths, read = READERS[reader](folder)
    sound = {path: path.read_bytes() for path in paths}
    expected = read()
    rng, refused, before, slowest = random.Random(seed), 0, resident_bytes(), 0
    for i in range(times):
        path = rng.choice(paths)
        path.write_bytes(mutate(sound[path], rng))
        begin = time.perf_counter()
        try:
            found = read()
        except UserError as error:
            text = str(error)
            assert "\n" not in text and 20 < len(text) < 700, text
            refused += 1
        else:
            assert found == expected, f"damage number {i} was believed"
        slowest = max(slowest, time.perf_counter() - begin)
        path.write_bytes(sound[path])
    assert resident_bytes() - before < 200e6 and slowest < 5
    return refused


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files(reader, tmp_path):
    refused = fuzz(reader, tmp_path, 150, seed=1)
    assert refused > 20 or reader in ("cached tokens", "tokens nanoGPT", "tokens llm.c, legacy")


@pytest.mark.parametrize("n", [pytest.param(400, marks=pytest.mark.slow), pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.parametrize("reader", READERS)
def test_many_damaged_files(reader, tmp_path, n):
    print(reader, fuzz(reader, tmp_path, n, seed=2))


def test_reference_curves_that_are_damaged_are_refused(tmp_path, monkeypatch):
    from tinygrad2.monitor import reference_curves

    shutil.copytree(reference_curves.FOLDER, tmp_path / "curves")
    monkeypatch.setattr(reference_curves, "FOLDER", str(tmp_path / "curves"))
    load_curves("demo")
    raw = (tmp_path / "curves" / "demo.json").read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        (tmp_path / "curves" / "demo.json").write_bytes(mutate(raw[:3000], rng))
        with pytest.raises(UserError) as error:
            load_curves("demo")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no reference curves of 'nothing'; choose one of: baby, demo"):
        load_curves("nothing")


def test_ids_of_a_sound_file_are_unharmed_by_reading(tmp_path):
    path = write(tmp_path / "t.bin", "llm.c")
    raw = path.read_bytes()
    assert np.array_equal(TokenFile(path).read(0, 5000), IDS) and path.read_bytes() == raw
