"""Files that are forged: one field or number in them is changed, and every checksum is right again.

    forge(path, rng)    changes the file at `path`; returns what was changed, in words
    long_values(path)   every field in turn with a text of 100,000 characters, or with control characters

JSON is changed as a tree, also inside the strings of a header, headers of numbers number by number, tensors value by
value. tests/forged_files.py lets the programs read the results.
"""

import json
import math
import os
import struct
import zipfile
import zlib

import numpy as np

from tinygrad2.io import weights
from tinygrad2.io.files import crc32_text

NUMBERS = ["-1", "0", "1", "-0.0", "0.5", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e-320", "1e308",
           *(str(sign * 2**n + more) for n in (7, 15, 16, 31, 32, 53, 63, 64) for sign in (1, -1) for more in (-1, 0)),
           "1" + "0" * 30, "1" * 400, "9" * 5000]  # fmt: skip
OTHERS = ["null", "true", "false", '""', "[]", "{}", '"x"', '"3"', "[1]", "[null]", '{"a": 1}', '{"a": 1, "a": 2}',
          "[" * 40 + "]" * 40, '"' + "y" * 100_000 + '"', '"\\u0000\\u001b[31m\\n"', '"\\ud800"', '"/dev/zero"',
          "[" + "0, " * 10_000 + "0]", '"nan"', '"é\u202e"']  # fmt: skip
LONG = {
    "long": "y" * 100_000,
    "control characters": "\x1b[31m\x1b]0;t\x07\r\n\0\u202e\u2028\x9b2J" * 20,
    "bytes": "\udcff" * 50,
}
LARGE = (0, 1, 2, 3, -1, -2, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, -(2**31), 2**24)


def forge(path, rng):
    """Change one thing in a file, and set its checksums right. Returns what was changed, None for a file that has no
    fields. A file of a checkpoint is also entered into the manifest."""
    with open(path, "rb") as file:
        raw = file.read()
    changed, what = _forged(os.path.basename(path), raw, rng)
    if changed is None:
        return None
    with open(path, "wb") as file:
        file.write(changed)
    manifest = os.path.join(os.path.dirname(path), "manifest.json")
    if os.path.exists(manifest) and os.path.basename(path) != "manifest.json":
        enter(manifest, os.path.basename(path), changed)
    return what


def _forged(name, raw, rng):
    if is_record(name):
        return forge_record(raw, rng)
    if raw[8:9] == b"{" and raw[:2] != b"PK":
        return forge_container(raw, rng)
    if name.endswith(".jsonl"):
        return forge_lines(raw, rng)
    if raw[:1] in (b"{", b"["):
        return forge_json(raw, rng)
    if raw[:2] == b"PK":
        return forge_zip(raw, rng)
    if raw[:6] == b"\x93NUMPY":
        return forge_npy(raw, rng)
    if name.endswith((".bin", ".pkl")):
        return forge_numbers(raw, rng)
    return forge_text(raw, rng)


def is_record(name):
    """Is a file of this name JSON with a checksum of its own?"""
    known = ("manifest.json", "progress.json", "prepared.json", "_state.json", ".part.json")
    return name.endswith(known) or "-tokenizer-" in name


# -- JSON --------------------------------------------------------------------------------------------------------------


def nodes(value, path=()):
    """(path, value) of every node of a tree of JSON."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children)[:60]:
        yield from nodes(child, (*path, key))


def _replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


def forge_json(raw, rng):
    """(text, what was changed) of JSON."""
    tree = json.loads(raw)
    found = list(nodes(tree))
    shallow = [node for node in found if len(node[0]) <= 2]
    path, value = rng.choice(shallow if rng.random() < 0.6 else found)
    place = "/".join(map(str, path)) or "all"
    mark, kind = '"@@forged@@"', rng.random()
    if kind < 0.12 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        new = json.dumps({k: v for k, v in value.items() if k != key})
        what = f"{place} without {key}"
    elif kind < 0.2 and isinstance(value, dict):
        new = json.dumps(value | {"extra": 1})
        what = f"{place} with an extra field"
    elif kind < 0.28 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        new = json.dumps(value)[:-1] + f", {json.dumps(key)}: {rng.choice(NUMBERS[:8] + OTHERS[:6])}}}"
        what = f"{place} with {key} twice"
    elif kind < 0.36 and isinstance(value, dict) and len(value) > 1:
        a, b = rng.sample(list(value), 2)
        new = json.dumps(value | {a: value[b], b: value[a]})
        what = f"{place}: {a} and {b} exchanged"
    elif kind < 0.5 and isinstance(value, list):
        longer = rng.random() < 0.5
        new = json.dumps(value + value[-1:] if longer else value[:-1])
        what = f"{place} {'longer' if longer else 'shorter'}"
    elif kind < 0.65 and type(value) in (int, float) and math.isfinite(value):
        more = rng.choice([1, -1, value, -2 * value, 100, 0.5])
        new = json.dumps(value + more)
        what = f"{place} = {new[:40]}, was {value}"
    elif kind < 0.72 and isinstance(value, str):
        try:
            inner, what = forge_json(value.encode(), rng)
            new, what = json.dumps(inner.decode()), f"{place}: {what}"
        except (ValueError, RecursionError):
            new = json.dumps(value[:-1] if value else "z")
            what = f"{place} = {new[:40]}"
    else:
        new = rng.choice(NUMBERS if rng.random() < 0.5 else OTHERS)
        what = f"{place} = {new[:40]}, was {json.dumps(value)[:40]}"
    if not path:
        return new.encode("utf-8", "surrogatepass"), what
    text = json.dumps(_replaced(tree, path, "@@forged@@"))
    return text.replace(mark, new, 1).encode("utf-8", "surrogatepass"), what


def forge_record(raw, rng):
    """The same of a record or a manifest, with its checksum."""
    tree = json.loads(raw)
    tree.pop("checksum", None)
    text, what = forge_json(json.dumps(tree).encode(), rng)
    return sign_record(text), what


def sign_record(text):
    """A record's JSON with the checksum that its reader computes."""
    try:
        tree = json.loads(text)
        checksum = crc32_text(json.dumps(tree, sort_keys=True).encode())
    except (ValueError, RecursionError):
        return text
    if not isinstance(tree, dict):
        return text
    return text.rstrip()[:-1] + (b", " if tree else b"") + b'"checksum": "' + checksum.encode() + b'"}'


