"""What a comparison comes to: each strategy's results over seeds, and the verdict, all computed from the runs."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from bptt.cli.contest.contest import Found
from bptt.cli.contest.gradients import WHEN
from bptt.cli.contest.runner import Point, Run
from bptt.strategies import says


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over seeds: mean, and standard deviation, which a single seed has none of."""

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """
        >>> Spread.of([1.0, 3.0]), Spread.of([2.0])
        (Spread(mean=2.0, deviation=1.4142135623730951), Spread(mean=2.0, deviation=None))
        """
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclasses.dataclass(frozen=True)
class Standing:
    """One strategy: its name as it is given and as it is shown, its runs, and its gradient by WHEN as far as it could
    be measured. kind: as the strategy says."""

    name: str
    label: str
    kind: str
    runs: list[Run]
    gradients: dict[str, dict[str, Any]]

    @property
    def diverged(self) -> list[Run]:
        """Runs that ended in no number."""
        return [run for run in self.runs if run.diverged is not None]

    @cached_property
    def loss(self) -> Spread | None:
        """Validation loss at the end; None if a run diverged."""
        return None if self.diverged else Spread.of([run.last.loss for run in self.runs])

    def loss_at(self, seconds: float) -> Spread | None:
        """Validation loss after so much training, between two validations on the straight line; None if a run diverged
        by the end."""
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
        return sum((run.windows for run in self.runs), Counter())

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

    def value(self, when: str, name: str) -> list[float] | None:
        """[value, low, high] of an estimate, or None."""
        found = self.gradients.get(when, {}).get(name)
        return None if found is None or None in found else found

    @property
    def drawn(self) -> bool:
        """Whether it draws random numbers."""
        return any(found["draws"] > 1 for found in self.gradients.values())

    @property
    def bias(self) -> float:
        """The largest relative bias that was measured."""
        values = [found[0] for when in WHEN if (found := self.value(when, "bias")) is not None]
        return max(values, default=math.nan)


def standings(found: Found) -> list[Standing]:
    """Every strategy's, as they were given."""
    return [
        Standing(
            name,
            found.label(name),
            says(found.strategies[name], "kind"),
            runs,
            {when: known[name] for when in WHEN if name in (known := found.gradients[when])},
        )
        for name, runs in found.runs.items()
    ]


def between(run: Run, axis: Callable[[Point], float], at: float) -> float:
    """The validation loss of a run at a place of an axis, on the straight line between two validations."""
    return float(np.interp(at, [axis(point) for point in run.points], [point.loss for point in run.points]))


def equal_time(found: list[Standing]) -> float | None:
    """The training time that all runs have, but for strategies of which one diverged."""
    return min((run.seconds for each in found if not each.diverged for run in each.runs), default=None)


def numbers(found: Found) -> dict[str, Any]:
    """Everything as plain numbers, for results.json."""
    placed = standings(found)
    together = equal_time(placed)
    return {
        "config": found.config.recorded(),
        "setting": {
            "title": found.setting.title,
            **found.setting.facts,
            **{name: getattr(found.setting, name) for name in ("unit", "rows", "marks", "optimum")},
        },
        "equal_time_seconds": together,
        "strategies": {each.name: _standing(each, together) for each in placed},
    }


def _standing(each: Standing, together: float | None) -> dict[str, Any]:
    at_equal_time = None if together is None else each.loss_at(together)
    return {
        "loss": None if each.loss is None else dataclasses.asdict(each.loss),
        "loss_at_equal_time": None if at_equal_time is None else dataclasses.asdict(at_equal_time),
        **{name: each.mean(name) for name in ("updates", "steps", "seconds")},
        "seconds_per_step": each.pace,
        "forward_steps_per_step": each.by_step("forward_steps"),
        "memory_bytes": each.memory_bytes,
        "parameter": each.parameter,
        "windows": {str(length): each.windows[length] for length in sorted(each.windows)},
        "gradient": each.gradients,
        "runs": [{**vars(run), "points": [dataclasses.asdict(point) for point in run.points]} for run in each.runs],
    }
