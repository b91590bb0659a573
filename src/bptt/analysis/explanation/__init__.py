"""Back-propagation through time worked through on a small network; sees `import bptt` alone."""

from bptt.analysis.explanation.example import Example, example
from bptt.analysis.explanation.explain import explain
from bptt.analysis.explanation.result import Explanation, pages

__all__ = ["Example", "Explanation", "example", "explain", "explorer"]


def explorer() -> str:
    """The explorer as one page of HTML: sliders for the term, the network and the strategy, on a network of its own.

    Its script computes what `bptt.equations` computes. Raises ImportError without jinja2 and latex2mathml, which the
    `cli` extra brings.

    >>> from bptt.analysis import explorer
    >>> explorer().startswith("<!DOCTYPE html>")
    True
    """
    return pages("explorer").page()
