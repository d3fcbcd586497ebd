"""nanoGPT's ckpt.pt: what its train.py saves, and resumes from.

    model           {name: tensor}: our names after "transformer."; torch.compile puts "_orig_mod." before that
    model_args      the config
    optimizer       the state of AdamW
    iter_num, best_val_loss, config

The file format is torch.save's (io/torch_pickle.py). What is different from ours:

    the four matrices of a block     (out, in), as torch's Linear has them; ours are (in, out)
    lm_head.weight                   always present, and a copy of the token embedding; ours is (C, V), if not tied
    h.0.attn.bias                    the causal mask (1, 1, T, T), in files of PyTorch before 2.0; not a bias

https://github.com/karpathy/nanoGPT/blob/master/train.py
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.interop.shapes import shapes_of
from tinygrad2.io.files import atomic_write
from tinygrad2.io.lazy_tensor import LazyTensor
from tinygrad2.io.torch_pickle import UnknownName, read_torch_file
from tinygrad2.io.zip_archive import Writer

_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_FIELDS = {*_SIZES, "bias", "dropout"}
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MASKS = (".attn.bias", ".attn.masked_bias")
_ROWS = 1 << 20  # elements that are written at a time


class NoCheckpoint(UserError):
    """A file of torch.save without a model as nanoGPT saves it."""


def read_nanogpt(path):
    """(tensors {our name: LazyTensor}, config {field of GPTConfig: value}) of a ckpt.pt; nothing in it is executed.

    The activation is erf's GELU, as in nanoGPT since May 2023. Files without the field "bias" are older (before
    January 2023), and get the tanh form. A head that is not a copy of the embedding becomes lm_head.weight (C, V).

    Raises UserError, one line, for a file that is not a complete checkpoint of nanoGPT.
    """
    try:
        value = read_torch_file(path, _is_needed)
    except UnknownName as error:
        if not error.name.endswith(".GPTConfig"):
            raise
        raise UserError(
            f"{path}: looks like build-nanogpt's: its config is a Python object ({short(error.name)}), and making one"
            " would run code from the file; only tensors are read; save its model there as safetensors"
        ) from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise NoCheckpoint(f"{path}: has no model; give the ckpt.pt that nanoGPT's train.py saved")
    if not isinstance(value.get("model_args"), dict):
        raise UserError(f"{path}: has no model_args, so its shape is unknown; give a ckpt.pt of nanoGPT's train.py")
    tensors = _tensors(value["model"], path)
    config = _config(value["model_args"], tensors, path)
    head = tensors.pop("lm_head.weight", None)
    _check_shapes(tensors, head, config, path)
    tensors = {name: tensor.transpose() if name.endswith(_TRANSPOSED) else tensor for name, tensor in tensors.items()}
    if head is not None and not head.equals(tensors["wte.weight"]):
        tensors["lm_head.weight"] = head.transpose()
        config["tied_head"] = False
    return tensors, config


# -- in ----------------------------------------------------------------------------------------------------------------


def _is_needed(keys):
    return keys[0] in ("model", "model_args") and not str(keys[-1]).endswith(_MASKS)


def _tensors(model, path):
    """{our name: LazyTensor}, in the orientation of the file."""
    tensors = {}
    for key, tensor in model.items():
        name = key.removeprefix("_orig_mod.") if isinstance(key, str) else ""
        if not name.startswith("transformer.") and name != "lm_head.weight":
            raise UserError(f"{path}: model has {short(key)}, which is not nanoGPT's; is it another program's?")
        if not isinstance(tensor, LazyTensor):
            raise UserError(f"{path}: {short(key)} is not a tensor of floats; give a ckpt.pt of nanoGPT's train.py")
        name = name.removeprefix("transformer.")
        if name in tensors:
            raise UserError(f"{path}: {short(name)} is present twice, with and without _orig_mod.; save it again")
        tensors[name] = tensor
    return tensors


def _config(args, tensors, path):
    """model_args as fields of GPTConfig, each checked."""
    for name in args:
        if name not in _FIELDS:
            raise UserError(f"{path}: model_args has {short(name)}, which nanoGPT does not have; check the file")
    for name in (*_SIZES, "dropout"):
        if name not in args:
            raise UserError(f"{path}: model_args has no {name}; give a ckpt.pt of nanoGPT's train.py")
    for name in _SIZES:
        if type(args[name]) is not int or not 0 < args[name] < 1 << 31:
            raise UserError(f"{path}: {name} is {short(args[name])}, not an integer above 0; copy it again")
    if type(args["dropout"]) not in (int, float) or not 0 <= args["dropout"] < 1:
        raise UserError(f"{path}: dropout is {short(args['dropout'])}, not a number in [0, 1); copy it again")
    bias = args.get("bias", "ln_f.bias" in tensors)
    if type(bias) is not bool:
        raise UserError(f"{path}: bias is {short(bias)}, neither True nor False; copy it again")
    if args["n_embd"] % args["n_head"]:
        raise UserError(f"{path}: n_head = {args['n_head']} does not divide n_embd = {args['n_embd']}; copy it again")
    if args["n_layer"] > len(tensors):
        raise UserError(f"{path}: n_layer is {args['n_layer']}, but it has {len(tensors)} tensors; copy it again")
    activation = "gelu_erf" if "bias" in args else "gelu"
    return {name: args[name] for name in _SIZES} | {
        "dropout": float(args["dropout"]),
        "bias": bias,
        "tied_head": True,
        "activation": activation,
        "n_inner": 0,
        "norm_eps": 1e-5,
    }


def _check_shapes(tensors, head, config, path):
    """Raise UserError if names or shapes are not those of the config."""
    shapes = shapes_of(config)
    for name, shape in shapes.items():
        if name not in tensors:
            raise UserError(f"{path}: transformer.{name} is missing, which its model_args require; copy it again")
        _check_shape(f"transformer.{name}", tensors[name], shape[::-1] if name.endswith(_TRANSPOSED) else shape, path)
    for name in tensors:
        if name not in shapes:
            name = short(f"transformer.{name}")
            raise UserError(f"{path}: {name} is not a tensor of nanoGPT's; is it another program's?")
    if head is not None:
        _check_shape("lm_head.weight", head, shapes["wte.weight"], path)


def _check_shape(name, tensor, shape, path):
    if tensor.shape != shape:
        raise UserError(f"{path}: {name} has shape {tensor.shape}, its model_args require {shape}; copy it again")


# -- out ---------------------------------------------------------------------------------------------------------------


def write_nanogpt(path, tensors, config):
    """Write a ckpt.pt that nanoGPT can sample from and resume from, with the state of an AdamW before its first step.

    tensors   {our name: float32 array or LazyTensor};  config   {field of GPTConfig: value}

    Returns notes for the user, often none. Raises UserError for a model that nanoGPT's format cannot hold.
    """
    _check_supported(config, path)
    shapes = shapes_of(config)
    if set(tensors) != set(shapes):
        name = min(set(tensors) ^ set(shapes))
        raise UserError(f"{path}: not written: {short(name)} is {'unexpected' if name in tensors else 'missing'}; the"
                        " weights must be those of the config")  # fmt: skip
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: not written: {name} has shape {tensors[name].shape}, the config requires {shape}")
    with atomic_write(path) as file:
        archive = Writer(file)
        pickle = b"\x80\x02" + _pickled(_checkpoint(shapes, config)) + b"."
        archive.add("archive/data.pkl", len(pickle), [pickle])
        archive.add("archive/byteorder", 6, [b"little"])
        for i, (name, shape) in enumerate(shapes.items()):
            archive.add(f"archive/data/{i}", 4 * math.prod(shape), _pieces(tensors[name], name.endswith(_TRANSPOSED)))
        archive.add("archive/version", 2, [b"3\n"])
        archive.close()
    if config["activation"] == "gelu":
        return ["nanoGPT computes GELU with erf, this model was trained with its tanh form: the loss will differ a"
                " little there"]  # fmt: skip
    return []


def _check_supported(config, path):
    if not config["tied_head"]:
        raise UserError(f"{path}: not written: nanoGPT ties the head to the embedding, this model's head is separate")
    if config.get("n_inner", 0) not in (0, 4 * config["n_embd"]):
        raise UserError(f"{path}: not written: nanoGPT's MLP is 4 n_embd wide, this one is {config['n_inner']}")
    if config.get("norm_eps", 1e-5) != 1e-5:
        raise UserError(f"{path}: not written: nanoGPT's layernorms add 1e-05, this model's {config['norm_eps']}")


def _checkpoint(shapes, config):
    """The value in data.pkl: storage i is that of the i-th tensor; the head shares the embedding's."""
    model = {}
    for i, (name, shape) in enumerate(shapes.items()):
        model[f"transformer.{name}"] = _Tensor(i, shape[::-1] if name.endswith(_TRANSPOSED) else shape)
    model["lm_head.weight"] = model["transformer.wte.weight"]
    args = {name: config[name] for name in (*_SIZES, "bias")} | {"dropout": float(config["dropout"])}
    decayed = sum(len(shape) > 1 for shape in shapes.values())
    groups = [_group(range(decayed), 0.1), _group(range(decayed, len(shapes)), 0.0)]
    return {
        "model": _Ordered(model),
        "optimizer": {"state": {}, "param_groups": groups},
        "model_args": args,
        "iter_num": 0,
        "best_val_loss": 1e9,
        "config": {},
    }


