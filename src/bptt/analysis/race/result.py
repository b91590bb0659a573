"""What a race comes to: each strategy's results over seeds, and the verdict, all computed from the runs."""

import importlib
import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import bptt
from bptt.analysis.numbers import duration, number, share, size
from bptt.analysis.race.runner import Point, Run
from bptt.analysis.race.setting import Budget
from bptt.analysis.shown import Shown, Table, axes
from bptt.analysis.verdict import verdicts
from bptt.strategies import Strategy, says

WHEN = ("start", "end")
"""Where gradients are measured: at the first weights of seed 0, and at the end of the run with the lowest loss."""
REACHED = 0.01
"""A parameter this close to its optimum, relatively, has reached it."""
LONG = 4
"""A window so many times as long as the median one is told of."""


class Spread(NamedTuple):
    """A number over seeds: mean, and standard deviation, which a single seed has none of.

    >>> str(Spread(0.1234567, 0.0123)), str(Spread(2.0)), str(Spread(14.25, 30.0)), str(Spread(0.0, 0.0))
    ('0.123 ± 0.012', '2', '14.2 ± 30.0', '0 ± 0')
    """

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """
        >>> Spread.of([1.0, 3.0]), Spread.of([2.0])
        (Spread(mean=2.0, deviation=1.4142135623730951), Spread(mean=2.0, deviation=None))
        """
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        if self.deviation is None or not self.mean:
            return number(self.mean) + ("" if self.deviation is None else f" ± {number(self.deviation)}")
        decimals = max(0, 2 - math.floor(math.log10(abs(self.mean))))
        if decimals > 5:
            return f"{self.mean:.2e} ± {self.deviation:.1e}"
        return f"{self.mean:.{decimals}f} ± {self.deviation:.{decimals}f}"


@dataclass(frozen=True)
class Standing:
    """One strategy of a race: its name, its runs, and its gradient by WHEN as far as it could be measured."""

    name: str
    strategy: Strategy
    runs: tuple[Run, ...]
    gradients: Mapping[str, bptt.Compared]

    @property
    def label(self) -> str:
        """Its name, with what everybody should know of it: that it is biased though it draws."""
        drawn = any(found.draws > 1 for found in self.gradients.values())
        return f"{self.name} (biased)" if drawn and says(self.strategy, "kind") == "biased" else self.name

    @property
    def diverged(self) -> list[Run]:
        """Runs that ended in no number."""
        return [run for run in self.runs if run.diverged is not None]

    @cached_property
    def loss(self) -> Spread | None:
        """Validation loss at the end; None if a run diverged."""
        return None if self.diverged else Spread.of([run.last.loss for run in self.runs])

    def loss_at(self, seconds: float) -> Spread | None:
        """Validation loss after so much training, on the straight line between two validations; None as above."""
        if self.diverged:
            return None
        return Spread.of([between(run, lambda point: point.seconds, seconds) for run in self.runs])

    def mean(self, name: str) -> float:
        """Of a number of its runs, such as their updates."""
        return statistics.fmean(getattr(run, name) for run in self.runs)

    def by_step(self, name: str) -> float:
        """A number of its runs, such as their seconds, for each step of the data."""
        return sum(getattr(run, name) for run in self.runs) / max(1, sum(run.steps for run in self.runs))

    @property
    def pace(self) -> float:
        """Seconds for a step."""
        return self.by_step("seconds")

    @property
    def memory_bytes(self) -> int:
        """The most that an update took."""
        return max(run.memory_bytes for run in self.runs)

    @cached_property
    def windows(self) -> Counter[int]:
        """Steps that an update was differentiated through -> updates, of all runs."""
        return sum((Counter(run.windows) for run in self.runs), Counter())

    def window(self, share: float) -> int:
        """The length that this share of the updates stays at or below."""
        wanted, so_far = share * self.windows.total(), 0
        for length in sorted(self.windows):
            so_far += self.windows[length]
            if so_far >= wanted:
                return length
        return 0

    @property
    def parameter(self) -> float | None:
        """The model's only one at the end of the first run."""
        points = self.runs[0].points
        return points[-1].parameter if points else None

    @property
    def worst(self) -> bptt.Compared | None:
        """Of its measured gradients that with the largest upper end of the bias."""
        return max(self.gradients.values(), key=lambda found: found.bias.high, default=None)


