"""Writing as people expect it: each knob, several texts at once, stop strings, and inference.py as its users run it."""

import importlib.util
import json
import math
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import strict_cupy
from test_decode import mode  # noqa: F401 (a fixture)
from test_models import tiny

import inference
import models.generation
from models import GPT, GPTConfig
from models.generation import Step, generate
from models.kv_cache import KVCache
from models.sampling import Sampling, log_probability, sample
from models.text_generation import in_order, stream_texts
from tinygrad2.dispatch import kernels
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.io.weights import save_weights
from tinygrad2.tensor import no_grad
from tinygrad2.tokenizers.streaming import TextStream
from tinygrad2.tokenizers.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).parents[1]
GPT2_FILES = ROOT.parent / "shared" / "data"

# -- the knobs -------------------------------------------------------------------------------------------------------


class Fixed:
    """A generator whose next number is known."""

    def __init__(self, u):
        self.u = u

    def random(self):
        return self.u


def probabilities(logits, **how):
    """What `sample` draws from: P(id <= i) is the largest u for which it returns such an id."""
    steps = []
    for i in range(len(logits)):
        low, high = 0.0, 1.0
        for _ in range(44):
            middle = (low + high) / 2
            if sample(logits, Fixed(middle), **how) <= i:
                low = middle
            else:
                high = middle
        steps.append(low)
    return np.diff([0, *steps])


def expected(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seen=()):
    """The same as the papers define it, one value after the other."""
    scores = [float(x) for x in logits]
    for i in set(seen):
        if i < len(scores):
            scores[i] = scores[i] / repetition_penalty if scores[i] > 0 else scores[i] * repetition_penalty
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if top_k:
        least = scores[order[min(top_k, len(order)) - 1]]
        order = [i for i in order if scores[i] >= least]
    p = {i: math.exp((scores[i] - scores[order[0]]) / temperature) for i in order}
    total = math.fsum(p.values())
    kept, mass = [], 0.0
    for i in order:
        if mass < top_p and p[i] >= min_p * p[order[0]]:
            kept.append(i)
        mass += p[i] / total
    out = np.zeros(len(scores))
    for i in kept:
        out[i] = p[i] / math.fsum(p[j] for j in kept)
    return out


KNOBS = [
    {},
    {"temperature": 0.3},
    {"temperature": 5.0},
    {"top_k": 1},
    {"top_k": 4},
    {"top_p": 0.123},
    {"top_p": 0.777},
    {"min_p": 0.05},
    {"min_p": 0.6},
    {"repetition_penalty": 1.3, "seen": (0, 3, 3, 5)},
    {"repetition_penalty": 0.7, "seen": (1, 2)},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.901, "min_p": 0.02, "repetition_penalty": 1.2, "seen": (0, 1, 7)},
    {"temperature": 1.7, "top_k": 7, "top_p": 0.611, "min_p": 0.3, "repetition_penalty": 1.9, "seen": tuple(range(9))},
]


def scores(seed, ties):
    """Ten scores above and below zero; with ties, several are equal."""
    logits = np.random.default_rng(seed).standard_normal(10) * 2
    return np.round(logits) if ties else logits


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("how", KNOBS, ids=lambda how: " ".join(how) or "none")
def test_each_knob_does_what_its_paper_says(how, ties):
    for seed in range(3):
        logits = scores(seed, ties)
        assert np.allclose(probabilities(logits, **how), expected(logits, **how), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_draw_follows_the_distribution(dtype):
    how = dict(temperature=0.8, top_k=9, top_p=0.95, min_p=0.01)
    logits, rng, n = scores(1, False).astype(dtype), np.random.default_rng(0), 20_000
    p = expected(logits, **how)
    drawn = np.bincount([sample(logits, rng, **how) for _ in range(n)], minlength=10)
    assert not drawn[p == 0].any()
    p, drawn = p[p > 0], drawn[p > 0]
    assert 5 <= len(p) < 10 and ((drawn - n * p) ** 2 / (n * p)).sum() < 25   # chi-square; of at most 9 terms


def test_knobs_at_their_ends():
    logits = np.array([0.5, 2.0, -1.0, 2.0], np.float32)
    unchanged = expected(logits)
    for how in ({"top_k": 4}, {"top_k": 99}, {"top_p": 1.0}, {"min_p": 0.0}, {"temperature": 1.0}):
        assert np.allclose(probabilities(logits, **how), unchanged, atol=1e-7)
    assert np.allclose(probabilities(logits, top_p=1e-300), [0, 1, 0, 0])
    assert np.allclose(probabilities(logits, min_p=1.0), [0, 0.5, 0, 0.5])
    assert np.allclose(probabilities(logits, temperature=1e-310), [0, 0.5, 0, 0.5])  # without a warning, too
    assert np.allclose(probabilities(logits, temperature=1e300), 0.25)
    for how in ({}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}, {"repetition_penalty": 9.0, "seen": [0]}):
        assert sample(np.array([-3.0], np.float32), Fixed(0.999), **how) == 0    # V = 1


