"""The adapter for lm-evaluation-harness: its answers to requests, and the harness itself if it is installed."""

import importlib.util
import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_commands import command
from test_eval import TOKENIZER, WORDS, naive, questions, write_jsonl
from test_models import tiny
from test_train import ROOT

from tinygrad2.commands import lm_eval as adapter_file
from tinygrad2.commands.lm_eval import Adapter
from tinygrad2.errors import UserError
from tinygrad2.evaluation.scoring import windows
from tinygrad2.io.weights import save_weights
from tinygrad2.tokenizers.char import CharTokenizer

TEXT = " ".join(WORDS)


def requests(*arguments):
    return [SimpleNamespace(args=a) for a in arguments]


def save(folder, tokenizer=TOKENIZER, **changes):
    """A model and its tokenizer in trained_weights.bin."""
    model = tiny(**{"scale": 3.0, "vocab_size": 290, "block_size": 24, **changes})
    path = str(folder / "trained_weights.bin")
    tensors = {name: p.data for name, p in model.named_parameters()}
    save_weights(path, tensors, model.config.to_dict(), tokenizer.to_json(), {})
    return path


@pytest.fixture
def ours(tmp_path):
    return Adapter(pretrained=save(tmp_path), batch_size=1, max_batch_size=None)


# -- likelihoods -------------------------------------------------------------------------------------------------------


def test_likelihoods_in_the_order_of_requests(ours):
    pairs = [("The cat", " sat"), ("The dog sat on", " the log."), ("", "A bird"), ("The cat", " sang"),
             ("The cat ", "sat"), ("  ", "sat"), ("A", ""), ("", "<|endoftext|>The cat")]  # fmt: skip
    results = ours.loglikelihood(requests(*pairs))
    encode, eot = TOKENIZER.encode, TOKENIZER.eot
    rows = [(encode("The cat"), encode("The cat sat")), (encode("The dog sat on"), encode("The dog sat on the log.")),
            ([eot], [eot, *encode("A bird")]), (encode("The cat"), encode("The cat sang")),
            (encode("The cat"), encode("The cat sat")), ([eot], [eot, *encode("  sat")]), ([1], [1]),
            ([eot], [eot, *encode("The cat")])]  # fmt: skip
    for (logprob, greedy), (front, row) in zip(results, rows):
        if len(row) == len(front):
            assert (logprob, greedy) == (0, True)
            continue
        expected, most_likely = naive(ours.model, row, len(front))
        assert type(logprob) is float and type(greedy) is bool
        assert logprob == pytest.approx(expected.sum(), rel=1e-5) and greedy == most_likely.all()


def test_what_the_model_would_write_is_greedy(ours):
    count = 0
    for n in range(1, 40):
        front = TOKENIZER.encode(" ".join((WORDS * 3)[n % 7 : n]))[-20:] or [5]
        context = TOKENIZER.decode(front)
        new = list(ours.model.generate(front, 2))
        text = TOKENIZER.decode(new)
        if TOKENIZER.encode(context + text) == front + new and not context[-1].isspace():
            assert ours.loglikelihood(requests((context, text)))[0][1]
            count += 1
    assert count


def test_a_long_context_loses_its_beginning(ours):
    front, rest = TOKENIZER.encode(TEXT * 3), TOKENIZER.encode(" sat")
    ((logprob, _),) = ours.loglikelihood(requests((TEXT * 3, " sat")))
    row = (front + rest)[-25:]
    assert logprob == pytest.approx(naive(ours.model, row, len(row) - len(rest))[0].sum(), rel=1e-5)


def test_rolling_scores_each_token_once(ours):
    texts = [TEXT * 2, "The cat", ""]
    for text, logprob in zip(texts, ours.loglikelihood_rolling(requests(*((text,) for text in texts)))):
        row = [TOKENIZER.eot, *TOKENIZER.encode(text)]
        parts = [naive(ours.model, row[a:c], b - a)[0].sum() for a, b, c in windows(len(row), 1, 24)]
        assert type(logprob) is float and logprob == pytest.approx(sum(parts), rel=1e-5)


def test_answers_go_into_the_harness_order_over_many_portions(ours):
    pairs = [(" ".join(WORDS[: 1 + i % 4]), " " + WORDS[i % 7]) for i in range(150)]
    together = ours.loglikelihood(requests(*pairs))
    for i in (0, 63, 64, 128, 149):
        assert together[i][0] == pytest.approx(ours.loglikelihood(requests(pairs[i]))[0][0], rel=1e-6)


# -- texts -------------------------------------------------------------------------------------------------------------


