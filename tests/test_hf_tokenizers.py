"""Folders of Hugging Face tokenizers with all kinds of settings: the ids and texts of transformers, or a refusal.

In every case but those of REFUSED the ids must be equal, and the settings survive our own file and an export.
"""

import json
import random
import warnings

import pytest

from tinygrad2.tokenizers.export import write_tokenizer
from tinygrad2.tokenizers.load import load_tokenizer, tokenizer_from_json
from tinygrad2.tokenizers.mapped import MappedTokenizer
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, ID_TO_SYMBOL, Tokenizer, TokenizerError

TRAINED_ON = "the cat sat on the mat. New york is a word, I'm sure of it. 日本語 é ü 🙂 12 34\n\n" * 5
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WITH_SPACE = LEVEL | {"add_prefix_space": True}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\t", "a", " a", "a ", "the cat sat", "  the  cat\n", "I'm sure\u00a0of it", "\r\nx",
    END_OF_TEXT, END_OF_TEXT * 2, f"the cat{END_OF_TEXT} sat", f" {END_OF_TEXT} {END_OF_TEXT}\n", f"{END_OF_TEXT}é",
    f"a{END_OF_TEXT}\n\n{END_OF_TEXT}b", "<|endof", "<|endoftext |>", "<s>the cat</s>", "a <s> b</s> c", "<s></s>",
    "<pad>", "<pad><pad>>", "a<pad>>b", "[PAD] [PAD]", "x[PAD]", "the <mask> sat", "the   <mask>   sat", "<mask>\n",
    "<mask>  <mask>", "\u3000<mask>\u2003", "word", "words word", "sword", "word.", " word ", "_word", "word_", "wordé",
    "word\u0301", "日word本", "word\u200dx", "1word 2", "new york", "new yorker", "New york new york", "new\nyork",
    "<|im_start|>user\nthe cat<|im_end|>\n", "<|im_start|><|im_end|>", "é|", "<é>", "e\u0301", "日本語", "日本 語",
    "🙂🙂", "\ufeffx", "12345 ٣", "\x00\x7f", "<a b>", "< a b>", "<unk>", "<foo>", "the<foo>cat", "catnip <tab>\t<tab>",
]  # fmt: skip


def small_vocab(special=(END_OF_TEXT,), first=False):
    """({token: id}, merges) of a small tokenizer, with `special` tokens after the others, or before them."""
    merges, tokens = [], list(ID_TO_SYMBOL)
    for left, right in Tokenizer.train(TRAINED_ON, 320).merges:
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    tokens = [*special, *tokens] if first else [*tokens, *special]
    return {token: id for id, token in enumerate(tokens)}, merges


def added(content, id=None, **flags):
    """An added token as tokenizer.json has it, or without an id as tokenizer_config.json does."""
    fields = dict(content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return ({} if id is None else {"id": id}) | fields | flags


def write_folder(
    path, *, pair=False, tokens=None, special=(END_OF_TEXT,), first=False, model=None, steps=None, lines=None,
    vocab=None, model_type="gpt2", **files,
):  # fmt: skip
    """Write the files of a tokenizer; `files` are JSON files by their names.

    pair      vocab.json and merges.txt, instead of a tokenizer.json with the added `tokens`, the fields `model` and
              the fields `steps` around the model
    special   tokens that the vocabulary has besides those of its merges
    lines     from the merges as lines to the bytes of merges.txt
    """
    path.mkdir(exist_ok=True)
    own_vocab, merges = small_vocab(special, first)
    vocab = own_vocab | (vocab or {})
    merges = [" ".join(pair) for pair in merges]
    if pair:
        (path / "vocab.json").write_text(json.dumps(vocab))
        text = "\n".join(["#version: 0.2", *merges, ""]).encode() if lines is None else lines(merges)
        (path / "merges.txt").write_bytes(text)
    if not pair or pair == "both":
        if tokens is None:
            tokens = [added(token, vocab[token]) for token in special]
        fields = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None}
        fields |= {"pre_tokenizer": LEVEL, "post_processor": LEVEL, "decoder": LEVEL} | (steps or {})
        fields["model"] = {"type": "BPE", "dropout": None, "vocab": vocab, "merges": merges} | (model or {})
        (path / "tokenizer.json").write_text(json.dumps(fields))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    if model_type:
        (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return path


N = len(small_vocab()[0])  # the first free id
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
SLOW = {"tokenizer_class": "GPT2Tokenizer"}
MASK = added("<mask>", N, lstrip=True)
WORD = added("word", N, special=False, single_word=True, normalized=True)
IM = [added("<|im_start|>", N), added("<|im_end|>", N + 1)]
END = added(END_OF_TEXT, N - 1)
OLD = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}  # special_tokens_map.json's
DECODER = {str(N - 1): added(END_OF_TEXT), str(N): added("<tab>", rstrip=True)}
S = {"special": ("<s>", "</s>", "<unk>", "<pad>"), "first": True}
BOS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, SEQUENCE],
       "pair": [SEQUENCE, {"Sequence": {"id": "B", "type_id": 1}}],
       "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [N - 1], "tokens": [END_OF_TEXT]}}}  # fmt: skip
