"""The pictures of the pages, computed and drawn: `make pictures` writes them into docs/images.

Each is an SVG whose colours follow the reader's light or dark scheme, and whose data come from the library itself.
"""

import io
import re
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bptt
from bptt import equations
from bptt.analysis.explanation.report.explorer import STEPS, example
from bptt.data.tasks import InfluenceBalancing

IMAGES = Path(__file__).parent / "images"
INK, SOFT, RULE, BACK = "#010101", "#020202", "#030303", "#040404"
BLUE, RED, GREEN, VIOLET, AMBER = "#050501", "#050502", "#050503", "#050504", "#050505"
SCHEMES = {
    INK: ("#1b1f24", "#e6e9ed"),
    SOFT: ("#57606a", "#a3acb7"),
    RULE: ("#d0d7de", "#39424d"),
    BACK: ("#ffffff", "#12161b"),
    BLUE: ("#1f5596", "#6ea8e0"),
    RED: ("#b5410b", "#ff9a5c"),
    GREEN: ("#0a6b4f", "#4fd1a5"),
    VIOLET: ("#8250df", "#c297ff"),
    AMBER: ("#9a6700", "#e3b341"),
}
"""The colours that matplotlib gets, with those of a light and of a dark page."""
STYLE = {
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    **{f"{part}.facecolor": BACK for part in ("axes", "figure")},
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("text.color", "axes.labelcolor"), INK),
    "axes.axisbelow": True,
    "grid.color": RULE,
    "legend.frameon": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "bptt",
}


def save(figure: Figure, name: str, words: str) -> None:
    """Write images/NAME.svg; words: what it shows, for readers who can't see it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    svg = text.getvalue()
    rules = ["", ""]
    for number, (given, scheme) in enumerate(SCHEMES.items()):
        svg = svg.replace(given, f"var(--c{number})")
        for dark in (0, 1):
            rules[dark] += f"--c{number}:{scheme[dark]};"
    style = f"<style>:root{{{rules[0]}}}@media (prefers-color-scheme:dark){{:root{{{rules[1]}}}}}</style>"
    svg = re.sub(r"(<svg [^>]*)>", rf'\1 role="img" aria-label="{words}"><title>{words}</title>{style}', svg, count=1)
    svg = re.sub(r'font: ([\d.]+px) [^;"]*', r"font: \1 system-ui, sans-serif", svg)
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def axes(width: float = 7.2, height: float = 3.6) -> tuple[Figure, Axes]:
    """An empty picture."""
    figure, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
    ax.grid(axis="y", linewidth=0.8)
    return figure, ax


def note(ax: Axes, text: str, at: tuple[float, float], **look: str) -> None:
    """Words to the right of a point."""
    ax.annotate(text, at, xytext=(4, 0), textcoords="offset points", **look)


def growth() -> None:
    """How the product of Jacobians grows or decays with the spectral radius."""
    figure, ax = axes()
    lags = range(STEPS)
    for radius, colour in ((1.2, RED), (1.1, AMBER), (1.0, GREEN), (0.9, BLUE), (0.8, VIOLET)):
        for nonlinearity, look in (("identity", "-"), ("tanh", ":")):
            trace = equations.forward(*example(radius, nonlinearity))
            chains = [equations.jacobian(trace, STEPS - 1, STEPS - 1 - lag) for lag in lags]
            sizes = torch.linalg.matrix_norm(torch.stack(chains), 2).tolist()
            ax.semilogy(lags, sizes, look, color=colour, linewidth=2)
            if nonlinearity == "identity":
                note(ax, f"radius {radius}", (STEPS - 1, sizes[-1]), color=colour, va="center")
    ax.plot([], [], "-", color=SOFT, label="identity: a power of W")
    ax.plot([], [], ":", color=SOFT, label="tanh: its slopes are below 1")
    ax.set(xlabel="lag t − k in steps", ylabel="‖∂h$_t$ / ∂h$_k$‖", ylim=(1e-16, 1e7), xlim=(0, 71))
    ax.set_xticks(range(0, 61, 10))
    ax.legend(loc="lower left")
    save(figure, "growth", "Norm of the product of Jacobians over the lag for five spectral radii")


def credit() -> None:
    """The gradient of one network, lag by lag, and what a truncation to 10 terms leaves of it."""
    figure, ax = axes()
    trace, tau = equations.forward(*example(1.0, "tanh")), 4
    parts = equations.lag_terms(trace).W.flatten(1)
    full = parts.sum(0).norm()
    sizes = (parts.norm(dim=1) / full).tolist()
    lost = ((parts.sum(0) - parts[:tau].sum(0)).norm() / full).item()
    ax.bar(range(40), sizes[:40], color=[BLUE if lag < tau else RED for lag in range(40)])
    ax.axvline(tau - 0.5, color=INK, linestyle="--", linewidth=1.5)
    said = f"TruncatedBPTT(1, {tau}) keeps what is on the left;\nwhat it loses is {lost:.0%} of the gradient's size"
    note(ax, said, (tau - 0.5, max(sizes)), va="top")
    ax.set(xlabel="lag t − k in steps", ylabel="size, of the whole gradient's")
    save(figure, "credit", "Size of the gradient's part at each lag, and where a truncation cuts")


def estimates() -> None:
    """Bias and spread of each strategy's gradient where truncation goes wrong: influence balancing."""
    task = InfluenceBalancing()
    lengths = (10, 25, 50, 100, 200)
    strategies = [bptt.TruncatedBPTT(k) for k in lengths]
    strategies += [bptt.ARTBP(bptt.PolynomialLaw(alpha=3, mean_length=k)) for k in lengths]
    generator = torch.Generator().manual_seed(0)
    sequence, start = next(task.stream(1000, 1000)), task.start()
    found = bptt.compare(
        task.model(), task.loss, sequence, start, strategies=strategies, draws=60, generator=generator
    ).entries
    figure, ax = axes()
    for kind, entries, colour, look in (("TruncatedBPTT", found[:5], RED, "s"), ("ARTBP", found[5:], BLUE, "o")):
        mean = [1 + entry.signed_bias.value for entry in entries]
        spread = [entry.variance.value**0.5 for entry in entries]
        ax.errorbar(lengths, mean, spread, fmt=f"{look}-", color=colour, capsize=4, linewidth=2, label=kind)
    ax.axhline(1, color=GREEN, linestyle="--", linewidth=1.5)
    ax.axhline(0, color=SOFT, linewidth=1)
    note(ax, "the exact gradient", (130, 1.05), color=GREEN, va="bottom")
    note(ax, "below 0: the wrong sign", (130, -0.05), color=SOFT, va="top")
    ax.set(xlabel="length of a window, ARTBP's on average", ylabel="gradient, of the exact one")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0))
    save(figure, "estimates", "Mean and standard deviation of the gradient by truncation and by ARTBP")


if __name__ == "__main__":
    with mpl.rc_context(STYLE):
        for make in (growth, credit, estimates):
            make()
            print(f"docs/images/{make.__name__}.svg")
