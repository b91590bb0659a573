"""Equations as MathML: every one of the docstrings and of `bptt explain` becomes markup without LaTeX in it."""

import ast
import re
from xml.etree import ElementTree

import pytest

from bptt.analysis.explanation.derivation import LOSSES, SLOPES
from bptt.analysis.explanation.report.formula import display, inline, latex
from support.pages import ROOT

NUMBERED = re.compile(r"^ {4,}(\S.*?)\s+\((\d)\)$", flags=re.MULTILINE)


def of_docstrings():
    """(equation, number) of every docstring of the package."""
    for path in sorted((ROOT / "src" / "bptt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield from NUMBERED.findall(ast.get_docstring(node) or "")


def texts(markup):
    """The characters that are shown, element by element."""
    return [part for part in ElementTree.fromstring(markup.replace("<wbr>", "")).itertext() if part.strip()]


def test_equations_of_docstrings_are_set():
    found = [*of_docstrings()]
    assert len(found) > 80
    for equation, number in found:
        shown = texts(display(latex(equation) + rf"\tag{{{number}}}"))
        assert shown[-1] == f"({number})"
        assert not [part for part in shown if re.search(r"[\\^]|_\{", part)], equation


def test_what_explain_says_of_activations_and_losses_is_set():
    for equation in [part for parts in [*SLOPES.values(), *LOSSES.values()] for part in parts]:
        assert not re.search(r"[\\^{}]", "".join(texts(display(latex(equation)))))


@pytest.mark.parametrize(
    ("notation", "expected"),
    [
        ("∂l_t/∂s_t", r"\frac{\partial l_{t}}{\partial s_{t}}"),
        ("(∂h_t/∂h_k)ᵀ", r"\left(\frac{\partial h_{t}}{\partial h_{k}}\right)^{\top}"),
        ("Π_{j=k+1..t} w_j", r"\prod_{j=k+1}^{t}w_{j}"),
        ("β^(K-τ)", r"\beta ^{K-\tau }"),
        ("w_t = 0 where t is a multiple of length", r"w_{t}=0\text{ where }t\text{ is a multiple of length}"),
        ("max(0, k)", r"\operatorname{max}(0,\;k)"),
        ("w as in `ARTBPPattern`", r"w\text{ as in }\texttt{ARTBPPattern}"),
    ],
)
def test_notation_becomes_latex(notation, expected):
    assert latex(notation) == expected


def test_a_line_may_break_before_a_relation_and_keeps_parts_together():
    made = display(r"a = b + c, \qquad d = e \tag{3}")
    assert made.count('class="part"') == 2
    assert [piece.count("<math") for piece in made.split("<wbr>")] == [1, 1, 2, 1]
    assert "".join(texts(made)).replace("\u2062", "") == "a=b+c,d=e(3)"


def test_markup_in_words_is_escaped():
    assert "<b>" not in display(r"\text{a <b> c}")
    assert "<b>" not in inline("x < b")
