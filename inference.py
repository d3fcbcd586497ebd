"""Write text with a trained GPT. One file holds all it takes: weights, config and tokenizer.

    python inference.py --prompt "Once upon a time"
    python inference.py --prompt "One sunny morning," --temperature 1.0 --top-p 0.9 --seed 7 --num-samples 3
    python inference.py --greedy --max-new-tokens 50
"""

import os
import sys
from dataclasses import dataclass

from tinygrad2.threads import plan_threads, threads_flag

if __name__ == "__main__":
    plan_threads(threads_flag(sys.argv))  # before NumPy is imported, and starts its own

import numpy as np

from models import GPT, GPTConfig
from models.quantize import quantize
from tinygrad2.backend import DEVICES, array_module
from tinygrad2.distributed import EarlyExit, World
from tinygrad2.files import UserError
from tinygrad2.flags import Parser, add_flags, flag, from_flags
from tinygrad2.function import use_kernels
from tinygrad2.module import FlatBuffers
from tinygrad2.tokenizer import StreamDecoder
from tinygrad2.tokenizers import load_tokenizer, tokenizer_from_json
from tinygrad2.weights import load_weights


@dataclass(frozen=True)
class InferenceConfig:
    """The flags of inference.py, checked."""

    weights: str = flag("trained_weights.bin", "file written by train_gpt2.py")
    tokenizer: str = flag("", "tokenizer file, for weights that were trained without", default="that of the weights")
    prompt: str = flag("Once upon a time", "how the text begins")
    max_new_tokens: int = flag(200, "longest continuation, in tokens; it ends earlier where the model ends the text")
    greedy: bool = flag(False, "always take the likeliest token (the same text every time)")
    temperature: float = flag(0.7, "below 1 safer, above 1 bolder; 0 is --greedy")
    top_k: int = flag(0, "draw among the k likeliest tokens only; 0 means all")
    top_p: float = flag(0.9, "draw among the likeliest tokens that together have this probability; 1 means all")
    num_samples: int = flag(1, "how many texts")
    seed: int = flag(1337, "fixes the draws; sample n of seed s is always the same")
    quantize: str = flag("none", "int8: read the weights as whole numbers, faster at a small cost in quality",
                         choices=("none", "int8"))
    threads: int = flag(None, "for BLAS and kernels", kind=int, default="all cores")
    device: str = flag("cpu", "cpu, or cuda (CuPy)", choices=DEVICES)
    kernels: str = flag("auto", "auto: fast kernels where there are any; reference: the pages of maths alone",
                        choices=("auto", "reference"))

    def __post_init__(self):
        for name, least in (("max_new_tokens", 1), ("num_samples", 1), ("top_k", 0), ("seed", 0), ("temperature", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, not {self.threads}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if not self.prompt:
            raise ValueError('--prompt is empty: the model needs a beginning, for example --prompt "Once upon a time"')


def parse(argv):
    parser = Parser(prog="inference.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_flags(parser, InferenceConfig)
    try:
        return from_flags(InferenceConfig, parser.parse_args(argv))
    except SystemExit:                                            # --help has been printed
        raise EarlyExit from None


def load(path, device="cpu", tokenizer=""):
    """(model in evaluation mode, tokenizer) from a weights file. Raises UserError, one line, for anything wrong."""
    weights = load_weights(path)
    if not weights.tokenizer and not tokenizer:
        raise UserError(f"{path}: was trained on tokens whose tokenizer is not known; give it with --tokenizer FILE")
    try:
        config = GPTConfig.from_dict(weights.config, source=path)
        tokenizer = load_tokenizer(tokenizer) if tokenizer else tokenizer_from_json(weights.tokenizer, path)
        model = GPT(config)
        model.load_state_dict(weights.tensors)
    except ValueError as error:
        named = isinstance(error, UserError) or str(error).startswith(str(path))
        raise UserError(str(error) if named else f"{path}: {error}") from None
    if tokenizer.n_vocab > config.vocab_size:
        raise UserError(f"{path}: {tokenizer.n_vocab} tokens in the tokenizer, {config.vocab_size} in the model")
    FlatBuffers(model, device)                                    # moves the parameters
    return model.eval(), tokenizer


def main(argv=None):
    config = parse(argv)
    use_kernels(config.kernels)
    array_module(config.device)
    model, tokenizer = load(config.weights, config.device, config.tokenizer)
    if config.quantize == "int8":
        quantize(model)
    prompt = tokenizer.encode(os.fsencode(config.prompt))          # bytes: a prompt need not be valid Unicode
    for n in range(config.num_samples):
        if config.num_samples > 1:
            print(f"--- sample {n + 1} of {config.num_samples}")
        write(config.prompt)
        decoder = StreamDecoder(tokenizer)                        # holds back half characters until they are whole
        rng = None if config.greedy else np.random.default_rng([config.seed, n])
        begin = [] if tokenizer.eot is None else [tokenizer.eot]  # every document began after an end-of-text
        for token in model.generate(
            begin + prompt, config.max_new_tokens, rng, config.temperature, config.top_k, config.top_p,
            stop=tokenizer.eot, n_vocab=tokenizer.n_vocab,
        ):  # fmt: skip
            write(decoder.feed(token))
        write(decoder.flush() + "\n")
    return 0


def write(text):
    """To stdout at once, in UTF-8 whatever the terminal's encoding is called."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    World().run(main)
