"""GPT-2 as Hugging Face's transformers keeps it: a folder of config.json and model.safetensors.

The tensors have our names, mostly behind "transformer.", and our orientation: transformers kept OpenAI's (in, out)
for the four matrices of a block. What is different:

    lm_head.weight              (V, C), ours (C, V); left out where it is the token embedding
    h.0.attn.bias               the causal mask (1, 1, T, T), in old files; not a bias, and not needed
    h.0.attn.masked_bias        what stood for minus infinity in it; not needed
    model.safetensors.index.json   where the tensors are spread over several files
    pytorch_model.bin              the same tensors in torch.save's form, before there was safetensors

https://huggingface.co/docs/transformers/model_doc/gpt2
"""

import os

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.io.files import CorruptFile, atomic_write, first_bytes, make_folder, read_json, write_json
from tinygrad2.io.lazy_tensor import LazyTensor, write_elements
from tinygrad2.io.safetensors import make_header, open_container
from tinygrad2.io.torch_pickle import read_torch_file

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_erf"}
_SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}  # HF's own defaults
_OTHERWISE = {  # fields that change the maths, and the only value that we compute
    "model_type": "gpt2", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False, "quantization_config": None, "is_encoder_decoder": False,
}  # fmt: skip
_ALIASES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer"}  # other names for the same, as transformers has them  # fmt: skip
_MASKS = (".attn.bias", ".attn.masked_bias")
_INDEX = "model.safetensors.index.json"


def read_folder(folder):
    """(tensors {our name: LazyTensor}, config fields, notes, id that ends a text or None) of a model's folder.

    Where there are several forms, the one that transformers takes. Raises UserError, one line.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    for name, read in (("model.safetensors", _of_file), (_INDEX, _of_shards), ("pytorch_model.bin", _of_torch)):
        path = os.path.join(folder, name)
        if name in names:
            entries = read(path)
            break
    else:
        raise UserError(f"{folder}: has neither model.safetensors nor {_INDEX}; is it a model's folder?")
    return model_of(entries, read_config(os.path.join(folder, "config.json")), path)


def read_file(path):
    """The same of a model.safetensors (or pytorch_model.bin) alone; its config.json is looked for beside it, or guessed
    from the sizes."""
    zipped = first_bytes(path, 2) == b"PK"
    entries, beside = (_of_torch if zipped else _of_file)(path), os.path.join(os.path.dirname(path), "config.json")
    if os.path.exists(beside):
        return model_of(entries, read_config(beside), path)
    names = {name.removeprefix("transformer."): stored for name, stored in entries.items()}
    layers = {name.split(".")[1] for name in names if name.startswith("h.")}
    for n_layer, n_head, n_embd in ((12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600)):
        if "wte.weight" in names and len(layers) == n_layer and names["wte.weight"].shape[1:] == (n_embd,):
            config = _SIZES | dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
            tensors, config, notes, eos = model_of(entries, _checked(config, path), path)
            notes.append("no config.json beside it: taken for a GPT-2 of OpenAI's, by its sizes")
            return tensors, config, notes, eos
    raise UserError(f"{path}: there is no config.json beside it, and only that knows the number of heads; copy it, too")


# -- config ------------------------------------------------------------------------------------------------------------


def read_config(path):
    """(our config's fields, id of the token that ends a text or None) of a config.json. Raises UserError for what we
    would compute in another way."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; it belongs to the weights, copy it, too")
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: is no JSON object; fetch it again")
    return _checked(fields, path)


def _checked(fields, path):
    for name, expected in _OTHERWISE.items():
        found = fields.get(name, expected)
        if found != expected:
            raise UserError(f"{path}: {name} is {short(found)}; only GPT-2 with {name} = {expected!r} is supported")
    if fields.get("pruned_heads"):
        raise UserError(f"{path}: pruned_heads is not empty; models with heads taken out are not supported")
    fields = {ours: fields[theirs] for theirs, ours in _ALIASES.items() if theirs in fields} | fields
    activation = fields.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{path}: activation_function is {short(activation)}; supported are {known}")
    sizes = {name: fields.get(name, default) for name, default in _SIZES.items()}
    sizes["n_inner"] = fields.get("n_inner") or 0
    for name, value in sizes.items():
        if type(value) is not int or not (name == "n_inner" or value > 0) or not 0 <= value < 1 << 31:
            raise UserError(f"{path}: {name} is {short(value)}, not a whole number above 0; fetch it again")
    eps = fields.get("layer_norm_epsilon", 1e-5)
    if type(eps) is not float or not 0 < eps < 1:
        raise UserError(f"{path}: layer_norm_epsilon is {short(eps)}, not a small number; fetch it again")
    sizes["block_size"] = sizes.pop("n_positions")
    if sizes["n_inner"] == 4 * sizes["n_embd"]:
        sizes["n_inner"] = 0
    tied = fields.get("tie_word_embeddings", True) is not False
    eos = fields.get("eos_token_id")
    eos = eos if type(eos) is int and 0 <= eos < sizes["vocab_size"] else None
    config = dict(dropout=0.0, bias=True, tied_head=tied, activation=ACTIVATIONS[activation], norm_eps=eps)
    return sizes | config, eos


