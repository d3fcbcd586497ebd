"""Tiny Shakespeare, one token per character, in nanoGPT's format: train.bin, val.bin (its last tenth), tokenizer.json.

    python data/shakespeare_char/prepare.py
    python train_gpt2.py --data data/shakespeare_char --vocab-size 65 --model baby --prompt "ROMEO:"
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

from data.download import add_common_flags, fetch_all, state_needs
from data.prepared import claim, writing
from tinygrad2.cli import Parser, PathAction, run, summary
from tinygrad2.datasets.token_files import write_raw
from tinygrad2.io.text_file import read_valid_text
from tinygrad2.system.shell import command_line
from tinygrad2.tokenizers.char import CharTokenizer

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE = 1_115_394


def main():
    parser = Parser(prog="prepare.py", description=summary(__doc__))
    add_common_flags(parser, HERE)
    parser.add_argument("--text", action=PathAction, role="input", default="", metavar="FILE",
                        help="a copy of the text (default: fetch it)")  # fmt: skip
    args = parser.parse_args()
    claim(args.out, ["train.bin", "val.bin", "tokenizer.json"], [("--text", args.text)] if args.text else [])
    state_needs(args.out, 0 if args.text else 1, 5, 100, 1)
    path = args.text or os.path.join(args.out, "input.txt")
    if not args.text:
        fetch_all([(URL, path, SIZE, SHA256)], args.mirror)
    text = read_valid_text(path).decode("utf-8", "replace")
    tokenizer = CharTokenizer.train(text)
    cut = int(len(text) * 0.9)
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        ids = tokenizer.encode_array(part)
        with writing(args.out, f"{name}.bin") as target:
            write_raw(target, ids)
        print(f"{name}.bin: {len(ids):,} tokens")
    with writing(args.out, "tokenizer.json") as target:
        tokenizer.save(target)
    print(f"tokenizer.json: {tokenizer.n_vocab} characters")
    print("now:", command_line("python train_gpt2.py", data=args.out, vocab_size=tokenizer.n_vocab))
    return 0


if __name__ == "__main__":
    run(main)
