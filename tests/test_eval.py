"""Scores of given tokens, HellaSwag, perplexity, and `python -m tinygrad2 eval` as users run it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import strict_cupy
from test_commands import command
from test_models import tiny
from test_train import ROOT, TEXT, python, train

from tinygrad2.commands.eval import main
from tinygrad2.datasets.token_files import TokenStream, write_tokens
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.evaluation import hellaswag, scoring
from tinygrad2.evaluation.hellaswag import (
    Answer,
    Example,
    answer_examples,
    count_cropped,
    load_examples,
    summary,
    write_examples,
)
from tinygrad2.evaluation.perplexity import ids_of_text, perplexity
from tinygrad2.evaluation.scoring import score_long, score_rows, windows
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.interop import hf
from tinygrad2.tensor import no_grad
from tinygrad2.tokenizers.char import CharTokenizer
from tinygrad2.tokenizers.tokenizer import Tokenizer

WORDS = "The cat sat on the mat. The dog sat on the log. A bird in a tree sang \u201cpip!\u201d".split()


def naive(model, row, begin):
    """What score_rows returns for one row, straight from the definition."""
    with no_grad():
        logits = model(np.array([row[:-1]]))[0].numpy()[0].astype(np.float64)
    logprobs = logits - logits.max(-1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
    targets = np.array(row[begin:], int)
    positions = np.arange(begin - 1, len(row) - 1)
    return logprobs[positions, targets], logits[positions].argmax(-1) == targets


def some_rows(rng, n_contexts=5, longest=12, V=30):
    """Rows of which several begin alike, one is only a context, and one has as many tokens as there may be."""
    rows, begins = [], []
    for _ in range(n_contexts):
        context = rng.integers(0, V, rng.integers(1, longest // 2)).tolist()
        for _ in range(rng.integers(1, 5)):
            rows.append(context + rng.integers(0, V, rng.integers(1, longest + 2 - len(context))).tolist())
            begins.append(len(context))
    rows += [rows[0][: begins[0]], rng.integers(0, V, longest + 1).tolist(), rows[1]]
    begins += [begins[0], 1, begins[1]]
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], [begins[i] for i in order]


# -- scoring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 9, 40, 10_000])
@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_those_of_full_logits_whatever_rows_share(budget, tied):
    model = tiny(scale=3.0, tied_head=tied).eval()
    greedy_ones = 0
    for seed in range(5):
        rows, begins = some_rows(np.random.default_rng(seed))
        for row, begin, (logprobs, greedy) in zip(rows, begins, score_rows(model, rows, begins, budget)):
            if len(row) == begin:
                assert len(logprobs) == len(greedy) == 0
                continue
            expected, most_likely = naive(model, row, begin)
            assert logprobs.dtype == np.float64 and greedy.dtype == bool
            np.testing.assert_allclose(logprobs, expected, atol=1e-5)
            assert (greedy == most_likely).all()
            greedy_ones += greedy.sum()
    assert greedy_ones


def test_the_likeliest_tokens_are_called_so():
    model = tiny(scale=4.0).eval()
    row = [3, 4, *model.generate([3, 4], 6)]
    ((_, greedy),) = score_rows(model, [row], [2])
    assert greedy.all()
    row[5] = (row[5] + 1) % 30
    ((_, greedy),) = score_rows(model, [row], [2])
    assert greedy[:3].all() and not greedy[3]


def test_logits_come_in_parts_and_batches_keep_to_their_budget(monkeypatch):
    model = tiny().eval()
    rows, begins = some_rows(np.random.default_rng(3), 20)
    expected = score_rows(model, rows, begins)
    monkeypatch.setattr(scoring, "_LOGITS", 4 * 30 * 3)  # three positions
    seen, sizes = [], []
    logits, hidden = model.logits, model.hidden
    model.logits = lambda x: (seen.append(len(x)), logits(x))[1]
    model.hidden = lambda tokens, cache: (sizes.append(tokens.size), hidden(tokens, cache))[1]
    for (a, b), (c, d) in zip(score_rows(model, rows, begins, 30), expected):
        np.testing.assert_allclose(a, c, atol=1e-6)
        assert (b == d).all()
    assert max(seen) == 3 and max(sizes) <= 30 and len(sizes) > 3
    shared = sum(len(set(map(tuple, rows))) > 0 and len(row) for row in rows)
    assert sum(sizes) < shared  # contexts went in once


def test_scores_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = tiny(scale=3.0).eval()
    hf.write_folder(str(tmp_path), {n: p.data for n, p in model.named_parameters()}, model.config.to_dict())
    theirs = transformers.GPT2LMHeadModel.from_pretrained(str(tmp_path)).eval()
    rows, begins = some_rows(np.random.default_rng(1))
    for row, begin, (logprobs, _) in zip(rows, begins, score_rows(model, rows, begins)):
        if len(row) > begin:
            with torch.no_grad():
                logits = theirs(torch.tensor([row[:-1]])).logits[0]
            expected = torch.log_softmax(logits, -1)[torch.arange(begin - 1, len(row) - 1), torch.tensor(row[begin:])]
            np.testing.assert_allclose(logprobs, expected.numpy(), atol=1e-5)


def test_scores_on_a_device_are_those_of_the_host(monkeypatch):
    """On the strict stand-in for CuPy: nothing of host and device is mixed."""
    model = tiny(scale=3.0).eval()
    rows, begins = some_rows(np.random.default_rng(1))
    with kernels("reference"):
        expected = score_rows(model, rows, begins, 40)
        strict_cupy.install(monkeypatch)
        FlatBuffers(model, "cuda")
        for (a, b), (c, d) in zip(score_rows(model, rows, begins, 40), expected):
            np.testing.assert_allclose(a, c, atol=1e-6)
            assert (b == d).all()


def test_rows_that_cannot_be_scored_are_refused():
    model = tiny().eval()
    for row, begin in ([1, 2], 0), ([1] * 14, 13), ([], 0):
        with pytest.raises(ValueError, match="may be up to 13"):
            score_rows(model, [row], [begin])
    with pytest.raises(IndexError):
        score_rows(model, [[1, 30, 2]], [1])
    model.ln_f.weight.data[:] = np.nan
    with pytest.raises(UserError, match="not finite"):
        score_rows(model, [[1, 2]], [1])
    assert score_rows(model, [], []) == [] and score_long(model, [], []) == []


def test_windows_score_each_token_once_with_all_context_there_is():
    assert list(windows(9, 1, 4)) == [(0, 1, 5), (4, 5, 9)]
    assert list(windows(9, 1, 4, 2)) == [(0, 1, 5), (2, 5, 7), (4, 7, 9)]
    assert list(windows(9, 7, 4)) == [(4, 7, 9)] and list(windows(3, 3, 4)) == []
    rng = np.random.default_rng(0)
    for _ in range(500):
        n, size = rng.integers(1, 60), rng.integers(1, 12)
        begin, stride = rng.integers(1, n + 1), rng.integers(1, size + 1)
        scored = []
        for start, first, stop in windows(n, begin, size, stride):
            assert 0 <= start < first < stop <= n and stop - start <= size + 1
            assert start == 0 or stop - start == size + 1
            assert first - start >= min(first, size + 1 - stride)
            scored += range(first, stop)
        assert scored == list(range(begin, n))


def test_long_rows_are_scored_window_by_window():
    model = tiny().eval()
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 30, n).tolist() for n in (5, 40, 26, 13, 14)]
    begins = [2, 1, 20, 13, 1]
    for row, begin, (logprobs, greedy) in zip(rows, begins, score_long(model, rows, begins)):
        parts = [naive(model, row[a:c], b - a) for a, b, c in windows(len(row), begin, 12)]
        expected = np.concatenate([part for part, _ in parts]) if parts else []
        assert len(logprobs) == len(row) - begin == len(greedy)
        np.testing.assert_allclose(logprobs, expected, atol=1e-5)


# -- HellaSwag: files --------------------------------------------------------------------------------------------------


def text_of(rng, least, most):
    return " ".join(rng.choice(WORDS, rng.integers(least, most + 1)))


def questions(n, seed=0):
    rng = np.random.default_rng(seed)
    return [{"ind": i, "activity_label": "Sitting", "ctx": text_of(rng, 1, 3), "label": int(rng.integers(4)),
             "endings": [text_of(rng, 1, 4) for _ in range(4)]} for i in range(n)]  # fmt: skip


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


TOKENIZER = Tokenizer.train(" ".join(WORDS) * 3, 290)


def test_questions_are_encoded_context_and_endings_apart(tmp_path):
    records = questions(6)
    records[1]["label"] = "2"  # as the data sets of Hugging Face have it
    path = write_jsonl(tmp_path / "h.jsonl", records)
    examples = load_examples(path, TOKENIZER)
    assert [e.label for e in examples] == [int(r["label"]) for r in records]
    for example, record in zip(examples, records):
        assert example.context == TOKENIZER.encode(record["ctx"])
        assert example.endings == [TOKENIZER.encode(" " + ending) for ending in record["endings"]]
    assert load_examples(path, TOKENIZER, 2) == examples[:2]
    (tmp_path / "crlf.jsonl").write_bytes(b"\r\n".join(json.dumps(r).encode() for r in records) + b"\r\n\r\n")
    assert load_examples(tmp_path / "crlf.jsonl", TOKENIZER) == examples


GOOD = {"ind": 3, "ctx": "A cat", "endings": ["sat", "ran", "slept", "sang"], "label": 1}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2 is '{', not a JSON object; fetch it again: python data/hellaswag/prepare.py"),
        ("[]", "line 2 is '[]', not a JSON object"),
        ("[" * 5000, "not a JSON object"),
        ("\x00\xff", "not a JSON object"),
        ({"ind": "3"}, "line 2: ind is '3', not an integer"),
        ({"ctx": None}, "line 2: ctx is None, not a text"),
        ({"ctx": ""}, "line 2: ctx is '', not a text"),
        ({"ctx": "\ud800"}, r"line 2: ctx is '\ud800', not a text"),
        ({"endings": ["a", "b", "c"]}, "line 2: endings is ['a', 'b', 'c'], not a list of 4 texts"),
        ({"endings": ["a", "b", "c", 4]}, "not a list of 4 texts"),
        ({"endings": "abcd"}, "not a list of 4 texts"),
        ({"label": None}, "line 2 has no label, as in the test split"),
        ({"label": ""}, "line 2 has no label"),
        ({"label": 4}, "line 2: label is 4, not 0, 1, 2 or 3"),
        ({"label": True}, "label is True"),
        ({"label": 1.0}, "label is 1.0"),
        ({"label": [1]}, "label is [1]"),
    ],
)
def test_damaged_questions_are_one_line(tmp_path, line, message):
    text = line if isinstance(line, str) else json.dumps({**GOOD, **line})
    (tmp_path / "h.jsonl").write_bytes(f"{json.dumps(GOOD)}\n{text}\n".encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_examples(tmp_path / "h.jsonl", TOKENIZER)
    message = str(caught.value)
    assert message.startswith(str(tmp_path)) and "\n" not in message and len(message) < 400


def test_files_without_questions_are_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_examples(tmp_path / "none.jsonl", TOKENIZER)
    (tmp_path / "h.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="no examples in it"):
        load_examples(tmp_path / "h.jsonl", TOKENIZER)
    write_jsonl(tmp_path / "h.jsonl", [GOOD])
    with pytest.raises(UserError, match="the model's tokenizer is not known"):
        load_examples(tmp_path / "h.jsonl", None)
    with pytest.raises(UserError, match=r"h.jsonl: line 1: .A. is not a character"):
        load_examples(tmp_path / "h.jsonl", CharTokenizer.train("xyz"))


def as_llmc_writes(examples):
    """What llm.c's dev/data/data_common.py, write_evalfile, makes of them."""
    header = np.zeros(256, dtype=np.int32)
    header[0], header[1], header[2] = 20240522, 1, len(examples)
    full, longest = [], 0
    for idx, example in enumerate(examples):
        stream = [2**16 - 1, 0, idx, example.label, 4, len(example.context)]
        stream.extend(example.context)
        for ending in example.endings:
            stream.append(len(ending))
            stream.extend(ending)
        stream[1] = len(stream) * 2
        longest = max(longest, len(stream) * 2)
        full.extend(stream)
    header[3] = longest
    return header.tobytes() + np.array(full, dtype=np.uint16).tobytes()