def test_impossible_tokens_stay_impossible_under_every_knob():
    logits = np.array([-np.inf, 1.0, -np.inf, -2.0, -np.inf])
    for how in KNOBS:
        how = {**how, "seen": (0, 1)} if "seen" in how else how
        p = probabilities(logits, **how)
        assert not p[[0, 2, 4]].any() and np.allclose(p, expected(logits, **how), atol=1e-9)
    assert sample(logits) == 1 and sample(logits, Fixed(0.0)) == 1 and sample(logits, Fixed(1 - 2**-53)) == 3


@pytest.mark.parametrize("bad", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]], ids=str)
def test_scores_of_no_use_are_refused(bad):
    for rng in (None, np.random.default_rng(0)):
        with pytest.raises(UserError, match="nan or infinite; its weights are damaged"):
            sample(np.array(bad, np.float32), rng)


def test_the_penalty_changes_neither_the_scores_nor_ids_that_are_not_drawn():
    logits = np.array([1.0, -1.0, 0.9], np.float32)
    assert sample(logits) == 0 and sample(logits, repetition_penalty=2.0, seen=[0, 0, 7, 1]) == 2
    assert logits.tolist() == [1.0, -1.0, np.float32(0.9)]


def test_log_probabilities_are_those_of_the_softmax():
    logits = (scores(0, False) * 1000).astype(np.float32)
    full = logits.astype(np.float64) - logits.max() - math.log(np.exp(logits.astype(np.float64) - logits.max()).sum())
    assert [log_probability(logits, i) for i in range(10)] == pytest.approx(list(full), rel=1e-12, abs=1e-12)


TRANSFORMERS = """
import json, sys
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers import (LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor,
                          TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
asked = json.loads(sys.stdin.read())
made = dict(temperature=TemperatureLogitsWarper, top_k=TopKLogitsWarper, top_p=TopPLogitsWarper, min_p=MinPLogitsWarper)
answer = []
for how, logits in asked["cases"]:
    seen, penalty = how.pop("seen", [0]), how.pop("repetition_penalty", 1.0)
    steps = [RepetitionPenaltyLogitsProcessor(penalty)] + [made[name](how[name]) for name in made if name in how]
    out = LogitsProcessorList(steps)(torch.tensor([seen]), torch.tensor([logits], dtype=torch.float64))
    answer.append(out.softmax(-1)[0].tolist())
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, initializer_range=0.5)).eval()
model.save_pretrained(asked["folder"])
texts = []
for ids in asked["prompts"]:
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20, pad_token_id=50256,
                         repetition_penalty=asked["penalty"])
    texts.append(out[0, len(ids):].tolist())
print(json.dumps(dict(p=answer, texts=texts)))
"""
PROMPTS = ["Hello, I'm a language model,", "Once upon a time", "1, 2, 3"]


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """What transformers computes: `p`, probabilities of each of `cases`; `texts`, those of its model in `folder`."""
    for library in ("torch", "transformers"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed: it is the oracle here")
    folder = tmp_path_factory.mktemp("hf")
    cases = [(how, scores(seed, ties).tolist()) for how in KNOBS for seed in range(3) for ties in (False, True)]
    prompts = [[50256]]
    if (GPT2_FILES / "vocab.bpe").exists():
        (folder / "vocab.json").write_bytes((GPT2_FILES / "encoder.json").read_bytes())
        (folder / "merges.txt").write_bytes((GPT2_FILES / "vocab.bpe").read_bytes())
        prompts = [Tokenizer.from_merges_txt(GPT2_FILES / "vocab.bpe").encode(prompt) for prompt in PROMPTS]
    asked = dict(cases=cases, folder=str(folder), prompts=prompts, penalty=1.3)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", TRANSFORMERS], input=json.dumps(asked),
                            capture_output=True, text=True, timeout=300)  # fmt: skip
    assert result.returncode == 0, result.stderr
    return {"cases": cases, "folder": folder, "prompts": prompts, **json.loads(result.stdout.splitlines()[-1])}


def test_each_knob_does_what_transformers_does(hugging_face):
    """Of tokens that are equally likely, transformers keeps others by top_p, but as many."""
    for (how, logits), theirs in zip(hugging_face["cases"], hugging_face["p"]):
        ours = probabilities(np.array(logits), **how)
        if len(set(logits)) < 10:
            ours, theirs = sorted(ours), sorted(theirs)
        assert np.allclose(ours, theirs, rtol=1e-8, atol=1e-10), how


