"""Formulas of the docstrings, typeset: from their plain notation to MathML, which browsers show without a library.

A line is typeset if all of it is understood: names that are listed in mathml.py or have one letter, and this grammar,
where a slash between spaces divides a whole product, and one without spaces only the two factors it touches:

    formula    ["then"] relation ["for every" sum] [", copied along the axes" | ","]
    relation   [list] {("=" | "+=" | "<" | ">" | "<=" | ">=") choice}
    choice     sum [("where" | "if" | "with probability") condition {"," sum "if" condition} ["," "else" sum]]
    condition  sum {relation sign sum}
    list       sum {("|" | ",") sum}
    sum        ["-"] product {("+" | "-") product}
    product    fraction {"*" fraction}
    fraction   factor {factor} [" / " factor]
    factor     power ["/" power], or the sum or maximum over something of a product
    power      operand ["^" ["-"] operand]
    operand    a number, a name or a function of something, perhaps with an index; ( list ), ( choice ), [ list ], |sum|

What could be read in two ways, such as a / b c, or a sum over i of a + b, is not typeset.
"""

import html
import re

from learn.pages.mathml import GREEK, TIMES, NotUnderstood, bare, group, name, row, sign, upright, words
from learn.pages.text import fence

PREFIX = set("cos ln sin sqrt tanh".split())  # functions whose argument may stand without parentheses
FUNCTIONS = PREFIX | set("Phi avg erf gelu layernorm logsumexp max min onehot phi sign softmax".split())
RELATIONS = ("=", "+=", "<", ">", "<=", ">=")
CLAUSES = {"where": ("where",), "if": ("if",), "with": ("with", "probability")}
KEYWORDS = {*CLAUSES, "for"}  # no factors
BRACKETS = {"(": ")", "[": "]", "|": "|"}
_TOKEN = re.compile(r"( *)(\d+(?:\.\d+)?|[A-Za-z]+\d*'?|\.\.\.|<=|>=|\+=|[-+*/^=<>(),\[\]|_])")


def block(text):
    """The formulas of a docstring as Markdown: typeset, a line that is not understood as it is, and the plain text."""
    made, understood = [], False
    for line in filter(None, map(str.rstrip, text.splitlines())):
        found = [[(line.strip(), "")]] if line.endswith(":") else columns(line)
        understood |= found is not None and not line.endswith(":")
        cells = [[(f"<code>{html.escape(line.strip())}</code>", "")]] if found is None else found
        spans = (f"<span>{' '.join(piece for piece, _ in cell)}</span>" for cell in cells)
        made.append(f'<div class="in{(len(line) - len(line.lstrip())) // 4}">{"".join(spans)}</div>')
    if not understood:
        return fence(text)
    plain = f'<details class="plain" markdown="1">\n<summary>as plain text</summary>\n\n{fence(text)}\n</details>\n'
    return f'<section class="formulas" data-search-exclude>{"".join(made)}</section>\n\n{plain}'


def columns(line):
    """The formulas and remarks of a line: for each its pieces, (MathML, plain text), between which it may be broken.

    Returns None if there is anything in the line that is not understood.

    >>> columns("out = |x|        no copy")[1], columns("out = whatever is x")
    ([('no copy', 'no copy')], None)
    """
    found = []
    for text in re.split(r" {4,}", line.strip()):
        remark = found and re.fullmatch(r"[a-z]+:?( [a-z]+,?)+", text) or re.match(r"if [a-z ]+, ", text)
        said = remark[0] if remark else ""
        try:
            formulas = [(math(piece), piece) for piece in pieces(text[len(said) :])]
        except NotUnderstood:
            return None
        found.append([(said.strip(),) * 2] * bool(said) + formulas)
    return found


def pieces(text):
    """A formula cut where a line may be broken: in front of `then`, and of the second equals sign of a chain.

    >>> pieces("out = e^x = y"), pieces("y = 0,  then  x = y where y = 1")
    (['out = e^x', '= y'], ['y = 0,', 'then  x = y where y = 1'])
    """
    if re.search(r"\b(where|if|then|with)\b", text):
        return re.split(r"(?<=,) +(?=then )", text)
    first, *more = re.split(r" (?== )", text)
    if more and not first.startswith("="):
        return [f"{first} {more[0]}", *more[1:]]
    return [first, *more] if text else []


def math(text):
    """A formula as a MathML element, which has the plain text as well. Raises NotUnderstood."""
    reader = Reader(text)
    inside = reader.formula()
    if reader.peek():
        raise NotUnderstood(text)
    return f'<math displaystyle="true" alttext="{html.escape(text)}">{inside}</math>'


