"""python -m tinygrad2 convert IN OUT --to FORMAT: models, tokenizers and tokens, between our and third-party formats.

The format of IN is recognized by its content. A model (ours, a Hugging Face folder or model.safetensors, llm.c's .bin,
nanoGPT's ckpt.pt) becomes

    hf            a folder that transformers loads: config.json, model.safetensors, the tokenizer's files
    llmc          llm.c's .bin: version 3 (float32), or 5 with --dtype bfloat16
    llmc-debug    llm.c's debug state: a batch of --tokens with the model's logits, loss and gradients
    nanogpt       nanoGPT's ckpt.pt (also called nanogpt-bin)
    trained       trained_weights.bin

a tokenizer (of any format that load_tokenizer reads) becomes hf, llmc (gpt2_tokenizer.bin), tiktoken (a file of ranks)
or trained (our JSON), and a token file becomes llmc, llmc-legacy or nanogpt-bin (its train.bin). What was written is
read back and compared.
"""

import os

import numpy as np

from models.pretrained import config_of, load_pretrained
from tinygrad2.bfloat16 import pack_bfloat16, unpack_bfloat16
from tinygrad2.cli import Parser, PathAction, summary
from tinygrad2.commands.convert_outputs import MODEL_FILES, check_outputs
from tinygrad2.datasets.token_files import HEADERED, TokenFile, write_raw, write_tokens
from tinygrad2.errors import UserError
from tinygrad2.interop import hf, llmc, nanogpt
from tinygrad2.interop.pretrained import kind_of_model, open_model
from tinygrad2.io.files import atomic_write, first_bytes
from tinygrad2.io.room import Need, check_room
from tinygrad2.io.signatures import LLMC_FILES
from tinygrad2.io.weights import save_weights
from tinygrad2.system.streams import print_error
from tinygrad2.tokenizers.export import check_hugging_face, write_tokenizer
from tinygrad2.tokenizers.formats import LLMC_MAGIC, TOKENIZER_FILES
from tinygrad2.tokenizers.load import find_in_folder, load_tokenizer

FORMATS = ("hf", "llmc", "llmc-debug", "llmc-legacy", "nanogpt", "nanogpt-bin", "tiktoken", "trained")
_NAMES = {"tokenizer": "tokenizer", "tokens": "token file"}
_NOT_WRITTEN = ("added_tokens.json", "special_tokens_map.json", "chat_template.json", "chat_template.jinja")