def test_a_model_of_transformers_writes_the_same_here(hugging_face):
    """Tokens and text, greedy with a repetition penalty (without one, a random model repeats one word indefinitely)."""
    if not (hugging_face["folder"] / "merges.txt").exists():
        pytest.skip("GPT-2's vocab.bpe and encoder.json are not in shared/data")
    flags = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    result = python(ROOT / "inference.py", "--weights", hugging_face["folder"], "--greedy", "--json", *flags,
                    "--repetition-penalty", 1.3, "--max-new-tokens", 20, cwd=ROOT)  # fmt: skip
    assert result.returncode == 0, result.stderr
    texts = [json.loads(line) for line in result.stdout.splitlines()]
    tokenizer = Tokenizer.from_merges_txt(GPT2_FILES / "vocab.bpe")
    assert [text["prompt_ids"] for text in texts] == hugging_face["prompts"]
    for text, theirs in zip(texts, hugging_face["texts"]):
        assert text["ids"] == theirs[: len(text["ids"])] and theirs[len(text["ids"]) :] in ([], [50256])
        assert text["text"] == tokenizer.decode(text["ids"])
        assert len(set(theirs)) > 5


# -- several texts at once -------------------------------------------------------------------------------------------


def prompts_of(lengths, seed=0, V=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, n).tolist() for n in lengths]


def collect(model, prompts, n, rngs, *more, **options):
    """{number: [tokens]}, after checks that hold for every run."""
    texts, closed = {i: [] for i in range(len(prompts))}, set()
    for step in generate(model, prompts, n, rngs, *more, **options):
        assert isinstance(step, Step) and step.text not in closed
        if step.token is not None:
            texts[step.text].append(step.token)
        if step.last:
            closed.add(step.text)
            assert step.token is None or len(texts[step.text]) == n
    assert closed == set(texts)
    return texts


LENGTHS = [1, 12, 3, 20, 5, 5, 11, 1, 30, 2]                       # the context is 12


@pytest.mark.parametrize("batch", [1, 3, 4, 16])
@pytest.mark.parametrize("knobs", [None, Sampling(1.5, 20, 0.95, 0.001, 1.1)], ids=["greedy", "drawn"])
def test_each_text_is_as_if_it_were_alone(knobs, batch, mode):  # noqa: F811
    """Token for token equal to full forward passes over the last 12, for prompts of all lengths, past the context."""
    model, n = tiny(seed=3, scale=30.0), 18
    prompts = prompts_of(LENGTHS)
    rngs = [knobs and np.random.default_rng(i) for i in range(10)]
    texts = collect(model, prompts, n, rngs, knobs, batch_size=batch)
    for i, prompt in enumerate(prompts):
        text, rng = list(prompt), knobs and np.random.default_rng(i)
        for _ in range(n):
            with no_grad():
                logits = model(np.array([text[-12:]]))[0].numpy()[0, -1]
            text.append(sample(logits, rng, **vars(knobs or Sampling()), seen=text))
        assert texts[i] == text[len(prompt) :]
    assert len({tuple(text) for text in texts.values()}) > 5


@pytest.mark.parametrize("batch", [1, 4])
def test_a_stop_token_ends_its_text_alone(batch):
    model, prompts = tiny(seed=3, scale=30.0), prompts_of(LENGTHS)
    rngs = [np.random.default_rng(i) for i in range(10)]
    full = collect(model, prompts, 30, [np.random.default_rng(i) for i in range(10)], batch_size=1)
    stop = next(id for id in range(30) if 3 <= sum(id in text for text in full.values()) <= 7)
    texts = collect(model, prompts, 30, rngs, stop=stop, batch_size=batch)
    for i, text in full.items():
        assert texts[i] == (text[: text.index(stop)] if stop in text else text)


def count_passes(model):
    """A list that records the (B, T) of every forward pass from now on."""
    passes, full = [], model.hidden
    model.hidden = lambda tokens, cache=None: passes.append(tokens.shape) or full(tokens, cache)
    return passes


def test_equal_prompts_share_the_pass_over_them_and_differ_by_their_draws():
    """Also with one that is under way already."""
    model, prompt = tiny(seed=3, scale=10.0), [1, 2, 3, 4]
    passes, texts, ended = count_passes(model), [[] for _ in range(6)], set()
    rngs = [np.random.default_rng(i) for i in range(6)]
    for step in generate(model, [prompt] * 6, 6, rngs, batch_size=3, ended=ended):
        texts[step.text].append(step.token)
        if step.text == 0 and len(texts[0]) == 2:
            ended.add(0)                                          # from now on they do not begin together
    assert passes[0] == (1, 4) and set(passes[1:]) <= {(1, 1), (1, 2), (1, 3)}
    assert len(set(map(tuple, texts))) > 3
    for i, text in enumerate(texts):
        assert text == list(model.generate(prompt, 6, np.random.default_rng(i)))[: len(text)]


def test_a_text_that_has_slid_out_of_its_prompt_shares_it_no_more():
    model, prompt = tiny(seed=3, scale=30.0), list(range(10))
    ended, texts = set(), [[], [], []]
    for step in generate(model, [prompt] * 3, 9, [None, np.random.default_rng(1), None], batch_size=2, ended=ended):
        texts[step.text].append(step.token)
        if step.text == 1 and len(texts[1]) == 6:
            ended.add(1)                                          # now text 2 begins, while text 0 has slid
    assert texts[0] == texts[2] == list(model.generate(prompt, 9)) and len(texts[1]) == 6


