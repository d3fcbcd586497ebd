"""Hugging Face's tokenizers: tokenizer.json, or a vocabulary and its merges in two files, as OpenAI's.

    encoder.json + vocab.bpe     the vocabulary as {"token": id, ...}, and the merges, one a line
    vocab.json + merges.txt      the same under Hugging Face's names
    tokenizer.json               both in one, with the pre-tokenizer and the added tokens

The files next to them (hf_settings.py) are read as well, except for OpenAI's. Only GPT-2's way from texts to tokens is
supported; anything in these files that would make other ids or other texts is refused: TokenizerError, one line.
"""

import os

from tinygrad2.errors import short
from tinygrad2.tokenizers.hf_settings import AGAIN, NO_ID, Settings, added_tokens, make_token, parse_json, read_settings
from tinygrad2.tokenizers.mapped import tokenizer_from_vocab
from tinygrad2.tokenizers.tokenizer import ID_TO_SYMBOL, TokenizerError, read_text

PAIRS = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
MAX_UNMADE = 1000  # tokens that no merge makes: more are not special tokens, but the merges of another file


# -- a vocabulary and its merges ---------------------------------------------------------------------------------------


def find_vocab(merges):
    """The path of the vocabulary next to a merges.txt or vocab.bpe; None if there is none."""
    folder, name = os.path.split(merges)
    for vocab, partner in PAIRS.items():
        if name == partner and os.path.isfile(os.path.join(folder, vocab)):
            return os.path.join(folder, vocab)
    return None


def find_merges(vocab):
    """The path of the merges next to a vocabulary. Raises TokenizerError if there are none."""
    folder, name = os.path.split(vocab)
    names = [PAIRS[name]] if name in PAIRS else list(PAIRS.values())
    for partner in names:
        if os.path.isfile(os.path.join(folder, partner)):
            return os.path.join(folder, partner)
    raise TokenizerError(f"{vocab}: is a vocabulary without its merges; put {' or '.join(names)} next to it")


