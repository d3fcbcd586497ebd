"""GPT-2 as Hugging Face's transformers stores it: a folder with config.json and model.safetensors.

The tensors have our names, usually prefixed with "transformer.", and our orientation: transformers kept OpenAI's
(in, out) for the four matrices of a block. What is different:

    lm_head.weight              (V, C), ours (C, V); omitted if it is the token embedding
    h.0.attn.bias               the causal mask (1, 1, T, T), in old files; not a bias, and not needed
    h.0.attn.masked_bias        the value of its masked positions, in old files; not needed
    model.safetensors.index.json   which file has which tensor, if there are several
    pytorch_model.bin              the same tensors in torch.save's format, before there was safetensors; several files
                                   have an index as well
    generation_config.json         which tokens begin and end a text; how transformers draws tokens is not used

https://huggingface.co/docs/transformers/model_doc/gpt2
"""

import glob
import os

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.io.files import CorruptFile, atomic_write, first_bytes, make_folder, read_json, write_json
from tinygrad2.io.lazy_tensor import LazyTensor, write_elements
from tinygrad2.io.safetensors import make_header, open_container
from tinygrad2.io.torch_pickle import read_torch_file

ACTIVATIONS = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu_erf"),
}  # transformers' names, and ours; those with one value differ by rounding only
_SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}  # HF's own defaults
_REQUIRED = {  # fields that change the formulas, and the only value that is supported
    "model_type": "gpt2", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False, "quantization_config": None, "is_encoder_decoder": False,
}  # fmt: skip
_ALIASES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer"}  # synonyms that transformers accepts  # fmt: skip
_MASKS = (".attn.bias", ".attn.masked_bias")
_INDEX = "model.safetensors.index.json"
_HEADS = {  # tensors of models with another head instead of the one for the next token
    "score.": "GPT2ForSequenceClassification", "classifier.": "GPT2ForTokenClassification",
    "qa_outputs.": "GPT2ForQuestionAnswering",
}  # fmt: skip
_MORE_HEADS = {"multiple_choice_head.": "a head for multiple choice", "v_head.": "a value head"}  # besides that one
_OTHER_FILES = {  # what a folder without a model may have instead
    "adapter_config.json": "an adapter (LoRA), not a model: merge it into its model with peft's merge_and_unload",
    "tf_model.h5": "TensorFlow's tf_model.h5: save it again with transformers and PyTorch",
    "flax_model.msgpack": "Flax's flax_model.msgpack: save it again with transformers and PyTorch",
    "rust_model.ot": "rust_model.ot: fetch model.safetensors instead",
}
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")  # as our flags
_CHANGING = {  # settings of generation_config.json that change texts, and their values that do not
    "no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "num_beams": 1,
    "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "min_length": 0,
    "min_new_tokens": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "stop_strings": None,
    "encoder_repetition_penalty": 1.0, "exponential_decay_length_penalty": None, "guidance_scale": None,
}  # fmt: skip


def read_folder(folder):
    """(tensors {our name: LazyTensor}, config fields, notes, the ids "bos" and "eos") of a model's folder.

    Of several formats, the one that transformers prefers. Raises UserError, one line, for a model that is incomplete,
    corrupt or not supported.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    readers = {"model.safetensors": _read_safetensors, _INDEX: _read_shards, "pytorch_model.bin": _read_torch,
               "pytorch_model.bin.index.json": _read_shards}  # fmt: skip
    for name, read in readers.items():
        path = os.path.join(folder, name)
        if name in names:
            entries = read(path)
            break
    else:
        others = [what for name, what in _OTHER_FILES.items() if name in names]
        others += ["a .gguf file, of llama.cpp: fetch model.safetensors" for name in names if name.endswith(".gguf")]
        others += [f"weights of a training: give {path}" for path in _weights_of_a_run(folder)]
        remedy = f"it has {others[0]}" if others else "give the folder of a model"
        raise UserError(f"{folder}: has neither model.safetensors nor {_INDEX}; {remedy}")
    return model_of(entries, read_config(os.path.join(folder, "config.json")), path)


def _weights_of_a_run(folder):
    """Weights files that train_gpt2.py has written into a checkpoint, or into those of a run's folder, newest first."""
    pattern = os.path.join(glob.escape(folder), "checkpoints", "step_*", "weights.bin")
    paths = [os.path.join(folder, "weights.bin"), *sorted(glob.glob(pattern), reverse=True)]
    return [path for path in paths if os.path.isfile(path)]


