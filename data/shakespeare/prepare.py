"""Tiny Shakespeare in GPT-2's tokens, in the format of llm.c or nanoGPT.

    python data/shakespeare/prepare.py                           tiny_shakespeare_{train,val}.bin, as llm.c now
    python data/shakespeare/prepare.py --format nanogpt          train.bin and val.bin
    python data/shakespeare/prepare.py --format llmc-legacy      int32 without a header, as llm.c until May 2024
    python train_gpt2.py --data data/shakespeare --model gpt2 --block-size 256

For llm.c the text between two empty lines is a document: an end-of-text token comes before each, and the empty line
belongs to the one before it. The first 32,768 tokens are for validation. nanoGPT has one long text without end-of-text,
and validates on the last tenth of its characters.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

import numpy as np

from data.download import add_common_flags, gpt2_tokenizer, state_needs
from data.prepared import claim, writing
from tinygrad2.cli import Parser, PathAction, run, summary
from tinygrad2.datasets.token_files import write_raw, write_tokens
from tinygrad2.io.text_file import read_valid_text
from tinygrad2.system.shell import command_line

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE = 1_115_394
VAL_TOKENS = 32_768
FORMATS = ("llmc", "nanogpt", "llmc-legacy")


def main():
    parser = Parser(prog="prepare.py", description=summary(__doc__))
    add_common_flags(parser, HERE)
    parser.add_argument("--format", choices=FORMATS, default="llmc", help="format of the files (default: llmc)")
    parser.add_argument("--text", action=PathAction, role="input", default="", metavar="FILE",
                        help="a copy of the text (default: fetch it)")  # fmt: skip
    parser.add_argument("--merges", action=PathAction, role="input", default="", metavar="FILE",
                        help="GPT-2's vocab.bpe (default: fetch it)")  # fmt: skip
    args = parser.parse_args()
    names = [f"{name}.bin" if args.format == "nanogpt" else f"tiny_shakespeare_{name}.bin" for name in ("train", "val")]
    claim(args.out, names, [(flag, path) for flag, path in (("--text", args.text), ("--merges", args.merges)) if path])
    state_needs(args.out, 2, 10, 200, 1)
    path = args.text or os.path.join(args.out, "input.txt")
    more = [] if args.text else [(URL, path, SIZE, SHA256)]
    tokenizer = gpt2_tokenizer(args.out, args.merges, args.mirror, more)
    text = read_valid_text(path).decode("utf-8", "replace")
    if args.format == "nanogpt":
        cut = int(len(text) * 0.9)
        parts = {"train": tokenizer.encode(text[:cut]), "val": tokenizer.encode(text[cut:])}
    else:
        sections = text.split("\n\n")
        ids = []
        for i, section in enumerate(sections):
            ids.append(tokenizer.eot)
            ids += tokenizer.encode(section if i == len(sections) - 1 else section + "\n\n")
        parts = {"train": ids[VAL_TOKENS:], "val": ids[:VAL_TOKENS]}
    for name, ids in zip(names, parts.values()):
        with writing(args.out, name) as target:
            if args.format == "llmc":
                write_tokens(target, ids)
            else:
                write_raw(target, ids, np.uint16 if args.format == "nanogpt" else np.int32)
        print(f"{name}: {len(ids):,} tokens")
    print("now:", command_line("python train_gpt2.py", data=args.out, vocab_size=tokenizer.n_vocab))
    return 0


if __name__ == "__main__":
    run(main)
