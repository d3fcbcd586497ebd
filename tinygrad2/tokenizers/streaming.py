"""Text that is written as it comes: whole characters only, and nothing of a stop string."""

import codecs
import sys

from tinygrad2.tokenizers.tokenizer import Tokenizer


class TextStream:
    """Tokens in, text out. As soon as one of the `stops` is complete the text ends, before it; how the text is cut into
    tokens makes no difference. (Where the same character completes two of them, the longer one counts.)

    What might be the beginning of a stop string is held back until it is clear:

        stream = TextStream(tokenizer, ["\\n\\n"])
        stream.feed(newline) -> ""        stream.feed(a) -> "\\na"
    """

    def __init__(self, tokenizer, stops=()):
        self.decoder, self.stops = StreamDecoder(tokenizer), [stop for stop in stops if stop]
        self.waiting = ""
        self.stopped = False

    def feed(self, token):
        """The text that this token makes certain, perhaps none."""
        return self._certain(self.decoder.feed(token))

    def flush(self):
        """What was held back when the tokens ended."""
        if self.stopped:
            return ""
        text = self._certain(self.decoder.flush()) + ("" if self.stopped else self.waiting)
        self.waiting = ""
        return text

    def _certain(self, new):
        if self.stopped:
            return ""
        text = self.waiting + new
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops if stop in text]   # end, begin
        if found:
            self.stopped, self.waiting = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.waiting = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text, stop):
    """How many of the last characters of the text may begin the stop string."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


def write(text):
    """To stdout at once, in UTF-8 whatever the terminal's encoding is called."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


class StreamDecoder:
    """Text from tokens that come one at a time. A character that is cut in two waits for its other half.

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
        """The text that this token completes, perhaps none."""
        return self._decoder.decode(self._token_bytes(id))

    def flush(self) -> str:
        """What was still waiting when the tokens ended: U+FFFD for half a character, mostly nothing."""
        return self._decoder.decode(b"", final=True)
