"""What `convert` is going to write, checked before it reads its input: OUT must be new.

With --force it may exist, if its content is of the format that is written there: a model is not written over a text.
It is never what is read, by whatever path.
"""

import os
import re

from tinygrad2.datasets.token_files import HEADERED
from tinygrad2.errors import UserError
from tinygrad2.interop import llmc
from tinygrad2.io.files import CorruptFile, check_writable, first_bytes, read_json
from tinygrad2.io.outputs import check_output, files_of, is_same_file
from tinygrad2.io.safetensors import open_container
from tinygrad2.io.weights import is_weights
from tinygrad2.tokenizers.formats import LLMC_MAGIC, TOKENIZER_FILES

MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "config.json")
_CONFIGS = ("generation_config.json", "tokenizer_config.json")
_LOOK = 200_000  # bytes


def check_outputs(args, kind):
    """Raises UserError if a conversion must not write `args.target`. `kind` of IN: "model", "tokenizer", "tokens"."""
    inputs = [("IN", path) for path in files_of(args.source)]
    inputs += [("--tokenizer", path) for path in files_of(args.tokenizer)] if args.tokenizer else []
    inputs += [("--tokens", args.tokens)] if args.tokens else []
    targets = _hugging_face(args.target, kind) if args.to == "hf" else {args.target: _format_of(args.to, kind)}
    if args.force and is_same_file(args.target, args.source):
        raise UserError(f"OUT {args.target}: is what IN reads, and would be replaced; name another OUT")
    for path, (what, is_one) in targets.items():
        if os.path.lexists(path) and not args.force:
            raise UserError(f"{path}: exists already; name another OUT, or overwrite it with --force")
        if check_output("OUT", path, what, is_one, inputs, args.target):
            print(f"note      {path}: what was there is replaced (--force)")


def _hugging_face(folder, kind):
    """{path: (what it is, its test)} of the files of a Hugging Face folder."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"OUT {folder}: is a file; --to hf writes a folder")
    if not os.path.isdir(folder):
        check_writable(folder)  # the folder that it will be in
    names = (*(MODEL_FILES if kind == "model" else ()), *_CONFIGS[kind != "model" :], *TOKENIZER_FILES)
    return {os.path.join(folder, name): _of_name(name) for name in names}


def _of_name(name):
    if name.endswith(".safetensors"):
        return "a safetensors file", _is_safetensors
    if name.endswith(".json"):
        return "a JSON object", _is_json
    return "a list of merges", _is_merges


def _format_of(to, kind):
    """(what it is, its test) of a file that is written for --to."""
    formats = {
        ("trained", "model"): ("weights of tinygrad2", is_weights),
        ("trained", "tokenizer"): ("a tokenizer of tinygrad2", _is_own_tokenizer),
        ("llmc", "model"): ("a model of llm.c", lambda path: _magic(path) == llmc.MODEL),
        ("llmc", "tokenizer"): ("a tokenizer of llm.c", lambda path: _magic(path) == LLMC_MAGIC),
        ("llmc", "tokens"): ("a token file of llm.c", lambda path: _magic(path) in HEADERED),
        ("llmc-debug", "model"): ("a debug state of llm.c", lambda path: _magic(path) == llmc.DEBUG_STATE),
        ("nanogpt", "model"): ("a checkpoint of nanoGPT", _is_torch_file),
        ("nanogpt-bin", "model"): ("a checkpoint of nanoGPT", _is_torch_file),
        ("tiktoken", "tokenizer"): ("a file of ranks", _is_ranks),
    }
    return formats.get((to, kind), ("a file that shows what it is (ids without a header do not)", lambda path: False))


def _magic(path):
    return int.from_bytes(first_bytes(path, 4), "little")


def _is_safetensors(path):
    try:
        return open_container(path) is not None
    except (CorruptFile, OSError, UserError):
        return False


def _is_json(path):
    return first_bytes(path).lstrip().startswith(b"{")


def _is_own_tokenizer(path):
    try:
        fields = read_json(path)
    except UserError:
        return False
    return isinstance(fields, dict) and str(fields.get("format")).startswith("tinygrad2-")


def _is_torch_file(path):
    """torch.save's zip files begin with the member data.pkl."""
    head = first_bytes(path, 200)
    return head.startswith(b"PK\3\4") and b"/data.pkl" in head


def _is_merges(path):
    lines = first_bytes(path, _LOOK).decode("utf-8", "replace").split("\n")[:100]
    return all(line.startswith("#version") or len(line.split(" ")) == 2 for line in lines[:-1])


def _is_ranks(path):
    lines = first_bytes(path, _LOOK).split(b"\n")[:100]
    return all(re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+", line) for line in lines[:-1])
