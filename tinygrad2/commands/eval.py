"""python -m tinygrad2 eval TASK [flags]: how good is a model? Your own, or a third-party GPT-2.

    python -m tinygrad2 eval hellaswag --weights data/gpt2/gpt2         which of four endings is correct? 10,042 times
    python -m tinygrad2 eval hellaswag --limit 500                      the first 500 only
    python -m tinygrad2 eval perplexity --data my.txt                   how well does it predict this text?
    python -m tinygrad2 eval perplexity --data val.bin --stride 64      a token file of nanoGPT or llm.c

hellaswag writes each answer into a file in the folder eval/; a second run continues where the first one stopped.
Flags: python -m tinygrad2 eval hellaswag --help, and the same with perplexity.
"""

import json
import math
import os
import sys
import weakref
import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from models.pretrained import load_pretrained
from tinygrad2.backend import DEVICES, array_module
from tinygrad2.cli import Parser, add_flags, explanation, flag, from_flags, input_path, output_path
from tinygrad2.datasets.find_files import find_files
from tinygrad2.datasets.piped import file_of
from tinygrad2.datasets.token_files import TokenFile, TokenStream
from tinygrad2.errors import UserError, short
from tinygrad2.evaluation.hellaswag import (
    BLOCK,
    CHANCE,
    REFERENCE,
    Answer,
    answer_examples,
    count_cropped,
    load_examples,
    summary,
)
from tinygrad2.evaluation.perplexity import ids_of_text, perplexity
from tinygrad2.evaluation.scoring import BATCH_TOKENS
from tinygrad2.halves import check_dtype
from tinygrad2.io.file_systems import Lock
from tinygrad2.io.files import first_bytes, read_bytes
from tinygrad2.io.open_file import open_file
from tinygrad2.io.outputs import check_output, files_of
from tinygrad2.io.text_file import read_valid_text
from tinygrad2.monitor.progress import Meter
from tinygrad2.precision import DTYPES, PRECISIONS, check_flags, computing, precision_of
from tinygrad2.system.installation import data_folder
from tinygrad2.system.streams import print_error
from tinygrad2.tokenizers.tokenizer import TokenizerError

_QUESTIONS = os.path.join(data_folder("hellaswag"), "hellaswag_val.jsonl")
_BEGIN = b'{"facts": {"task": "hellaswag"'  # of a file of answers
_HIGHEST = {"precision of products": "highest"}  # a fact if it is another; files of earlier versions have none
_METHOD = 1  # version of the scoring method: increment when the answers would change