def read_pair(vocab_path, merges_path, vocab=None):
    """The tokenizer of a vocabulary and its merges, two files. `vocab` is the content of the first, if already parsed.

    <|endoftext|> and the tokens that the files next to them name are found in texts; other tokens that no merge makes
    can only be decoded.
    """
    if vocab is None:
        vocab = parse_json(read_text(vocab_path).encode(), vocab_path)
    merges = []
    for number, line in enumerate(read_text(merges_path).splitlines(), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            problem = f"line {number} is {short(line)}, not two tokens separated by a space"
            raise TokenizerError(f"{merges_path}: {problem}; {AGAIN}")
        merges.append(tuple(parts))
    made = {*ID_TO_SYMBOL, *(left + right for left, right in merges)}
    unmade = [token for token in vocab if token not in made]
    if len(unmade) > MAX_UNMADE:
        name = os.path.basename(merges_path)
        problem = f"{name} does not make {len(unmade)} of its tokens, such as {short(unmade[0])}"
        raise TokenizerError(f"{vocab_path}: {problem}; give the two files of one tokenizer")
    folder, name = os.path.split(vocab_path)
    alone = Settings(vocab_path, as_gpt2=True)
    settings = read_settings(folder, has_tokenizer_json=False) if name == "vocab.json" else alone
    return _assemble(vocab, merges, [], settings, f"{vocab_path} with {os.path.basename(merges_path)}")


def _assemble(vocab, merges, in_file, settings, source, prefix_space=None):
    """The tokenizer of a vocabulary, its merges, the added tokens of its own file and the settings next to it."""
    if not isinstance(vocab, dict) or not all(type(id) is int for id in vocab.values()):
        return tokenizer_from_vocab(vocab, merges, {}, source)  # raises with what is wrong
    tokens, end = added_tokens(vocab, in_file, settings, source)
    special = {token.content: token.id for token in tokens if token.is_plain}
    rest = [token for token in tokens if not token.is_plain]
    prefix_space = settings.prefix_space if prefix_space is None else prefix_space
    return tokenizer_from_vocab(vocab, merges, special, source, rest, prefix_space, end)


# -- tokenizer.json ----------------------------------------------------------------------------------------------------


def read_tokenizer_json(fields, source):
    """The tokenizer of a parsed tokenizer.json. Unsupported fields that would change ids or texts are refused.

    Truncation and padding are ignored: they are for batches, and here a text keeps its length. So are a token for
    unknown characters and byte_fallback, since all bytes are tokens.
    """
    model = fields.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        found = short(model.get("type") if isinstance(model, dict) else model)
        raise TokenizerError(f"{source}: model.type is {found}; only GPT-2's byte-level 'BPE' is supported")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(field):
            raise TokenizerError(f"{source}: model.{field} is {short(model[field])}; only GPT-2's form is supported")
    folder, name = os.path.split(source)
    alone = Settings(source, as_gpt2=False)
    settings = read_settings(folder, has_tokenizer_json=True) if name == "tokenizer.json" else alone
    prefix_space = _check_steps(fields, settings.as_gpt2, source)
    merges = model.get("merges")
    if isinstance(merges, list):  # "a b" before August 2024, ["a", "b"] since
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    in_file = _added_tokens(fields.get("added_tokens"), source)
    return _assemble(model.get("vocab"), merges, in_file, settings, source, prefix_space)


def _check_steps(fields, as_gpt2, source):
    """The steps around the model: before it only bytes to symbols, after it nothing that adds tokens.

    Returns whether a space is put before texts, or None if GPT2Tokenizer's own setting decides that.
    """
    normalizer = _unwrapped(fields.get("normalizer"), "normalizers")
    if normalizer is not None:
        found = short(normalizer)
        raise TokenizerError(f"{source}: normalizer is {found}; only null, no change of the text, is supported")
    before = _unwrapped(fields.get("pre_tokenizer"), "pretokenizers")
    if not isinstance(before, dict) or before.get("type") != "ByteLevel":
        raise TokenizerError(f"{source}: pre_tokenizer is {short(before)}; only GPT-2's 'ByteLevel' is supported")
    for field, values in (("use_regex", [True]), ("add_prefix_space", [True, False])):
        if not any(before.get(field, True) is value for value in values):  # both default to true
            found = short(before[field])
            raise TokenizerError(f"{source}: pre_tokenizer.{field} is {found}; only {values[0]} is supported")
    after = _unwrapped(fields.get("post_processor"), "processors")
    if after is not None and not (isinstance(after, dict) and (after.get("type") == "ByteLevel" or _is_empty(after))):
        problem = f"post_processor is {short(after)}; only 'ByteLevel' or null, which add no tokens, are supported"
        raise TokenizerError(f"{source}: {problem} (inference.py --start-token yes puts one before the prompt)")
    back = _unwrapped(fields.get("decoder"), "decoders")
    if not (isinstance(back, dict) and back.get("type") == "ByteLevel") and not (back is None and as_gpt2):
        why = ", so transformers puts a space between tokens" if back is None else ""
        raise TokenizerError(f"{source}: decoder is {short(back)}{why}; only 'ByteLevel' is supported")
    return None if as_gpt2 else before.get("add_prefix_space", True)


def _unwrapped(step, name):
    """A step, without a sequence around it alone; None for an empty sequence."""
    while isinstance(step, dict) and step.get("type") == "Sequence" and isinstance(step.get(name), list):
        if len(step[name]) > 1:
            break
        step = step[name][0] if step[name] else None
    return step


def _is_empty(template):
    """Is it a TemplateProcessing that is the text itself, once, and adds no tokens?"""
    parts = template.get("single")
    if template.get("type") != "TemplateProcessing" or not isinstance(parts, list) or len(parts) != 1:
        return False
    part = parts[0]
    return isinstance(part, dict) and list(part) == ["Sequence"] and _id_of(part["Sequence"]) == "A"


def _id_of(sequence):
    return sequence.get("id") if isinstance(sequence, dict) else None


def _added_tokens(tokens, source):
    """The AddedTokens of tokenizer.json, with the ids that it declares."""
    if not isinstance(tokens if tokens is not None else [], list):
        raise TokenizerError(f"{source}: added_tokens is {short(tokens)}, not a list; {AGAIN}")
    added, taken = [], set()
    for k, fields in enumerate(tokens or []):
        where = f"{source}: added_tokens[{k}]"
        id = fields.get("id", NO_ID) if isinstance(fields, dict) else NO_ID
        if type(id) is not int or id < 0:
            raise TokenizerError(f"{where} is {short(fields)}, not a token with an 'id'; {AGAIN}")
        token = make_token(fields, where, id=id)
        if token.content in taken or id in taken:
            raise TokenizerError(f"{where} is {short(fields)}, whose content or id an earlier one has; {AGAIN}")
        taken |= {token.content, id}
        added.append(token)
    return added
