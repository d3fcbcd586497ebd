"""Tokenizer files of others, in and out: the same ids as tiktoken and Hugging Face, and damaged files are refused."""

import base64
import doctest
import hashlib
import json
import random
import struct
import time
import unicodedata
import warnings
from pathlib import Path

import pytest

from tinygrad2.errors import UserError
from tinygrad2.tokenizers import export, parallel
from tinygrad2.tokenizers import mapped as mapped_tokenizer
from tinygrad2.tokenizers.char import CharTokenizer
from tinygrad2.tokenizers.export import write_tokenizer
from tinygrad2.tokenizers.load import load_tokenizer, tokenizer_from_json
from tinygrad2.tokenizers.mapped import DecodeOnlyTokenizer, MappedTokenizer
from tinygrad2.tokenizers.parallel import encode_stream
from tinygrad2.tokenizers.pretokenizer import PATTERN, as_text
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, ID_TO_SYMBOL, Tokenizer, TokenizerError

DATA = Path(__file__).parents[2] / "shared" / "data"  # next to the repository, only where it is developed
PROSE = "She sells sea shells by the sea shore; the shells she sells are sea shells, I'm sure. 日本語。\n" * 5
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2002\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
NOT_WHITE = "\x00\x1b\x1c\x1d\x1e\x1f\x7f\u200b\u200d\ufeff\u00ad"
PIECES = [*WHITE, *NOT_WHITE, *"aAzsdmt'09٣½²_-.!?<|>éßǄ字の한ж"]
PIECES += ["e\u0301", "\u0301\u0302\u0308", "🙂", "👩‍👩‍👧", "🇩🇪", "\U000e0041"]
PIECES += ["'s", "'LL", "'re", "''ve", " the", " sea shells", "  ", "\r\n", "\n\n", END_OF_TEXT, "<|endof", "<pad>"]
SHA256 = {
    "tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "llmc 1": "72c44782644dccc955e1b775d0d7552a594bbb54bfc6141e31373324d486956d",
    "llmc 2": "6f3abc21e444e4e8300e225f4e03da48ea121cf17e30f67009b8dad7a66c2f13",
}


def is_known(character):
    return unicodedata.category(character) != "Cn"


def nasty_strings(n, seed=0):
    """Random strings over what splits or encodes in unusual ways, over all of Unicode, and with long runs.

    Characters that this Python does not know are left out: they may be letters for `regex` and not yet for others.
    """
    rng = random.Random(seed)
    for i in range(n):
        pieces = rng.choices(PIECES, k=rng.randrange(20))
        pieces += filter(is_known, (chr(rng.randrange(0x110000)) for _ in range(rng.randrange(4))))  # surrogates, too
        pieces += filter(is_known, (chr(rng.randrange(0x3000)) for _ in range(rng.randrange(4))))
        if i % 50 == 0:
            pieces.append(rng.choice(PIECES) * rng.randrange(300))
        rng.shuffle(pieces)
        yield "".join(pieces)


@pytest.fixture(scope="module")
def gpt2():
    if not (DATA / "vocab.bpe").exists():
        pytest.skip("needs OpenAI's vocab.bpe and encoder.json in a folder shared/data next to the repository")
    return load_tokenizer(DATA / "vocab.bpe")


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.train([PROSE, "".join(PIECES) * 3], 400)


def peer(name):
    return pytest.importorskip(name, reason=f"{name} is what this is compared with, and it is not installed")


def trained_by_others(special=("<pad>", END_OF_TEXT, "<pad>>"), size=400):
    """A tokenizer that Hugging Face's library trains: special tokens first, then bytes, then merges."""
    library = peer("tokenizers")
    theirs = library.Tokenizer(library.models.BPE())
    theirs.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([PROSE, "".join(PIECES)], trainer)
    return theirs


@pytest.fixture(scope="module")
def mapped():
    """Special tokens first, one of them the beginning of another; a gap; a token that no merge makes."""
    plain = Tokenizer.train(PROSE, 330)
    vocab = {symbol: id + 3 for id, symbol in enumerate(ID_TO_SYMBOL)}
    symbols = list(ID_TO_SYMBOL)
    for k, (left, right) in enumerate(plain.merges):
        symbols.append(symbols[left] + symbols[right])
        vocab[symbols[-1]] = 259 + k + (k > 10)  # id 270 is free
    merges = [(symbols[left], symbols[right]) for left, right in plain.merges]
    vocab["Ġnever"] = 400
    return MappedTokenizer(vocab, merges, {"<pad>": 0, END_OF_TEXT: 1, "<pad>>": 2})


