"""Splits a text into chunks, which merges never cross: words, numbers, runs of punctuation or of white space.

This relies on one property: white space is the only thing that a chunk looks ahead to, and a chunk holds
at most one space before anything else. So a text may be split into *words* first, each with the space before it and
whatever is attached to it (" don't!" is the chunks " don", "'t", "!"), and the words, split one by one, have the same
chunks as the text. Python's `re` finds words three times as fast as `regex` finds chunks, and most words of a text have
been seen before.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import regex  # for chunks, since `re` knows neither \p{L} (a letter of any script) nor \p{N}

# GPT-2's split: English contractions, then letters, digits or other marks with one space in front, then white space,
# which leaves its last character to the next chunk: "a   b" is "a", "  ", " b".
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Which characters are letters changes from one version of Unicode to the next, and `regex` is ahead of tiktoken and
# Hugging Face's tokenizers, which both have version 16. Ids must not depend on that, so version 16 is used here: these,
# letters and digits of later versions, are marks like all unassigned characters.
NEWER = (
    "0558 058B-058C 088F 0C5C 0CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D "
    "107BB-107BF 10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DE0-11DE9 11DF1 1246F "
    "12475-1247F 12550-12686 16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-18D20 "
    "18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 "
    "1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F "
    "2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F "
).split()  # fmt: skip
NEWER_RANGES = "".join("-".join(rf"\U{int(end, 16):08X}" for end in part.split("-")) for part in NEWER)
_LETTERS, _DIGITS = rf"[\p{{L}}--[{NEWER_RANGES}]]", rf"[\p{{N}}--[{NEWER_RANGES}]]"
_MARKS = rf"[[^\s\p{{L}}\p{{N}}]||[{NEWER_RANGES}]]"
SPLIT = regex.compile(
    PATTERN.replace(r"[^\s\p{L}\p{N}]", "MARKS").replace(r"\p{L}", _LETTERS).replace(r"\p{N}", _DIGITS)
    .replace("MARKS", _MARKS), regex.V1,
)  # fmt: skip

# The same with every mark taken for a letter. `re` takes U+001C..U+001F for white space, `regex` and Unicode do not:
# [^\S\x1c-\x1f] is white space without them, [\S\x1c-\x1f] everything else.
WORDS = re.compile(r" ?[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+(?![\S\x1c-\x1f])|[^\S\x1c-\x1f]+")
WORD_END = re.compile(r"[\S\x1c-\x1f](?=[^\S\x1c-\x1f])")

BLOCK = 2**20  # characters whose words are in memory at a time: a list of words takes 20 times the memory of the text


def split(text: str) -> list[str]:
    """Split a text into the chunks that merges stay inside of. Joined, they are the text again.

    >>> split("I'll pay 25 euros,  or so!")
    ['I', "'ll", ' pay', ' 25', ' euros', ',', ' ', ' or', ' so', '!']
    """
    return SPLIT.findall(text)


def as_text(text: str | bytes) -> str:
    """Returns text that the pattern can split and that chunk_to_ids turns into the right bytes.

    Bytes that are not valid UTF-8 become lone surrogates, Python's own way ("surrogateescape") to keep them in a str.
    Such surrogates in a str, however, represent no bytes: they become U+FFFD, as in tiktoken.

    >>> as_text(b"caf\\xc3\\xa9 \\xff")
    'café \\udcff'
    >>> as_text("a\\udcffb")
    'a\ufffdb'
    """
    if not isinstance(text, str):
        return text.decode("utf-8", "surrogateescape")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def word_blocks(text: str) -> Iterator[list[str]]:
    """The words of a text in lists, each list from about BLOCK characters.

    >>> list(word_blocks("Don't  stop!"))
    [["Don't", ' ', ' stop!']]
    """
    for start, end in text_blocks(text):
        yield WORDS.findall(text, start, end)


def text_blocks(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of parts of about BLOCK characters. Each ends after a word and before white space, so no word and
    no chunk is divided.

    >>> list(text_blocks("Don't  stop!"))
    [(0, 12)]
    """
    start = 0
    while start < len(text):
        cut = WORD_END.search(text, start + BLOCK)
        end = cut.end() if cut else len(text)
        yield start, end
        start = end


def count_chunks(documents: Iterable[str | bytes]) -> Counter[str]:
    """How often each chunk occurs. Words are counted first, so that a word seen 1000 times is split into chunks once.

    >>> count_chunks(["It's!", "It's."])
    Counter({'It': 2, "'s": 2, '!': 1, '.': 1})
    """
    chunk_counts: Counter[str] = Counter()
    for word_counts in _word_counts(documents):
        for word, count in word_counts.items():
            for match in SPLIT.finditer(word):
                chunk_counts[match[0]] += count
    return chunk_counts


def _word_counts(documents):
    """Counters of words, each from BLOCK characters or more, of many documents or a part of a long one."""
    word_counts, characters = Counter(), 0
    for document in documents:
        text = as_text(document)
        for words in word_blocks(text):
            word_counts.update(words)
            characters += min(len(text), BLOCK)
            if characters >= BLOCK:
                yield word_counts
                word_counts, characters = Counter(), 0
    yield word_counts
