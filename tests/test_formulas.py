"""Formulas of the docstrings in MathML: which are typeset, that each keeps what the docstring says, and that what can
be read in two ways stays as it is."""

import doctest
import inspect
import re
from xml.etree import ElementTree

import pytest

from learn.pages import formulas, op, site
from learn.pages.text import blocks, fence
from tinygrad2.dispatch import OPS

GREEK = {"Phi": "Φ", "phi": "φ", "pi": "π", "eps": "ε", "delta": "δ", "inf": "∞"}


def lines_of_formulas():
    """[(op, line)] of all docstrings of ops: what is indented, without the labels of layernorm's paths."""
    docs = {name: inspect.cleandoc(OPS[name].__doc__) for name in site.names_of_ops()}
    kept = ((name, text.splitlines()) for name, doc in docs.items() for keep, text in blocks(doc) if keep)
    return [(name, line) for name, lines in kept for line in lines if line.strip() and not line.endswith(":")]


def latex(xml):
    """MathML in a short form in which every group shows: fractions, indices, powers, roots, and mrow as {...}."""
    parts = [latex(child) for child in xml]
    two = {"mfrac": "{}/{}", "msub": "{}_{}", "msup": "{}^{}", "munder": "{}_{}", "mover": "{}{}"}
    if xml.tag in two:
        return "<" + two[xml.tag].format(*parts) + ">"
    if xml.tag in ("mrow", "msqrt", "math"):
        text = {"mrow": "{%s}", "msqrt": "√{%s}", "math": "%s"}[xml.tag] % " ".join(parts)
        return re.sub(r"^\{\( (.*) \)\}$", r"(\1)", text)
    return {"\u2062": "·", "\u2061": "of"}.get(xml.text, xml.text.replace("\xa0", " ").strip())


def parsed(text):
    return ElementTree.fromstring(formulas.math(text))


def test_the_pages_show_them():
    page = op.page("layernorm", site.first_links())
    assert page.count('<section class="formulas"') == page.count('<details class="plain"') == 3
    assert formulas.math("= -rstd * xhat_j * avg(g * xhat)") in page


def test_nine_of_ten_lines_are_typeset():
    lines = lines_of_formulas()
    left = [f"{name}: {line}" for name, line in lines if formulas.columns(line) is None]
    assert len(lines) > 100 and len(left) <= 0.1 * len(lines), left


def test_what_is_typeset_says_what_the_docstring_says():
    """Names, numbers and signs in their order; only parentheses and slashes give way to fractions, roots, indices."""

    def signs(text):
        text = re.sub(r"[\s\xa0\u2061\u2062(){}\[\]/^_]", "", text)
        return text.replace("∗", "*").replace("−", "-").replace("≤", "<=").replace("′", "'").replace("…", "...")

    seen = 0
    for _, line in lines_of_formulas():
        for piece in [piece for column in formulas.columns(line) or [] for piece in column if piece[0] != piece[1]]:
            tree = ElementTree.fromstring(piece[0])
            assert tree.get("alttext") == piece[1]
            plain = re.sub(r"\bsum over (?:the )?(\w+) of\b|\bsum_(?=\w )", r"∑\1 ", piece[1])
            plain = re.sub(r"\b(max|min) over (?:the )?(\w+) of\b", r"\1 \2 ", plain)
            plain = re.sub(r"\bsqrt\b", "", plain).replace("xhat", "x^")
            plain = re.sub(r"\bd?(?:Phi|phi|pi|eps|delta|inf)\b", lambda m: "d" * (m[0][0] == "d" and m[0] != "delta")
                           + GREEK[m[0] if m[0] in GREEK else m[0][1:]], plain)  # fmt: skip
            assert signs("".join(tree.itertext())) == signs(plain), piece[1]
            seen += 1
    assert seen > 140


def test_the_plain_text_of_a_line_is_whole():
    for _, line in lines_of_formulas():
        found = formulas.columns(line)
        if found:
            assert " ".join(text for column in found for _, text in column).split() == line.split()


