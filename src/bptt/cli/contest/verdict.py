"""What follows from a comparison, in a line each: every name and number computed from its results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bptt.analysis import number, share
from bptt.cli.contest.contest import Found
from bptt.cli.contest.results import Spread, Standing, equal_time, standings
from bptt.cli.printing import duration, size

EXACT = 1e-4
"""Relative bias below which a gradient counts as exact: float32 sums over other windows differ by that little."""
REACHED = 0.01
"""A parameter this close to its optimum, relatively, has reached it."""


def verdict(found: Found) -> dict[str, str]:
    """Title -> sentence: exact, least biased, cheapest, best at equal time, best for equal data, how others ended."""
    placed = standings(found)
    said = {"exact gradient": _exact(placed), "least biased of the others": _least_biased(placed)}
    said["cheapest"] = _cheapest(placed)
    together = equal_time(placed)
    if together is not None:
        losses = {each.label: each.loss_at(together) for each in placed}
        said["best at equal time"] = f"{_best(losses)}, all after {duration(together)} of training"
    if found.budget.steps is not None:
        losses = {each.label: each.loss for each in placed}
        said["best for equal data"] = f"{_best(losses)}, all after {found.budget}"
    if found.setting.optimum is not None:
        said |= _ends(placed, found.setting.optimum, found.setting.parameter or "")
    diverged = [f"{each.label} ({len(each.diverged)} of {len(each.runs)})" for each in placed if each.diverged]
    if diverged:
        said["diverged"] = f"{', '.join(diverged)} runs"
    return said


def _is_exact(each: Standing) -> bool:
    return not each.drawn and each.bias < EXACT


def _exact(placed: Sequence[Standing]) -> str:
    return ", ".join(each.name for each in placed if _is_exact(each)) or "none of these"


def _least_biased(placed: Sequence[Standing]) -> str:
    others = [each for each in placed if not _is_exact(each) and not math.isnan(each.bias)]
    if not others:
        return "there is no other"
    best = min(others, key=lambda each: 0.0 if _unbiased(each) else each.bias)
    if not _unbiased(best):
        return f"{best.label}, off by {share(best.bias)} of the gradient's norm"
    draws = max(found["draws"] for found in best.gradients.values())
    return f"{best.label}, whose bias {draws} draws can't tell from none"


def _unbiased(each: Standing) -> bool:
    """Unbiased as it says, and no measurement says otherwise."""
    found = [each.value(when, "signed_bias") for when in each.gradients]
    return each.kind == "unbiased" and all(known is None or known[1] <= 0 <= known[2] for known in found)


def _cheapest(placed: Sequence[Standing]) -> str:
    fast = min(placed, key=lambda each: each.pace)
    small = min(placed, key=lambda each: each.memory_bytes)
    if fast is small:
        return f"{fast.label}, in time ({_pace(fast)}) and in memory ({size(fast.memory_bytes)})"
    return f"{fast.label} in time ({_pace(fast)}), {small.label} in memory ({size(small.memory_bytes)})"


def _pace(each: Standing) -> str:
    return f"{1e3 * each.pace:.3g} s for 1,000 steps"


def _best(losses: dict[str, Spread | None]) -> str:
    """The lowest mean, and the others that its spread doesn't separate from it."""
    known = sorted(((name, loss) for name, loss in losses.items() if loss is not None), key=lambda pair: pair[1].mean)
    if not known:
        return "none: every strategy has runs that diverged"
    (name, best), *others = known
    near = [other for other, loss in others if _overlap(best, loss)]
    within = f" (within the spread: {', '.join(near)})" if near else ""
    return f"{name} with loss {spread(best)}{within}"


def _overlap(a: Spread, b: Spread) -> bool:
    """Whether two means lie closer than the deviation of their difference."""
    return b.mean - a.mean <= math.hypot(a.deviation or 0.0, b.deviation or 0.0)


def _ends(placed: Sequence[Standing], optimum: float, parameter: str) -> dict[str, str]:
    """Of a model with one parameter: who reached the optimum, and where the others ended."""
    values = {each.label: each.parameter for each in placed if not each.diverged}
    known = {name: value for name, value in values.items() if value is not None}
    reached = [name for name, value in known.items() if abs(value - optimum) <= REACHED * abs(optimum)]
    others = [f"{name} ({value:.4g})" for name, value in known.items() if name not in reached]
    said = {f"{parameter} ends at {optimum:.4g}": ", ".join(reached) or "of none"}
    return said | ({f"{parameter} ends elsewhere": ", ".join(others)} if others else {})


def spread(value: Spread) -> str:
    """Mean and deviation, with the same decimals.

    >>> spread(Spread(0.1234567, 0.0123)), spread(Spread(2.0)), spread(Spread(14.25, 30.0)), spread(Spread(0.0, 0.0))
    ('0.123 ± 0.012', '2', '14.2 ± 30.0', '0 ± 0')
    """
    if value.deviation is None or not value.mean:
        return number(value.mean) + ("" if value.deviation is None else f" ± {number(value.deviation)}")
    decimals = max(0, 2 - math.floor(math.log10(abs(value.mean))))
    if decimals > 5:
        return f"{value.mean:.2e} ± {value.deviation:.1e}"
    return f"{value.mean:.{decimals}f} ± {value.deviation:.{decimals}f}"
