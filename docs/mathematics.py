"""Equations of the pages as MathML, set when the pages are built: no script, no network."""

from typing import Any

from docutils import nodes

from bptt.analysis.explanation.report.formula import display, inline


def visit_math(self: Any, node: nodes.math) -> None:
    """A formula in a line of text."""
    self.body.append(inline(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Equations, one per line of the source."""
    lines = [line for line in node.astext().split("\n") if line.strip()]
    self.body.append('<div class="equations">' + "".join(map(display, lines)) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer under the name `mathml`."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