# -- tensors -----------------------------------------------------------------------------------------------------------


def _of_file(path):
    """{name in the file: LazyTensor}"""
    try:
        container = open_container(path)
        names = [name for name in container.entries if not name.endswith(_MASKS)]
        return {name: container.tensor(name) for name in names}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except CorruptFile as error:
        raise UserError(f"{path}: not a whole safetensors file of weights: {error}; fetch it again") from None


def _of_torch(path):
    """The same from torch.save, as transformers did before safetensors; nothing in it is executed."""
    value = read_torch_file(path)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{path}: is no table of tensors with names; fetch model.safetensors instead")
    entries = {name: tensor for name, tensor in value.items() if not name.endswith(_MASKS)}
    for name, tensor in entries.items():
        if not isinstance(tensor, LazyTensor):
            raise UserError(f"{path}: {short(name)} is no tensor of floats; fetch model.safetensors instead")
    return entries


def _of_shards(path):
    folder, index = os.path.dirname(path), read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path}: weight_map is missing or empty; fetch it again")
    shards, entries = {}, {}
    for name, file in places.items():
        plain = isinstance(file, str) and file.isprintable() and file == os.path.basename(file)
        if not plain or not file.endswith(".safetensors"):
            raise UserError(f"{path}: weight_map sends {short(name)} to {short(file)}, no file beside it")
        if file not in shards:
            shards[file] = _of_file(os.path.join(folder, file))
        if name.endswith(_MASKS):
            continue
        if name not in shards[file]:
            raise UserError(f"{os.path.join(folder, file)}: has no tensor {short(name)}, the index says it has; "
                            "fetch the folder again")
        entries[name] = shards[file][name]
    return entries


def model_of(entries, config_and_eos, path):
    """(tensors under our names, config, notes, eos); whether the head is tied is seen from the tensors."""
    config, eos = config_and_eos
    entries = {name: stored for name, stored in entries.items() if not name.endswith(_MASKS)}
    tensors, notes = {}, []
    for name, stored in entries.items():
        short = name.removeprefix("transformer.")
        if short in tensors:
            raise UserError(f"{path}: has tensor {short(short)} twice, with 'transformer.' and without")
        tensors[short] = stored
    head, wte = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if head is not None and wte is not None and head.equals(wte):
        head = None  # a copy of the embedding: transformers ties them, too
        config = config | {"tied_head": True}
    if head is not None:
        if config["tied_head"]:
            notes.append("its lm_head is not its token embedding, though the config says so: taken as it is")
        tensors["lm_head.weight"], config = head.transpose(), config | {"tied_head": False}
    return tensors, config, notes, eos


# -- out ---------------------------------------------------------------------------------------------------------------


def write_folder(folder, tensors, config, eot=None, dtype="float32"):
    """Write config.json, generation_config.json and model.safetensors, as transformers does; gives notes for the user.

    tensors   {our name: array or LazyTensor};  config   our config's fields
    eot       id of the end-of-text token, or None;  dtype   "float32" or "bfloat16"
    """
    notes, code = [], {"float32": "F32", "bfloat16": "BF16"}[dtype]
    make_folder(folder)
    shapes = {f"transformer.{name}": tensor.shape for name, tensor in tensors.items() if name != "lm_head.weight"}
    if not config["bias"]:
        shapes |= {name.removesuffix("weight") + "bias": shape[-1:] for name, shape in shapes.items()
                   if ".h." in name or "ln_f" in name}  # fmt: skip
        notes.append("the model has no biases; transformers' GPT-2 always has, so zeros were written")
    if not config["tied_head"]:
        shapes["lm_head.weight"] = tensors["lm_head.weight"].shape[::-1]
    with atomic_write(os.path.join(folder, "model.safetensors")) as file:
        file.write(make_header(shapes, code, {"format": "pt"}))  # readers of old insist on a framework
        for name in sorted(shapes):
            tensor = tensors.get(name.removeprefix("transformer."))
            array = np.zeros(shapes[name], np.float32) if tensor is None else tensor.astype(np.float32, copy=False)
            write_elements(file, array.T if name == "lm_head.weight" else array, code)
    activation = {"gelu": "gelu_new", "gelu_erf": "gelu"}[config["activation"]]
    write_json(os.path.join(folder, "generation_config.json"),
               {"_from_model_config": True, "bos_token_id": eot, "eos_token_id": eot})  # fmt: skip
    write_json(os.path.join(folder, "config.json"), {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": dtype,
        "vocab_size": config["vocab_size"], "n_positions": config["block_size"], "n_ctx": config["block_size"],
        "n_embd": config["n_embd"], "n_layer": config["n_layer"], "n_head": config["n_head"],
        "n_inner": config.get("n_inner") or None, "activation_function": activation,
        "layer_norm_epsilon": config.get("norm_eps", 1e-5), "initializer_range": 0.02,
        "resid_pdrop": config["dropout"], "embd_pdrop": config["dropout"], "attn_pdrop": config["dropout"],
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
        "bos_token_id": eot, "eos_token_id": eot, "tie_word_embeddings": config["tied_head"], "use_cache": True,
    })  # fmt: skip
    return notes

