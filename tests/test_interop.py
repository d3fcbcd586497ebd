"""Third-party models: read from disk, computed as the other programs do, written so that those can read them."""

import importlib.util
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from marks import slow_but

from models import GPT, GPTConfig
from models.pretrained import load_pretrained
from tinygrad2.bfloat16 import pack_bfloat16, unpack_bfloat16
from tinygrad2.commands import convert, verify_models
from tinygrad2.datasets.token_files import write_raw, write_tokens
from tinygrad2.errors import UserError
from tinygrad2.interop import hf, llmc
from tinygrad2.interop.pretrained import kind_of_model, open_model
from tinygrad2.io.lazy_tensor import LazyTensor
from tinygrad2.io.weights import save_weights
from tinygrad2.tensor import no_grad
from tinygrad2.tokenizers.export import write_tokenizer
from tinygrad2.tokenizers.load import load_tokenizer
from tinygrad2.tokenizers.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = GPTConfig(block_size=16, vocab_size=300, n_layer=2, n_head=4, n_embd=32)
FIELDS = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}


def a_model(seed=1, **changes):
    model = GPT(GPTConfig(**{**CONFIG.to_dict(), **changes}), seed=seed)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():  # no zeros and ones: everything must arrive
        parameter.data += 0.05 * rng.standard_normal(parameter.shape).astype(np.float32)
    return model


def logits(model, T=16):
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, T))
    with no_grad():
        return model(ids)[0].numpy()


