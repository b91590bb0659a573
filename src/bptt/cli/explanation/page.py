"""The worked example as one HTML page, which needs nothing from outside and runs no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

import bptt
from bptt.analysis.numbers import printable
from bptt.analysis.race.report.templates import templates
from bptt.cli.explanation.derivation import letters_of, term
from bptt.cli.explanation.drawing import draw, uses, walk
from bptt.cli.explanation.tables import LEVELS, Section
from bptt.cli.explanation.work import Work
from bptt.cli.formula import display, latex
from bptt.cli.printing import one_line


def page(work: Work, sections: Sequence[Section], chosen: tuple[int, int]) -> str:
    """The page; term `chosen` is the one written out until another is picked.

    Picking is a link to the term's anchor: the style sheet shows what belongs to the anchor that is the target.
    """
    steps, letters, sequence = work.trace.steps, letters_of(work), work.example.sequence
    inputs = [letters[i] for i in sequence.x.argmax(1).tolist()] if letters else ()
    targets = [letters[i] for i in sequence.y.tolist()] if letters else ()
    environment = templates(Path(__file__).parent)
    environment.filters |= {"latex": latex, "display": display}
    environment.filters |= {"notation": notation, "prose": prose, "minus": minus, "one_line": one_line}
    return environment.get_template("page.html.j2").render(
        sections=sections,
        drawing=draw(steps, inputs, targets),
        terms=[term(work, t, k) for t in range(steps) for k in range(t + 1)],
        chosen=chosen,
        walk=walk,
        uses=uses,
        levels=range(1, LEVELS + 1),
        version=bptt.__version__,
    )


def notation(text: str) -> Markup:
    """Subscripts and transposes set as such, anything else escaped.

    >>> notation("Wᵀ h_{t-1} < x_k")
    Markup('W<sup>T</sup> h<sub>t−1</sub> &lt; x<sub>k</sub>')
    """
    marked = re.sub(
        r"_(\{[^}]*\}|[A-Za-z0-9]+)",
        lambda found: f"<sub>{found[1].strip('{}').replace('-', '−')}</sub>",
        str(escape(printable(text))),
    )
    return Markup(re.sub(r"(?<= )-(?=[ \w])", "−", marked.replace("ᵀ", "<sup>T</sup>")))


def prose(text: str) -> Markup:
    """`notation`, with code between backticks left as it is.

    >>> prose("`a_b` is c_d")
    Markup('<code>a_b</code> is c<sub>d</sub>')
    """
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else notation(part) for i, part in enumerate(parts)
    )


def minus(text: str) -> str:
    """A number with a true minus sign.

    >>> minus("-1.5e-4")
    '−1.5e−4'
    """
    return text.replace("-", "−")
