"""The tokenizer: GPT-2's own ids, the plain and the fast way held equal, no byte lost, no bad file believed."""

import doctest
import json
import pickle
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import regex

from tinygrad2.errors import UserError
from tinygrad2.tokenizers import bpe, pretokenizer, tokenizer
from tinygrad2.tokenizers.bpe import apply_merges, apply_merges_plain, train_merges, train_merges_plain
from tinygrad2.tokenizers.pretokenizer import WORDS, count_chunks, split, word_blocks
from tinygrad2.tokenizers.streaming import StreamDecoder
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, ID_TO_SYMBOL, PATTERN, Tokenizer, TokenizerError

DATA = Path(__file__).parents[1].parent / "shared" / "data"  # next to the repository, only where it is developed

PROSE = "She sells sea shells by the sea shore; the shells she sells are sea shells, I'm sure. " * 3
AWKWARD = (
    "I'LL it's  naïve\tcafé\r\n\n 日本語 🙂👩‍👩‍👧 1234567 ٣٤ a\u00a0b \u3000 ½ Ǆ "
    "\ufeff \x1c\x85\u2028 e\u0301 <|endoftext|> ''s -- 'd\x00"
)
TEXTS = ["", "a", " ", "ab" * 40, "aaaaa aaa aaaa aa a", "abc bca cab abc bca cab", PROSE, AWKWARD * 3]


def shared_file(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} in a folder shared/data next to the repository (a file of OpenAI's or Karpathy's)")
    return path


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.from_merges_txt(shared_file("vocab.bpe"))


