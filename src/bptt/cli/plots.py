"""Loss and gradient norm over a run, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # a Figure of its own draws with Agg and needs no display
from matplotlib.ticker import EngFormatter, ScalarFormatter

from bptt.analysis.race.report.panels import style
from bptt.cli.history import History

BLUE, PALE, ORANGE, GREY = "#1f5fa8", "#a9c4e4", "#d2601a", "#666666"


def loss_plot(history: History, title: str, path: Path) -> None:
    """Training and validation losses, of a text in bits per character, over what was read."""
    measure = history.measure
    figure, axes = _axes(title, measure.per, measure.unit)
    points = [v.loss * measure.factor for v in history.validations]
    if history.losses:
        losses = np.asarray(history.losses) * measure.factor
        axes.plot(history.read, losses, color=PALE, linewidth=0.8, label="training, each update")
        axes.plot(history.read, _smooth(losses), color=BLUE, linewidth=1.6, label="training, running mean")
        shown = losses[len(losses) // 50 :]  # the first steep drop would flatten all that follows
        low, high = min([shown.min(), *points]), max([shown.max(), *points])
        margin = 0.06 * (high - low) or 0.5
        axes.set_ylim(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)
    if history.validations:
        last = history.validations[-1]
        read = [v.read for v in history.validations]
        label = f"validation, last {measure.number(last.loss)}"
        axes.plot(read, points, "o-", color=ORANGE, markersize=5, linewidth=1, label=label)
    _finish(figure, axes, path)


def norm_plot(history: History, title: str, path: Path) -> None:
    """The norm of the gradient before clipping, over what was read."""
    figure, axes = _axes(title, "gradient norm before clipping", history.measure.unit)
    norms = np.asarray(history.grad_norm)
    norms = np.where(norms > np.finfo(np.float32).tiny, norms, np.nan)  # zero has no place on a logarithmic axis
    if not np.isnan(norms).all():
        low, high = np.nanmin(norms), np.nanmax(norms)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, max(high, history.clip if high > history.clip / 10 else 0) * 1.3)
        axes.plot(history.read, norms, color=PALE, linewidth=0.8, label="each update")
        axes.plot(history.read, np.exp(_smooth(np.log(norms))), color=BLUE, linewidth=1.6, label="running mean")
        if high < 100 * low:  # within a decade or two, plain numbers read better
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(ScalarFormatter())
    if history.clip > 0:
        label = f"clipped above {history.clip:g}: {history.clipped / max(1, history.step):.0%} of updates"
        axes.axhline(history.clip, color=ORANGE, linestyle="--", linewidth=1.2, label=label)
    _finish(figure, axes, path)


def _axes(title: str, label: str, unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    style(axes, f"{unit}s read in training", label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure, axes


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.set_xlim(left=0)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a centred stretch of about a fiftieth of the run, shorter at both ends; NaN counts as nothing."""
    half = max(1, len(values) // 100)
    known = ~np.isnan(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
