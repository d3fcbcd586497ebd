"""Write text with a trained GPT: one of yours, or GPT-2 as Hugging Face, llm.c or nanoGPT keep it.

    python inference.py --prompt "Once upon a time"
    python inference.py --prompt "One sunny morning," --temperature 1.0 --top-p 0.9 --seed 7 --num-samples 3
    python inference.py --greedy --max-new-tokens 50 --prompt "Tom" --prompt "Anna"
    python inference.py --weights data/gpt2/gpt2 --prompt "Hello, I'm a language model," --stop "."
    python inference.py --interactive
"""

import codecs
import contextlib
import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass

from tinygrad2.distributed.launch import leave
from tinygrad2.installation import refuse_name_clash
from tinygrad2.system.threads import plan_threads, threads_flag

if __name__ == "__main__":
    refuse_name_clash(leave)
    plan_threads(threads_flag(sys.argv))  # before NumPy is imported, and starts its own

import numpy as np

from models.generation import generate
from models.pretrained import load_pretrained
from models.quantize import quantize
from models.sampling import Sampling
from tinygrad2.backend import DEVICES, array_module
from tinygrad2.cli import Parser, add_flags, flag, from_flags
from tinygrad2.distributed.world import World
from tinygrad2.errors import EarlyExit, UserError
from tinygrad2.function import use_kernels
from tinygrad2.io.files import read_bytes
from tinygrad2.system.signals import StopRequest
from tinygrad2.tokenizers.streaming import TextStream, write
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, SPECIAL