FIXED = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
         "pad_token": "!"}  # fmt: skip
SHORT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}

EQUAL = {
    "pair": dict(pair=True),
    "pair, no version line": dict(pair=True, lines=lambda lines: "\n".join([*lines, ""]).encode()),
    "pair, other line ends": dict(pair=True, lines=lambda lines: "\r\n".join(["#version: 0.2", *lines, ""]).encode()),
    "pair, no line end": dict(pair=True, lines=lambda lines: "\n".join(["#version: 0.2", *lines]).encode()),
    "pair, class named": dict(pair=True, tokenizer_config=SLOW, model_type=None),
    "pair, prefix space": dict(pair=True, tokenizer_config={"add_prefix_space": True}),
    "pair, [PAD] added": dict(pair=True, added_tokens={"[PAD]": N}, special_tokens_map={"pad_token": "[PAD]"}),
    "pair, [PAD] and words added": dict(
        pair=True, added_tokens={"new york": N, "[PAD]": N + 1, "word": N + 2}, tokenizer_config={"pad_token": "[PAD]"}
    ),
    "pair, old special tokens": dict(
        pair=True, special_tokens_map={name: {"content": END_OF_TEXT, **OLD} for name in ("bos_token", "eos_token")}
    ),
    "pair, old special tokens and a new one": dict(
        pair=True, special_tokens_map={"eos_token": {"content": END_OF_TEXT, **OLD}, "pad_token": END_OF_TEXT,
                                       "additional_special_tokens": ["[PAD]"]}
    ),
    "pair, mask that strips": dict(
        pair=True, special_tokens_map={"mask_token": {"content": "<mask>", **OLD, "lstrip": True}}
    ),
    "pair, <s> first": dict(
        pair=True, **S, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    ),
    "pair, eos alone named": dict(pair=True, **S, special_tokens_map={"eos_token": "</s>"}),
    "pair, no end of text": dict(pair=True, special=()),
    "pair, undeclared": dict(pair=True, special=(END_OF_TEXT, "<pad>", "<s>")),
    "pair, additional": dict(
        pair=True, special_tokens_map={"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    ),
    "pair, decoder of added": dict(
        pair=True, tokenizer_config={"added_tokens_decoder": DECODER},
    ),
    "pair, other settings": dict(
        pair=True, tokenizer_config={"errors": "strict", "model_max_length": 3, "clean_up_tokenization_spaces": True,
                                     "padding_side": "left", "add_bos_token": False, "chat_template": "{{ x }}"},
    ),
    "both": dict(pair="both", tokenizer_config=SLOW),
    "both, bos next to json": dict(pair="both", tokenizer_config=SLOW | {"add_bos_token": True, "add_eos_token": True}),
    "json": dict(),
    "json alone": dict(model_type=None),
    "json, class of fast ones": dict(tokenizer_config=FAST),
    "json, version 5's class": dict(tokenizer_config={"tokenizer_class": "TokenizersBackend"}),
    "json, merges as pairs": dict(model={"merges": [list(pair) for pair in small_vocab()[1]]}),
    "json, prefix space in file": dict(steps={"pre_tokenizer": WITH_SPACE}, tokenizer_config=FAST),
    "json, prefix space in file, GPT-2": dict(steps={"pre_tokenizer": WITH_SPACE}, tokenizer_config=SLOW),
    "json, prefix space in config": dict(tokenizer_config=FAST | {"add_prefix_space": True}),
    "json, prefix space in config, GPT-2": dict(tokenizer_config=SLOW | {"add_prefix_space": True}),
    "json, prefix space and tokens": dict(
        steps={"pre_tokenizer": WITH_SPACE}, tokenizer_config=FAST, tokens=[END, MASK, added("é|", N + 1)]
    ),
    "json, mask that strips": dict(tokens=[END, MASK]),
    "json, strips on both sides": dict(tokens=[END, MASK | {"rstrip": True}, added("\n", N + 1, rstrip=True)]),
    "json, a word": dict(tokens=[END, WORD]),
    "json, words, one inside another": dict(
        tokens=[END, WORD, added("new york", N + 1, special=False), added("new", N + 2, special=False)]
    ),
    "json, normalized after the others": dict(
        tokens=[END, added("<pad>", N, normalized=True), added("<pad>>", N + 1, normalized=True), added("pad", N + 2)]
    ),
    "json, prefixes of each other": dict(special=("<pad>", "<pad>>", END_OF_TEXT), first=True, tokenizer_config=FAST),
    "json, symbols of bytes": dict(tokens=[END, added("é|", N), added("<é>", N + 1), added("<a b>", N + 2)]),
    "json, not special": dict(tokens=[END | {"special": False, "normalized": True}]),
    "json, all words of the vocabulary": dict(tokens=[END, added("the", small_vocab()[0]["the"], special=False)]),
    "json, chat": dict(
        tokens=[END, *IM], tokenizer_config=FAST | {"eos_token": "<|im_end|>", "chat_template": "{{ x }}"}
    ),
    "json, chat, GPT-2": dict(tokens=[END, *IM], tokenizer_config=SLOW | {"eos_token": "<|im_end|>"}),
    "json, <s> first": dict(**S, tokenizer_config=FAST | {"bos_token": "<s>", "eos_token": "</s>"}),
    "json, tokens of the config only": dict(
        tokenizer_config=FAST | {"pad_token": "[PAD]", "image_token": "<foo>", "additional_special_tokens": ["<tab>"]}
    ),
    "json, named extra tokens": dict(tokenizer_config=SLOW | {"extra_special_tokens": {"foo_token": "<foo>"}}),
    "json, token as an object": dict(
        tokenizer_config=FAST | {"pad_token": {"__type": "AddedToken", **added("[PAD]", rstrip=True)}}
    ),
    "json, decoder of added": dict(
        tokens=[END, *IM], tokenizer_config=SLOW | {"added_tokens_decoder": DECODER},
    ),
    "json, added_tokens.json": dict(added_tokens={"[PAD]": N}, special_tokens_map={"pad_token": "[PAD]"}),
    "json, null tokens": dict(tokenizer_config=SLOW | {"unk_token": None, "bos_token": None}),
    "json, no end of text": dict(special=(), tokenizer_config=FAST),
    "json, no end of text, GPT-2": dict(special=(), tokenizer_config=SLOW),
    "json, a hole": dict(vocab={"hole": N + 9}),
    "json, template of the text": dict(
        steps={"post_processor": BOS | {"single": [SEQUENCE], "special_tokens": {}}}, tokenizer_config=FAST
    ),
    "json, no post-processor": dict(steps={"post_processor": None}),
    "json, sequences of one": dict(
        steps={"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL]}, "normalizer":
               {"type": "Sequence", "normalizers": []}, "decoder": {"type": "Sequence", "decoders": [LEVEL]}},
    ),
    "json, no decoder, GPT-2": dict(steps={"decoder": None}, tokenizer_config=SLOW),
    "json, truncation and padding": dict(steps={"truncation": SHORT, "padding": FIXED}),
    "json, unknown and fallback": dict(
        model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "continuing_subword_prefix": "",
               "end_of_word_suffix": ""}, tokenizer_config=FAST,
    ),
    "json, another GPT-2": dict(model_type="gpt_neo"),
}  # fmt: skip

REFUSED = {
    "add_bos_token": (dict(pair=True, tokenizer_config={"add_bos_token": True}), "bos_token is True", "--start-token"),
    "add_eos_token": (dict(pair=True, tokenizer_config={"add_eos_token": True}), "a token after every text"),
    "BOS by template": (dict(steps={"post_processor": BOS}), "post_processor is", "--start-token"),
    "text twice": (dict(steps={"post_processor": BOS | {"single": [SEQUENCE, SEQUENCE]}}), "post_processor is"),
    "RoBERTa's": (
        dict(steps={"post_processor": {"type": "RobertaProcessing", "sep": ["!", 0], "cls": ["!", 0],
                                       "trim_offsets": True, "add_prefix_space": False}}), "post_processor is"),
    "NFC": (dict(steps={"normalizer": {"type": "NFC"}}), "normalizer is {'type': 'NFC'}"),
    "Lowercase": (dict(steps={"normalizer": {"type": "Lowercase"}}), "normalizer is"),
    "Prepend": (dict(steps={"normalizer": {"type": "Prepend", "prepend": "x"}}), "normalizer is"),
    "Replace": (
        dict(steps={"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": ""}}), "normalizer"),
    "no regex": (dict(steps={"pre_tokenizer": LEVEL | {"use_regex": False}}), "use_regex is False"),
    "GPT-4's pattern": (
        dict(steps={"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+"}, "behavior": "Isolated", "invert": False},
            LEVEL | {"use_regex": False}]}}), "pre_tokenizer is"),
    "digits": (dict(steps={"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, LEVEL]}}), "pre_tokenizer is"),
    "Metaspace": (dict(steps={"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                                                "split": True}}), "pre_tokenizer is"),
    "no decoder": (dict(steps={"decoder": None}, tokenizer_config=FAST), "puts a space between tokens"),
    "dropout": (dict(model={"dropout": 0.5}), "model.dropout is 0.5"),
    "whole words": (dict(model={"ignore_merges": True}), "model.ignore_merges is True"),
    "prefix of parts": (dict(model={"continuing_subword_prefix": "##"}), "continuing_subword_prefix is '##'"),
    "suffix of words": (dict(model={"end_of_word_suffix": "</w>"}), "end_of_word_suffix is '</w>'"),
    "WordLevel": (dict(model={"type": "WordLevel", "unk_token": "!"}), "model.type is 'WordLevel'"),
    "Unigram": (dict(model={"type": "Unigram", "vocab": [["a", 0.0]]}), "model.type is 'Unigram'"),
    "WordPiece": (dict(model={"type": "WordPiece"}), "model.type is 'WordPiece'"),
    "split specials": (dict(tokenizer_config={"split_special_tokens": True}), "split_special_tokens is True"),
    "clean up": (
        dict(tokenizer_config={"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}),
        "even_though_it_will_corrupt_output is True"),
    "own code": (dict(tokenizer_config={"auto_map": {"AutoTokenizer": ["a.B", None]}}), "auto_map is"),
    "another class": (dict(tokenizer_config={"tokenizer_class": "RobertaTokenizer"}), "class is 'RobertaTokenizer'"),
    "another model": (dict(model_type="gpt_neox"), "config.json: model_type is 'gpt_neox'"),
    "another id": (dict(tokens=[END, added("<s>", N + 7)]), f"'<s>' has the id {N + 7}, transformers assigns {N}"),
    "an id that is taken": (dict(vocab={"hole": N + 1}, tokens=[END, added("<s>", N + 1)]), "as id"),
    "other flags": (
        dict(tokens=[END, MASK], tokenizer_config=FAST | {"added_tokens_decoder": {str(N): added("<mask>")}}),
        "'<mask>' is there twice, with other flags"),
    "in the way of each other": (
        dict(pair=True, special_tokens_map={"eos_token": {"content": END_OF_TEXT, **OLD}, "pad_token": END_OF_TEXT,
                                            "additional_special_tokens": ["<|end"]}), "twice, with other flags"),
    "prefix space, no bool": (dict(tokenizer_config={"add_prefix_space": "yes"}), "add_prefix_space is 'yes'"),
    "a token of no kind": (dict(tokenizer_config={"eos_token": ["</s>"]}), "eos_token is ['</s>']"),
    "ids of no kind": (dict(pair=True, added_tokens={"<s>": "7"}), "'7' as id of '<s>'"),
    "decoder of no kind": (dict(tokenizer_config={"added_tokens_decoder": {"x": {}}}), "'x': {}"),
    "flag of no kind": (dict(tokens=[END | {"lstrip": "no"}]), "lstrip is 'no'"),
    "settings of no kind": (dict(tokenizer_config=[1]), "tokenizer_config.json: is [1]"),
    "a missing byte": (dict(vocab={"Ā": "x"}), "not a number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def auto_tokenizer():
    transformers = pytest.importorskip("transformers", reason="transformers is what this is compared with")
    pytest.importorskip("tokenizers")
    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoTokenizer


def read_by_transformers(auto_tokenizer, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return auto_tokenizer.from_pretrained(folder)


def assert_equal(tok, theirs, texts):
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert tok.encode(text, special="allowed") == ids, ascii(text)
        assert tok.decode(ids) == theirs.decode(ids), ascii(text)
        kept = [id for id in ids if tok.token_bytes(id) and id not in tok.special.values()]
        assert tok.decode(kept) == theirs.decode(ids, skip_special_tokens=True), ascii(text)
    assert len(theirs) <= tok.n_vocab
    if theirs.eos_token_id is not None:
        assert tok.eot == theirs.eos_token_id


@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_transformers(name, auto_tokenizer, tmp_path):
    folder = write_folder(tmp_path / "a", **EQUAL[name])
    tok, theirs = load_tokenizer(folder), read_by_transformers(auto_tokenizer, folder)
    assert_equal(tok, theirs, TEXTS)
    again = tokenizer_from_json(tok.to_json())
    write_tokenizer(tok, tmp_path / "b", "hf")
    exported, back = read_by_transformers(auto_tokenizer, tmp_path / "b"), load_tokenizer(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").unlink()
    pair = load_tokenizer(tmp_path / "b") if tok.eot is not None else tok  # without an end, no class reads a pair
    for text in TEXTS:
        ids = tok.encode(text, special="allowed")
        assert exported(text)["input_ids"] == ids and exported.decode(ids) == tok.decode(ids), ascii(text)
        for other in (again, back, pair):
            assert other.encode(text, special="allowed") == ids and other.eot == tok.eot, ascii(text)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_give_other_ids_is_refused_in_a_line(name, tmp_path):
    settings, *words = REFUSED[name]
    folder = write_folder(tmp_path / "a", **settings)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert "\n" not in message and "; " in message and str(folder) in message and len(message) < 500, message
    for word in words:
        assert word in message, message


def random_token(rng):
    contents = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "[PAD]", "<pad>>", "word", "new york", " cat", "the", "é|",
                "日本", "🙂", "<|im_start|>", "s>", "  ", "\n", "_x_", "a", "Ġthe", "<a b>"]  # fmt: skip
    flags = {name: rng.random() < 0.25 for name in ("lstrip", "rstrip", "single_word")} if rng.random() < 0.5 else {}
    special = rng.random() < 0.6
    normalized = rng.random() < 0.5 if flags else not special
    return added(rng.choice(contents), special=special, normalized=normalized, **flags)


def random_settings(rng):
    """Arguments of write_folder: most of them as a program could have written them."""
    special = rng.choice([(END_OF_TEXT,), (END_OF_TEXT,), (), ("</s>", "<s>"), (END_OF_TEXT, "<pad>")])
    vocab, _ = small_vocab(special)
    settings = dict(special=special, pair=rng.choice([False, False, True, "both"]))

    def with_ids(tokens):
        free = len(vocab)
        for content, token in {token["content"]: token for token in tokens}.items():
            yield vocab.get(content, free), token
            free += content not in vocab

    def tokens():
        return [*map(added, special), *(random_token(rng) for _ in range(rng.randrange(4)))]

    def one():
        return rng.choice([random_token(rng)["content"], *special, END_OF_TEXT])

    settings["tokens"] = [{"id": id, **token} for id, token in with_ids(tokens())]
    settings["steps"] = {"pre_tokenizer": rng.choice([LEVEL, WITH_SPACE])}
    config = rng.choice([FAST, SLOW, SLOW, {}]) | rng.choice([{}, {"add_prefix_space": True}])
    config |= {name: one() for name in ("bos_token", "eos_token", "unk_token", "pad_token") if rng.random() < 0.3}
    if rng.random() < 0.3:
        config["added_tokens_decoder"] = {str(id): token for id, token in with_ids(tokens())}
    if rng.random() < 0.3:
        name = rng.choice(["additional_special_tokens", "extra_special_tokens"])
        config[name] = [one() for _ in range(2)]
    settings["tokenizer_config"] = config
    if rng.random() < 0.4:
        old = {"pad_token": {"content": one(), **OLD}, "eos_token": one(), "additional_special_tokens": [one()]}
        settings["special_tokens_map"] = {name: value for name, value in old.items() if rng.random() < 0.5}
    if rng.random() < 0.3:
        settings["added_tokens"] = {token["content"]: id for id, token in with_ids([random_token(rng)] * 2)}
    return settings


@pytest.mark.parametrize("n", [
    60, pytest.param(400, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.long),
])  # fmt: skip
def test_random_settings(n, auto_tokenizer, tmp_path):
    rng, equal = random.Random(n), 0
    for k in range(n):
        settings = random_settings(rng)
        folder = write_folder(tmp_path / str(k), **settings)
        try:
            theirs = read_by_transformers(auto_tokenizer, folder)
        except Exception:  # a class that reads no pair
            continue
        try:
            tok = load_tokenizer(folder)
        except TokenizerError as error:
            assert "\n" not in str(error)
            continue
        pieces = [*TEXTS, *(token["content"] for token in settings["tokens"]), " ", "x", "the cat"]
        assert_equal(tok, theirs, ["".join(rng.choices(pieces, k=rng.randrange(5))) for _ in range(25)])
        equal += 1
    assert equal > n // 2


def test_the_end_of_a_text_is_special_and_other_words_are_always_found(tmp_path):
    """What strangers write should not end a document; a word that the user added is a token in every text."""
    settings = dict(tokens=[END | {"special": False}, WORD, added("<|im_start|>", N + 1)], tokenizer_config=FAST)
    tok = load_tokenizer(write_folder(tmp_path / "a", **settings))
    text = f"word{END_OF_TEXT}<|im_start|>"
    assert isinstance(tok, MappedTokenizer) and tok.eot == N - 1
    assert tok.encode(text, special="allowed") == [N, N - 1, N + 1]
    plain = tok.encode(text)
    assert plain[0] == N and not {N - 1, N + 1} & set(plain) and tok.encode_array(text).tolist() == plain
    with pytest.raises(TokenizerError, match="'<|endoftext|>' at character 4"):
        tok.encode(text, special="refused")
    assert tok.encode("sword", special="refused") == tok.encode("sword", special="allowed")
    assert not tok.is_divisible


def test_tokens_that_a_model_has_no_rows_for(tmp_path):
    settings = dict(tokens=[END, added("[PAD]", N), added("word", N + 1, special=False)], tokenizer_config=FAST)
    tok = load_tokenizer(write_folder(tmp_path / "a", **settings))
    smaller = tok.without_ids_from(N)
    assert (tok.n_vocab, smaller.n_vocab, smaller.eot) == (N + 2, N, N - 1)
    assert smaller.encode(f"[PAD]word{END_OF_TEXT}", special="allowed")[-1] == N - 1
    assert max(smaller.encode("[PAD]word", special="allowed")) < N - 1
    with pytest.raises(TokenizerError, match="more than 300"):
        tok.without_ids_from(300)


def test_settings_beside_a_file_of_another_name_do_not_count(tmp_path):
    folder = write_folder(tmp_path / "a", tokenizer_config={"tokenizer_class": "BertTokenizer"})
    (folder / "mine.json").write_text((folder / "tokenizer.json").read_text())
    assert load_tokenizer(folder / "mine.json").n_vocab == N
    with pytest.raises(TokenizerError, match="BertTokenizer"):
        load_tokenizer(folder / "tokenizer.json")