def assert_same(a, b, strings=200):
    assert type(a) is type(b) and (a.n_vocab, a.eot, a.special) == (b.n_vocab, b.eot, b.special)
    assert list(a.merges) == list(b.merges) and a.to_json() == b.to_json()
    for text in nasty_strings(strings, seed=3):
        assert a.encode(text, special="allowed") == b.encode(text, special="allowed"), ascii(text)


def one_line_error(call, *words):
    with pytest.raises(TokenizerError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, UserError) and "\n" not in message and "; " in message, message
    assert len(message) < 700
    for word in words:
        assert word in message, message


def test_docstring_examples():
    for module in (mapped_tokenizer, export):
        result = doctest.testmod(module)
        assert result.attempted > 2 and result.failed == 0


# ---------------------------------------------------------------------------------------------------------------------
# The same ids as others


def agree_with_tiktoken(tok, n):
    tiktoken = peer("tiktoken")
    ranks = {tok.token_bytes(id): id for id in tok.merges.values()}
    ranks |= {tok.token_bytes(id): id for id in range(256)}
    twin = tiktoken.Encoding("twin", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=tok.special)
    refused = 0
    for text in nasty_strings(n, seed=n):
        ids = tok.encode(text)
        assert ids == twin.encode_ordinary(text), ascii(text)
        assert tok.decode(ids) == twin.decode(ids)
        assert tok.encode(text, special="allowed") == twin.encode(text, allowed_special="all"), ascii(text)
        if END_OF_TEXT in text:
            refused += 1
            with pytest.raises(ValueError):
                twin.encode(text)
            with pytest.raises(TokenizerError, match="special token"):
                tok.encode(text, special="refused")
        else:
            assert tok.encode(text, special="refused") == ids
    assert refused > n // 20


