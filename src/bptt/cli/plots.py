"""Loss and gradient norm over a run, as PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # a Figure of its own draws with Agg and needs no display

from bptt.analysis.history import History
from bptt.analysis.race.report.panels import style

BLUE, ORANGE = "#1f5fa8", "#d2601a"


def loss_plot(history: History, title: str, path: Path) -> None:
    """Training and validation losses, of a text in bits per character, over what was read."""
    _run_plot(history.plot, title, path)


def norm_plot(history: History, title: str, path: Path) -> None:
    """The norm of the gradient before clipping, over what was read."""
    _run_plot(history.plot_norms, title, path)


def _run_plot(draw: Callable[[Axes], Axes], title: str, path: Path) -> None:
    with rc_context({"axes.prop_cycle": cycler(color=[BLUE, ORANGE])}):  # looked up when the file is drawn
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, fontsize=11, loc="left", parse_math=False)
        draw(axes)
        style(axes, axes.get_xlabel(), axes.get_ylabel())
        if (inside := axes.get_legend()) is not None:
            inside.remove()
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        figure.savefig(path)