def test_llmc_files_are_written_byte_for_byte_and_read_again(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "h.jsonl", questions(20)), TOKENIZER)
    write_examples(tmp_path / "h.bin", examples)
    assert (tmp_path / "h.bin").read_bytes() == as_llmc_writes(examples)
    assert load_examples(tmp_path / "h.bin", TOKENIZER) == examples == load_examples(tmp_path / "h.bin", None)
    assert load_examples(tmp_path / "h.bin", None, 3) == examples[:3]


def test_what_does_not_fit_into_llmcs_16_bits_is_refused(tmp_path):
    endings = [[1]] * 4
    for bad in Example([65535], endings, 0), Example([1] * 40_000, endings, 0), Example([1], endings[:3], 0):
        with pytest.raises(UserError, match="example 0 does not fit"):
            write_examples(tmp_path / "h.bin", [bad])
    assert not (tmp_path / "h.bin").exists()


def test_a_file_of_another_tokenizer_is_refused(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "h.jsonl", questions(3)), TOKENIZER)
    write_examples(tmp_path / "h.bin", examples)
    with pytest.raises(UserError, match=r"has the id \d+, but the model's tokenizer has only 257"):
        load_examples(tmp_path / "h.bin", Tokenizer([]))
    with pytest.raises(UserError, match="encoded with another tokenizer than the model's; use hellaswag_val.jsonl"):
        load_examples(tmp_path / "h.bin", Tokenizer.train((ROOT / "LICENSE").read_text(), 290))


