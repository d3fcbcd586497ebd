"""The parts of a formula in MathML: names, signs, words, parentheses."""

import re

GREEK = {"Phi": "Φ", "phi": "φ", "pi": "π", "eps": "ε", "delta": "δ", "inf": "∞"}
NAMES = set("bias ddof high hs ids keep key logits loss low max mean nh out part rstd scale sum target var "
            "weight".split())  # fmt: skip
SIGNS = {"<": "&lt;", ">": "&gt;", "<=": "≤", ">=": "≥", "*": "∗", "-": "−", "...": "…"}
TIMES = '<mo lspace="0.1em" rspace="0.1em">\u2062</mo>'  # has no sign


class NotUnderstood(Exception):
    """The text is none of the formulas that can be typeset."""


class Group(str):
    """MathML in brackets; `inside` is the same without them where they only group: in fractions, roots, exponents."""

    inside: str


def row(*parts):
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"


def sign(text):
    return f"<mo>{SIGNS.get(text, text)}</mo>"


def words(text):
    return f"<mtext>{text.replace(' ', chr(160))}</mtext>"


def group(inside, left="(", right=")"):
    made = Group(row(sign(left), inside, sign(right)))
    made.inside = inside if left == "(" else made
    return made


def bare(xml):
    """Without the parentheses around it, if there are any."""
    return getattr(xml, "inside", xml)


def upright(text):
    return f'<mi mathvariant="normal">{text}</mi>'


def name(text):
    """The MathML of a name. Raises NotUnderstood for one that is not known: it may be a word of English."""
    known = NAMES | set(GREEK)
    if text in known or len(text) == 1 and text.isalpha():
        return f"<mi>{GREEK.get(text, text)}</mi>"
    if text == "xhat":
        return '<mover accent="true"><mi>x</mi><mo stretchy="false">^</mo></mover>'
    if text[:1] == "d" and (text[1:] in known or len(text) == 2 and text.isalpha()):
        return f"<mi>d{GREEK.get(text[1:], text[1:])}</mi>"
    if text == "dxhat":
        return row("<mi>d</mi>", name("xhat"))
    if numbered := re.fullmatch(r"([A-Za-z]+)(\d+)", text):
        return f"<msub>{name(numbered[1])}<mn>{numbered[2]}</mn></msub>"
    if text.endswith("T"):
        return f"<msup>{name(text[:-1])}{upright('T')}</msup>"
    raise NotUnderstood(text)
