"""HellaSwag (Zellers et al., 2019): 10,042 questions for validation, with which llm.c and build-nanogpt evaluate GPT-2.

    python data/hellaswag/prepare.py                             hellaswag_val.jsonl next to this script
    python -m tinygrad2 eval hellaswag --weights data/gpt2/gpt2
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

from data.download import add_common_flags, fetch_all, state_needs
from data.prepared import check_folder
from tinygrad2.cli import Parser, run, summary

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
SIZE = 12_246_618


def main():
    parser = Parser(prog="prepare.py", description=summary(__doc__))
    add_common_flags(parser, HERE)
    args = parser.parse_args()
    check_folder(args.out)
    state_needs(args.out, 13, 13, 100, 1)
    fetch_all([(URL, os.path.join(args.out, "hellaswag_val.jsonl"), SIZE, SHA256)], args.mirror)
    print("now: python -m tinygrad2 eval hellaswag --weights data/gpt2/gpt2")
    return 0


if __name__ == "__main__":
    run(main)
