"""The worked example as HTML, which needs nothing from outside and runs no script: a page, or part of a notebook."""

import re
from pathlib import Path

from markupsafe import Markup, escape

import bptt
from bptt.analysis.explanation.derivation import term
from bptt.analysis.explanation.report.drawing import draw, uses, walk
from bptt.analysis.explanation.report.formula import display, latex
from bptt.analysis.explanation.result import Explanation
from bptt.analysis.explanation.tables import LEVELS, Section, Titled, labels
from bptt.analysis.numbers import printable
from bptt.analysis.race.report.templates import templates


def page(found: Explanation) -> str:
    """The page; `found.term` is the one written out until another is picked.

    Picking is a link to the term's anchor: the style sheet shows what belongs to the anchor that is the target.
    """
    steps, letters = found.trace.steps, labels(found.characters)
    inputs = [letters[i] for i in found.x.argmax(1).tolist()] if letters else ()
    targets = [letters[i] for i in found.y.tolist()] if letters else ()
    environment = templates(Path(__file__).parent)
    environment.filters |= {"latex": latex, "display": display}
    environment.filters |= {"notation": notation, "prose": prose, "minus": minus}
    environment.filters["one_line"] = lambda text: " ".join(printable(text).split())
    return environment.get_template("page.html.j2").render(
        sections=found.sections,
        drawing=draw(steps, inputs, targets),
        terms=[term(found, t, k) for t in range(steps) for k in range(t + 1)],
        chosen=found.term,
        walk=walk,
        uses=uses,
        levels=range(1, LEVELS + 1),
        version=bptt.__version__,
    )


def notebook(found: Explanation) -> Markup:
    """The sections in the colours of whatever page they come into, the chosen term after the others."""
    t, k = found.term
    chosen = term(found, t, k)
    written = Markup("<h4>Term t = {}, k = {}, written out</h4><p>{}</p>{}").format(
        t, k, notation(chosen.path), _tables(chosen.tables)
    )
    return Markup("").join(
        _section(count, section) + (written if section.name == "terms" else "")
        for count, section in enumerate(found.sections, 1)
    )


def _section(count: int, section: Section) -> Markup:
    texts = [prose(text) for text in section.texts] + [Markup(escape(printable(section.source)))] * bool(section.source)
    return Markup("<h3>{}. {}</h3>{}{}{}").format(
        count,
        section.title,
        Markup("").join(
            Markup("<div style='margin:.5em 1em'>{}</div>").format(display(latex(equation)))
            for equation in section.equations
        ),
        Markup("").join(Markup("<p>{}</p>").format(text) for text in texts),
        _tables(section.tables),
    )


def _tables(tables: tuple[Titled, ...]) -> Markup:
    """Side by side as far as there is room; a heat map shaded, light or dark whatever the page is."""
    shown = Markup("").join(
        Markup("<figure style='margin:0 2em 1em 0'><figcaption><b>{}</b></figcaption>{}</figure>").format(
            notation(each.title), _table(each)
        )
        for each in tables
    )
    return Markup("<div style='display:flex;flex-wrap:wrap'>{}</div>").format(shown)


def _table(titled: Titled) -> Markup:
    def row(place: int, cells: tuple[str, ...], tag: str) -> Markup:
        shades = (0, *titled.levels[place]) if titled.levels and place >= 0 else (0,) * len(cells)
        return Markup("").join(
            Markup("<{0} style='padding:.15em .5em;text-align:{1};background:rgba(31,95,168,{2})'>{3}</{0}>").format(
                tag, "right" if i else "left", shade / (2 * LEVELS), notation(cell)
            )
            for i, (cell, shade) in enumerate(zip(cells, shades, strict=True))
        )

    lines = [row(-1, tuple(titled.table.columns), "th")]
    lines += [row(place, tuple(cells), "td") for place, cells in enumerate(titled.table.rows)]
    return Markup("<table>{}</table>").format(Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines))


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
