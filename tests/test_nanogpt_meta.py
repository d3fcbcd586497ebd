"""nanoGPT's meta.pkl: a tokenizer for its train.bin and its ckpt.pt, read without running what a pickle asks for."""

import json
import os
import pickle

import numpy as np
import pytest
from forked import python
from test_dataset import ids_of, opened
from test_train import ROOT, SMALL

import train_gpt2
from tinygrad2.cli import call
from tinygrad2.distributed.world import World
from tinygrad2.io.weights import load_weights
from tinygrad2.tokenizers.char import CharTokenizer
from tinygrad2.tokenizers.load import load_tokenizer, tokenizer_from_json
from tinygrad2.tokenizers.tokenizer import TokenizerError

TEXT = "First Citizen:\nBefore we proceed any further, hear me “speak”.\n" * 30


def meta_of(characters):
    """As nanoGPT's prepare.py makes it."""
    stoi = {character: i for i, character in enumerate(characters)}
    return {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}


def write_dataset(folder, meta=None, protocol=pickle.HIGHEST_PROTOCOL, text=TEXT):
    """train.bin, val.bin and meta.pkl of a text."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = meta_of(sorted(set(text))) if meta is None else meta
    ids = np.array([sorted(set(text)).index(character) for character in text], "<u2")
    ids[: len(ids) * 9 // 10].tofile(folder / "train.bin")
    ids[len(ids) * 9 // 10 :].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_characters_are_the_tokenizer_of_the_tokens_beside_them(tmp_path, protocol):
    data = opened(write_dataset(tmp_path / "char", protocol=protocol))
    assert data.tokenizer.decode(ids_of(data.train).tolist()) == TEXT[: len(TEXT) * 9 // 10]
    assert data.tokenizer.eot is None and not any("printed as ids" in line for line in data.description)
    for path in (tmp_path / "char", tmp_path / "char" / "meta.pkl"):
        assert load_tokenizer(path).encode("hear me") == data.tokenizer.encode("hear me")
    assert data.tokenizer.to_json() == CharTokenizer.train(TEXT).to_json()


def test_characters_in_any_order_and_a_list_of_them(tmp_path):
    for meta in (meta_of("zyx\nab"), {"itos": list("zyx\nab")}, {"itos": tuple("zyx\nab"), "vocab_size": 6}):
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.encode("xyz") == [2, 1, 0] and tokenizer.decode([3, 4]) == "\na"
        again = tokenizer_from_json(tokenizer.to_json())
        assert again.encode("xyz") == [2, 1, 0] and json.loads(again.to_json())["order"] == "any"


class Attack:
    """Its pickle asks to call something."""

    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize(
    "meta, says",
    [
        ({}, "has no 'itos'"),
        ([1, 2], "has no 'itos'"),
        ({"itos": {}}, "has no 'itos'"),
        ({"vocab_size": 50257}, "has no 'itos'"),
        ({"itos": {0: "the", 1: "cat"}}, "token 0 is 'the', not a character"),
        ({"itos": {0: "a", 1: 7}}, "token 1 is 7, not a character"),
        ({"itos": {0: "a", 2: "b"}}, "which must be 0 to 1"),
        ({"itos": {0: "a", 1: "b"}, "vocab_size": 3}, "vocab_size is 3, but 'itos' has 2 ids"),
        ({"itos": {0: "a", 1: "b"}, "stoi": {"a": 1, "b": 0}}, "'stoi' and 'itos' do not agree"),
        ({"itos": {0: "a", 1: "a"}}, "repetitions"),
        (Attack(), "asks to call 'builtins.print', which is never done"),
        (b"\x80\x04", "its pickle is cut off"),
        (b"\x80\x04\x95" + bytes(8) + b"\xfe.", "opcode"),
        (b"not a pickle", "is not a tokenizer"),
        (b"", "is not a tokenizer"),
    ],
)
def test_another_meta_is_one_line_and_trains_without_a_tokenizer(tmp_path, capsys, meta, says):
    folder = write_dataset(tmp_path / "char")
    (folder / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(folder / "meta.pkl")
    assert says in str(error.value) and "\n" not in str(error.value) and str(folder) in str(error.value)
    data = opened(folder)
    assert data.tokenizer is None and any(says in line for line in data.description)
    assert "called" not in capsys.readouterr().out


def test_a_prompt_with_an_unknown_character_does_not_end_a_training(tmp_path, capsys, monkeypatch):
    """A given one is refused before the first step; without the default one, samples start as a text does."""
    write_dataset(tmp_path / "dna", text="gattaca " * 500)
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL.split(), "--steps", "3", "--sample-tokens", "4", "--sample-every", "2", "--data", "dna"]
    train = lambda *more: call(lambda: train_gpt2.main(World(), [*flags, *more]), "prog")  # noqa: E731
    assert train() == 0
    printed = capsys.readouterr().out
    assert "note      samples start without a prompt, give one with --prompt: in 'Once upon a time', 'O' is" in printed
    assert "greedy    " in printed and "inference.py --prompt TEXT" in printed
    assert load_weights("trained_weights.bin").training["steps_done"] == 3
    for prompt in ("gattaca!", "\udcff"):
        assert train("--prompt", prompt, "--run-dir", "other") == 2
        message = capsys.readouterr().err
        assert message.startswith("prog: --prompt ") and message.count("\n") == 1 and not os.path.exists("other")
    assert train("--prompt", "cat") == 0 and "greedy    cat" in capsys.readouterr().out


def test_samples_and_inference_are_characters(tmp_path):
    write_dataset(tmp_path / "char")
    flags = f"{SMALL} --steps 3 --sample-tokens 8 --prompt First --data char"
    result = python(ROOT / "train_gpt2.py", *flags.split(), cwd=tmp_path)
    assert result.returncode == 0 and "greedy    First" in result.stdout, result.stderr
    result = python(ROOT / "inference.py", "--prompt", "hear me", "--max-new-tokens", 5, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.startswith("hear me"), result.stderr
    assert set(result.stdout) <= set(TEXT)
    (tmp_path / "out").mkdir()
    convert = ("-m", "tinygrad2", "convert", "trained_weights.bin", "out/ckpt.pt", "--to", "nanogpt")
    assert python(*convert, cwd=tmp_path, PYTHONPATH=str(ROOT)).returncode == 0
    given = ("--weights", "out/ckpt.pt", "--prompt", "hear me", "--max-new-tokens", 5, "--start-token", "no")
    for more in (("--tokenizer", "char"), ("--tokenizer", "char/meta.pkl")):
        again = python(ROOT / "inference.py", *given, *more, cwd=tmp_path)
        assert again.returncode == 0 and again.stdout.startswith("hear me"), again.stderr
    (tmp_path / "out" / "meta.pkl").write_bytes((tmp_path / "char" / "meta.pkl").read_bytes())
    assert python(ROOT / "inference.py", *given, cwd=tmp_path).stdout == again.stdout
