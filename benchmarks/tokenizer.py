"""Time of training and encoding, compared with Hugging Face's tokenizers (Rust) and tiktoken (Rust).

    python -m benchmarks.tokenizer                         the bundled stories, repeated to 1 MB
    python -m benchmarks.tokenizer --text my.txt --save    your own text; rows go to benchmarks/results/

Training: 1,000 merges. Hugging Face gets the text line by line, as it reads files itself; only then does it use all
cores. Encoding: all with the merges that ours has learned, and all must return the same ids. Ours caches words, so it
is timed twice: "first" with a new tokenizer, "again" on a text that it has seen.

The libraries take turns, so that other load on the machine affects all of them; missing ones are left out.
"""

import argparse
import importlib
import statistics
import time
from pathlib import Path

from benchmarks.harness import cpu_name, load_average, save, versions
from tinygrad2.datasets.text_cache import encode_documents, split_documents
from tinygrad2.system.threads import available_cores
from tinygrad2.tokenizers import parallel
from tinygrad2.tokenizers.pretokenizer import PATTERN
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, ID_TO_SYMBOL, Tokenizer

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "data" / "dummy_data.txt"
MERGES = 1000


# -- helpers -----------------------------------------------------------------------------------------------------------


def timed(fn):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = fn()
    return time.perf_counter() - start, result


def take_turns(sides, repeats):
    """Returns {name: [seconds, ...]} of functions called in turns, after a warm-up round, and their last results.

    sides: {name: function}
    """
    seconds, results = {name: [] for name in sides}, {}
    for turn in range(repeats + 1):
        for name, fn in sides.items():
            taken, results[name] = timed(fn)
            if turn > 0:
                seconds[name].append(taken)
    return seconds, results


def rows_of(job, seconds, size):
    """Yields a row per side: min and median in s, MB/s, and the ratio of the first side's median to this one's."""
    ours = statistics.median(next(iter(seconds.values())))
    for name, taken in seconds.items():
        median = statistics.median(taken)
        yield {
            "job": job,
            "side": name,
            "min_s": round(min(taken), 4),
            "median_s": round(median, 4),
            "mb_per_s": round(size / 1e6 / median, 2),
            "ours_to_this": round(ours / median, 3),
            "repeats": len(taken),
            "bytes": size,
        }


def optional_module(name):
    """Returns the module, or prints that it is missing and returns None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed and left out: pip install {name}")
        return None


# -- the sides ---------------------------------------------------------------------------------------------------------


def training_sides(text, tokenizers):
    """{name: function}; each function learns MERGES merges."""
    sides = {"tinygrad2": lambda: Tokenizer.train(text, 256 + MERGES + 1)}
    if tokenizers:
        lines = text.splitlines(keepends=True)

        def train():
            model = tokenizers.Tokenizer(tokenizers.models.BPE())
            model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=256 + MERGES,
                min_frequency=2,
                initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            model.train_from_iterator(lines, trainer)

        sides["tokenizers"] = train
    return sides


def encoding_sides(text, tokenizer, tiktoken, tokenizers):
    """{name: function}; each encodes the text with the merges of `tokenizer` and returns the ids."""
    merges = list(tokenizer.merges)
    tokenizer.encode(text)
    sides = {
        "tinygrad2, first": lambda: Tokenizer(merges).encode(text),
        "tinygrad2, again": lambda: tokenizer.encode(text),
    }
    if tiktoken:
        ranks = {tokenizer.token_bytes(id): id for id in range(tokenizer.eot)}
        special = {END_OF_TEXT: tokenizer.eot}
        encoding = tiktoken.Encoding("same", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
        sides["tiktoken"] = lambda: encoding.encode_ordinary(text)
    if tokenizers:
        symbols, pairs = list(ID_TO_SYMBOL), []
        for left, right in merges:
            pairs.append((symbols[left], symbols[right]))
            symbols.append(symbols[left] + symbols[right])
        model = tokenizers.Tokenizer(tokenizers.models.BPE({symbol: id for id, symbol in enumerate(symbols)}, pairs))
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        sides["tokenizers"] = lambda: model.encode(text).ids
    return sides


def document_sides(text, tokenizer):
    """{name: function}; each encodes the text's documents into one stream of ids, on all cores or on one."""
    documents, merges = split_documents(text.encode()), list(tokenizer.merges)
    cores = len(available_cores())
    return {
        f"{cores} processes": lambda: encode_documents(documents, Tokenizer(merges), workers=cores).tolist(),
        "1 process": lambda: encode_documents(documents, Tokenizer(merges), workers=1).tolist(),
    }


def read_text(path, megabytes):
    """Returns (text, its origin). The bundled text is repeated to that many MB; a file is read as it is."""
    if path:
        return Path(path).read_text(encoding="utf-8", errors="replace"), Path(path).name
    text = BUNDLED.read_text(encoding="utf-8")
    size = int(megabytes * 1e6)
    text = (text * (size // len(text) + 1))[:size]
    return text, f"{BUNDLED.name}, repeated to {megabytes:g} MB"


def main():
    parser = argparse.ArgumentParser(description="Time the tokenizer, compared with tokenizers and tiktoken.")
    parser.add_argument("--text", help="a text file (default: data/dummy_data.txt, repeated)")
    parser.add_argument("--mb", type=float, default=1.0, help="size of the repeated text (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count (default: 5)")
    parser.add_argument("--save", action="store_true", help="add rows to benchmarks/results/tokenizer.json and .csv")
    args = parser.parse_args()
    tokenizers, tiktoken = optional_module("tokenizers"), optional_module("tiktoken")
    text, name = read_text(args.text, args.mb)
    size = len(text.encode())
    print(f"{cpu_name()}, load {load_average()}; "
          + " ".join(map(" ".join, versions("regex", "tokenizers", "tiktoken").items())))
    print(f"text: {name}, {size:,} bytes, {len(text.split()):,} words separated by white space\n")

    tokenizer = Tokenizer.train(text, 256 + MERGES + 1)
    jobs = {
        f"train {MERGES:,} merges": training_sides(text, tokenizers),
        "encode": encoding_sides(text, tokenizer, tiktoken, tokenizers),
    }
    if size >= parallel.PARALLEL_FROM:
        jobs["encode documents"] = document_sides(text, tokenizer)
    rows = []
    print(f"{'':20} {'':18} {'min s':>8} {'median s':>9} {'MB/s':>7} {'ours / this':>12}")
    for job, sides in jobs.items():
        seconds, results = take_turns(sides, args.repeats)
        if job.startswith("encode"):
            expected = next(iter(results.values()))
            assert all(ids == expected for ids in results.values()), "not all return the same ids"
        for row in rows_of(job, seconds, size):
            rows.append(row)
            figures = f"{row['min_s']:8.4f} {row['median_s']:9.4f} {row['mb_per_s']:7.1f} {row['ours_to_this']:12.2f}"
            print(f"{job:20} {row['side']:18} {figures}")
    if args.save:
        save("tokenizer", rows, text=name)


if __name__ == "__main__":
    main()
