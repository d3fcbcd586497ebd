"""The page of `python -m tinygrad2 explain`: one HTML file, which needs nothing but a browser.

Its parts are beside this file: page.html, page.css, and the scripts that draw the data. The page forbids itself every
request (Content-Security-Policy).
"""

import json
import os

from tinygrad2.io.files import atomic_write, first_bytes, read_bytes

_MARK = b"<title>tinygrad2: explain"
_SCRIPTS = {"forward": ("common.js", "forward.js"), "step": ("common.js", "step.js", "memory.js")}


def write_page(path, kind, data):
    """Write the page, atomically; returns its size in bytes.

    kind   "forward" or "step"
    data   JSON values; whatever texts are in it, they stay texts
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))           # ASCII: the rest is escaped
    text = text.replace("<", "\\u003c")                           # so no prompt ends the script
    page = _part("page.html").replace("/* STYLE */", _part("page.css")).replace("KIND", kind)
    head, tail = page.split("/* SCRIPT */")
    scripts = "".join(map(_part, _SCRIPTS[kind]))
    page = f"{head}const DATA = {text};\n{scripts}begin();\n{tail}".encode()
    with atomic_write(path) as file:
        file.write(page)
    return len(page)


def is_page(path):
    """Is this file a page that `explain` has written?"""
    return _MARK in first_bytes(path, 1000)


def _part(name):
    return read_bytes(os.path.join(os.path.dirname(__file__), name)).decode()
