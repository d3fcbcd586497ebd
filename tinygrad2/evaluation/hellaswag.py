"""HellaSwag: which of four endings does the model find most likely? 10,042 questions about what happens next.

Two files hold the same questions:

    hellaswag_val.jsonl    one JSON object a line, as published: ctx, endings (4 texts), label 0 .. 3, ind
    hellaswag_val.bin      llm.c's: int32[256] 20240522, 1, number of examples, bytes of the longest; then uint16:
                           65535, bytes of the record, index, label, 4, n, n ids of the context, and 4 times n, n ids

Scored as build-nanogpt and llm.c do: the context and " " + ending are encoded separately, and

    acc         the correct ending has the smallest sum of -ln p over its tokens
    acc_norm    the correct ending has the smallest mean of it, which does not favour short ones

(EleutherAI's harness cleans the texts, and divides by characters: GPT-2 124M has 0.2955 here and 0.3114 there.)

Zellers et al., "HellaSwag: can a machine really finish your sentence?", ACL 2019.
"""

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.evaluation.scoring import BATCH_TOKENS, score_long
from tinygrad2.io.files import atomic_write, crc32_text, read_bytes
from tinygrad2.io.text_file import text_of
from tinygrad2.tokenizers.tokenizer import TokenizerError

MAGIC, VERSION = 20240522, 1
BLOCK = 16  # examples that are scored together, always the same ones: so the bits do not depend on the rank
REFERENCE = {  # acc, acc_norm of OpenAI's models by this method (build-nanogpt's hellaswag.py, llm.c's discussions)
    "GPT-2 124M": (0.2859, 0.2955),
    "GPT-2 355M": (None, 0.3752),
    "GPT-2 774M": (None, 0.4320),
    "GPT-2 1558M": (0.3842, 0.4893),
}
CHANCE = 0.25
_FETCH = "fetch it again: python data/hellaswag/prepare.py"
_START, _HEADER, _LARGEST = 65535, 1024, 65535


@dataclass(frozen=True)
class Example:
    """A question: ids of the context, ids of four endings, and which of them is correct, 0 .. 3."""

    context: list
    endings: list
    label: int


@dataclass(frozen=True)
class Answer:
    """A model's scores of an Example: for each ending the sum of -ln p over its tokens, in nats, and their number.
    `label` is the correct ending."""

    label: int
    nats: list
    tokens: list

    @property
    def correct(self):
        """Has the correct ending the smallest sum?"""
        return int(np.argmin(self.nats)) == self.label

    @property
    def correct_norm(self):
        """Has the correct ending the smallest mean?"""
        return int(np.argmin(np.array(self.nats) / self.tokens)) == self.label


# -- files -------------------------------------------------------------------------------------------------------------


def load_examples(path, tokenizer, limit=None):
    """The first `limit` (None: all) Examples of a jsonl or of llm.c's .bin, recognized by content.

    `tokenizer` encodes the texts of a jsonl; a .bin contains ids, which must be those of the tokenizer (None:
    unchecked). Raises UserError, one line, for a file that is incomplete, corrupt, or has another tokenizer's ids.
    """
    data = read_bytes(path)
    if data[:4] == MAGIC.to_bytes(4, "little"):
        examples = list(itertools.islice(_read_bin(data, path), limit))
        _check_ids(examples, tokenizer, path)
    else:
        if tokenizer is None:
            raise UserError(f"{path}: its texts cannot be encoded, since the model's tokenizer is not known")
        text = text_of(data, path)
        examples = list(itertools.islice(_read_jsonl(text, tokenizer, path), limit))
    if not examples:
        raise UserError(f"{path}: there are no examples in it; {_FETCH}")
    return examples


def checksum(examples):
    """The CRC-32 of Examples: ids and labels, in their order."""
    return crc32_text(*(repr((e.context, e.endings, e.label)).encode() for e in examples))


