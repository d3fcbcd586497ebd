"""Text from tokens that arrive one at a time: complete characters only, and nothing from a stop string on."""

import codecs
from collections.abc import Collection

from tinygrad2.tokenizers.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes tokens one at a time. A character that is divided between tokens waits for its last byte.

    >>> tokenizer = Tokenizer([])
    >>> stream = StreamDecoder(tokenizer)
    >>> [stream.feed(id) for id in tokenizer.encode("né!")]
    ['n', '', 'é', '!']
    >>> stream.flush()
    ''
    """

    def __init__(self, tokenizer: Tokenizer):
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        """Returns the text that this token completes, perhaps none."""
        return self._decoder.decode(self._token_bytes(id))

    def flush(self) -> str:
        """Returns what was still waiting when the tokens ended: U+FFFD for an incomplete character, usually nothing."""
        return self._decoder.decode(b"", final=True)


class TextStream:
    """Decodes tokens one at a time, up to a stop string.

    As soon as one of the `stops` is complete the text ends, before it; how the text is divided into tokens makes no
    difference. (If the same character completes two of them, the longer one counts.) What may be the beginning of a
    stop string is held back until that is decided:

    >>> tokenizer = Tokenizer([])
    >>> stream = TextStream(tokenizer, ["\\n\\n"])
    >>> [stream.feed(id) for id in tokenizer.encode("a\\nb\\n\\nc")], stream.stopped
    (['a', '', '\\nb', '', '', ''], True)
    """

    def __init__(self, tokenizer: Tokenizer, stops: Collection[str] = ()):
        self.decoder, self.stops = StreamDecoder(tokenizer), [stop for stop in stops if stop]
        self.waiting = ""
        self.stopped = False

    def feed(self, id: int) -> str:
        """Returns the text that is certain after this token, perhaps none."""
        return self._certain(self.decoder.feed(id))

    def flush(self) -> str:
        """Returns what was held back when the tokens ended."""
        if self.stopped:
            return ""
        text = self._certain(self.decoder.flush()) + ("" if self.stopped else self.waiting)
        self.waiting = ""
        return text

    def _certain(self, new):
        if self.stopped:
            return ""
        text = self.waiting + new
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops if stop in text]  # (end, start)
        if ends:
            self.stopped, self.waiting = True, ""
            return text[: min(ends)[1]]
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.waiting = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text, stop):
    """How many of the last characters of the text may begin the stop string."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
