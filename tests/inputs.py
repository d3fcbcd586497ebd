"""A folder with one of every kind of file that the programs read, and the command lines that read them.

    make_inputs(folder)        writes the folder
    READS                      [Read]: a program, its words, the files that it reads
"""

import os
import shutil
import sys
import warnings
from dataclasses import dataclass

import numpy as np
from command_lines import SMALL, make_folder, programs, run_forked

from models import GPT, GPTConfig
from tinygrad2.datasets.token_files import write_raw, write_tokens
from tinygrad2.evaluation.hellaswag import MAGIC
from tinygrad2.interop import hf, llmc, nanogpt
from tinygrad2.interop.llmc import compute_debug_state
from tinygrad2.io.files import write_json
from tinygrad2.io.weights import write_tensors
from tinygrad2.monitor.dump import write_dump
from tinygrad2.system import gemm_peak
from tinygrad2.tokenizers.export import write_tokenizer
from tinygrad2.tokenizers.tokenizer import Tokenizer

SIZES = {"block_size": 8, "vocab_size": 300, "n_layer": 1, "n_head": 2, "n_embd": 8}
META = b"\x80\x03}q\x00(X\x0a\x00\x00\x00vocab_sizeq\x01K\x02X\x04\x00\x00\x00stoiq\x02}q\x03(X\x01\x00\x00\x00aq\x04K\x00X\x01\x00\x00\x00bq\x05K\x01uX\x04\x00\x00\x00itosq\x06}q\x07(K\x00h\x04K\x01h\x05uu."  # noqa: E501


SHAPE = [*"--n-layer 1 --n-head 2 --n-embd 8 --block-size 8 --batch-size 4 --steps 2 --sample-tokens 2".split(),
         "--kernels", "reference"]


@dataclass(frozen=True)
class Read:
    """A program (a name of PROGRAMS), its words, and the files that it reads then."""

    program: str
    words: tuple
    files: tuple

    def __str__(self):
        return " ".join((self.program, *self.words))


def _train(words, *files):
    return Read("train_gpt2.py", (*SHAPE, "--run-dir", "new", "--weights-out", "new.bin", *words.split()), files)