def equal(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def container(path, tensors, metadata=None):
    """A safetensors file, written here in another way than the product does: {name: (dtype, array of its bytes)}."""
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, (code, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def folder(path, tensors, **fields):
    path.mkdir(exist_ok=True)
    container(path / "model.safetensors", tensors, {"format": "pt"})
    (path / "config.json").write_text(json.dumps({**FIELDS, **fields}))
    return path


def float32(model, prefix="transformer."):
    return {prefix + name: ("F32", array) for name, array in model.state_dict().items()}


# -- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_names_with_and_without_prefix(tmp_path, prefix):
    model = a_model()
    assert equal(load_pretrained(folder(tmp_path / "m", float32(model, prefix)))[0], model)


def test_masks_of_old_files_are_no_biases(tmp_path):
    """attn.bias is a mask; attn.c_attn.bias, which ends almost the same, is not."""
    model, tensors = a_model(), float32(a_model(), "")
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = ("F32", np.tril(np.ones((1, 1, 16, 16), np.float32)))
        tensors[f"h.{i}.attn.masked_bias"] = ("F32", np.array(-1e4, np.float32))
    tensors["h.0.attn.bias"] = ("BOOL", np.tril(np.ones((1, 1, 16, 16), bool)))
    assert equal(load_pretrained(folder(tmp_path / "m", tensors))[0], model)


def test_the_older_file_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    model, path = a_model(), tmp_path / "m"
    tensors = {f"transformer.{name}": torch.from_numpy(array) for name, array in model.state_dict().items()}
    tensors |= {"lm_head.weight": tensors["transformer.wte.weight"], "h.0.attn.bias": torch.ones(1, 1, 16, 16).bool()}
    folder(path, {})
    torch.save(tensors, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    loaded, _, pretrained = load_pretrained(path)
    assert equal(loaded, model) and loaded.lm_head is None and pretrained.kind == "Hugging Face"
    torch.save([1, 2], path / "pytorch_model.bin")
    assert "not a dict of named tensors" in refused(path)
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "pytorch_model.bin" in refused(path)


def test_a_head_that_is_a_copy_stays_tied_and_another_one_is_its_own(tmp_path):
    model, tensors = a_model(), float32(a_model())
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    loaded, _, pretrained = load_pretrained(folder(tmp_path / "copy", tensors, tie_word_embeddings=False))
    assert equal(loaded, model) and loaded.lm_head is None and not pretrained.notes
    untied = a_model(tied_head=False)
    tensors = float32(untied)
    tensors["lm_head.weight"] = ("F32", tensors.pop("transformer.lm_head.weight")[1].T)
    for tied in (False, True):
        loaded, _, pretrained = load_pretrained(folder(tmp_path / "own", tensors, tie_word_embeddings=tied))
        assert equal(loaded, untied) and len(pretrained.notes) == tied


@pytest.mark.parametrize("code", ["F64", "F16", "BF16"])
def test_other_data_types(tmp_path, code):
    model = a_model()
    for parameter in model.parameters():  # numbers that all of these can hold
        steps = np.round(parameter.data.reshape(-1) * 64) / 64
        parameter.data[...] = unpack_bfloat16(pack_bfloat16(steps)).reshape(parameter.shape)
    make = {"F64": lambda a: a.astype("<f8"), "F16": lambda a: a.astype("<f2"),
            "BF16": lambda a: pack_bfloat16(a.reshape(-1)).reshape(a.shape)}[code]  # fmt: skip
    tensors = {f"transformer.{name}": (code, make(array)) for name, array in model.state_dict().items()}
    assert equal(load_pretrained(folder(tmp_path / "m", tensors))[0], model)


def test_tensors_spread_over_several_files(tmp_path):
    model, tensors = a_model(), float32(a_model())
    names, where = list(tensors), {}
    (tmp_path / "m").mkdir()
    for i, part in enumerate((names[:5], names[5:11], names[11:])):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        container(tmp_path / "m" / file, {name: tensors[name] for name in part})
        where |= dict.fromkeys(part, file)
    (tmp_path / "m" / "config.json").write_text(json.dumps(FIELDS))
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    assert equal(load_pretrained(tmp_path / "m")[0], model)
    for change, message in (
        ({names[0]: "../elsewhere.safetensors"}, "is not a file next to it"),
        ({names[0]: "model-00003-of-00003.safetensors"}, "though the index lists it"),
        ({names[0]: "model-00009-of-00003.safetensors"}, "cannot be read (No such file"),
    ):
        index.write_text(json.dumps({"weight_map": where | change}))
        assert message in refused(tmp_path / "m")
    index.write_text("{}")
    assert "weight_map is missing" in refused(tmp_path / "m")


def test_a_file_alone_finds_its_config_next_to_it(tmp_path):
    model = a_model()
    path = folder(tmp_path / "m", float32(model)) / "model.safetensors"
    assert equal(load_pretrained(path)[0], model)
    (tmp_path / "m" / "config.json").unlink()
    assert "no config.json next to it" in refused(path)


@pytest.mark.parametrize("changes", [{"n_inner": 50}, {"activation": "gelu_erf"}, {"norm_eps": 1e-3}], ids=str)
def test_what_a_config_says_is_computed(tmp_path, changes):
    model = a_model(**changes)
    names = {"activation": "activation_function", "norm_eps": "layer_norm_epsilon"}
    fields = {names.get(name, name): "gelu" if value == "gelu_erf" else value for name, value in changes.items()}
    loaded = load_pretrained(folder(tmp_path / "m", float32(model), **fields))[0]
    assert loaded.config == model.config
    assert np.array_equal(logits(loaded), logits(model)) and not np.array_equal(logits(loaded), logits(a_model()))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"activation_function": ["gelu"]}, "activation_function is ['gelu']"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is not empty"),
        ({"n_layer": 2.5}, "n_layer is 2.5"),
        ({"n_embd": -1}, "n_embd is -1"),
        ({"n_head": True}, "n_head is True"),
        ({"n_inner": 10**30}, "n_inner is 1000000"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'"),
        ({"n_head": 5}, "n_head = 5 does not divide n_embd = 32"),
        ({"n_layer": 3}, "h.2.ln_1.weight is missing"),
        ({"n_layer": 1}, "h.1.ln_1.weight is not a parameter"),
        ({"vocab_size": 301}, "wte.weight has shape (300, 32), the model's has (301, 32)"),
        ({"n_positions": 8}, "wpe.weight has shape (16, 32)"),
        ({"n_positions": 2**27}, "wpe.weight has shape (16, 32)"),  # 16 GB, if it were believed
        ({"n_positions": 2**31 - 1}, "block_size must be at most 134217728, not 2147483647"),
        ({"n_embd": 65536}, "wte.weight has shape (300, 32)"),
        ({"n_layer": 10**8}, "n_layer is 100,000,000, but there are 28 tensors"),
        ({"n_layer": 10**9}, "n_layer must be at most 134217728, not 1000000000"),
    ],
)  # fmt: skip
def test_what_is_not_supported_or_does_not_fit_is_refused_in_one_line(tmp_path, fields, message):
    assert message in refused(folder(tmp_path / "m", float32(a_model()), **fields))


def refused(path):
    with pytest.raises(UserError) as error:
        load_pretrained(path)
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 700 and str(path) in text
    return text


def test_a_transposed_square_matrix_is_noticed_by_the_orientation_test(tmp_path):
    """attn.c_proj is square: a superfluous transpose would pass all checks of shapes."""
    model = a_model()
    llmc.write_model(tmp_path / "m.bin", model.state_dict(), CONFIG.to_dict())
    tensors, _ = llmc.read_model(tmp_path / "m.bin")
    raw = tensors["h.0.attn.c_proj.weight"].transpose().astype()
    assert np.array_equal(raw, model.h[0].attn.c_proj.weight.data.T) and not np.array_equal(raw, raw.T)


MAKE = """
import sys
import numpy, torch, transformers
transformers.utils.logging.disable_progress_bar()
for name, fields in {shapes}.items():
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **fields)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(f"{{sys.argv[1]}}/{{name}}", max_shard_size="200KB" if name == "sharded" else "1GB")
"""
ASK = """
import os, sys, warnings
import numpy, torch, transformers
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("error")
for name in sorted(os.listdir(sys.argv[1])):
    folder = f"{sys.argv[1]}/{name}"
    model, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    x = torch.arange(40).reshape(2, 20) * 7 % model.config.vocab_size
    with torch.no_grad():
        logits = model(x).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        text = model.generate(x[:1, :3], attention_mask=torch.ones(1, 3), max_new_tokens=12, do_sample=False,
                              eos_token_id=None, pad_token_id=0)
    numpy.savez(f"{folder}/answers.npz", logits=logits.numpy(), loss=loss.numpy(), text=text[0, 3:].numpy())
"""
SHAPES = {
    "plain": dict(vocab_size=97, n_positions=32, n_embd=48, n_layer=3, n_head=4),
    "inner": dict(vocab_size=300, n_positions=20, n_embd=16, n_layer=1, n_head=1, n_inner=50),
    "erf": dict(vocab_size=64, n_positions=64, n_embd=64, n_layer=2, n_head=8, activation_function="gelu",
                layer_norm_epsilon=1e-4),
    "untied": dict(vocab_size=97, n_positions=32, n_embd=48, n_layer=2, n_head=4, tie_word_embeddings=False),
    "sharded": dict(vocab_size=500, n_positions=32, n_embd=64, n_layer=4, n_head=4),
}  # fmt: skip


def need_transformers():
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name}, the oracle, is not installed")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Folders of models that transformers has made and answered for, and the same written by us, with its answers."""
    need_transformers()
    top = tmp_path_factory.mktemp("transformers")
    (top / "theirs").mkdir()

    def ask(script, folder):
        command = [sys.executable, "-W", "ignore", "-c", script, folder]
        subprocess.run(command, check=True, capture_output=True, text=True)

    ask(MAKE.format(shapes=SHAPES), top / "theirs")
    ask(ASK, top / "theirs")
    for shape in SHAPES:
        pretrained = open_model(top / "theirs" / shape)
        hf.write_folder(top / "ours" / shape, pretrained.tensors, pretrained.config)
    ask(ASK, top / "ours")
    return top


