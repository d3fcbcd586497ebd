"""Hugging Face folders of all kinds: how their texts end, which heads and activations they have, tokenizers beside."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_interop import CONFIG, ROOT, a_model, equal, float32, folder, logits, need_transformers, refused

from models import GPT
from models.pretrained import load_pretrained
from models.sampling import Sampling
from models.text_generation import stream_texts
from tinygrad2.commands import convert, verify, verify_models
from tinygrad2.errors import UserError
from tinygrad2.interop import llmc
from tinygrad2.interop.hf import ACTIVATIONS
from tinygrad2.interop.pretrained import open_model
from tinygrad2.tensor import Tensor, no_grad
from tinygrad2.tokenizers.export import write_tokenizer
from tinygrad2.tokenizers.mapped import DecodeOnlyTokenizer
from tinygrad2.tokenizers.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train("the cat sat on the mat, and the dog sat on the cat. " * 20, 290)


# -- what computes the same, and what does not -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is what this is compared with")
    activations = pytest.importorskip("transformers.activations", reason="transformers is what this is compared with")
    import ops

    op = {"gelu": ops.gelu, "gelu_erf": ops.gelu_erf}[ACTIVATIONS[name]]
    x = np.linspace(-12, 12, 2001)
    theirs = activations.ACT2FN[name](torch.from_numpy(x)).numpy()
    assert np.abs(op(Tensor(x)).numpy() - theirs).max() < 1e-11
    path = folder(tmp_path / "m", float32(a_model(activation=ACTIVATIONS[name])), activation_function=name)
    assert np.array_equal(logits(load_pretrained(path)[0]), logits(a_model(activation=ACTIVATIONS[name])))


@pytest.mark.parametrize("name", ["relu", "gelu_10", "quick_gelu", "silu", "tanh", "laplace", "GELU", None, 3])
def test_other_activations_are_refused(name, tmp_path):
    message = refused(folder(tmp_path / "m", float32(a_model()), activation_function=name))
    assert f"activation_function is {name!r}; supported are gelu_new" in message


def test_torch_files_with_an_index(tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes these files")
    model, path, where = a_model(), tmp_path / "m", {}
    folder(path, {})
    (path / "model.safetensors").unlink()
    tensors = {f"transformer.{name}": torch.from_numpy(array) for name, array in model.state_dict().items()}
    names = list(tensors)
    for i, part in enumerate((names[:5], names[5:])):
        where |= dict.fromkeys(part, f"pytorch_model-{i + 1:05d}-of-00002.bin")
        torch.save({name: tensors[name] for name in part}, path / where[part[0]])
    index = path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert equal(load_pretrained(path)[0], model)
    for change, message in (
        ({names[0]: "model.safetensors"}, "is not a file next to it"),
        ({names[0]: where[names[-1]]}, "though the index lists it"),
        ({names[0]: "pytorch_model-9.bin"}, "pytorch_model-9.bin"),
    ):
        index.write_text(json.dumps({"weight_map": where | change}))
        assert message in refused(path)


@pytest.mark.parametrize("name, kind", [
    ("score.weight", "GPT2ForSequenceClassification"), ("classifier.bias", "GPT2ForTokenClassification"),
    ("qa_outputs.weight", "GPT2ForQuestionAnswering"),
])  # fmt: skip
def test_models_with_another_head_say_what_they_are(name, kind, tmp_path):
    message = refused(folder(tmp_path / "m", {**float32(a_model()), name: ("F32", np.zeros((2, 32), np.float32))}))
    assert f"is a {kind}: it has {name!r}" in message and "GPT2LMHeadModel" in message


@pytest.mark.parametrize("name, what", [
    ("multiple_choice_head.summary.weight", "a head for multiple choice"), ("v_head.summary.bias", "a value head"),
])  # fmt: skip
def test_another_head_beside_that_for_the_next_token(name, what, tmp_path):
    tensors = float32(a_model())
    tensors |= {"lm_head.weight": tensors["transformer.wte.weight"], name: ("F32", np.zeros((1, 32), np.float32))}
    model, _, pretrained = load_pretrained(folder(tmp_path / "m", tensors))
    assert equal(model, a_model()) and pretrained.notes == [f"it also has {what}, which is not used"]


def test_models_without_a_head(tmp_path):
    path = folder(tmp_path / "m", float32(a_model(), ""), architectures=["GPT2Model"])
    model, _, pretrained = load_pretrained(path)
    assert equal(model, a_model()) and "saved without a head" in pretrained.notes[0]
    path = folder(tmp_path / "m", float32(a_model()), tie_word_embeddings=False)
    assert "has no lm_head.weight" in refused(path)


@pytest.mark.parametrize("name, words", [
    ("adapter_config.json", "merge_and_unload"), ("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax"),
    ("model-q4.gguf", "llama.cpp"), ("README.md", "give the folder of a model"),
])  # fmt: skip
def test_folders_without_weights_say_what_is_there(name, words, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("{}")
    message = refused(tmp_path)
    assert "has neither model.safetensors nor" in message and words in message


def test_the_folder_of_a_run_or_a_checkpoint_says_which_file_to_give(tmp_path):
    for step in (50, 100):
        checkpoint = tmp_path / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights.bin").write_bytes(b"")
    for given in (tmp_path, checkpoint):
        assert refused(given).endswith(f"it has weights of a training: give {checkpoint / 'weights.bin'}")


def test_fields_that_change_nothing(tmp_path):
    path = folder(
        tmp_path / "m", float32(a_model()), reorder_and_upcast_attn=True, attn_pdrop=0.5, resid_pdrop=0.5,
        embd_pdrop=0.5, n_ctx=7, n_inner=None, use_cache=False, dtype="bfloat16", torch_dtype="float16",
        summary_type="mean", id2label={"0": "A"}, n_special=3, predict_special_tokens=True,
    )  # fmt: skip
    model = load_pretrained(path)[0]
    assert equal(model, a_model()) and model.config.dropout == 0


# -- how texts begin and end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, generation, ends", [
    ({}, None, ()), ({"eos_token_id": 7}, None, (7,)), ({"eos_token_id": [7, 9]}, None, (7, 9)),
    ({"eos_token_id": 7}, {"eos_token_id": [8, 9, 8]}, (8, 9)), ({"eos_token_id": 7}, {"eos_token_id": None}, (7,)),
    ({"eos_token_id": [5, 300, -1, "7", True]}, None, (5,)), ({"eos_token_id": 300}, {}, ()),
])  # fmt: skip
def test_ids_that_end_a_text(config, generation, ends, tmp_path):
    path = folder(tmp_path / "m", float32(a_model()), bos_token_id=3, **config)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    assert open_model(path).eos == ends and open_model(path / "model.safetensors").eos == ends
    write_tokenizer(TOKENIZER, path, "hf")
    pretrained = open_model(path)
    assert pretrained.ends == (ends or (TOKENIZER.eot,)) and pretrained.end == pretrained.ends[0]
    assert (pretrained.bos, pretrained.start) == (3, 3)
    convert.main([str(path), str(tmp_path / "w.bin"), "--to", "trained"])
    convert.main([str(path), str(tmp_path / "again"), "--to", "hf"])
    assert open_model(tmp_path / "w.bin").ends == open_model(tmp_path / "again").ends == pretrained.ends
    assert open_model(tmp_path / "again").bos == 3
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "again" / name).read_text())["eos_token_id"]
        assert written == (pretrained.ends[0] if len(pretrained.ends) == 1 else list(pretrained.ends))


def test_a_text_ends_with_any_of_several_ids():
    model = a_model()
    greedy = list(model.generate([5], 8))
    never = next(id for id in range(300) if id not in greedy)
    for ends in ((greedy[3], greedy[5]), (never, greedy[2]), (), greedy[4]):
        several = ends if isinstance(ends, tuple) else (ends,)
        expected = next((i for i, id in enumerate(greedy) if id in several), 8)
        assert list(model.generate([5], 8, stop=ends)) == greedy[:expected]
        pieces = stream_texts(model, TOKENIZER, [[5]], 8, sampling=Sampling(0.0), seed=0, samples=[0], end=ends)
        assert [piece.token for piece in pieces if piece.token is not None] == greedy[:expected]


def test_settings_for_drawing_are_named_and_not_used(tmp_path):
    path = folder(tmp_path / "m", float32(a_model()))
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9, "top_k": 50}))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    notes = " ".join(open_model(path).notes)
    assert "--temperature 0.9 --top-k 50; not used" in notes and "chat template, which is not applied" in notes
    for generation, says in (
        ({"repetition_penalty": 1.3, "top_k": 50}, "asks for --repetition-penalty 1.3; not used unless"),
        ({"no_repeat_ngram_size": 3, "num_beams": 4, "min_length": 0}, "no_repeat_ngram_size, num_beams, which is"),
        ({"repetition_penalty": 1.0, "num_beams": 1, "bad_words_ids": None, "temperature": 0.5}, ""),
    ):
        (path / "generation_config.json").write_text(json.dumps(generation))
        notes = " ".join(open_model(path).notes)
        assert says in notes and ("asks for" in notes) == bool(says), notes
    (path / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match="generation_config.json: is not a JSON object"):
        open_model(path)


def test_tokens_without_rows_are_read_as_text(tmp_path):
    """[PAD] is often added to a tokenizer, and the model's embedding is not made larger."""
    V = TOKENIZER.n_vocab
    tensors = {f"transformer.{name}": ("F32", array) for name, array in a_model(vocab_size=V).state_dict().items()}
    path = folder(tmp_path / "m", tensors, vocab_size=V)
    write_tokenizer(TOKENIZER, path, "hf")
    (path / "tokenizer.json").unlink()
    (path / "added_tokens.json").write_text(json.dumps({"[PAD]": V}))
    pretrained = open_model(path)
    assert pretrained.tokenizer.n_vocab == V and pretrained.tokenizer.eot == TOKENIZER.eot
    assert "none for [PAD] of its tokenizer" in pretrained.notes[0]
    assert pretrained.tokenizer.encode("the [PAD]", special="allowed") == TOKENIZER.encode("the [PAD]")