def test_every_damage_of_an_llmc_file_is_one_line_or_harmless(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "h.jsonl", questions(4)), TOKENIZER)
    write_examples(tmp_path / "h.bin", examples)
    full, path = (tmp_path / "h.bin").read_bytes(), tmp_path / "damaged.bin"
    damaged = [full[:n] for n in (*range(0, 1024, 100), *range(1024, len(full), 3))]
    damaged += [full + b"\0\0", full + b"\0"]
    for offset in range(4, len(full), 2):
        if offset < 16 or offset >= 1024:
            for word in (b"\0\0", b"\xff\xff", b"\7\0"):
                damaged.append(full[:offset] + word + full[offset + 2 :])
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            examples_read = load_examples(path, None)
            assert len(examples_read) == 4 and data[:16] == full[:16]  # another id or label: nobody can know
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > len(damaged) / 3


# -- HellaSwag: answers ------------------------------------------------------------------------------------------------


def wide(seed=1):
    return tiny(seed=seed, scale=3.0, vocab_size=290, block_size=48).eval()


def as_nanogpt_scores(model, example):
    """build-nanogpt's hellaswag.py: four padded rows, and a mask: (sums, means)."""
    rows = [example.context + ending for ending in example.endings]
    tokens, mask = np.zeros((4, max(map(len, rows))), int), np.zeros((4, max(map(len, rows))))
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, len(example.context) : len(row)] = 1
    with no_grad():
        logits = model(tokens)[0].numpy().astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], -1)[..., 0] * mask[:, 1:]
    return losses.sum(1), losses.sum(1) / mask[:, 1:].sum(1)