@pytest.mark.parametrize("who", ["theirs", "ours"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_logits_loss_and_greedy_text_as_transformers(theirs, shape, who):
    """`theirs`: saved by transformers and read here. `ours`: written here, and read by transformers, without a word."""
    folder = theirs / who / shape
    assert (shape == "sharded" and who == "theirs") == os.path.exists(folder / "model.safetensors.index.json")
    model = load_pretrained(folder)[0]
    x = np.arange(40).reshape(2, 20) * 7 % model.config.vocab_size
    with np.load(folder / "answers.npz") as answers, no_grad():
        assert np.abs(model(x)[0].numpy() - answers["logits"]).max() < 1e-5
        assert abs(model.loss(x[:, :-1], x[:, 1:]).item() - answers["loss"]) < 1e-5
        assert list(model.generate(x[0, :3], 12)) == answers["text"].tolist()


def test_verify_hf_passes(theirs, tmp_path):
    run("convert", theirs / "theirs" / "inner", tmp_path / "w.bin", "--to", "trained", check=True)
    agree = run("verify", "hf", tmp_path / "w.bin")  # writes a folder, which transformers reads
    assert agree.returncode == 0 and agree.stdout.count("PASS") == 3, agree.stdout + agree.stderr


def run(*command, check=False, cwd=None):
    words = [sys.executable, "-m", "tinygrad2", *map(str, command)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=300, cwd=cwd or ROOT, env=env)
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
def test_verify_hf_sees_a_difference(tmp_path, monkeypatch):
    need_transformers()
    hf.write_folder(tmp_path / "m", a_model().state_dict(), CONFIG.to_dict())

    def spoilt(*args):
        model, tokenizer, pretrained = load_pretrained(*args)
        model.h[1].attn.c_proj.weight.data[...] = model.h[1].attn.c_proj.weight.data.T.copy()
        return model, tokenizer, pretrained

    monkeypatch.setattr(verify_models, "load_pretrained", spoilt)
    assert verify_models.main("hf", [str(tmp_path / "m")]) == 1


# -- llm.c -----------------------------------------------------------------------------------------------------------


def llmc_bytes(model, version):
    """A model of llm.c, written from its description and not by the product."""
    c, state = model.config, model.state_dict()
    padded = {1: 0, 3: 384, 5: 384}[version]
    header = np.zeros(256, np.int32)
    header[:8] = 20240326, version, c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded
    wte = np.zeros((padded or c.vocab_size, c.n_embd), np.float32)
    wte[: c.vocab_size] = state["wte.weight"]
    parts = [wte, state["wpe.weight"]]
    for kind in ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
                 "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
                 "mlp.c_proj.weight", "mlp.c_proj.bias"):  # fmt: skip
        parts += [state[f"h.{i}.{kind}"].T for i in range(c.n_layer)]
    flat = np.concatenate([np.ravel(part) for part in [*parts, state["ln_f.weight"], state["ln_f.bias"]]])
    return header.tobytes() + (pack_bfloat16(flat) if version == 5 else flat).tobytes()


@pytest.mark.parametrize("version", [1, 3, 5])
def test_llmc_models_are_read_and_written_byte_for_byte(tmp_path, version):
    model = a_model()
    if version == 5:
        for parameter in model.parameters():
            parameter.data[...] = unpack_bfloat16(pack_bfloat16(parameter.data.reshape(-1))).reshape(parameter.shape)
    path = tmp_path / "theirs.bin"
    path.write_bytes(llmc_bytes(model, version))
    loaded, _, pretrained = load_pretrained(path)
    assert pretrained.kind == "llm.c" and equal(loaded, model)
    llmc.write_model(tmp_path / "ours.bin", loaded.state_dict(), pretrained.config, version)
    assert (tmp_path / "ours.bin").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "index, value, message",
    [
        (0, 20240327, "is a debug state of llm.c, not a model"),
        (1, 2, "version is 2"),
        (1, 4, "version is 4"),
        (2, 0, "max_seq_len is 0"),
        (3, -5, "vocab_size is -5"),
        (3, 2**31 - 1, "vocab_size is 2147483647"),
        (4, 2**20, "layers"),
        (4, 3, "bytes long instead of"),
        (5, 5, "5 heads for 32 channels"),
        (7, 128, "padded_vocab_size is 128"),
        (7, 512, "bytes long instead of"),
    ],
)
def test_headers_of_llmc_that_cannot_be_are_refused(tmp_path, index, value, message):
    raw = bytearray(llmc_bytes(a_model(), 3))
    raw[4 * index : 4 * index + 4] = struct.pack("<i", value)
    (tmp_path / "m.bin").write_bytes(raw)
    assert message in refused(tmp_path / "m.bin")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_inner": 50}, "MLPs are 4 x 32 wide, this model's 50"),
        ({"norm_eps": 1e-3}, "layernorms add 1e-5"),
        ({"tied_head": False}, "head is the token embedding"),
    ],
)
def test_models_that_llmc_cannot_hold_are_refused(tmp_path, changes, message):
    model = a_model(**changes)
    with pytest.raises(UserError, match=message):
        llmc.write_model(tmp_path / "m.bin", model.state_dict(), model.config.to_dict())
    assert os.listdir(tmp_path) == []


