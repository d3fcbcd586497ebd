"""Readers of files, called in this process on forged and damaged ones: each reads them, or raises UserError, one line.

Two thirds of the files have one field, number or value changed and right checksums (forged.py), the others random
damage (test_fuzz.py), half of these entered into the manifest with their new checksum. tests/forged_files.py lets the
whole programs read such files, which takes a hundred times as long.

    python tests/forged_readers.py 1000 1        1000 files for each reader, beginning with seed 1
"""

import contextlib
import glob
import io
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter

import numpy as np
from forged import enter, forge, long_values
from inputs import STEP, make_inputs, quick
from test_fuzz import mutate

from data.prepared import claim
from models import GPT, GPTConfig
from models.pretrained import load_pretrained
from tinygrad2.commands import launch, replay
from tinygrad2.commands.hosts import read_hostfile
from tinygrad2.datasets.dataset import open_dataset
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.evaluation.hellaswag import load_examples
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.interop import llmc
from tinygrad2.monitor.metrics import is_metrics, is_run_config, read_metrics, read_run_config
from tinygrad2.optim import Adam
from tinygrad2.tokenizers.load import load_tokenizer
from tinygrad2.training.checkpoint import newest_checkpoint, read_checkpoint
from tinygrad2.training.run_state import RunState

SECONDS = 10  # that one file may take, on a busy machine


def model(path, tokenizer=""):
    """Load a model, compute logits, encode and decode with its tokenizer."""

    def read():
        gpt, tok, pretrained = load_pretrained(path, tokenizer=tokenizer)
        gpt(np.array([[1, 2]]))
        if tok:
            tok.decode(tok.encode("The cat 12"))
        return pretrained.start, pretrained.ends

    return read


def tokenizer(path):
    def read():
        tok = load_tokenizer(path)
        return tok.decode(tok.encode("abc the cat 12\n é")), tok.to_json()

    return read


def tokens(path, **more):
    def read():
        given = dict(name="", tokenizer="", vocab_size=300, val_fraction=0.1) | more
        data = open_dataset(path, world=World(), **given)
        for stream in (data.train, data.val):
            if stream:
                stream.read([0], min(8, len(stream)))

    return read


def checkpoint():
    """What --resume reads, up to the first step."""
    found, _ = newest_checkpoint(os.path.dirname(STEP.rstrip("/")), log=lambda line: None)
    RunState.from_checkpoint(found)
    found = read_checkpoint(STEP)
    RunState.from_checkpoint(found)
    gpt = GPT(GPTConfig.from_dict(found.config, source="c"))
    flat = FlatBuffers(gpt)
    try:
        gpt.load_state_dict(found.weights)
        Adam(flat).load_state_dict(found.moments, found.t, found.missed)
        flat.freeze(found.frozen)
    except ValueError as error:  # as snapshot.restore
        raise UserError(str(error)) from None


def metrics():
    """What plot and compare read; and what training asks of a file that it would replace."""
    is_metrics("run/metrics.jsonl"), is_run_config("run/config.json")
    read_metrics("run")
    read_run_config("run")


def debug_state():
    llmc.read_debug_state("debug.bin", GPTConfig(block_size=8, vocab_size=300, n_layer=1, n_head=2, n_embd=8).to_dict())


def questions(path):
    return lambda: load_examples(path, load_tokenizer("tokenizer.json"))


_HF = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
READERS = {  # name: (patterns of the files, what reads them)
    "weights": (("weights.bin",), model("weights.bin")),
    "checkpoint": (tuple(STEP + name for name in ("manifest.json", "state.json", "optimizer.bin", "weights.bin")),
                   checkpoint),
    "Hugging Face": (tuple("hf/" + name for name in _HF), model("hf")),
    "Hugging Face, pieces": (("sharded/model.safetensors.index.json", "sharded/model-*", "sharded/config.json"),
                             model("sharded")),
    "Hugging Face, vocabulary": (("hf2/vocab.json", "hf2/merges.txt", "hf2/config.json"), model("hf2")),
    "llm.c": (("llmc.bin",), model("llmc.bin", "tokenizer.json")),
    "llm.c, tokenizer": (("llmc_tokenizer.bin",), tokenizer("llmc_tokenizer.bin")),
    "llm.c, debug state": (("debug.bin",), debug_state),
    "nanoGPT": (("ckpt.pt",), model("ckpt.pt")),
    "nanoGPT, meta": (("chars/meta.pkl",), tokens("chars", vocab_size=2)),
    "tokenizer": (("tokenizer.json",), tokenizer("tokenizer.json")),
    "tokenizer, hf": (("hf/tokenizer.json",), tokenizer("hf/tokenizer.json")),
    "tiktoken": (("ranks.tiktoken",), tokenizer("ranks.tiktoken")),
    "tokens": (("tokens.bin",), tokens("tokens.bin")),
    "tokens, shards": (("tokens/*.bin",), tokens("tokens")),
    "tokens, npy": (("tokens.npy",), tokens("tokens.npy")),
    "tokens, raw": (("raw.bin",), tokens("raw.bin")),
    "cached tokens": (("data/.tinygrad2/a.txt-tokenizer-300.json", "data/.tinygrad2/*/progress.json",
                       "data/.tinygrad2/*/tokens_000000.bin"), tokens("data")),
    "metrics": (("run/metrics.jsonl", "run/config.json"), metrics),
    "dump": (("dump/dump.json", "dump/batch.bin", "dump/weights.bin"), lambda: replay.main(["dump"])),
    "questions": (("questions.jsonl",), questions("questions.jsonl")),
    "questions, llm.c": (("questions.bin",), questions("questions.bin")),
    "hosts": (("hosts",), lambda: read_hostfile("hosts")),
    "log of launch": (("launch.jsonl",), lambda: launch._is_log("launch.jsonl")),
    "prepared": (("prepared/prepared.json",), lambda: claim("prepared", ("train.bin", "val.bin", "meta.pkl"))),
}  # fmt: skip


