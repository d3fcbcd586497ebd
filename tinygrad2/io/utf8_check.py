"""Is a text valid UTF-8? Of one in another encoding, such as Latin-1, a model would learn bytes that are no characters.
"""

import re

from tinygrad2.errors import UserError


class Utf8Check:
    """Looks at a text, block by block, for bytes that are not valid UTF-8, and other oddities.

    invalid, first_invalid    number of invalid bytes, position of the first
    beyond_ascii              number of valid characters outside ASCII
    zeros, first_zero         number of zero bytes, position of the first
    returns, lines            number of \\r\\n and of \\n
    """

    def __init__(self):
        self.size = self.invalid = self.beyond_ascii = self.zeros = self.returns = self.lines = 0
        self.first_invalid = self.first_zero = self.first_value = None
        self.windows, self.rest = 0, b""

    def feed(self, block):
        """The next bytes of the text."""
        if self.first_zero is None and b"\0" in block:
            self.first_zero = self.size + block.index(0)
        self.zeros += block.count(0)
        self.returns += block.count(b"\r\n")
        self.lines += block.count(b"\n")
        whole = self.rest + block
        cut = len(whole) - incomplete(whole)
        self.rest = whole[cut:]
        self._decode(whole[:cut], self.size - len(whole) + len(block))
        self.size += len(block)

    def _decode(self, data, start):
        if data.isascii():
            return
        text = data.decode("utf-8", "surrogateescape")
        invalid = re.findall("[\udc80-\udcff]", text)
        self.beyond_ascii += len(re.findall(r"[^\0-\x7f]", text)) - len(invalid)
        if invalid:
            if self.first_invalid is None:
                before = text[: re.search("[\udc80-\udcff]", text).start()]
                self.first_invalid = start + len(before.encode())
                self.first_value = ord(invalid[0]) - 0xDC00
            self.invalid += len(invalid)
            self.windows += sum(0x80 <= ord(c) - 0xDC00 < 0xA0 for c in invalid)

    def refuse_other_encodings(self, path):
        """Raises UserError if most of what is not ASCII is not valid UTF-8: the text is in another encoding."""
        if self.invalid <= self.beyond_ascii:
            return
        found = f"{path}: byte {self.first_invalid:,} ({self.first_value:#04x}) is not valid UTF-8"
        if self.invalid > 0.2 * self.size:
            raise UserError(f"{found}: the text is in another encoding (such as GB18030, Shift-JIS or KOI8-R), or it "
                            "is no text; write it in UTF-8: iconv -f ENCODING -t UTF-8 OLD > NEW")
        guess = "WINDOWS-1252" if self.windows else "ISO-8859-1"
        name = {"WINDOWS-1252": "Windows-1252", "ISO-8859-1": "Latin-1 (ISO-8859-1)"}[guess]
        raise UserError(f"{found}: the text seems to be in {name}; write it in UTF-8: iconv -f {guess} -t UTF-8 OLD > "
                        "NEW")  # fmt: skip

    def notes(self, path):
        """Lines for the user about what is trained on as it is."""
        if self.invalid:
            yield (f"{path}: {self.invalid:,} byte(s) are not valid UTF-8, the first at byte {self.first_invalid:,}; "
                   "they are trained on as they are")  # fmt: skip
        if self.zeros:
            yield (f"{path}: has {self.zeros:,} zero byte(s), the first at byte {self.first_zero:,}; they are trained "
                   "on as they are (tr -d '\\000' removes them)")  # fmt: skip
        if 2 * self.returns > self.lines:
            yield (f"{path}: its lines end with \\r\\n, as on Windows; they are trained on as they are (dos2unix "
                   "changes them)")  # fmt: skip


def incomplete(data):
    """Bytes at the end of a block that begin a character of UTF-8 and do not complete it, 0 to 3."""
    for n in range(1, min(3, len(data)) + 1):
        byte = data[-n]
        if byte >= 0xC0:
            return n if n < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0
