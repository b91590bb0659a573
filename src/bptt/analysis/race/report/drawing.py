"""Panels as SVG for the page, and side by side as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure  # a Figure of its own draws with Agg and needs no display
from matplotlib.lines import Line2D

from bptt.analysis.race import Race
from bptt.analysis.race.report.panels import INK, MARK, RULE, Panel, looks, marks

STYLE: Any = {
    "font.size": 8.5,
    "svg.fonttype": "none",  # text stays text: it can be read out, searched, and takes the page's colour
    "svg.hashsalt": "bptt",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH, HEIGHT = 4.1, 2.9


def svg(panel: Panel) -> Markup:
    """The panel as an element of a page, in the page's colours, as wide as it may be."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        panel.draw(figure.add_subplot())
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(RULE, "var(--rule)")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{panel.name}-", text)  # several on one page
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    return Markup(text.replace("xlink:href", "href"))


def png(panels: Sequence[Panel], found: Race, legend: Sequence[Line2D], path: Path) -> None:
    """The panels in a row, with a legend."""
    with rc_context({**STYLE, "font.size": 9}):
        figure = Figure(figsize=(4.6 * len(panels), 4), dpi=110, layout="constrained")
        figure.suptitle(found.title, fontsize=11, x=0.01, ha="left", parse_math=False)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel.draw(axes)
            axes.set_title(panel.title, fontsize=10, loc="left")
        if legend:
            figure.legend(handles=legend, loc="outside lower center", ncols=min(8, len(legend)), frameon=False)
        figure.savefig(path)


def curves(found: Race) -> list[Line2D]:
    """A legend of the strategies' lines, and of what the dotted ones are."""
    lines = [
        Line2D([], [], color=look.colour, linestyle=look.dash, label=name)
        for name, look in looks([each.label for each in found.standings]).items()
    ]
    return lines + [Line2D([], [], **MARK, label=told) for told in marks(found)]


def places(found: Race) -> list[Line2D]:
    """A legend of where gradients were measured; the strategies are named beside their rows."""
    where: dict[str, Any] = {"at the first weights": "none", "at those of the lowest loss": "full"}
    told = list(where.items())[: 1 if found.reference is None else 2]
    return [Line2D([], [], color=INK, marker="o", linestyle="", fillstyle=fill, label=name) for name, fill in told]
