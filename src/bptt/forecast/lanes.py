"""A series read in lanes: the part that is trained on, and stretches of the end that is held out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bptt import Chunk
from bptt.data import Lanes, Table, observed
from bptt.forecast.series import HELD_OUT_MOST, Series

CONTEXT = 256
"""Steps before the held-out ones that are read first and not counted, so that the state is that of the series."""
LANES, LANE_LEAST = 32, 256
"""Lanes, and steps of one at the least, where nothing is said of lanes."""
CHUNK = 256
MEASURED = 200, 8
"""Steps and lanes that are looked at where nothing is said."""


class Part:
    """Steps [start, stop) of some columns of a table's values, read where it is sliced.

    columns: their places; None for all. flat: one column as (N,).
    """

    def __init__(
        self, values: Any, start: int, stop: int, columns: Sequence[int] | None = None, flat: bool = False
    ) -> None:
        self.base, self.mode, self.dtype = values, getattr(values, "mode", None), values.dtype
        self._start, self._columns, self._flat = start, None if columns is None else list(columns), flat
        width = values.shape[1] if columns is None else len(columns)
        self.shape = (stop - start,) if flat else (stop - start, width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Any:
        start, stop, _ = rows.indices(len(self))
        piece = self.base[self._start + start : self._start + max(start, stop)]
        piece = piece if self._columns is None else piece[:, self._columns]
        return piece[:, 0] if self._flat else piece


def lanes_of(series: Series) -> int:
    """Lanes to read side by side where nothing is said: 32, or so many that none is short."""
    return max(1, min(LANES, series.split // LANE_LEAST))


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A stretch of the series in lanes. origins: the first step of each. steps: of each that are counted."""

    origins: np.ndarray
    steps: int

    @classmethod
    def of(cls, start: int, stop: int, rows: int) -> Stretch:
        """Steps [start, stop), or the first HELD_OUT_MOST of them, in at most `rows` lanes."""
        count = min(stop - start, HELD_OUT_MOST)
        rows = max(1, min(rows, count // 1000))
        return cls(start + count // rows * np.arange(rows), count // rows)

    @property
    def rows(self) -> int:
        """Lanes."""
        return len(self.origins)

    @property
    def at(self) -> np.ndarray:
        """All counted steps, in the order of time."""
        return (self.origins[:, None] + np.arange(self.steps)).reshape(-1)


class Source:
    """Lanes over the training part of a series, and over stretches of the end that nothing is trained on.

    The first half of the last fifth, `held_out`, is there to choose weights by, the second, `test`, to measure them on.
    Lanes of both are read after 256 steps before them, which the mask leaves out, so that the state is the series' own.

    Arguments:
        series: of `series_of`.
        rows: lanes of training that are read side by side; 32 if None, or so many that none is shorter than 256 steps.
        convert: what is made of inputs and targets of a chunk, float64 if None.
        axis: whether targets get an axis of horizons behind the lanes', as a `Forecaster` takes them.
        flat: inputs and targets of one column are (T, B), without an axis for it.

    Attributes: steps, that each lane of training predicts in an epoch; validation and test, the two stretches.
    Raises: ValueError for lanes that are too short for the horizon.

    >>> import numpy as np
    >>> from bptt.data import Table
    >>> from bptt.forecast import series_of
    >>> source = Source(series_of(Table(np.arange(4000.0)[:, None], ("x",)), horizon=3), rows=4)
    >>> chunk = next(source.stream(length=50))
    >>> chunk.inputs.shape, chunk.targets.shape, chunk.targets[0, 0].flatten().tolist()
    (torch.Size([50, 4, 1]), torch.Size([50, 4, 3, 1]), [1.0, 2.0, 3.0])
    """

    unit = "step"

    def __init__(
        self,
        series: Series,
        rows: int | None = None,
        convert: Callable[[torch.Tensor], torch.Tensor] | None = None,
        axis: bool = True,
        flat: bool = False,
    ) -> None:
        self.rows = rows = lanes_of(series) if rows is None else rows
        self.series, self._axis, self._flat = series, axis, flat
        self._convert = convert or (lambda values: values.to(torch.float64))
        self._ahead = max(series.horizons)
        least = 2 + self._ahead
        if rows < 1 or series.split // rows < least:
            raise ValueError(
                f"rows={rows}: lanes of {series.split // max(1, rows):,} steps are too short for a horizon of "
                f"{self._ahead}; give from 1 to {series.split // least:,}."
            )
        self.steps = series.split // rows - self._ahead
        self.context = min(CONTEXT, series.split)
        middle = series.split + (series.steps - series.split) // 2
        self.validation = Stretch.of(series.split, middle - self._ahead, rows)
        self.test = Stretch.of(middle, series.steps - self._ahead, rows)
        self.held_out_rows = self.validation.rows

    @functools.cached_property
    def digest(self) -> str:
        """Of all values, which are read for it."""
        return self.series.table.sha256 + (self.series.wanted.sha256 if self.series.paired else "")

    def _part(self, table: Table, start: int, stop: int, columns: Sequence[int] | None = None) -> Part:
        return Part(table.values, start, stop, columns, self._flat)

    def stream(self, length: int, epochs: int | None = None) -> Converted:
        """Chunks of `length` steps of the training part, for ever if `epochs` is None; its place can be saved."""
        return self._lanes(0, self.series.split, self.rows, length, epochs)

    def _lanes(self, start: int, stop: int, rows: int, length: int, epochs: int | None) -> Converted:
        series = self.series
        lanes = Lanes(
            self._part(series.table, start, stop),
            rows,
            length,
            targets=self._part(series.wanted, start, stop, series.places),
            horizon=series.horizons if self._axis else series.horizons[0],
            epochs=epochs,
            missing=True,
        )
        return Converted(lanes, self._convert)

    def measured(self, steps: int | None = None, rows: int | None = None) -> Chunk:
        """The first steps of lanes of what is held out, up to 200 of up to 8, to look at a gradient.

        Raises: ValueError where there are fewer than are asked for.
        """
        series = self.series
        count = series.steps - series.split - self._ahead
        batch = rows or max(1, min(MEASURED[1], count // (steps or MEASURED[0])))
        most = (series.steps - series.split) // batch - self._ahead
        length = min(MEASURED[0], most) if steps is None else steps
        if not 1 <= length <= most:
            raise ValueError(
                f"steps={length}: the {series.steps - series.split:,} steps kept for validation make {batch} "
                f"lane{'s' * (batch > 1)} of only {max(0, most):,} to predict; give that or less."
            )
        return next(self._lanes(series.split, series.steps, batch, length, 1))._replace(is_start=None)

    def held_out(self) -> Iterator[Chunk]:
        """Chunks of the lanes that weights are to be chosen by; `bptt.evaluate` takes them."""
        return self.over(self.validation)

    def over(self, stretch: Stretch) -> Iterator[Chunk]:
        """Chunks of the lanes of a stretch, each after some steps that don't count."""
        series, context, steps = self.series, self.context, self.context + stretch.steps
        inputs = self._part(series.table, 0, series.steps)
        targets = self._part(series.wanted, 0, series.steps, series.places)

        def side_by_side(part: Part, start: int, stop: int) -> torch.Tensor:
            pieces = [
                torch.from_numpy(np.array(part[o - context + start : o - context + stop])) for o in stretch.origins
            ]
            return torch.stack(pieces, 1)

        for start in range(0, steps, CHUNK):
            stop = min(start + CHUNK, steps)
            ahead = [side_by_side(targets, start + h, stop + h) for h in series.horizons]
            wanted = torch.stack(ahead, 2) if self._axis else ahead[0]
            mask = observed(wanted)
            mask[: max(0, context - start)] = False
            yield Chunk(self._convert(side_by_side(inputs, start, stop)), self._convert(wanted), None, mask)


class Converted(Iterator[Chunk]):
    """A stream of lanes whose numbers are made into what the model takes."""

    def __init__(self, lanes: Lanes, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._lanes, self._convert = lanes, convert
        self.state_dict, self.load_state_dict = lanes.state_dict, lanes.load_state_dict

    def __next__(self) -> Chunk:
        chunk = next(self._lanes)
        return chunk._replace(inputs=self._convert(chunk.inputs), targets=self._convert(chunk.targets))