def agree_with_hugging_face(tok, theirs, n):
    plain = all(text.isascii() for text in tok.special)  # they decode the name of a special token as if in symbols
    for text in nasty_strings(n, seed=n + 1):
        text = as_text(text)  # their library takes no lone surrogates
        ids = tok.encode(text, special="allowed")
        assert ids == theirs.encode(text).ids, ascii(text)
        assert not plain or tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def written_for_hugging_face(tok, folder):
    write_tokenizer(tok, folder, "hf")
    return peer("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("which", ["gpt2", "ours"])
def test_equals_tiktoken(which, request):
    agree_with_tiktoken(request.getfixturevalue(which), 5000)


@pytest.mark.parametrize("which", ["gpt2", "ours", "mapped"])
def test_equals_hugging_face(which, request, tmp_path):
    tok = request.getfixturevalue(which)
    agree_with_hugging_face(tok, written_for_hugging_face(tok, tmp_path), 5000)


@pytest.mark.parametrize("which", ["gpt2", "ours"])
@pytest.mark.parametrize(
    "n", [pytest.param(8000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.long)]
)
def test_equals_both_on_many_strings(which, request, tmp_path, n):
    tok = request.getfixturevalue(which)
    agree_with_tiktoken(tok, n)
    agree_with_hugging_face(tok, written_for_hugging_face(tok, tmp_path), n)


@pytest.mark.parametrize("special", [(), (END_OF_TEXT,), ("<pad>", END_OF_TEXT, "<pad>>"), ("<mask> ", "é|")])
def test_what_hugging_face_trains_loads_and_gives_equal_ids(special, tmp_path):
    theirs = trained_by_others(special)
    theirs.save(str(tmp_path / "tokenizer.json"))
    tok = load_tokenizer(tmp_path)
    assert isinstance(tok, MappedTokenizer) and tok.n_vocab == theirs.get_vocab_size() == 400
    assert tok.special == {text: id for id, text in enumerate(special)}
    assert tok.eot == (special.index(END_OF_TEXT) if END_OF_TEXT in special else None)
    agree_with_hugging_face(tok, theirs, 1000)
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["model"]["merges"] = [" ".join(pair) for pair in fields["model"]["merges"]]  # as older ones wrote them
    (tmp_path / "old.json").write_text(json.dumps(fields))
    assert_same(load_tokenizer(tmp_path / "old.json"), tok)
    theirs.model.save(str(tmp_path))
    pair = load_tokenizer(tmp_path / "vocab.json")  # which does not say what is special, except for the end of a text
    assert pair.n_vocab == 400 and pair.eot == tok.eot and set(pair.special) == {*special} & {END_OF_TEXT}
    assert pair.encode(PROSE) == tok.encode(PROSE)


def test_any_merges_return_what_hugging_face_returns():
    """Several merges make the same token here, or use one that a later merge makes."""
    library = peer("tokenizers")
    rng, mapped, twice = random.Random(5), 0, 0
    for _ in range(150):
        tokens, merges = ["a", "b", "c"], []
        while len(merges) < 25:
            pair = (rng.choice(tokens), rng.choice(tokens))
            if pair not in merges and len("".join(pair)) < 8:
                merges.append(pair)
                tokens.append("".join(pair))
        twice += len(set(tokens)) < len(tokens)
        if rng.random() < 0.5:
            rng.shuffle(merges)
        vocab = {token: id for id, token in enumerate(dict.fromkeys([*ID_TO_SYMBOL, *tokens, END_OF_TEXT]))}
        tok = mapped_tokenizer.tokenizer_from_vocab(vocab, merges, {END_OF_TEXT: vocab[END_OF_TEXT]}, "here")
        mapped += isinstance(tok, MappedTokenizer)
        theirs = library.models.BPE(vocab, merges)
        for size in [3, 10, 20, 60, 100]:
            text = "".join(rng.choices("abc", k=size))
            assert tok.encode(text) == [token.id for token in theirs.tokenize(text)], (merges, text)
    assert mapped > 80 and twice > 40


@pytest.mark.parametrize("which", ["gpt2", "ours", "mapped"])
@pytest.mark.parametrize("keep", ["all", "tokenizer.json", "vocab.json"])
def test_transformers_loads_what_we_write(which, keep, request, tmp_path):
    transformers = peer("transformers")
    tok = request.getfixturevalue(which)
    write_tokenizer(tok, tmp_path, "hf")
    config = {"model_type": "gpt2", "vocab_size": tok.n_vocab, "bos_token_id": tok.eot, "eos_token_id": tok.eot}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if keep == "tokenizer.json":
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).unlink()
    elif keep == "vocab.json":
        (tmp_path / "tokenizer.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.eos_token) == (tok.eot, tok.eot, END_OF_TEXT)
    for text in nasty_strings(500, seed=11):
        text = as_text(text)
        assert theirs(text)["input_ids"] == tok.encode(text, special="allowed"), ascii(text)


def test_tiktoken_reads_our_ranks(ours, tmp_path):
    load = peer("tiktoken.load")
    write_tokenizer(ours, tmp_path / "ours.tiktoken", "tiktoken")
    ranks = load.load_tiktoken_bpe(str(tmp_path / "ours.tiktoken"))
    assert ranks == {ours.token_bytes(id): id for id in range(ours.eot)}


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2's own files


def test_gpt2s_files_are_written_as_they_are(gpt2, tmp_path):
    write_tokenizer(gpt2, tmp_path, "hf")
    assert (tmp_path / "merges.txt").read_bytes() == (DATA / "vocab.bpe").read_bytes()
    assert (tmp_path / "vocab.json").read_bytes() == (DATA / "encoder.json").read_bytes()
    write_tokenizer(gpt2, tmp_path / "tiktoken", "tiktoken")
    write_tokenizer(gpt2, tmp_path / "llmc 1", "llmc", version=1)
    write_tokenizer(gpt2, tmp_path / "llmc 2", "llmc")
    for name, digest in SHA256.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tiktoken"):
        assert_same(load_tokenizer(tmp_path / name), gpt2)
    for version in (1, 2):
        table = load_tokenizer(tmp_path / f"llmc {version}")
        assert (table.n_vocab, table.eot) == (50257, 50256)
        assert table.decode(range(50257)) == gpt2.decode(range(50257))
    assert_same(load_tokenizer(DATA), gpt2)
    assert_same(load_tokenizer(DATA / "encoder.json"), gpt2)


# ---------------------------------------------------------------------------------------------------------------------
# Round trips, folders


@pytest.mark.parametrize("which", ["ours", "mapped"])
def test_round_trips(which, request, tmp_path):
    tok = request.getfixturevalue(which)
    write_tokenizer(tok, tmp_path / "hf", "hf")
    assert_same(load_tokenizer(tmp_path / "hf"), tok)
    assert_same(load_tokenizer(str(tmp_path / "hf" / "tokenizer.json")), tok)
    assert_same(tokenizer_from_json(tok.to_json()), tok)
    tok.save(tmp_path / "own.json")
    assert_same(load_tokenizer(tmp_path / "own.json"), tok)
    data = random.Random(1).randbytes(2000)
    assert tok.decode_bytes(tok.encode(data)) == data and tok.encode_array(data).tolist() == tok.encode(data)


def test_the_pair_alone(ours, tmp_path):
    for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        folder = tmp_path / vocab
        write_tokenizer(ours, folder, "hf")
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").rename(folder / vocab)
        (folder / "merges.txt").rename(folder / merges)
        for path in (folder, folder / vocab, folder / merges):
            assert_same(load_tokenizer(path), ours)
        (folder / merges).rename(folder / "else")
        one_line_error(lambda path=folder / vocab: load_tokenizer(path), vocab, f"put {merges} next to")
        one_line_error(lambda folder=folder: load_tokenizer(folder), "has no tokenizer")
        (folder / "else").rename(folder / merges)
        (folder / vocab).unlink()
        assert_same(load_tokenizer(folder), ours)
        assert_same(load_tokenizer(folder / merges), ours)


def test_a_pair_with_other_ids(mapped, tmp_path):
    """tokenizer_config.json names the tokens that are found in texts; without it that is the end of a text alone."""
    write_tokenizer(mapped, tmp_path, "hf")
    (tmp_path / "tokenizer.json").unlink()
    for path in (tmp_path / "vocab.json", tmp_path / "merges.txt"):
        assert_same(load_tokenizer(path), mapped)
    (tmp_path / "tokenizer_config.json").unlink()
    for path in (tmp_path / "vocab.json", tmp_path / "merges.txt"):
        tok = load_tokenizer(path)
        assert tok.special == {END_OF_TEXT: mapped.eot} and tok.eot == mapped.eot
        for text in nasty_strings(200):
            assert tok.encode(text) == mapped.encode(text)


def test_ranks_round_trip(ours, tmp_path):
    write_tokenizer(ours, tmp_path / "x.tiktoken", "tiktoken")
    for path in (tmp_path, tmp_path / "x.tiktoken"):
        assert_same(load_tokenizer(path), ours)
    lines = (tmp_path / "x.tiktoken").read_text().splitlines()
    random.Random(0).shuffle(lines)
    (tmp_path / "x.tiktoken").write_text("\r\n".join(["", *lines, "", ""]))
    one_line_error(lambda: load_tokenizer(tmp_path / "none.tiktoken"), "cannot be read")
    (tmp_path / "x.tiktoken").write_text("\r\n".join([*lines, "", ""]))
    assert_same(load_tokenizer(tmp_path), ours)
    (tmp_path / "y.tiktoken").write_text("")
    one_line_error(lambda: load_tokenizer(tmp_path), "2 rank files", "x.tiktoken")


def test_ranks_with_another_order_of_bytes(ours, tmp_path):
    """As in minbpe or rustbpe: ids 0 to 255 are the bytes as numbers."""
    order = [bytes([byte]) for byte in range(256)] + [ours.token_bytes(id) for id in range(256, ours.eot)]
    lines = [f"{base64.b64encode(token).decode()} {id}" for id, token in enumerate(order)]
    (tmp_path / "t").write_text("\n".join(lines))
    tok = load_tokenizer(tmp_path / "t")
    assert isinstance(tok, MappedTokenizer) and tok.eot == len(order)
    for text in nasty_strings(300):
        assert [tok.token_bytes(id) for id in tok.encode(text)] == [ours.token_bytes(id) for id in ours.encode(text)]
    assert_same(tokenizer_from_json(tok.to_json()), tok)
    write_tokenizer(tok, tmp_path / "again", "tiktoken")
    assert (tmp_path / "again").read_text().split("\n") == [*lines, ""]


def test_llmc_round_trip(ours, tmp_path):
    write_tokenizer(ours, tmp_path / "gpt2_tokenizer.bin", "llmc")
    table = load_tokenizer(tmp_path)
    assert isinstance(table, DecodeOnlyTokenizer) and (table.n_vocab, table.eot) == (ours.n_vocab, ours.eot)
    for id in range(ours.n_vocab):
        assert table.token_bytes(id) == ours.token_bytes(id)
    assert table.decode(ours.encode(PROSE)) == PROSE and table.decode_bytes([table.eot]) == END_OF_TEXT.encode()
    write_tokenizer(table, tmp_path / "again.bin", "llmc")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "gpt2_tokenizer.bin").read_bytes()
    calls = [lambda: table.encode("a"), lambda: table.encode("a", special="allowed"), lambda: table.encode_array("a")]
    calls += [lambda: write_tokenizer(table, tmp_path / "no", "hf")]
    for call in calls:
        one_line_error(call)
    table.save(tmp_path / "own.json")
    again = load_tokenizer(tmp_path / "own.json")
    assert isinstance(again, DecodeOnlyTokenizer) and again.eot == table.eot
    assert again.decode(ours.encode(PROSE)) == PROSE
    good = json.loads(table.to_json())
    for changes in ({"version": 2}, {"tokens": 3}, {"tokens": ["?"]}, {"tokens": [3]}, {"eot": 10**6}, {"eot": None}):
        one_line_error(lambda changes=changes: tokenizer_from_json(json.dumps(good | changes), "here"), "here: ")
    one_line_error(calls[0], "gpt2_tokenizer.bin", "can only decode", "vocab.bpe")
    one_line_error(lambda: table.decode([ours.n_vocab]), "not in this vocabulary")


