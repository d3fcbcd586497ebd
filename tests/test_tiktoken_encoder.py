"""tiktoken, if it is installed, returns the same ids as ours, or is not used."""

import random
from array import array

import pytest

from tinygrad2.tokenizers import parallel, pretokenizer
from tinygrad2.tokenizers.char import CharTokenizer
from tinygrad2.tokenizers.tiktoken_encoder import fast_encoder
from tinygrad2.tokenizers.tokenizer import Tokenizer

TEXT = "The cat's hat, the rat's 12 mats; naïve café 日本語 🙂\n\n  I'LL we'll\t x " * 40
PARTS = ["'s", "'LL", " ", "  ", "\n", "\u2003", "\x1c", "a", "é", "日", "🙂", "12", "\u0301", "!?", "\U000323b0",
         "\u208f", "\U000105c0", "\ud800", "<|endoftext|>", "\0"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    return Tokenizer.train(TEXT, 600)


def strings(n, seed=0):
    rng = random.Random(seed)
    for _ in range(n):
        yield "".join(rng.choice(PARTS) if rng.random() < 0.8 else chr(rng.randrange(0x30000)) for _ in range(20))


def test_the_same_ids_for_nasty_strings_and_bytes(tokenizer):
    encode = fast_encoder(tokenizer)
    for text in [*strings(3000), TEXT, "", " " * 5000, " " * 5000 + "a"]:
        assert encode(text) == tokenizer.encode_array(text), ascii(text)
    for raw in (b"\xff\xfe", "naïve".encode() + b"\xc3", bytes(range(256))):
        assert encode(raw) == tokenizer.encode_array(raw)


def test_long_texts_are_cut_where_no_chunk_is(tokenizer, monkeypatch):
    monkeypatch.setattr(pretokenizer, "BLOCK", 7)
    for text in [*strings(1000, seed=1), TEXT]:
        assert fast_encoder(tokenizer)(text) == tokenizer.encode_array(text), ascii(text)


def test_it_is_asked_for_large_texts_only_and_by_workers_too(tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(parallel, "fast_encoder", lambda tokenizer: asked.append(1) or fast_encoder(tokenizer))
    documents = [TEXT * 200] * 3
    expected = parallel.encode_stream(documents, tokenizer, workers=1)
    assert not asked
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 1000)
    assert parallel.encode_stream(documents, tokenizer, workers=1) == expected and asked == [1]
    monkeypatch.setattr(parallel, "SHARE", 100_000)
    assert parallel.encode_stream(documents, tokenizer, workers=2) == expected


def test_it_is_not_asked_where_ids_could_differ(tokenizer):
    assert fast_encoder(CharTokenizer.train("abc")) is None
    twice = Tokenizer([(64, 65), (65, 66), (256, 66), (64, 257)])  # "abc" by two ways: bytes do not tell them apart
    assert fast_encoder(twice) is None and twice.encode("abc") == [258]
    hidden = Tokenizer([(64, 65), (65, 66), (64, 257)])  # "abc" is never made: a + b comes before b + c
    assert hidden.encode("abc") == [256, 66] and fast_encoder(hidden) is None


def test_another_unicode_is_not_asked(tokenizer, monkeypatch):
    import tiktoken

    class Newer(tiktoken.Encoding):
        def encode_ordinary(self, text):
            return [1] * len(text) if self.name == "letters" else super().encode_ordinary(text)

    monkeypatch.setattr(tiktoken, "Encoding", Newer)
    assert fast_encoder(Tokenizer([(64, 65)])) is None


def test_without_tiktoken_there_is_none(tokenizer, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert fast_encoder(Tokenizer([(64, 65)])) is None
    assert parallel.encode_stream([b"ab"], Tokenizer([(64, 65)])) == array("i", [256, 257])
