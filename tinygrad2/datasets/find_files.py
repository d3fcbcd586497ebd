"""Which files --data names: a file, those in a folder or of a pattern, each told by its content to be text or tokens.

    texts (.txt .text .md, also compressed: .txt.gz) and token files (.bin .npy) of a folder, and of the folders in it
    every file that a pattern matches

Links are followed, also to folders; a folder or file that is reached twice is read once. What tinygrad2 itself has
written (weights, metrics, runs, what it printed) and other files that are no data are left out. A file that stands in
place of data, such as a pointer of git-lfs, is an error. `notes` say what was left out and why.
"""

import errno
import glob
import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass, field

from tinygrad2.datasets.token_files import HEADERED, TokenFile
from tinygrad2.errors import UserError
from tinygrad2.io.signatures import Kind, recognize_file
from tinygrad2.io.text_file import COMPRESSED_NAMES, examine, looks_like_text
from tinygrad2.tokenizers.formats import TOKENIZER_FILES

TEXTS, TOKENS = (".txt", ".text", ".md"), (".bin", ".npy")
SPLIT = re.compile(r"(?:(?P<name>.+?)[_-])??(?P<split>train|val|valid|validation)(?:[_-]?\d+)?$",
                   re.IGNORECASE)
_CACHE, _RECORD = ".tinygrad2", "progress.json"  # see text_cache.py
_OTHER_DATA = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".html", ".htm", ".xml", ".pdf",
               ".docx", ".epub", ".rtf", ".rst", ".tex", ".log", ".srt", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz",
               ".zst", ".7z", ".npz", ".h5", ".db", ".sqlite")  # fmt: skip
_MOST_NAMED = 3  # files that a note names; the others are counted


@dataclass
class Files:
    """The files of --data: paths of texts and of token files, in the order of their names, and notes for the user."""

    texts: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_files(data):
    """The Files of the path or pattern `data`. Raises UserError, one line, if there are none, or for a file that
    stands in place of data."""
    try:
        mode = os.stat(data).st_mode
    except (OSError, ValueError) as error:
        return _of_pattern(data, error)
    if not stat.S_ISDIR(mode):
        return _sorted_out([data], data, lenient=False)
    walk = _Walk(data)
    files = _sorted_out(walk.paths, data, lenient=True, left_out=walk.left_out)
    if not files.texts + files.tokens:
        kinds = f"texts ({' '.join(TEXTS)}) nor token files ({' '.join(TOKENS)})"
        raise UserError("; ".join([f"{data}: contains neither {kinds}", *files.notes]))
    return files


def split_of(path):
    """(name of the dataset or None, "train" or "val") that a file's name says."""
    match = SPLIT.match(stem(path))
    split = "val" if match and match["split"].lower().startswith("val") else "train"
    return (match["name"] if match else stem(path)), split


def stem(path):
    """The name of a file without its endings: deep/a_train.txt.gz -> a_train."""
    return os.path.splitext(_uncompressed(os.path.basename(path)))[0]


def _uncompressed(name):
    return name[: name.rindex(".")] if name.lower().endswith(COMPRESSED_NAMES) else name


def _of_pattern(data, error):
    """The Files of a pattern; `error` says why there is no file of that name."""
    reason = getattr(error, "strerror", None) or str(error)
    missing = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR)
    matches = sorted(set(_expand(data))) if missing and glob.has_magic(data) else []
    paths = [path for path in matches if os.path.isfile(path)]
    if not paths:
        if matches:
            raise UserError(f"{data}: matches folders only; {os.path.join(data, '*')!r} is what is in them")
        raise UserError(f"{data}: cannot be read ({reason}); --data takes a file, a folder, a pattern")
    left_out = defaultdict(list, {"a link to nothing": [path for path in matches if not os.path.exists(path)]})
    if len(paths) > 1:
        left_out["files of a tokenizer"] = [path for path in paths if os.path.basename(path) in TOKENIZER_FILES]
        paths = [path for path in paths if os.path.basename(path) not in TOKENIZER_FILES]
    paths = _once(paths, left_out)
    files = _sorted_out(paths, data, lenient=len(paths) > 1, left_out=left_out)
    if not files.texts + files.tokens:
        raise UserError("; ".join([f"{data}: matches neither texts nor token files", *files.notes]))
    return files


def _expand(pattern):
    """The paths that match a pattern. As glob.glob(recursive=True), but ** enters no folder twice: links may lead
    back."""
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if "**" not in parts:
        return glob.glob(pattern)
    i = parts.index("**")
    rest = parts[i + 1 :] or ["*"]
    found, seen = [], set()
    todo = glob.glob(os.path.join(os.sep.join(parts[:i]) or (os.sep if i else ""), "")) if i else [""]
    while todo:
        folder = todo.pop()
        status = os.stat(folder or ".")
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            found += _expand(os.path.join(glob.escape(folder), *rest))
            folders = glob.glob(os.path.join(glob.escape(folder), "*", ""))
            folders = [path for path in folders if not _leads_up(path[:-1])]
            todo += sorted(folders, key=lambda path: not os.path.islink(path[:-1]))  # from the end: links come last
    return found


def _leads_up(path):
    """Is this a link to the folder that it is in, or to one above? Following it would leave the data."""
    inside, target = os.path.realpath(os.path.dirname(path)), os.path.realpath(path)
    return os.path.islink(path) and os.path.join(inside, "").startswith(os.path.join(target, ""))


# -- what a file is ----------------------------------------------------------------------------------------------------