@dataclass(frozen=True)
class _Config:
    weights: str = input_path("trained_weights.bin",
                              "what train_gpt2.py has written, or a third-party model: a Hugging Face folder or "
                              "model.safetensors, an llm.c .bin, a nanoGPT ckpt.pt")
    tokenizer: str = input_path("", "tokenizer file or folder, for weights that do not include one",
                                default="that of the weights")
    block_size: int = flag(None, "crop the context to this many tokens", kind=int, default="that of the weights")
    batch_tokens: int = flag(BATCH_TOKENS, "tokens per pass through the model")
    json: bool = flag(False, "print the result as one JSON object")
    threads: int = flag(None, "for BLAS and kernels", kind=int, default="all cores")
    device: str = flag("cpu", "cpu, or cuda (an NVIDIA GPU)", choices=DEVICES)
    kernels: str = flag("auto", "auto: fast kernels if there are any; reference: the reference implementations only",
                        choices=("auto", "reference"))
    dtype: str = flag("float32", "bfloat16, or float16 on a GPU: products take such numbers, as in a training with it",
                      choices=DTYPES)
    matmul_precision: str = flag("highest", "errors that matrix products may have: highest, high or medium, as in a "
                                            "training", choices=PRECISIONS)

    def __post_init__(self):
        check_flags(self)
        for name in ("block_size", "batch_tokens", "threads", "limit", "stride"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


@dataclass(frozen=True)
class HellaSwagConfig(_Config):
    """The flags of `eval hellaswag`, checked."""

    data: str = input_path("", "hellaswag_val.jsonl, or llm.c's hellaswag_val.bin",
                           default="data/hellaswag/hellaswag_val.jsonl in the project")
    limit: int = flag(None, "number of questions, from the first on", kind=int, default="all")
    results: str = output_path("", "file of answers, one JSON line each; an existing file is continued",
                               default="eval/hellaswag-<digits of model and data>.jsonl")


@dataclass(frozen=True)
class PerplexityConfig(_Config):
    """The flags of `eval perplexity`, checked."""

    data: str = input_path("", "a text, or a token file (.bin, .npy)", default="must be given")
    limit: int = flag(None, "number of tokens, from the first on", kind=int, default="all")
    stride: int = flag(None, "tokens by which the window moves", kind=int, default="half of the context")

    def __post_init__(self):
        super().__post_init__()
        if not self.data:
            raise ValueError("--data is missing: a text, or a token file (.bin, .npy)")


def main(argv):
    if not argv or argv[0] in ("--help", "-h"):
        print(explanation(__doc__))
        return 0
    if argv[0] not in TASKS:
        raise UserError(f"there is no task {argv[0]!r}; choose one of: {', '.join(TASKS)}")
    kind, run, description = TASKS[argv[0]]
    parser = Parser(prog=f"python -m tinygrad2 eval {argv[0]}", description=description)
    add_flags(parser, kind)
    config = from_flags(kind, parser.parse_args(argv[1:]))
    check_dtype(array_module(config.device), config.dtype)
    with computing(config):
        return run(config)


def _load(config):
    model, tokenizer, pretrained = load_pretrained(config.weights, config.block_size, config.device, config.tokenizer)
    for note in pretrained.notes:
        print_error(f"note      {note}")
    size = f"{model.count_parameters():,} parameters, context {model.config.block_size:,}"
    _report(config, f"model     {config.weights}: {size}")
    return model, tokenizer


def _report(config, line):
    if not config.json:
        print(line, flush=True)


def _progress_stream(config):
    return sys.stderr if config.json else sys.stdout


# -- hellaswag ---------------------------------------------------------------------------------------------------------


def _hellaswag(config):
    path = file_of(config.data or _QUESTIONS, partial(_report, config))
    if not config.data and not os.path.exists(path):
        raise UserError(f"{path}: the questions are missing; fetch them: python data/hellaswag/prepare.py")
    if config.results:
        inputs = [("--data", path), ("--weights", config.weights)]
        inputs += [("--tokenizer", file) for file in files_of(config.tokenizer)] if config.tokenizer else []
        check_output("--results", config.results, "a file of answers", is_results, inputs, appended=True)
    model, tokenizer = _load(config)
    examples = load_examples(path, tokenizer, config.limit)
    _report(config, f"data      {path}: {len(examples):,} questions")
    cropped = count_cropped(examples, model.config.block_size)
    if cropped:
        _report(config, f"note      {cropped:,} of them do not fit into the context: the model sees only their end")
    facts = _facts(model, tokenizer, path, precision_of(config))
    file = ResultsFile(config.results or _default_results(facts), facts, {"weights": config.weights, "questions": path})
    answers = file.read(examples)
    if answers:
        _report(config, f"note      continuing {file.path}, which has {len(answers):,} answers")
    live = Meter("hellaswag", len(examples), "questions", len(answers), _progress_stream(config))
    correct = sum(a.correct_norm for a in answers)
    try:
        while len(answers) < len(examples):
            new = answer_examples(model, examples[len(answers) : len(answers) + BLOCK], config.batch_tokens)
            file.append(new, len(answers))
            answers += new
            correct += sum(a.correct_norm for a in new)
            live.add(len(new), f"acc_norm {correct / len(answers):.4f}")
    except KeyboardInterrupt:
        print_error(f"\ninterrupted; the same command continues after the last answer in {file.path}")
        return 130
    live.close()
    result = summary(answers[: len(examples)])
    if config.json:
        fields = {"task": "hellaswag", "weights": config.weights, "data": path, "results": file.path}
        print(json.dumps(fields | result | {"cropped": cropped, "chance": CHANCE, "reference": REFERENCE}))
        return 0
    for name in ("acc", "acc_norm"):
        error = result[name + "_stderr"]
        print(f"{name:10s}{result[name]:.4f}" + ("" if error is None else f" +- {error:.4f}"))
    print(f"questions {result['n']:,}; +- is one standard error; by chance {CHANCE}")
    print("for comparison, acc / acc_norm of OpenAI's models, all questions, by the same method:")
    for name, figures in REFERENCE.items():
        print(f"          {name:12s}{' / '.join('   -  ' if x is None else f'{x:.4f}' for x in figures)}")
    print(f"answers   {file.path}")
    return 0


def is_results(path):
    """Is this a file of answers, or the beginning of one?"""
    line, end, _ = first_bytes(path, 10_000).partition(b"\n")
    return line.startswith(_BEGIN) or (not end and _BEGIN.startswith(line))


def _facts(model, tokenizer, path, precision):
    """What the answers depend on: checksums of model, tokenizer and data, the context, the precision of products."""
    weights, names = 0, []
    for name, parameter in model.named_parameters():
        weights = zlib.crc32(np.ascontiguousarray(parameter.numpy()), weights)
        names.append((name, parameter.shape))
    shape = zlib.crc32(repr((names, sorted(model.config.to_dict().items()))).encode())
    return {"task": "hellaswag", "method": _METHOD, "model": f"{weights:08x}-{shape:08x}",
            "tokenizer": _tokenizer_crc(tokenizer), "data": f"{zlib.crc32(read_bytes(path)):08x}",
            "block_size": model.config.block_size,
            **({} if precision == "highest" else dict.fromkeys(_HIGHEST, precision))}  # fmt: skip


def _tokenizer_crc(tokenizer):
    if tokenizer is None:
        return "none"
    try:
        return f"{zlib.crc32(tokenizer.to_json().encode()):08x}"
    except TokenizerError:                                        # a tokenizer that can only decode
        return f"{zlib.crc32(tokenizer.decode_bytes(range(tokenizer.n_vocab))):08x}"


def _default_results(facts):
    try:
        os.makedirs("eval", exist_ok=True)
    except OSError as error:
        raise UserError(f"eval: cannot be created ({error.strerror}); name a file with --results") from None
    return os.path.join("eval", f"hellaswag-{zlib.crc32(json.dumps(facts).encode()):08x}.jsonl")


class ResultsFile:
    """Answers in a file, one JSON line each; the first line has the facts they depend on. An incomplete last line, left
    by a crash, is dropped."""

    def __init__(self, path, facts, more):
        self.path, self.facts, self._lock = path, facts, None
        self.head = json.dumps({"facts": facts} | more).encode() + b"\n"

    def read(self, examples):
        """The answers so far, in complete blocks. The file is created if there is none.

        Raises UserError for any other file, which is not changed, and for one that another run is writing.
        """
        try:
            self._lock = Lock.of(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); name another with --results") from None
        if self._lock is None:
            raise UserError(f"{self.path}: another run is writing it; wait for that, or name another with --results")
        release = weakref.finalize(self, self._lock.close)
        try:
            return self._read(examples)
        except BaseException:                                     # an error keeps this object for as long as it is kept
            release()
            raise

    def _read(self, examples):
        content = read_bytes(self.path)
        if self.head.startswith(content):                         # empty, or cut off while it was created
            self._write("wb", self.head)
            return []
        head, *lines = content.split(b"\n")[:-1] or [b""]
        self._check(head)
        answers = [self._answer(line, i, examples) for i, line in enumerate(lines[: len(examples)])]
        if len(answers) < len(examples):
            answers = answers[: len(answers) // BLOCK * BLOCK]    # an incomplete block is scored again
            self._truncate(sum(len(line) + 1 for line in (head, *lines[: len(answers)])))
        return answers

    def append(self, answers, first):
        """Write answers, the first of them to question `first`. Raises UserError if the disk is full."""
        lines = [{"index": first + i} | vars(a) for i, a in enumerate(answers)]
        self._write("ab", "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _check(self, head):
        fields = _parse(head)
        facts = fields.get("facts")
        if not isinstance(facts, dict):
            raise UserError(f"{self.path}: is not a file of answers; name another one with --results")
        facts = _HIGHEST | facts
        for name, value in (_HIGHEST | self.facts).items():
            if facts.get(name) != value:
                raise UserError(f"{self.path}: its answers are of another {name} ({short(facts.get(name))}, here "
                                f"{short(value)}); name another file with --results")

    def _answer(self, line, index, examples):
        fields, example = _parse(line), examples[index]
        expected = {"index": index, "label": example.label, "tokens": list(map(len, example.endings))}
        for name, value in expected.items():
            if fields.get(name) != value:
                raise UserError(f"{self.path}: line {index + 2}: {name} is {short(fields.get(name))}, not {value}; "
                                "delete the file, or name another one with --results")
        nats = fields.get("nats")
        valid = isinstance(nats, list) and len(nats) == 4 and all(type(x) is float and math.isfinite(x) for x in nats)
        if not valid:
            raise UserError(f"{self.path}: line {index + 2}: nats is {short(nats)}, not 4 numbers; delete the file, "
                            "or name another one with --results")
        return Answer(example.label, nats, fields["tokens"])

    def _write(self, mode, data):
        try:
            with open_file(self.path, mode) as file:
                file.write(data)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); name another file with --results, or "
                            "run again when there is room: the answers so far are kept") from None

    def _truncate(self, size):
        try:
            os.truncate(self.path, size)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); name another with --results") from None