def read_file(path):
    """The same for a model.safetensors (or pytorch_model.bin) alone. Without a config.json next to it, the config of
    OpenAI's model of the same size is taken."""
    is_zip = first_bytes(path, 2) == b"PK"
    entries = (_read_torch if is_zip else _read_safetensors)(path)
    config_path = os.path.join(os.path.dirname(path), "config.json")
    if os.path.exists(config_path):
        return model_of(entries, read_config(config_path), path)
    names = {name.removeprefix("transformer."): tensor for name, tensor in entries.items()}
    layers = {name.split(".")[1] for name in names if name.startswith("h.")}
    for n_layer, n_head, n_embd in ((12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600)):
        if "wte.weight" in names and len(layers) == n_layer and names["wte.weight"].shape[1:] == (n_embd,):
            config = _SIZES | dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
            tensors, config, notes, ends = model_of(entries, _checked(config, path), path)
            notes.append("there is no config.json next to it; assuming, from its sizes, OpenAI's GPT-2")
            return tensors, config, notes, ends
    raise UserError(f"{path}: no config.json next to it, the only file with the number of heads; copy it as well")


# -- config ------------------------------------------------------------------------------------------------------------


def read_config(path):
    """(fields of GPTConfig, notes, {"bos": id or None, "eos": ids}) of a config.json, and of the generation_config.json
    next to it. Raises UserError for a config that our GPT would compute differently."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; the weights need it, copy it as well")
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: is not a JSON object; fetch it again")
    generation = os.path.join(os.path.dirname(path), "generation_config.json")
    more = read_json(generation) if os.path.exists(generation) else {}
    if not isinstance(more, dict):
        raise UserError(f"{generation}: is not a JSON object; fetch it again")
    return _checked(fields, path, more)


def _checked(fields, path, generation=None):
    for name, expected in _REQUIRED.items():
        value = fields.get(name, expected)
        if value != expected:
            raise UserError(f"{path}: {name} is {short(value)}; only GPT-2 with {name} = {expected!r} is supported")
    if fields.get("pruned_heads"):
        raise UserError(f"{path}: pruned_heads is not empty; models with pruned heads are not supported")
    fields = {ours: fields[theirs] for theirs, ours in _ALIASES.items() if theirs in fields} | fields
    activation = fields.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{path}: activation_function is {short(activation)}; supported are {known}")
    sizes = {name: fields.get(name, default) for name, default in _SIZES.items()}
    sizes["n_inner"] = fields.get("n_inner") or 0
    for name, value in sizes.items():
        if type(value) is not int or not (name == "n_inner" or value > 0) or not 0 <= value < 1 << 31:
            raise UserError(f"{path}: {name} is {short(value)}, not an integer above 0; fetch it again")
    eps = fields.get("layer_norm_epsilon", 1e-5)
    if type(eps) is not float or not 0 < eps < 1:
        raise UserError(f"{path}: layer_norm_epsilon is {short(eps)}, not a number between 0 and 1; fetch it again")
    sizes["block_size"] = sizes.pop("n_positions")
    if sizes["n_inner"] == 4 * sizes["n_embd"]:
        sizes["n_inner"] = 0
    tied = fields.get("tie_word_embeddings", True) is not False
    config = dict(dropout=0.0, bias=True, tied_head=tied, activation=ACTIVATIONS[activation], norm_eps=eps)
    generation = generation or {}
    bos, eos = (_ids(name, (generation, fields), sizes["vocab_size"]) for name in ("bos_token_id", "eos_token_id"))
    return sizes | config, _notes(fields, generation), {"bos": bos[0] if bos else None, "eos": eos}


def _ids(name, files, vocab_size):
    """The ids, an integer or a list of them, under a name in the first file that has it: a tuple, perhaps empty."""
    value = next((fields[name] for fields in files if fields.get(name) is not None), [])
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(id for id in values if type(id) is int and 0 <= id < vocab_size))


def _notes(fields, generation):
    """What the user should know of a config and a generation_config."""
    notes = []
    if fields.get("architectures") == ["GPT2Model"]:
        notes.append("it is a GPT2Model, saved without a head: its token embedding is used as the head")
    asks = "its generation_config.json asks for"
    names = [name for name in _DRAWING if generation.get(name) is not None]
    if not generation.get("do_sample"):  # what also changes the most likely text
        names = [name for name in names if name == "repetition_penalty" and generation[name] != 1]
    if names:
        asked = " ".join(f"--{name.replace('_', '-')} {generation[name]}" for name in names)
        notes.append(f"{asks} {asked}; not used unless you give these flags")
    others = [name for name, neutral in _CHANGING.items() if generation.get(name, neutral) not in (neutral, None, [])]
    if others:
        notes.append(f"{asks} {', '.join(others)}, which is not supported: transformers may write other texts")
    return notes


# -- tensors -----------------------------------------------------------------------------------------------------------


def _read_safetensors(path):
    """{name in the file: LazyTensor}, without masks."""
    try:
        container = open_container(path)
        names = [name for name in container.entries if not name.endswith(_MASKS)]
        return {name: container.tensor(name) for name in names}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except CorruptFile as error:
        raise UserError(f"{path}: not a valid safetensors file of weights: {error}; fetch it again") from None


def _read_torch(path):
    """Like _read_safetensors, for torch.save files, which transformers wrote before; nothing in them is executed."""
    value = read_torch_file(path)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{path}: is not a dict of named tensors; fetch model.safetensors instead")
    entries = {name: tensor for name, tensor in value.items() if not name.endswith(_MASKS)}
    for name, tensor in entries.items():
        if not isinstance(tensor, LazyTensor):
            raise UserError(f"{path}: {short(name)} is not a tensor of floats; fetch model.safetensors instead")
    return entries


def _read_shards(path):
    """Like _read_safetensors or _read_torch, for several files, by their index."""
    folder, index = os.path.dirname(path), read_json(path)
    ending, read = (".safetensors", _read_safetensors) if path.endswith(_INDEX) else (".bin", _read_torch)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: weight_map is missing or empty; fetch it again")
    shards, entries = {}, {}
    for name, file in weight_map.items():
        is_name = isinstance(file, str) and file.isprintable() and file == os.path.basename(file)
        if not is_name or not file.endswith(ending):
            raise UserError(f"{path}: weight_map has {short(file)} for {short(name)}, which is not a file next to it; "
                            "fetch the folder again")
        if file not in shards:
            shards[file] = read(os.path.join(folder, file))
        if name.endswith(_MASKS):
            continue
        if name not in shards[file]:
            raise UserError(f"{os.path.join(folder, file)}: has no tensor {short(name)}, though the index lists it; "
                            "fetch the folder again")
        entries[name] = shards[file][name]
    return entries


def model_of(entries, checked_config, path):
    """(tensors {our name: LazyTensor}, config, notes, ends). Whether the head is tied is decided by the tensors.

    Raises UserError for a model with another head than the one for the next token.
    """
    config, notes, ends = checked_config
    entries = {name: tensor for name, tensor in entries.items() if not name.endswith(_MASKS)}
    tensors = {}
    for name, tensor in entries.items():
        name = name.removeprefix("transformer.")
        for prefix, kind in _HEADS.items():
            if name.startswith(prefix) and "lm_head.weight" not in entries:
                raise UserError(f"{path}: is a {kind}: it has {short(name)}, and no head for the next token; give a "
                                "language model (GPT2LMHeadModel)")
        another = [what for prefix, what in _MORE_HEADS.items() if name.startswith(prefix)]
        if another:
            notes += [note for note in [f"it also has {another[0]}, which is not used"] if note not in notes]
            continue
        if name in tensors:
            raise UserError(f"{path}: has tensor {short(name)} twice, with 'transformer.' and without; fetch it again")
        tensors[name] = tensor
    head, wte = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if head is not None and wte is not None and head.equals(wte):
        head = None  # a copy of the embedding: transformers ties them as well
        config = config | {"tied_head": True}
    if head is not None:
        if config["tied_head"]:
            notes.append("its lm_head is not its token embedding, though the config says so: lm_head is used")
        tensors["lm_head.weight"], config = head.transpose(), config | {"tied_head": False}
    elif not config["tied_head"]:
        raise UserError(f"{path}: has no lm_head.weight, and its config has tie_word_embeddings = false: it is a model "
                        "without a head for the next token; give a language model (GPT2LMHeadModel)")
    return tensors, config, notes, ends


# -- out ---------------------------------------------------------------------------------------------------------------


def write_folder(folder, tensors, config, ends=(), dtype="float32", bos=None):
    """Write config.json, generation_config.json and model.safetensors, as transformers does. Returns notes.

    tensors   {our name: array or LazyTensor};  config   fields of GPTConfig
    ends      ids of the tokens that end a text;  dtype   "float32" or "bfloat16"
    bos       id of the token that begins a text, if it is not the first of these

    Raises UserError if the folder cannot be written.
    """
    notes, code = [], {"float32": "F32", "bfloat16": "BF16"}[dtype]
    make_folder(folder)
    shapes = {f"transformer.{name}": tensor.shape for name, tensor in tensors.items() if name != "lm_head.weight"}
    if not config["bias"]:
        shapes |= {name.removesuffix("weight") + "bias": shape[-1:] for name, shape in shapes.items()
                   if ".h." in name or "ln_f" in name}  # fmt: skip
        notes.append("the model has no biases; transformers' GPT-2 always has them, so zeros were written")
    if not config["tied_head"]:
        shapes["lm_head.weight"] = tensors["lm_head.weight"].shape[::-1]
    with atomic_write(os.path.join(folder, "model.safetensors")) as file:
        file.write(make_header(shapes, code, {"format": "pt"}))  # old readers require the framework
        for name in sorted(shapes):
            tensor = tensors.get(name.removeprefix("transformer."))
            array = np.zeros(shapes[name], np.float32) if tensor is None else tensor.astype(np.float32, copy=False)
            write_elements(file, array.T if name == "lm_head.weight" else array, code)
    activation = {"gelu": "gelu_new", "gelu_erf": "gelu"}[config["activation"]]
    first = ends[0] if ends else None
    bos, eos = first if bos is None else bos, first if len(ends) < 2 else list(ends)
    write_json(os.path.join(folder, "generation_config.json"),
               {"_from_model_config": True, "bos_token_id": bos, "eos_token_id": eos})  # fmt: skip
    write_json(os.path.join(folder, "config.json"), {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": dtype,
        "vocab_size": config["vocab_size"], "n_positions": config["block_size"], "n_ctx": config["block_size"],
        "n_embd": config["n_embd"], "n_layer": config["n_layer"], "n_head": config["n_head"],
        "n_inner": config.get("n_inner") or None, "activation_function": activation,
        "layer_norm_epsilon": config.get("norm_eps", 1e-5), "initializer_range": 0.02,
        "resid_pdrop": config["dropout"], "embd_pdrop": config["dropout"], "attn_pdrop": config["dropout"],
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
        "bos_token_id": bos, "eos_token_id": eos, "tie_word_embeddings": config["tied_head"], "use_cache": True,
    })  # fmt: skip
    return notes