def test_folders_prefer_the_file_that_says_most(ours, tmp_path):
    other = Tokenizer.train("ab ab ab", 300)
    write_tokenizer(other, tmp_path / "gpt2_tokenizer.bin", "llmc")
    assert load_tokenizer(tmp_path).n_vocab == other.n_vocab
    write_tokenizer(other, tmp_path / "t.tiktoken", "tiktoken")
    assert load_tokenizer(tmp_path).encode("ab") == other.encode("ab")
    write_tokenizer(ours, tmp_path, "hf")
    (tmp_path / "tokenizer.json").unlink()
    assert_same(load_tokenizer(tmp_path), ours)
    other.save(tmp_path / "tokenizer.json")
    assert_same(load_tokenizer(tmp_path), other)
    (tmp_path / "empty").mkdir()
    one_line_error(lambda: load_tokenizer(tmp_path / "empty"), "empty", "has no tokenizer", "merges.txt")


# ---------------------------------------------------------------------------------------------------------------------
# Special tokens, other ids


@pytest.mark.parametrize("which", ["ours", "mapped"])
def test_special_tokens_are_a_choice(which, request):
    tok = request.getfixturevalue(which)
    text = f"sea{END_OF_TEXT} shells"
    sea, shells, plain = tok.encode("sea"), tok.encode(" shells"), tok.encode(text)
    assert tok.eot not in plain and tok.decode(plain) == text and tok.encode(text, special="ordinary") == plain
    assert tok.encode(text, special="allowed") == tok.encode(text.encode(), "allowed") == [*sea, tok.eot, *shells]
    one_line_error(lambda: tok.encode(text, special="refused"), f"{END_OF_TEXT!r} at character 3", "allowed")
    for wrong in (True, False, None, "all", [], 1):
        one_line_error(lambda wrong=wrong: tok.encode("a", special=wrong), "ordinary, allowed, refused")
        one_line_error(lambda wrong=wrong: CharTokenizer("ab").encode("a", special=wrong), "ordinary, allowed, refused")
    assert CharTokenizer("ab").encode("ab", special="refused") == [0, 1]