RUN = ("manifest.json", "state.json", "weights.bin", "optimizer.bin", "metrics.jsonl")
STEP = "run/checkpoints/step_00000002/"
HF = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
GENERATE = ("--max-new-tokens", "2", "--kernels", "reference", "--prompt", "The cat", "--weights")
WRITERS = ("train_gpt2.py", "shakespeare_char", "plot")  # what they write is read again
READS = [
    _train("--data data --vocab-size 300", "data/a.txt",
           "data/.tinygrad2/a.txt-tokenizer-300.json", "data/.tinygrad2/*/progress.json",
           "data/.tinygrad2/*/tokens_000000.bin"),
    _train("--data text.txt --tokenizer tokenizer.json --hellaswag questions.jsonl", "text.txt", "tokenizer.json",
           "questions.jsonl"),
    _train("--data text.txt --tokenizer tokenizer.json --hellaswag questions.bin", "questions.bin"),
    _train("--data tokens.bin --tokenizer tokenizer.json", "tokens.bin"),
    _train("--data tokens --vocab-size 300", "tokens/x_train_000001.bin", "tokens/x_val_000000.bin"),
    _train("--data tokens.npy --vocab-size 300", "tokens.npy"),
    _train("--data raw.bin --vocab-size 300", "raw.bin"),
    _train("--data text.txt --init-from hf", "hf/config.json", "hf/model.safetensors"),
    _train("--data text.txt --init-from ckpt.pt --tokenizer tokenizer.json", "ckpt.pt"),
    _train("--data chars", "chars/train.bin", "chars/meta.pkl"),
    _train("--data text.txt --vocab-size 300 --metrics metrics.jsonl", "metrics.jsonl", "new",
           "new/metrics.jsonl", "new/config.json", "new.bin"),
    Read("train_gpt2.py", (*"--resume --run-dir run --steps 3 --kernels reference --weights-out new.bin".split(),),
         (*(STEP + name for name in RUN), "run/metrics.jsonl", "run/config.json", "run/.lock", "run/checkpoints",
          "text.txt", ".tinygrad2/*/progress.json", ".tinygrad2/*/tokens_000000.bin")),
    Read("inference.py", (*GENERATE, "weights.bin"), ("weights.bin",)),
    Read("inference.py", (*GENERATE, "hf"), tuple("hf/" + name for name in HF)),
    Read("inference.py", (*GENERATE, "sharded"),
         ("sharded/model.safetensors.index.json", "sharded/model-00001-of-00002.safetensors", "sharded/config.json")),
    Read("inference.py", (*GENERATE, "hf2"), ("hf2/vocab.json", "hf2/merges.txt", "hf2/config.json")),
    Read("inference.py", (*GENERATE, "llmc.bin", "--tokenizer", "tokenizer.json"), ("llmc.bin", "tokenizer.json")),
    Read("inference.py", (*GENERATE, "llmc.bin", "--tokenizer", "llmc_tokenizer.bin"), ("llmc_tokenizer.bin",)),
    Read("inference.py", (*GENERATE, "ckpt.pt", "--tokenizer", "ranks.tiktoken"), ("ckpt.pt", "ranks.tiktoken")),
    Read("inference.py", ("--max-new-tokens", "2", "--weights", "weights.bin", "--prompt-file", "prompt.txt"),
         ("prompt.txt",)),
    Read("eval perplexity", ("--weights", "weights.bin", "--data", "text.txt", "--limit", "50"), ("text.txt",)),
    Read("eval perplexity", ("--weights", "weights.bin", "--data", "tokens.bin", "--limit", "50"), ("tokens.bin",)),
    Read("eval hellaswag", ("--weights", "weights.bin", "--data", "questions.jsonl", "--results", "answers.jsonl"),
         ("questions.jsonl", "answers.jsonl")),
    Read("eval hellaswag", ("--weights", "weights.bin", "--data", "questions.bin"), ("questions.bin",)),
    Read("convert", ("llmc.bin", "out", "--to", "hf"), ("llmc.bin", "out", "out/config.json")),
    Read("convert", ("hf", "out.bin", "--to", "trained"), (*("hf/" + name for name in HF), "out.bin")),
    Read("convert", ("tokenizer.json", "out", "--to", "tiktoken"), ("tokenizer.json", "out")),
    Read("convert", ("tokens.npy", "out.bin", "--to", "llmc"), ("tokens.npy", "out.bin")),
    Read("convert", ("weights.bin", "out.bin", "--to", "llmc-debug", "--tokens", "tokens.bin", "--batch", "1x4"),
         ("weights.bin", "tokens.bin")),
    Read("plot", ("run", "--out", "curves"), ("run/metrics.jsonl", "run/config.json", "curves.svg", "curves.html")),
    Read("explain", ("--weights", "weights.bin", "--prompt", "The cat"), ("weights.bin", "explain.html")),
    Read("explain", ("--weights", "weights.bin", "--prompt", "The cat", "--step"), ("explain_step.html",)),
    Read("compare", ("run",), ("run/metrics.jsonl", "run/config.json")),
    Read("replay", ("dump",), ("dump/dump.json", "dump/batch.bin", "dump/weights.bin")),
    Read("plan", ("--init-from", "hf", "--data", "text.txt"), ("hf/config.json", "hf/model.safetensors", "text.txt")),
    Read("verify", (*SMALL,), ("text.txt",)),
    Read("launch", ("-n", "1", "-f", "hosts", "--log", "launch.jsonl", "--", "--steps", "1"),
         ("hosts", "launch.jsonl")),
    Read("shakespeare_char", ("--text", "text.txt", "--out", "prepared"),
         ("text.txt", "prepared/prepared.json", "prepared/train.bin", "prepared")),
]  # fmt: skip


def quick():
    """Leave out, in this process, what takes time and is not looked at: the speed of the machine, and fsync."""
    gemm_peak._fastest_product = lambda xp, n, seconds: 1.0
    os.fsync = lambda handle: None
    warnings.simplefilter("ignore", RuntimeWarning)  # as install_hooks, which is not called here


def mains():
    """{name: main(argv)} of the programs in READS."""
    from data.shakespeare_char.prepare import main as prepare
    from tinygrad2 import __main__ as commands
    from tinygrad2 import cli

    found = {program.name: program.main for program in programs()}
    found["launch"] = lambda argv: commands.main(["launch", *argv])

    def prepared(argv):
        sys.argv = ["prepare.py", *argv]
        return cli.call(prepare, "prepare.py")

    return found | {"shakespeare_char": prepared}