@pytest.fixture(scope="module")
def shakespeare():
    return shared_file("tinyshakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small():
    """A tokenizer with a few dozen merges, most of them on plain English, some inside multi-byte characters."""
    return Tokenizer.train([PROSE, AWKWARD * 3], vocab_size=330)


def chunk_counts(text):
    counts = {}
    for chunk in split(text):
        ids = tokenizer.chunk_to_ids(chunk)
        counts[ids] = counts.get(ids, 0) + 1
    return counts


def awkward_strings(n, seed=0):
    """Random strings over characters that split or encode in unusual ways, and over all of Unicode."""
    rng = random.Random(seed)
    pool = list(AWKWARD + "sdmtrvel'’  \n\n") + ["'re", "'ll", "  ", END_OF_TEXT, "the", "<|", "|>"]
    for _ in range(n):
        pieces = rng.choices(pool, k=rng.randrange(30))
        pieces += [chr(rng.randrange(0x110000)) for _ in range(rng.randrange(4))]  # lone surrogates among them
        rng.shuffle(pieces)
        yield "".join(pieces)


def test_docstring_examples():
    for module in (bpe, pretokenizer, tokenizer):
        result = doctest.testmod(module)
        assert result.attempted > 4 and result.failed == 0


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2's ids


GPT2_VECTORS = [
    ("", []),
    ("hello world", [31373, 995]),
    ("Hello world", [15496, 995]),
    ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
    ("goodbye world", [11274, 16390, 995]),
    ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    (" \n\n  x", [220, 628, 220, 2124]),
    ("hello   world  ", [31373, 220, 220, 995, 220, 220]),
    ("I'LL it's", [40, 6, 3069, 340, 338]),
    ("1234567 ٣٤", [10163, 2231, 3134, 18923, 96, 149, 97]),
    ("naïve café 日本語 🙂", [2616, 38776, 40304, 10545, 245, 98, 17312, 105, 45739, 252, 32485]),
    ("a\u00a0b", [64, 1849, 65]),
    ("\t\tfoo\r\n", [197, 197, 21943, 201, 198]),
]


@pytest.mark.parametrize("text, ids", GPT2_VECTORS)
def test_gpt2_ids(gpt2, text, ids):
    assert gpt2.encode(text) == ids
    assert gpt2.decode(ids) == text


def test_gpt2_layout(gpt2):
    assert (gpt2.n_vocab, gpt2.eot) == (50257, 50256)
    for symbol, id in [("!", 0), ("~", 93), (" ", 220), ("\n", 198), ("a", 64)]:
        assert gpt2.token_bytes(id) == symbol.encode()
    assert gpt2.token_bytes(255) == b"\xad" and gpt2.token_bytes(50256) == b"<|endoftext|>"


def test_gpt2_vocabulary_is_openais(gpt2):
    expected = json.loads(shared_file("encoder.json").read_text(encoding="utf-8"))
    symbols = list(ID_TO_SYMBOL)
    for left, right in gpt2.merges:
        symbols.append(symbols[left] + symbols[right])
    assert {symbol: id for id, symbol in enumerate([*symbols, END_OF_TEXT])} == expected


def test_gpt2_on_a_complete_book(gpt2, shakespeare):
    ids = gpt2.encode(shakespeare)
    assert len(ids) == 338_025
    assert gpt2.decode(ids) == shakespeare


def tiktoken_twin(tok):
    """tiktoken's encoder with our merges: it wants the bytes of each token and, as its rank, our id."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {tok.token_bytes(id): id for id in range(tok.eot)}
    return tiktoken.Encoding("twin", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: tok.eot})


@pytest.mark.parametrize("which", ["gpt2", "small"])
def test_equals_tiktoken(which, request):
    ours = request.getfixturevalue(which)
    twin = tiktoken_twin(ours)
    for text in [*TEXTS, *awkward_strings(2000)]:
        assert ours.encode(text) == twin.encode_ordinary(text), ascii(text)
        assert ours.encode(text, special="allowed") == twin.encode(text, allowed_special="all"), ascii(text)
        ids = ours.encode(text)
        assert ours.decode(ids) == twin.decode(ids) and ours.decode_bytes(ids) == twin.decode_bytes(ids)


# ---------------------------------------------------------------------------------------------------------------------
# Chunks


def test_words_hold_whole_chunks():
    every_character = "".join(map(chr, range(0x110000)))
    white = regex.findall(r"\s", every_character)
    assert re.findall(r"[^\S\x1c-\x1f]", every_character) == white and len(white) == 25
    in_company = (f"a{c}b {c} {c}\n{c}!{c}'s{c}{c}" for c in [*white, *"\x1c\x1d\x1e\x1f\u200b_'é٣\ud800"])
    for text in [*TEXTS, *awkward_strings(3000, seed=7), *in_company]:
        words = WORDS.findall(text)
        assert [chunk for word in words for chunk in split(word)] == split(text), ascii(text)


def test_blocks_cut_no_word(monkeypatch):
    for size in (1, 2, 7, 100):
        monkeypatch.setattr(pretokenizer, "BLOCK", size)
        for text in [*TEXTS, *awkward_strings(300, seed=8)]:
            assert [word for block in word_blocks(text) for word in block] == WORDS.findall(text), ascii(text)


def test_chunks_are_counted(monkeypatch):
    texts = [*TEXTS, *(re.sub("[\ud800-\udfff]", "", text) for text in awkward_strings(100, seed=9))]
    expected = Counter(chunk for text in texts for chunk in split(text))
    assert count_chunks(texts) == expected
    monkeypatch.setattr(pretokenizer, "BLOCK", 50)
    assert count_chunks(iter(texts)) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_wikipedia_example():
    """https://en.wikipedia.org/wiki/Byte-pair_encoding: aaabdaaabac -> ZabdZabac -> ... -> XdXac."""
    tok = Tokenizer.train("aaabdaaabac", vocab_size=257 + 3)
    assert [tok.token_bytes(id) for id in (256, 257, 258)] == [b"aa", b"ab", b"aaab"]  # Z = aa, Y = ab, X = ZY
    assert [tok.token_bytes(id) for id in tok.encode("aaabdaaabac")] == [b"aaab", b"d", b"aaab", b"a", b"c"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_plain_and_fast_training_agree(text):
    counts = chunk_counts(text)
    assert train_merges(counts, 100) == train_merges_plain(counts, 100)


def test_plain_and_fast_training_agree_on_ties():
    """Few letters and small counts: nearly every choice is a tie, and words like "aaaa" overlap with themselves."""
    rng = random.Random(1)
    for _ in range(300):
        word = [tuple(rng.choices(range(rng.choice([1, 2, 3])), k=rng.randrange(1, 12))) for _ in range(8)]
        counts = {ids: rng.randrange(1, 4) for ids in word}
        assert train_merges(counts, 40) == train_merges_plain(counts, 40), counts


def test_plain_and_fast_training_agree_on_a_book(shakespeare):
    counts = chunk_counts(shakespeare[:30_000])
    assert train_merges(counts, 200) == train_merges_plain(counts, 200)


def hugging_face_merges(texts, vocab_size):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # without <|endoftext|>, which would take id 0
        min_frequency=2,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    vocab = model.get_vocab()
    return [(vocab[left], vocab[right]) for left, right in json.loads(model.to_str())["model"]["merges"]]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_training_equals_hugging_face(text):
    assert list(Tokenizer.train(text, 400).merges) == hugging_face_merges([text], 400)


def test_training_on_a_book(shakespeare):
    start = time.perf_counter()
    tok = Tokenizer.train(shakespeare, 4096)
    assert time.perf_counter() - start < 10  # 0.4 s on the machine it was written on
    assert tok.n_vocab == 4096
    assert list(tok.merges) == hugging_face_merges([shakespeare], 4096)
    assert tok.encode(shakespeare[:50_000]) == tiktoken_twin(tok).encode_ordinary(shakespeare[:50_000])


def test_training_stops_early_without_pairs_that_repeat():
    assert Tokenizer.train("", 1000).n_vocab == 257
    assert Tokenizer.train("abcdefg", 1000).n_vocab == 257
    assert Tokenizer.train("ab ab", 1000).n_vocab == 258  # "ab" occurs twice, " ab" once


@pytest.mark.parametrize("vocab_size", [-1, 0, 256])
def test_vocab_size_too_small(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}, .*choose 257 or more"):
        Tokenizer.train("text", vocab_size)


def test_training_on_documents_and_bytes():
    whole = Tokenizer.train("the cat\nthe hat", 300).merges
    assert Tokenizer.train(b"the cat\nthe hat", 300).merges == whole
    assert Tokenizer.train((line for line in ["the cat", "\n", "the hat"]), 300).merges == whole


def test_progress():
    seen = []
    Tokenizer.train(PROSE, 257 + 5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


# ---------------------------------------------------------------------------------------------------------------------
# Encoding and decoding


def test_plain_and_fast_encoding_agree(small):
    rng = random.Random(2)
    for _ in range(300):
        ids = tuple(rng.choices(range(64, 64 + rng.choice([1, 2, 4, 26])), k=rng.randrange(100)))  # short and long
        assert apply_merges(ids, small.merges) == apply_merges_plain(ids, small.merges)


def test_plain_and_fast_encoding_agree_on_any_merges():
    rng = random.Random(3)
    for _ in range(200):
        merges = {}
        for new_id in range(256, 256 + 30):
            known = [0, 1, 2, *range(256, new_id)]
            merges.setdefault((rng.choice(known), rng.choice(known)), new_id)
        ids = tuple(rng.choices(range(3), k=rng.choice([39, 40, 41, 60])))
        assert apply_merges(ids, merges) == apply_merges_plain(ids, merges)


def test_any_text_round_trips(small):
    for text in awkward_strings(500, seed=4):
        ids = small.encode(text)
        without_surrogates = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert small.decode(ids) == without_surrogates
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 17)]))
    assert small.decode(small.encode(every_character)) == every_character


