"""The plots of a comparison, a panel each, drawn the same for the page and for the PNG files."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

from bptt.analysis import number
from bptt.analysis.race import Point, Race, Run, Standing
from bptt.analysis.race.result import WHEN, between

INK, RULE = "#1b1f24", "#dddddd"
"""Of text and axes, and of the grid; the page puts its own colours in their place."""
COLOURS = ("#1f77c4", "#d55e00", "#10976b", "#c2609f", "#b8860b", "#7a6ff0", "#8c6d5f", "#7f8790")
"""Legible on white and on black; then again, dashed."""
MARK: Any = {"color": INK, "linewidth": 0.8, "linestyle": (0, (2, 2))}
"""A value that is known beforehand."""
MIB = 2**20
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


@dataclasses.dataclass(frozen=True)
class Look:
    """How a strategy is drawn everywhere."""

    colour: str
    dash: Any


@dataclasses.dataclass(frozen=True)
class Panel:
    """A plot: its name, what it shows in a phrase, and what draws it."""

    name: str
    title: str
    draw: Callable[[Axes], None]


def style(axes: Axes, across: str, up: str) -> None:
    """What all plots share: names of the axes, a pale grid, no frame."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Of each strategy one that no other has, for the first 32."""
    pairs = itertools.cycle((dash, colour) for dash in DASHES for colour in COLOURS)
    return {name: Look(colour, dash) for name, (dash, colour) in zip(names, pairs, strict=False)}


def marks(found: Race) -> list[str]:
    """What the dotted lines are."""
    told = [f"{name}: loss {number(value)}" for name, value in found.marks.items()]
    return told + ([f"optimum: {found.parameter} = {found.optimum:.4g}"] if found.optimum is not None else [])


def loss_panels(found: Race) -> list[Panel]:
    """Validation loss against updates, time and data; for a model with one parameter, that too."""
    unit = f"{found.unit}s read, {found.rows} side by side" if found.rows > 1 else f"{found.unit}s read"
    placed = found.standings
    curves = partial(_curves, found, placed)
    panels = [
        Panel("time", "loss against time", partial(curves, lambda p: p.seconds, "seconds of training")),
        Panel("data", f"loss against {found.unit}s", partial(curves, lambda p: p.steps * found.rows, unit)),
        Panel("updates", "loss against updates", partial(curves, lambda p: p.updates, "updates", log=True)),
    ]
    if found.parameter is not None:
        panels.append(Panel("parameter", f"{found.parameter} against steps", partial(_parameter, found, placed)))
    return panels


def gradient_panels(placed: Sequence[Standing]) -> list[Panel]:
    """Bias and variance of each strategy's gradient, with 99 % intervals."""
    return [
        Panel("bias", "relative bias of the gradient", partial(_estimates, placed, "bias", "‖E g - g*‖ / ‖g*‖")),
        Panel("variance", "variance of the gradient", partial(_estimates, placed, "variance", "E ‖g - E g‖² / ‖g*‖²")),
        Panel("cosine", "cosine with the exact gradient", partial(_estimates, placed, "cosine", "cos(g, g*)")),
    ]


def cost_panels(placed: Sequence[Standing]) -> list[Panel]:
    """Window lengths, memory and time."""
    bars = partial(_bars, placed)
    panels = [
        Panel("windows", "steps an update is differentiated through", partial(_windows, placed)),
        Panel("memory", "memory of an update", partial(bars, lambda e: e.memory_bytes / MIB, "MiB, the most")),
        Panel("pace", "time", partial(bars, lambda e: 1e3 * e.pace, "seconds for 1,000 steps")),
    ]
    if any(run.decisions for each in placed for run in each.runs):
        panels.append(Panel("decisions", "lengths that adaptive truncation chose", partial(_decisions, placed)))
    return panels