def test_a_folder_with_a_tokenizer_and_its_config_alone_is_a_tokenizer(tmp_path):
    write_tokenizer(TOKENIZER, tmp_path / "a", "hf")
    (tmp_path / "a" / "config.json").write_text('{"model_type": "gpt2"}')
    assert convert.what_is(str(tmp_path / "a")) == "tokenizer"
    (tmp_path / "a" / "pytorch_model.bin").touch()
    assert convert.what_is(str(tmp_path / "a")) == "model"
    (tmp_path / "a" / "pytorch_model.bin").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "added_tokens.json").write_text('{"<s>": 290}')
    with pytest.raises(UserError, match="added_tokens.json of another model"):
        convert.main([str(tmp_path / "a"), str(tmp_path / "b"), "--to", "hf"])
    convert.main([str(tmp_path / "a"), str(tmp_path / "c"), "--to", "hf"])


# -- a tokenizer beside llm.c's model ----------------------------------------------------------------------------------


def run(*words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=ROOT, timeout=300)


@pytest.fixture(scope="module")
def llmc_model(tmp_path_factory):
    """The path of a model in llm.c's format, with gpt2_tokenizer.bin next to it."""
    path = tmp_path_factory.mktemp("llmc") / "model.bin"
    config = CONFIG.to_dict() | {"vocab_size": TOKENIZER.n_vocab}
    llmc.write_model(path, GPT(CONFIG.from_dict(config), seed=1).state_dict(), config, 3)
    write_tokenizer(TOKENIZER, path.parent / "gpt2_tokenizer.bin", "llmc")
    return path


