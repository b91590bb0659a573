"""The tables of a comparison's page, as texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bptt.analysis import Table, number, size
from bptt.analysis.numbers import duration, quantity
from bptt.analysis.race import Race, Standing
from bptt.analysis.shown import Titled


def results(found: Race) -> Titled:
    """What each strategy reached, and what it took."""
    together, parameter = found.equal_time, found.parameter
    columns = ["strategy", f"loss after {found.budget}", "at equal time", *([parameter] if parameter else [])]
    rows = []
    for each in found.standings:
        early = None if together is None else each.loss_at(together)
        reached = _diverged(each) if each.loss is None else str(each.loss)
        cost = [*_cost(each)[:2], f"{1e3 * each.pace:.3g}", _cost(each)[2], _window(each)]
        rows.append([each.label, reached, "" if early is None else str(early), *_end(found, each), *cost])
    return Titled("Results", Table([*columns, "updates", "time", "s / 1,000 steps", "memory", "window"], rows))


def gradients(found: Race, when: str) -> Titled:
    """What `bptt.compare` measured."""
    columns = ["strategy", "bias", "signed", "cosine", "variance", "forward", "backward", "memory", "time"]
    rows = []
    for each in found.standings:
        if (measured := each.gradients.get(when)) is None:
            continue
        estimates = map(estimate, (measured.bias, measured.signed_bias, measured.cosine, measured.variance))
        counts = map(quantity, (measured.forward_steps, measured.backward_steps))
        cost = [size(measured.memory_bytes), f"{1e3 * measured.seconds:.3g} ms"]
        rows.append([each.label, *estimates, *counts, *cost])
    return Titled(f"At the {when}", Table(columns, rows))


def by_parameter(found: Race, when: str) -> Titled:
    """The relative bias of each parameter's gradient."""
    placed = [each for each in found.standings if when in each.gradients]
    names = list(placed[0].gradients[when].parameters) if placed else []
    rows = [[name, *(estimate(each.gradients[when].parameters[name].bias) for each in placed)] for name in names]
    return Titled(f"At the {when}", Table(["parameter", *(each.label for each in placed)], rows))


def estimate(found: Sequence[float]) -> str:
    """A value with its interval if it has one.

    >>> estimate([0.5, 0.41, 0.6]), estimate([0.25, 0.25, 0.25]), estimate([float("nan")] * 3)
    ('0.5 [0.41, 0.6]', '0.25', '')
    """
    if any(map(math.isnan, found)):
        return ""
    value, low, high = (0.0 if abs(value) < 1e-12 else value for value in found)
    return number(value) if low == high else f"{number(value)} [{low:.2g}, {high:.2g}]"


def _end(found: Race, each: Standing) -> list[str]:
    """The parameter at the end, of a model that has a single one."""
    if not found.parameter:
        return []
    return ["" if each.parameter is None else number(each.parameter)]


def _cost(each: Standing) -> list[str]:
    """Updates, time and memory of a run."""
    return [f"{each.mean('updates'):,.0f}", duration(each.mean("seconds")), size(each.memory_bytes)]


def _window(each: Standing) -> str:
    """The range of its lengths."""
    low, high = each.window(0), each.window(1)
    return str(low) if low == high else f"{low} to {high}"


def _diverged(each: Standing) -> str:
    return f"diverged ({len(each.diverged)} of {len(each.runs)})"
