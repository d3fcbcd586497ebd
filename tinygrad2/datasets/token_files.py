"""Token files: the ids of a tokenized text in the formats of several projects, and many such files as one stream.

    kind             first bytes                                   ids
    llm.c            int32[256]: 20240520, 1, number of ids, 0...  uint16      also modded-nanogpt
    llm.c, llama-3   int32[256]: 20240801, 7, number of ids, 0...  uint32
    llm.c, legacy    none                                          int32
    nanoGPT          none                                          uint16
    npy              NumPy's own, one dimension                    uint16, int32, ...      build-nanogpt

Files without a header are distinguished by their halves: an int32 below 65,536 has a zero upper half, and text in
uint16 hardly ever has a zero at every second position. A short file for which that decides has a `note` for the user.
Ids of int64, as NumPy's tofile leaves them, are refused.

A step reads its rows from the open files, which may be larger than the memory. They are read and not mapped: reading
where a mapped file has been cut off would end the process with SIGBUS, without a message. Each block that is read is
compared with what it was when the file was opened (io/block_sums.py): one that differs is an error; that something else
has happened to the file is a note (see `TokenStream.notices`).
"""

import contextlib
import errno
import functools
import math
import os
import zlib
from collections import OrderedDict

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.io.block_sums import BlockSums, date_and_size
from tinygrad2.io.file_systems import retried, status_of
from tinygrad2.io.files import atomic_write
from tinygrad2.io.open_file import NotRegular, open_file
from tinygrad2.io.signatures import recognize

HEADERED = {20240520: (1, "llm.c", "<u2"), 20240801: (7, "llm.c, llama-3", "<u4")}  # magic: version, kind, dtype
_HEADER = 1024  # bytes
_LOOK = 1 << 20  # bytes of a headerless file that decide its format
_CERTAIN = 1 << 12  # ids from which on zeros at every second position are no coincidence
_FEW_WIDE = 8  # ids from which on int32 with a 0 at every second position is int64
_ENDS = 1 << 16  # bytes of each end of a file, which earlier versions compared


class ChangedData(UserError):
    """A token file was changed or removed while it was in use: what is left of it is not what was opened."""