def between(run: Run, axis: Callable[[Point], float], at: float) -> float:
    """The validation loss of a run at a place of an axis, on the straight line between two validations."""
    across = [axis(point) for point in run.points]
    right = bisect_right(across, at)
    if right in (0, len(across)):
        return run.points[min(right, len(across) - 1)].loss
    left, (low, high) = right - 1, across[right - 1 : right + 1]
    part = (at - low) / (high - low)
    return (1 - part) * run.points[left].loss + part * run.points[right].loss


@dataclass(frozen=True)
class Race(Shown):
    """What `race` found; printed or shown in a notebook, a table with a line for each strategy, and the verdict.

    title, facts: of what was learned. budget: of each run. unit, rows: what a step of a row is, and how many rows lie
        side by side. steps: of the sequence whose gradient was measured. draws: of a strategy that draws, there.
    marks: losses that are known beforehand. parameter, optimum: of a model with a single one.
    strategies, runs: by name; a run a seed. gradients: "start" and "end" -> name -> `Comparison` with that strategy
        alone; one that couldn't be measured is left out. reference: strategy and seed of the run whose end "end" is.
    """

    title: str
    facts: dict[str, str]
    budget: Budget
    unit: str
    rows: int
    steps: int
    draws: int
    marks: dict[str, float]
    parameter: str | None
    optimum: float | None
    strategies: dict[str, Strategy]
    runs: dict[str, tuple[Run, ...]]
    gradients: dict[str, dict[str, bptt.Comparison]]
    reference: tuple[str, int] | None

    @cached_property
    def standings(self) -> list[Standing]:
        """Every strategy's, in the order given."""
        return [
            Standing(
                name,
                self.strategies[name],
                runs,
                {when: known[name].entries[0] for when in WHEN if name in (known := self.gradients[when])},
            )
            for name, runs in self.runs.items()
        ]

    @property
    def seeds(self) -> int:
        """Runs of each strategy."""
        return len(next(iter(self.runs.values())))

    @property
    def equal_time(self) -> float | None:
        """The training time that all runs have, but for strategies of which one diverged."""
        return min((run.seconds for each in self.standings if not each.diverged for run in each.runs), default=None)

    def verdict(self) -> str:
        """What follows, a line each; see `sentences`."""
        return "\n".join(f"{name}: {said}" for name, said in self.sentences().items())

    def sentences(self) -> dict[str, str]:
        """Title -> sentence: exact, least biased, cheapest, best at equal time, best for equal data, who diverged."""
        placed = self.standings
        said = verdicts({each.label: list(each.gradients.values()) for each in placed if each.gradients})
        said["cheapest"] = _cheapest(placed)
        said |= _longest(placed)
        together = self.equal_time
        if together is not None:
            losses = {each.label: each.loss_at(together) for each in placed}
            said["best at equal time"] = f"{_best(losses)}, all after {duration(together)} of training"
        if self.budget.steps is not None:
            losses = {each.label: each.loss for each in placed}
            said["best for equal data"] = f"{_best(losses)}, all after {self.budget}"
        if self.optimum is not None:
            said |= _ends(placed, self.optimum, self.parameter or "")
        diverged = [f"{each.label} ({len(each.diverged)} of {len(each.runs)})" for each in placed if each.diverged]
        if diverged:
            said["diverged"] = f"{', '.join(diverged)} runs"
        return said

    def table(self) -> Table:
        """What each strategy reached and took; the bias with its 99 % interval, the worse of start and end."""
        heads = ["strategy", "loss", *([self.parameter] if self.parameter else []), "updates", "time", "memory", "bias"]
        rows = []
        for each in self.standings:
            told = f"diverged ({len(each.diverged)} of {len(each.runs)})" if each.loss is None else str(each.loss)
            end = [number(math.nan if each.parameter is None else each.parameter)] if self.parameter else []
            cost = [f"{each.mean('updates'):,.0f}", duration(each.mean("seconds")), size(each.memory_bytes)]
            rows.append([each.label, told, *end, *cost, "" if each.worst is None else interval(each.worst)])
        return Table(heads, rows)

    def records(self) -> list[dict[str, Any]]:
        """One for each run: strategy, seed, what it reached and what it took."""
        return [
            {
                "strategy": name,
                "seed": run.seed,
                "loss": run.last.loss if run.points and run.diverged is None else None,
                "parameter": run.points[-1].parameter if run.points else None,
                **{key: getattr(run, key) for key in ("updates", "steps", "seconds", "forward_steps", "memory_bytes")},
                "diverged": run.diverged,
            }
            for name, runs in self.runs.items()
            for run in runs
        ]

    def report(self, path: str | Path, command: str = "") -> None:
        """Write all of it as one page of HTML that needs no network: verdict, tables, plots, light and dark.

        command: what makes the same race again, to show. Raises ImportError without matplotlib and jinja2; OSError.
        """
        Path(path).write_text(_reporting("page", "report").page(self, command), encoding="utf-8")

    def save(self, folder: str | Path, command: str = "", config: dict[str, Any] | None = None) -> None:
        """Write report.html, results.json with all numbers, and loss.png, gradients.png, windows.png into a folder.

        config: what makes the same race again, for results.json. Each file is replaced whole. Raises as `report`.
        """
        files = _reporting("files", "save")
        Path(folder).mkdir(parents=True, exist_ok=True)
        files.save(self, Path(folder), command, config or {})

    def plot(self, ax: Any = None) -> Any:
        """Validation loss against seconds of training: thin each seed, thick their mean."""
        return _plot(self, axes(ax))