def test_what_the_caller_has_ended_goes_on_no_more():
    model, ended, steps = tiny(seed=3, scale=10.0), {3}, []
    for step in generate(model, [[1], [2], [3], [4], [5]], 5, [None] * 5, batch_size=2, ended=ended):
        steps.append(step.text)
        if step.text == 0 and steps.count(0) == 2:
            ended.add(0)
    assert [steps.count(i) for i in range(5)] == [2, 5, 5, 0, 5]


def test_the_order_of_steps():
    """Round after round, one step of each text that is worked on; who comes next takes the place of who has ended."""
    steps = [(s.text, s.last) for s in generate(tiny(), [[1], [2], [3]], 2, [None] * 3, batch_size=2)]
    assert steps == [(0, False), (1, False), (0, True), (1, True), (2, False), (2, True)]


@pytest.mark.parametrize("n_vocab", [None, 25])
def test_log_probabilities_are_the_models_own(n_vocab, mode):  # noqa: F811
    """Those of a full forward pass, before penalty and temperature, among the ids that may be drawn."""
    model, prompts = tiny(seed=3, scale=5.0), prompts_of([3, 12, 7, 1])
    texts, knobs = [list(prompt) for prompt in prompts], Sampling(1.4, 9, 0.9, 0.01, 1.5)
    rngs = [np.random.default_rng(i) for i in range(4)]
    for step in generate(model, prompts, 15, rngs, knobs, n_vocab=n_vocab, batch_size=3, logprobs=True):
        text = texts[step.text]
        with no_grad():
            logits = model(np.array([text[-12:]]))[0].numpy()[0, -1, :n_vocab].astype(np.float64)
        assert step.logprob == pytest.approx(logits[step.token] - np.log(np.exp(logits).sum()), rel=1e-4, abs=1e-5)
        text.append(step.token)
    assert next(generate(model, prompts, 1, [None] * 4)).logprob is None


def test_on_the_stand_in_for_a_gpu_the_same_steps(monkeypatch):
    strict_cupy.install(monkeypatch)
    steps = []
    with kernels("reference"):
        for device in ("cpu", "cuda"):
            model = tiny(seed=3, scale=10.0)
            FlatBuffers(model, device)
            rngs = [np.random.default_rng(i) for i in range(5)]
            prompts = [*prompts_of([3, 15, 1, 7]), prompts_of([3])[0]]
            steps.append(list(generate(model, prompts, 12, rngs, Sampling(0.9, 0, 0.9), stop=4, n_vocab=28,
                                       batch_size=3, logprobs=True)))
    assert steps[0] == steps[1] and len(steps[0]) > 30