class TokenFile:
    """One file of ids: path, kind, dtype, n (number of ids), offset (bytes before the first), note (or "").

    Raises UserError, one line, if the file is not a complete token file.
    """

    def __init__(self, path):
        self.path, self.note = str(path), ""
        self._file = self._sums = None
        self._used, self._noticed = False, ""
        try:
            with open_file(path) as file:
                self._state = _state_of(os.fstat(file.fileno()))
                self.bytes = self._state[-1]
                self._examine(file, file.read(_HEADER))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if not self.n:
            raise self._corrupt("it contains no ids")

    def _examine(self, file, head):
        if head.startswith(b"\x93NUMPY"):
            file.seek(0)
            self._examine_npy(file)
            return
        magic, version, n = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4").tolist()
        if magic in HEADERED:
            expected, self.kind, dtype = HEADERED[magic]
            self.dtype, self.n, self.offset = np.dtype(dtype), n, _HEADER
            if version != expected:
                raise self._corrupt(f"version is {version}, not {expected}")
            if n < 0 or _HEADER + n * self.dtype.itemsize != self.bytes:
                size = f"{self.bytes:,} bytes long instead of {_HEADER + n * self.dtype.itemsize:,}"
                raise self._corrupt(f"its header says {n:,} ids, but it is {size}")
            return
        if kind := recognize(head, self.path):
            raise UserError(f"{self.path}: not a valid token file: it {kind}")
        if self.path.lower().endswith(".npy"):
            raise self._corrupt("it does not begin as a .npy file")
        if self.bytes % 2:
            raise self._corrupt(f"{self.bytes:,} bytes are not a multiple of 2, the size of an id")
        file.seek(0)
        look = np.frombuffer(file.read(min(_LOOK, self.bytes // 4 * 4)), "<u2")
        is_int32 = self.bytes % 4 == 0 and len(look) >= 4 and not look[1::2].any()
        if len(look) and not look.any():
            raise self._corrupt(f"its first {2 * len(look):,} bytes are zero, as an interrupted download leaves them")
        if is_int32 and self.bytes % 8 == 0 and len(look) >= 4 * _FEW_WIDE and not look[2::4].any():
            raise self._corrupt("it has no header, and of every 64 bits only the lower 16 are used: ids of int64; "
                                "write them with ids.astype('uint16').tofile(...), or with numpy.save")  # fmt: skip
        self.kind, dtype = ("llm.c, legacy", "<i4") if is_int32 else ("nanoGPT", "<u2")
        self.dtype, self.offset = np.dtype(dtype), 0
        self.n = self.bytes // self.dtype.itemsize
        if is_int32 and self.n < _CERTAIN:
            self.note = (f"{self.path}: has no header, and every second 16 bits are 0: taken for {self.n:,} ids of "
                         "int32; if they are of uint16, save them as .npy")  # fmt: skip

    def _examine_npy(self, file):
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, self.dtype = read(file)
        except Exception as error:  # NumPy's parser raises many types for damaged headers
            raise self._corrupt(f"its npy header is damaged ({type(error).__name__})") from None
        self.kind, self.offset, self.n = "npy", file.tell(), math.prod(shape)
        if len(shape) != 1 or self.dtype.kind not in "iu" or self.dtype.byteorder == ">":
            raise self._corrupt(f"its npy header has {self.dtype} {shape}, not one axis of integers")
        if self.offset + self.n * self.dtype.itemsize != self.bytes:
            size = f"{self.bytes:,} bytes long"
            raise self._corrupt(f"its npy header says {self.n:,} ids of {self.dtype}, but it is {size}")

    def _corrupt(self, problem):
        return UserError(f"{self.path}: not a valid token file: {problem}; download it or create it again")

    def __len__(self):
        return self.n

    def read(self, start, stop):
        """Returns ids start .. stop - 1, a new array (stop - start,) int64.

        Raises ChangedData if they are not what the file had when it was opened, or can no longer be read.
        """
        first, size = self.offset + start * self.dtype.itemsize, (stop - start) * self.dtype.itemsize
        return np.frombuffer(self._bytes(first, size), self.dtype).astype(np.int64)

    def _bytes(self, start, size):
        sums = self.sums()
        try:
            content, problem = retried(self._with_file, lambda: sums.read(self._file, start, size))
        except OSError as error:
            raise self._changed(f"it can no longer be read ({error.strerror})") from None
        if problem:
            raise self._changed(problem)
        self._used = True
        return content

    def _with_file(self, call):
        """call() with the file open. After an OSError the next try opens it anew: on NFS the open file can no longer be
        read once another host has replaced it. Whether it is still the same is seen by its blocks."""
        self.open()
        try:
            return call()
        except OSError:
            self.close()
            raise

    def open(self):
        """Open the file, if it is closed. Raises ChangedData if that is impossible."""
        if self._file is not None:
            return
        try:
            self._file = retried(open_file, self.path, "rb", 0)
        except NotRegular:
            raise self._changed("it is no longer a regular file") from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):       # nothing has happened to the file
                raise
            raise self._changed(f"it can no longer be opened ({error.strerror})") from None

    def _changed(self, problem):
        return ChangedData(f"{self.path}: has been changed or removed since it was opened: {problem}; restore it, or "
                           "create it again")

    def sums(self):
        """The BlockSums of the file, which every read is compared with; the first call reads all of it, if need be.

        Raises UserError if the file has changed since it was examined.
        """
        if self._sums is None:
            try:
                self._sums = retried(self._with_file, self._make_sums)
            except OSError as error:
                raise self._changed(f"it can no longer be read ({error.strerror})") from None
            finally:
                self.close()
        return self._sums

    def _make_sums(self):
        sums = BlockSums.of_file(self._file)
        if date_and_size(os.fstat(self._file.fileno())) != self._state[2:]:  # some file systems have no lasting numbers
            raise self._changed("another file has taken its place, or it was written to")
        return sums

    def use_sums(self, sums):
        """Compare with these, rank 0's. Raises UserError if this file has another size."""
        if sums is None or sums.size != self.bytes:
            raise UserError(f"{self.path}: is not the file that rank 0 reads; copy it to every host")
        self._sums = sums

    def notices(self):
        """Lines for the user about what has happened to the file since the last call. What is read is what was there
        at first all the same: the open file is read, and each block compared."""
        if self._file is None or not self._used:
            return []
        self._used = False
        try:
            status = status_of(self.path)
            here = _state_of(status) if status else None
            changed = here is None or here[2:] != self._state[2:]  # its number alone means nothing on some file systems
            replaced = "has been replaced" if here and here[:2] != self._state[:2] else "was written to"
            problem = "" if not changed else replaced if here else "has been removed"
        except OSError:  # it cannot be told
            problem = ""
        noticed, self._noticed = self._noticed, problem or self._noticed
        if not problem or problem == noticed:
            return []
        how = "it is read on as long as it is the same" if problem == "was written to" else "the open file is read on"
        return [f"{self.path}: {problem} while it is read; {how}"]

    def close(self):
        """Close the file; the next read opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # nothing was written
                file.close()

    __del__ = close

    def ends(self):
        """CRC-32 of the first and the last 64 KB."""
        size = min(_ENDS, self.bytes)
        return zlib.crc32(self._bytes(self.bytes - size, size), zlib.crc32(self._bytes(0, size)))

    def crc(self):
        """CRC-32 of the complete file."""
        return self.sums().whole


def _state_of(status):
    """(device, inode, date, bytes) of an os.stat_result: if they are the same, so is the file."""
    return status.st_dev, status.st_ino, *date_and_size(status)


class MemoryTokens:
    """Ids in memory, with the interface of a TokenFile."""

    path, kind, bytes = "the text", "memory", 0

    def __init__(self, ids):
        self.ids = np.asarray(ids)
        self.n = len(self.ids)

    def read(self, start, stop):
        """Returns ids start .. stop - 1, a new array of int64."""
        return self.ids[start:stop].astype(np.int64)

    def open(self):
        """Nothing to open."""

    def close(self):
        """Nothing to close."""

    def notices(self):
        """Nothing can happen to them."""
        return []

    def ends(self):
        """That of the file that write_tokens would write: a training may go on with it, once there is room for it."""
        data = b"".join(_encode(self.ids))
        return zlib.crc32(data[-_ENDS:], zlib.crc32(data[:_ENDS]))

    def crc(self):
        """The same for CRC-32 of the complete file."""
        header, data = _encode(self.ids)
        return zlib.crc32(data, zlib.crc32(header))

    def sums(self):
        """None: memory does not change."""

    def use_sums(self, sums):
        """Nothing to compare."""


class TokenStream:
    """The concatenated ids of several TokenFiles, from position `start` to `stop` of them all.

    vocab_size   ids at or above it are refused when they are read; None: any
    """

    def __init__(self, files, vocab_size=None, start=0, stop=None):
        self.files, self.vocab_size = list(files), vocab_size
        self.ends = np.cumsum([file.n for file in self.files])  # position after the last id of each file
        self.start = start
        self.stop = int(self.ends[-1]) if stop is None else stop
        self._open = OrderedDict()

    @classmethod
    def of(cls, ids, vocab_size=None):
        """Returns a stream of ids in memory."""
        return cls([MemoryTokens(ids)], vocab_size)

    def __len__(self):
        return self.stop - self.start

    def lengths(self):
        """The number of ids in the stream from each file; files without any are left out."""
        ends = zip(self.ends.tolist(), self.files)
        inside = (min(end, self.stop) - max(end - file.n, self.start) for end, file in ends)
        return [n for n in inside if n > 0]

    def part(self, start, stop):
        """Returns the ids start .. stop - 1 of this stream as a stream."""
        return TokenStream(self.files, self.vocab_size, self.start + start, self.start + stop)

    def read(self, starts, length):
        """Returns windows (len(starts), length) int64 from the given positions; after the last id comes the first.

        Raises UserError, with file and position, for an id outside the vocabulary.
        """
        windows = np.empty((len(starts), length), np.int64)
        for window, start in zip(windows, starts):
            done, position = 0, int(start) % len(self)
            while done < length:
                n = min(length - done, len(self) - position)
                self._read_into(window[done : done + n], self.start + position)
                done, position = done + n, 0
        return windows

    def _read_into(self, out, position):
        done = 0
        while done < len(out):
            i = int(np.searchsorted(self.ends, position + done, side="right"))
            file = self.files[i]
            first = position + done - (int(self.ends[i]) - file.n)
            n = min(len(out) - done, file.n - first)
            ids = file.read(first, first + n)
            self._check_ids(ids, file, first)
            out[done : done + n] = ids
            done += n
            self._note_use(file)

    def _check_ids(self, ids, file, first):
        if self.vocab_size is None or (0 <= ids.min() and ids.max() < self.vocab_size):
            return
        i = int(np.flatnonzero((ids < 0) | (ids >= self.vocab_size))[0])
        raise UserError(
            f"{file.path}: id {ids[i]} at position {first + i:,} is outside a vocabulary of {self.vocab_size:,}: "
            "the model needs a larger --vocab-size, or the file is damaged"
        )

    def _note_use(self, file):
        """Keep few files open: a dataset may have more shards than a process may have open files."""
        self._open[file] = None
        self._open.move_to_end(file)
        if len(self._open) > _most_open():
            oldest, _ = self._open.popitem(last=False)
            oldest.close()

    def notices(self):
        """Lines for the user: what has happened to the files that are open, since the last call."""
        return [line for file in list(self._open) for line in file.notices()]

    def open(self):
        """Open the files now, as many as stay open: what happens to their names later does not matter."""
        for file in self.files:
            file.open()
            self._note_use(file)

    def fingerprint(self):
        """Hex digits that change with the ids: "number, position and ends.content", both hashes of 8 digits."""
        facts = [(file.n, file.ends()) for file in self.files]
        content = [file.crc() for file in self.files]
        return ".".join(f"{zlib.crc32(repr(part).encode()):08x}" for part in ((facts, self.start, self.stop), content))


@functools.cache
def _most_open():
    """How many files a stream keeps open: a part of the file descriptors that the process may have."""
    try:
        import resource
    except ImportError:  # Windows
        return 32
    return min(1000, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4 - 4))


def write_tokens(path, ids):
    """Write ids as llm.c does: a header, then uint16 if they fit, else uint32. Atomic.

    Raises ValueError for more than 2^31 - 1 ids, UserError if the file cannot be written.
    """
    ids = np.asarray(ids)
    if len(ids) >= 1 << 31:
        raise ValueError(f"{len(ids):,} ids do not fit into one file; its header counts up to 2^31 - 1")
    with atomic_write(path) as file:
        for part in _encode(ids):
            file.write(part)


def _encode(ids):
    """(header, ids) as bytes, as llm.c stores them."""
    magic = 20240520 if not len(ids) or ids.max() < 1 << 16 else 20240801
    version, _, dtype = HEADERED[magic]
    header = np.zeros(_HEADER // 4, "<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes(), ids.astype(dtype).tobytes()


def write_raw(path, ids, dtype=np.uint16):
    """Write ids without a header, as nanoGPT (uint16) and the first llm.c (int32) do. Atomic."""
    with atomic_write(path) as file:
        file.write(np.asarray(ids).astype(np.dtype(dtype).newbyteorder("<")).tobytes())