def test_answers_are_those_of_build_nanogpt(tmp_path):
    examples = load_examples(write_jsonl(tmp_path / "h.jsonl", questions(40)), TOKENIZER)
    model = wide()
    assert count_cropped(examples, 48) == 0
    answers = answer_examples(model, examples)
    for a, example in zip(answers, examples):
        sums, means = as_nanogpt_scores(model, example)
        np.testing.assert_allclose(a.nats, sums, rtol=1e-5)
        assert a.tokens == [len(ending) for ending in example.endings]
        for correct, scores in ((a.correct, sums), (a.correct_norm, means)):
            best = np.flatnonzero(scores < scores.min() * (1 + 1e-5))        # two endings may be the same tokens
            assert correct == (best[0] == example.label) or len(best) > 1
    assert len({(a.correct, a.correct_norm) for a in answers}) == 4  # the two differ, and both are right and wrong


def test_a_context_that_is_too_long_loses_its_beginning():
    model = tiny().eval()
    example = Example(list(range(20)), [[1, 2], [3] * 12, [4], [5] * 30], 0)
    (a,) = answer_examples(model, [example])
    row = (example.context + [1, 2])[-13:]
    assert a.nats[0] == pytest.approx(-naive(model, row, 11)[0].sum(), rel=1e-5)
    assert a.tokens == [2, 12, 1, 30] and count_cropped([example, Example([1], [[2]] * 4, 0)], 12) == 1