def test_the_longer_special_token_wins(mapped):
    assert mapped.encode("<pad>><pad>x", special="allowed") == [2, 0, *mapped.encode("x")]


def test_ids_that_stand_for_no_token(mapped):
    assert mapped.token_bytes(270) == b"" and mapped.decode([270]) == ""  # a gap, which a model may draw all the same
    for id in (-1, mapped.n_vocab):
        one_line_error(lambda id=id: mapped.decode([id]), f"token id {id} is not")
    assert mapped.token_bytes(400) == b" never" and mapped.n_vocab == 401


def test_worker_processes_are_left_out(mapped, monkeypatch):
    monkeypatch.setattr(parallel, "SHARE", 100)
    documents = [PROSE, PROSE.encode()] * 3
    expected = [id for text in documents for id in [*mapped.encode(text), mapped.eot]]
    assert encode_stream(documents, mapped, workers=2).tolist() == expected


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be written


def test_what_a_format_cannot_hold_is_refused(mapped, tmp_path):
    twins = Tokenizer([(64, 65), (65, 66), (256, 66), (64, 257)])  # (ab)c and a(bc)
    no_end = MappedTokenizer({symbol: id for id, symbol in enumerate(ID_TO_SYMBOL)}, [], {})
    backwards = {symbol: id for id, symbol in enumerate([*ID_TO_SYMBOL, "abc", "ab", END_OF_TEXT])}
    backwards = MappedTokenizer(backwards, [("a", "b"), ("ab", "c")], {END_OF_TEXT: 258})
    long = Tokenizer([(64, 64)] + [(256 + k, 256 + k) for k in range(9)])
    path = tmp_path / "x"
    for kind in ("hf", "tiktoken"):
        one_line_error(lambda kind=kind: write_tokenizer(twins, path, kind), "tokens 258 and 259 are both 'abc'")
        one_line_error(lambda kind=kind: write_tokenizer(CharTokenizer("ab"), path, kind), "without merges of bytes")
    for tok in (mapped, backwards):
        one_line_error(lambda tok=tok: write_tokenizer(tok, path, "tiktoken"), "'hf'")
    for tok in (no_end, CharTokenizer("ab")):
        one_line_error(lambda tok=tok: write_tokenizer(tok, path, "llmc"), "has no <|endoftext|>")
    one_line_error(lambda: write_tokenizer(mapped, path, "llmc"), "token 270 has 0 bytes")
    one_line_error(lambda: write_tokenizer(long, path, "llmc"), "token 263 has 256 bytes")
    one_line_error(lambda: write_tokenizer(twins, path, "llmc", version=1), "version 1 is for GPT-2's 50257")
    one_line_error(lambda: write_tokenizer(twins, path, "llmc", version=3), "version is 3")
    one_line_error(lambda: write_tokenizer(twins, path, "onnx"), "kind is 'onnx'", "hf, tiktoken, llmc")
    assert not path.exists()
    write_tokenizer(twins, path, "llmc")
    with pytest.raises(UserError, match="cannot be created"):
        write_tokenizer(no_end, path, "hf")
    with pytest.raises(UserError, match="cannot write into"):
        write_tokenizer(twins, tmp_path / "no" / "x", "llmc")