def test_any_bytes_round_trip(small):
    rng = random.Random(5)
    for size in [0, 1, 2, 3, 10, 100, 5000]:
        for _ in range(20):
            data = rng.randbytes(size) + rng.choice([b"", "é日🙂".encode()[: rng.randrange(9)]])
            assert small.decode_bytes(small.encode(data)) == data
    assert small.decode_bytes(small.encode(bytes(range(256)))) == bytes(range(256))


def test_bytes_of_a_text_encode_like_the_text(small):
    for text in TEXTS:
        assert small.encode(text.encode()) == small.encode(text)


def test_lone_surrogates_become_the_replacement_character(small):
    assert small.decode(small.encode("a\ud800b\udcff")) == "a\ufffdb\ufffd"
    assert small.decode(small.encode("\ud83d\ude42")) == "🙂"  # two halves side by side make one character


def test_special_token(small):
    assert small.eot == small.n_vocab - 1
    text = f"one{END_OF_TEXT}{END_OF_TEXT} two{END_OF_TEXT}"
    assert small.eot not in small.encode(text) and small.decode(small.encode(text)) == text
    one, two, eot = small.encode("one"), small.encode(" two"), small.eot
    expected = [*one, eot, eot, *two, eot]
    assert small.encode(text, special="allowed") == expected
    assert small.encode(text.encode(), special="allowed") == expected
    assert small.decode(expected) == text
    assert small.encode("<|endoftext|", special="allowed") == small.encode("<|endoftext|")


@pytest.mark.parametrize("id", [-1, 330, 50257])
def test_ids_outside_the_vocabulary(small, id):
    for use in (small.token_bytes, lambda id: small.decode([0, id]), StreamDecoder(small).feed):
        with pytest.raises(ValueError, match=f"token id {id} is not in this vocabulary; use 0 to 329"):
            use(id)


