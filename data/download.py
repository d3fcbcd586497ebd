"""Shared by the prepare scripts: downloads that resume where they were interrupted.

A download grows in <name>.part and is renamed when its size and its checksum have been verified. If the connection
breaks it is resumed (by an HTTP Range request), at once or the next time the script runs; if the server has another
file by then (its ETag differs), it starts again.
"""

import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from tinygrad2.distributed.launch import exit_with_line
from tinygrad2.system.installation import require_libraries

require_libraries(exit_with_line)

from data.prepared import claim, writing
from tinygrad2.cli import PathAction
from tinygrad2.errors import UserError, one_line, short
from tinygrad2.io.files import make_folder, read_bytes, read_record, write_record
from tinygrad2.io.open_file import open_file
from tinygrad2.monitor.progress import Meter
from tinygrad2.system.installation import data_folder
from tinygrad2.tokenizers.load import load_tokenizer

HUB = "https://huggingface.co"
GPT2_MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_BLOCK = 1 << 16
_TIMEOUT, _TRIES = 30, 5  # seconds without a byte; attempts
_PATIENCE = 60  # seconds for an answer, and for each block: below 1 KB/s a connection counts as broken
_MOST = 8 << 30  # bytes of a file of unknown size
_LISTING, _LISTING_SECONDS = 50_000_000, 120  # at most, of a listing
_ETAG = re.compile("[\x21-\x7e\xa0-\xff]{1,1000}")  # what can be sent in a header


def add_common_flags(parser, out):
    """--out and --mirror, which every prepare script has."""
    out = out and data_folder(os.path.basename(out))
    parser.add_argument("--out", action=PathAction, role="output", default=out, metavar="DIR",
                        help="folder for results (default: next to this script; data/NAME if installed by pip)")
    parser.add_argument("--mirror", action=PathAction, role="input", default="", metavar="URL",
                        help="download from this server, by the same paths (default: the original ones)")  # fmt: skip


def state_needs(out, download_mb, disk_mb, memory_mb, minutes):
    """Print what is needed. Raises UserError if the disk has less."""
    make_folder(out)
    print(f"needs     {download_mb:,.0f} MB of download, {disk_mb:,.0f} MB of disk in {out}, {memory_mb:,.0f} MB of "
          f"memory, about {minutes:,.0f} minute(s)", flush=True)  # fmt: skip
    free = shutil.disk_usage(out).free / 1e6
    if free < disk_mb:
        raise UserError(f"{out}: {free:,.0f} MB are free, {disk_mb:,.0f} MB are needed; choose another --out")


def fetch(url, path, sha256=None, size=None, mirror=""):
    """Make sure that the file of `url` is at `path`, complete and verified; returns the path.

    Raises UserError, one line, if the server or the network fails, or if the content differs.
    """
    if mirror:
        url = mirror.rstrip("/") + urllib.parse.urlsplit(url).path
    if os.path.exists(path):
        _refuse_other(path, sha256, size)
        return path
    part = path + ".part"
    for attempt in range(_TRIES):
        try:
            _download(url, part, size)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 or attempt == _TRIES - 1:
                raise UserError(f"{url}: the server answers {error.code} {_reason(error)}; try --mirror URL, or "
                                f"download it by hand and put it at {path}") from None
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (28, 122):  # disk or quota full
                raise UserError(f"{part}: {error.strerror}; free some space and run this again to resume") from None
            if attempt == _TRIES - 1:
                raise UserError(f"{url}: no connection ({_reason(error)}); run this again to resume") from None
        except ValueError as error:  # a redirect to what is no address, for example
            raise UserError(f"{url}: cannot be used ({_reason(error)}); try --mirror URL") from None
        time.sleep(_pause(attempt))
    _check(part, path, sha256, size)
    os.replace(part, path)
    return path


