"""Encodes many documents into one stream of token ids; large texts in several processes, with the same result.

Python runs one thread at a time, so using more cores takes more processes. Each worker is a new Python process that
imports the tokenizer and nothing else (not NumPy, whose threads would compete for the cores) and answers over pipes:

    to the worker      the tokenizer as a line of JSON; then shares: a line of JSON with the lengths of the texts and
                       whether the last of them is a complete document, then the texts themselves
    from the worker    "ready"; then for each share a line with the number of bytes, then the ids, 4 bytes each

The standard library's multiprocessing would need less code, but its workers import the user's main program again, or
are forked from a process in which other threads (BLAS, MPI) may hold locks at that moment.
"""

import contextlib
import json
import queue
import re
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tinygrad2.errors import UserError
from tinygrad2.system.threads import planned_threads
from tinygrad2.tokenizers.pretokenizer import as_text
from tinygrad2.tokenizers.tiktoken_encoder import fast_encoder
from tinygrad2.tokenizers.tokenizer import Tokenizer

PARALLEL_FROM = 8 << 20  # bytes of text; with fewer, starting two processes costs about as much as they save
SHARE = 1 << 20  # approximate bytes of text that a worker gets at a time

# A long document may be cut before a space or line break that follows a character other than white space: no chunk
# reaches across. The first set has the bytes that no white space ends with; U+2003, for example, is e2 80 83.
CUT = re.compile(rb"[^\x00-\x20\x7f-\x8a\x9f\xa0\xa8\xa9\xaf](?=[ \n])")

_START = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"  # with our search path


class EncodingError(UserError):
    """A worker process ended before its work was done."""


class _CannotStart(Exception):
    """Workers cannot be started on this machine or with this Python: encode in this process."""


def encode_stream(
    documents: Iterable[str | bytes], tokenizer: Tokenizer, workers: int | None = None
) -> "array[int]":
    """Returns the ids of all documents, each followed by the end-of-text token if there is one, as array("i").

    `workers` is the number of processes. By default it is one for small texts, and for large ones the threads that the
    thread plan grants this process (under mpirun its share of the cores). The ids are the same for any number.
    Raises EncodingError if a worker dies.
    """
    documents = list(documents)
    size = sum(map(len, documents))
    if not isinstance(tokenizer, Tokenizer):
        workers = 1  # workers encode BPE only; one process is fast enough for characters
    if workers is None:
        workers = 1 if size < PARALLEL_FROM else planned_threads()
    workers = min(workers, size // SHARE)
    if workers > 1:
        with contextlib.suppress(_CannotStart):
            return _encode_in_parallel(documents, tokenizer, workers)
    encode = fast_encoder(tokenizer) if size >= PARALLEL_FROM else None
    return _encode_texts(documents, True, tokenizer, encode)


def _encode_texts(texts, last_is_complete, tokenizer, encode=None):
    """The ids of texts, an end-of-text token after each; the last gets one only if it is a complete document."""
    ids = array("i")
    for text in texts:
        ids += (encode or tokenizer.encode_array)(text)
        if tokenizer.eot is not None:
            ids.append(tokenizer.eot)
    if texts and not last_is_complete and tokenizer.eot is not None:
        ids.pop()
    return ids


def shares(documents):
    """Divide documents into shares of about SHARE bytes: yields (texts, last_is_complete). Only long documents are cut.

    With SHARE = 4: [b"one", b"two", b"one two three"] -> ([b"one", b"two"], True), ([b"one two"], False),
    ([b" three"], True)
    """
    texts, size = [], 0
    for document in documents:
        if isinstance(document, str):
            document = as_text(document).encode("utf-8")
        start, view = 0, memoryview(document)  # slices of a view are not copies
        while len(document) - start > SHARE and (cut := CUT.search(document, start + SHARE)):
            yield [*texts, view[start : cut.end()]], False
            texts, size, start = [], 0, cut.end()
        texts.append(view[start:])
        size += len(document) - start
        if size >= SHARE:
            yield texts, True
            texts, size = [], 0
    if texts:
        yield texts, True


# -- the parent's side -------------------------------------------------------------------------------------------------


def _encode_in_parallel(documents, tokenizer, workers):
    """One thread per worker, which only writes to the worker's pipe and waits for the answer."""
    idle, stream = queue.SimpleQueue(), array("i")

    def encode(share):
        worker = idle.get()
        try:
            return worker.encode(*share)
        finally:
            idle.put(worker)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(workers) as threads:
        try:
            started = [stack.enter_context(_Worker()) for _ in range(workers)]
            list(threads.map(lambda worker: worker.prepare(tokenizer), started))
            for worker in started:
                idle.put(worker)
            for ids in threads.map(encode, shares(documents)):  # in the order of the shares
                stream.frombytes(ids)
        except BaseException:  # also Ctrl-C: the threads wait for the workers, so end the workers first
            threads.shutdown(wait=False, cancel_futures=True)
            stack.close()
            raise
    return stream


class _Worker:
    """A process that runs `serve`, and the parent's side of its pipes."""

    def __init__(self):
        command = [sys.executable or "", "-c", _START, *sys.path]
        with contextlib.ExitStack() as undo:
            try:
                self.errors = undo.enter_context(tempfile.TemporaryFile())  # a pipe would have to be drained
                pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
                self.process = subprocess.Popen(command, start_new_session=True, **pipes)  # no Ctrl-C
            except OSError as error:
                raise _CannotStart from error
            undo.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()  # it has nothing to save
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):  # of bytes that were not written out
                stream.close()

    def prepare(self, tokenizer):
        """Send the tokenizer and wait until the worker is ready."""
        try:
            self._send(tokenizer.to_json().encode() + b"\n")
        except OSError as error:
            raise _CannotStart from error
        if self.process.stdout.readline() != b"ready\n":
            raise _CannotStart

    def encode(self, texts, last_is_complete):
        """The ids of one share, as bytes."""
        try:
            self._send(json.dumps([[*map(len, texts)], last_is_complete]).encode() + b"\n", *texts)
            size = int(self.process.stdout.readline())
            ids = self.process.stdout.read(size)
            if len(ids) == size:
                return ids
        except (OSError, ValueError):  # ValueError: an empty line instead of a number, that is, the end of the pipe
            pass
        problem = f"a worker process ended before its work was done ({self._reason()})"
        raise EncodingError(f"encoding: {problem}; try again, with more free memory")

    def _send(self, *parts):
        self.process.stdin.writelines(parts)
        self.process.stdin.flush()

    def _reason(self):
        """The last line of the worker's stderr, or else its signal or exit code."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1] if lines else f"signal {-code}" if code < 0 else f"exit code {code}"


# -- the worker's side -------------------------------------------------------------------------------------------------


def serve():
    """Encode shares from stdin to stdout until the parent closes the pipe."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    tokenizer = Tokenizer.from_json(stdin.readline().decode())
    encode = fast_encoder(tokenizer)
    stdout.write(b"ready\n")
    stdout.flush()
    while line := stdin.readline():
        lengths, last_is_complete = json.loads(line)
        ids = _encode_texts([stdin.read(length) for length in lengths], last_is_complete, tokenizer, encode).tobytes()
        stdout.write(b"%d\n" % len(ids) + ids)
        stdout.flush()
