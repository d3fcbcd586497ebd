"""Tokenizers whose ids are not laid out as GPT-2's, and tokenizers that can only decode.

A third-party tokenizer often has its special tokens first, or several of them, or gaps between ids. Its merges are
applied with ids laid out as in tokenizer.py; a table then maps each of these to its id in the file. And a file may
contain the bytes of the tokens only, which is enough to decode.
"""

import base64
import json
from array import array
from collections import defaultdict

from tinygrad2.errors import short
from tinygrad2.tokenizers.added_tokens import FLAGS, AddedToken, AddedTokens
from tinygrad2.tokenizers.bpe import N_BYTES
from tinygrad2.tokenizers.pretokenizer import PATTERN, as_text
from tinygrad2.tokenizers.tokenizer import (
    END_OF_TEXT,
    ID_TO_BYTE,
    ID_TO_SYMBOL,
    REPLACE,
    Tokenizer,
    TokenizerError,
    WordIds,
)

FORMAT, VERSION = "tinygrad2-bpe-mapped", 2  # version 1 had no "added", "prefix_space" and "end"
DECODE_ONLY = "tinygrad2-decode-only"
MAX_ID = 1 << 24  # far above any vocabulary; a model would have a row for each
SYMBOL_TO_BYTE = dict(zip(ID_TO_SYMBOL, ID_TO_BYTE))


