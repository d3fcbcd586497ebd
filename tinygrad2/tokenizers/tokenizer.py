"""From text to token ids and back: byte-level BPE, as in GPT-2.

A model reads numbers, so text must become numbers first. One number per character makes texts long and needs a table
of some 150,000 characters; one number per word never knows every word. Byte pair encoding (BPE) is in between:

1. Text is turned into bytes (UTF-8). There are only 256 of them, so every text in every script, and every binary
   file, can be written with 256 tokens. Nothing is ever "unknown".
2. Frequent neighbours become new tokens. Training counts neighbouring pairs, joins the most frequent one
   ("t" + "h" -> "th"), counts again ("th" + "e" -> "the"), and so on; see bpe.py. The list of these
   *merges*, in the order in which they were learned, is the whole tokenizer.
3. Before any of that the text is split into chunks: words with the space in front of them, numbers, punctuation, white
   space. Merges stay inside a chunk, or else "dog." and "dog!" would each become a token; see pretokenizer.py.

A worked example. Four merges are learned from a line of text:

>>> tokenizer = Tokenizer.train("the cat, the hat and the rat", vocab_size=256 + 4 + 1)
>>> SPLIT.findall("the cat, the hat and the rat")
['the', ' cat', ',', ' the', ' hat', ' and', ' the', ' rat']
>>> [tokenizer.token_bytes(id) for id in range(256, 260)]
[b'at', b'he', b'the', b' the']

To encode, the chunks are cut into bytes and the merges are applied in the order in which they were learned:
" that" is b" ", b"t", b"h", b"a", b"t"; of the four merges only the first one fits.

>>> ids = tokenizer.encode("the that")
>>> ids
[258, 220, 83, 71, 256]
>>> [tokenizer.token_bytes(id) for id in ids]
[b'the', b' ', b't', b'h', b'at']
>>> tokenizer.decode(ids)
'the that'

Ids are laid out as in GPT-2: 0..255 are the bytes (in GPT-2's order, see ID_TO_BYTE), merge k makes id 256 + k, and the
last id is <|endoftext|>, which separates documents. With GPT-2's merges these are GPT-2's ids.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tinygrad2.errors import UserError, short
from tinygrad2.io.files import MOST_JSON, atomic_write, read_bytes, unique_names
from tinygrad2.io.text_file import text_of
from tinygrad2.tokenizers.bpe import N_BYTES, Pair, apply_merges, train_merges
from tinygrad2.tokenizers.pretokenizer import PATTERN, SPLIT, as_text, count_chunks, word_blocks

END_OF_TEXT = "<|endoftext|>"
FORMAT, VERSION = "tinygrad2-bpe", 1
SPECIAL = ("ordinary", "allowed", "refused")  # how encode treats the text of a special token
REPLACE = "train the tokenizer again, or download the file again"

# GPT-2 wrote its tokens in a text file, so each byte has a visible character: printable Latin-1 characters represent
# themselves, the other 68 bytes take U+0100, U+0101, ... (the space is "Ġ"). Sorting by character gave the ids.
_PRINTABLE = [b for b in range(N_BYTES) if chr(b).isprintable() and b != ord(" ")]
_OTHERS = [b for b in range(N_BYTES) if b not in _PRINTABLE]
ID_TO_BYTE = bytes(_PRINTABLE + _OTHERS)  # ID_TO_BYTE[0] is "!"; ID_TO_BYTE[220] is the space
BYTE_TO_ID = bytes.maketrans(ID_TO_BYTE, bytes(range(N_BYTES)))  # the way back, for bytes.translate
ID_TO_SYMBOL = [chr(b) for b in _PRINTABLE] + [chr(N_BYTES + k) for k in range(len(_OTHERS))]

MAX_CACHE = 2**17  # words; then the cache is cleared, so that a long text cannot fill the memory with rare words
MAX_CACHED_WORD = 100  # characters; longer words rarely occur again
MAX_VOCAB_BYTES = 2**28  # each merge may double the longest token: 40 lines of a hostile file could make a terabyte


class TokenizerError(UserError, ValueError):
    """A tokenizer or its file cannot be used: one line with the file, what is wrong and the remedy."""


def chunk_to_ids(chunk: str) -> tuple[int, ...]:
    """The ids of a chunk's bytes, before any merge. ("h" is byte 104, but id 71.)

    >>> chunk_to_ids("hé")
    (71, 127, 102)
    """
    return tuple(chunk.encode("utf-8", "surrogateescape").translate(BYTE_TO_ID))


def special_parts(text: str, special: str, ids: Mapping[str, int]) -> Iterator[tuple[str, int | None]]:
    """Split a text at its special tokens: yields (plain text, id of the special token after it; None after the last).

    `ids` has the special tokens; if one is a prefix of another, the longer one wins. `special` is one of SPECIAL.
    Raises TokenizerError for another value, and if it is "refused" and the text has a special token.

    >>> list(special_parts("ab<|x|>c", "allowed", {"<|x|>": 7}))
    [('ab', 7), ('c', None)]
    >>> list(special_parts("ab<|x|>c", "ordinary", {"<|x|>": 7}))
    [('ab<|x|>c', None)]
    """
    if special not in SPECIAL:
        raise TokenizerError(f"special is {short(special)}, not a valid choice; use one of {', '.join(SPECIAL)}")
    start = 0
    if special != "ordinary" and ids:
        for match in re.finditer("|".join(map(re.escape, sorted(ids, key=len, reverse=True))), text):
            if special == "refused":
                problem = f"the text has the special token {short(match[0])} at character {match.start()}"
                remedy = "special='allowed' encodes it as its id, special='ordinary' as plain text"
                raise TokenizerError(f"{problem}; {remedy}")
            yield text[start : match.start()], ids[match[0]]
            start = match.end()
    yield text[start:], None


class WordIds(dict):
    """{word: its ids, as the bytes of an array("i")}. A missing word is encoded on first access.

    `merges` are those of a Tokenizer; `table`, if there is one, maps each of its ids to the id to store.
    """

    def __init__(self, merges, table=None):
        self.merges, self.table = merges, table

    def __missing__(self, word):
        if SPLIT.match(word).end() == len(word):
            ids = apply_merges(chunk_to_ids(word), self.merges)
            ids = array("i", ids if self.table is None else map(self.table.__getitem__, ids)).tobytes()
        else:
            ids = b"".join(self[match[0]] for match in SPLIT.finditer(word))  # a chunk is a word of one chunk
        if len(word) <= MAX_CACHED_WORD:
            if len(self) >= MAX_CACHE:
                self.clear()
            self[word] = ids
        return ids


class Tokenizer:
    """A list of merges, and what follows from it. Created by train, load, from_json or from_merges_txt.

    >>> tokenizer = Tokenizer([(83, 71), (256, 68)])  # t + h, th + e
    >>> tokenizer.encode("then")
    [257, 77]
    >>> tokenizer.n_vocab, tokenizer.eot
    (259, 258)
    """

    is_divisible = True  # a text may be divided where white space begins, and be encoded in parts

    def __init__(self, merges: Sequence[Pair], source: str = "Tokenizer(merges)"):
        """`source` names the origin of the merges in error messages. Raises TokenizerError."""
        self.merges: dict[Pair, int] = {}  # {(left, right): id of the result}, in order of learning
        self._token_bytes = [bytes([b]) for b in ID_TO_BYTE]
        vocab_bytes = N_BYTES
        for k, (left, right) in enumerate(merges):
            if not (0 <= left < N_BYTES + k and 0 <= right < N_BYTES + k):
                problem = f"is {short([left, right])}, but may only join ids from 0 to {N_BYTES + k - 1}"
                raise TokenizerError(f"{source}: merges[{k}] {problem}; {REPLACE}")
            if (left, right) in self.merges:
                problem = f"is {[left, right]}, as is merges[{self.merges[left, right] - N_BYTES}] already"
                raise TokenizerError(f"{source}: merges[{k}] {problem}; {REPLACE}")
            size = len(self._token_bytes[left]) + len(self._token_bytes[right])
            vocab_bytes += size
            if vocab_bytes > MAX_VOCAB_BYTES:
                problem = f"makes a token of {size} bytes and a vocabulary of {vocab_bytes}, too large to be useful"
                raise TokenizerError(f"{source}: merges[{k}] {problem}; {REPLACE}")
            self.merges[left, right] = N_BYTES + k
            self._token_bytes.append(self._token_bytes[left] + self._token_bytes[right])
        self._token_bytes.append(END_OF_TEXT.encode())
        self.eot = N_BYTES + len(self.merges)
        self.n_vocab = self.eot + 1
        self.special = {END_OF_TEXT: self.eot}
        self._cache = WordIds(self.merges)

    @classmethod
    def train(
        cls,
        text: str | bytes | Iterable[str | bytes],
        vocab_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Tokenizer":
        """Learn merges from a text, or from documents one by one (which need not be in memory together).

        vocab_size counts everything: 256 bytes, the merges, <|endoftext|>. A small text may run out of pairs that
        occur twice; then n_vocab is smaller. `progress(done, total)` is called after each merge.
        Raises TokenizerError if vocab_size is below 257.

        >>> Tokenizer.train("ab ab abc", vocab_size=4096).n_vocab  # 256 + "ab" and " ab" + <|endoftext|>
        259
        """
        if vocab_size < N_BYTES + 1:
            problem = f"vocab_size is {vocab_size}, but {N_BYTES} bytes and {END_OF_TEXT} need {N_BYTES + 1}"
            raise TokenizerError(f"{problem}; choose {N_BYTES + 1} or more")
        documents = [text] if isinstance(text, (str, bytes)) else text
        words = {chunk_to_ids(chunk): count for chunk, count in count_chunks(documents).items()}
        return cls(train_merges(words, vocab_size - N_BYTES - 1, progress))

    def encode(self, text: str | bytes, special: str = "ordinary") -> list[int]:
        """Returns the ids of a text, or of any bytes.

        `special` decides how "<|endoftext|>" in it is encoded: "ordinary" as plain text, because what strangers write
        should not end a document; "allowed" as the id `eot`; "refused" raises TokenizerError.

        >>> tokenizer = Tokenizer([(83, 71)])
        >>> tokenizer.encode("th<|endoftext|>", special="allowed")
        [256, 257]
        >>> tokenizer.encode("th<|endoftext|>")
        [256, 27, 91, 68, 77, 67, 78, 69, 83, 68, 87, 83, 91, 29]
        """
        ids = array("i")
        for part, id in special_parts(as_text(text), special, self.special):
            self._encode_into(ids, part)
            if id is not None:
                ids.append(id)
        return ids.tolist()

    def encode_array(self, text: str | bytes) -> "array[int]":
        """Returns the same ids as encode, in an array of 4 bytes each; a list takes several times the memory.

        >>> Tokenizer([(83, 71)]).encode_array("the")
        array('i', [256, 68])
        """
        ids = array("i")
        self._encode_into(ids, as_text(text))
        return ids

    def _encode_into(self, ids, text):
        for words in word_blocks(text):
            ids.frombytes(b"".join(map(self._cache.__getitem__, words)))

    def token_bytes(self, id: int) -> bytes:
        """Returns the bytes of one token, which may be only part of a character. Raises TokenizerError for unknown ids.

        >>> Tokenizer([]).token_bytes(220)
        b' '
        """
        if not 0 <= id < self.n_vocab:  # a negative id would silently count from the end
            raise TokenizerError(f"token id {id} is not in this vocabulary; use 0 to {self.n_vocab - 1}")
        return self._token_bytes[id]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the concatenated bytes of the tokens: exactly what was encoded.

        >>> tokenizer = Tokenizer([])
        >>> tokenizer.decode_bytes(tokenizer.encode(b"not UTF-8: \\xff\\x00"))
        b'not UTF-8: \\xff\\x00'
        """
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the tokens. Bytes that are not valid UTF-8, such as part of a character, become U+FFFD.

        >>> tokenizer = Tokenizer([])
        >>> ids = tokenizer.encode("né")  # é is two bytes, here two tokens
        >>> tokenizer.decode(ids), tokenizer.decode(ids[:2])
        ('né', 'n\ufffd')
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def to_json(self) -> str:
        """Returns everything needed to create this tokenizer again, as one line of JSON.

        >>> Tokenizer([(83, 71)]).to_json()[-51:]
        '"merges":[[83,71]],"special":{"<|endoftext|>":257}}'
        """
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "pattern": PATTERN,
            "merges": list(self.merges),
            "special": {END_OF_TEXT: self.eot},
        }
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "tokenizer JSON") -> "Tokenizer":
        """Returns the tokenizer that to_json wrote. Every field is checked; `source` names the file in error messages.

        Raises TokenizerError.

        >>> Tokenizer.from_json(Tokenizer([(83, 71)]).to_json()).encode("th")
        [256]
        """
        try:
            fields = json.loads(text, object_pairs_hook=unique_names)
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"{source}: is not valid JSON ({error}); {REPLACE}") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            form = fields.get("format") if isinstance(fields, dict) else fields
            raise TokenizerError(f"{source}: format is {short(form)}, not {FORMAT!r}; {REPLACE}")
        if type(fields.get("version")) is not int or fields["version"] != VERSION:
            problem = f"version is {short(fields.get('version'))}, but this tinygrad2 reads version {VERSION}"
            raise TokenizerError(f"{source}: {problem}; update tinygrad2, or train the tokenizer again")
        if fields.get("pattern") != PATTERN:
            problem = f"pattern is {short(fields.get('pattern'))}, but only GPT-2's pattern is supported"
            raise TokenizerError(f"{source}: {problem}; {REPLACE}")
        merges = fields.get("merges")
        if not isinstance(merges, list):
            raise TokenizerError(f"{source}: merges is {short(merges)}, not a list of [left, right]; {REPLACE}")
        for k, pair in enumerate(merges):
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(id) is int for id in pair)):
                raise TokenizerError(f"{source}: merges[{k}] is {short(pair)}, not two ids; {REPLACE}")
        special = {END_OF_TEXT: N_BYTES + len(merges)}
        if fields.get("special") != special or type(fields["special"][END_OF_TEXT]) is not int:
            raise TokenizerError(f"{source}: special is {short(fields.get('special'))}, not {special}; {REPLACE}")
        return cls(merges, source)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a file, atomically."""
        with atomic_write(path) as file:
            file.write(self.to_json().encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Returns the tokenizer that save wrote. Raises TokenizerError."""
        return cls.from_json(read_text(path), source=str(path))

    @classmethod
    def from_merges_txt(cls, path: str | Path) -> "Tokenizer":
        """Returns the tokenizer of merges in GPT-2's text form: OpenAI's vocab.bpe, Hugging Face's merges.txt.

        After a first line "#version: 0.2" there is one merge per line, such as "Ġt h": two tokens in the symbols of
        ID_TO_SYMBOL, in order of learning. Raises TokenizerError.
        """
        ids = {symbol: id for id, symbol in enumerate(ID_TO_SYMBOL)}
        merges: list[Pair] = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line or (number == 1 and line.startswith("#version")):
                continue
            parts = line.split(" ")
            if len(parts) != 2 or not all(part in ids for part in parts):
                problem = f"line {number} is {short(line)}, not two tokens of earlier lines separated by a space"
                raise TokenizerError(f"{path}: {problem}; {REPLACE}")
            token = parts[0] + parts[1]
            if token in ids:
                raise TokenizerError(f"{path}: line {number} makes token {short(token)} a second time; {REPLACE}")
            merges.append((ids[parts[0]], ids[parts[1]]))
            ids[token] = N_BYTES + len(merges) - 1
        return cls(merges, str(path))


def read_text(path: str | Path) -> str:
    """The text of a file. Raises TokenizerError if it cannot be read or decoded."""
    try:
        return text_of(read_bytes(path, MOST_JSON), path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: byte {error.start} is not valid UTF-8; {REPLACE}") from error
    except UserError as error:
        raise TokenizerError(str(error)) from error
