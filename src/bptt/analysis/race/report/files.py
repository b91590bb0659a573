"""A race as files: the page, all numbers as JSON, and the plots as PNG."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from bptt.analysis.plain import to_plain
from bptt.analysis.race import Race, Spread, Standing
from bptt.analysis.race.report.drawing import curves, places, png
from bptt.analysis.race.report.page import page
from bptt.analysis.race.report.panels import cost_panels, gradient_panels, loss_panels
from bptt.runs.files import jsonable, replace, write

RESULTS, PAGE = "results.json", "report.html"
PLOTS = ("loss.png", "gradients.png", "windows.png")


def save(found: Race, folder: Path, command: str, config: dict[str, Any]) -> None:
    """Write all files, each replaced whole. config: what makes the same race again."""
    placed = found.standings
    drawn = (loss_panels(found), curves(found)), (gradient_panels(placed), places(found)), (cost_panels(placed), [])
    for name, (panels, legend) in zip(PLOTS, drawn, strict=True):
        replace(folder / name, partial(png, panels, found, legend))
    write(folder / RESULTS, json.dumps(jsonable(numbers(found, config)), indent=1) + "\n")
    write(folder / PAGE, page(found, command))


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