def test_a_table_of_tokens_prints_samples(llmc_model):
    result = run("inference.py", "--weights", llmc_model, "--max-new-tokens", 5, "--greedy", "--json")
    fields = json.loads(result.stdout)
    assert fields["prompt_ids"] == [TOKENIZER.eot] and fields["text"] == TOKENIZER.decode(fields["ids"])
    result = run("inference.py", "--weights", llmc_model, "--prompt", "the")
    assert result.returncode == 2 and "can only decode; give vocab.bpe" in result.stderr


def test_a_training_from_it_prints_samples_and_keeps_the_table(llmc_model, tmp_path):
    ids = np.array(TOKENIZER.encode("the cat sat on the mat. " * 40), np.uint16)
    (tmp_path / "data").mkdir()
    ids.tofile(tmp_path / "data" / "train.bin")
    ids[:60].tofile(tmp_path / "data" / "val.bin")
    result = run(
        "train_gpt2.py", "--init-from", llmc_model, "--data", tmp_path / "data", "--steps", 2, "--batch-size", 2,
        "--sample-tokens", 4, "--run-dir", tmp_path / "run", "--weights-out", tmp_path / "w.bin",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    samples = [line for line in result.stdout.splitlines() if "sample" in line]
    assert any("<|endoftext|>" not in line and "cat" in line for line in samples), result.stdout
    tokenizer = open_model(tmp_path / "w.bin").tokenizer
    assert isinstance(tokenizer, DecodeOnlyTokenizer) and tokenizer.decode(ids) == TOKENIZER.decode(ids)
    result = run("inference.py", "--weights", tmp_path / "w.bin", "--max-new-tokens", 3)
    assert result.returncode == 0, result.stderr


# -- checks that have nothing to compare -------------------------------------------------------------------------------


def short_model(path, block_size):
    tensors = float32(a_model(block_size=block_size))
    return str(folder(path, tensors, n_positions=block_size))


@pytest.mark.parametrize("block_size", range(1, 7))
def test_verify_hf_at_a_short_context(block_size, tmp_path, monkeypatch, capsys):
    """Here our own model answers in place of transformers: what is compared is never nothing."""
    path = short_model(tmp_path / "m", block_size)

    def answers(path, ids, out, new, begin):
        model = load_pretrained(path)[0]
        with no_grad():
            values = model(ids[:, :-1])[0].numpy()
        loss, text = model.loss(ids[:, :-1], ids[:, 1:]).item(), ids[0, :begin].tolist()
        assert ids.shape == (2, block_size + 1) and new >= 1 and begin + new - 1 <= block_size
        greedy = list(model.generate(text, new))
        return dict(logits=values, loss=loss, greedy=np.array(greedy), version="0", odd=np.array([], str))

    monkeypatch.setattr(verify_models.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(verify_models, "_run_transformers", answers)
    assert verify_models.main("hf", [path]) == 0
    assert capsys.readouterr().out.count("PASS") == 3
    monkeypatch.setattr(verify_models, "_run_transformers", lambda *args: answers(*args) | {"greedy": np.array([299])})
    assert verify_models.main("hf", [path]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [1, 3])
def test_verify_hf_with_transformers_at_a_short_context(block_size, tmp_path, capsys):
    need_transformers()
    assert verify_models.main("hf", [short_model(tmp_path / "m", block_size)]) == 0
    assert capsys.readouterr().out.count("PASS") == 3


@pytest.mark.parametrize(
    "results", [[], [("logits", 0.0, 1e-4, 0, "no tokens")], [("loss", 0.0, 1.0, 5, ""), ("x", 0, 1, 0, "")]]
)
def test_an_empty_comparison_does_not_pass(results, monkeypatch, capsys):
    monkeypatch.setattr(verify_models, "verify_hf", lambda path: iter(results))
    assert verify_models.main("hf", ["m"]) == 1
    assert capsys.readouterr().out.count("FAIL  nothing was compared") == (1 if results else 0)


def test_verify_kernels_without_kernels(monkeypatch, capsys):
    monkeypatch.setattr(verify.ops, "have_cpu_kernels", lambda: False)
    monkeypatch.setattr(verify.ops, "why_no_cpu_kernels", lambda: ("Numba is not installed", "pip install numba"))
    result = verify._kernels(None)
    assert not result.difference <= result.tolerance and "nothing was compared: there are no compiled" in result.text
    assert "Numba is not installed" in verify._missing("kernels")


def test_a_training_that_ended_before_it_was_killed_is_no_test_of_resuming(tmp_path):
    class Trial:
        def run(self, name, *more, **options):
            (tmp_path / name).touch()
            return 12

        def weights(self, name):
            return tmp_path / name

    result = verify._resume(Trial())
    assert not result.difference <= result.tolerance and "nothing was compared" in result.text
    with pytest.raises(UserError, match="nothing that could be compared"):
        verify._largest_difference(({}, {}), ({}, {}))