def test_standard_errors():
    answers = [Answer(0, [1.0, 2, 3, 4], [1, 1, 1, 1])] * 3 + [Answer(0, [2.0, 1, 3, 4], [4, 1, 1, 1])]
    result = summary(answers)
    ones = [1, 1, 1, 0]
    assert result["n"] == 4 and result["acc"] == 0.75 and result["acc_norm"] == 1 and result["acc_norm_stderr"] == 0
    assert result["acc_stderr"] == pytest.approx(np.std(ones, ddof=1) / 2)
    assert summary(answers[:1])["acc_stderr"] is None


class Rank:
    """A World of which one rank is asked at a time; `gathered` is what all of them sent."""

    def __init__(self, rank, size, gathered):
        self.rank, self.size, self.gathered = rank, size, gathered

    def all_gather(self, values, name):
        self.gathered[self.rank] = values
        return np.array([self.gathered.get(rank, values * 0) for rank in range(self.size)])


@pytest.mark.parametrize("n", [1, 15, 70])
def test_ranks_share_the_questions_and_come_to_the_same_accuracy(tmp_path, n):
    examples = load_examples(write_jsonl(tmp_path / "h.jsonl", questions(n)), TOKENIZER)
    model = wide().train()
    alone = hellaswag.accuracy(model, examples, World())
    assert alone == (summary(answer_examples(model.eval(), examples))["acc_norm"], n)
    for size in (2, 3, 8):
        gathered = {}
        for rank in range(size):
            shared = hellaswag.accuracy(model, examples, Rank(rank, size, gathered))
        assert shared == alone and model.training


def test_a_vocabulary_that_is_too_small_is_one_line():
    with pytest.raises(UserError, match="id 99 of an example is outside the model's vocabulary of 30"):
        answer_examples(tiny().eval(), [Example([1], [[2], [99], [3], [4]], 0)])