def test_a_model_without_biases_gets_zeros(tmp_path):
    model = a_model(bias=False)
    notes = llmc.write_model(tmp_path / "m.bin", model.state_dict(), model.config.to_dict())
    assert "zeros" in notes[0] and np.allclose(logits(load_pretrained(tmp_path / "m.bin")[0]), logits(model), atol=1e-6)
    notes = hf.write_folder(tmp_path / "m", model.state_dict(), model.config.to_dict())
    assert "zeros" in notes[0] and np.allclose(logits(load_pretrained(tmp_path / "m")[0]), logits(model), atol=1e-6)


@pytest.mark.slow
def test_debug_states_come_back_and_are_compared(tmp_path):
    model = a_model()
    llmc.write_model(tmp_path / "m.bin", model.state_dict(), CONFIG.to_dict())
    ids = np.random.default_rng(0).integers(0, 300, 33)
    write_tokens(tmp_path / "t.bin", ids)
    run("convert", tmp_path / "m.bin", tmp_path / "d.bin", "--to", "llmc-debug", "--tokens", tmp_path / "t.bin",
        "--batch", "2x16", check=True)  # fmt: skip
    raw = (tmp_path / "d.bin").read_bytes()
    numbers = 384 * 32 + sum(a.size for name, a in model.state_dict().items() if name != "wte.weight")
    assert len(raw) == 1024 + 4 * (2 * 32 + 32 * 300 + 1 + numbers)
    assert np.array_equal(np.frombuffer(raw[1024 : 1024 + 128], "<i4"), ids[:-1])
    assert np.array_equal(np.frombuffer(raw[1024 + 128 : 1024 + 256], "<i4"), ids[1:])
    state = llmc.read_debug_state(tmp_path / "d.bin", CONFIG.to_dict())
    model.zero_grad()
    output, loss = model(state.x, state.y)
    loss.backward()
    assert np.allclose(output.numpy(), state.logits, atol=1e-6) and abs(state.loss - loss.item()) < 1e-6
    for name, parameter in model.named_parameters():
        assert np.allclose(parameter.grad, state.grads[name], rtol=1e-4, atol=1e-7), name
    agree = run("verify", "llmc", tmp_path / "m.bin", tmp_path / "d.bin")
    assert agree.returncode == 0 and agree.stdout.count("PASS") == 2 + 28, agree.stdout
    spoilt = bytearray(raw)
    offset = len(raw) - 4 * (numbers - 384 * 32)  # the first number of wpe's gradient
    spoilt[offset : offset + 4] = struct.pack("<f", 0.5)
    (tmp_path / "d.bin").write_bytes(spoilt)
    differ = run("verify", "llmc", tmp_path / "m.bin", tmp_path / "d.bin")
    assert differ.returncode == 1 and differ.stdout.count("FAIL") == 1
    assert [line for line in differ.stdout.splitlines() if "FAIL" in line][0].startswith("d wpe.weight")
    (tmp_path / "d.bin").write_bytes(raw[:-4])
    cut = run("verify", "llmc", tmp_path / "m.bin", tmp_path / "d.bin")
    assert cut.returncode == 2 and "bytes long instead of" in cut.stderr and len(cut.stderr.splitlines()) == 1


LLMC = os.environ.get("LLMC", "")  # folder with llm.c's train_gpt2 and test_gpt2, compiled


@pytest.mark.skipif(not os.path.exists(os.path.join(LLMC, "train_gpt2")),
                    reason="LLMC does not name a folder with llm.c's train_gpt2 and test_gpt2")  # fmt: skip
