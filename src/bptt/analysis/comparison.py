"""What `compare` returns: each strategy's estimates and costs, as a table, records, a plot and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bptt.analysis.estimates import COSTS, ESTIMATES, Compared, Estimate
from bptt.analysis.numbers import size
from bptt.analysis.plain import label
from bptt.analysis.shown import Shown, Table, axes
from bptt.analysis.verdict import verdicts


@dataclass(frozen=True)
class Comparison(Shown):
    """What `compare` found; printed or shown in a notebook, a table with a line for each strategy, and the verdict.

    steps: T. norms: name -> ‖g*‖ of that parameter. norm: ‖g*‖ of all. entries: a `Compared` each strategy, as listed.
    """

    steps: int
    norms: dict[str, float]
    norm: float
    entries: tuple[Compared, ...]

    def verdict(self) -> str:
        """Which gradient is exact, which of the others is the least biased, which the cheapest: a line each.

        The least biased is named by the upper end of its 99 % interval, so that fewer draws never make a strategy look
        better; where that lies within the interval of others, it is undecided between them.
        """
        measured = {label(entry.strategy): [entry] for entry in self.entries}
        return "\n".join(f"{name}: {said}" for name, said in verdicts(measured).items())

    def table(self) -> Table:
        """A line for each strategy; estimates of those that draw with their 99 % intervals."""
        heads = ("strategy", "draws", "bias", "cosine", "variance", "updates", "forward", "backward", "memory", "time")
        return Table(heads, [_cells(entry) for entry in self.entries])

    def records(self) -> list[dict[str, Any]]:
        """One for each strategy: estimates as `bias`, `bias_low`, `bias_high` and so on, and the costs."""
        return [
            {
                "strategy": label(entry.strategy),
                "kind": entry.kind,
                "draws": entry.draws,
                **{
                    f"{name}{end}": value
                    for name in ESTIMATES
                    for end, value in zip(("", "_low", "_high"), getattr(entry, name), strict=True)
                },
                **{name: getattr(entry, name) for name in COSTS},
            }
            for entry in self.entries
        ]

    def plot(self, ax: Any = None) -> Any:
        """Bias with its 99 % interval, and the error of a single gradient, by strategy, in units of ‖g*‖."""
        return _plot(self, axes(ax, len(self.entries)))


def _cells(entry: Compared) -> tuple[str, ...]:
    def shown(estimate: Estimate) -> str:
        value, low, high = (f"{number:.3g}" for number in estimate)
        return value if entry.draws == 1 else f"{value} [{low}, {high}]"

    counts: Sequence[float] = (entry.updates, entry.forward_steps, entry.backward_steps)
    return (
        f"{label(entry.strategy)} ({entry.kind})",
        str(entry.draws),
        *(shown(estimate) for estimate in (entry.bias, entry.cosine, entry.variance)),
        *(f"{count:.1f}".removesuffix(".0") for count in counts),
        size(entry.memory_bytes),
        f"{entry.seconds * 1e3:.3g} ms",
    )


def _plot(found: Comparison, ax: Any) -> Any:
    """A row for each strategy: the bias with its interval, and √(bias² + variance), how far off one gradient is."""
    rows = range(len(found.entries))
    for row, entry in zip(rows, found.entries, strict=True):
        value, low, high = entry.bias
        ax.plot([low, high], [row, row], color="C0", linewidth=2, solid_capstyle="butt")
        ax.plot(value, row, "o", color="C0", clip_on=False, label="bias, 99 % interval" if row == 0 else None)
        off = math.sqrt(value**2 + entry.variance.value)
        ax.plot(
            off,
            row,
            "o",
            color="C1",
            fillstyle="none",
            label="a single gradient, √(bias² + variance)" if row == 0 else None,
        )
    ax.set_yticks(
        rows, [f"{label(e.strategy)}\n{e.seconds * 1e3:.3g} ms, {size(e.memory_bytes)}" for e in found.entries]
    )
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel("distance from the exact gradient, relative to its norm")
    ax.set_title(f"Gradients of {found.steps:,} steps")
    ax.legend()
    return ax
