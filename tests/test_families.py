"""The models before the GPT: bigram, MLP, one head. They train, resume, sample and are read like a GPT; what is not for
them refuses in one line."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
from test_memory import kept_bytes
from test_train import TEXT, metrics

import inference
import ops
import train_gpt2
from models import PRESETS, GPTConfig
from models.bigram import BigramConfig, count_bigrams
from models.families import FAMILIES, ModelFlags, config_from_dict, make_config, make_model
from models.generation import generate
from models.head_lm import HeadConfig
from models.last_tokens import TokenCache, last_tokens
from models.mlp_lm import MLPConfig
from models.pretrained import load_pretrained
from models.sampling import Sampling, sample
from tinygrad2.__main__ import main as command
from tinygrad2.cli import call
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.world import World
from tinygrad2.evaluation.scoring import score_rows
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.io.weights import load_weights, save_weights
from tinygrad2.optim import Adam
from tinygrad2.tensor import no_grad

V = 23
CONFIGS = {
    "bigram": BigramConfig(block_size=12, vocab_size=V),
    "mlp": MLPConfig(block_size=12, vocab_size=V, n_context=3, n_embd=5, n_hidden=16),
    "head": HeadConfig(block_size=12, vocab_size=V, n_embd=8),
}
SHAPES = {"bigram": "", "mlp": "--n-embd 8 --n-hidden 16 --n-context 3", "head": "--n-embd 16"}
SMALL = "--block-size 16 --vocab-size 270 --batch-size 8 --warmup-steps 2 --eval-every 4 --sample-tokens 4"
every_model = pytest.mark.parametrize("family", CONFIGS)


def model_of(family, scale=1.0):
    """A small model with random weights."""
    model, rng = make_model(CONFIGS[family], seed=3), np.random.default_rng(4)
    for parameter in model.parameters():
        parameter.data[...] = scale * rng.standard_normal(parameter.shape)
    return model.eval()


def ids(*shape):
    return np.random.default_rng(5).integers(0, V, shape)


# -- what they compute -------------------------------------------------------------------------------------------------


def test_a_trained_bigram_is_what_can_be_counted():
    text = np.random.default_rng(6).choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])
    counted = count_bigrams(text, 4)
    model = make_model(BigramConfig(block_size=399, vocab_size=4))
    flat = FlatBuffers(model)
    optimizer, x, y = Adam(flat), text[None, :-1], text[None, 1:]
    for step in range(600):
        flat.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step(0.1 * 0.99**step)
    trained = ops.log_softmax(model.table.weight).numpy()
    assert np.abs(trained - counted).max() < 1e-4
    assert loss.item() == pytest.approx(-counted[x, y].mean(), abs=1e-6)


def test_counting_by_hand():
    table = np.exp(count_bigrams([0, 1, 0, 1, 0, 0], 3))
    assert np.allclose(table, [[1 / 3, 2 / 3, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_the_mlp_computes_its_formula():
    model, x = model_of("mlp"), ids(2, 7)
    state = model.state_dict()
    for b in range(2):
        for t in range(7):
            context = [x[b, i] if i >= 0 else V for i in (t - 2, t - 1, t)]
            h = np.tanh(state["wte.weight"][context].reshape(-1) @ state["c_fc.weight"] + state["c_fc.bias"])
            assert np.allclose(model(x)[0].numpy()[b, t], h @ state["lm_head.weight"], atol=1e-5)


def test_the_head_computes_its_formula():
    model, x = model_of("head"), ids(1, 6)
    state = model.state_dict()
    q, k, v = np.split((state["wte.weight"][x[0]] + state["wpe.weight"][:6]) @ state["c_attn.weight"], 3, axis=1)
    scores = np.where(np.tri(6) > 0, q @ k.T / math.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = weights / weights.sum(1, keepdims=True) @ v @ state["lm_head.weight"]
    assert np.allclose(model(x)[0].numpy()[0], expected, rtol=1e-4, atol=1e-4)


@every_model
def test_the_loss_is_that_of_the_logits(family):
    model, x, y = model_of(family), ids(3, 9), ids(3, 9)[::-1]
    logits, loss = model(x, y)
    p = np.exp(logits.numpy().astype(float))
    expected = -np.log(p[np.arange(3)[:, None], np.arange(9), y] / p.sum(-1)).mean()
    assert [loss.item(), model.loss(x, y).item()] == pytest.approx([expected] * 2, rel=1e-5)


@every_model
def test_the_first_loss_is_ln_v_and_gradients_are_right(family):
    model, x, y = make_model(CONFIGS[family], seed=1), ids(2, 6), ids(2, 6)[::-1]
    assert model.loss(x, y).item() == pytest.approx(math.log(V), rel=0.02)
    model = model_of(family, scale=0.5)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    model.loss(x, y).backward()
    for parameter in model.parameters():
        v, before = np.random.default_rng(7).standard_normal(parameter.shape), parameter.data
        losses = []
        for h in (1e-5, -1e-5):
            parameter.data = before + h * v
            losses.append(model.loss(x, y).item())
        parameter.data = before
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx((parameter.grad * v).sum(), rel=1e-6, abs=1e-9)


@every_model
def test_the_future_does_not_matter(family):
    model, x = model_of(family), ids(1, 10)
    other = x.copy()
    other[0, 6:] = (other[0, 6:] + 1) % V
    with no_grad():
        a, b = model(x)[0].numpy(), model(other)[0].numpy()
    assert np.array_equal(a[:, :6], b[:, :6]) and not np.allclose(a[:, 6:], b[:, 6:])


@every_model
def test_the_config_tells_shapes_and_memory(family):
    config, x = CONFIGS[family], ids(6, 12)
    model = make_model(config, seed=1)
    assert config.shapes() == {name: parameter.shape for name, parameter in model.named_parameters()}
    assert config.count_parameters() == model.count_parameters()
    assert str(config.vocab_size) in config.describe()
    for mode in ("auto", "reference"):
        if mode == "reference" or ops.have_cpu_kernels():
            with kernels(mode):
                kept = kept_bytes(model.loss(x, x), model)
            planned = sum(config.kept(6, 12, mode == "reference").values())
            assert planned * 0.75 <= kept <= planned * 1.5 + 4 * 72 * V + 72 * 8 * 8


# -- continuing a text -------------------------------------------------------------------------------------------------


def test_last_tokens():
    assert last_tokens(np.array([[5, 6, 7]]), 3, 2, 9).tolist() == [[[9, 5], [5, 6], [6, 7]]]
    assert last_tokens(np.array([[5, 6, 7, 8]]), 1, 3, 9).tolist() == [[[6, 7, 8]]]
    assert last_tokens(np.array([[5]]), 1, 1, 9).tolist() == [[[5]]]
    with pytest.raises(ValueError, match=r"the cache is for 1 sequence\(s\), not 2"):
        TokenCache(1, 12).contexts(ids(2, 3), lambda ids, T: ids)


@every_model
@pytest.mark.parametrize("cuts", [[12], [1] * 12, [5, 1, 6]], ids=str)
def test_a_text_in_pieces_returns_the_same_as_at_once(family, cuts):
    model, x, start = model_of(family), ids(3, 12), 0
    cache, pieces = model.new_cache(3), []
    with no_grad():
        full = model(x)[0].numpy()
        for T in cuts:
            pieces.append(model.logits(model.hidden(x[:, start : start + T], cache)).numpy())
            start += T
    assert np.allclose(np.concatenate(pieces, axis=1), full, rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize("draws", [False, True])
def test_texts_in_a_batch_are_those_alone_without_a_cache(family, draws):
    """Also past block_size, with equal prompts and with one that is longer than block_size."""
    model, knobs = model_of(family), Sampling(temperature=1.0, top_k=10)
    prompts = [[1], [1, 2, 3], [1, 2, 3], ids(20).tolist()]
    rngs = [np.random.default_rng(n) if draws else None for n in range(4)]
    texts = [list(prompt) for prompt in prompts]
    for step in generate(model, prompts, 15, rngs, knobs, batch_size=2):
        texts[step.text].append(step.token)
    for n, prompt in enumerate(prompts):
        rng, text = np.random.default_rng(n) if draws else None, list(prompt)
        for _ in range(15):
            with no_grad():
                logits = model(np.array([text[-12:]]))[0].numpy()[0, -1]
            text.append(sample(logits, rng, **vars(knobs)))
        assert text == texts[n]


@every_model
def test_scores_of_rows_with_a_common_context(family):
    model, x = model_of(family), ids(9).tolist()
    rows = [x[:4] + [1, 2], x[:4] + [3], x[:4] + [3, 4, 5], x]
    begins = [4, 4, 4, 2]
    for (logprobs, greedy), row, begin in zip(score_rows(model, rows, begins), rows, begins):
        with no_grad():
            logits = model(np.array([row[:-1]]))[0].numpy()[0].astype(float)
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        positions = range(begin - 1, len(row) - 1)
        assert np.allclose(logprobs, [expected[i, row[i + 1]] for i in positions], atol=1e-4)
        assert greedy.tolist() == [bool(expected[i].argmax() == row[i + 1]) for i in positions]


# -- the programs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(family, more=""):
    flags = f"--model {family} --data text.txt --prompt The {SMALL} {SHAPES[family]} {more}"
    return train_gpt2.main(World(), flags.split())


def one_line(capsys, function):
    """The line on stderr of a program that refuses."""
    capsys.readouterr()
    assert call(function, "prog") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@every_model
def test_a_training_resumes_bit_for_bit_and_its_weights_are_used(family, folder, capsys):
    assert train(family, "--steps 8 --weights-out whole.bin --run-dir whole --metrics whole.jsonl") == 0
    assert train(family, "--steps 8 --weights-out w.bin --checkpoint-every 5 --keep-every 5") == 0
    for path in (folder / "run" / "checkpoints").glob("step_00000008*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (folder / "w.bin").unlink()
    assert train_gpt2.main(World(), ["--resume"]) == 0
    a, b = load_weights("whole.bin"), load_weights("w.bin")
    assert a.config == b.config and a.config["family"] == family
    assert all(a.tensors[name].tobytes() == b.tensors[name].tobytes() for name in a.tensors)
    losses = [record["loss"] for record in metrics(folder / "whole.jsonl")]
    assert losses[0] == pytest.approx(math.log(270), rel=0.05) and losses[-1] < losses[0]

    model, tokenizer, _ = load_pretrained("w.bin")
    assert model.config == config_from_dict(a.config) and tokenizer is not None
    capsys.readouterr()
    assert inference.main("--weights w.bin --prompt The --max-new-tokens 5 --num-samples 2 --json".split()) == 0
    assert [len(json.loads(line)["ids"]) for line in capsys.readouterr().out.splitlines()] == [5, 5]
    assert command(["convert", "w.bin", "again.bin", "--to", "trained"]) in (0, None)
    assert load_weights("again.bin").config == a.config
    assert command(["eval", "perplexity", "--weights", "w.bin", "--data", "text.txt"]) in (0, None)
    flags = ["--data", "text.txt", "--steps", "2", "--batch-size", "4", "--run-dir", "tuned", "--weights-out", "t.bin"]
    assert train_gpt2.main(World(), ["--init-from", "w.bin", *flags]) == 0
    assert "finetuned loss" in capsys.readouterr().out


@every_model
def test_micro_batches_and_reference_kernels_train_the_same(family, folder):
    assert train(family, "--steps 4 --metrics a.jsonl") == 0
    assert train(family, "--steps 4 --metrics b.jsonl --micro-batch-size 2 --run-dir b --kernels reference") == 0
    a, b = ([record["loss"] for record in metrics(folder / f"{name}.jsonl")] for name in "ab")
    assert a == pytest.approx(b, rel=1e-4)


@every_model
def test_plan_profile_and_verify_take_them(family, folder, capsys):
    flags = f"--model {family} --data text.txt {SMALL} {SHAPES[family]}".split()
    assert command(["plan", *flags]) == 0
    out = capsys.readouterr().out
    assert f"model     {family}: " in out and "what one layer keeps" in out
    assert ("no matrix products" in out) == (family == "bigram")
    assert command(["profile", *flags, "--measure", "1", "--warm-up", "0"]) == 0
    assert "part of a block" not in capsys.readouterr().out
    assert command(["verify", "kvcache", "gradients", *flags]) == 0
    assert capsys.readouterr().out.count("PASS") == 2


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--model bigram --n-layer 3", "--n-layer: a model of the family bigram has no such setting; leave it out"),
        ("--model demo --n-context 3", "--n-context: a model of the family gpt has no such setting; leave it out"),
        ("--model mlp --recompute", "--recompute: is for a GPT, and this model is of the family mlp; leave it out"),
        ("--model head --dtype bfloat16", "--dtype bfloat16: is for a GPT, and this model is of the family head"),
        ("--model mlp --n-hidden 0", "n_hidden must be at least 1, not 0"),
        ("--model mlp --n-context 17 --block-size 16", "n_context = 17 is more than block_size = 16"),
        ("--model mpl", "invalid choice: 'mpl'"),
    ],
)
def test_flags_that_are_not_for_a_model(flags, words, folder, capsys):
    assert words in one_line(capsys, lambda: train_gpt2.main(World(), flags.split()))


def test_what_is_for_a_gpt_only_says_so(folder, capsys):
    config = CONFIGS["mlp"]
    save_weights("mlp.bin", make_model(config, seed=1).state_dict(), config.to_dict(), "", {})
    model = "this model is of the family mlp"
    for to in ("hf", "llmc", "nanogpt"):
        assert f"--to {to}: is for a GPT, and {model}" in one_line(
            capsys, lambda to=to: command(["convert", "mlp.bin", "out", "--to", to])
        )
        assert not (folder / "out").exists()
    for argv in (["verify", "llmc", "mlp.bin", "state.bin"], ["explain", "--weights", "mlp.bin"]):
        assert f"mlp.bin: is for a GPT, and {model}" in one_line(capsys, lambda argv=argv: command(argv))
    tuned = ["--init-from", "mlp.bin", "--data", "text.txt"]
    for flags in (["--n-layer", "2"], ["--n-hidden", "3"]):
        line = one_line(capsys, lambda flags=flags: train_gpt2.main(World(), [*tuned, *flags]))
        assert flags[0] in line and "mlp.bin" in line


def test_int8_and_bfloat16_inference_are_for_a_gpt(folder, capsys):
    assert train("mlp", "--steps 2 --eval-every 0 --sample-tokens 0") == 0
    for flags in (["--quantize", "int8"], ["--dtype", "bfloat16"]):
        assert f"{' '.join(flags)}: is for a GPT" in one_line(capsys, lambda flags=flags: inference.main(flags))


def test_a_file_of_an_unknown_or_damaged_family(folder, capsys):
    config = CONFIGS["mlp"]
    state = make_model(config, seed=1).state_dict()
    for changes, words in [
        ({"family": "rnn"}, "family is 'rnn', not one of bigram, mlp, head, gpt"),
        ({"family": 3}, "family is 3, not one of"),
        ({"n_hidden": 17}, "its tensors are not those of its config"),
        ({"n_layer": 2}, "unknown config field 'n_layer'"),
        ({"n_context": "3"}, "n_context must be of type int"),
    ]:
        save_weights("bad.bin", state, config.to_dict() | changes, "", {})
        line = one_line(capsys, lambda: inference.main(["--weights", "bad.bin"]))
        assert "bad.bin: " in line and words in line


# -- families and presets ----------------------------------------------------------------------------------------------


def test_the_tables_agree():
    assert list(PRESETS)[:5] == ["bigram", "mlp", "head", "block", "demo"]
    for name, values in PRESETS.items():
        config = make_config(**values)
        assert config == type(config).preset(name) == config_from_dict(config.to_dict())
        assert name in train_gpt2.RECIPES
    flags = {f.name for f in fields(ModelFlags)}
    assert flags == {f.name for _, config in FAMILIES.values() for f in fields(config)}
    assert FAMILIES.keys() == {config.family for _, config in FAMILIES.values()}


def test_a_file_without_a_family_is_a_gpt():
    config = GPTConfig.preset("demo")
    assert "family" not in config.to_dict() and config_from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"^c: config field 'n_head' is missing$"):
        config_from_dict({name: value for name, value in config.to_dict().items() if name != "n_head"}, "c")
    with pytest.raises(ValueError, match="^c: the config is not an object"):
        config_from_dict([], "c")
    with pytest.raises(ValueError, match="there is no model 'demo'; the presets are mlp"):
        MLPConfig.preset("demo")