def _reporting(name: str, called: str) -> Any:
    """A module of the report, which needs packages beside torch."""
    try:
        return importlib.import_module(f"bptt.analysis.race.report.{name}")
    except ImportError as error:
        raise ImportError(f"{called}() needs {error.name}, which isn't installed: pip install 'bptt[cli]'.") from None


def interval(found: bptt.Compared) -> str:
    """The relative bias in per cent; of a strategy that draws its 99 % interval."""
    _, low, high = found.bias
    return share(high) if low == high else f"{100 * low:.2g} to {100 * high:.2g}%"


def _cheapest(placed: Sequence[Standing]) -> str:
    fast = min(placed, key=lambda each: each.pace)
    small = min(placed, key=lambda each: each.memory_bytes)
    time, memory = f"{1e3 * fast.pace:.3g} s for 1,000 steps", size(small.memory_bytes)
    if fast is small:
        return f"{fast.label}, in time ({time}) and in memory ({memory})"
    return f"{fast.label} in time ({time}), {small.label} in memory ({memory})"


def _longest(placed: Sequence[Standing]) -> dict[str, str]:
    """What windows of a random length cost, where one is much longer than most."""
    found = [each for each in placed if each.windows and each.window(1) >= LONG * each.window(0.5)]
    told = [
        f"{each.label}, of {each.window(1):,} steps where half have at most {each.window(0.5):,}: it takes the memory, "
        f"{size(each.memory_bytes)}"
        for each in found
    ]
    return {"longest window": "; ".join(told)} if told else {}


def _best(losses: dict[str, Spread | None]) -> str:
    """The lowest mean, and the others that its spread doesn't separate from it."""
    known = sorted(((name, loss) for name, loss in losses.items() if loss is not None), key=lambda pair: pair[1].mean)
    if not known:
        return "none: every strategy has runs that diverged"
    (name, best), *others = known
    near = [other for other, loss in others if _overlap(best, loss)]
    within = f" (within the spread: {', '.join(near)})" if near else ""
    return f"{name} with loss {best}{within}"


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


def _plot(found: Race, ax: Any) -> Any:
    for i, each in enumerate(found.standings):
        colour, alone = f"C{i % 10}", len(each.runs) == 1
        for j, run in enumerate(each.runs):
            across, losses = [p.seconds for p in run.points], [p.loss for p in run.points]
            named = each.label if j == 0 and (alone or each.diverged) else None
            ax.plot(
                across, losses, color=colour, linewidth=1, alpha=1.0 if alone or run.diverged else 0.35, label=named
            )
            if run.diverged and run.points:
                ax.plot(across[-1], losses[-1], "x", color=colour)
        if not alone and not each.diverged:
            last = min(run.last.seconds for run in each.runs)
            across = [last * k / 80 for k in range(81)]
            means = [statistics.fmean(between(run, lambda p: p.seconds, at) for run in each.runs) for at in across]
            ax.plot(across, means, color=colour, linewidth=2, label=each.label)
    for name, value in found.marks.items():
        ax.axhline(value, color=ax.xaxis.label.get_color(), linewidth=0.8, linestyle=":", label=name)
    ax.set_xlim(left=0)
    ax.set_xlabel("training, s")
    ax.set_ylabel("validation loss")
    ax.set_title(found.title)
    ax.legend()
    return ax
