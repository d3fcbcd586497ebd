"""Tokenizers whose ids are not laid out as GPT-2's, and tokenizers that can only decode.

A third-party tokenizer often has its special tokens first, or several of them, or gaps between ids. Its merges are
applied with ids laid out as in tokenizer.py; a table then maps each of these to its id in the file. And a file may
contain the bytes of the tokens only, which is enough to decode.
"""

import json
from array import array
from collections import defaultdict

from tinygrad2.errors import short
from tinygrad2.tokenizers.bpe import N_BYTES
from tinygrad2.tokenizers.pretokenizer import PATTERN
from tinygrad2.tokenizers.tokenizer import (
    END_OF_TEXT,
    ID_TO_BYTE,
    ID_TO_SYMBOL,
    REPLACE,
    Tokenizer,
    TokenizerError,
    WordIds,
)

FORMAT, VERSION = "tinygrad2-bpe-mapped", 1
MAX_ID = 1 << 24  # far above any vocabulary; a model would have a row for each
SYMBOL_TO_BYTE = dict(zip(ID_TO_SYMBOL, ID_TO_BYTE))


class MappedTokenizer:
    """BPE with any ids. It has the interface of a Tokenizer, but is not a subclass (worker processes know only those).

    `eot` is the id of <|endoftext|>, or None if there is no such token. `merges` is a list of (left, right), both in
    the symbols of ID_TO_SYMBOL, and `vocab` maps such tokens to ids.

    >>> vocab = {symbol: id + 1 for id, symbol in enumerate([*ID_TO_SYMBOL, "th"])}
    >>> tokenizer = MappedTokenizer(vocab, [("t", "h")], {"<|endoftext|>": 0})
    >>> tokenizer.encode("the<|endoftext|>", special="allowed"), tokenizer.n_vocab, tokenizer.eot
    ([257, 69, 0], 258, 0)
    """

    encode, encode_array, _encode_into = Tokenizer.encode, Tokenizer.encode_array, Tokenizer._encode_into
    decode, decode_bytes, save = Tokenizer.decode, Tokenizer.decode_bytes, Tokenizer.save

    def __init__(self, vocab, merges, special, source="MappedTokenizer(vocab, merges, special)"):
        """vocab: {token in symbols: id}; merges: [(left, right)] in symbols, in order of learning; special: {text: id}.

        A token of `vocab` that no merge makes can be decoded, but is never encoded. Raises TokenizerError, beginning
        with `source`, if the three are not consistent.
        """
        _check_ids(vocab, "vocab", source)
        _check_ids(special, "special", source)
        _check_merges(merges, vocab, source)
        self.merges = [(left, right) for left, right in merges]
        tokens = [*ID_TO_SYMBOL, *(left + right for left, right in self.merges)]
        self._token_bytes = {id: _bytes_of(token) for token, id in vocab.items()}
        for text, id in special.items():
            if vocab.get(text, id) != id or (id in self._token_bytes and text not in vocab):
                problem = f"special has {short(text)} as id {id}, but vocab has another entry there"
                raise TokenizerError(f"{source}: {problem}; {REPLACE}")
            self._token_bytes[id] = text.encode()
        self.eot = special.get(END_OF_TEXT, vocab.get(END_OF_TEXT))
        self.n_vocab = max(self._token_bytes) + 1
        made = set(tokens)  # files differ in order and in whether vocab has the special tokens; normalize both
        self.vocab = _by_id({token: id for token, id in vocab.items() if token in made or token not in special})
        self.special = _by_id(special)
        self._cache = WordIds(_pairs_of(self.merges, source), array("i", map(vocab.__getitem__, tokens)))

    def token_bytes(self, id):
        """The bytes of one token; b"" for an id in a gap, which a model may sample nevertheless.

        Raises TokenizerError for an id outside the vocabulary.
        """
        if not 0 <= id < self.n_vocab:
            raise TokenizerError(f"token id {id} is not in this vocabulary; use 0 to {self.n_vocab - 1}")
        return self._token_bytes.get(id, b"")

    def to_json(self):
        """Returns everything needed to create this tokenizer again, as one line of JSON."""
        fields = {"format": FORMAT, "version": VERSION, "pattern": PATTERN}
        fields |= {"vocab": self.vocab, "merges": self.merges, "special": self.special}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_fields(cls, fields, source):
        """The tokenizer from the parsed output of to_json. Every field is checked; raises TokenizerError."""
        if type(fields.get("version")) is not int or fields["version"] != VERSION:
            problem = f"version is {short(fields.get('version'))}, but this tinygrad2 reads version {VERSION}"
            raise TokenizerError(f"{source}: {problem}; update tinygrad2")
        if fields.get("pattern") != PATTERN:
            problem = f"pattern is {short(fields.get('pattern'))}, but only GPT-2's pattern is supported"
            raise TokenizerError(f"{source}: {problem}; {REPLACE}")
        return cls(fields.get("vocab"), fields.get("merges"), fields.get("special"), source)


