"""Generate text with a trained GPT: your own, or GPT-2 from Hugging Face, llm.c or nanoGPT.

    python inference.py --prompt "Once upon a time"
    python inference.py --prompt "One sunny morning," --temperature 1.0 --top-p 0.9 --seed 7 --num-samples 3
    python inference.py --greedy --max-new-tokens 50 --prompt "Tom" --prompt "Anna"
    python inference.py --weights data/gpt2/gpt2 --prompt "Hello, I'm a language model," --stop "."
    python inference.py --interactive
"""

import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from functools import partial

from tinygrad2.cli import install_hooks

if __name__ == "__main__":
    install_hooks()

from tinygrad2.distributed.launch import exit_with_line
from tinygrad2.system.installation import refuse_name_clash, require_libraries
from tinygrad2.system.threads import plan_threads, threads_flag

refuse_name_clash(exit_with_line if __name__ == "__main__" else None)
if __name__ == "__main__":
    plan_threads(threads_flag(sys.argv))  # before NumPy is imported and starts its own threads
    require_libraries(exit_with_line)

import ops
from models.pretrained import load_pretrained
from models.quantize import LinearBfloat16, quantize
from models.sampling import Sampling
from models.text_generation import in_order, stream_texts
from tinygrad2.backend import DEVICES, array_module
from tinygrad2.cli import Parser, add_flags, callable_main, flag, from_flags, input_path, run, summary
from tinygrad2.errors import UserError
from tinygrad2.halves import check_dtype
from tinygrad2.io.text_file import read_text
from tinygrad2.precision import DTYPES, PRECISIONS, check_flags, computing, precision_of
from tinygrad2.system.signals import StopRequest
from tinygrad2.system.streams import is_session, is_terminal, print_error, write
from tinygrad2.tokenizers.mapped import DecodeOnlyTokenizer
from tinygrad2.tokenizers.tokenizer import END_OF_TEXT, SPECIAL