def _parse(line):
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


# -- perplexity --------------------------------------------------------------------------------------------------------


def _perplexity(config):
    model, tokenizer = _load(config)
    stream, block_size = _open_stream(config, model, tokenizer), model.config.block_size
    if config.limit:
        stream = stream.part(0, min(config.limit, len(stream)))
    if config.stride and config.stride > block_size:
        raise UserError(f"--stride {config.stride}: windows have {block_size} tokens, so some would be skipped; use "
                        f"{block_size} or less")
    _report(config, f"data      {config.data}: {len(stream):,} tokens")
    live = Meter("perplexity", len(stream), "tokens", stream=_progress_stream(config))
    result = perplexity(model, stream, tokenizer, config.stride, config.batch_tokens, live.add).to_dict()
    live.close()
    if not result["tokens"]:
        raise UserError(f"{config.data}: {len(stream)} token(s) are too few; pass a longer text")
    if config.json:
        print(json.dumps({"task": "perplexity", "weights": config.weights, "data": config.data} | result))
        return 0
    print(f"loss             {result['loss']:.4f} nats per token, {result['tokens']:,} tokens")
    print(f"perplexity       {result['perplexity']:,.4f}")
    if result["bytes"]:
        print(f"bits per byte    {result['bits_per_byte']:.4f}, {result['bytes']:,} bytes")
        print(f"word perplexity  {result['word_perplexity']:,.4f}, {result['words']:,} words")
    return 0


def _open_stream(config, model, tokenizer):
    files = find_files(file_of(config.data, partial(_report, config)))
    if len(files.texts + files.tokens) > 1:
        raise UserError(f"{config.data}: is {len(files.texts + files.tokens)} files; give one of them")
    for note in files.notes:
        _report(config, f"note      {note}")
    if files.tokens:
        return TokenStream([TokenFile(files.tokens[0])], model.config.vocab_size)
    if tokenizer is None:
        raise UserError(f"{config.weights}: its tokenizer is not known; pass it with --tokenizer (GPT-2's: python "
                        "data/gpt2/prepare.py --tokenizer-only)")
    try:
        ids = ids_of_text(read_valid_text(files.texts[0]), tokenizer)
    except TokenizerError as error:
        raise UserError(f"{config.data}: {error}") from None
    if not len(ids):
        raise UserError(f"{config.data}: the file is empty; pass a text")
    return TokenStream.of(ids, model.config.vocab_size)


TASKS = {
    "hellaswag": (HellaSwagConfig, _hellaswag, "Which of four endings is correct? acc and acc_norm of HellaSwag."),
    "perplexity": (PerplexityConfig, _perplexity, "Loss per token, perplexity, bits per byte of a text."),
}