def change(path, rng):
    """Change the file; returns what was changed."""
    kind = rng.random()
    if kind < 0.67 and (what := forge(path, rng)) is not None:
        return what
    with open(path, "rb") as file:
        raw = mutate(file.read(), rng)
    with open(path, "wb") as file:
        file.write(raw)
    folder, name = os.path.split(path)
    if kind > 0.83 and name != "manifest.json" and os.path.exists(os.path.join(folder, "manifest.json")):
        enter(os.path.join(folder, "manifest.json"), name, raw)
    return "damaged"


def attempt(name, rng):
    """(path, what was changed, what the reader said, what is wrong or ""), in a folder of make_inputs, which it leaves
    as it was."""
    patterns, read = READERS[name]
    path = rng.choice(sorted(glob.glob(rng.choice(patterns))))
    with _restored(path):
        what = change(path, rng)
        return path, what, *outcome_of(read)


def attempt_long_values(name, rng, share):
    """(path, what, problem) for each long value in a file of this reader that is not read as it should be; a random
    `share` of them is tried."""
    patterns, read = READERS[name]
    for path in sorted({path for pattern in patterns for path in glob.glob(pattern)}):
        with _restored(path):
            for what, content in long_values(path):
                if rng.random() < share:
                    with open(path, "wb") as file:
                        file.write(content)
                    folder, base = os.path.split(path)
                    if base != "manifest.json" and os.path.exists(os.path.join(folder, "manifest.json")):
                        enter(os.path.join(folder, "manifest.json"), base, content)
                    said, problem = outcome_of(read)
                    if problem:
                        yield path, what, problem, said


@contextlib.contextmanager
def _restored(path):
    """Afterwards the file, and the manifest beside it, are as they were."""
    saved = {}
    for each in (path, os.path.join(os.path.dirname(path), "manifest.json")):
        if os.path.exists(each):
            with open(each, "rb") as file:
                saved[each] = file.read()
    yield
    for each, content in saved.items():
        with open(each, "wb") as file:
            file.write(content)


def outcome_of(read):
    """(what the reader said, what is wrong or "")."""
    said, problem, begin = "read", "", time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"), kernels("reference"):
            read()
    except UserError as error:
        said = str(error)
        if not 15 < len(said) < 1100 or not said.isprintable():
            problem = f"{len(said)} characters: {said[:2000]!r}"
    except Exception:
        problem = traceback.format_exc()
    if time.perf_counter() - begin > SECONDS:
        problem = problem or f"took {time.perf_counter() - begin:.0f} s"
    return said, problem


def main():
    number, seed, total = int(sys.argv[1]), int(sys.argv[2]), Counter()
    quick()
    with tempfile.TemporaryDirectory() as top:
        base = os.path.join(top, "base")
        make_inputs(base)
        os.chdir(base)
        for name in READERS:
            if sys.argv[3:] and not any(word in name for word in sys.argv[3:]):
                continue
            rng, counts, begin = random.Random(f"{name} {seed}"), Counter(), time.perf_counter()
            for _ in range(number):
                path, what, said, problem = attempt(name, rng)
                counts["read" if said == "read" else "refused"] += 1
                if problem:
                    counts["FAULT"] += 1
                    print(f"FAULT {name}: {path}: {what[:200]!r}: {problem[-1500:]}", flush=True)
            print(f"{name}: {dict(counts)} in {time.perf_counter() - begin:.0f} s", flush=True)
            total += counts
        os.chdir("/")
    print("all", dict(total))


if __name__ == "__main__":
    main()
