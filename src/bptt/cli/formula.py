"""Equations as MathML, which browsers set without a script."""

from __future__ import annotations

from latex2mathml.converter import convert
from markupsafe import Markup


def mathml(latex: str) -> Markup:
    """One equation in LaTeX, in display style.

    >>> mathml("a_t")
    Markup('<math display="inline" displaystyle="true"><mrow><msub><mi>a</mi><mi>t</mi></msub></mrow></math>')
    """
    made = convert(latex, display="inline").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    return Markup(made.replace('display="inline"', 'display="inline" displaystyle="true"'))