# ---------------------------------------------------------------------------------------------------------------------
# What is damaged or not supported


def small_vocab():
    return {symbol: id for id, symbol in enumerate([*ID_TO_SYMBOL, "th", "the", END_OF_TEXT])}


def hf_fields(**changes):
    """A tokenizer.json, with changes: model__merges=[] is the field merges of model."""
    level = {"type": "ByteLevel", "add_prefix_space": False}
    fields = {"added_tokens": [{"id": 258, "content": END_OF_TEXT}], "normalizer": None, "pre_tokenizer": level}
    fields["decoder"] = level
    fields["model"] = {"type": "BPE", "vocab": small_vocab(), "merges": ["t h", ["th", "e"]]}
    for name, value in changes.items():
        *outer, name = name.split("__")
        (fields[outer[0]] if outer else fields)[name] = value
    return fields


NO_HF = [
    ({"model__type": "WordPiece"}, "model.type is 'WordPiece'"),
    ({"model": None}, "model.type is None"),
    ({"normalizer": {"type": "NFC"}}, "normalizer is {'type': 'NFC'}", "null"),
    ({"pre_tokenizer": None}, "pre_tokenizer is None", "ByteLevel"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is {'type': 'Whitespace'}"),
    ({"pre_tokenizer__add_prefix_space": 1}, "pre_tokenizer.add_prefix_space is 1"),
    ({"pre_tokenizer__use_regex": False}, "pre_tokenizer.use_regex is False"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {}}]}}, "post_processor is"),
    ({"post_processor": 3}, "post_processor is 3"),
    ({"decoder": {"type": "WordPiece"}}, "decoder is"),
    ({"decoder": None}, "decoder is None", "a space between tokens"),
    ({"model__dropout": 0.1}, "model.dropout is 0.1"),
    ({"model__continuing_subword_prefix": "##"}, "model.continuing_subword_prefix is '##'"),
    ({"model__end_of_word_suffix": "</w>"}, "model.end_of_word_suffix is '</w>'"),
    ({"model__ignore_merges": True}, "model.ignore_merges is True"),
    ({"model__vocab": None}, "vocab is None"),
    ({"model__vocab": {**small_vocab(), "th": 257}}, "id 257 twice, for 'th' and 'the'"),
    ({"model__vocab": {**small_vocab(), "th": -1}}, "-1 as id of 'th'"),
    ({"model__vocab": {**small_vocab(), "th": True}}, "True as id of 'th'"),
    ({"model__vocab": {**small_vocab(), "th": 10**30}}, "as id of 'th'"),
    ({"model__vocab": {**small_vocab(), "": 300}}, "'' as a token"),
    ({"model__vocab": {**small_vocab(), "\ud800": 300}}, "as a token"),
    ({"model__vocab": {k: v for k, v in small_vocab().items() if k != "Ā"}}, "no token 'Ā' for byte 0", "256 bytes"),
    ({"model__merges": None}, "merges is None"),
    ({"model__merges": ["t h", "t h"]}, "merges[1] is ['t', 'h'], and so is an earlier one"),
    ({"model__merges": ["t h e"]}, "merges[0] is ['t', 'h', 'e']"),
    ({"model__merges": [["t", 3]]}, "merges[0] is ['t', 3]"),
    ({"model__merges": [7]}, "merges[0] is 7"),
    ({"model__merges": ["t h", "x y"]}, "merges[1] is ['x', 'y'], but vocab has no token 'xy'"),
    ({"model__merges": ["t h", "th ee"]}, "merges[1] is ['th', 'ee'], not two tokens"),
    ({"added_tokens": 3}, "added_tokens is 3"),
    ({"added_tokens": [3]}, "added_tokens[0] is 3"),
    ({"added_tokens": [{"id": 258, "content": ""}]}, "added_tokens[0] is {'id': 258, 'content': ''}"),
    ({"added_tokens": [{"id": 258}]}, "added_tokens[0]"),
    ({"added_tokens": [{"id": 1.5, "content": "<x>"}]}, "added_tokens[0] is {'id': 1.5"),
    ({"added_tokens": [{"id": 9, "content": END_OF_TEXT}]}, "'<|endoftext|>' has the id 9", "assigns 258"),
    ({"added_tokens": [{"id": 9, "content": "<x>"}]}, "'<x>' has the id 9", "assigns 259"),
    ({"added_tokens": [{"id": 300, "content": "<x>", "lstrip": 1}]}, "added_tokens[0]: lstrip is 1"),
]


