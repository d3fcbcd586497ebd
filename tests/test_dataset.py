"""What --data may be: texts, tokenized once, and again if they have changed; token files in the folders people have."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from forked import train
from test_token_files import IDS, write
from test_train import ROOT, TEXT

from tinygrad2.datasets import text_cache
from tinygrad2.datasets.dataset import open_dataset
from tinygrad2.datasets.text_cache import encode_documents, split_documents
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.io.weights import save_weights
from tinygrad2.tokenizers.char import CharTokenizer
from tinygrad2.tokenizers.load import load_tokenizer, tokenizer_from_json
from tinygrad2.tokenizers.tokenizer import Tokenizer, TokenizerError


def opened(data, name="", tokenizer="", vocab_size=300, val_fraction=0.0, **more):
    return open_dataset(str(data), name, str(tokenizer), vocab_size, val_fraction, World(), **more)


def ids_of(stream):
    return stream.read([0], len(stream))[0]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text(TEXT * 30, encoding="utf-8")
    return path


# -- texts -------------------------------------------------------------------------------------------------------------


def test_a_text_is_its_documents_with_ends_and_the_second_time_it_is_only_opened(text, monkeypatch):
    data = opened(text)
    assert np.array_equal(ids_of(data.train), encode_documents(split_documents(text.read_bytes()), data.tokenizer))
    trained = Tokenizer.train(split_documents(text.read_bytes()), 300)
    assert data.val is None and data.tokenizer.to_json() == trained.to_json()

    def never(*_):
        raise AssertionError("tokenized a second time")

    monkeypatch.setattr(text_cache, "encode_stream", never)
    monkeypatch.setattr(Tokenizer, "train", never)
    again = opened(text)
    assert np.array_equal(ids_of(again.train), ids_of(data.train)) and again.fingerprint == data.fingerprint


def test_a_text_that_has_changed_is_tokenized_again_one_that_was_touched_is_not(text, monkeypatch):
    before = opened(text)
    os.utime(text, ns=(1, 1))
    calls = []
    encode = text_cache.encode_stream
    monkeypatch.setattr(text_cache, "encode_stream", lambda *args: calls.append(1) or encode(*args))
    assert opened(text).fingerprint == before.fingerprint and not calls
    changed = text.read_bytes().replace(b"mat", b"hat")  # as long as before
    text.write_bytes(changed)
    after = opened(text)
    assert calls and after.fingerprint != before.fingerprint
    assert np.array_equal(ids_of(after.train), encode_documents(split_documents(changed), after.tokenizer))


def test_each_tokenizer_has_its_own_tokens(text, tmp_path):
    small, large = opened(text, vocab_size=270), opened(text, vocab_size=290)
    Tokenizer.train(b"sat sat sat", 260).save(tmp_path / "t.json")
    given = opened(text, tokenizer=tmp_path / "t.json")
    assert len({len(ids_of(data.train)) for data in (small, large, given)}) == 3
    assert np.array_equal(ids_of(opened(text, vocab_size=270).train), ids_of(small.train))
    assert len([path for path in (tmp_path / ".tinygrad2").iterdir() if path.is_dir()]) == 3


@pytest.mark.parametrize("damage", ["shard", "half a shard", "record", "tokenizer"])
def test_damaged_tokens_are_made_again(text, damage):
    before = ids_of(opened(text).train)
    cache = text.parent / ".tinygrad2"
    (shard,) = cache.glob("*/tokens_000000.bin")
    victim = {"record": shard.parent / "progress.json", "tokenizer": next(cache.glob("*tokenizer*"))}.get(damage, shard)
    raw = bytearray(victim.read_bytes())
    victim.write_bytes(raw[: len(raw) // 2] if damage == "half a shard" else raw[:-3] + b"\x01" * 3)
    assert np.array_equal(ids_of(opened(text).train), before)


@pytest.mark.parametrize("when", ["train", "encode_stream"])
@pytest.mark.parametrize("change", ["append", "write over", "replace", "remove"])
def test_a_text_that_changes_while_it_is_tokenized(text, monkeypatch, when, change):
    """Several passes read it, which must read the same."""
    where = Tokenizer if when == "train" else text_cache
    original, raw = getattr(where, when), text.read_bytes()

    def change_and_go_on(*args):
        if change == "remove":
            text.unlink()
        elif change == "replace":
            (text.parent / "new").write_bytes(raw[::-1])
            os.replace(text.parent / "new", text)
        else:
            with open(text, "ab" if change == "append" else "r+b") as file:
                file.write(b"other text")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, when, change_and_go_on)
        with pytest.raises(UserError, match="my.txt: (was changed while it was read|can no longer be read)"):
            opened(text)
    text.write_bytes(raw)
    assert np.array_equal(ids_of(opened(text).train), encode_documents(split_documents(raw), opened(text).tokenizer))


@pytest.mark.parametrize("seed", range(12))
def test_blocks_cut_anywhere_return_the_same_ids(seed, tmp_path, monkeypatch):
    """Small blocks and shards on texts with every kind of border: marks, line breaks, long words, no spaces at all."""
    rng = random.Random(seed)
    parts = ["<|endoftext|>", "\n", "\r\n", " ", "word", " some more words", "x" * 30, "<|endof", "é日本", ". ", "\t"]
    raw = "".join(rng.choice(parts) for _ in range(400)).encode()
    path = tmp_path / "t.txt"
    path.write_bytes(raw)
    monkeypatch.setattr(text_cache, "BLOCK", rng.choice([16, 50, 200, 1000]))
    monkeypatch.setattr(text_cache, "SHARD", rng.choice([1, 30, 1000]))
    tokenizer = Tokenizer.train("some more words word word", 262)
    files, _ = text_cache.tokens_of_text([str(path)], tokenizer, 262, print)
    found = np.concatenate([file.read(0, file.n) for file in files])
    assert np.array_equal(found, encode_documents(split_documents(raw), tokenizer))


def test_interrupted_work_continues_after_the_last_shard(text, monkeypatch):
    monkeypatch.setattr(text_cache, "BLOCK", 100)
    monkeypatch.setattr(text_cache, "SHARD", 50)
    whole = encode_documents(split_documents(text.read_bytes()), Tokenizer([]))
    encode, left = text_cache.encode_stream, [7]

    def power_cut(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(text_cache, "encode_stream", power_cut)
    cuts, said = 0, []
    while True:
        try:
            files, _ = text_cache.tokens_of_text([str(text)], Tokenizer([]), 300, said.append)
            break
        except KeyboardInterrupt:
            cuts, left[0] = cuts + 1, 7
    assert cuts > 3 and len([line for line in said if "continuing with" in line]) == cuts
    assert np.array_equal(np.concatenate([file.read(0, file.n) for file in files]), whole)


def test_killed_while_tokenizing(tmp_path):
    """A real process, a real SIGKILL; then the same ids."""
    path = tmp_path / "big.txt"
    path.write_bytes((TEXT * 20).encode() * 400)
    script = (
        "import sys\nfrom tinygrad2.datasets import text_cache\n"
        "text_cache.BLOCK = 1 << 14; text_cache.SHARD = 1 << 13\n"
        "from tinygrad2.tokenizers.tokenizer import Tokenizer\n"
        "files, _ = text_cache.tokens_of_text([sys.argv[1]], Tokenizer([]), 300, print)\n"
        "print('done', sum(file.n for file in files))"
    )
    command = [sys.executable, "-c", script, str(path)]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        shards = tmp_path / ".tinygrad2"
        before = len(list(shards.glob("*/tokens*")))
        while process.poll() is None and len(list(shards.glob("*/tokens*"))) <= before + 3:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600).stdout
    assert "continuing with" in finished
    whole = encode_documents(split_documents(path.read_bytes()), Tokenizer([]))
    assert f"done {len(whole)}" in finished
    files, _ = text_cache.tokens_of_text([str(path)], Tokenizer([]), 300, print)
    assert np.array_equal(np.concatenate([file.read(0, file.n) for file in files]), whole)


def test_where_nothing_can_be_kept_the_tokens_stay_in_memory(text, monkeypatch, capsys):
    (text.parent / ".tinygrad2").write_text("a file is in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(text))
    data = opened(text)
    assert "they stay in memory" in capsys.readouterr().out
    assert np.array_equal(ids_of(data.train), encode_documents(split_documents(text.read_bytes()), data.tokenizer))
    monkeypatch.setenv("XDG_CACHE_HOME", str(text.parent / "cache"))
    opened(text)
    assert list((text.parent / "cache" / "tinygrad2").glob("my.txt-*/tokens_000000.bin"))


def test_a_folder_and_a_pattern_of_texts_are_read_by_name(tmp_path):
    (tmp_path / "deeper").mkdir()
    texts = {"b.txt": "second", "a.md": "first", "deeper/c.txt": "third<|endoftext|>fourth", "d.csv": "no"}
    for name, content in texts.items():
        (tmp_path / name).write_text(content)
    for data, expected in ((tmp_path, "first|second|third|fourth|"), (tmp_path / "*.txt", "second|"),
                           (tmp_path / "**" / "*.txt", "second|third|fourth|")):  # fmt: skip
        found = opened(data, tokenizer="", vocab_size=257)
        assert found.tokenizer.decode(ids_of(found.train).tolist()).replace("<|endoftext|>", "|") == expected


def test_pairs_of_texts_are_pairs_and_share_a_tokenizer(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a_train.txt", "a_val.txt", "deep/b_train.txt", "deep/b_valid.txt", "notes.txt"):
        (tmp_path / name).write_text(f"{name} {TEXT}" * (5 if "train" in name else 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"2 datasets are here; choose one with --dataset: a \(1 train, 1 val\), d"):
        opened(tmp_path)
    data = opened(tmp_path, "b", val_fraction=0.5)
    for name, stream in (("b_train.txt", data.train), ("b_valid.txt", data.val)):
        raw = (tmp_path / "deep" / name).read_bytes()
        assert np.array_equal(ids_of(stream), encode_documents(split_documents(raw), data.tokenizer))


def test_the_end_of_the_text_is_for_validation(text):
    data = opened(text, val_fraction=0.1)
    whole = encode_documents(split_documents(text.read_bytes()), data.tokenizer)
    assert len(data.val) == len(whole) // 10
    assert np.array_equal(np.concatenate([ids_of(data.train), ids_of(data.val)]), whole)


# -- token files -------------------------------------------------------------------------------------------------------


def test_pairs_and_shards_are_found_in_nested_folders_and_chosen_by_name(tmp_path):
    for name in ("nano/train.bin", "nano/val.bin", "llm/deep/tiny_shakespeare_train.bin",
                 "llm/deep/tiny_shakespeare_val.bin",
                 "edu/edufineweb_train_000001.npy", "edu/edufineweb_train_000002.npy", "edu/edufineweb_val_000000.npy",
                 "alone/numbers.bin"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, "npy" if name.endswith("npy") else "llm.c")
    (tmp_path / "nano" / "input.txt").write_text(TEXT)
    save_weights(tmp_path / "alone" / "trained_weights.bin", {"w": np.zeros((4, 4), np.float32)}, {}, "", {})
    with pytest.raises(UserError) as error:
        opened(tmp_path, vocab_size=50257)
    for choice in ("4 datasets are here; choose one with --dataset", "nano (1 train, 1 val)", "alone/numbers (1 train)",
                   "llm/deep/tiny_shakespeare (1 train, 1 val)", "edu/edufineweb (2 train, 1 val)"):  # fmt: skip
        assert choice in str(error.value)
    edu = opened(tmp_path, "edufineweb", vocab_size=50257)
    assert (len(edu.train), len(edu.val)) == (10_000, 5000) and edu.tokenizer is None
    assert len(opened(tmp_path, "nano", vocab_size=50257).train) == 5000
    alone = opened(tmp_path, "alone/numbers", vocab_size=50257, val_fraction=0.1)
    assert (len(alone.train), len(alone.val)) == (4500, 500)
    with pytest.raises(UserError, match="there is no dataset 'sheakspeare'; choose one with --dataset: "):
        opened(tmp_path, "sheakspeare", vocab_size=50257)
    assert len(opened(tmp_path / "llm", vocab_size=50257).val) == 5000
    assert len(opened(tmp_path / "edu" / "*train*.npy", vocab_size=50257).train) == 10_000


def test_a_tokenizer_next_to_the_tokens_is_used_and_must_fit(tmp_path):
    write(tmp_path / "train.bin", "llm.c", IDS % 260)
    tokenizer = Tokenizer.train("the the the cat cat", 260)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert opened(tmp_path, vocab_size=300).tokenizer.to_json() == tokenizer.to_json()
    with pytest.raises(UserError, match="its 260 tokens do not fit --vocab-size 200"):
        opened(tmp_path, vocab_size=200)
    (tmp_path / "deep").mkdir()
    os.rename(tmp_path / "train.bin", tmp_path / "deep" / "train.bin")
    assert opened(tmp_path / "deep", vocab_size=300).tokenizer is not None


def test_a_training_on_tokens_without_a_tokenizer_shows_numbers(tmp_path):
    write(tmp_path / "train.bin", "nanoGPT", IDS % 290)
    (tmp_path / "text.txt").write_text("unused")
    result = train(tmp_path, f"--data {tmp_path / 'train.bin'} --steps 3")
    assert result.returncode == 0, result.stderr
    assert "samples are printed as ids" in result.stdout
    greedy = next(line for line in result.stdout.splitlines() if line.startswith("greedy"))
    assert all(word.isdigit() for word in greedy.split()[1:])
    bad = train(tmp_path, f"--data {write(tmp_path / 'wide.bin', 'llm.c')} --steps 3")
    assert bad.returncode == 2 and "is outside a vocabulary of 290" in bad.stderr and len(bad.stderr.splitlines()) == 1


def test_too_few_tokens_are_refused(tmp_path):
    write(tmp_path / "train.bin", "llm.c", IDS[:2])
    with pytest.raises(UserError, match="2 token.s. are too few"):
        opened(tmp_path, vocab_size=50257)
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(UserError, match="2 token.s. are too few to train on; give a longer text"):
        opened(tmp_path / "x.txt")


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_characters_are_tokens():
    tokenizer = CharTokenizer.train("hello wörld")
    assert tokenizer.encode("wörld") == [7, 8, 6, 4, 1] and tokenizer.decode([7, 8, 6, 4, 1]) == "wörld"
    assert tokenizer.eot is None and tokenizer.n_vocab == len(set("hello wörld"))
    assert tokenizer_from_json(tokenizer.to_json()).encode("hello") == tokenizer.encode("hello")
    with pytest.raises(TokenizerError, match="'x' is not a character this model has learned; it knows ' dehlorwö'"):
        tokenizer.encode("fox"[2:])
    with pytest.raises(TokenizerError, match="byte 1 is not valid UTF-8"):
        tokenizer.encode(b"h\xff")
    with pytest.raises(TokenizerError, match="id 9 is outside"):
        tokenizer.decode([9])


@pytest.mark.parametrize(
    "change, says",
    [
        ({"version": 2}, "version is 2"),
        ({"characters": "ba"}, "not sorted"),
        ({"characters": "aa"}, "not sorted"),
        ({"characters": ""}, "is not a string"),
        ({"characters": 5}, "is not a string"),
        ({"characters": "a\ud800"}, "lone surrogate"),
    ],
)
def test_character_tokenizers_that_cannot_be_are_refused(change, says):
    fields = {**json.loads(CharTokenizer("abc").to_json()), **change}
    with pytest.raises(TokenizerError, match=says):
        tokenizer_from_json(json.dumps(fields), "here")


def test_tokenizer_files_are_recognized_by_content(tmp_path):
    for content, encoded in ((CharTokenizer("abc").to_json(), [0, 1]), (Tokenizer([(64, 65)]).to_json(), [256]),
                             ("#version: 0.2\na b\n", [256]), ("a b\nab c\n", [256])):  # fmt: skip
        (tmp_path / "t").write_text(content)
        assert load_tokenizer(tmp_path / "t").encode("ab") == encoded
    for content in ("", "no tokenizer", "{", '{"format": 3}', "\x00\x01", "{" * 100_000):
        (tmp_path / "t").write_text(content)
        with pytest.raises(TokenizerError) as error:
            load_tokenizer(tmp_path / "t")
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path / "nowhere")


def test_gpt2s_merges_train_and_write(tmp_path):
    merges = ROOT.parent / "shared" / "data" / "vocab.bpe"
    if not merges.exists():
        pytest.skip("GPT-2's vocab.bpe is not here")
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    result = train(tmp_path, f"--steps 2 --vocab-size 50257 --tokenizer {merges} --n-embd 8")
    assert result.returncode == 0 and "tokenizer 50,257 different tokens" in result.stdout, result.stderr


def test_a_meter_speaks_of_long_work_only_and_plainly_into_a_file(monkeypatch):
    from tinygrad2.monitor import progress

    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    stream = io.StringIO()
    meter = progress.Meter("tokenizing", 100_000_000, stream=stream)
    for _ in range(10):
        clock[0] += 5
        meter.add(10_000_000)
    meter.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "tokenizing 10 of 100 MB (10%) | 2.0 MB/s | 45s left"
    assert lines[-1] == "tokenizing 100 MB took 50s" and 4 <= len(lines) <= 7 and "\r" not in stream.getvalue()
    short = io.StringIO()
    quick = progress.Meter("tokenizing", 100, stream=short)
    quick.add(100)
    quick.close()
    assert short.getvalue() == ""
