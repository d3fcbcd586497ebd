"""One token per character: the smallest tokenizer there is, as nanoGPT's shakespeare_char uses it.

>>> tokenizer = CharTokenizer.train("hello")
>>> tokenizer.encode("hole"), tokenizer.decode([0, 1, 2, 3])
([1, 3, 2, 0], 'ehlo')

The ids are the positions in the sorted set of characters (a vocabulary that another program made may have another
order). There is no end-of-text token, and a character that was not in the text is refused. tokenizer.py explains what
BPE does better.
"""

import json
from array import array

from tinygrad2.errors import short
from tinygrad2.io.files import atomic_write
from tinygrad2.tokenizers.tokenizer import SPECIAL, TokenizerError

FORMAT, VERSION = "tinygrad2-char", 1


class CharTokenizer:
    """Characters and their ids, with the interface of a Tokenizer. `eot` is None: there is no end-of-text token."""

    eot, is_divisible = None, True

    def __init__(self, characters, source="CharTokenizer(characters)", in_order=True):
        if not isinstance(characters, str) or not characters:
            raise TokenizerError(f"{source}: 'characters' is not a string; train the tokenizer again")
        is_sorted = all(a < b for a, b in zip(characters, characters[1:]))
        if not is_sorted and (in_order or len(set(characters)) < len(characters)):
            raise TokenizerError(f"{source}: 'characters' is not sorted or has repetitions; train the tokenizer again")
        try:
            self._bytes = [character.encode() for character in characters]
        except UnicodeEncodeError:
            raise TokenizerError(f"{source}: 'characters' has a lone surrogate; train the tokenizer again") from None
        self.characters, self.source, self.is_sorted = characters, source, is_sorted
        self._ids = {character: i for i, character in enumerate(characters)}
        self.n_vocab = len(characters)

    @classmethod
    def train(cls, text):
        """The tokenizer of all characters in a text (str, or bytes in UTF-8)."""
        text = _as_str(text, "the text")
        return cls("".join(sorted(set(text))))

    def encode(self, text, special="ordinary"):
        """The ids of a text (str or bytes). Raises TokenizerError for an unknown character.

        `special` is as in Tokenizer.encode, and has no effect: there are no special tokens.
        """
        if special not in SPECIAL:
            raise TokenizerError(f"special is {short(special)}, not a valid choice; use one of {', '.join(SPECIAL)}")
        return self.encode_array(text).tolist()

    def encode_array(self, text):
        """The same as an array("i")."""
        text = _as_str(text, "the text")
        try:
            return array("i", map(self._ids.__getitem__, text))
        except KeyError as error:
            known = self.characters if self.n_vocab <= 100 else self.characters[:100] + "..."
            raise TokenizerError(
                f"{error.args[0]!r} is not a character this model has learned; it knows {known!r}"
            ) from None

    def token_bytes(self, id):
        """The bytes of one token. Raises TokenizerError for an id outside the vocabulary."""
        if not 0 <= id < self.n_vocab:
            raise TokenizerError(f"id {id} is outside the vocabulary; use 0 to {self.n_vocab - 1}")
        return self._bytes[id]

    def decode_bytes(self, ids):
        """The concatenated bytes of the tokens."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids):
        """The text of the tokens."""
        return self.decode_bytes(ids).decode()

    def to_json(self):
        """Returns everything needed to create this tokenizer again, as one line of JSON."""
        order = {} if self.is_sorted else {"order": "any"}
        fields = {"format": FORMAT, "version": VERSION, **order, "characters": self.characters}
        return json.dumps(fields, separators=(",", ":"))

    def save(self, path):
        """Write the tokenizer to a file, atomically."""
        with atomic_write(path) as file:
            file.write(self.to_json().encode() + b"\n")

    @classmethod
    def from_fields(cls, fields, source):
        """The tokenizer from the parsed output of to_json. Every field is checked; raises TokenizerError."""
        if type(fields.get("version")) is not int or fields["version"] != VERSION:
            problem = f"version is {str(fields.get('version'))[:20]}, but this tinygrad2 reads {VERSION}"
            raise TokenizerError(f"{source}: {problem}; update tinygrad2")
        return cls(fields.get("characters"), source, in_order=fields.get("order") != "any")


def _as_str(text, what):
    if isinstance(text, str):
        return text
    try:
        return bytes(text).decode()
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not valid UTF-8, so it has no characters"
        raise TokenizerError(f"{what}: {problem}; use BPE instead") from None