@pytest.mark.parametrize("case", NO_HF, ids=[case[1][:30] for case in NO_HF])
def test_tokenizer_json_that_is_damaged_or_not_supported(case, tmp_path):
    changes, *words = case
    path = tmp_path / "t"
    path.write_text(json.dumps(hf_fields(**changes)))
    one_line_error(lambda: load_tokenizer(path), str(path), *words)


def test_tokenizer_json_that_is_sound(tmp_path):
    path = tmp_path / "t"
    empty = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
    level = {"type": "ByteLevel"}
    fine = [{}, {"post_processor": empty}, {"post_processor": level}, {"model__byte_fallback": True}]
    for changes in [*fine, {"model__dropout": 0.0, "model__unk_token": "x"}, {"truncation": {"max_length": 3}}]:
        path.write_text(json.dumps(hf_fields(**changes)))
        assert_same(load_tokenizer(path), Tokenizer([(83, 71), (256, 68)]), 10)
    path.write_text(json.dumps(hf_fields(added_tokens=None)))
    assert isinstance(load_tokenizer(path), MappedTokenizer) and load_tokenizer(path).eot == 258
    path.write_text(json.dumps(hf_fields()).replace('"th": 256', '"th": 256, "th": 256'))
    one_line_error(lambda: load_tokenizer(path), "a name occurs twice")


def test_own_format_with_other_ids_is_checked_field_by_field(mapped):
    good = json.loads(mapped.to_json())
    damage = [({"version": 3}, "version is 3"), ({"version": True}, "version is True"),
              ({"pattern": "x"}, "pattern is"),
              ({"vocab": []}, "vocab is []"), ({"special": 3}, "special is 3"), ({"merges": "ab"}, "merges is 'ab'"),
              ({"special": {"<x>": 5}}, "'<x>' as id 5"), ({"added": 3}, "added is 3"), ({"end": 3}, "end is 3"),
              ({"added": [{"id": 500, "content": "<pad>"}]}, "twice"), ({"prefix_space": 1}, "prefix_space is 1"),
              ({"added": [{"id": 5, "content": "<x>"}]}, "'<x>' as id 5"), ({"added": [{"id": 500}]}, "{'id': 500}"),
              ({"added": [{"id": 500, "content": "<x>", "rstrip": 2}]}, "added has")]  # fmt: skip
    for changes, words in damage:
        one_line_error(lambda changes=changes: tokenizer_from_json(json.dumps(good | changes), "here"), "here: ", words)
    for field in good:
        rest = json.dumps({name: value for name, value in good.items() if name != field})
        one_line_error(lambda rest=rest: tokenizer_from_json(rest, "here"), "here: ", field)


def test_pairs_that_do_not_fit(ours, tmp_path):
    write_tokenizer(ours, tmp_path, "hf")
    vocab, path = json.loads((tmp_path / "vocab.json").read_text()), tmp_path / "vocab.json"
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nt h e\n")
    one_line_error(lambda: load_tokenizer(path), "merges.txt: line 3 is 't h e'")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nZ Q\n")
    one_line_error(lambda: load_tokenizer(path), "vocab.json with merges.txt: merges[0] is ('Z', 'Q')", "'ZQ'")
    path.write_text(json.dumps(vocab | {f"<{i}>": 1000 + i for i in range(2000)}))
    one_line_error(lambda: load_tokenizer(path), "vocab.json: merges.txt does not make 2", "of one tokenizer")


def test_ranks_that_are_damaged(ours, tmp_path):
    path = tmp_path / "t"
    write_tokenizer(ours, path, "tiktoken")
    lines = path.read_text().splitlines()
    for k, line, words in [(9, "Kg==", "line 10 is 'Kg=='"), (9, "K!== 9", "line 10 is"), (9, "Kg== x", "line 10"),
                           (9, "Kg== 8", "rank 8 a second time"), (9, lines[8][:-1] + "9", "b')' a second time"),
                           (9, "Kg== 99999999999", "line 10"), (300, "eHl6eHl6 300", "6 tokens of lower rank"),
                           (9, "Kg== -1", "line 10 is"), (9, "", "no token '*' for byte 42")]:  # fmt: skip
        path.write_text("\n".join([*lines[:k], line, *lines[k + 1 :]]))
        one_line_error(lambda: load_tokenizer(path), str(path), words)
    path.write_text("\n".join(f"{base64.b64encode(b'%d' % i).decode()} {i}" for i in range(100256)))
    one_line_error(lambda: load_tokenizer(path), "100256 ranks, as cl100k_base", "vocab.bpe")


