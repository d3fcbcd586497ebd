"""The texts that tokens are made from: read as UTF-8 in whatever form they are stored, checked, and identified.

A text is the one that a record was made from if its content is: the SHA-256 of all of it. Names, sizes and dates do not
identify a text: in an unpacked archive, or a read-only image, two may agree in all three. Only of texts above
ALWAYS_READ bytes the content is not read at every start; of those the system's own facts about the file are compared
(which file system and file, when it was last changed), and samples of the content.
"""

import hashlib
import os

from tinygrad2.errors import UserError
from tinygrad2.io.block_sums import date_and_size, facts_of
from tinygrad2.io.files import write_record
from tinygrad2.io.open_file import open_file
from tinygrad2.io.text_file import examine, open_text
from tinygrad2.io.utf8_check import Utf8Check

ALWAYS_READ = 256 << 20  # bytes; reading so many takes less than half a second once they are in memory
_BLOCK = 1 << 22  # bytes that are in memory at a time
_SAMPLES, _SAMPLE = 16, 1 << 16  # number and bytes of the samples of a larger text
_MOST_NOTES = 5  # about the texts that are printed; the others are counted


class TextSource:
    """One or several text files. Raises UserError for one that cannot be read, or is not a text.

    sizes    bytes of each in UTF-8; exact once sha256() has read them
    """

    def __init__(self, paths, log=print):
        self.paths, self.log = paths, log
        examined = [examine(path) for path in paths]
        self.forms = [form for form, _, _ in examined]
        self._binary = [kind is not None and kind.role == "bytes" for _, kind, _ in examined]
        self.name = os.path.basename(os.path.abspath(paths[0]))
        if len(paths) > 1:
            names = hashlib.sha256(b"/".join(os.fsencode(os.path.basename(path)) for path in paths)).hexdigest()
            self.name = f"{os.path.basename(os.path.dirname(os.path.abspath(paths[0])))}-all-{names[:8]}"
        try:
            stats = [os.stat(path) for path in paths]
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
        self.sizes = [status.st_size for status in stats]
        self._stats, self._sha256, self._identity = stats, None, None

    def open(self, i, start=0):
        """File number i, in UTF-8, from byte `start` on. Raises UserError if it is not what it was at first."""
        self.check(i)
        file = open_text(self.paths[i], self.forms[i])
        if self.forms[i].is_plain:
            file.seek(start)
        while start > 0 and not self.forms[i].is_plain:
            start -= len(file.read(min(start, _BLOCK)) or b"x" * start)
        return file

    def check(self, i):
        """Raises UserError if file number i was changed, replaced or removed since this TextSource was made: different
        passes over it would read different texts."""
        try:
            status = os.stat(self.paths[i])
        except OSError as error:
            raise UserError(f"{self.paths[i]}: can no longer be read ({error.strerror})") from None
        own = self._stats[i]
        if (status.st_ino, *date_and_size(status)) != (own.st_ino, *date_and_size(own)):
            raise UserError(f"{self.paths[i]}: was changed while it was read; start again when it is complete")

    def sha256(self):
        """The SHA-256 of the texts of all files. Raises UserError for one that is in another encoding than UTF-8."""
        if self._sha256 is None:
            digest, notes = hashlib.sha256(), []
            for i, path in enumerate(self.paths):
                check = Utf8Check()
                with self.open(i) as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                        check.feed(block)
                self.check(i)
                digest.update(b"\0end\0")
                if not self._binary[i]:
                    check.refuse_other_encodings(path)
                    notes += check.notes(path)
                self.sizes[i] = check.size
            for note in notes[:_MOST_NOTES]:
                self.log(f"note      {note}")
            if len(notes) > _MOST_NOTES:
                self.log(f"note      ... and {len(notes) - _MOST_NOTES:,} more such notes")
            self._sha256 = digest.hexdigest()
        return self._sha256

    def facts(self):
        """The fields of a record that identify the text."""
        return {"identity": self.identity(), "form": self._form(), "sha256": self.sha256()}

    def matches(self, record):
        """Was the record made from this text?"""
        if record is None or record.get("form", "UTF-8") != self._form():  # records without the field are of UTF-8
            return False
        if sum(status.st_size for status in self._stats) > ALWAYS_READ and self.identity() is not None:
            return self.identity() == record.get("identity") or self.sha256() == record.get("sha256")
        return self.sha256() == record.get("sha256")

    def refresh(self, record, path):
        """Write a record that matches again with the present identity, so that a large text need not be read again."""
        if record.get("identity") != self.identity():
            write_record(path, record | {"identity": self.identity()})

    def identity(self):
        """What the system says of the files, and a hash of samples; None while a change might not show in the dates."""
        if self._identity is None:
            facts = [facts_of(path, status) for path, status in zip(self.paths, self._stats)]
            if None in facts:
                return None
            for fact, path, status in zip(facts, self.paths, self._stats):
                digest = hashlib.sha256()
                with open_file(path) as file:
                    for i in range(_SAMPLES):
                        file.seek(max(0, status.st_size - _SAMPLE) * i // (_SAMPLES - 1))
                        digest.update(file.read(_SAMPLE))
                fact.append(digest.hexdigest())
            self._identity = sum(facts, [])
        return self._identity

    def _form(self):
        forms = list(map(str, self.forms))
        return forms[0] if len(set(forms)) == 1 else forms