def main(argv):
    parser = Parser(prog="tinygrad2 convert", description=summary(__doc__))
    parser.add_argument("source", action=PathAction, role="input", metavar="IN", help="model, tokenizer or token file")
    parser.add_argument("target", action=PathAction, role="output", metavar="OUT",
                        help="file, or folder for --to hf")  # fmt: skip
    parser.add_argument("--to", required=True, choices=FORMATS, metavar="FORMAT", help=f"one of: {', '.join(FORMATS)}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="data type of the new file, for hf and llmc: float32 or bfloat16 (default: float32)")
    parser.add_argument("--block-size", type=int, metavar="N", help="crop the context (default: as it is)")
    parser.add_argument("--tokenizer", action=PathAction, role="input", default="", metavar="FILE",
                        help="the model's tokenizer (default: the one next to it)")
    parser.add_argument("--tokens", action=PathAction, role="input", default="", metavar="FILE",
                        help="for llmc-debug: a token file (default: none)")  # fmt: skip
    parser.add_argument("--batch", default="4x64", metavar="BxT", help="for llmc-debug: its size (default: 4x64)")
    parser.add_argument("--force", action="store_true",
                        help="overwrite OUT if it is of the same format (default: refuse)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="for BLAS and kernels (default: all cores)")
    args = parser.parse_args(argv)
    kind = what_is(args.source)
    if kind != "model":
        _refuse_flags(args, kind)
    check_outputs(args, kind)
    {"model": _model, "tokenizer": _tokenizer, "tokens": _tokens}[kind](args)
    return 0


def _refuse_flags(args, kind):
    for name, default in (("dtype", "float32"), ("block_size", None), ("tokenizer", ""), ("tokens", "")):
        if getattr(args, name) != default:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag}: is for models, but {args.source} is a {_NAMES[kind]}; leave it out")


def what_is(path):
    """"model", "tokenizer" or "tokens", by content. Raises UserError for a path that is none of them."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder; check the path")
    if os.path.isdir(path):
        names = {*MODEL_FILES, "pytorch_model.bin", "pytorch_model.bin.index.json"} & set(os.listdir(path))
        if names == {"config.json"} and find_in_folder(path):  # which names the class of a tokenizer
            return "tokenizer"
        return "model" if names else "tokenizer"
    head = first_bytes(path)
    magic = int.from_bytes(head[:4], "little")
    if magic in HEADERED or path.endswith(".npy"):
        return "tokens"
    text = head.lstrip()[:1] == b"{" or head.startswith(b"#version")
    if magic == LLMC_MAGIC or text or path.endswith((".bpe", ".tiktoken", ".txt", ".pkl")):
        return "tokenizer"
    try:
        kind_of_model(path)
    except UserError:
        if magic in LLMC_FILES or not path.endswith(".bin"):
            raise
        return "tokens"  # a token file without a header may begin with any bytes
    return "model"


def _wrong_format(args, kind, formats):
    """The error of a --to that the kind of file cannot become."""
    return UserError(f"--to {args.to}: {args.source} is a {kind}, which can become: {', '.join(formats)}")


# -- models ------------------------------------------------------------------------------------------------------------


def _model(args):
    if args.to == "llmc-debug":
        _debug_state(args)
        return
    pretrained = open_model(args.source, args.tokenizer)
    if args.block_size is not None:
        pretrained.crop(args.block_size)
    model_config = config_of(pretrained)
    if args.to != "trained":
        model_config.require_gpt(f"--to {args.to}", "it can become: trained")
    config, tokenizer, notes = model_config.to_dict(), pretrained.tokenizer, list(pretrained.notes)
    if args.dtype != "float32" and args.to not in ("hf", "llmc"):
        raise UserError(f"--dtype {args.dtype}: only hf and llmc can be written in it")
    size = (4 if args.dtype == "float32" else 2) * sum(tensor.size for tensor in pretrained.tensors.values())
    check_room([Need("", args.target, "the model", size, size)])
    if args.to == "hf":
        _check_tokenizer(args.target, tokenizer)
        notes += hf.write_folder(args.target, pretrained.tensors, config, pretrained.ends, args.dtype, pretrained.bos)
        if tokenizer:
            write_tokenizer(tokenizer, args.target, "hf", end=pretrained.end)
        else:
            notes.append("its tokenizer is not known (--tokenizer FILE), so the folder has none")
    elif args.to == "llmc":
        notes += llmc.write_model(args.target, pretrained.tensors, config, 3 if args.dtype == "float32" else 5)
    elif args.to in ("nanogpt", "nanogpt-bin"):
        notes += nanogpt.write_nanogpt(args.target, pretrained.tensors, config) or []
    elif args.to == "trained":
        arrays = {name: tensor.astype(np.float32) for name, tensor in pretrained.tensors.items()}
        training = pretrained.training | ({} if pretrained.trained_here else {"converted_from": pretrained.kind})
        training |= {"eos": pretrained.eos[0] if len(pretrained.eos) == 1 else pretrained.eos} if pretrained.eos else {}
        save_weights(args.target, arrays, config, tokenizer.to_json() if tokenizer else "", training)
    else:
        raise _wrong_format(args, "model", ("hf", "llmc", "llmc-debug", "nanogpt", "trained"))
    for note in notes:
        print_error(f"note      {note}")
    again = open_model(args.target)
    print(f"wrote     {args.target}: {pretrained.kind} -> {again.kind}, {_compare(pretrained, again, args.dtype)}")


def _check_tokenizer(folder, tokenizer):
    """Raises UserError if this tokenizer cannot be written into the folder, or files of another model's would stay
    there. Called before anything is written."""
    others = [name for name in _NOT_WRITTEN if os.path.exists(os.path.join(folder, name))]
    if others:
        raise UserError(f"{folder}: has {', '.join(others)} of another model, which transformers would read; choose "
                        "another folder")
    if tokenizer:
        check_hugging_face(tokenizer)
        return
    stale = [name for name in TOKENIZER_FILES if os.path.exists(os.path.join(folder, name))]
    if stale:
        raise UserError(f"{folder}: has a tokenizer already ({', '.join(stale)}), and the model's is not known; "
                        "pass it with --tokenizer, or choose another folder")


def _compare(pretrained, again, dtype):
    """Compare what was written, value by value, and describe the result. Raises UserError if it differs."""
    worst, count = 0.0, 0
    for name, tensor in pretrained.tensors.items():
        other, exact = again.tensors.get(name), tensor.astype(np.float32)
        expected = exact
        if dtype == "bfloat16":
            expected = unpack_bfloat16(pack_bfloat16(exact.reshape(-1))).reshape(exact.shape)
        if other is None or other.shape != tensor.shape or not _same_bits(other.astype(np.float32), expected):
            raise UserError(f"{again.path}: {name} differs from what was written; is the disk full?")
        if dtype != "float32":
            worst = max(worst, float(np.abs(exact - expected).max(initial=0.0)))
        count += tensor.size
    return f"{count:,} parameters, read back " + ("equal" if dtype == "float32" else f"within {worst:.1e}")


def _same_bits(a, b):
    return np.array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def _debug_state(args):
    """Write the debug state of a batch, the first tokens of a file, as llm.c's train_gpt2.py does."""
    if not args.tokens:
        raise UserError("--to llmc-debug: needs --tokens FILE, for example llm.c's tiny_shakespeare_val.bin")
    rows, _, length = args.batch.partition("x")
    if not (rows.isdecimal() and length.isdecimal() and int(rows) and int(length)):
        raise UserError(f"--batch {args.batch}: is not a size such as 4x64")
    B, T = int(rows), int(length)
    if what_is(args.tokens) != "tokens":
        raise UserError(f"--tokens {args.tokens}: is not a token file (.bin or .npy); make one: "
                        "python data/shakespeare/prepare.py")
    model, _, pretrained = load_pretrained(args.source, args.block_size)
    model.config.require_gpt("--to llmc-debug", "it can become: trained")
    file = TokenFile(args.tokens)
    if len(file) < B * T + 1:
        raise UserError(f"{args.tokens}: {len(file)} ids are too few for --batch {args.batch}, which needs {B * T + 1}")
    ids = file.read(0, B * T + 1)
    if ids.max() >= pretrained.config["vocab_size"]:
        raise UserError(f"{args.tokens}: id {ids.max()} is outside the model's vocabulary of "
                        f"{pretrained.config['vocab_size']}")  # fmt: skip
    if T > model.config.block_size:
        raise UserError(f"--batch {args.batch}: this model reads {model.config.block_size} tokens at most")
    state = llmc.compute_debug_state(model, ids[:-1].reshape(B, T), ids[1:].reshape(B, T))
    llmc.write_debug_state(args.target, state, model.config.to_dict())
    print(f"wrote     {args.target}: {B} x {T} tokens, loss {state.loss:.6f}, {len(state.grads)} gradients")


# -- tokenizers and tokens ---------------------------------------------------------------------------------------------


def _tokenizer(args):
    tokenizer = load_tokenizer(args.source)
    if args.to == "trained":
        with atomic_write(args.target) as file:
            file.write(tokenizer.to_json().encode() + b"\n")
    elif args.to in ("hf", "llmc", "tiktoken"):
        if args.to == "hf":
            _check_tokenizer(args.target, tokenizer)
        write_tokenizer(tokenizer, args.target, args.to)
    else:
        raise _wrong_format(args, "tokenizer", ("hf", "llmc", "tiktoken", "trained"))
    again = load_tokenizer(args.target)
    same = all(tokenizer.token_bytes(id) == again.token_bytes(id) for id in range(tokenizer.n_vocab))
    if again.n_vocab != tokenizer.n_vocab or not same:
        raise UserError(f"{args.target}: differs from what was written; is the disk full?")
    print(f"wrote     {args.target}: {tokenizer.n_vocab:,} tokens, read back equal")


def _tokens(args):
    file = TokenFile(args.source)
    ids = file.read(0, len(file))
    if args.to == "llmc":
        write_tokens(args.target, ids)
    elif args.to == "llmc-legacy":
        write_raw(args.target, ids, np.int32)
    elif args.to == "nanogpt-bin":
        if ids.max() >= 1 << 16:
            raise UserError(f"{args.source}: id {ids.max()} does not fit nanoGPT's 16 bits; use --to llmc")
        write_raw(args.target, ids, np.uint16)
    else:
        raise _wrong_format(args, "token file", ("llmc", "llmc-legacy", "nanogpt-bin"))
    again = TokenFile(args.target)
    if not np.array_equal(again.read(0, len(again)), ids):
        raise UserError(f"{args.target}: differs from what was written; is the disk full?")
    print(f"wrote     {args.target}: {file.kind} -> {again.kind}, {len(ids):,} tokens, read back equal")
