"""A comparison as plain numbers, for results.json."""

from __future__ import annotations

from typing import Any

from bptt.analysis.plain import to_plain
from bptt.analysis.race import Race, Spread, Standing


def numbers(found: Race, config: dict[str, Any]) -> dict[str, Any]:
    """Everything. config: what makes the same comparison again."""
    known = {name: getattr(found, name) for name in ("title", "unit", "rows", "marks", "optimum")}
    return {
        "config": config,
        "setting": {**found.facts, **known},
        "equal_time_seconds": found.equal_time,
        "strategies": {each.name: _standing(each, found.equal_time) for each in found.standings},
    }


def _standing(each: Standing, together: float | None) -> dict[str, Any]:
    return {
        "loss": _spread(each.loss),
        "loss_at_equal_time": _spread(None if together is None else each.loss_at(together)),
        **{name: each.mean(name) for name in ("updates", "steps", "seconds")},
        "seconds_per_step": each.pace,
        "forward_steps_per_step": each.by_step("forward_steps"),
        "memory_bytes": each.memory_bytes,
        "parameter": each.parameter,
        "windows": {str(length): each.windows[length] for length in sorted(each.windows)},
        "gradient": {when: to_plain({**vars(found), "strategy": each.name}) for when, found in each.gradients.items()},
        "runs": [to_plain(run) for run in each.runs],
    }


def _spread(value: Spread | None) -> dict[str, Any] | None:
    return None if value is None else value._asdict()