def _read_jsonl(data, tokenizer, path):
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            context, endings, label = _fields(line, f"{path}: line {number}")
            try:
                context = tokenizer.encode(context)
                yield Example(context, [tokenizer.encode(" " + ending) for ending in endings], label)
            except TokenizerError as error:
                raise UserError(f"{path}: line {number}: {error}") from None


def _fields(line, where):
    """(context, endings, label) of a line. Raises UserError for a field that is missing or not valid."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f"{where} is {short(line.decode('utf-8', 'replace'))}, not a JSON object; {_FETCH}")
    endings, label = fields.get("endings"), fields.get("label")
    if type(fields.get("ind", 0)) is not int:
        raise UserError(f"{where}: ind is {short(fields['ind'])}, not an integer; {_FETCH}")
    if not _is_text(fields.get("ctx")) or not fields["ctx"]:
        raise UserError(f"{where}: ctx is {short(fields.get('ctx'))}, not a text; {_FETCH}")
    if not isinstance(endings, list) or len(endings) != 4 or not all(map(_is_text, endings)):
        raise UserError(f"{where}: endings is {short(endings)}, not a list of 4 texts; {_FETCH}")
    if label is None or label == "":
        raise UserError(f"{where} has no label, as in the test split, so it cannot be scored; use hellaswag_val.jsonl")
    if label not in ("0", "1", "2", "3") and not (type(label) is int and 0 <= label < 4):
        raise UserError(f"{where}: label is {short(label)}, not 0, 1, 2 or 3; {_FETCH}")
    return fields["ctx"], endings, int(label)


def _is_text(value):
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:                                    # a lone surrogate
        return False


def _read_bin(data, path):
    """Yields Examples. The header is checked first, each record when it is read, the size at the end."""

    def corrupt(problem):
        return UserError(f"{path}: not a valid multiple-choice file of llm.c: {problem}; create it again")

    if len(data) < _HEADER or len(data) % 2:
        raise corrupt(f"{len(data):,} bytes are not a header of {_HEADER} and 16-bit words")
    version, n, longest = np.frombuffer(data, "<i4", 3, 4).tolist()
    if version != VERSION:
        raise corrupt(f"its version is {version}, not {VERSION}")
    words, start, largest = np.frombuffer(data, "<u2", offset=_HEADER), 0, 0
    for index in range(n):
        head = words[start : start + 5].tolist()
        if len(head) < 5 or head[0] != _START or head[1] % 2 or start + head[1] // 2 > len(words):
            raise corrupt(f"example {index} of {n} is cut off or does not begin with {_START} and its length")
        record = words[start : start + head[1] // 2].tolist()
        if head[2] != index:
            raise corrupt(f"example {index} has the index {head[2]}")
        if head[3] > 3 or head[4] != 4:
            raise corrupt(f"example {index} has the label {head[3]} of {head[4]} endings, not one of 4")
        parts, at = [], 5
        for _ in range(5):
            size = record[at] if at < len(record) else 0
            parts.append(record[at + 1 : at + 1 + size])
            at += 1 + size
        if at != len(record) or not all(parts):
            raise corrupt(f"example {index} has {len(record)} words, which are not 5 lists of ids with their lengths")
        start, largest = start + len(record), max(largest, head[1])
        yield Example(parts[0], parts[1:], head[3])
    rest = 2 * (len(words) - start)
    if rest or largest != longest:
        problem = f"{rest} bytes follow the last" if rest else f"it has {largest}"
        raise corrupt(f"its header has {n} examples, the longest of {longest} bytes, but {problem}")


def _check_ids(examples, tokenizer, path):
    """Raise UserError if the ids of a file are not those of the tokenizer: each must be known, endings must begin
    with a space, and a context, decoded and encoded again, must have the same ids."""
    for index, example in enumerate(examples):
        largest = max(map(max, (example.context, *example.endings)))
        if tokenizer and largest >= tokenizer.n_vocab:
            raise UserError(f"{path}: example {index} has the id {largest}, but the model's tokenizer has only "
                            f"{tokenizer.n_vocab}; use hellaswag_val.jsonl")
        if tokenizer and index < 10:
            texts = [tokenizer.decode_bytes(ids) for ids in (example.context, *example.endings)]
            try:
                same = tokenizer.encode(texts[0]) == example.context
            except TokenizerError:                                # a tokenizer that can only decode
                same = True
            if not same or not all(text.startswith(b" ") for text in texts[1:]):
                raise UserError(f"{path}: example {index} was encoded with another tokenizer than the model's; use "
                                "hellaswag_val.jsonl")


def write_examples(path, examples):
    """Write Examples as llm.c's data_common.py does, byte for byte. Atomic.

    Raises UserError for what does not fit into its 16 bits.
    """
    stream, longest = [], 0
    for index, example in enumerate(examples):
        record = [_START, 0, index, example.label, len(example.endings)]
        for ids in (example.context, *example.endings):
            record += [len(ids), *ids]
        record[1] = 2 * len(record)
        longest = max(longest, record[1])
        if max(record[1:]) >= _LARGEST or len(example.endings) != 4:
            raise UserError(f"{path}: example {index} does not fit: llm.c's file has 4 endings, and no value above "
                            f"{_LARGEST - 1:,}, be it an id, the index, or the size of {record[1]:,} bytes")
        stream += record
    header = np.zeros(_HEADER // 4, "<i4")
    header[:4] = MAGIC, VERSION, len(examples), longest
    with atomic_write(path) as file:
        file.write(header.tobytes())
        file.write(np.array(stream, "<u2").tobytes())


# -- scores ------------------------------------------------------------------------------------------------------------


def answer_examples(model, examples, batch_tokens=BATCH_TOKENS):
    """The Answers of a model to Examples. A context that is too long loses its beginning (see `count_cropped`).

    Raises UserError if an id is outside the model's vocabulary, or if its scores are not finite.
    """
    rows = [example.context + ending for example in examples for ending in example.endings]
    begins = [len(example.context) for example in examples for _ in example.endings]
    largest = max(map(max, rows), default=0)
    if largest >= model.config.vocab_size:
        raise UserError(f"id {largest} of an example is outside the model's vocabulary of {model.config.vocab_size}; "
                        "give the tokenizer that the model was trained with")
    scores = [(-math.fsum(logprobs), len(logprobs)) for logprobs, _ in score_long(model, rows, begins, batch_tokens)]
    answers = []
    for i, example in enumerate(examples):
        nats, tokens = zip(*scores[4 * i : 4 * i + 4])
        answers.append(Answer(example.label, list(nats), list(tokens)))
    return answers


def count_cropped(examples, block_size):
    """The number of examples that do not fit into a context of block_size tokens, with their longest ending."""
    return sum(len(e.context) + max(map(len, e.endings)) > block_size + 1 for e in examples)


def summary(answers):
    """{"n", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr"} of Answers, at least one.

    The standard error of a fraction p of n is sqrt(p (1 - p) / (n - 1)): that of a mean of zeros and ones with their
    sample variance, as in lm-evaluation-harness; None for n = 1.
    """
    n, result = len(answers), {"n": len(answers)}
    for name, correct in (("acc", [a.correct for a in answers]), ("acc_norm", [a.correct_norm for a in answers])):
        p = sum(correct) / n
        result[name] = p
        result[name + "_stderr"] = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None
    return result


def accuracy(model, examples, world, batch_tokens=BATCH_TOKENS):
    """(acc_norm, number of examples) of a model in training, the examples divided among the ranks.

    Rank r takes every size-th block of examples; the result is the same for any number of ranks, and on all of them.
    """
    model.eval()
    correct = 0
    for start in range(BLOCK * world.rank, len(examples), BLOCK * world.size):
        answers = answer_examples(model, examples[start : start + BLOCK], batch_tokens)
        correct += sum(a.correct_norm for a in answers)
    model.train()
    gathered = world.all_gather(np.array([correct]), "HellaSwag")     # (ranks, 1)
    return float(gathered.sum() / len(examples)), len(examples)