def _group(parameters, weight_decay):
    """A group of parameters with the settings of nanoGPT's AdamW, as PyTorch writes them.

    They replace those of the program that resumes. nanoGPT sets "fused" on a GPU, and needs it there for float16; on a
    CPU it requires PyTorch 2.4.
    """
    flags = dict.fromkeys(("amsgrad", "maximize", "capturable", "differentiable"), False)
    values = {"weight_decay": weight_decay, "lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8}
    rest = {"foreach": None, "fused": True, "decoupled_weight_decay": True, "params": list(parameters)}
    return values | flags | rest


def _pieces(tensor, transposed):
    """Yields an array or LazyTensor as float32 bytes, a few rows at a time; transposed to (out, in) on request."""
    if transposed:
        tensor = tensor.transpose() if isinstance(tensor, LazyTensor) else tensor.T
    array = np.atleast_2d(tensor.astype(np.float32, copy=False))
    step = max(1, _ROWS // array.shape[1])
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step], "<f4").reshape(-1).view(np.uint8)


@dataclass
class _Tensor:
    """A tensor of floats, which are in storage number `storage`."""

    storage: int
    shape: tuple


class _Ordered(dict):
    """A dict that becomes an OrderedDict in the file."""


def _pickled(value):
    """The pickle opcodes, of protocol 2, for a value: None, bool, int, float, str, tuple, list, dict, or _Tensor."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + len(text).to_bytes(4, "little") + text
    if isinstance(value, dict):
        empty = b"ccollections\nOrderedDict\n)R" if isinstance(value, _Ordered) else b"}"
        return empty + b"(" + b"".join(_pickled(key) + _pickled(entry) for key, entry in value.items()) + b"u"
    if isinstance(value, (tuple, list)):
        entries = b"".join(map(_pickled, value))
        return b"(" + entries + b"t" if isinstance(value, tuple) else b"](" + entries + b"e"
    return _pickled_tensor(value)


def _pickled_tensor(tensor):
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)"""
    strides = tuple(math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape)))
    key = _pickled(str(tensor.storage)) + _pickled("cpu") + _pickled(math.prod(tensor.shape))
    storage = b"(" + _pickled("storage") + b"ctorch\nFloatStorage\n" + key + b"tQ"
    arguments = b"(" + storage + b"".join(map(_pickled, (0, tensor.shape, strides, False)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"ccollections\nOrderedDict\n)Rt" + b"R"
