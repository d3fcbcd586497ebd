"""Tokens as a page shows them, and numbers as it stores them."""

import base64

import numpy as np

from tinygrad2.errors import visible

_MARKS = str.maketrans({" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5"})  # a dot, and the arrows of two keys


def token_text(tokenizer, id):
    r"""A token as text that can be read: a space is a dot, a line break an arrow, what is not text an escape.

    tokenizer   decodes [id]; with a method token_bytes, part of a character is shown as its bytes, \xe2\x80
    """
    if id >= tokenizer.n_vocab:  # a row of the model's table that belongs to no token
        return f"[{id}]"
    text = tokenizer.decode([id])
    if "\ufffd" in text and hasattr(tokenizer, "token_bytes"):
        text = tokenizer.token_bytes(id).decode("utf-8", "backslashreplace")
    return visible(text.translate(_MARKS)) or "[empty]"


def rounded(values, digits=4):
    """Nested lists of an array's values with so many significant digits; None for what is not finite."""
    values = np.asarray(values, np.float64)
    if values.ndim:
        return [rounded(part, digits) for part in values]
    return float(f"{values:.{digits}g}") if np.isfinite(values) else None


def fractions(values):
    """Numbers from 0 to 1 in 16 bits each: the base64 text of round(65535 x) as little-endian integers."""
    whole = np.rint(np.clip(np.asarray(values, np.float64), 0, 1) * 65535).astype("<u2")
    return base64.b64encode(whole.tobytes()).decode("ascii")


def signed_bytes(rows):
    """(n, C) numbers in 8 bits each, a scale per row: {"scale": [largest size], "values": base64 of round(127 x / s)}.
    """
    rows = np.nan_to_num(np.asarray(rows, np.float64), posinf=0, neginf=0)
    scale = np.abs(rows).max(-1, initial=0)
    whole = np.rint(127 * rows / np.where(scale, scale, 1)[:, None]).astype(np.int8)
    return {"scale": rounded(scale), "values": base64.b64encode(whole.tobytes()).decode("ascii")}