def forge_lines(raw, rng):
    """One line of a file of JSON lines."""
    lines = raw.splitlines(keepends=True)
    i, kind = rng.randrange(len(lines)), rng.random()
    if kind < 0.1:
        del lines[i]
        return b"".join(lines), f"without line {i}"
    if kind < 0.2:
        lines.insert(i, lines[i])
        return b"".join(lines), f"line {i} twice"
    line, what = forge_json(lines[i], rng)
    lines[i] = line + b"\n"
    return b"".join(lines), f"line {i}: {what}"


def long_values(path):
    """(what, content of the file) with each value, and each name of a field, replaced by each of LONG; checksums are
    right again. Only of JSON: as a file, a record, lines, or the header of a container."""
    name = os.path.basename(path)
    with open(path, "rb") as file:
        raw = file.read()
    if is_record(name):
        tree = json.loads(raw)
        tree.pop("checksum", None)
        text, finish = json.dumps(tree), sign_record
    elif raw[8:9] == b"{" and raw[:2] != b"PK":
        n = int.from_bytes(raw[:8], "little")
        text, finish = raw[8 : 8 + n], lambda text: sign_container(text, raw[8 + n :])
    elif name.endswith(".jsonl"):
        text, _, rest = raw.partition(b"\n")
        finish = lambda text: text + b"\n" + rest  # noqa: E731
    elif raw[:1] in (b"{", b"["):
        text, finish = raw, bytes
    else:
        return
    for what, tree in _with_long_values(json.loads(text)):
        yield what, finish(json.dumps(tree).encode())


def _with_long_values(tree):
    """(what, tree) with each node of a tree of JSON replaced; inside strings that are JSON, too."""
    for path, value in nodes(tree):
        place = "/".join(map(str, path)) or "all"
        for kind, text in LONG.items():
            yield f"{place}: {kind}", _replaced(tree, path, text)
            if isinstance(value, dict):
                for key in list(value)[:20]:
                    renamed = {text if k == key else k: v for k, v in value.items()}
                    yield f"{place}: the name {key}: {kind}", _replaced(tree, path, renamed)
        if isinstance(value, str) and value[:1] == "{":
            for what, inner in _with_long_values(json.loads(value)):
                yield f"{place}: {what}", _replaced(tree, path, json.dumps(inner))


# -- containers --------------------------------------------------------------------------------------------------------


