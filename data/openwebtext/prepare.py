"""OpenWebText (Gokaslan and Cohen, 2019), the open copy of what GPT-2 was trained on: 9 billion tokens of web pages.

    python data/openwebtext/prepare.py                           some 13 GB of download, 18 GB of tokens
    python data/openwebtext/prepare.py --shards 3                300 million tokens
    python train_gpt2.py --data data/openwebtext --model gpt2

The hub keeps the parquet files of the data set on a separate branch, refs/convert/parquet; these are read.
Shard 0 is for validation.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

from data.parquet import prepare
from tinygrad2.cli import run


def main():
    return prepare(__doc__, HERE, "Skylion007/openwebtext", "plain_text/train", "refs/convert/parquet", "openwebtext")


if __name__ == "__main__":
    run(main)
