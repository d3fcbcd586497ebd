"""GPT-2 as released by OpenAI, in four sizes, with its tokenizer, from the Hugging Face hub.

    python data/gpt2/prepare.py                                  124M parameters into data/gpt2/gpt2
    python data/gpt2/prepare.py --model gpt2-xl --out weights    1558M parameters into weights
    python data/gpt2/prepare.py --tokenizer-only                 vocab.json and merges.txt only
    python inference.py --weights data/gpt2/gpt2 --prompt "The answer is"

Files that are in the folder already are checked and used. The tokenizer is the same for all sizes: its files are
always those of the smallest.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

from data.download import add_common_flags, fetch_all, hub_files, hub_url, list_missing, state_needs
from data.prepared import check_folder
from tinygrad2.cli import Parser, run, summary
from tinygrad2.errors import UserError
from tinygrad2.io.files import CorruptFile, read_json
from tinygrad2.io.safetensors import open_container
from tinygrad2.system.installation import data_folder
from tinygrad2.system.shell import command_line

VOCAB, CONTEXT = 50_257, 1024
SIZES = {  # name: (blocks, heads, width, the name in llm.c)
    "gpt2": (12, 12, 768, "124M"),
    "gpt2-medium": (24, 16, 1024, "355M"),
    "gpt2-large": (36, 20, 1280, "774M"),
    "gpt2-xl": (48, 25, 1600, "1558M"),
}
REVISIONS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
TOKENIZER = {  # name: (bytes, SHA-256)
    "vocab.json": (1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "merges.txt": (456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "tokenizer.json": (1_355_256, "8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6"),
}
WEIGHTS = {  # (bytes, SHA-256); None: not pinned, but looked up on the hub, or checked by content
    "gpt2": {
        "config.json": (665, "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4"),
        "generation_config.json": (124, "ed0b32ac72c0f5f44a719abb2d7786ea5146c871f83717b7f2018065954de02b"),
        "model.safetensors": (548_105_171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"),
    },
    "gpt2-medium": {
        "config.json": (718, "ef1a44d889ad1a0acc7731c78134f1b87d2d222f110e97dd10fd4117331caf22"),
        "generation_config.json": (None, None),
        "model.safetensors": (None, "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd"),
    },
    "gpt2-large": {
        "config.json": (None, None),
        "generation_config.json": (None, None),
        "model.safetensors": (None, None),
    },
    "gpt2-xl": {
        "config.json": (None, "be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a"),
        "generation_config.json": (None, None),
        "model.safetensors": (None, "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a"),
    },
}


def main():
    parser = Parser(prog="prepare.py", description=summary(__doc__))
    parser.add_argument("--model", choices=SIZES, default="gpt2", help="which size (default: gpt2)")
    parser.add_argument("--tokenizer-only", action="store_true", help="vocab.json and merges.txt only")
    add_common_flags(parser, "")
    args = parser.parse_args()
    out = args.out or os.path.join(data_folder("gpt2"), args.model)
    check_folder(out)
    files = _files(args.model, out, args.tokenizer_only)
    megabytes = sum(_megabytes(args.model, path, size) for _, path, size, _ in files)
    state_needs(out, megabytes, megabytes, 200, 1 + megabytes / 300)
    if args.tokenizer_only:
        fetch_all(files, args.mirror)
        merges = os.path.join(out, "merges.txt")
        flags = dict(data="my.txt", tokenizer=merges, vocab_size=VOCAB)
        print("now:", command_line("python train_gpt2.py", **flags))
        return 0
    fetch_all(_look_up(args.model, files, args.mirror), args.mirror)
    _check(args.model, out)
    print("now:", command_line("python inference.py", weights=out, prompt="..."))
    print("    ", command_line("python train_gpt2.py", init_from=out, data="my.txt"))
    print("    ", command_line("python -m tinygrad2 convert", out, f"gpt2_{SIZES[args.model][3]}.bin", to="llmc"))
    print("    ", command_line("python -m tinygrad2 eval hellaswag", weights=out))
    return 0


def _files(model, out, tokenizer_only):
    """[(url, path, size, sha256)] of the files to fetch, the weights last."""
    names = list(TOKENIZER)[:2] if tokenizer_only else list(TOKENIZER)
    wanted = [("gpt2", name, *TOKENIZER[name]) for name in names]
    if not tokenizer_only:
        wanted += [(model, name, *known) for name, known in WEIGHTS[model].items()]
    return [
        (hub_url(f"openai-community/{repo}", name, REVISIONS[repo], kind="models"), os.path.join(out, name), *known)
        for repo, name, *known in wanted
    ]


def _megabytes(model, path, size):
    """MB of a file that are still to be fetched."""
    if os.path.exists(path):
        return 0
    if size is None:
        blocks, _, width, _ = SIZES[model]
        elements = (VOCAB + CONTEXT + 2) * width + blocks * (width * (12 * width + 13) + CONTEXT**2)  # with the masks
        size = 4 * elements if path.endswith(".safetensors") else 1000
    done = os.path.getsize(path + ".part") if os.path.exists(path + ".part") else 0
    return max(0, size - done) / 1e6


def _look_up(model, files, mirror):
    """The same files, the weights with size and SHA-256 from the hub's listing if they are not pinned."""
    url, path, size, sha256 = files[-1]
    if sha256:
        return files
    try:
        repo, name = f"openai-community/{model}", os.path.basename(path)
        listing = hub_files(repo, "", REVISIONS[model], mirror, name, kind="models")
        size, sha256 = {file: known for file, *known in listing}.get(name, (None, None))
        if not sha256:
            raise UserError(f"{repo}: the hub does not list the SHA-256 of {name}; has it changed?")
    except UserError as error:
        if not os.path.exists(path):
            list_missing(files)
            raise
        print(f"note      {error}; so the SHA-256 of {path} is not known, and only its shapes are checked")
    return [*files[:-1], (url, path, size, sha256)]


def _check(model, out):
    """Raises UserError if the contents of the files are not those of such a model."""
    blocks, heads, width, _ = SIZES[model]
    path = os.path.join(out, "config.json")
    config = read_json(path)
    expected = {"model_type": "gpt2", "n_layer": blocks, "n_head": heads, "n_embd": width}
    for key, value in (expected | {"vocab_size": VOCAB, "n_positions": CONTEXT}).items():
        actual = config.get(key) if isinstance(config, dict) else None
        if actual != value:
            raise UserError(f"{path}: {key} is {actual!r} instead of {value!r}; move it away and run this again")
    read_json(os.path.join(out, "generation_config.json"))
    path = os.path.join(out, "model.safetensors")
    try:
        entries = {name.removeprefix("transformer."): e for name, e in open_container(path).entries.items()}
        for name, shape in (("wte.weight", [VOCAB, width]), (f"h.{blocks - 1}.attn.c_proj.weight", [width, width])):
            if name not in entries or list(entries[name].shape) != shape:
                raise CorruptFile(f"there is no {name} of {shape}")
    except CorruptFile as error:
        raise UserError(f"{path}: no weights of {model} ({error}); move it away and run this again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    print(f"checked {out}: {blocks} blocks, {heads} heads, width {width}, {len(entries)} tensors")


if __name__ == "__main__":
    run(main)
