"""Documents from parquet files on the Hugging Face hub: downloaded one after the other, tokenized, removed again."""

import os
from functools import partial

from data.download import add_common_flags, fetch, gpt2_tokenizer, hub_files, hub_url, state_needs
from data.prepared import check_folder, is_noted, note_download
from data.shards import make_shards
from tinygrad2.cli import Parser, PathAction, summary
from tinygrad2.errors import UserError
from tinygrad2.system.shell import command_line


def prepare(text, here, repo, folder, revision, stem):
    """A complete prepare script: flags, listing, downloads, shards <stem>_{val,train}_NNNNNN.bin.

    text      the script's docstring;  here   its folder
    repo, folder, revision    where the parquet files are
    Raises UserError, one line, if something is missing or wrong.
    """
    parser = Parser(prog="prepare.py", description=summary(text))
    add_common_flags(parser, here)
    parser.add_argument("--shards", type=int, default=0, metavar="N", help="stop after N shards (default: all)")
    parser.add_argument("--shard-tokens", type=int, default=100_000_000, metavar="N",
                        help="tokens per shard (default: 100000000)")  # fmt: skip
    parser.add_argument("--merges", action=PathAction, role="input", default="", metavar="FILE",
                        help="GPT-2's vocab.bpe (default: download it)")  # fmt: skip
    parser.add_argument("--keep-downloads", action="store_true", help="keep the parquet files (default: remove them)")
    args = parser.parse_args()
    if args.shards < 0 or args.shard_tokens < 1:
        raise UserError("--shards must not be below 0, --shard-tokens at least 1")
    _parquet()
    check_folder(args.out)
    files = hub_files(repo, folder, revision, args.mirror, ".parquet")
    total, largest = sum(size for _, size, _ in files) / 1e6, max(size for _, size, _ in files) / 1e6
    tokens = args.shards * args.shard_tokens or None
    part = 1.0 if tokens is None else min(1.0, 2.5 * tokens / 1e6 / total)    # a token takes 2 to 3 bytes there
    disk = (2e-6 * tokens if tokens else total) + (part * total if args.keep_downloads else largest)
    state_needs(args.out, part * total, disk, 3000, part * total / 200)
    tokenizer = gpt2_tokenizer(args.out, args.merges, args.mirror)
    groups = partial(_groups, files, repo, revision, args)
    n = make_shards(groups, os.path.join(args.out, stem), tokenizer, args.shard_tokens, args.shards or None, True)
    print(f"{n} shard(s); now: {command_line('python train_gpt2.py', data=args.out, model='gpt2')}")
    return 0


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError('parquet files need pyarrow: pip install -e ".[datasets]"') from error
    return pyarrow.parquet


def _groups(files, repo, revision, args, position):
    """Yields (position, documents) of each row group, from a position = [file, row group] on."""
    first, skip = position if isinstance(position, list) else (0, 0)
    for k in range(first, len(files)):
        name, size, sha256 = files[k]
        path = os.path.join(args.out, os.path.basename(name))
        note_download(args.out, os.path.basename(name))
        fetch(hub_url(repo, name, revision), path, sha256, size, args.mirror)
        try:
            with _parquet().ParquetFile(path) as file:
                for group in range(skip, file.num_row_groups):
                    column = file.read_row_group(group, columns=["text"]).column("text")
                    yield [k, group], [text for text in column.to_pylist() if text]
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are subclasses
            raise UserError(f"{path}: is not a parquet file with a column 'text' ({error}); remove it") from None
        skip = 0
        if not args.keep_downloads and is_noted(args.out, os.path.basename(name)):
            os.remove(path)