def test_llmcs_own_program_trains_from_our_checkpoint_with_our_losses(tmp_path):
    model = a_model(block_size=64, vocab_size=1000)
    llmc.write_model(tmp_path / "gpt2_124M.bin", model.state_dict(), model.config.to_dict())
    data = tmp_path / "dev" / "data" / "tinyshakespeare"
    data.mkdir(parents=True)
    text = np.random.default_rng(0).integers(0, 1000, 10_000)
    text = np.minimum(text, np.roll(text, 1))  # something can be learned from it
    for name, ids in (("train", text[2000:]), ("val", text[:2000])):
        write_tokens(data / f"tiny_shakespeare_{name}.bin", ids)
    theirs = subprocess.run([os.path.join(LLMC, "train_gpt2")], cwd=tmp_path, capture_output=True, timeout=300)
    lines = [line for line in theirs.stdout.decode(errors="replace").splitlines() if line.startswith("step")]
    flags = "--order llmc --batch-size 4 --lr 1e-4 --schedule constant --warmup-steps 0 --weight-decay 0"
    flags += " --beta2 0.999 --grad-clip 0 --steps 20 --eval-every 10 --eval-batches 5 --sample-tokens 0"
    command = [sys.executable, ROOT / "train_gpt2.py", "--init-from", "gpt2_124M.bin", "--data", data, *flags.split()]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ours = [record["loss"] for record in records]
    losses = [float(line.split("loss ")[1].split(" ")[0]) for line in lines[:20]]
    assert len(losses) == len(ours) == 20 and np.abs(np.array(losses) - ours).max() < 1e-4
    val = [float(number) for number in re.findall(r"^val loss (\S+)", theirs.stdout.decode(errors="replace"), re.M)]
    assert np.abs(np.array(val[1:3]) - [record["val_loss"] for record in records[9::10]]).max() < 1e-4
    tokens = data / "tiny_shakespeare_val.bin"
    run("convert", tmp_path / "gpt2_124M.bin", tmp_path / "gpt2_124M_debug_state.bin", "--to", "llmc-debug",
        "--tokens", tokens, check=True)  # fmt: skip
    tested = subprocess.run([os.path.join(LLMC, "test_gpt2")], cwd=tmp_path, capture_output=True, timeout=300)
    result = tested.stdout.decode(errors="replace")
    assert "OK (LOGITS)" in result and "LOSS OK" in result and result.count("TENSOR OK") == 16


# -- convert ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    tokenizer = Tokenizer.train("the cat sat on the mat. " * 20, 270)
    save_weights(tmp_path / "w.bin", a_model().state_dict(), CONFIG.to_dict(), tokenizer.to_json(), {"steps_done": 3})
    return tmp_path / "w.bin"


def test_round_trips_are_exact_and_keep_the_tokenizer(trained, tmp_path):
    path, original = trained, open_model(trained)
    for i, (form, target) in enumerate((("hf", "hf"), ("llmc", "hf/c.bin"), ("nanogpt-bin", "hf/ckpt.pt"),
                                        ("trained", "t.bin"), ("hf", "hf2"), ("trained", "t2.bin"))):  # fmt: skip
        result = run("convert", path, tmp_path / target, "--to", form, check=True)
        assert "read back equal" in result.stdout, result.stdout
        path = tmp_path / target
        if i == 2:  # nanoGPT computes erf's GELU, and notes it: our own tanh form is restored by hand
            assert "erf" in result.stderr
            path = tmp_path / "hf"
    again = open_model(path)
    assert again.tokenizer.to_json() == original.tokenizer.to_json() and not again.trained_here
    assert equal(load_pretrained(path)[0], load_pretrained(trained)[0]) and again.config == original.config


def test_a_model_can_be_cropped(trained, tmp_path):
    run("convert", trained, tmp_path / "small", "--to", "hf", "--block-size", "5", check=True)
    small, full = load_pretrained(tmp_path / "small")[0], load_pretrained(trained)[0]
    assert small.config.block_size == 5 and np.array_equal(logits(small, 5), logits(full, 5))
    longer = run("convert", trained, tmp_path / "large", "--to", "hf", "--block-size", "17")
    assert longer.returncode == 2 and "can only be cropped" in longer.stderr


@pytest.mark.parametrize("form", ["hf", "llmc"])
def test_bfloat16_rounds_to_nearest(trained, tmp_path, form):
    target = tmp_path / "half"
    result = run("convert", trained, target, "--to", form, "--dtype", "bfloat16", check=True).stdout
    assert "read back within" in result
    for name, array in load_pretrained(trained)[0].state_dict().items():
        tensor = open_model(target).tensors[name]
        rounded = unpack_bfloat16(pack_bfloat16(array.reshape(-1))).reshape(array.shape)
        assert tensor.code == "BF16" and np.array_equal(tensor.astype(), rounded)