def test_ids_may_be_numpy(small):
    np = pytest.importorskip("numpy")
    assert small.decode(np.array(small.encode("sea shells"), dtype=np.uint16)) == "sea shells"


@pytest.mark.parametrize("chunk", ["a" * 50_000, " " * 50_000, "abcdefghij" * 5_000, "🙂" * 12_500])
def test_long_chunks_take_no_long_time(chunk):
    tok = Tokenizer.train([chunk, PROSE], 400)
    start = time.perf_counter()
    ids = tok.encode(chunk)
    assert time.perf_counter() - start < 2  # measured 0.1 s; the plain way needs minutes where many merges apply
    assert tok.decode(ids) == chunk


def test_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer, "MAX_CACHE", 10)
    tok = Tokenizer([])
    for n in range(1000):
        assert tok.decode(tok.encode(f" {n} {n}")) == f" {n} {n}"
        assert len(tok._cache) <= 10
    tok.encode("a" * 1000)
    assert "a" * 1000 not in tok._cache


def test_stream_never_splits_a_character():
    tok = Tokenizer([])  # one token a byte: each emoji comes in four
    stream = StreamDecoder(tok)
    assert [stream.feed(id) for id in tok.encode("né🙂!")] == ["n", "", "é", "", "", "", "🙂", "!"]
    assert stream.flush() == ""
    cut = [stream.feed(id) for id in tok.encode("🙂")[:3]]
    assert cut == ["", "", ""] and stream.flush() == "\ufffd" and stream.flush() == ""
    assert stream.feed(tok.encode("a")[0]) == "a"  # nothing is left over for the next text


def test_stream_returns_what_decode_returns(small):
    rng = random.Random(6)
    for _ in range(200):
        ids = rng.choices(range(small.n_vocab), k=30)
        stream = StreamDecoder(small)
        assert "".join([stream.feed(id) for id in ids] + [stream.flush()]) == small.decode(ids)


def test_a_tokenizer_can_go_to_another_process(small):
    assert pickle.loads(pickle.dumps(small)).encode(AWKWARD) == small.encode(AWKWARD)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def assert_same(a, b):
    assert a.merges == b.merges and list(a.merges) == list(b.merges) and a.eot == b.eot
    assert a.encode(AWKWARD) == b.encode(AWKWARD)


def test_save_and_load(small, tmp_path):
    path = tmp_path / "tokenizer.json"
    small.save(path)
    assert_same(Tokenizer.load(path), small)
    assert_same(Tokenizer.load(str(path)), small)
    assert_same(Tokenizer.from_json(small.to_json()), small)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]  # no temporary file is left
    assert json.loads(path.read_text())["special"] == {END_OF_TEXT: small.eot}


def test_save_and_load_gpt2(gpt2, tmp_path):
    gpt2.save(tmp_path / "gpt2.json")
    assert_same(Tokenizer.load(tmp_path / "gpt2.json"), gpt2)


def one_line_error(call, source, *words):
    """The call fails as both kinds of error do that callers look for, in one line that names the file and the rest."""
    with pytest.raises(TokenizerError) as caught:
        call()
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, UserError)
    message = str(caught.value)
    assert message.startswith(f"{source}: ") and "; " in message, message  # the remedy follows the semicolon
    assert "\n" not in message and len(message) < 300 + len(str(source))
    for word in words:
        assert word in message, message


GOOD = {"format": "tinygrad2-bpe", "version": 1, "pattern": PATTERN, "merges": [[83, 71], [256, 68]]}
GOOD["special"] = {END_OF_TEXT: 258}

