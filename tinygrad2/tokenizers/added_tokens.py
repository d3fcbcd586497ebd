"""Tokens that are found in a text before it is split into words: <|endoftext|>, [PAD], words that a user has added.

They are found as Hugging Face's tokenizers finds them:

1. Tokens that are not `normalized` are looked for first, in the whole text; the others in what is between them.
2. From left to right; if several begin at the same character, the longest is found.
3. A `single_word` token next to a letter, digit or underscore is not taken, nor anything else there.
4. `lstrip` and `rstrip` tokens absorb the white space on their left or right.

>>> tokens = AddedTokens([AddedToken("<mask>", 7, lstrip=True), AddedToken("<s>", 8)])
>>> list(tokens.pieces("a <mask> b<s>", "allowed"))
['a', 7, ' b', 8]
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import regex

from tinygrad2.errors import short
from tinygrad2.tokenizers.pretokenizer import NEWER_RANGES
from tinygrad2.tokenizers.tokenizer import SPECIAL, TokenizerError

# What Rust calls \w and \s; `re` and `regex` each have their own \w.
_WORD = regex.compile(rf"[[\p{{Alphabetic}}\p{{M}}\p{{Nd}}\p{{Pc}}\p{{Join_Control}}]--[{NEWER_RANGES}]]", regex.V1)
_SPACE = regex.compile(r"\s*")
_SPACE_BEFORE = regex.compile(r"(?r)\s*")  # matched from right to left


@dataclass(frozen=True)
class AddedToken:
    """A token, its id, and how it is found. A special token is found in texts only if the caller allows it."""

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def is_plain(self) -> bool:
        """Is it special, and found wherever its characters are?"""
        return self == AddedToken(self.content, self.id)

    def to_fields(self) -> dict[str, Any]:
        """Its fields for JSON, without those at their default."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


FLAGS = tuple(field.name for field in fields(AddedToken) if type(field.default) is bool)


class AddedTokens:
    """The added tokens of a tokenizer, and the search for them."""

    def __init__(self, tokens: Iterable[AddedToken]):
        self.tokens = list(tokens)
        self._phases = {"ordinary": _phases(token for token in self.tokens if not token.special)}
        self._phases["allowed"] = self._phases["refused"] = _phases(self.tokens)

    def pieces(self, text: str, special: str) -> Iterator[str | int]:
        """Divide a text: yields plain text (never empty) and the ids of the tokens in it.

        `special` is as in Tokenizer.encode. Raises TokenizerError for another value, and if it is "refused" and the
        text has a special token.
        """
        if special not in SPECIAL:
            raise TokenizerError(f"special is {short(special)}, not a valid choice; use one of {', '.join(SPECIAL)}")
        yield from _divide(text, 0, self._phases[special], special == "refused")


def _phases(tokens):
    """[(pattern, {content: token})] of the tokens to look for first, and of those to look for in the rest."""
    tokens = list(tokens)
    phases = []
    for normalized in (False, True):
        found = {token.content: token for token in tokens if token.normalized is normalized}
        if found:
            longest_first = sorted(found, key=len, reverse=True)
            phases.append((regex.compile("|".join(map(regex.escape, longest_first))), found))
    return phases


def _divide(text, offset, phases, refuse):
    if not phases:
        if text:
            yield text
        return
    (pattern, tokens), *later = phases
    start = 0
    for match in pattern.finditer(text):
        token, begin, end = tokens[match[0]], match.start(), match.end()
        if token.single_word and (_WORD.match(text, end) or (begin and _WORD.match(text, begin - 1))):
            continue
        if refuse and token.special:
            problem = f"the text has the special token {short(token.content)} at character {offset + begin}"
            remedy = "special='allowed' encodes it as its id, special='ordinary' as plain text"
            raise TokenizerError(f"{problem}; {remedy}")
        if token.lstrip:
            begin = max(start, _SPACE_BEFORE.match(text, 0, begin).start())
        if token.rstrip:
            end = _SPACE.match(text, end).end()
        if start < begin:
            yield from _divide(text[start:begin], offset + start, later, refuse)
        if begin < end:  # else an rstrip token on its left has absorbed all of it
            yield token.id
        start = end
    if start < len(text):
        yield from _divide(text[start:], offset + start, later, refuse)
