"""Finished parts as JSON, looked at before they are believed: another version wrote them, or somebody changed them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

from bptt.cli.contest.runner import Point, Run

ESTIMATES = ("bias", "signed_bias", "cosine", "variance")
_COUNTS = ("updates", "steps", "forward_steps", "memory_bytes")
_MEANS = ("norm", "seconds", "updates", "forward_steps", "backward_steps")


def run_of(kept: Any, name: str, seed: int) -> Run | None:
    """The run that JSON tells of; None where it isn't one of this strategy and seed."""
    fields = {field.name for field in dataclasses.fields(Run)}
    if not isinstance(kept, dict) or set(kept) != fields or (kept["strategy"], kept["seed"]) != (name, seed):
        return None
    points, windows, decisions, diverged = (kept[key] for key in ("points", "windows", "decisions", "diverged"))
    sound = (
        all(map(_count, (kept[key] for key in _COUNTS)))
        and _number(kept["seconds"])
        and (diverged is None or isinstance(diverged, str))
        and isinstance(points, list)
        and all(map(_point, points))
        and (bool(points) or diverged is not None)
        and isinstance(windows, dict)
        and all(steps.isdecimal() and _count(count) for steps, count in windows.items())
        and isinstance(decisions, list)
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_count, pair)) for pair in decisions)
    )
    if not sound:
        return None
    values = {**kept, "points": [Point(*point) for point in points]}
    values["windows"] = Counter({int(steps): count for steps, count in windows.items()})
    return Run(**{**values, "decisions": [tuple(pair) for pair in decisions]})


def is_gradient(kept: Any) -> bool:
    """Whether JSON is what `gradients.measure` gives, or the {} of a strategy that could not be measured."""
    if not isinstance(kept, dict):
        return False
    parameters = kept.get("parameters")
    return not kept or (
        _estimates(kept)
        and isinstance(parameters, dict)
        and all(map(_estimates, parameters.values()))
        and all(_count(kept.get(key)) for key in ("steps", "draws", "memory_bytes"))
        and all(key in kept and (kept[key] is None or _number(kept[key])) for key in _MEANS)
    )


def _estimates(kept: Any) -> bool:
    return isinstance(kept, dict) and all(_interval(kept.get(name)) for name in ESTIMATES)


def _interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(x is None or _number(x) for x in value)


def _point(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != len(dataclasses.fields(Point)):
        return False
    updates, steps, seconds, loss, *others = value
    sound = _count(updates) and _count(steps) and _number(seconds) and _number(loss)
    return sound and all(x is None or _number(x) for x in others)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