def _sorted_out(paths, data, lenient, left_out=None):
    """The Files of these paths; with `lenient` those that are no data are left out, otherwise they are an error."""
    files, left_out = Files(), defaultdict(list) if left_out is None else left_out
    odd = defaultdict(list)
    for path in paths:
        kind = _classify(path, files, lenient, odd)
        if kind is not None:
            left_out[kind.what].append(path)
    for reason, names in sorted(left_out.items()):
        if not names:
            continue
        names = [os.path.relpath(name, data) if os.path.isdir(data) else name for name in names]
        files.notes.append(f"not read: {_list(names)}: {reason}")
    files.notes += [f"{_list(names)}: {what}" for what, names in odd.items()]
    return files


def _list(names):
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _classify(path, files, lenient, odd):
    """Put a file among the texts or the tokens; returns its Kind if it is to be left out.

    odd    {what is odd about it: paths}, for notes
    """
    form, kind, head = examine(path)
    by_name = path.lower().endswith(TOKENS)
    if head.startswith(b"\x93NUMPY") or int.from_bytes(head[:4], "little") in HEADERED or (
        _uncompressed(path).lower().endswith(TOKENS) and (kind is None or kind.role == "bytes")
        and not looks_like_text(head)
    ):  # fmt: skip
        if form.compression:
            raise UserError(f"{path}: is a token file compressed by {form.compression}; decompress it: token files are "
                            "mapped into memory as they are")
        if lenient and head.startswith(b"\x93NUMPY") and not _is_ids(path):
            return Kind("an array that is not one row of ids", "")
        files.tokens.append(path)
        return None
    if kind and kind.role == "structured" and path.lower().endswith(TEXTS):
        odd[f"is {kind.what}; names and brackets are trained on as well"].append(path)
    elif kind and lenient and kind.role in ("ours", "other", "bytes"):
        return kind
    elif kind and kind.role == "bytes":
        odd[f"is {kind.what}; its bytes are trained on as they are ({kind.remedy})"].append(path)
    elif kind:
        raise UserError(f"{path}: {kind}")
    if by_name:
        odd["is a text, in spite of its name"].append(path)
    files.texts.append(path)
    return None


def _is_ids(path):
    """Is a .npy file one axis of integers, or damaged? (Then it is not left out: opening it reports what is wrong.)"""
    try:
        TokenFile(path)
    except UserError as error:
        return "not one axis of integers" not in str(error)
    return True


# -- folders -----------------------------------------------------------------------------------------------------------


class _Walk:
    """The candidates in a folder and the folders in it, told by their names.

    paths       in the order of their names; the files of a folder come before its folders
    left_out    {reason: paths}
    """

    def __init__(self, top):
        self.left_out, self._paths, self._links, self._folders = defaultdict(list), [], [], {}
        self._folder(top, is_top=True)
        for link in self._links:  # after the folders themselves; links found on the way are appended
            self._folder(link)
        unread = sorted(self.left_out.pop("unread", ()))
        self.paths = _once(sorted(self._paths, key=_by_folder), self.left_out)
        if unread:
            endings = " ".join((*TEXTS, *TOKENS))
            self.left_out[f"only {endings} are read from a folder; a pattern reads any text"] = unread

    def _folder(self, folder, is_top=False):
        try:
            status = os.stat(folder)
            names = sorted(os.listdir(folder))
        except OSError as error:
            if is_top:
                raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
            self.left_out[f"cannot be read ({error.strerror})"].append(folder)
            return
        first = self._folders.setdefault((status.st_dev, status.st_ino), folder)
        if first != folder:
            self.left_out[f"the same folder as {first}"].append(folder)
            return
        if not is_top and _RECORD in names and _is_ours(os.path.join(folder, _RECORD)):
            self.left_out["tokens that tinygrad2 keeps of a text"].append(folder)
            return
        for name in names:
            self._entry(os.path.join(folder, name), name)

    def _entry(self, path, name):
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            reason = "a link to nothing" if error.errno == errno.ENOENT else f"cannot be read ({error.strerror})"
            self.left_out[reason].append(path)
            return
        is_candidate = _uncompressed(name).lower().endswith(TEXTS + TOKENS) and name not in TOKENIZER_FILES
        if name.startswith("."):
            if is_candidate or stat.S_ISDIR(mode) and name not in (_CACHE, ".git"):
                self.left_out["hidden, its name begins with a dot"].append(path)
        elif stat.S_ISDIR(mode):
            if _leads_up(path):
                self.left_out["a link back to a folder that it is in"].append(path)
            elif os.path.islink(path):
                self._links.append(path)
            else:
                self._folder(path)
        elif not stat.S_ISREG(mode):
            self.left_out["a pipe, device or socket"].append(path)
        elif is_candidate:
            self._paths.append(path)
        elif name.lower().endswith(_OTHER_DATA) and name not in TOKENIZER_FILES and not _is_ours(path):
            self.left_out["unread"].append(path)


def _is_ours(path):
    """Has tinygrad2 written this file?"""
    try:
        kind = recognize_file(path)
    except UserError:
        return False
    return kind is not None and kind.role == "ours"


def _by_folder(path):
    """Sort key: the files of a folder before its folders, each by name."""
    *folders, name = path.split(os.sep)
    return [(1, folder) for folder in folders] + [(0, name)]


def _once(paths, left_out):
    """The paths without those of a file that another one names; a file may still be both "train" and "val"."""
    names = defaultdict(list)
    for path in paths:
        status = os.stat(path)
        names[status.st_dev, status.st_ino, split_of(path)[1]].append(path)
    kept = set()
    for same in names.values():
        own = [path for path in same if not os.path.islink(path)] or same
        first = min(own, key=lambda path: (path.count(os.sep), path))
        kept.add(first)
        if len(same) > 1:
            left_out[f"the same file as {first}"] += [path for path in same if path != first]
    return [path for path in paths if path in kept]