def test_caches_are_as_long_as_needed_and_go_with_their_texts(monkeypatch, no_collector):
    made = []

    class Watched(KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            made.append((self.size, weakref.ref(self)))

    monkeypatch.setattr(models.gpt, "KVCache", Watched)
    writing = generate(tiny(), [[1], [1] * 5, [1] * 12, [1] * 30, [2]], 4, [None] * 5, batch_size=2)
    most = 0
    for step in writing:
        most = max(most, sum(ref() is not None for _, ref in made))
        if step.text == 3:
            break
    assert [size for size, _ in made] == [4, 8, 12, 12] and most == 2   # the last token is never fed
    writing.close()
    assert all(ref() is None for _, ref in made)


def test_nothing_is_written_where_nothing_is_wanted():
    assert list(generate(tiny(), [[1]], 0, [None])) == [] and list(generate(tiny(), [], 5, [])) == []


def test_what_generate_refuses():
    for prompts, rngs, batch in (([[1], []], [None] * 2, 1), ([[1]], [], 1), ([[1]], [None], 0)):
        with pytest.raises(ValueError):
            next(generate(tiny(), prompts, 3, rngs, batch_size=batch))
    model = tiny()
    model.ln_f.weight.data[3] = np.nan
    with pytest.raises(UserError, match="its weights are damaged"):
        next(model.generate([1], 3))


def test_a_cache_takes_over_a_part_of_another():
    model, x = tiny(scale=5.0), np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    long, short = KVCache(model.config), KVCache(model.config, size=6)
    model.next_logits(x, long)
    short.copy_from(long, 4)
    again = model.next_logits(x[:, 4:5], short).numpy()
    with no_grad():
        full = model(x[:, :5])[0].numpy()[:, -1]
    assert short.position == 5 and long.position == 8 and np.allclose(again, full, rtol=1e-4, atol=1e-5)


# -- stop strings ----------------------------------------------------------------------------------------------------


def stream(tokenizer, pieces, stops):
    """(text of each token, text of the end, has it stopped?) of a text in pieces, each encoded for itself."""
    out = TextStream(tokenizer, stops)
    given = [out.feed(id) for piece in pieces for id in tokenizer.encode(piece)]
    return given, out.flush(), out.stopped


BYTES = Tokenizer([])


@pytest.mark.parametrize(
    "text, stops, shown",
    [
        ("one. two", [], "one. two"),
        ("one. two", [""], "one. two"),
        ("one. two", ["."], "one"),
        ("one. two", ["one"], ""),
        ("one. two", ["two!"], "one. two"),          # what was held back comes out at the end
        ("ababac", ["abac"], "ab"),                  # a beginning within a beginning
        ("aaab", ["aab"], "a"),
        ("a\n\n\nb", ["\n\n"], "a"),
        ("xabcy", ["bc", "abc"], "x"),               # both complete at once: the longer one
        ("xabcy", ["abc", "b"], "xa"),               # b is complete first
        ("one two", ["two", "one"], ""),
        ("n\u00e9\u263c!", ["\u263c"], "n\u00e9"),   # within characters of several tokens
        ("\U0001f642\U0001f643", ["\U0001f643"], "\U0001f642"),
        (b"a\xe2\x98", ["\ufffd"], "a"),             # half a character at the end
        (b"a\xff.b", ["\ufffd."], "a"),
    ],
)
def test_stop_strings(text, stops, shown):
    for tokenizer in (BYTES, Tokenizer.train(text * 3, 300)):
        given, rest, stopped = stream(tokenizer, [text], stops)
        full = tokenizer.decode(tokenizer.encode(text))
        assert "".join(given) + rest == shown and stopped == any(stop and stop in full for stop in stops)


def test_a_stopped_stream_says_nothing_more():
    out = TextStream(BYTES, ["b"])
    assert [out.feed(id) for id in BYTES.encode("abab")] == ["a", "", "", ""]
    assert out.stopped and out.flush() == ""


def test_random_texts_end_where_str_find_says():
    """However they are cut into tokens. What comes out is at each moment all that no stop string can take back."""
    rng = np.random.default_rng(0)
    letters = ["a", "b", "ab", "ba", "\u00e9", "\u263c", "\n", b"\xff", b"\x98", b"\xe2"]
    trained = Tokenizer.train("ababba\u00e9\u263c\n" * 9, 270)
    ends = 0
    for turn in range(1500):
        text = b"".join(_bytes(letters[i]) for i in rng.integers(0, len(letters), rng.integers(0, 14)))
        stops = ["".join(rng.choice(list("ab\u00e9\u263c\n\ufffd"), rng.integers(1, 4))) for _ in range(turn % 4)]
        cuts = sorted(rng.integers(0, len(text) + 1, 3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        given, rest, stopped = stream((BYTES, trained)[turn % 2], pieces, stops)
        full = text.decode("utf-8", "replace")
        matches = [(full.find(stop) + len(stop), full.find(stop)) for stop in stops if stop in full]
        assert "".join(given) + rest == (full[: min(matches)[1]] if matches else full)
        assert stopped == bool(matches) and (stops or not rest.strip("\ufffd"))
        ends += stopped
        if not stopped:                                           # held back: the longest beginning of a stop string
            certain = len("".join(given))
            held = full[certain:].rstrip("\ufffd")
            assert not held or any(stop.startswith(held[: len(stop)]) for stop in stops)
    assert 200 < ends < 1300


def _bytes(letter):
    return letter if isinstance(letter, bytes) else letter.encode()


# -- texts from a model ----------------------------------------------------------------------------------------------


def pieces(**options):
    model = tiny(seed=3, scale=10.0, vocab_size=257)
    return stream_texts(model, BYTES, [[1], [2], [3]], 8, sampling=Sampling(), seed=5, samples=[0, 1, 0], batch_size=2,
                        **options)  # fmt: skip


def test_pieces_come_in_turns_or_text_after_text():
    turns, ordered = list(pieces()), list(in_order(pieces()))
    assert ordered == sorted(turns, key=lambda piece: piece.index) != turns
    for i in range(3):
        text = [piece for piece in ordered if piece.index == i]
        assert [piece.finish_reason for piece in text] == [None] * 7 + ["length"]
        assert "".join(piece.text for piece in text) == BYTES.decode([piece.token for piece in text])


def test_texts_that_are_interrupted_keep_what_was_held_back():
    first = next(pieces()).token
    ended = list(pieces(stops=[BYTES.decode([first]) + "!"], interrupted=lambda: True))
    assert [piece.index for piece in ended] == [0, 1, 2] and {piece.finish_reason for piece in ended} == {"interrupted"}
    assert all(piece.text == BYTES.decode([piece.token]) for piece in ended)


# -- inference.py ----------------------------------------------------------------------------------------------------


def python(*arguments, cwd, **options):
    options = {"encoding": "utf-8", **options} if "text" not in options else options
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, timeout=600, **options)


TEXT = "The cat sat on the mat.\nThe dog sat on the log; a bird sang \u201cpip!\u201d \u263c\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the weights of a model that has learned nothing, but writes a lot."""
    folder = tmp_path_factory.mktemp("writing")
    tokenizer = Tokenizer.train(TEXT * 20, 285)
    model = GPT(GPTConfig(block_size=24, vocab_size=288, n_layer=1, n_head=2, n_embd=32), seed=0)
    FlatBuffers(model)
    for parameter in model.parameters():
        parameter.data *= 12
    for name in ("trained_weights.bin", "endless.bin"):
        save_weights(folder / name, model.state_dict(), model.config.to_dict(), tokenizer.to_json(), {})
        model.wte.weight.data[tokenizer.eot] = 0                  # never the most likely
    return folder


@pytest.fixture
def infer(folder, monkeypatch, capfdbinary):
    """infer(flags) is what inference.py prints, as text."""
    monkeypatch.chdir(folder)

    def run(*flags):
        assert inference.main([str(flag) for flag in flags]) == 0
        printed = capfdbinary.readouterr()
        assert printed.err == b""
        return printed.out.decode()

    return run


@pytest.fixture
def objects(infer):
    return lambda *flags: [json.loads(line) for line in infer("--json", *flags).splitlines()]


def test_several_prompts_and_samples_have_headers(infer):
    flags = ["--max-new-tokens", 12, "--temperature", 1.5]
    alone = {p: infer("--prompt", p, *flags) for p in ("The cat", "A")}
    assert all(text.startswith(p) and text.endswith("\n") for p, text in alone.items())
    several = infer("--prompt", "The cat", "--prompt", "A", *flags)
    assert several == f"--- prompt 1\n{alone['The cat']}--- prompt 2\n{alone['A']}"
    both = infer("--prompt", "The cat", "--prompt", "A", "--num-samples", 2, *flags)
    heads = [f"--- prompt {p}, sample {s} of 2\n" for p in (1, 2) for s in (1, 2)]
    positions = [both.index(head) for head in heads]
    assert positions == sorted(positions) and both.startswith(f"{heads[0]}{alone['The cat']}{heads[1]}The cat")
    assert f"{heads[2]}{alone['A']}{heads[3]}A" in both


def test_the_batch_size_does_not_change_the_texts(infer):
    flags = "--prompt The --prompt A --prompt b --num-samples 3 --max-new-tokens 40 --temperature 1.3 --seed 5".split()
    texts = [infer(*flags, "--batch-size", n) for n in (1, 2, 5, 99)]
    assert texts[0] == texts[1] == texts[2] == texts[3] and texts[0] != infer(*flags[:-1], 6)


def test_prompts_in_a_file(objects, folder):
    def prompts(data):
        (folder / "prompt.txt").write_bytes(data)
        return [text["prompt"] for text in objects("--prompt-file", "prompt.txt", "--max-new-tokens", 2)]

    assert prompts(b"The cat") == prompts(b"The cat\n") == prompts(b"\xef\xbb\xbfThe cat\r\n") == ["The cat"]
    assert prompts(b"a\nb\n\n") == ["a\nb\n"]                     # of the ends of lines only the last one is dropped
    for end in (b"", b"\n", b"\n<|endoftext|>", b"\n<|endoftext|>\n<|endoftext|>\n"):
        assert prompts(b"a\n\n<|endoftext|>\nb <|x|>\xe2\x98\xbc" + end) == ["a\n", "b <|x|>\u263c"]
        assert prompts(b"<|endoftext|>\r\na\r\nA\r\n<|endoftext|>\r\nb\rc" + end) == ["a\nA", "b\rc"]
    assert prompts(b"\xff\x00a") == ["\ufffd\x00a"]


def test_bytes_that_are_no_text_come_out_as_they_went_in(folder):
    (folder / "prompt.txt").write_bytes(b"\xff\xe2a")
    result = python(ROOT / "inference.py", "--prompt-file", "prompt.txt", "--max-new-tokens", 2, cwd=folder, text=False)
    assert result.stdout.startswith(b"\xff\xe2a") and result.stderr == b""


@pytest.mark.parametrize("data", [b"", b"\n", b"<|endoftext|>\n"], ids=repr)
def test_a_file_without_prompts_is_refused(data, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "prompt.txt").write_bytes(data)
    with pytest.raises(UserError, match="prompt.txt: there is no prompt in it"):
        inference.main(["--prompt-file", "prompt.txt"])


def test_json_has_tokens_their_probabilities_and_why_it_ended(objects, folder):
    flags = "--prompt The --prompt A --num-samples 8 --max-new-tokens 60 --temperature 1.5 --top-p 1 --stop og".split()
    texts = objects(*flags)
    model, tokenizer, _ = inference.load(str(folder / "trained_weights.bin"))
    assert [(text["prompt"], text["sample"]) for text in texts] == [(p, s) for p in ("The", "A") for s in range(1, 9)]
    for text in texts:
        assert text["prompt_ids"] == [tokenizer.eot, *tokenizer.encode(text["prompt"])]
        full = tokenizer.decode(text["ids"])
        stopped = "og" in full
        assert text["text"] == full.split("og")[0] and stopped == (text["ended_by"] == "stop string")
        assert (len(text["ids"]) == 60) >= (text["ended_by"] == "length")
        assert tokenizer.eot not in text["ids"] and len(text["ids"]) == len(text["logprobs"])
        assert all(math.isfinite(p) and p <= 0 for p in text["logprobs"])
        ids = [*text["prompt_ids"], *text["ids"]][:24]
        with no_grad():
            logits = model(np.array([ids]))[0].numpy()[0, :, : tokenizer.n_vocab].astype(np.float64)
        p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        own = [p[i - 1, ids[i]] for i in range(len(text["prompt_ids"]), len(ids))]
        # Scores of several hundred: float32 is off by up to 1e-3, against float64, with a cache and without.
        assert text["logprobs"][: len(own)] == pytest.approx(own, abs=2e-3)
    assert {text["ended_by"] for text in texts} == {"stop string", "length", "end of text"}


def test_several_stop_strings(infer):
    flags = ["--prompt", "The", "--temperature", 1.2, "--max-new-tokens", 150]
    full = infer(*flags)[3:-1]
    stops = [full[20:23], full[10:12]]
    first = min(full.find(stop) for stop in stops)
    assert infer(*flags, "--stop", stops[0], "--stop", stops[1], "--stop", "never") == "The" + full[:first] + "\n"


def test_greedy_is_temperature_0(infer):
    cold = infer("--greedy", "--seed", 1)
    assert cold == infer("--temperature", 0, "--seed", 2) != infer("--seed", 1, "--temperature", 2)


def test_special_tokens_in_a_prompt(objects, folder, monkeypatch):
    tokenizer = inference.load(str(folder / "trained_weights.bin"))[1]
    flags = ["--prompt", "a<|endoftext|>b", "--max-new-tokens", 1, "--start-token", "no"]
    with pytest.raises(UserError, match="--special allowed reads it as the token of that name, --special"):
        objects(*flags)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    assert objects(*flags, "--special", "allowed")[0]["prompt_ids"] == [a, tokenizer.eot, b]
    ids = objects(*flags, "--special", "ordinary")[0]["prompt_ids"]
    assert tokenizer.eot not in ids and tokenizer.decode(ids) == "a<|endoftext|>b"


def test_the_start_token(objects, folder):
    eot = inference.load(str(folder / "trained_weights.bin"))[1].eot
    for start, first in (("auto", True), ("yes", True), ("no", False)):
        (text,) = objects("--prompt", "a", "--max-new-tokens", 1, "--start-token", start)
        assert (text["prompt_ids"][0] == eot) == first
    assert objects("--prompt", "", "--max-new-tokens", 1, "--start-token", "no")[0]["prompt_ids"] == [eot]


def test_a_shorter_context(objects, folder):
    """Each token follows from the last 5."""
    model, tokenizer, _ = inference.load(str(folder / "trained_weights.bin"))
    generated = objects("--prompt", "A", "--greedy", "--block-size", 5, "--max-new-tokens", 20)[0]
    text = generated["prompt_ids"]
    for token in generated["ids"]:
        with no_grad():
            logits = model(np.array([text[-5:]]))[0].numpy()[0, -1, : tokenizer.n_vocab]
        assert token == int(np.argmax(logits))
        text.append(token)
    with pytest.raises(UserError, match="--block-size 25"):
        objects("--block-size", 25)


def test_a_prompt_that_is_too_long_is_reported(folder):
    flags = ("--prompt", "A bird in a tree sang", "--block-size", 5, "--max-new-tokens", 2)
    result = python(ROOT / "inference.py", *flags, cwd=folder)
    assert result.returncode == 0 and "the model sees the last 5 of them" in result.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--min-p 1.5", "--min-p must be in 0 .. 1, not 1.5"),
        ("--min-p nan", "--min-p must be in 0 .. 1, not nan"),
        ("--repetition-penalty 0", "--repetition-penalty must be above 0 and at most 1000, not 0.0"),
        ("--repetition-penalty inf", "--repetition-penalty must be above 0"),
        ("--temperature inf", "--temperature must be finite"),
        ("--top-k -1", "--top-k must be at least 0, not -1"),
        ("--batch-size 0", "--batch-size must be at least 1, not 0"),
        ("--stop . --stop=", "--stop must not be empty"),
        ("--prompt a --prompt-file b", "--prompt, --prompt-file and --interactive exclude each other"),
        ("--prompt a --interactive", "--prompt, --prompt-file and --interactive exclude each other"),
        ("--interactive --json", "--interactive writes one text at a time"),
        ("--interactive --num-samples 2", "--interactive writes one text at a time"),
        ("--special maybe", "argument --special: invalid choice: 'maybe'"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(UserError) as caught:
        inference.parse(flags.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_of_prompts_is_one_line(folder):
    result = python(ROOT / "inference.py", "--prompt-file", "nowhere.txt", cwd=folder)
    assert result.returncode == 2 and "nowhere.txt: cannot be read" in result.stderr and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_broken_weights_are_one_line(folder):
    from tinygrad2.io.weights import load_weights

    weights = load_weights(folder / "trained_weights.bin")
    tensors = {**weights.tensors, "ln_f.weight": weights.tensors["ln_f.weight"] * np.float32("nan")}
    save_weights(folder / "nan.bin", tensors, weights.config, weights.tokenizer, {})
    result = python(ROOT / "inference.py", "--weights", "nan.bin", cwd=folder)
    assert result.returncode == 2 and "weights are damaged" in result.stderr and "Traceback" not in result.stderr
    assert result.stdout.endswith("\n")  # the error is on a line of its own


@pytest.mark.parametrize("flag", ["--num-samples=1", "--json"])
def test_a_reader_that_has_seen_enough_is_no_error(flag, folder):
    command = f'"{sys.executable}" "{ROOT / "inference.py"}" {flag} --max-new-tokens 3000 | head -c 5'
    result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=600)
    assert len(result.stdout) == 5 and result.stderr == ""


def talk(folder, data, *flags):
    return subprocess.run([sys.executable, str(ROOT / "inference.py"), "--interactive", *flags], cwd=folder, input=data,
                          capture_output=True, timeout=600)  # fmt: skip


def test_a_conversation_through_a_pipe(folder, infer):
    """Each line is continued, an empty one goes on with the text before; no questions are asked of a pipe."""
    flags = ["--max-new-tokens", "6", "--greedy"]
    result = talk(folder, "The cat\n\nA \u263c\r\n\nThe cat".encode(), *flags)
    assert result.returncode == 0 and result.stderr == b""
    pieces = []
    for prompt in ("The cat", "A \u263c"):
        short = infer("--prompt", prompt, *flags)[:-1]
        pieces += [short, infer("--prompt", prompt, "--greedy", "--max-new-tokens", 12)[:-1].removeprefix(short)]
    assert result.stdout.decode() == "\n".join([*pieces, pieces[0], ""])


def test_a_conversation_with_what_is_no_text(folder):
    result = talk(folder, b"\xff\xfeA\n<|endoftext|>\nB\n", "--max-new-tokens", "3")
    assert result.returncode == 0 and result.stdout.startswith(b"\xff\xfeA")
    assert b"\nB" in result.stdout and b"<|endoftext|>" not in result.stdout
    assert b"--special allowed" in result.stderr and len(result.stderr.splitlines()) == 1
    assert talk(folder, b"").stdout == b"" and talk(folder, b"\n", "--max-new-tokens", "3").returncode == 0


ENDLESS = "--weights endless.bin --max-new-tokens 100000000 --greedy --start-token no".split()
LEADER = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class Terminal:
    """inference.py at a terminal of its own."""

    def __init__(self, folder, *flags):
        self.ours, theirs = os.openpty()
        command = [sys.executable, "-c", LEADER, str(ROOT / "inference.py"), *map(str, flags)]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
                                        start_new_session=True, env=environment)  # fmt: skip
        os.close(theirs)

    def read(self, until):
        """What comes, up to `until` (bytes at its end, or a number of them; None: all)."""
        out, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline:
            if not select.select([self.ours], [], [], 0.2)[0]:
                if isinstance(until, bytes) and out.endswith(until):
                    return out
                continue
            try:
                part = os.read(self.ours, 4096)
            except OSError:                                       # Linux: the other side is closed
                part = b""
            out += part
            if not part or isinstance(until, int) and len(out) >= until:
                return out
        raise AssertionError(f"the terminal shows {out!r}, not {until!r}")

    def type(self, data):
        os.write(self.ours, data)

    def close(self):
        """The exit code."""
        os.close(self.ours)
        return self.process.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_conversation_at_a_terminal(folder):
    """Ctrl-C ends a text and not the program, Ctrl-D the program, and then the shell has a line of its own."""
    with Terminal(folder, *ENDLESS, "--interactive") as terminal:
        hint = terminal.read(b"\r\n> ")
        assert hint.startswith(b"A line is continued;") and b"Ctrl-C stops a text; Ctrl-D ends." in hint
        for _ in range(2):
            terminal.type(b"The cat\n")
            assert b"The cat\r\nThe cat" in terminal.read(200)    # what was typed, and then the text
            terminal.type(b"\x03")
            assert terminal.read(b"\r\n> ") and terminal.process.poll() is None
        terminal.type(b"\x04")
        assert terminal.read(None).endswith(b"\r\n") and terminal.close() == 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_conversation_ends_at_sigterm(folder):
    with Terminal(folder, *ENDLESS, "--interactive") as terminal:
        terminal.read(b"\r\n> ")
        terminal.type(b"The cat\n")
        terminal.read(200)
        terminal.process.terminate()
        assert b"Traceback" not in terminal.read(None) and terminal.close() == 128 + signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_ctrl_c_in_one_text_ends_the_program_without_a_traceback(folder):
    with Terminal(folder, *ENDLESS) as terminal:
        assert terminal.read(100).startswith(b"Once upon a time")
        terminal.type(b"\x03")
        end = terminal.read(None)
        assert end.endswith(b"\r\ninterrupted\r\n") and b"Traceback" not in end and terminal.close() == 130