class Reader:
    """Reads a formula from left to right. Each method reads what it is named after in the grammar, as MathML."""

    def __init__(self, text):
        self.tokens, self.at, end = [], 0, 0  # (token, is there no space in front of it?)
        while match := _TOKEN.match(text, end):
            self.tokens.append((match[2], not match[1]))
            end = match.end()
        if text[end:].strip():
            raise NotUnderstood(text)

    def peek(self, *, tight=False):
        """The next token; "" if there is none, or with `tight` if a space is in front of it."""
        token, touches = self.tokens[self.at] if self.at < len(self.tokens) else ("", False)
        return token if touches or not tight else ""

    def next(self):
        self.at += 1
        return self.tokens[self.at - 1][0] if self.at <= len(self.tokens) else ""

    def take(self, *tokens):
        """Read these tokens if they are next; returns whether they are."""
        found = tuple(token for token, _ in self.tokens[self.at : self.at + len(tokens)]) == tokens
        self.at += len(tokens) * found
        return found

    def need(self, *tokens):
        if not self.take(*tokens):
            raise NotUnderstood(f"{self.peek()!r} instead of {tokens}")

    def joined(self, signs, part):
        """One or more parts with signs between them."""
        parts = [part()]
        while self.peek() in signs:
            parts += [sign(self.next()), part()]
        return row(*parts)

    def formula(self):
        parts = [words("then ")] if self.take("then") else []
        parts.append(self.relation())
        if self.take("for", "every"):
            parts += [words(" for every "), self.sum()]
        if self.take(",", "copied", "along", "the", "axes"):
            parts.append(words(", copied along the axes"))
        elif self.take(","):
            parts.append(sign(","))
        return row(*parts)

    def relation(self):
        parts = [] if self.peek() in RELATIONS else [self.list()]
        while self.peek() in RELATIONS:
            parts += [sign(self.next()), self.choice(self.sum())]
        return row(*parts)

    def choice(self, value):
        """A value that has been read; with it its condition, if there is one, and the values of the other cases."""
        parts = [value]
        while clause := CLAUSES.get(self.peek()):
            self.need(*clause)
            parts += [words(f" {' '.join(clause)} "), self.condition()]
            if self.take(",", "else"):
                parts += [words(", else "), self.sum()]
            elif self.take(","):
                parts += [sign(","), self.sum()]
        return row(*parts)

    def condition(self):
        if self.take("condition", "holds"):
            return words("condition holds")
        return self.joined(RELATIONS, self.sum)

    def list(self):
        return self.joined(("|", ","), self.sum)

    def sum(self):
        minus = [sign("-")] if self.take("-") else []
        return row(*minus, self.joined(("+", "-"), self.product))

    def product(self):
        return self.joined(("*",), self.fraction)

    def fraction(self):
        parts = [self.factor()]
        while self.factor_follows():
            parts += [TIMES, self.factor()]
        if not self.take("/"):
            return row(*parts)
        below = self.over_index() or self.power()
        if self.factor_follows() or self.peek() == "/":
            raise NotUnderstood("is what follows a quotient in its denominator?")
        return f"<mfrac>{bare(row(*parts))}{bare(below)}</mfrac>"

    def factor_follows(self):
        """Is a factor next, with nothing but a space in front of it?"""
        token = self.peek()
        return not self.peek(tight=True) and (token == "(" or token[:1].isalpha() and token not in KEYWORDS)

    def factor(self):
        if made := self.over_index():
            return made
        above = self.power()
        if self.peek(tight=True) != "/":
            return above
        self.need("/")
        below = self.power()
        if self.peek() == "/":
            raise NotUnderstood("which of two quotients is taken first?")
        return f"<mfrac>{bare(above)}{bare(below)}</mfrac>"

    def over_index(self):
        """A sum or maximum over something; "" if none is next."""
        what = self.peek()
        if what not in ("sum", "max", "min") or not (self.take(what, "over") or self.take("sum", "_")):
            return ""
        if self.tokens[self.at - 1][0] == "_":
            index = name(self.next())
        else:
            kinds = [kind[-1] for kind in (("the", "axes"), ("rows",), ("keys",)) if self.take(*kind)]
            index = words(kinds[0]) if kinds else name(self.next())
            self.need("of")
        body = self.product()
        if self.peek() in ("+", "-"):
            raise NotUnderstood("does the sum end here?")
        return row(f"<munder>{sign('∑') if what == 'sum' else upright(what)}{index}</munder>", TIMES, body)

    def power(self):
        base = self.operand()
        if self.peek(tight=True) != "^":
            return base
        self.need("^")
        exponent = row(sign("-"), self.operand()) if self.take("-") else bare(self.operand())
        if self.peek() == "^":
            raise NotUnderstood("which of two powers is taken first?")
        return f"<msup>{base}{exponent}</msup>"

    def operand(self):
        token = self.next()
        if token in BRACKETS:
            inside = self.choice(self.list()) if token == "(" else self.list() if token == "[" else self.sum()
            self.need(BRACKETS[token])
            made = group(inside, token, BRACKETS[token])
        elif token == "...":
            made = sign(token)
        elif token[:1].isdigit():
            made = f"<mn>{token}</mn>"
        elif token.rstrip("'") in FUNCTIONS and (self.peek(tight=True) == "(" or token in PREFIX):
            made = self.function(token)
        else:
            made = name(token)
        while self.peek(tight=True) in ("_", "[", "T"):
            made = self.index(made)
        return made

    def function(self, token):
        called = upright(GREEK.get(token, token.rstrip("'")))
        if token.endswith("'"):
            called = f"<msup>{called}<mo>′</mo></msup>"
        if self.peek(tight=True) == "(":
            self.need("(")
            argument = group(self.list())
            self.need(")")
            called += "<mo>\u2061</mo>"
        else:
            argument = self.over_index() or self.operand()
            if self.peek() in ("^", "/") or self.factor_follows():
                raise NotUnderstood("where does the argument end?")
            called += '<mo rspace="0.2em">\u2061</mo>'
        return f"<msqrt>{bare(argument)}</msqrt>" if token == "sqrt" else row(called, argument)

    def index(self, made):
        """An operand with what touches it from behind: an index, or the T of a transposed matrix."""
        token = self.next()
        if token == "T":
            return f"<msup>{made}{upright('T')}</msup>"
        if token == "_":
            index = self.next()
            if len(index) > 1 and index.endswith("T"):
                raise NotUnderstood("is it the index that is transposed?")
            return f"<msub>{made}{f'<mn>{index}</mn>' if index.isdigit() else name(index)}</msub>"
        if made == "<mn>1</mn>":  # 1[i=j], which is 1 where i = j
            inside = self.condition()
            self.need("]")
            return row(made, group(inside, "[", "]"))
        index = self.list()
        self.need("]")
        return f"<msub>{made}{index}</msub>"
