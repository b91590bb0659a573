"""All sections in the order of the derivation."""

from __future__ import annotations

from bptt.cli.explanation import derivation, estimates
from bptt.cli.explanation.tables import Section
from bptt.cli.explanation.work import Work

ORDER = (
    derivation.network,
    derivation.forward,
    derivation.jacobians,
    derivation.cotangents,
    derivation.terms,
    estimates.gradients,
    estimates.truncation,
    estimates.artbp,
    estimates.comparison,
    estimates.further,
)


def sections(work: Work) -> tuple[Section, ...]:
    """What is said and shown, but for the drawing and the terms written out."""
    return tuple(section(work) for section in ORDER)