DAMAGE = {
    "other format": ({"format": "other"}, "format", "'other'"),
    "no format": ({"format": None}, "format", "None"),
    "newer version": ({"version": 2}, "version is 2", "update tinygrad2"),
    "version is a text": ({"version": "1"}, "version is '1'"),
    "version is true": ({"version": True}, "version is True"),
    "other pattern": ({"pattern": r"\w+"}, "pattern is", "w+"),
    "evil pattern": ({"pattern": "(a+)+\n" * 1000}, "pattern is"),
    "no list": ({"merges": "x\ny"}, "merges is 'x\\ny'"),
    "missing merges": ({"merges": None}, "merges is None"),
    "a merge of three": ({"merges": [[83, 71, 5]]}, "merges[0] is [83, 71, 5]"),
    "no pair": ({"merges": [[83, 71], 7]}, "merges[1] is 7"),
    "a text for an id": ({"merges": [[83, "71"]]}, "merges[0] is [83, '71']"),
    "a fraction for an id": ({"merges": [[83.0, 71]]}, "merges[0] is [83.0, 71]"),
    "true for an id": ({"merges": [[True, 71]]}, "merges[0] is [True, 71]"),
    "negative id": ({"merges": [[83, 71], [-1, 5]], "special": {END_OF_TEXT: 258}}, "merges[1] is [-1, 5]", "0 to 256"),
    "own id": ({"merges": [[83, 71], [257, 5]]}, "merges[1] is [257, 5]", "0 to 256"),
    "later id": ({"merges": [[83, 71], [5, 10**50]]}, "merges[1] is [5, 1000", "0 to 256"),
    "same pair twice": ({"merges": [[83, 71], [83, 71]]}, "merges[1] is [83, 71], as is merges[0]"),
    "wrong special id": ({"special": {END_OF_TEXT: 257}}, "special is", "258"),
    "special id a fraction": ({"special": {END_OF_TEXT: 258.0}}, "special is", "258"),
    "other special": ({"special": {"<|end|>": 258}}, "special is", "<|end|>"),
    "two specials": ({"special": {END_OF_TEXT: 258, "<|x|>": 259}}, "special is"),
    "no special": ({"special": None}, "special is None"),
    "a token of a terabyte": (
        {"merges": [[0, 0]] + [[255 + k, 255 + k] for k in range(1, 40)], "special": {END_OF_TEXT: 296}},
        f"merges[26] makes a token of {2**27} bytes",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_fields_are_refused(damage, tmp_path):
    changes, *words = DAMAGE[damage]
    path = tmp_path / "tok.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    one_line_error(lambda: Tokenizer.load(path), path, *words)


@pytest.mark.parametrize("field", GOOD)
def test_missing_fields_are_refused(field):
    text = json.dumps({key: value for key, value in GOOD.items() if key != field})
    one_line_error(lambda: Tokenizer.from_json(text, source="weights.bin"), "weights.bin", f"{field} is None")


NO_TOKENIZER = {
    "empty": b"",
    "cut": b"{",
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "text": b'"text"',
    "no fields": b"{}",
    "no UTF-8": b"\xff\xfe",
    "pickle": pickle.dumps({"format": "tinygrad2-bpe"}),
    "nested too deep": b"[" * 100_000,
    "a number too long": b"9" * 10_000,
}


@pytest.mark.parametrize("content", NO_TOKENIZER.values(), ids=NO_TOKENIZER.keys())
def test_what_is_no_tokenizer_file_is_refused(content, tmp_path):
    path = tmp_path / "tok.json"
    path.write_bytes(content)
    one_line_error(lambda: Tokenizer.load(path), path)


def test_a_cut_file_is_refused(small, tmp_path):
    path = tmp_path / "tok.json"
    text = small.to_json()
    for end in range(0, len(text), 7):
        path.write_text(text[:end])
        one_line_error(lambda: Tokenizer.load(path), path)


def test_a_missing_file_is_named(tmp_path):
    for read in (Tokenizer.load, Tokenizer.from_merges_txt):
        one_line_error(lambda read=read: read(tmp_path / "none.json"), tmp_path / "none.json", "No such file")
        one_line_error(lambda read=read: read(tmp_path), tmp_path, "is a folder")


@pytest.mark.parametrize("text", ["#version: 0.2\nt h\nth e\n", "t h\nth e", "#version: 0.2\r\nt h\r\nth e\r\n\r\n"])
def test_merges_txt(text, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(text.encode())
    assert list(Tokenizer.from_merges_txt(path).merges) == [(83, 71), (256, 68)]


@pytest.mark.parametrize(
    "line, words",
    [
        ("th e", "line 3 is 'th e'"),  # "th" is made by no earlier line
        ("t", "line 3 is 't'"),
        ("t  h", "line 3 is 't  h'"),
        ("t h e", "line 3 is 't h e'"),
        ("t \x00", "line 3 is 't \\x00'"),
        ("Ġ a", "line 3 makes token 'Ġa' a second time"),
        ("x" * 5000, "line 3"),
    ],
)
def test_damaged_merges_txt_is_refused(line, words, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(f"#version: 0.2\nĠ a\n{line}\n".encode())
    one_line_error(lambda: Tokenizer.from_merges_txt(path), path, words)