class MappedTokenizer:
    """BPE with any ids. It has the interface of a Tokenizer, but is not a subclass (worker processes know only those).

    `eot` is the id of the token that ends a text, or None if there is no such token. `merges` is a list of
    (left, right), both in the symbols of ID_TO_SYMBOL, and `vocab` maps such tokens to ids. `special` has the special
    tokens, {text: id}; `added` is an AddedTokens with these and all others that are found before a text is split.

    >>> vocab = {symbol: id + 1 for id, symbol in enumerate([*ID_TO_SYMBOL, "th"])}
    >>> tokenizer = MappedTokenizer(vocab, [("t", "h")], {"<|endoftext|>": 0})
    >>> tokenizer.encode("the<|endoftext|>", special="allowed"), tokenizer.n_vocab, tokenizer.eot
    ([257, 69, 0], 258, 0)
    """

    decode, decode_bytes, save = Tokenizer.decode, Tokenizer.decode_bytes, Tokenizer.save

    def __init__(
        self, vocab, merges, special, source="MappedTokenizer(vocab, merges, special)", added=(), prefix_space=False,
        end=END_OF_TEXT,
    ):  # fmt: skip
        """vocab: {token in symbols: id}; merges: [(left, right)] in symbols, in order of learning; special: {text: id}.

        added          AddedTokens that are not special, or are not found everywhere (lstrip and the like)
        prefix_space   whether a text, and what follows an added token, gets a space in front if it has none
        end            the special token that ends a text

        A token of `vocab` that no merge makes can be decoded, but is never encoded. Raises TokenizerError, beginning
        with `source`, if all this is not consistent.
        """
        _check_ids(vocab, "vocab", source)
        _check_ids(special, "special", source)
        _check_merges(merges, vocab, source)
        self.merges = [(left, right) for left, right in merges]
        self.added = AddedTokens([*(AddedToken(text, id) for text, id in _by_id(special).items()), *added])
        known = {token.content: token.id for token in self.added.tokens}
        if len(known) < len(self.added.tokens):
            raise TokenizerError(f"{source}: a token is both in special and in added, or twice there; {REPLACE}")
        _check_ids(known, "added", source)
        self._token_bytes = {id: _bytes_of(token) for token, id in vocab.items()}
        for text, id in known.items():
            if vocab.get(text, id) != id or (id in self._token_bytes and text not in vocab):
                what = "special" if text in special else "added"
                problem = f"{what} has {short(text)} as id {id}, but vocab has another entry there"
                raise TokenizerError(f"{source}: {problem}; {REPLACE}")
            self._token_bytes[id] = _bytes_of(text)
        self.end, self.prefix_space, self.source = end, prefix_space, source
        self.special = _by_id({token.content: token.id for token in self.added.tokens if token.special})
        self.eot = self.special.get(end, vocab.get(END_OF_TEXT) if end == END_OF_TEXT else None)
        self.n_vocab = max(self._token_bytes) + 1
        tokens = [*ID_TO_SYMBOL, *(left + right for left, right in self.merges)]
        made = set(tokens)  # files differ in order and in whether vocab has the added tokens; normalize both
        self.vocab = _by_id({token: id for token, id in vocab.items() if token in made or token not in known})
        self._cache = WordIds(_pairs_of(self.merges, source), array("i", map(vocab.__getitem__, tokens)))

    @property
    def is_divisible(self):
        """May a text be divided before white space and be encoded in parts, with the same result?"""
        return not self.prefix_space and all(token.special for token in self.added.tokens)

    def encode(self, text, special="ordinary"):
        """Returns the ids of a text, or of any bytes; `special` is as in Tokenizer.encode.

        Added tokens that are not special are found whatever `special` is.
        """
        return self._encode(text, special).tolist()

    def encode_array(self, text):
        """Returns the same ids as encode, in an array of 4 bytes each."""
        return self._encode(text, "ordinary")

    def _encode(self, text, special):
        ids = array("i")
        for piece in self.added.pieces(as_text(text), special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                prefix = " " if self.prefix_space and not piece.startswith(" ") else ""
                self._encode_into(ids, prefix + piece)
        return ids

    _encode_into = Tokenizer._encode_into

    def token_bytes(self, id):
        """The bytes of one token; b"" for an id in a gap, which a model may sample nevertheless.

        Raises TokenizerError for an id outside the vocabulary.
        """
        if not 0 <= id < self.n_vocab:
            raise TokenizerError(f"token id {id} is not in this vocabulary; use 0 to {self.n_vocab - 1}")
        return self._token_bytes.get(id, b"")

    def without_ids_from(self, n):
        """The same tokenizer without its added tokens of ids from n on, whose names become text like any other.

        Raises TokenizerError if other tokens have such ids.
        """
        plain = {token.content: token.id for token in self.added.tokens if token.is_plain and token.id < n}
        rest = [token for token in self.added.tokens if not token.is_plain and token.id < n]
        gone = {token.content for token in self.added.tokens if token.id >= n}
        vocab = {token: id for token, id in self.vocab.items() if token not in gone}
        smaller = MappedTokenizer(vocab, self.merges, plain, self.source, rest, self.prefix_space, self.end)
        if smaller.n_vocab > n:
            problem = f"has {smaller.n_vocab} tokens, more than {n}"
            raise TokenizerError(f"{self.source}: {problem}; give the model's own tokenizer")
        return smaller

    def to_json(self):
        """Returns everything needed to create this tokenizer again, as one line of JSON."""
        plain = {token.content: token.id for token in self.added.tokens if token.is_plain}
        rest = [token.to_fields() for token in self.added.tokens if not token.is_plain]
        more = {"added": rest} if rest else {}
        more |= {"prefix_space": True} if self.prefix_space else {}
        more |= {"end": self.end} if self.end != END_OF_TEXT else {}
        fields = {"format": FORMAT, "version": VERSION if more else 1, "pattern": PATTERN}
        fields |= {"vocab": self.vocab, "merges": self.merges, "special": _by_id(plain)}
        return json.dumps(fields | more, separators=(",", ":"))

    @classmethod
    def from_fields(cls, fields, source):
        """The tokenizer from the parsed output of to_json. Every field is checked; raises TokenizerError."""
        if type(fields.get("version")) is not int or fields["version"] not in (1, VERSION):
            problem = f"version is {short(fields.get('version'))}, but this tinygrad2 reads versions 1 and {VERSION}"
            raise TokenizerError(f"{source}: {problem}; update tinygrad2")
        if fields.get("pattern") != PATTERN:
            problem = f"pattern is {short(fields.get('pattern'))}, but only GPT-2's pattern is supported"
            raise TokenizerError(f"{source}: {problem}; {REPLACE}")
        added, prefix_space = fields.get("added", []), fields.get("prefix_space", False)
        end = fields.get("end", END_OF_TEXT)
        for name, value, kind in (("added", added, list), ("prefix_space", prefix_space, bool), ("end", end, str)):
            if type(value) is not kind:
                raise TokenizerError(f"{source}: {name} is {short(value)}, not a {kind.__name__}; {REPLACE}")
        added = [_added_token(token, source) for token in added]
        vocab, merges, special = map(fields.get, ("vocab", "merges", "special"))
        return cls(vocab, merges, special, source, added, prefix_space, end)


def _added_token(fields, source):
    """The AddedToken of to_fields. Raises TokenizerError."""
    if isinstance(fields, dict) and set(fields) - {*FLAGS} == {"content", "id"}:
        if isinstance(fields["content"], str) and all(type(fields.get(flag, False)) is bool for flag in FLAGS):
            return AddedToken(**fields)
    raise TokenizerError(f"{source}: added has {short(fields)}, not a token with 'content' and 'id'; {REPLACE}")


def tokenizer_from_vocab(vocab, merges, special, source, added=(), prefix_space=False, end=END_OF_TEXT):
    """The tokenizer of a vocabulary and its merges (see MappedTokenizer); a Tokenizer if its ids are as GPT-2's."""
    _check_ids(vocab, "vocab", source)
    _check_merges(merges, vocab, source)
    tokens = [*ID_TO_SYMBOL, *(left + right for left, right in merges)]
    layout = {token: id for id, token in enumerate(tokens)}
    pairs = [(vocab[left], vocab[right]) for left, right in merges]
    in_order = all(max(pair) < N_BYTES + k for k, pair in enumerate(pairs))
    as_gpt2 = special == {END_OF_TEXT: len(tokens)} and {**vocab, **special} == {**layout, **special}
    as_gpt2 &= not added and not prefix_space and end == END_OF_TEXT
    if as_gpt2 and in_order and len(layout) == len(tokens):
        return Tokenizer(pairs, source)
    return MappedTokenizer(vocab, merges, special, source, added, prefix_space, end)


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
    save, is_divisible = Tokenizer.save, True

    def __init__(self, tokens, eot, source="DecodeOnlyTokenizer(tokens, eot)"):
        """tokens: the bytes of each id; eot: the id of <|endoftext|>."""
        self._token_bytes, self.eot, self.n_vocab, self.source = list(tokens), eot, len(tokens), source

    def encode(self, text, special="ordinary"):
        """Raises TokenizerError: there are no merges."""
        problem = "has the bytes of its tokens but no merges, so it can only decode"
        raise TokenizerError(f"{self.source}: {problem}; give vocab.bpe (or merges.txt) with --tokenizer")

    encode_array = encode

    def to_json(self):
        """Returns everything needed to create this tokenizer again, as one line of JSON."""
        tokens = [base64.b64encode(token).decode() for token in self._token_bytes]
        fields = {"format": DECODE_ONLY, "version": 1, "tokens": tokens, "eot": self.eot}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_fields(cls, fields, source):
        """The tokenizer from the parsed output of to_json. Every field is checked; raises TokenizerError."""
        if type(fields.get("version")) is not int or fields["version"] != 1:
            problem = f"version is {short(fields.get('version'))}, but this tinygrad2 reads version 1"
            raise TokenizerError(f"{source}: {problem}; update tinygrad2")
        tokens, eot = fields.get("tokens"), fields.get("eot")
        try:
            tokens = [base64.b64decode(token, validate=True) for token in tokens]
        except (TypeError, ValueError):
            raise TokenizerError(f"{source}: tokens is {short(tokens)}, not a list in base64; {REPLACE}") from None
        if type(eot) is not int or not 0 <= eot < len(tokens):
            raise TokenizerError(f"{source}: eot is {short(eot)}, not the id of one of {len(tokens)} tokens; {REPLACE}")
        return cls(tokens, eot, source)