def test_tokens_change_their_form(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50257, 1000)
    write_tokens(tmp_path / "a.bin", ids)
    for form, target in (("nanogpt-bin", "b.bin"), ("llmc", "c.bin"), ("llmc-legacy", "d.bin"), ("llmc", "e.bin")):
        run("convert", tmp_path / "a.bin", tmp_path / target, "--to", form, check=True)
    assert (tmp_path / "b.bin").read_bytes() == ids.astype("<u2").tobytes()
    assert (tmp_path / "d.bin").read_bytes() == ids.astype("<i4").tobytes()
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "c.bin").read_bytes() == (tmp_path / "e.bin").read_bytes()
    write_tokens(tmp_path / "large.bin", [100_000, 1])
    large = run("convert", tmp_path / "large.bin", tmp_path / "f.bin", "--to", "nanogpt-bin")
    assert large.returncode == 2 and "does not fit nanoGPT's 16 bits" in large.stderr


def test_tokenizers_change_their_form(trained, tmp_path):
    tokenizer = open_model(trained).tokenizer
    tokenizer.save(tmp_path / "t.json")
    for form, target in (("hf", "folder"), ("tiktoken", "t.tiktoken"), ("llmc", "gpt2_tokenizer.bin")):
        run("convert", tmp_path / "t.json", tmp_path / target, "--to", form, check=True)
    run("convert", tmp_path / "folder", tmp_path / "back.json", "--to", "trained", check=True)
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "t.json").read_bytes()


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere", "x", "--to", "hf"], "nowhere: no such file or folder"),
        (["w.bin", "x", "--to", "tiktoken"], "is a model, which can become"),
        (["w.bin", "x", "--to", "onnx"], "invalid choice: 'onnx'"),
        (["w.bin", "x"], "--to"),
        (["w.bin", "x", "--to", "trained", "--dtype", "bfloat16"], "only hf and llmc"),
        (["w.bin", "x", "--to", "llmc-debug"], "needs --tokens FILE"),
        (["w.bin", "x", "--to", "llmc-debug", "--tokens", "t.bin", "--batch", "4"], "is not a size such as 4x64"),
        (["w.bin", "x", "--to", "llmc-debug", "--tokens", "t.bin", "--batch", "4x64"], "ids are too few"),
        (["t.bin", "x", "--to", "hf"], "is a token file, which can become"),
        (["text.xyz", "x", "--to", "hf"], "is not a model of a known format"),
        (["w.bin", "no/such/folder/x", "--to", "llmc"], "no/such/folder"),
        (["w.bin", "t.bin", "--to", "trained"], "t.bin: exists already; name another OUT, or overwrite it with --fo"),
        (["w.bin", "w.bin", "--to", "trained"], "w.bin: exists already"),
        (["t.bin", "text.xyz", "--to", "llmc"], "text.xyz: exists already"),
    ],
)
def test_bad_input_for_convert_gets_one_line_and_exit_code_2(trained, tmp_path, words, message):
    write_raw(tmp_path / "t.bin", np.arange(100))
    (tmp_path / "text.xyz").write_text("just a text that somebody wrote\n" * 3)
    result = run("convert", *words, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not os.path.exists(tmp_path / "x")


def test_a_folder_that_had_another_model_becomes_the_new_one(trained, tmp_path):
    """Files of the older one must not be taken for the new one's: neither by us nor by transformers."""
    old, where = tmp_path / "m", {}
    old.mkdir()
    for i, name in enumerate(float32(a_model(seed=5))):
        where[name] = f"model-{i % 2 + 1:05d}-of-00002.safetensors"
    for file in set(where.values()):
        container(old / file, {name: float32(a_model(seed=5))[name] for name in where if where[name] == file})
    (old / "config.json").write_text(json.dumps(FIELDS))
    (old / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert equal(load_pretrained(old)[0], a_model(seed=5))
    refused = run("convert", old, old, "--to", "hf", "--block-size", "8")
    assert refused.returncode == 2 and refused.stderr.endswith(
        "m/model.safetensors.index.json: exists already; name another OUT, or overwrite it with --force\n"
    )
    own = run("convert", old, old, "--to", "hf", "--block-size", "8", "--force")  # in its own place
    assert own.returncode == 2 and "m: is what IN reads, and would be replaced; name another OUT" in own.stderr
    assert equal(load_pretrained(old)[0], a_model(seed=5))
    assert "read back equal" in run("convert", trained, old, "--to", "hf", "--force", check=True).stdout
    assert equal(load_pretrained(old)[0], a_model())
    llmc.write_model(tmp_path / "x.bin", a_model().state_dict(), CONFIG.to_dict())
    stale = run("convert", tmp_path / "x.bin", old, "--to", "hf", "--force")  # its tokenizer would be the other model's
    assert stale.returncode == 2 and "has a tokenizer already" in stale.stderr
    assert equal(load_pretrained(old)[0], a_model())


@pytest.mark.parametrize("name", ["generation_config.json", "vocab.json", "tokenizer_config.json"])
def test_no_file_that_is_there_is_written_over(trained, tmp_path, name):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_text("mine")
    result = run("convert", trained, tmp_path / "m", "--to", "hf")
    assert result.returncode == 2 and f"m/{name}: exists already" in result.stderr
    assert os.listdir(tmp_path / "m") == [name] and (tmp_path / "m" / name).read_text() == "mine"


def test_files_that_only_transformers_would_read_are_in_the_way(trained, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "added_tokens.json").write_text('{"[X]": 300}')
    result = run("convert", trained, tmp_path / "m", "--to", "hf")
    assert result.returncode == 2 and "added_tokens.json of another model" in result.stderr
    assert os.listdir(tmp_path / "m") == ["added_tokens.json"]


def test_the_tokenizer_inside_weights_is_one_like_any_other(trained, tmp_path):
    assert load_tokenizer(trained).to_json() == open_model(trained).tokenizer.to_json()
    save_weights(tmp_path / "bare.bin", a_model().state_dict(), CONFIG.to_dict(), "", {})
    with pytest.raises(UserError, match="contain no tokenizer"):
        load_tokenizer(tmp_path / "bare.bin")


def test_a_text_is_no_file_of_tokens(trained, tmp_path):
    (tmp_path / "my.txt").write_text("words " * 500)
    result = run("convert", trained, tmp_path / "d", "--to", "llmc-debug", "--tokens", tmp_path / "my.txt")
    assert result.returncode == 2 and "is not a token file" in result.stderr


def test_convert_notices_what_differs_from_what_was_written(trained, tmp_path, monkeypatch, capsys):
    assert convert.main([str(trained), str(tmp_path / "a"), "--to", "hf"]) == 0
    opened = convert.open_model

    def spoilt(path, *more):
        pretrained = opened(path, *more)
        if str(path) == str(tmp_path / "b"):
            array = pretrained.tensors["h.0.ln_1.bias"].astype(copy=True)
            array[3] = np.nan
            pretrained.tensors["h.0.ln_1.bias"] = LazyTensor.of(array)
        return pretrained

    monkeypatch.setattr(convert, "open_model", spoilt)
    with pytest.raises(UserError, match="h.0.ln_1.bias differs from what was written"):
        convert.main([str(trained), str(tmp_path / "b"), "--to", "hf"])


def test_texts_end_with_the_token_that_the_config_names(tmp_path):
    """Not every model ends its texts with <|endoftext|>; what a model names is kept from format to format."""
    model = a_model()
    greedy = list(model.generate([5], 6))
    path = folder(tmp_path / "m", float32(model), eos_token_id=greedy[2])
    vocab = Tokenizer.train("the cat sat on the mat. " * 20, 270)
    write_tokenizer(vocab, path, "hf")
    run("convert", path, tmp_path / "w.bin", "--to", "trained", check=True)
    run("convert", tmp_path / "w.bin", tmp_path / "again", "--to", "hf", check=True)
    for target in (path, tmp_path / "w.bin", tmp_path / "again"):
        assert open_model(target).end == greedy[2]
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == greedy[2]
    prompt = vocab.decode([5])
    for target in (path, tmp_path / "w.bin"):
        command = [sys.executable, ROOT / "inference.py", "--weights", target, "--prompt", prompt, "--greedy", "--json"]
        result = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        end = greedy.index(greedy[2])
        assert result["prompt_ids"] == [5] and result["ids"] == greedy[:end] and result["ended_by"] == "end of text"


@pytest.mark.parametrize(
    "shape, offsets",
    [([1] * 100, [0, 4]), ([0, 2**63], [0, 0]), ([0, 2**40, 2**40], [0, 0]), ([10**3999] * 600, [0, 4]), ([], [0, 4]),
     ([9] * 500_000, [0, 4])],
)  # fmt: skip
def test_shapes_that_no_tensor_has_are_refused_at_once(tmp_path, shape, offsets):
    header = {"transformer.wte.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(FIELDS))
    text = json.dumps(header).encode()
    raw = struct.pack("<Q", len(text)) + text + bytes(offsets[1])
    (tmp_path / "m" / "model.safetensors").write_bytes(raw)
    begin = time.perf_counter()
    refused(tmp_path / "m")
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("name", ["\0.safetensors", "\ud800.safetensors", "/etc/x.safetensors", 7, "x" * 10**5])
def test_an_index_that_names_no_file_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "is not a file next to it" in refused(tmp_path)


def test_verify_llmc_of_models_that_llmc_does_not_know(tmp_path):
    model = a_model(bias=False)
    llmc.write_model(tmp_path / "m.bin", model.state_dict(), model.config.to_dict())
    save_weights(tmp_path / "own.bin", model.state_dict(), model.config.to_dict(), "", {})
    write_tokens(tmp_path / "t.bin", np.arange(40))
    run("convert", tmp_path / "m.bin", tmp_path / "d.bin", "--to", "llmc-debug", "--tokens", tmp_path / "t.bin",
        "--batch", "2x16", check=True)  # fmt: skip
    agree = run("verify", "llmc", tmp_path / "own.bin", tmp_path / "d.bin", "--threads", "1")
    assert agree.returncode == 0 and "bias" not in agree.stdout and agree.stdout.count("PASS") == 2 + 15
    wide = a_model(n_inner=50)
    save_weights(tmp_path / "wide.bin", wide.state_dict(), wide.config.to_dict(), "", {})
    other = run("verify", "llmc", tmp_path / "wide.bin", tmp_path / "d.bin")
    assert other.returncode == 2 and len(other.stderr.splitlines()) == 1 and "not supported there" in other.stderr


def test_pipes_and_files_in_the_way_are_reported(trained, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refused(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    for words, message in (
        (["w.bin", "file", "--to", "hf"], "is a file; --to hf writes a folder"),
        (["pipe", "x", "--to", "hf"], "is a pipe"),
        (["w.bin", "w.bin", "--to", "hf"], "is a file; --to hf writes a folder"),
        (["t.bin", "x", "--to", "llmc", "--block-size", "5"], "--block-size: is for models"),
    ):
        write_raw(tmp_path / "t.bin", np.arange(100))
        result = run("convert", *words, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_other_names_for_the_same_fields(tmp_path):
    model, path = a_model(), folder(tmp_path / "m", float32(a_model()))
    fields = {"model_type": "gpt2", "vocab_size": 300, "max_position_embeddings": 16, "num_hidden_layers": 2,
              "num_attention_heads": 4, "hidden_size": 32}  # fmt: skip
    (path / "config.json").write_text(json.dumps(fields))
    assert equal(load_pretrained(path)[0], model)


def test_a_torch_file_alone_with_its_config_next_to_it(tmp_path):
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    model, path = a_model(), folder(tmp_path / "m", {})
    tensors = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
    torch.save(tensors, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert equal(load_pretrained(path / "pytorch_model.bin")[0], model)


# -- what is common --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a model of a known format"),
        (b"\x80\x02}q\x00.", "is a bare pickle, which could run any code"),
        (struct.pack("<i", 20240520) + bytes(2000), "is a token file, not a model"),
        (struct.pack("<i", 20240328) + bytes(2000), "is a tokenizer of llm.c, not a model"),
        (struct.pack("<Q", 2**63) + b"{}", "header length"),
        (b"\x93NUMPY" + bytes(100), "is not a model of a known format"),
    ],
)
def test_what_is_not_a_model_is_reported(tmp_path, content, message):
    (tmp_path / "m.bin").write_bytes(content)
    assert message in refused(tmp_path / "m.bin")


def test_kinds_are_recognized_by_content_whatever_the_name(trained, tmp_path):
    hf.write_folder(tmp_path / "hf", a_model().state_dict(), CONFIG.to_dict())
    llmc.write_model(tmp_path / "weights.safetensors", a_model().state_dict(), CONFIG.to_dict())
    run("convert", trained, tmp_path / "model.bin", "--to", "nanogpt", check=True)
    names = ("w.bin", "hf/model.safetensors", "weights.safetensors", "model.bin")
    kinds = [kind_of_model(tmp_path / name) for name in names]
    assert kinds == ["tinygrad2", "Hugging Face", "llm.c", "nanoGPT"]


@pytest.mark.parametrize("code", ["F32", "BF16", "F16", "F64"])
def test_lazy_tensors_are_the_array(code):
    rng = np.random.default_rng(0)
    array = rng.standard_normal((70, 30)).astype(np.float32)
    raw = {"F32": array, "F16": array.astype("<f2"), "F64": array.astype("<f8")}.get(code)
    raw = pack_bfloat16(array.reshape(-1)).reshape(array.shape) if raw is None else raw
    tensor = LazyTensor(memoryview(raw.tobytes()), code, raw.shape)
    expected = unpack_bfloat16(raw.reshape(-1)).reshape(raw.shape) if code == "BF16" else raw.astype(np.float32)
    assert np.array_equal(tensor.astype(), expected) and tensor.shape == (70, 30) and tensor.size == 2100
    assert np.array_equal(tensor.transpose().astype(), expected.T) and tensor.transpose().shape == (30, 70)
    assert np.array_equal(tensor.first(7).astype(np.float64), expected[:7].astype(np.float64))


MEASURE = """
import os, sys
sys.path.insert(0, {root!r})
import numpy as np
from models.pretrained import load_pretrained
from tinygrad2.system.memory import forget_peak, peak_resident_bytes, resident_bytes
before = resident_bytes()
forget_peak()
model, _, _ = load_pretrained({path!r})
print(peak_resident_bytes() - before, sum(p.data.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are measured on Linux only")
@pytest.mark.parametrize("form", slow_but(("hf",), ("hf", "llmc", "nanogpt", "trained")))
def test_loading_needs_little_more_than_the_weights(tmp_path, form):
    config = GPTConfig(block_size=64, vocab_size=20_000, n_layer=8, n_head=8, n_embd=512)
    state, target = GPT(config, seed=0).state_dict(), str(tmp_path / "m")
    if form == "trained":
        save_weights(target, state, config.to_dict(), "", {})
    else:
        write = {"hf": hf.write_folder, "llmc": llmc.write_model, "nanogpt": convert.nanogpt.write_nanogpt}[form]
        write(target, state, config.to_dict())
    script = MEASURE.format(root=str(ROOT), path=target)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    extra, weights = map(int, result.stdout.split())
    assert weights > 140e6 and extra < 1.35 * weights, f"{extra / weights:.2f} times the weights"