def test_llmc_tables_that_are_damaged(ours, tmp_path):
    path = tmp_path / "t"
    write_tokenizer(ours, path, "llmc")
    data = path.read_bytes()

    def header(*numbers):
        return struct.pack(f"<{len(numbers)}I", *numbers) + data[4 * len(numbers) :]

    for content, words in [(data[:100], "has 100 bytes"), (data[:-1], "beyond the end"), (data + b"x", "1 bytes after"),
                           (header(20240328, 3), "version is 3"), (header(20240328, 1), "impossible in version 1"),
                           (header(20240328, 2, 2**32 - 1), "4294967295 tokens"), (header(20240328, 2, 0), "0 tokens"),
                           (header(20240328, 2, 400, 400), "400 as id"),
                           (header(20240328, 2, 399, 1), "after its last"),
                           (data[:1024] + b"\0" + data[1025:], "token 0 of 400, at byte 1024")]:  # fmt: skip
        path.write_bytes(content)
        one_line_error(lambda: load_tokenizer(path), str(path), words)


def mutate(data, rng):
    """A damaged copy: bytes changed, cut out, put in, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.choice([1, 1, 2, 30, 1000]))
        kind = rng.randrange(6)
        if kind == 0:
            data[place:end] = rng.randbytes(end - place)
        elif kind == 1:
            del data[place:end]
        elif kind == 2:
            data[place:place] = rng.choice([b'"', b"{", b"[", b",", b"0", b"9" * 30, b" ", b"\n", b"null", b"\\ud800"])
        elif kind == 3:
            data[place:place] = data[place:end] * rng.choice([1, 20])
        elif kind == 4:
            del data[place:]
        elif place < len(data):
            data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("kind", ["hf", "pair", "merges", "own", "tiktoken", "llmc"])
def test_damage_by_chance(kind, ours, mapped, tmp_path):
    """It is refused in one line, or results in a tokenizer that works; nothing takes long."""
    write_tokenizer(mapped, tmp_path, "hf")
    write_tokenizer(ours, tmp_path / "tiktoken", "tiktoken")
    write_tokenizer(ours, tmp_path / "llmc", "llmc")
    mapped.save(tmp_path / "own")
    names = {"hf": "tokenizer.json", "pair": "vocab.json", "merges": "merges.txt"}
    path = tmp_path / names.get(kind, kind)
    sound, rng, refused = path.read_bytes(), random.Random(kind), 0
    for _ in range(400):
        path.write_bytes(mutate(sound, rng))
        begin = time.perf_counter()
        try:
            tok = load_tokenizer(path)
        except TokenizerError as error:
            message = str(error)
            assert "\n" not in message and 20 < len(message) < 700 and str(tmp_path) in message, message
            refused += 1
        else:
            for text in ("", "the sea\x00 \ud800", b"\xff"):
                if not isinstance(tok, DecodeOnlyTokenizer):
                    ids = tok.encode(text, special="allowed")
                    assert tok.decode_bytes(ids) == as_text(text).encode("utf-8", "surrogateescape")
            assert len(tok.token_bytes(tok.n_vocab - 1)) > 0
        assert time.perf_counter() - begin < 3
    assert refused > 100


def test_files_that_ask_for_much(tmp_path):
    """Long chains of merges, deep JSON, huge numbers: all in bounded time."""
    path, begin = tmp_path / "t", time.perf_counter()
    singles = [bytes([byte]) for byte in range(256)]
    tokens = [*singles, *(b"a" * n for n in range(2, 1000)), b"a" * 60_000]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {k}\n" for k, token in enumerate(tokens)))
    one_line_error(lambda: load_tokenizer(path), "tokens of lower rank")
    vocab = {symbol: id for id, symbol in enumerate([*ID_TO_SYMBOL, *("a" * n for n in range(2, 200))])}
    merges = [["a" * i, "a" * j] for i in range(1, 100) for j in range(1, 100)]
    path.write_text(json.dumps(hf_fields(model__vocab=vocab, model__merges=merges, added_tokens=[])))
    one_line_error(lambda: load_tokenizer(path), "too many other merges")
    for content in ("{" * 100_000, '{"a":' + "[" * 100_000, '{"model":' + "9" * 10_000 + "}", "{}", '{"model":{}}'):
        path.write_text(content)
        one_line_error(lambda: load_tokenizer(path))
    with path.open("wb") as file:
        file.truncate(1 << 33)
    one_line_error(lambda: load_tokenizer(path), "is not complete")
    if Path("/dev/zero").exists():
        one_line_error(lambda: load_tokenizer("/dev/zero"), "is a device; give the name of a regular file")
    assert time.perf_counter() - begin < 20