@pytest.mark.parametrize(("text", "expected"), [
    # layernorm
    ("dx = rstd * (g - avg(g) - xhat * avg(g * xhat))",
     "{dx = {rstd ∗ ({g − {avg of (g)} − {<x^> ∗ {avg of ({g ∗ <x^>})}}})}}"),
    ("rstd = 1 / sqrt(var + eps)", "{rstd = <1/√{{var + ε}}>}"),
    ("drstd/dx_j = -rstd^2 xhat_j/C", "{<drstd/<dx_j>> = {− {<rstd^2> · <<<x^>_j>/C>}}}"),
    ("sum_i g_i (-rstd)/C", "{<∑_i> · {<g_i> · <{− rstd}/C>}}"),
    # softmax
    ("p_i = e^(x_i) / sum over j of e^(x_j)", "{<p_i> = <<e^<x_i>>/{<∑_j> · <e^<x_j>>}>}"),
    ("dx_j = sum over i of dout_i p_i (1[i=j] - p_j)",
     "{<dx_j> = {<∑_i> · {<dout_i> · <p_i> · ({{1 {[ {i = j} ]}} − <p_j>})}}}"),
    ("= p_j (dout_j - sum over i of dout_i p_i)",
     "{= {<p_j> · ({<dout_j> − {<∑_i> · {<dout_i> · <p_i>}}})}}"),
    # attention
    ("s = q kT / sqrt(hs)", "{s = <{q · <k^T>}/√{hs}>}"),
    ("dv = (w keep)T dout", "{dv = {<({w · keep})^T> · dout}}"),
    ("ds = w * (dw - sum over keys of dw * w)", "{ds = {w ∗ ({dw − {<∑_keys> · {dw ∗ w}}})}}"),
    # cross entropy
    ("loss = -1/N sum over n of ln p[n, target_n]",
     "{loss = {− {<1/N> · {<∑_n> · {ln of <p_{n , <target_n>}>}}}}}"),
    ("dlogits = dout * (p - onehot(target)) / N", "{dlogits = {dout ∗ <{p − {onehot of (target)}}/N>}}"),
    # gelu
    ("dx = dout * [ (1 + tanh u) / 2  +  x (1 - tanh(u)^2) / 2 * du/dx ]",
     "{dx = {dout ∗ {[ {<{1 + {tanh of u}}/2> + {<{x · ({1 − <{tanh of (u)}^2>})}/2> ∗ <du/dx>}} ]}}}"),
    ("u = sqrt(2/pi) (x + 0.044715 x^3)", "{u = {√{<2/π>} · ({x + {0.044715 · <x^3>}})}}"),
    # matmul, embedding, the rest
    ("da[i, k] = sum over j of dout[i, j] b[k, j]",
     "{<da_{i , k}> = {<∑_j> · {<dout_{i , j}> · <b_{k , j}>}}}"),
    ("then  dweight[ids[n]] += dout[n]  for every n", "{then {<dweight_<ids_n>> += <dout_n>} for every n}"),
    ("db = -dout * a / b^2", "{db = {− {dout ∗ <a/<b^2>>}}}"),
    ("out = tanh x = (e^x - e^-x) / (e^x + e^-x)",
     "{out = {tanh of x} = <{<e^x> − <e^{− x}>}/{<e^x> + <e^{− x}>}>}"),
    ("dx = dout where x > 0, else 0", "{dx = {dout where {x > 0} , else 0}}"),
    ("e^-(x + y)", "<e^{− ({x + y})}>"),  # parentheses that may not go
    ("|x - y| / |z|", "<{| {x − y} |}/{| z |}>"),
    ("(a + b)^(c + d) / (a (b + c))", "<<({a + b})^{c + d}>/{a · ({b + c})}>"),
    ("(a - b) (a - (b - c))", "{({a − b}) · ({a − ({b − c})})}"),
    ("(a + b)/2 - [c]/d", "{<{a + b}/2> − <{[ c ]}/d>}"),
    ("max(a, b) / sqrt |x|", "<{max of ({a , b})}/√{{| x |}}>"),
    ("dh = dg gelu'(h)", "{dh = {dg · {<gelu^′> of (h)}}}"),
    ("dx = dh weight1T", "{dx = {dh · <<weight_1>^T>}}"),
    ("out = sqrt( 1/(N - ddof) sum over the axes of (x - m)^2 )",
     "{out = √{{<1/{N − ddof}> · {<∑_axes> · <({x − m})^2>}}}}"),
])  # fmt: skip
def test_formulas_are_grouped_as_they_are_meant(text, expected):
    assert latex(parsed(text)) == expected


def test_the_mathml_of_a_formula():
    assert formulas.math("a < b^2 / C") == (
        '<math displaystyle="true" alttext="a &lt; b^2 / C"><mrow><mi>a</mi><mo>&lt;</mo>'
        "<mfrac><msup><mi>b</mi><mn>2</mn></msup><mi>C</mi></mfrac></mrow></math>"
    )
    assert formulas.math("w[n] xT") == (
        '<math displaystyle="true" alttext="w[n] xT"><mrow><msub><mi>w</mi><mi>n</mi></msub>'
        '<mo lspace="0.1em" rspace="0.1em">\u2062</mo>'
        '<msup><mi>x</mi><mi mathvariant="normal">T</mi></msup></mrow></math>'
    )


@pytest.mark.parametrize("text", [
    "a / b c", "a / b / c", "a/b/c", "a/b / c", "a^b^c", "sum over i of a_i + b", "ln p q", "tanh u^2",
    "ln x / 2", "ln (a + b) / 2", "x_iT",
    "a ==b", "a = b == c", "a ^ b", "a != b", "a -", "(a", "a)", "2x", "f(x)", "x.reshape(a)", "a, then", "=",
    "out = x in `dtype`", "out = the smallest i for which x_i is largest", "out = every x_i along the axes is true",
    "dx = dsum + (dx of ops/layernorm.py at sum, given dout)", "x = word", "x where", "sum over words of x",
])  # fmt: skip
def test_what_is_not_understood_stays_as_it_is(text):
    assert formulas.columns(text) is None and formulas.block(text) == fence(text)
    assert formulas.columns(f"{text}        out = x") is None  # nor the rest of its line


def test_a_block_keeps_its_lines_labels_and_plain_text():
    text = "directly:\n    y = x        two results\n\n    y = x.reshape(<a>)\n        = -x = z"
    shown = formulas.block(text)
    rows = re.findall(r'<div class="in(\d)">(.*?)</div>', shown)
    assert [depth for depth, _ in rows] == ["0", "1", "1", "2"]
    assert rows[0][1] == "<span>directly:</span>" and rows[1][1].endswith("</math></span><span>two results</span>")
    assert rows[2][1] == "<span><code>y = x.reshape(&lt;a&gt;)</code></span>"
    assert rows[3][1].count("<math") == 2  # a long chain can be broken
    assert shown.endswith(f"<summary>as plain text</summary>\n\n{fence(text)}\n</details>\n")
    assert formulas.block("y = whatever") == fence("y = whatever")


def test_examples():
    assert doctest.testmod(formulas).failed == 0