def _within(seconds, what, function, *args, **more):
    """What the function returns or raises; TimeoutError (`what`) if it has not ended by then.

    The timeout of a socket begins again with each byte, so it does not end a server that sends one per second. The
    function goes on in a thread, which ends with the process.
    """
    results = queue.SimpleQueue()

    def work():
        try:
            results.put((function(*args, **more), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"{what} within {seconds} s") from None
    if error:
        raise error
    return result


def _reason(error):
    """What an exception of urllib says, on one line of at most 200 characters."""
    text = getattr(error, "reason", None) or error
    return one_line(" ".join(str(text).split()), 200) or type(error).__name__


def _pause(attempt):
    """Seconds before another attempt: 1, 2, 4, ..."""
    return 2**attempt


def _download(url, part, size=None):
    """Download what is missing of the .part file; <name>.part.json has the ETag of the complete file.

    Raises UserError if the server sends it compressed, or more than the `size` of the file.
    """
    have = os.path.getsize(part) if os.path.exists(part) else 0
    etag = _usable((read_record(part + ".json") or {}).get("etag"))
    request = urllib.request.Request(url, headers={"User-Agent": "tinygrad2"})
    if have and etag:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", etag)
    try:
        response = _within(_PATIENCE, "no answer", urllib.request.urlopen, request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            error.close()
            if error.headers.get("Content-Range", f"bytes */{size}").strip() == f"bytes */{have}":
                return  # nothing is missing: the checks decide
            os.remove(part)
            raise ConnectionError("the file has changed, and is downloaded again") from None
        raise
    with response:
        have = have if response.status == 206 else 0  # 200: the server starts again
        _refuse_compressed(url, response)
        write_record(part + ".json", {"etag": _usable(response.headers.get("ETag"))})
        total = have + response.length if response.length is not None else None
        most = size if size is not None else _MOST if total is None else total
        meter = Meter(os.path.basename(part).removesuffix(".part"), total or 0, done=have)
        with open_file(part, "r+b" if have else "wb") as file:
            file.seek(have)
            while block := _within(_PATIENCE, f"less than {_BLOCK:,} bytes", response.read, _BLOCK):
                file.write(block)
                meter.add(len(block))
                if file.tell() > most:
                    os.remove(part)
                    os.remove(part + ".json")
                    raise UserError(f"{url}: the download is another file (more than {most:,} bytes long); it has been "
                                    "removed, run this again, or try --mirror URL")  # fmt: skip
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
            if total is not None and file.tell() < total:
                raise http.client.IncompleteRead(b"")
        meter.close()
    if os.path.exists(part + ".json"):
        os.remove(part + ".json")


def _usable(etag):
    """The ETag if it can be sent back to the server, else None."""
    return etag if isinstance(etag, str) and _ETAG.fullmatch(etag) else None


def _refuse_compressed(url, response):
    """Nothing has asked for that: a file that is compressed on the way would be another one."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise UserError(f"{url}: the server sends it as {short(encoding)}, compressed; try --mirror URL")


def _check(path, name, sha256, size):
    problem = _problem(path, sha256, size)
    if problem:
        os.remove(path)
        raise UserError(f"{name}: the download is another file ({problem}); it has been removed, run this again")


def _refuse_other(path, sha256, size):
    """Raises UserError if an existing file, which may have been put there by hand, is not the expected one."""
    try:
        problem = _problem(path, sha256, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); move it away and run this again") from None
    if problem:
        raise UserError(f"{path}: is not the expected file ({problem}); move it away and run this again")


def _problem(path, sha256, size):
    actual = os.path.getsize(path)
    problem = f"{actual:,} bytes long instead of {size:,}" if size is not None and actual != size else ""
    if not problem and sha256:
        digest = hashlib.sha256()
        with open_file(path) as file:
            while block := file.read(1 << 24):
                digest.update(block)
        if digest.hexdigest() != sha256:
            problem = f"its SHA-256 is {digest.hexdigest()[:16]}... instead of {sha256[:16]}..."
    return problem


def fetch_all(files, mirror=""):
    """Make sure that all of [(url, path, size, sha256)] exist, complete and verified (None: not checked).

    Existing files may have been put there by hand: they are checked, and neither downloaded nor removed. If one cannot
    be downloaded, all missing ones are listed. Raises UserError.
    """
    for _, path, size, sha256 in files:
        if not os.path.exists(path):
            continue
        _refuse_other(path, sha256, size)
        print(f"exists    {path}", flush=True)
    try:
        for url, path, size, sha256 in files:
            if not os.path.exists(path):
                fetch(url, path, sha256, size, mirror)
                print(f"fetched   {path}", flush=True)
    except UserError:
        list_missing(files)
        raise


def list_missing(files):
    """Print which of [(url, path, size, sha256)] are missing, and how to get them by hand."""
    print("missing   download these on another machine and put them here; then run this again to have them checked:")
    for url, path, _, _ in files:
        if not os.path.exists(path):
            print(f"          {url}\n              -> {os.path.abspath(path)}", flush=True)


def hub_files(repo, folder, revision="main", mirror="", ending="", kind="datasets"):
    """Returns [(path, size, sha256)] of the files in a folder on the Hugging Face hub, from its public listing.

    `kind` is "datasets" or "models". The SHA-256 is None for small files, which are listed without. Raises UserError.
    """
    url = f"{HUB}/api/{kind}/{repo}/tree/{urllib.parse.quote(revision, safe='')}/{folder}".rstrip("/")
    url = mirror.rstrip("/") + urllib.parse.urlsplit(url).path if mirror else url
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "tinygrad2"})
        text = _within(_LISTING_SECONDS, "not complete", _read_listing, url, request)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UserError(f"{url}: cannot be listed ({_reason(error)}); try --mirror URL") from None
    try:
        listing = json.loads(text)
        entries = [entry for entry in listing if entry["type"] == "file" and entry["path"].endswith(ending)]
        files = [_checked(entry["path"], entry["size"], (entry.get("lfs") or {}).get("oid")) for entry in entries]
        if len({path for path, _, _ in files}) < len(files):
            raise ValueError("a path occurs twice")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{url}: the response is not a list of files; has the hub changed? Try --mirror URL") from None
    if not files:
        raise UserError(f"{url}: there are no {ending} files")
    return sorted(files)


def _read_listing(url, request):
    """The bytes of a response, which must be short."""
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        _refuse_compressed(url, response)
        text = response.read(_LISTING + 1)
        if len(text) > _LISTING:
            raise ValueError(f"it is not complete after {_LISTING:,} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
    return text


def _checked(path, size, sha256):
    """What a listing says of a file, if it is possible; raises ValueError if not, as for a path to another folder."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > 200 or not part.isprintable() for part in parts):
        raise ValueError(f"{path!r} is not the path of a file")
    if type(size) is not int or not 0 <= size < 1 << 50:
        raise ValueError(f"{size!r} is not the size of a file")
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256")
    return path, size, sha256


def hub_url(repo, path, revision="main", kind="datasets"):
    """Returns the URL of a file of a dataset or a model."""
    folder = "" if kind == "models" else f"{kind}/"
    return f"{HUB}/{folder}{repo}/resolve/{urllib.parse.quote(revision, safe='')}/{path}"


def gpt2_tokenizer(out, merges, mirror, also=()):
    """Returns GPT-2's tokenizer, from a file of merges or downloaded; saves it as tokenizer.json next to the tokens.

    `also` are other files that are needed, as fetch_all takes them: missing ones are listed together.
    """
    path = merges or os.path.join(out, "vocab.bpe")
    fetch_all([*also] if merges else [*also, (GPT2_MERGES, path, 456_318, GPT2_MERGES_SHA256)], mirror)
    tokenizer, target = load_tokenizer(path), os.path.join(out, "tokenizer.json")
    if not (os.path.isfile(target) and read_bytes(target) == tokenizer.to_json().encode() + b"\n"):
        claim(out, ["tokenizer.json"], [("--merges", path)])
        with writing(out, "tokenizer.json"):
            tokenizer.save(target)
    return tokenizer
