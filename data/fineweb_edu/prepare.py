"""FineWeb-Edu, the sample of 10 billion tokens (Penedo et al., 2024): educational web pages.

    python data/fineweb_edu/prepare.py                           some 28 GB of download, 20 GB of tokens in 100 shards
    python data/fineweb_edu/prepare.py --shards 5                500 million tokens
    python train_gpt2.py --data data/fineweb_edu --model gpt2

Shard 0 is for validation. Names and format are those of llm.c's edu_fineweb shards.
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
    return prepare(__doc__, HERE, "HuggingFaceFW/fineweb-edu", "sample/10BT", "main", "edu_fineweb")


if __name__ == "__main__":
    run(main)
