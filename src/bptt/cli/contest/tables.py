"""The tables of a comparison, as texts, for the page and for the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bptt.analysis import number, share
from bptt.cli.contest.contest import Found
from bptt.cli.contest.results import Standing, equal_time, standings
from bptt.cli.contest.verdict import spread
from bptt.cli.printing import duration, quantity, size


@dataclasses.dataclass(frozen=True)
class Table:
    """Names of the columns, and rows of texts; the first column is what the row is about."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def results(found: Found) -> Table:
    """What each strategy reached, and what it took."""
    placed = standings(found)
    together = equal_time(placed)
    parameter = found.setting.parameter
    columns = ["strategy", f"loss after {found.budget}", "at equal time", *([parameter] if parameter else [])]
    rows = []
    for each in placed:
        early = None if together is None else each.loss_at(together)
        reached = _diverged(each) if each.loss is None else spread(each.loss)
        cost = [*_cost(each)[:2], f"{1e3 * each.pace:.3g}", _cost(each)[2], _window(each)]
        rows.append([each.label, reached, "" if early is None else spread(early), *_end(found, each), *cost])
    return Table("Results", [*columns, "updates", "time", "s / 1,000 steps", "memory", "window"], rows)


def brief(found: Found) -> Table:
    """What fits a terminal of 80 columns."""
    parameter = found.setting.parameter
    columns = ["strategy", "loss", *([parameter] if parameter else []), "updates", "time", "memory", "bias"]
    rows = []
    for each in standings(found):
        told = "diverged" if each.loss is None else spread(each.loss)
        rows.append([each.label, told, *_end(found, each), *_cost(each), share(each.bias)])
    return Table("", columns, rows)


def gradients(found: Found, when: str) -> Table:
    """What `bptt.compare` measured."""
    columns = ["strategy", "bias", "signed", "cosine", "variance", "forward", "backward", "memory", "time"]
    rows = []
    for each in standings(found):
        measured = each.gradients.get(when)
        if measured is None:
            continue
        estimates = [estimate(each.value(when, name)) for name in ("bias", "signed_bias", "cosine", "variance")]
        counts = [quantity(measured[name]) for name in ("forward_steps", "backward_steps")]
        cost = [size(measured["memory_bytes"]), f"{1e3 * measured['seconds']:.3g} ms"]
        rows.append([each.label, *estimates, *counts, *cost])
    return Table(f"At the {when}", columns, rows)


def by_parameter(found: Found, when: str) -> Table:
    """The relative bias of each parameter's gradient."""
    placed = [each for each in standings(found) if when in each.gradients]
    names = list(placed[0].gradients[when]["parameters"]) if placed else []
    rows = [[name, *(estimate(each.gradients[when]["parameters"][name]["bias"]) for each in placed)] for name in names]
    return Table(f"At the {when}", ["parameter", *(each.label for each in placed)], rows)


def estimate(found: Sequence[float | None] | None) -> str:
    """A value with its interval if it has one.

    >>> estimate([0.5, 0.41, 0.6]), estimate([0.25, 0.25, 0.25]), estimate(None)
    ('0.5 [0.41, 0.6]', '0.25', '')
    """
    if found is None or None in found:
        return ""
    value, low, high = (0.0 if value is None or abs(value) < 1e-12 else value for value in found)
    return number(value) if low == high else f"{number(value)} [{low:.2g}, {high:.2g}]"


def _end(found: Found, each: Standing) -> list[str]:
    """The parameter at the end, of a model that has a single one."""
    if not found.setting.parameter:
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
