"""TinyStories (Eldan and Li, 2023), the version written by GPT-4: 2.2 GB of stories in the words of small children.

    python data/tinystories/prepare.py                           GPT-2's tokens
    python data/tinystories/prepare.py --vocab-size 4096         its own tokenizer, trained on the first 64 MB
    python data/tinystories/prepare.py --limit-mb 200            the first 200 MB only
    python train_gpt2.py --data data/tinystories --dataset tinystories --model baby --vocab-size 4096

The shards are tinystories_val_000000.bin and tinystories_train_000000.bin, ..., in llm.c's format.
"""

import os
import sys
from functools import partial

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

from data.download import add_common_flags, fetch, gpt2_tokenizer, hub_files, hub_url, state_needs
from data.prepared import check_folder, writing
from data.shards import make_shards
from tinygrad2.cli import Parser, PathAction, run, summary
from tinygrad2.datasets.text_cache import TRAIN_ON, blocks, split_documents
from tinygrad2.errors import UserError
from tinygrad2.io.open_file import open_file
from tinygrad2.system.shell import command_line
from tinygrad2.tokenizers.load import load_tokenizer
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

REPO = "roneneldan/TinyStories"
MARK = END_OF_TEXT.encode()
NAMES = {"val": "TinyStoriesV2-GPT4-valid.txt", "train": "TinyStoriesV2-GPT4-train.txt"}


def main():
    parser = Parser(prog="prepare.py", description=summary(__doc__))
    add_common_flags(parser, HERE)
    for flag, default, what in (
        ("--vocab-size", 0, "train a tokenizer with N tokens (default: use GPT-2's)"),
        ("--limit-mb", 0, "train on the first N MB of the text only (default: all)"),
        ("--shard-tokens", 100_000_000, "tokens per shard (default: 100000000)"),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=what)
    parser.add_argument("--merges", action=PathAction, role="input", default="", metavar="FILE",
                        help="GPT-2's vocab.bpe (default: fetch it)")  # fmt: skip
    args = parser.parse_args()
    if args.shard_tokens < 1 or args.limit_mb < 0 or args.vocab_size < 0:
        raise UserError("--shard-tokens must be at least 1, --limit-mb and --vocab-size not negative")
    check_folder(args.out)
    listed = {path: (size, sha) for path, size, sha in hub_files(REPO, "", mirror=args.mirror, ending=".txt")}
    missing = [name for name in NAMES.values() if name not in listed]
    if missing:
        raise UserError(f"{REPO}: {missing[0]} is no longer in the repository")
    megabytes = sum(listed[name][0] for name in NAMES.values()) / 1e6
    state_needs(args.out, megabytes, 1.5 * megabytes, 1500, 2 + megabytes / 300)
    paths = {split: os.path.join(args.out, name) for split, name in NAMES.items()}
    for split, name in NAMES.items():
        size, sha256 = listed[name]
        fetch(hub_url(REPO, name), paths[split], sha256, size, args.mirror)
    tokenizer = _tokenizer(args, paths["train"])
    for split, limit in (("val", None), ("train", args.limit_mb * 1_000_000 or None)):
        make_shards(partial(_stories, paths[split], limit), os.path.join(args.out, f"tinystories_{split}"), tokenizer,
                    args.shard_tokens)  # fmt: skip
    flags = dict(data=args.out, dataset="tinystories", vocab_size=tokenizer.n_vocab)
    print("now:", command_line("python train_gpt2.py", **flags))
    return 0


def _tokenizer(args, text):
    path = os.path.join(args.out, "tokenizer.json")
    if not args.vocab_size:
        return gpt2_tokenizer(args.out, args.merges, args.mirror)
    if not os.path.exists(path):
        with open_file(text) as file, writing(args.out, "tokenizer.json"):
            Tokenizer.train(split_documents(file.read(TRAIN_ON)), args.vocab_size).save(path)
    tokenizer = load_tokenizer(path)
    if tokenizer.n_vocab > args.vocab_size:
        raise UserError(f"{path}: is there already, with {tokenizer.n_vocab:,} tokens, more than --vocab-size "
                        f"{args.vocab_size:,}; choose another --out, or move it away")
    return tokenizer


def _stories(path, limit, position):
    """(byte where they begin, stories) of each block of the text from the byte `position` on; no story is cut."""
    with open_file(path) as file:
        start = position if _is_start(file, position) else 0
        file.seek(start)
        for documents, is_complete, _, end, _ in blocks(file, start):
            if not is_complete:
                raise UserError(f"{path}: a story longer than a block at byte {start}; this is not TinyStories")
            yield start, documents
            start = end
            if limit and start >= limit:
                return


def _is_start(file, position):
    """Does a story begin at this byte, and another one end before it?"""
    if not isinstance(position, int) or not len(MARK) <= position <= os.fstat(file.fileno()).st_size:
        return False
    file.seek(position - len(MARK))
    return file.read(len(MARK)) == MARK


if __name__ == "__main__":
    run(main)
