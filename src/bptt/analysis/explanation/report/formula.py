"""Equations as MathML, which browsers set without a script: from LaTeX, and from the notation of docstrings."""

import re
from collections.abc import Iterator

from latex2mathml.converter import convert
from markupsafe import Markup, escape

FUNCTIONS = {"diag", "exp", "lim", "log", "ln", "max", "min", "cos", "sin", "tanh", "softmax", "sigmoid", "onehot"}
SYMBOLS = {
    "<=": r"\le ", ">=": r"\ge ", "<-": r"\gets ", "->": r"\to ", "...": r"\dots ", "..": r"\dots ",
    "≤": r"\le ", "≈": r"\approx ", "·": r"\cdot ", "~": r"\sim ", "∂": r"\partial ", "½": r"\tfrac{1}{2}",
    "ᵀ": r"^{\top}", "²": "^{2}", "⁺": "^{+}", "‖": r"\Vert ", "|": r"\vert ", "*": "^{*}", "∘": r"\circ ",
    "∇": r"\nabla ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "{": r"\{", "}": r"\}",
    "ω": r"\omega ", "δ": r"\delta ", "θ": r"\theta ", "τ": r"\tau ", "λ": r"\lambda ", "φ": r"\varphi ",
    "β": r"\beta ", "μ": r"\mu ", "σ": r"\sigma ", "ρ": r"\rho ", "ν": r"\nu ", "γ": r"\gamma ", "α": r"\alpha ",
}  # fmt: skip
INDEX = r"_(?:\{[^}]*\}|[A-Za-z0-9]+)"
QUANTITY = rf"[^\W\d_](?:{INDEX})?"
TOKEN = re.compile(
    rf"""(?P<ratio>\(?[d∂]{QUANTITY}/[d∂]{QUANTITY}\)?)
    |(?P<sum>[ΣΠ])(?:_(?:\{{(?P<over>[^}}]*)\}}|(?P<each>\w+)))?
    |`(?P<code>[^`]*)`
    |(?P<word>[A-Za-z]{{2,}}(?:[-_'][A-Za-z]{{2,}}|'s)*(?![A-Za-z0-9])|a(?=\ [a-z]{{2,}}))
    |(?P<index>{INDEX})
    |\^\((?P<power>[^)]*)\)
    |(?P<gap>\ {{2,}})
    |(?P<other>\.\.\.|\.\.|<=|>=|<-|->|.)""",
    re.VERBOSE,
)


def latex(notation: str) -> str:
    r"""What docstrings and `bptt explain` write in plain characters, as LaTeX.

    >>> latex("dL/dW = Σ_t Σ_{k<=t} ω_tk h_{k-1}ᵀ, t = 0 .. T-1")
    '\\frac{dL}{dW}=\\sum_{t}\\sum_{k\\le t}\\omega _{tk}h_{k-1}^{\\top},\\;t=0\\dots T-1'
    >>> latex("w_t = 0 with probability p_t")
    'w_{t}=0\\text{ with probability }p_{t}'
    """
    made = "".join(_translated(found) for found in TOKEN.finditer(notation))
    made = re.sub(r"\^\{\*\}(?=\w)", r"\\ast ", made)
    return re.sub(r"(?:\\text\{[^}]*\}){2,}", _joined, made)


def _joined(words: re.Match[str]) -> str:
    r"""Several \text{} in a row as one."""
    return r"\text{" + re.sub(r" +", " ", "".join(re.findall(r"\{([^}]*)\}", words[0]))) + "}"


def _translated(found: re.Match[str]) -> str:
    kind, text = found.lastgroup, found[0]
    if found["sum"]:
        return _sum(found)
    if kind == "ratio":
        upper, lower = text.strip("()").split("/")
        made = rf"\frac{{{_quantity(upper)}}}{{{_quantity(lower)}}}"
        left, right = text.startswith("("), text.endswith(")")
        return rf"\left({made}\right)" if left and right else "(" * left + made + ")" * right
    if kind == "code":
        return rf"\texttt{{{found['code']}}}"
    if kind == "word":
        return _word(text, found)
    if kind == "index":
        return f"_{{{latex(text[1:].strip('{}')) if text[1] == '{' else text[1:]}}}"
    if kind == "power":
        return f"^{{{latex(found['power'])}}}"
    if kind == "gap":
        return r"\qquad "
    if text == " ":
        return ""
    if text == ",":
        return r",\;" if found.string[found.end() : found.end() + 1] == " " else ","
    return SYMBOLS.get(text, text)