def _curves(
    found: Race, placed: Sequence[Standing], axis: Callable[[Point], float], label: str, axes: Axes, log: bool = False
) -> None:
    style(axes, label, "validation loss")
    shown: list[float] = []
    for each, look in zip(placed, looks([e.label for e in placed]).values(), strict=True):
        for run in each.runs:
            points = [point for point in run.points if not log or axis(point) > 0]
            across, losses = [axis(point) for point in points], [point.loss for point in points]
            faint = 1.0 if len(each.runs) == 1 or run.diverged else 0.35
            axes.plot(across, losses, color=look.colour, linestyle=look.dash, linewidth=1, alpha=faint)
            if run.diverged and points:
                axes.plot(across[-1], losses[-1], "x", color=look.colour, markersize=5)
            shown += losses
        if len(each.runs) > 1 and not each.diverged:
            across, losses = mean_curve(each.runs, axis, log)
            axes.plot(across, losses, color=look.colour, linestyle=look.dash, linewidth=1.8)
    for value in found.marks.values():
        axes.axhline(value, **MARK)
    positive = [value for value in shown if value > 0]
    if positive and max(positive) > 30 * min(positive):
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(PLAIN if label.startswith("seconds") else EngFormatter(sep=""))
    if log:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)


def mean_curve(runs: Sequence[Run], axis: Callable[[Point], float], log: bool) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of runs along an axis, as far as all of them go."""
    spans = [[axis(point) for point in run.points if not log or axis(point) > 0] for run in runs]
    first, last = max(span[0] for span in spans), min(span[-1] for span in spans)
    across = np.geomspace(first, last, 80) if log else np.linspace(first, last, 80)
    losses = np.mean([[between(run, axis, at) for at in across] for run in runs], axis=0)
    return across, losses


def _parameter(found: Race, placed: Sequence[Standing], axes: Axes) -> None:
    style(axes, "steps read", found.parameter or "")
    for each, look in zip(placed, looks([e.label for e in placed]).values(), strict=True):
        for run in each.runs:
            values = [math.nan if p.parameter is None else p.parameter for p in run.points]
            axes.plot([p.steps for p in run.points], values, color=look.colour, linestyle=look.dash, linewidth=1.2)
    axes.axhline(found.optimum or 0.0, **MARK)
    axes.set_yscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def _estimates(placed: Sequence[Standing], name: str, label: str, axes: Axes) -> None:
    style(axes, label, "")
    rows(axes, placed)
    for row, (each, look) in enumerate(zip(placed, looks([e.label for e in placed]).values(), strict=True)):
        for when, shift, face in zip(WHEN, (-0.17, 0.17), ("none", look.colour), strict=True):
            found = each.gradients.get(when)
            if found is None or math.isnan(getattr(found, name).value):
                continue
            value, low, high = getattr(found, name)
            axes.plot([low, high], [row + shift] * 2, color=look.colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot(value, row + shift, "o", markersize=4.5, markerfacecolor=face, markeredgecolor=look.colour)
    if name != "cosine":
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0] * 0.2))


def _windows(placed: Sequence[Standing], axes: Axes) -> None:
    style(axes, "steps: shortest, middle half, longest", "")
    rows(axes, placed)
    for row, (each, look) in enumerate(zip(placed, looks([e.label for e in placed]).values(), strict=True)):
        if each.windows:
            low, first, middle, last, high = (each.window(share) for share in (0, 0.25, 0.5, 0.75, 1))
            axes.plot([low, high], [row, row], color=look.colour, linewidth=1.2)
            axes.plot([first, last], [row, row], color=look.colour, linewidth=5, solid_capstyle="butt", alpha=0.5)
            axes.plot(middle, row, "o", color=look.colour, markersize=4.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _bars(placed: Sequence[Standing], value: Callable[[Standing], float], label: str, axes: Axes) -> None:
    style(axes, label, "")
    rows(axes, placed)
    largest = max(value(each) for each in placed)
    for row, (each, look) in enumerate(zip(placed, looks([e.label for e in placed]).values(), strict=True)):
        axes.barh(row, value(each), height=0.5, color=look.colour)
        axes.annotate(
            f"{value(each):.3g}", (value(each), row), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xlim(0, largest * 1.3 or 1)
    axes.xaxis.set_major_formatter(PLAIN)


def _decisions(placed: Sequence[Standing], axes: Axes) -> None:
    style(axes, "updates", "K, steps")
    for each, look in zip(placed, looks([e.label for e in placed]).values(), strict=True):
        for run in each.runs:
            if run.decisions:
                updates, lengths = zip(*[*run.decisions, (run.updates, run.decisions[-1][1])], strict=True)
                axes.step(updates, lengths, where="post", color=look.colour, linestyle=look.dash, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def rows(axes: Axes, placed: Sequence[Standing]) -> None:
    """A row for each strategy, the first at the top."""
    axes.set_yticks(np.arange(len(placed)), [each.label for each in placed])
    axes.set_ylim(len(placed) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