@dataclass(frozen=True)
class InferenceConfig:
    """The flags of inference.py, checked."""

    weights: str = flag("trained_weights.bin", "what train_gpt2.py has written, or a model of others: a Hugging Face "
                                               "folder or model.safetensors, an llm.c .bin, a nanoGPT ckpt.pt")
    tokenizer: str = flag("", "tokenizer file or folder, where the weights bring none", default="that of the weights")
    block_size: int = flag(None, "crop the context to so many tokens", kind=int, default="that of the weights")
    prompt: tuple = flag((), "how the text begins; several times for several texts", default="Once upon a time")
    prompt_file: str = flag("", "file with the prompt; a line <|endoftext|> between several", default="none")
    interactive: bool = flag(False, "ask for prompts; an empty line goes on with the last text")
    special: str = flag("refused", "what <|endoftext|> in a prompt is: refused; allowed: the end of a text; ordinary: "
                                   "letters like any others", choices=SPECIAL)
    start_token: str = flag("auto", "put the end-of-text token before the prompt: yes, no, or auto (yes for models "
                                    "that were trained here, where every text began so)", choices=("auto", "yes", "no"))
    max_new_tokens: int = flag(200, "longest continuation, in tokens; it ends earlier where the model ends the text")
    greedy: bool = flag(False, "always take the likeliest token (the same text every time)")
    temperature: float = flag(0.7, "below 1 safer, above 1 bolder; 0 is --greedy")
    top_k: int = flag(0, "draw among the k likeliest tokens only; 0 means all")
    top_p: float = flag(0.9, "draw among the likeliest tokens that together have this probability; 1 means all")
    min_p: float = flag(0.0, "draw among the tokens at least this share as likely as the likeliest; 0 means all")
    repetition_penalty: float = flag(1.0, "above 1: what is in the text already becomes less likely")
    stop: tuple = flag((), "end the text before this; may be given several times (in bash a new line is $'\\n')",
                       default="none")
    num_samples: int = flag(1, "how many texts per prompt")
    batch_size: int = flag(8, "texts that are written at the same time")
    seed: int = flag(1337, "fixes the draws; sample n of seed s is always the same")
    json: bool = flag(False, "one JSON object per text and line: prompt, text, token ids, their log-probabilities (the "
                             "model's own, before any knob), why it ended")
    quantize: str = flag("none", "int8: read the weights as whole numbers, faster at a small cost in quality",
                         choices=("none", "int8"))
    threads: int = flag(None, "for BLAS and kernels", kind=int, default="all cores")
    device: str = flag("cpu", "cpu, or cuda (CuPy)", choices=DEVICES)
    kernels: str = flag("auto", "auto: fast kernels where there are any; reference: the pages of maths alone",
                        choices=("auto", "reference"))

    def __post_init__(self):
        for name, least in (("max_new_tokens", 1), ("num_samples", 1), ("top_k", 0), ("seed", 0), ("temperature", 0),
                            ("batch_size", 1), ("block_size", 1), ("threads", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"--min-p must be in 0 .. 1, not {self.min_p}")
        if not 0 < self.repetition_penalty <= 1000:
            raise ValueError(f"--repetition-penalty must be above 0 and at most 1000, not {self.repetition_penalty}")
        if self.temperature == float("inf"):
            raise ValueError("--temperature must be a number that is finite, not inf")
        if "" in self.stop:
            raise ValueError("--stop must not be empty")
        if self.interactive + bool(self.prompt_file) + bool(self.prompt) > 1:
            raise ValueError("--prompt, --prompt-file and --interactive exclude each other")
        if self.interactive and (self.json or self.num_samples > 1):
            raise ValueError("--interactive writes one text at a time, as it comes: without --json and --num-samples")

    @property
    def sampling(self):
        """The knobs of drawing."""
        temperature = 0.0 if self.greedy else self.temperature
        return Sampling(temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


def parse(argv):
    parser = Parser(prog="inference.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_flags(parser, InferenceConfig)
    try:
        return from_flags(InferenceConfig, parser.parse_args(argv))
    except SystemExit:                                            # --help has been printed
        raise EarlyExit from None


def load(path, device="cpu", tokenizer="", block_size=None):
    """(model in evaluation mode, tokenizer) of a model on disk. Raises UserError, one line, for anything wrong."""
    return _load(path, device, tokenizer, block_size)[:2]


def _load(path, device, tokenizer, block_size):
    model, tokenizer, found = load_pretrained(path, block_size, device, tokenizer)
    if tokenizer and tokenizer.n_vocab < found.config["vocab_size"] - 1000:
        found.notes.append(f"the tokenizer has {tokenizer.n_vocab:,} tokens, the model {found.config['vocab_size']:,}: "
                           "is it the one that the model has learned with?")
    for note in found.notes:
        print(f"note      {note}", file=sys.stderr)
    if tokenizer is None:
        raise UserError(f"{path}: its tokenizer is not known; give it with --tokenizer (GPT-2's: python "
                        "data/gpt2/prepare.py --tokenizer-only)")
    return model, tokenizer, found


class Writer:
    """A model that writes: what `main` needs of it. `begin` holds the tokens before every prompt."""

    def __init__(self, config):
        self.config = config
        self.model, self.tokenizer, found = _load(config.weights, config.device, config.tokenizer, config.block_size)
        self.end, eot, wanted = found.end, self.tokenizer.eot, config.start_token
        if wanted == "auto":
            wanted = "yes" if found.trained_here else "no"
        if config.start_token == "yes" and eot is None:
            raise UserError("--start-token yes: this tokenizer has no end-of-text token")
        self.begin = [eot] if wanted == "yes" and eot is not None else []
        if config.quantize == "int8":
            quantize(self.model)

    def encode(self, prompt):
        """The ids of a prompt, with the start token where there is one."""
        special = self.config.special
        for token in getattr(self.tokenizer, "special", ()) if special == "refused" else ():
            if token in prompt:
                raise UserError(f"{token} is in the prompt; --special allowed takes it for the token of that name, "
                                "--special ordinary for letters like any others")
        ids = self.begin + self.tokenizer.encode(os.fsencode(prompt), special)   # bytes: it need not be valid Unicode
        T = self.model.config.block_size
        if len(ids) > T:
            print(f"note      a prompt of {len(ids):,} tokens: the model sees the last {T:,} of them", file=sys.stderr)
        if ids:
            return ids
        if self.tokenizer.eot is None:
            raise UserError('--prompt is empty: the model needs a beginning, for example --prompt "Once upon a time"')
        return [self.tokenizer.eot]

    def steps(self, ids, number, ended):
        """(number of the text, token, log-probability, is it the last one) as texts grow; all prompts together."""
        c = self.config
        rngs = [None if c.sampling.temperature == 0 else np.random.default_rng([c.seed, n]) for n in number]
        n_vocab = self.tokenizer.n_vocab
        return generate(
            self.model, ids, c.max_new_tokens, rngs, c.sampling, self.end, n_vocab, c.batch_size, c.json, ended
        )


def main(argv=None):
    config = parse(argv)
    use_kernels(config.kernels)
    array_module(config.device)
    writer = Writer(config)
    if config.interactive:
        return converse(writer)
    write_texts(writer, _prompts(config))
    return 0


def _prompts(config):
    if not config.prompt_file:
        return list(config.prompt) or ["Once upon a time"]
    text = os.fsdecode(read_bytes(config.prompt_file).removeprefix(codecs.BOM_UTF8))
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")     # the end of the last line is the editor's
    prompts = [[]]
    for line in lines:
        if line == END_OF_TEXT:
            prompts.append([])
        else:
            prompts[-1].append(line)
    prompts = [prompt for prompt in map("\n".join, prompts) if prompt]
    if not prompts:
        raise UserError(f"{config.prompt_file}: there is no prompt in it")
    return prompts


def write_texts(writer, prompts):
    """Continue all prompts, num_samples times each: the first text as it comes, the others when their turn comes."""
    config, tokenizer = writer.config, writer.tokenizer
    texts = [prompt for prompt in prompts for _ in range(config.num_samples)]
    ids = [encoded for encoded in map(writer.encode, prompts) for _ in range(config.num_samples)]
    streams = [TextStream(tokenizer, config.stop) for _ in texts]
    shown, said, finished, ended = 0, [""] * len(texts), {}, set()
    tokens, logprobs = [[] for _ in texts], [[] for _ in texts]
    if not config.json:
        write(_head(config, texts, 0) + texts[0])
    samples = [n % config.num_samples for n in range(len(texts))]
    for step in writer.steps(ids, samples, ended):
        n, stream = step.text, streams[step.text]
        if n in finished:
            continue
        if step.token is not None:
            said[n] += stream.feed(step.token)
            tokens[n].append(step.token)
            logprobs[n].append(step.logprob)
        if step.last or stream.stopped:
            said[n] += stream.flush()
            finished[n] = "stop string" if stream.stopped else "end of text" if step.token is None else "length"
            ended.add(n)
        while shown < len(texts) and not config.json:
            write(said[shown])
            said[shown] = ""
            if shown not in finished:
                break
            shown += 1
            write("\n" + (_head(config, texts, shown) + texts[shown] if shown < len(texts) else ""))
        while shown in finished and config.json:
            write(json.dumps(dict(
                prompt=os.fsencode(texts[shown]).decode("utf-8", "replace"), sample=samples[shown] + 1,
                text=said[shown], prompt_ids=ids[shown], ids=tokens[shown], logprobs=logprobs[shown],
                ended_by=finished[shown],
            )) + "\n")  # fmt: skip
            shown += 1


def _head(config, texts, n):
    if len(texts) == 1:
        return ""
    sample = f"sample {n % config.num_samples + 1} of {config.num_samples}"
    if len(texts) == config.num_samples:
        return f"--- {sample}\n"
    prompt = f"prompt {n // config.num_samples + 1}"
    return f"--- {prompt}, {sample}\n" if config.num_samples > 1 else f"--- {prompt}\n"


def converse(writer):
    """Ask for a beginning, write what follows, and again, until the input ends. Ctrl-C ends a text, not the program."""
    ids = []
    for number, prompt in enumerate(_lines()):
        try:
            ids = writer.encode(prompt) if prompt or not ids else ids
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        stream = TextStream(writer.tokenizer, writer.config.stop)
        write(prompt)
        with StopRequest(talk=False) as stop:                     # the text ends after the token that is being made
            for step in writer.steps([ids], [number], set()):
                if step.token is not None:
                    ids = [*ids, step.token]
                    write(stream.feed(step.token))
                if stream.stopped or stop.signal:
                    break
        write(stream.flush() + "\n")
        if stop.signal not in (None, signal.SIGINT):
            return 128 + stop.signal
    return 0


def _lines():
    """What is typed, line by line; from a keyboard with editing and history, where Python has them."""
    if sys.stdin is None:
        raise UserError("--interactive: there is no input")
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.removesuffix("\n").removesuffix("\r") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")                       # input() makes use of it
    write("A line is continued; an empty line goes on with the last text. Ctrl-C stops a text; Ctrl-D ends.\n")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
    write("\n")


if __name__ == "__main__":
    World().run(main)