def forge_container(raw, rng):
    """A safetensors file: its header, the JSON inside its metadata, or a value of a tensor."""
    n = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + n], bytearray(raw[8 + n :])
    if rng.random() < 0.25 and len(data) >= 4:
        at = 4 * rng.randrange(len(data) // 4)
        value = rng.choice([math.nan, math.inf, -math.inf, 1e38, -1e38, -1.0, 1e-45, 0.0])
        data[at : at + 4] = struct.pack("<f", value)
        what, text = f"value {at // 4} = {value}", header
    else:
        text, what = forge_json(header, rng)
    return sign_container(text, bytes(data)), what


def sign_container(text, data):
    """The file of a header and its tensors, with the checksum that the reader computes if it is one of ours."""
    try:
        header = json.loads(text)
        metadata = dict(header.get("__metadata__") or {})
    except (ValueError, RecursionError, AttributeError, TypeError):
        header, metadata = {}, {}
    claimed = metadata.pop("checksum", None)
    if isinstance(claimed, str) and isinstance(header, dict):
        rest = {name: entry for name, entry in header.items() if name != "__metadata__"}
        checksum = weights._checksum({"__metadata__": metadata, **rest}, [data])
        text = text.replace(json.dumps(claimed).encode(), json.dumps(checksum).encode(), 1)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def enter(manifest, name, content):
    """Enter a changed file of a checkpoint into its manifest."""
    with open(manifest, "rb") as file:
        tree = json.load(file)
    if not isinstance(tree.get("files"), dict) or name not in tree["files"]:
        return
    checksum = crc32_text(content)
    if name.endswith(".bin"):
        n = int.from_bytes(content[:8], "little")
        try:
            checksum = json.loads(content[8 : 8 + n])["__metadata__"]["checksum"]
        except (ValueError, KeyError, TypeError, RecursionError):
            checksum = ""
    tree["files"][name] = {"bytes": len(content), "checksum": checksum}
    if name == "state.json":  # the step is in both
        try:
            step = json.loads(content)["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            step = tree["step"]
        tree["step"] = step if type(step) is int and step >= 0 else tree["step"]
    tree.pop("checksum", None)
    with open(manifest, "wb") as file:
        file.write(sign_record(json.dumps(tree).encode()))


# -- other files -------------------------------------------------------------------------------------------------------


def forge_numbers(raw, rng):
    """A file with a header of int32, or of small numbers in any place."""
    raw, n = bytearray(raw), len(raw)
    kind = rng.random()
    if kind < 0.5:
        at = 4 * rng.randrange(max(1, min(n - 4, 44) // 4))
        old = struct.unpack_from("<i", raw, at)[0]
        new = rng.choice([*LARGE, old + 1, old - 1, old * 2, -old])
        struct.pack_into("<i", raw, at, max(-(2**31), min(2**31 - 1, new)))
        return bytes(raw), f"int32 at {at} = {new}, was {old}"
    if kind < 0.75:
        at = rng.randrange(n)
        raw[at] = rng.choice([0, 1, 127, 128, 255, raw[at] ^ 1])
        return bytes(raw), f"byte {at} = {raw[at]}"
    size = rng.choice([1, 2, 4, 1024])
    if kind < 0.87:
        return bytes(raw) + bytes(raw[-size:]), f"{size} bytes longer"
    return bytes(raw[:-size]), f"{size} bytes shorter"


def forge_npy(raw, rng):
    """NumPy's header, which is a dict in Python's spelling."""
    text = raw[10 : 10 + int.from_bytes(raw[8:10], "little")]
    old, new = rng.choice([
        (b"<u2", rng.choice([b"<i8", b"<f4", b">u2", b"|O", b"<U4", b"<u1", b"|V2", b"<c8", b"<M8[s]", b"<i1"])),
        (b"False", rng.choice([b"True", b"None", b"1", b"__import__('os')"])),
        (b"(2000,)", rng.choice([b"(-1,)", b"(2001,)", b"(1999,)", b"()", b"(1, 2000)", b"(2**70,)", b"[2000]", b"None",
                                 b"(20.0,)", b"(" * 300, b"(1" + b"0" * 40 + b",)", b"(True,)", b"(0,)", b"'x'"])),
        (b"descr", b"shape"), (b"shape", b"more"), (b"{", b"["),
    ])  # fmt: skip
    text = text.replace(old, new, 1)
    return raw[:8] + len(text).to_bytes(2, "little") + text + raw[10 + int.from_bytes(raw[8:10], "little") :], (
        f"{old.decode()} -> {new.decode()[:30]}"
    )


def forge_zip(raw, rng):
    """A file of torch.save: the program of its pickle, with the CRC of the member set right."""
    import io

    members = {}
    with zipfile.ZipFile(io.BytesIO(raw)) as source:
        names = source.namelist()
        members = {name: bytearray(source.read(name)) for name in names}
    name = rng.choice([n for n in names if n.endswith("data.pkl")] * 3 + names)
    content, kind = members[name], rng.random()
    if not content:
        return None, ""
    at = rng.randrange(len(content))
    numbers = [i for i in range(len(content) - 4) if content[i] in b"KMJ"]
    if kind < 0.5 and numbers and name.endswith(".pkl"):
        at = rng.choice(numbers) + 1
        content[at] = rng.choice([0, 1, 2, 127, 128, 255])
    elif kind < 0.8:
        content[at] = rng.randrange(256)
    elif kind < 0.9:
        del content[at:]
    else:
        del members[name]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for each, data in members.items():
            target.writestr(each, bytes(data))
    return out.getvalue(), f"{name} at {at}"


def forge_text(raw, rng):
    """A line of a text (merges.txt, ranks, hosts) changed, removed or repeated; odd bytes."""
    lines = raw.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    new = rng.choice([b"", lines[i] * 2, b"\n", b"a b\n", b"\xff\xfe\n", b"x" * 100_000 + b"\n", b"-1\n", b"\0\n",
                      lines[i].rstrip() + b" 1\n", rng.choice(lines), lines[i].replace(b"1", b"-1"),
                      lines[i].replace(b" ", b"  ", 1), b"<|endoftext|>" * 5 + b"\n"])  # fmt: skip
    lines[i] = new
    return b"".join(lines), f"line {i} = {new[:30]!r}"


def is_same(a, b):
    """Are two lists of arrays the same, bit for bit?"""
    return len(a) == len(b) and all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(a, b))


def crc(data):
    """CRC-32 of bytes."""
    return zlib.crc32(data)