def _quantity(text: str) -> str:
    return latex(text[0]) + latex(text[1:]) if text[0] == "∂" else text[0] + latex(text[1:])


def _sum(found: re.Match[str]) -> str:
    sign = {"Σ": r"\sum", "Π": r"\prod"}[found["sum"]]
    over = found["each"] or found["over"] or ""
    bounds = re.fullmatch(r"(.*=.*?)\s*\.\.\s*(.*)", over)
    if bounds:
        return f"{sign}_{{{latex(bounds[1])}}}^{{{latex(bounds[2])}}}"
    return f"{sign}_{{{latex(over)}}}" if over else sign + " "


def _word(text: str, found: re.Match[str]) -> str:
    before, after = found.string[: found.start()], found.string[found.end() :]
    if re.fullmatch(r"d[A-Zt]", text):  # of a derivative or a step of time
        return text
    if text in FUNCTIONS or after.startswith(("(", "[", "_")):
        return rf"\operatorname{{{text}}}"
    return rf"\text{{{' ' * before.endswith(' ')}{text}{' ' * after.startswith(' ')}}}"


def mathml(source: str) -> Markup:
    """One equation in LaTeX, in display style.

    >>> str(mathml("a_t"))
    '<math display="inline" displaystyle="true"><mrow><msub><mi>a</mi><mi>t</mi></msub></mrow></math>'
    """
    return _set(source, "block", 'display="inline" displaystyle="true"')


def inline(source: str) -> Markup:
    """One formula in LaTeX, for a line of text."""
    return _set(source, "inline", 'display="inline"')


def _set(source: str, display: str, attributes: str) -> Markup:
    made = convert(source, display=display).replace('xmlns="http://www.w3.org/1998/Math/MathML" ', "")
    made = re.sub(r"&#x([0-9A-F]+);", lambda found: str(escape(chr(int(found[1], 16)))), made)
    return Markup(made.replace(f'display="{display}"', attributes, 1))


def display(source: str) -> Markup:
    r"""An equation in LaTeX on lines of its own, with its `\tag`: where the line is too short it breaks, as text does.

    Parts with a gap between them, `\qquad`, stay whole as long as they fit.
    """
    source, _, number = source.strip().partition(r"\tag{")
    tag = Markup('<span class="number">({})</span>').format(number.rstrip("} ")) if number else ""
    parts = (Markup("<wbr>").join(map(_piece, _pieces(part))) for part in re.split(r"\\q?quad", source))
    spans = Markup(" ").join(Markup('<span class="part">{}</span>').format(part) for part in parts)
    return Markup('<div class="equation"><div>{}</div>{}</div>').format(spans, tag)


def _piece(source: str) -> Markup:
    return escape(source[6:-1]) if source.startswith(r"\text{") else mathml(source)


BEFORE = {"=", "+", r"\approx", r"\le", r"\ge", r"\sim", r"\to"}
"""A line may break before these."""


def _pieces(source: str) -> Iterator[str]:
    """Parts of an equation between which a line may break: words, what a comma ends, what begins with a relation."""
    depth, brackets, piece = 0, 0, ""
    for token in re.findall(r"\\text\{[^{}]*\}|\\[A-Za-z]+ ?|\\.|.", source, re.DOTALL):
        name = token.strip()
        if depth == 0 and brackets <= (name == "+") and (name in BEFORE or token.startswith(r"\text{")):
            if piece.strip():
                yield piece
            piece = "{}" if name in BEFORE else ""  # so that a sign stands between two things
            if token.startswith(r"\text{"):
                yield token
                continue
        depth += name in {"{", r"\left"}
        depth -= name in {"}", r"\right"}
        brackets += name in {"(", "["}
        brackets -= name in {")", "]"}
        piece += token
        if depth == brackets == 0 and token == ",":
            yield piece
            piece = ""
    if piece.strip():
        yield piece