# -- perplexity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 5, None, 48])
@pytest.mark.parametrize("size", [1, 2, 48, 49, 300])
def test_perplexity_is_that_of_its_definition(stride, size):
    model, text = wide(), " ".join(WORDS * 20).encode()
    ids = ids_of_text(text, TOKENIZER)[:size]
    scored = []
    result = perplexity(model, TokenStream.of(ids), TOKENIZER, stride, 100, scored.append)
    row = [TOKENIZER.eot, *ids.tolist()]
    nats = -sum(naive(model, row[a:c], b - a)[0].sum() for a, b, c in windows(len(row), 1, 48, stride or 24))
    text = TOKENIZER.decode_bytes(ids.tolist())
    assert result.tokens == size == sum(scored) and result.nats == pytest.approx(nats, rel=1e-5)
    assert result.bytes == len(text) and result.words == len(re.split(r"\s+", text.decode("utf-8", "replace")))
    values = result.to_dict()
    assert values["loss"] == pytest.approx(nats / size) and values["perplexity"] == pytest.approx(math.exp(nats / size))
    assert values["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text))
    assert values["word_perplexity"] == pytest.approx(math.exp(nats / result.words))


def test_end_of_text_tokens_are_no_bytes_and_stand_between_words():
    model = wide()
    ids = ids_of_text(b"The cat\r\n<|endoftext|>\n\nsat on", TOKENIZER)
    assert ids.tolist() == TOKENIZER.encode("The cat<|endoftext|>sat on", "allowed")
    result = perplexity(model, TokenStream.of(ids), TOKENIZER)
    assert result.words == 4 and result.bytes == 13 and result.tokens == len(ids)
    row = [TOKENIZER.eot, *ids.tolist()]
    logprobs = naive(model, row, 1)[0]
    kept = [x for x, id in zip(logprobs, ids) if id != TOKENIZER.eot]
    assert result.text_nats == pytest.approx(-sum(kept)) and result.nats == pytest.approx(-logprobs.sum())


def test_without_an_end_of_text_token_the_first_one_is_not_scored():
    tokenizer, model = CharTokenizer.train("abc d"), tiny().eval()
    ids = ids_of_text(b"a b  cd", tokenizer)
    result = perplexity(model, TokenStream.of(ids), tokenizer)
    assert (result.tokens, result.bytes, result.words) == (6, 6, 3)
    assert result.nats == pytest.approx(-naive(model, ids.tolist(), 1)[0].sum(), rel=1e-5)
    unknown = perplexity(model, TokenStream.of(ids))
    assert unknown.tokens == 6 and unknown.bytes is None and unknown.to_dict()["bits_per_byte"] is None
    for stride in (0, 13):
        with pytest.raises(ValueError, match=r"stride must be in 1 .. 12"):
            perplexity(model, TokenStream.of(ids), tokenizer, stride)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """text.txt, trained_weights.bin, and questions in h.jsonl."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    assert train(folder, "--steps 20 --lr 1e-2").returncode == 0
    write_jsonl(folder / "h.jsonl", questions(50))
    return folder


def test_hellaswag_answers_once_and_goes_on(folder, tmp_path):
    weights, data = ["--weights", folder / "trained_weights.bin"], ["--data", folder / "h.jsonl"]
    first = command("eval", "hellaswag", *weights, *data, "--limit", 20, cwd=tmp_path)
    assert first.returncode == 0 and first.stderr == "", first.stderr
    for words in (r"^model +\S+weights.bin: [\d,]+ parameters, context 16$", r"^data +\S+h.jsonl: 20 questions$",
                  r"^acc +0\.\d{4} \+- 0\.\d{4}$", r"^acc_norm +0\.\d{4} \+- 0\.\d{4}$", r"by chance 0.25$",
                  r"GPT-2 124M +0.2859 / 0.2955$", r"GPT-2 355M +- +/ 0.3752$"):  # fmt: skip
        assert re.search(words, first.stdout, re.MULTILINE), words
    second = command("eval", "hellaswag", *weights, *data, cwd=tmp_path)
    assert "continuing" in second.stdout and "which has 16 answers" in second.stdout
    (path,) = (tmp_path / "eval").iterdir()
    assert re.fullmatch(r"hellaswag-[0-9a-f]{8}\.jsonl", path.name)
    content = path.read_bytes()
    third = json.loads(command("eval", "hellaswag", *weights, *data, "--json", cwd=tmp_path).stdout)
    assert third["n"] == 50 and third["task"] == "hellaswag" and third["chance"] == 0.25
    assert path.read_bytes() == content and content.count(b"\n") == 51
    fresh = command("eval", "hellaswag", *weights, *data, "--results", "r.jsonl", "--json", cwd=tmp_path)
    assert (tmp_path / "r.jsonl").read_bytes() == content
    assert json.loads(fresh.stdout) == third | {"results": "r.jsonl"}
    again = json.loads(command("eval", "hellaswag", *weights, *data, "--json", "--limit", 7, cwd=tmp_path).stdout)
    assert again["n"] == 7 and path.read_bytes() == content  # a shorter run takes nothing away


def test_llmcs_file_gives_the_same_answers(folder, tmp_path):
    weights = ["--weights", folder / "trained_weights.bin"]
    from tinygrad2.io.weights import load_weights

    tokenizer = Tokenizer.from_json(load_weights(str(folder / "trained_weights.bin")).tokenizer)
    write_examples(tmp_path / "h.bin", load_examples(folder / "h.jsonl", tokenizer))
    results = []
    for data in (folder / "h.jsonl", tmp_path / "h.bin"):
        shown = command("eval", "hellaswag", *weights, "--data", data, "--json", cwd=tmp_path)
        results.append(json.loads(shown.stdout))
    assert len(list((tmp_path / "eval").iterdir())) == 2
    assert all(results[0][name] == results[1][name] for name in ("n", "acc", "acc_norm", "cropped"))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_never_been_killed(folder, tmp_path):
    write_jsonl(tmp_path / "h.jsonl", questions(1500))
    flags = ["--weights", str(folder / "trained_weights.bin"), "--data", "h.jsonl", "--threads", "1"]
    arguments = [sys.executable, "-m", "tinygrad2", "eval", "hellaswag", *flags, "--results", "killed.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = tmp_path / "killed.jsonl"
    for size in (3_000, 60_000):
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not killed.exists() or killed.stat().st_size < size):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    part = killed.read_bytes()
    assert part.count(b"\n") < 1501
    killed.write_bytes(part + b'{"index": 9, "lab')  # a kill may leave half a line
    resumed = command("eval", "hellaswag", *flags, "--results", "killed.jsonl", cwd=tmp_path)
    assert resumed.returncode == 0 and "continuing killed.jsonl" in resumed.stdout, resumed.stderr
    assert command("eval", "hellaswag", *flags, "--results", "full.jsonl", cwd=tmp_path).returncode == 0
    assert killed.read_bytes() == (tmp_path / "full.jsonl").read_bytes()


def test_ctrl_c_says_where_the_answers_are_and_nobody_else_writes_there(folder, tmp_path):
    write_jsonl(tmp_path / "h.jsonl", questions(6000))            # more than are answered until it is stopped
    flags = ["--weights", str(folder / "trained_weights.bin"), "--data", "h.jsonl", "--results", "r.jsonl"]
    arguments = [sys.executable, "-m", "tinygrad2", "eval", "hellaswag", *flags]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    path = tmp_path / "r.jsonl"
    while process.poll() is None and (not path.exists() or path.stat().st_size < 3_000):
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    second = command("eval", "hellaswag", *flags, cwd=tmp_path)
    assert second.returncode == 2 and "r.jsonl: another run is writing it" in second.stderr, second.stderr
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert errors.strip() == "interrupted; the same command continues after the last answer in r.jsonl"


def test_a_file_of_other_answers_is_refused_and_left_alone(folder, tmp_path):
    weights, data = ["--weights", folder / "trained_weights.bin"], ["--data", folder / "h.jsonl"]
    path = tmp_path / "r.jsonl"

    def run(*more):
        return main(["hellaswag", *map(str, (*weights, *data, "--results", path, *more))])

    assert run() == 0
    good = path.read_bytes()
    lines = good.split(b"\n")
    with pytest.raises(UserError, match="answers are of another model"):
        run("--block-size", 12)
    with pytest.raises(UserError, match="answers are of another precision of products"):
        run("--dtype", "bfloat16")
    damaged = {
        good[:30]: None,  # killed when it was made
        b"": None,
        b"my diary\n": "is not a file of answers",
        b"my diary": "is not a file of answers",
        b"[1]\n": "is not a file of answers",
        good.replace(b'"block_size": 16', b'"block_size": 8'): "answers are of another block_size (8, here 16)",
        re.sub(rb'"model": "\w', b'"model": "z', good): "answers are of another model",
        good.replace(b'"block_size": 16', b'"block_size": 16, "precision of products": "bfloat16"'):
            "are of another precision of products ('bfloat16', here 'highest')",
        b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]): "line 2: index is 1, not 0",
        b"\n".join([*lines[:4], lines[4][:-9], *lines[5:]]): "line 5: index is None",
        re.sub(rb'"nats": \[[\d.]+', b'"nats": [NaN', good): "line 2: nats is [nan, ",
        good.replace(b'"label": ', b'"label": 1'): "line 2: label is",
    }
    for content, message in damaged.items():
        path.write_bytes(content)
        if message is None:
            assert run() == 0 and path.read_bytes().count(b"\n") == good.count(b"\n")
            continue
        with pytest.raises(UserError) as caught:
            run()
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == content


def test_what_a_precision_costs_in_perplexity(folder, capsys):
    losses = []
    for flags in ([], ["--dtype", "bfloat16"], ["--matmul-precision", "medium", "--kernels", "reference"]):
        argv = ["perplexity", "--weights", folder / "trained_weights.bin", "--data", folder / "text.txt", "--json"]
        assert main([*map(str, argv), *flags]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert all(0 < abs(loss - losses[0]) < 0.01 * losses[0] for loss in losses[1:])


def test_perplexity_of_a_text_and_of_its_tokens(folder, tmp_path):
    weights = ["--weights", folder / "trained_weights.bin"]
    shown = command("eval", "perplexity", *weights, "--data", folder / "text.txt", cwd=tmp_path)
    for words in (r"^loss +\d\.\d{4} nats per token, [\d,]+ tokens$", r"^perplexity +[\d.]+$",
                  r"^bits per byte +\d\.\d{4}, [\d,]+ bytes$", r"^word perplexity +[\d,.]+, [\d,]+ words$"):
        assert re.search(words, shown.stdout, re.MULTILINE), shown.stdout + shown.stderr
    result = json.loads(command("eval", "perplexity", *weights, "--data", folder / "text.txt", "--json").stdout)
    text = (TEXT * 40).replace("\n<|endoftext|>\n", "")
    assert result["bytes"] == len(text.encode()) and result["loss"] < 5
    from tinygrad2.io.weights import load_weights

    tokenizer = Tokenizer.from_json(load_weights(str(folder / "trained_weights.bin")).tokenizer)
    ids = tokenizer.encode((TEXT * 40).replace("\n<|endoftext|>\n", "<|endoftext|>"), "allowed")
    write_tokens(tmp_path / "text.bin", ids)
    tokens = json.loads(command("eval", "perplexity", *weights, "--data", tmp_path / "text.bin", "--json").stdout)
    assert tokens == result | {"data": str(tmp_path / "text.bin")}
    some = command("eval", "perplexity", *weights, "--data", tmp_path / "text.bin", "--limit", 30, "--stride", 1)
    assert "30 tokens" in some.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        ("eval dance", "there is no task 'dance'; choose one of: hellaswag, perplexity"),
        ("eval hellaswag --colour red", "unrecognized arguments: --colour red"),
        ("eval hellaswag --limit 0", "--limit must be at least 1, not 0"),
        ("eval hellaswag --data nowhere", "nowhere: cannot be read"),
        ("eval hellaswag --data h.jsonl --weights no.bin", "no.bin"),
        ("eval hellaswag --data text.txt", "text.txt: line 1 is 'The cat"),
        ("eval hellaswag --data h.jsonl --results no/where", "no/where: the folder "),
        ("eval hellaswag --data h.jsonl --block-size 17", "--block-size 17: "),
        ("eval perplexity", "--data is missing"),
        ("eval perplexity --data nowhere", "nowhere: cannot be read"),
        ("eval perplexity --data empty.txt", "empty.txt: the file is empty"),
        ("eval perplexity --data text.txt --stride 17", "--stride 17: windows have 16 tokens"),
        ("eval perplexity --data trained_weights.bin", "trained_weights.bin: "),
        ("eval perplexity --data large.bin", "large.bin: id 9999 at position 1 is outside a vocabulary of 290"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(folder, words, message):
    (folder / "empty.txt").write_text("")
    write_tokens(folder / "large.bin", [1, 9999])
    result = command(*words.split(), cwd=folder)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_questions_that_are_not_here_are_one_line(folder):
    if (ROOT / "data" / "hellaswag" / "hellaswag_val.jsonl").exists():
        pytest.skip("they are here")
    result = command("eval", "hellaswag", cwd=folder)
    assert result.returncode == 2 and "fetch them: python data/hellaswag/prepare.py" in result.stderr


def test_help_lists_the_flags():
    helped = python("-m", "tinygrad2", "eval", "perplexity", "--help", cwd=ROOT)
    assert helped.returncode == 0 and "--stride" in helped.stdout and "Loss per token" in helped.stdout


def test_a_line_says_how_far_it_is():
    import io

    from tinygrad2.monitor.progress import Meter

    stream = io.StringIO()
    live = Meter("hellaswag", 1000, "questions", 200, stream)
    live.add(10, "acc_norm 0.3")
    assert stream.getvalue() == ""
    live.begin -= 5
    live.last -= 20
    live.add(90, "acc_norm 0.3")
    live.close()
    line = r"hellaswag 300 of 1,000 \(30%\) \| acc_norm 0.3 \| (19|20)\.\d questions/s \| 35s left\n"
    line += r"hellaswag 100 questions took 5s\n"
    assert re.fullmatch(line, stream.getvalue()), stream.getvalue()