def tokenizer_from_vocab(vocab, merges, special, source):
    """The tokenizer of a vocabulary and its merges (see MappedTokenizer); a Tokenizer if its ids are as GPT-2's."""
    _check_ids(vocab, "vocab", source)
    _check_merges(merges, vocab, source)
    tokens = [*ID_TO_SYMBOL, *(left + right for left, right in merges)]
    layout = {token: id for id, token in enumerate(tokens)}
    pairs = [(vocab[left], vocab[right]) for left, right in merges]
    in_order = all(max(pair) < N_BYTES + k for k, pair in enumerate(pairs))
    as_gpt2 = special == {END_OF_TEXT: len(tokens)} and {**vocab, **special} == {**layout, **special}
    if as_gpt2 and in_order and len(layout) == len(tokens):
        return Tokenizer(pairs, source)
    return MappedTokenizer(vocab, merges, special, source)


def _by_id(ids):
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _bytes_of(token):
    """The bytes of a token in symbols; for any other text, such as special tokens, its UTF-8."""
    try:
        return bytes(map(SYMBOL_TO_BYTE.__getitem__, token))
    except KeyError:
        return token.encode()


def _check_ids(ids, what, source):
    """Tokens must be strings, not empty, each with its own id."""
    if not isinstance(ids, dict):
        raise TokenizerError(f"{source}: {what} is {short(ids)}, not an object of tokens and their ids; {REPLACE}")
    taken = {}
    for token, id in ids.items():
        if type(id) is not int or not 0 <= id < MAX_ID:
            problem = f"{what} has {short(id)} as id of {short(token)}, not a number from 0 to {MAX_ID - 1}"
            raise TokenizerError(f"{source}: {problem}; {REPLACE}")
        if taken.setdefault(id, token) is not token:
            problem = f"{what} has the id {id} twice, for {short(taken[id])} and {short(token)}"
            raise TokenizerError(f"{source}: {problem}; {REPLACE}")
        try:
            valid = isinstance(token, str) and token.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            valid = False
        if not valid:
            raise TokenizerError(f"{source}: {what} has {short(token)} as a token, which is not valid text; {REPLACE}")


def _check_merges(merges, vocab, source):
    """All bytes must be tokens, and each merge must join two tokens to a third, and occur once."""
    for byte, symbol in zip(ID_TO_BYTE, ID_TO_SYMBOL):
        if symbol not in vocab:
            problem = f"vocab has no token {symbol!r} for byte {byte}, so it would lose text"
            raise TokenizerError(f"{source}: {problem}; train it again, starting with all 256 bytes")
    if not isinstance(merges, (list, tuple)):
        raise TokenizerError(f"{source}: merges is {short(merges)}, not a list of [left, right]; {REPLACE}")
    seen = set()
    for k, pair in enumerate(merges):
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        if not is_pair or not all(token in vocab for token in pair):
            raise TokenizerError(f"{source}: merges[{k}] is {short(pair)}, not two tokens of vocab; {REPLACE}")
        if pair[0] + pair[1] not in vocab:
            problem = f"merges[{k}] is {short(pair)}, but vocab has no token {short(pair[0] + pair[1])}"
            raise TokenizerError(f"{source}: {problem}; {REPLACE}")
        if tuple(pair) in seen:
            raise TokenizerError(f"{source}: merges[{k}] is {short(pair)}, and so is an earlier one; {REPLACE}")
        seen.add(tuple(pair))


def _pairs_of(merges, source):
    """{(left, right): id} for apply_merges, with merge k making id 256 + k.

    If several merges make the same token, it has one id for each of them, and every merge takes all ids of its two
    parts: so the same merges are applied, in the same order, as by a tokenizer with one id for each token.
    """
    made, pairs = defaultdict(list), {}
    for id, token in enumerate([*ID_TO_SYMBOL, *(left + right for left, right in merges)]):
        made[token].append(id)
    for k, (left, right) in enumerate(merges):
        pairs.update(((a, b), N_BYTES + k) for a in made.get(left, ()) for b in made.get(right, ()))
        if len(pairs) > 8 * len(merges) + 1000:  # a few tokens are made twice, not thousands a hundred times
            problem = f"merges[{k}] is {short((left, right))}, parts that too many other merges also make"
            raise TokenizerError(f"{source}: {problem}; {REPLACE}")
    return pairs


class DecodeOnlyTokenizer:
    """The bytes of each token, without merges: the interface of a Tokenizer, but encode raises TokenizerError."""

    decode, decode_bytes, token_bytes = Tokenizer.decode, Tokenizer.decode_bytes, Tokenizer.token_bytes

    def __init__(self, tokens, eot, source="DecodeOnlyTokenizer(tokens, eot)"):
        """tokens: the bytes of each id; eot: the id of <|endoftext|>."""
        self._token_bytes, self.eot, self.n_vocab, self.source = tokens, eot, len(tokens), source

    def encode(self, text, special="ordinary"):
        """Raises TokenizerError: there are no merges."""
        problem = "has the bytes of its tokens but no merges, so it can only decode"
        raise TokenizerError(f"{self.source}: {problem}; give vocab.bpe (or merges.txt) instead")

    encode_array = encode

    def to_json(self):
        """Raises TokenizerError: without merges it is not complete."""
        return self.encode("")

    def save(self, path):
        """Raises TokenizerError, as to_json."""
        self.encode("")