@dataclass(frozen=True)
class InferenceConfig:
    """The flags of inference.py, checked. Raises ValueError, naming the flag, for values that are not possible."""

    weights: str = input_path("trained_weights.bin",
                              "what train_gpt2.py has written, or a third-party model: a Hugging Face folder or "
                              "model.safetensors, an llm.c .bin, a nanoGPT ckpt.pt")
    tokenizer: str = input_path("", "tokenizer file or folder, for weights that do not include one",
                                default="that of the weights")
    block_size: int = flag(None, "crop the context to this many tokens", kind=int, default="that of the weights")
    prompt: tuple = flag((), "how the text begins; repeat it for several texts", default="Once upon a time")
    prompt_file: str = input_path("", "file with the prompt, or - for standard input; a line <|endoftext|> separates "
                                      "several", default="none")
    interactive: bool = flag(False, "ask for prompts; an empty line continues the last text")
    special: str = flag("refused", "<|endoftext|> in a prompt: refused is an error; allowed is the end-of-text token; "
                                   "ordinary is plain characters", choices=SPECIAL)
    start_token: str = flag("auto", "put the end-of-text token before the prompt: yes, no, or auto (yes for models "
                                    "trained here, where it precedes every text)", choices=("auto", "yes", "no"))
    max_new_tokens: int = flag(200, "longest continuation, in tokens; it ends earlier if the model ends the text")
    greedy: bool = flag(False, "always take the most likely token (the same text every time)")
    temperature: float = flag(0.7, "below 1 safer, above 1 bolder; 0 is --greedy")
    top_k: int = flag(0, "draw among the k most likely tokens only; 0 means all")
    top_p: float = flag(0.9, "draw among the most likely tokens that together have this probability; 1 means all")
    min_p: float = flag(0.0, "draw among tokens with at least this fraction of the highest probability; 0 means all")
    repetition_penalty: float = flag(1.0, "above 1: tokens that are in the text already become less likely")
    stop: tuple = flag((), "end the text before this string; may be repeated (in bash a new line is $'\\n')",
                       default="none")
    num_samples: int = flag(1, "number of texts per prompt")
    batch_size: int = flag(8, "number of texts that are generated in parallel")
    seed: int = flag(1337, "fixes the draws; sample n of seed s is always the same")
    json: bool = flag(False, "print one JSON object per text and line: prompt, text, token ids, log-probabilities (the "
                             "model's own, before temperature and the like), and why it ended")
    quantize: str = flag("none", "int8: round the weight matrices to 8 bits, faster at a small cost in quality",
                         choices=("none", "int8"))
    threads: int = flag(None, "for BLAS and kernels", kind=int, default="all cores")
    device: str = flag("cpu", "cpu, or cuda (an NVIDIA GPU)", choices=DEVICES)
    kernels: str = flag("auto", "auto: fast kernels if there are any; reference: the reference implementations only",
                        choices=("auto", "reference"))
    dtype: str = flag("float32", "bfloat16, or float16 on a GPU: products take such numbers, as in a training with it",
                      choices=DTYPES)
    matmul_precision: str = flag("highest", "errors that matrix products may have: highest (those of float32), high "
                                            "(5e-6) or medium (3e-3, bfloat16), where that is faster",
                                 choices=PRECISIONS)

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
        check_flags(self)
        if self.temperature == float("inf"):
            raise ValueError("--temperature must be finite, not inf")
        if "" in self.stop:
            raise ValueError("--stop must not be empty")
        if self.interactive + bool(self.prompt_file) + bool(self.prompt) > 1:
            raise ValueError("--prompt, --prompt-file and --interactive exclude each other")
        if self.interactive and (self.json or self.num_samples > 1):
            raise ValueError("--interactive writes one text at a time: leave out --json and --num-samples")

    @property
    def sampling(self):
        """How tokens are drawn."""
        temperature = 0.0 if self.greedy else self.temperature
        return Sampling(temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


def parse(argv):
    parser = Parser(prog="inference.py", description=summary(__doc__))
    add_flags(parser, InferenceConfig)
    return from_flags(InferenceConfig, parser.parse_args(argv))


def load(path, device="cpu", tokenizer="", block_size=None):
    """(model in evaluation mode, tokenizer, Pretrained) of a model on disk; prints its notes to stderr.

    Raises UserError, one line, for anything that cannot be used, and if the tokenizer is not known.
    """
    model, tokenizer, pretrained = load_pretrained(path, block_size, device, tokenizer)
    V = pretrained.config["vocab_size"]
    if tokenizer and tokenizer.n_vocab < V - 1000:
        pretrained.notes.append(f"the tokenizer has {tokenizer.n_vocab:,} tokens, the model {V:,}: is it the one that "
                                "the model was trained with?")
    for note in pretrained.notes:
        print_error(f"note      {note}")
    if tokenizer is None:
        raise UserError(f"{path}: its tokenizer is not known; pass it with --tokenizer (GPT-2's: python "
                        "data/gpt2/prepare.py --tokenizer-only)")
    return model, tokenizer, pretrained


@callable_main
def main(argv=None):
    """Generate the texts; returns the exit code. `argv`: the flags; by default the process's, in a notebook none."""
    config = parse(argv)
    with computing(config):
        return generate(config)


def generate(config):
    """Load the model, and print or stream the texts; returns the exit code."""
    check_dtype(array_module(config.device), config.dtype)
    model, tokenizer, pretrained = load(config.weights, config.device, config.tokenizer, config.block_size)
    if config.quantize == "int8":
        model.config.require_gpt("--quantize int8")
        quantize(model)
    elif config.dtype != "float32":
        model.config.require_gpt(f"--dtype {config.dtype}")
        if config.device == "cpu":                                # on a GPU the weights have 16-bit copies (halves.py)
            quantize(model, LinearBfloat16)
    start = start_ids(config.start_token, pretrained)
    encode = partial(encode_prompt, config.special, pretrained, start, model.config.block_size)
    stream = partial(
        stream_texts, model, tokenizer, max_new_tokens=config.max_new_tokens, sampling=config.sampling,
        seed=config.seed, end=pretrained.ends, stops=config.stop, batch_size=config.batch_size, logprobs=config.json,
    )  # fmt: skip
    if config.interactive:
        note_products(config)
        return converse(encode, stream)
    prompts = [(prompt, encode(prompt)) for prompt in read_prompts(config, tokenizer)]
    requests = [Request(prompt, ids, sample) for prompt, ids in prompts for sample in range(config.num_samples)]
    note_products(config)
    pieces = stream([request.ids for request in requests], samples=[request.sample for request in requests])
    if config.json:
        print_json(requests, in_order(pieces))
    else:
        print_texts(requests, in_order(pieces), config.num_samples)
    return 0


def note_products(config):
    """Say which code multiplies, if a precision was asked for."""
    if precision_of(config) != "highest":
        products = ops.describe_products(config.device, config.kernels, precision_of(config))
        print_error(f"note      products: {products}")


# -- prompts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A text to be generated: its prompt, the ids of the prompt, and which sample of that prompt it is, from 0."""

    prompt: str
    ids: list
    sample: int


def read_prompts(config, tokenizer):
    """The prompts of the command line or of --prompt-file. Raises UserError for a file without one."""
    if not config.prompt_file:
        return list(config.prompt) or ["" if isinstance(tokenizer, DecodeOnlyTokenizer) else "Once upon a time"]
    text = os.fsdecode(read_text(config.prompt_file, refused=("packed",)))  # a page of HTML may well be a prompt
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")     # the last line break is the editor's
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


def start_ids(choice, pretrained):
    """The ids before every prompt: the token that begins a text (for most models the end-of-text token), or none.
    Raises UserError if --start-token asks for a token that neither model nor tokenizer has."""
    if choice == "yes" and pretrained.start is None:
        raise UserError("--start-token yes: this tokenizer has no end-of-text token")
    wanted = choice == "yes" or (choice == "auto" and pretrained.trained_here)
    return [pretrained.start] if wanted and pretrained.start is not None else []


def encode_prompt(special, pretrained, start, block_size, prompt):
    """The ids of a prompt after those of `start`: at least one. Raises UserError for special tokens that --special
    refuses, and for an empty prompt if there is no end-of-text token."""
    tokenizer = pretrained.tokenizer
    for token in getattr(tokenizer, "special", ()) if special == "refused" else ():
        if token in prompt:
            raise UserError(f"{token} is in the prompt; --special allowed reads it as the token of that name, "
                            "--special ordinary as plain characters")
    ids = start + (tokenizer.encode(os.fsencode(prompt), special) if prompt else [])  # bytes: any are possible
    if len(ids) > block_size:
        print_error(f"note      a prompt of {len(ids):,} tokens: the model sees the last {block_size:,} of them")
    if ids:
        return ids
    if pretrained.start is None:
        raise UserError('--prompt is empty: the model needs a beginning, for example --prompt "Once upon a time"')
    return [pretrained.start]


# -- printing ----------------------------------------------------------------------------------------------------------


def print_texts(requests, pieces, num_samples):
    """Print prompts and their texts as they come; if there are several, each has a heading."""
    openings = [_heading(n, len(requests), num_samples) + request.prompt for n, request in enumerate(requests)]
    write(openings[0])
    with errors_on_their_own_line():
        for piece in pieces:
            write(piece.text)
            if piece.finish_reason:
                is_last = piece.index + 1 == len(requests)
                write("\n" if is_last else "\n" + openings[piece.index + 1])


@contextlib.contextmanager
def errors_on_their_own_line():
    """Ends the line of a text that is not complete when a UserError is raised."""
    try:
        yield
    except UserError:
        write("\n")
        raise


def _heading(n, n_texts, num_samples):
    if n_texts == 1:
        return ""
    prompt, sample = divmod(n, num_samples)
    parts = [f"prompt {prompt + 1}"] if n_texts > num_samples else []
    parts += [f"sample {sample + 1} of {num_samples}"] if num_samples > 1 else []
    return f"--- {', '.join(parts)}\n"


def print_json(requests, pieces):
    """Print a line of JSON for each text, when it is complete."""
    text, ids, logprobs = "", [], []
    for piece in pieces:
        text += piece.text
        if piece.token is not None:
            ids.append(piece.token)
            logprobs.append(piece.logprob)
        if piece.finish_reason:
            request = requests[piece.index]
            write(json.dumps(dict(
                prompt=os.fsencode(request.prompt).decode("utf-8", "replace"), sample=request.sample + 1, text=text,
                prompt_ids=request.ids, ids=ids, logprobs=logprobs, ended_by=piece.finish_reason,
            )) + "\n")  # fmt: skip
            text, ids, logprobs = "", [], []


# -- conversation ------------------------------------------------------------------------------------------------------


def converse(encode, stream):
    """Ask for a beginning, continue it, and again, until the input ends. Ctrl-C ends a text, not the program. Returns
    the exit code."""
    ids = []
    for number, prompt in enumerate(_lines()):
        try:
            ids = encode(prompt) if prompt or not ids else ids
        except UserError as error:
            print_error(error)
            continue
        write(prompt)
        with errors_on_their_own_line(), StopRequest(verbose=False) as stop:  # the text ends after the current token
            for piece in stream([ids], samples=[number], interrupted=lambda: stop.signal):
                ids = ids if piece.token is None else [*ids, piece.token]
                write(piece.text)
        write("\n")
        if stop.signal not in (None, signal.SIGINT):
            return 128 + stop.signal
    return 0


def _lines():
    """Lines of the input; a terminal or a notebook gets a prompt, with editing and history if Python has readline."""
    if sys.stdin is None:
        raise UserError("--interactive: standard input is closed")
    if hasattr(sys.stdin, "reconfigure"):                         # not a stand-in such as io.StringIO
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")  # the mark of a file that is piped in
    if not is_terminal(sys.stdin) and not is_session():
        yield from (line.removesuffix("\n").removesuffix("\r") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401                              not on every platform; input() uses it
    write("A line is continued; an empty line continues the last text. Ctrl-C stops a text; Ctrl-D ends.\n")
    try:
        while True:
            yield input("> ")
    except (EOFError, KeyboardInterrupt):
        write("\n")
    except NotImplementedError:                                   # ipykernel's: nobody is there who could be asked
        raise UserError("--interactive: this notebook cannot ask for a line; pass --prompt instead") from None


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
