"""Encoding by tiktoken, faster for words not seen before, if it is installed and certain to return the same ids.

tiktoken looks a pair up by the bytes of its result, we by its two ids. Both return the same ids if all tokens have
different bytes and each token, encoded by itself, is one token. It must know the same letters, too (Unicode 16, see
pretokenizer.py). What it treats differently is encoded by us: bytes that are not valid UTF-8, and long runs of white
space, at which its regular expression engine runs out of stack.
"""

import re
import weakref
from array import array

from tinygrad2.tokenizers.bpe import apply_merges
from tinygrad2.tokenizers.pretokenizer import NEWER, PATTERN, as_text, text_blocks
from tinygrad2.tokenizers.tokenizer import BYTE_TO_ID, Tokenizer

_LONG_BLANK = re.compile(r"\s{1000}")
_ENCODINGS = weakref.WeakKeyDictionary()  # checking 50,000 tokens takes half a second
_LETTER_OF_16 = "\U000105c0"  # Todhri, new in Unicode 16


def fast_encoder(tokenizer):
    """Returns a function from text (str or bytes) to ids in an array("i"), equal to tokenizer.encode_array.

    Returns None if tiktoken is not installed or would return other ids.
    """
    if not isinstance(tokenizer, Tokenizer):
        return None
    if tokenizer not in _ENCODINGS:
        _ENCODINGS[tokenizer] = _encoding(tokenizer)
    encoding, encode_array = _ENCODINGS[tokenizer], tokenizer.encode_array

    def encode(text):
        decoded = as_text(text)
        if _LONG_BLANK.search(decoded) or not _is_utf8(decoded):
            return encode_array(text)
        ids = array("i")
        for start, end in text_blocks(decoded):  # a list of ids takes ten times the memory of an array
            ids.extend(encoding.encode_ordinary(decoded[start:end]))
        return ids

    return encode if encoding else None


def _encoding(tokenizer):
    try:
        import tiktoken
    except ImportError:
        return None
    tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.eot)]
    ranks = {token: id for id, token in enumerate(tokens)}
    if len(ranks) < len(tokens) or not _same_letters(tiktoken, tokens[:256]):
        return None
    encoding = tiktoken.Encoding("tinygrad2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    encoded = (apply_merges(tuple(token.translate(BYTE_TO_ID)), tokenizer.merges) for token in tokens)
    return encoding if all(list(ids) == [id] for id, ids in enumerate(encoded)) else None


def _same_letters(tiktoken, letters):
    """Does tiktoken know the letters of Unicode 16, and no later ones?"""
    ranks = {token: id for id, token in enumerate(letters)}
    encoding = tiktoken.Encoding("letters", pat_str=r"[\p{L}\p{N}]", mergeable_ranks=ranks, special_tokens={})
    newer = "".join(chr(int(part.split("-")[0], 16)) for part in NEWER)
    return bool(encoding.encode_ordinary(_LETTER_OF_16)) and not encoding.encode_ordinary(newer)


def _is_utf8(text):
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that as_text carries through as lone surrogates
        return False
    return True