def test_texts_end_before_a_stop_string_or_at_their_length(ours):
    (full,) = ours.generate_until(requests(("The cat", {"max_gen_toks": 20})))
    new = list(ours.model.generate(TOKENIZER.encode("The cat")[-4:], 20, stop=TOKENIZER.eot, n_vocab=TOKENIZER.n_vocab))
    assert full == TOKENIZER.decode(new)
    stop = full[len(full) // 2 : len(full) // 2 + 2]
    wishes = [{"until": [stop, "\n\n"], "max_gen_toks": 20}, {"until": stop, "max_tokens": 20, "do_sample": False},
              {"max_new_tokens": 3, "temperature": 0.0}]  # fmt: skip
    results = ours.generate_until(requests(*(("The cat", wish) for wish in wishes)))
    assert results[0] == results[1] == full[: full.index(stop)]
    (short,) = [TOKENIZER.decode(list(ours.model.generate(TOKENIZER.encode("The cat"), 3)))]
    assert results[2] == short


def test_draws_are_those_of_the_seed_and_the_number(ours):
    wish = {"max_gen_toks": 12, "do_sample": True}
    asked = requests(*[("The cat", wish)] * 3)
    first, second = ours.generate_until(asked), ours.generate_until(asked)
    assert first == second and len(set(first)) == 3
    cold = ours.generate_until(requests(("The cat", {**wish, "temperature": 1.0}), ("The cat", {**wish, "top_k": 1})))
    assert cold[0] == first[0] and cold[1] == ours.generate_until(requests(("The cat", {"max_gen_toks": 12})))[0]


def test_contexts_leave_room_for_what_is_written(ours):
    long = ours.generate_until(requests((TEXT, {"max_gen_toks": 10})))
    window = TOKENIZER.encode(TEXT)[-14:]
    assert long[0] == TOKENIZER.decode(list(ours.model.generate(window, 10, stop=TOKENIZER.eot, n_vocab=290)))
    assert len(ours.generate_until(requests((TEXT, {"max_gen_toks": 60}), ("", {"max_gen_toks": 2})))) == 2


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"colour": "red"}, "model_args: 'colour' is not known"),
        ({"block_size": 0}, "block_size must be an integer of at least 1, not 0"),
        ({"block_size": 25}, "--block-size 25"),
        ({"batch_tokens": "many"}, "batch_tokens must be an integer"),
        ({"device": "tpu:1"}, "device 'tpu' is not known"),
        ({"pretrained": "nowhere.bin"}, "nowhere.bin"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(tmp_path, arguments, message):
    with pytest.raises(UserError) as caught:
        Adapter(**{"pretrained": save(tmp_path), **arguments})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_are_taken(tmp_path):
    ours = Adapter(save(tmp_path), block_size=12, batch_size="auto", device="cpu", trust_remote_code=True, seed=3)
    assert ours.max_length == 12 and ours.batch_size == 8 and ours.seed == 3
    assert Adapter(save(tmp_path), batch_size="16").batch_size == 16
    info = ours.get_model_info()
    assert info == {"model_num_parameters": ours.model.count_parameters(), "model_dtype": "float32"}


def test_wishes_that_are_not_known_and_tokenizers_that_cannot(ours, tmp_path):
    with pytest.raises(UserError, match="gen_kwargs: 'num_beams' is not known"):
        ours.generate_until(requests(("The", {"num_beams": 3})))
    letters = Adapter(save(tmp_path, CharTokenizer.train(TEXT)))
    ((logprob, _),) = letters.loglikelihood(requests(("The cat", " sat")))
    assert math.isfinite(logprob)
    with pytest.raises(UserError, match="no end-of-text token"):
        letters.loglikelihood_rolling(requests((" sat",)))


# -- the command, without the harness ----------------------------------------------------------------------------------


def test_without_the_harness_the_command_says_what_to_install(tmp_path):
    (tmp_path / "lm_eval.py").write_text("raise ImportError('planted')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = command("lm_eval", "--tasks", "hellaswag", cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "cannot be imported (planted): pip install lm_eval" in result.stderr
    assert command("lm_eval", "--help", cwd=tmp_path, PYTHONPATH=path).returncode == 0


def test_the_module_does_not_stand_in_the_way_of_the_harness(monkeypatch):
    """`import lm_eval` within it means the installed package, and importing it needs none."""
    assert "lm_eval" not in sys.modules or sys.modules["lm_eval"] is not adapter_file
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    fresh = importlib.util.module_from_spec(importlib.util.find_spec("tinygrad2.commands.lm_eval"))
    fresh.__spec__.loader.exec_module(fresh)
    with pytest.raises(UserError, match="pip install lm_eval"):
        _ = fresh.TinygradLM
    with pytest.raises(AttributeError, match="no attribute 'Dance'"):
        _ = fresh.Dance


# -- the harness -------------------------------------------------------------------------------------------------------

TASKS = {
    "choice": 'output_type: multiple_choice\ndoc_to_text: "{{ctx}}"\ndoc_to_target: "{{label}}"\n'
              "doc_to_choice: endings\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{endings[0]}} {{endings[1]}}"\n'
               "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n",
    "writing": 'output_type: generate_until\ndoc_to_text: "{{ctx}}"\ndoc_to_target: "{{endings[0]}}"\n'
               'generation_kwargs:\n  until: ["."]\n  max_gen_toks: 6\n  do_sample: false\n'
               "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n",
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with three tasks on 30 local questions, and a model; the harness must not use the network."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install lm_eval)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = write_jsonl(tmp_path / "h.jsonl", questions(30))
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        head = f"task: {name}\ndataset_path: json\nvalidation_split: validation\n"
        head += f"dataset_kwargs:\n  data_files:\n    validation: {data}\n"
        (tmp_path / "tasks" / f"{name}.yaml").write_text(head + text)
    save(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_simple_evaluate_from_python(tasks, monkeypatch):
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    from tinygrad2.commands.lm_eval import TinygradLM, register

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tasks / "cache", raising=False)
    assert register() is TinygradLM and issubclass(TinygradLM, lm_eval.api.model.LM)
    manager = TaskManager(include_path=str(tasks / "tasks"), include_defaults=False)
    weights = str(tasks / "trained_weights.bin")
    by_name = lm_eval.simple_evaluate(model="tinygrad2", model_args=f"pretrained={weights},batch_tokens=64",
                                      tasks=list(TASKS), task_manager=manager)["results"]  # fmt: skip
    ours = TinygradLM(pretrained=weights)
    assert ours.rank == 0 and ours.world_size == 1
    results = lm_eval.simple_evaluate(model=ours, tasks=list(TASKS), task_manager=manager)["results"]
    for task, metrics in results.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert by_name[task][name] == pytest.approx(value, rel=1e-6)
    right, right_norm, nats, n_words, n_bytes = 0, 0, 0.0, 0, 0
    for record in map(json.loads, (tasks / "h.jsonl").read_text().splitlines()):
        lls = []
        for ending in record["endings"]:
            front, row = TOKENIZER.encode(record["ctx"]), TOKENIZER.encode(record["ctx"] + " " + ending)
            row, begin = row[-25:], len(row[-25:]) - (len(row) - len(front))
            lls.append(naive(ours.model, row, begin)[0].sum())
        right += int(np.argmax(lls)) == record["label"]
        lengths = [len(ending) for ending in record["endings"]]
        right_norm += int(np.argmax(np.array(lls) / lengths)) == record["label"]
        text = record["endings"][0] + " " + record["endings"][1]
        row = [TOKENIZER.eot, *TOKENIZER.encode(text)]
        nats -= sum(naive(ours.model, row[a:c], b - a)[0].sum() for a, b, c in windows(len(row), 1, 24))
        n_words, n_bytes = n_words + len(text.split()), n_bytes + len(text.encode())
    assert results["choice"]["acc,none"] == right / 30 and results["choice"]["acc_norm,none"] == right_norm / 30
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert results["rolling"]["word_perplexity,none"] == pytest.approx(math.exp(nats / n_words), rel=1e-5)


def test_the_command_is_the_harness_with_our_model(tasks):
    flags = ["--include_path", "tasks", "--threads", "1", "--output_path", "out", "--limit", "12"]
    flags += ["--tasks", "choice,writing", "--model_args", "pretrained=trained_weights.bin,batch_tokens=64"]
    result = command("lm_eval", *flags, cwd=tasks, HF_HOME=str(tasks / "hf"))
    assert result.returncode == 0, result.stderr
    assert "tinygrad2 ({'pretrained': 'trained_weights.bin'" in result.stdout and "|acc_norm" in result.stdout
    (written,) = (tasks / "out").rglob("results_*.json")
    config = json.loads(written.read_text())["config"]
    assert config["model"] == "tinygrad2" and config["model_num_parameters"] > 0
    bad = command("lm_eval", *flags[:-1], "pretrained=nowhere.bin", cwd=tasks, HF_HOME=str(tasks / "hf"))
    assert bad.returncode == 2 and "tinygrad2 lm_eval: nowhere.bin" in bad.stderr.splitlines()[-1]


@pytest.mark.filterwarnings("ignore")
def test_our_windows_and_pairs_are_the_harness_own():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install lm_eval)")
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows

    for n in range(60):
        for size in (1, 2, 7, 24, 80):
            theirs = list(get_rolling_token_windows(list(range(1, n + 1)), 0, size, 1))
            row = list(range(n + 1))
            ours = [(row[a : c - 1], row[b:c]) for a, b, c in windows(n + 1, 1, size)]
            assert ours == theirs

    class Theirs:
        backend = "causal"
        tok_encode = staticmethod(lambda text, **_: TOKENIZER.encode(text, "allowed"))

    ours = SimpleNamespace(tok_encode=Theirs.tok_encode, eot_token_id=TOKENIZER.eot)
    for context in ("The cat", "The cat \n", "A", "on the mat."):
        for continuation in (" sat", "sat", "", "\nsat", "<|endoftext|>"):
            expected = TemplateLM._encode_pair(Theirs(), context, continuation)
            assert Adapter.encode_pair(ours, context, continuation) == expected