def make_inputs(folder):
    """Write the folder: that of command_lines.py, models and tokenizers of other projects, tokens, a dump, answers."""
    make_folder(folder)
    here = os.getcwd()
    os.chdir(folder)
    try:
        _write_files()
    finally:
        os.chdir(here)
    run = mains()
    for read in READS:
        if "--resume" not in read.words and (read.program in WRITERS or "--results" in read.words):
            outcome = run_forked(run[read.program], read.words, folder, seconds=600)
            assert outcome.code == 0, (read, outcome)
    with open(os.path.join(folder, "launch.jsonl"), "w", encoding="ascii") as file:
        file.write('{"time": "2026-01-01 00:00:00", "start": 1, "ranks": 1, "step": 0}\n')


def _write_files():
    with open("text.txt", "rb") as file:
        text = file.read()
    tokenizer = Tokenizer.train([text], SIZES["vocab_size"])
    config = GPTConfig(**SIZES)
    model = GPT(config, seed=1)
    state = model.state_dict()
    tokenizer.save("tokenizer.json")
    hf.write_folder("hf", state, config.to_dict())
    write_tokenizer(tokenizer, "hf", "hf")
    write_tokenizer(tokenizer, "ranks.tiktoken", "tiktoken")
    write_tokenizer(tokenizer, "llmc_tokenizer.bin", "llmc")
    llmc.write_model("llmc.bin", state, config.to_dict())
    nanogpt.write_nanogpt("ckpt.pt", state, config.to_dict())
    x = np.arange(8).reshape(1, 8)
    llmc.write_debug_state("debug.bin", compute_debug_state(model, x, x), config.to_dict())
    os.makedirs("sharded")
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_shard(os.path.join("sharded", file), {name: state[name] for name in part})
        weight_map |= {name: file for name in part}
    write_json("sharded/model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    shutil.copytree("hf", "hf2")
    os.remove("hf2/tokenizer.json")
    for name in os.listdir("hf"):
        if name != "model.safetensors":
            shutil.copy(os.path.join("hf", name), "sharded")
    for folder in ("hf", "hf2", "sharded"):
        write_json(os.path.join(folder, "generation_config.json"), {"eos_token_id": 256, "do_sample": True, "top_k": 5})
    finding = dict(phase="forward", op="add", kernel="", layer="", value="output", nan=1, inf=0, size=1, inputs=[])
    facts = dict(format="tinygrad2-dump", version=1, step=1, first_row=0, batch_size=1, seed=1, recompute=False)
    write_dump("dump", model, tokenizer, x, x, {**facts, "kernels": "auto", "finding": finding})
    ids = np.arange(2000) % 250
    for folder in ("tokens", "chars", "data"):
        os.makedirs(folder)
    write_tokens("tokens.bin", ids)
    write_tokens("tokens/x_train_000001.bin", ids)
    write_tokens("tokens/x_val_000000.bin", ids[:500])
    np.save("tokens.npy", ids.astype(np.uint16))
    write_raw("raw.bin", ids)
    write_raw("chars/train.bin", ids % 2)
    shutil.copy("text.txt", "data/a.txt")
    shutil.copy("text.txt", "prompt.txt")
    with open("chars/meta.pkl", "wb") as file:
        file.write(META)
    with open("hosts", "w", encoding="ascii") as file:
        file.write("localhost:1\n")
    _write_questions(tokenizer)


def save_shard(path, tensors):
    """Write some tensors of a model as safetensors."""
    with open(path, "wb") as file:
        write_tensors(file, tensors)


def _write_questions(tokenizer):
    """questions.bin, as llm.c has it."""
    records, longest = [], 0
    for index in range(3):
        parts = [tokenizer.encode(text) for text in ("The cat", " sat", " ran", " is", " on")]
        body = [word for part in parts for word in (len(part), *part)]
        size = 2 * (5 + len(body))
        records += [65535, size, index, 0, 4, *body]
        longest = max(longest, size)
    header = np.zeros(256, "<i4")
    header[:4] = MAGIC, 1, 3, longest
    with open("questions.bin", "wb") as file:
        file.write(header.tobytes() + np.array(records, "<u2").tobytes())
