"""A series to forecast: its columns, which of them are targets, how far ahead, and where training ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bptt.data import Table

PART = 5
"""The last fifth is held out: its first half to choose the weights by, its second half to measure them on."""
HELD_OUT_MOST = 1 << 17
"""Steps of a half that are looked at; the first ones."""
ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Series:
    """What is read, and what is to be forecast of it; `series_of` makes one.

    table: of the inputs. wanted: of the targets, the same one where they are columns of it; at `places` there.
    horizons: how many steps ahead they lie. split: steps of the training part; the last fifth is held out.
    """

    table: Table
    wanted: Table
    places: tuple[int, ...]
    horizons: tuple[int, ...]
    split: int

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.table.values)

    @property
    def paired(self) -> bool:
        """Whether the targets are of a different table."""
        return self.wanted is not self.table

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the target columns."""
        return tuple(self.wanted.columns[i] for i in self.places)


def series_of(
    table: Table, targets: Sequence[str] | Table | None = None, horizon: int | None = None, *, each: bool = True
) -> Series:
    """Name what is to be forecast.

    Arguments:
        table: as `bptt.data.load_series` reads one, or of your own arrays.
        targets: names of columns, all of them if None; or a table with a row for each of `table`, such as a filter's
            output, all of whose columns are targets.
        horizon: how many steps ahead the last target lies. 1 if None, for a different table 0, the same step.
        each: whether every horizon from 1 up to the last is a target, or the last one alone.

    Raises: ValueError for names that aren't there, tables that don't fit, and series that are too short to train on
        and to hold a fifth of them out.

    >>> import numpy as np
    >>> from bptt.data import Table
    >>> found = series_of(Table(np.zeros((1000, 2)), ("level", "flow")), ["level"], horizon=24)
    >>> found.targets, found.horizons[-1], found.split
    (('level',), 24, 800)
    """
    wanted, places = table, tuple(range(len(table.columns)))
    if isinstance(targets, Table):
        wanted, places = targets, tuple(range(len(targets.columns)))
        if len(wanted.values) != len(table.values):
            raise ValueError(
                f"targets: has {len(wanted.values):,} steps, and the inputs {len(table.values):,}. Give tables with a "
                f"row for each step of the other."
            )
    elif targets is not None:
        places = _places(targets, table)
    last = horizon if horizon is not None else int(wanted is table)
    if last < int(wanted is table):
        raise ValueError(f"horizon={last}: must be at least 1.")
    horizons = tuple(range(1, last + 1)) if each and last > 1 else (last,)
    steps = len(table.values)
    split = steps - steps // PART
    least = 2 * (last + 2)
    if steps - split < least or split < 2 * least:
        raise ValueError(
            f"table: {steps:,} steps are too few to train on and to hold a fifth of them out"
            + (f" for a horizon of {last}." if last > 1 else ".")
        )
    return Series(table, wanted, places, horizons, split)


def _places(names: Sequence[str], table: Table) -> tuple[int, ...]:
    if isinstance(names, str):
        raise TypeError(f"targets={names!r}: give a list of names, such as [{names!r}].")
    for i, name in enumerate(names):
        if name not in table.columns:
            raise ValueError(f"targets: no column {name!r}; there are {', '.join(table.columns)}.")
        if name in names[:i]:
            raise ValueError(f"targets: {name} is listed twice.")
    return tuple(table.columns.index(name) for name in names)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of columns, (F,) each, missing values left out; 0 where a column never changes."""

    mean: np.ndarray
    deviation: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """Columns that never change."""
        return ~(self.deviation > 0)


def scale_of(values: Any, split: int) -> Scale:
    """Mean and deviation of the first `split` steps; all are looked at, since an infinite value could be anywhere.

    values: (N, F), an array or what gives one when sliced; NaN where one is missing.

    Raises: ValueError for infinite values, and for a column without any number in that part.
    Cost: one pass over the values, a stretch at a time.

    >>> import numpy as np
    >>> scale_of(np.array([[1.0], [3.0], [np.nan], [9.0]]), split=3)
    Scale(mean=array([2.]), deviation=array([1.]))
    """
    width = values.shape[1]
    count, mean, square = np.zeros(width), np.zeros(width), np.zeros(width)
    for start in range(0, len(values), ROWS):
        stretch = np.asarray(values[start : start + ROWS], np.float64)
        if np.isinf(stretch).any():
            row, column = np.argwhere(np.isinf(stretch))[0]
            raise ValueError(f"step {start + row:,} is infinite in column {column + 1}. Put a number there, or NaN.")
        stretch = stretch[: max(0, split - start)]
        here = (~np.isnan(stretch)).sum(0)
        middle = np.where(here > 0, np.nansum(stretch, 0) / np.maximum(here, 1), mean)
        apart = np.nansum((stretch - middle) ** 2, 0)  # of the stretch, joined as Chan, Golub and LeVeque (1979)
        total = np.maximum(count + here, 1)
        square += apart + (middle - mean) ** 2 * count * here / total
        mean += (middle - mean) * here / total
        count += here
    if not count.all():
        raise ValueError(f"column {int(np.argmin(count)) + 1} has no number in the training part. Leave it out.")
    deviation = np.sqrt(square / count)
    return Scale(mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 0.0))


def changes(found: Series) -> np.ndarray:
    """How much each target changes over each horizon (H, K), root mean square, on the end of the training part."""
    start = max(0, found.split - HELD_OUT_MOST)
    values = np.asarray(found.wanted.values[start : found.split], np.float64)[:, list(found.places)]
    return np.sqrt([np.nanmean((values[h:] - values[:-h]) ** 2, 0) for h in found.horizons])
