"""Numbers in order out of a file: the lanes that are trained on, and the end that is held out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bptt import Chunk
from bptt.cli.data_options import WEATHER_NAME, DataOptions, is_numbers
from bptt.cli.printing import UserError, one_line, user_errors
from bptt.cli.train_config import BATCH
from bptt.data import WEATHER, Lanes, Table, load_series, observed

PART = 5
"""The last fifth is held out: its first half to choose the weights by, its second half to measure them on."""
HELD_OUT_MOST = 1 << 17
"""Steps of a half that are looked at; the first ones."""
CONTEXT = 256
"""Steps before the held-out ones that are read first and not counted, so that the state is that of the series."""
LANE_LEAST = 256
"""Steps of a training lane, at the least, where `--batch` isn't given."""
CHUNK = 256
MEASURED = 200, 8
"""Steps and lanes that are looked at where nothing is said."""
ROWS = 1 << 16


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


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What `--data`, `--targets` and `--horizon` name.

    table: of the inputs. wanted: of the targets, the same one where they are columns of it; at `places` there.
    horizons: how many steps ahead they lie. split: steps of the training part.
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
        """Whether the targets are another file's."""
        return self.wanted is not self.table

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the target columns."""
        return tuple(self.wanted.columns[i] for i in self.places)


def numbers(config: DataOptions, several: bool = True) -> Numbers:
    """Read the files that the options name.

    several: whether all horizons up to the last are targets, or the last one alone.

    Raises: UserError for files that can't be read, and targets, horizons and lengths that can't be.
    """
    names = None if config.columns is None else [name.strip() for name in config.columns.split(",")]
    table = read(config.data or "", "--data", names)
    wanted, places, paired = table, tuple(range(len(table.columns))), False
    if config.targets is not None and _is_file(config.targets):
        wanted, paired = read(config.targets, "--targets"), True
        places = tuple(range(len(wanted.columns)))
        if len(wanted.values) != len(table.values):
            raise UserError(
                f"--targets {config.targets}: has {len(wanted.values):,} steps, and --data {len(table.values):,}. Give "
                f"files with a row for each step of the other"
            )
    elif config.targets is not None:
        places = _places(config.targets, table)
    last = config.horizon if config.horizon is not None else 0 if paired else 1
    horizons = tuple(range(1, last + 1)) if several and last > 1 else (last,)
    steps = len(table.values)
    split = steps - steps // PART
    least = 2 * (last + 2)
    if steps - split < least or split < 2 * least:
        raise UserError(
            f"--data {config.data}: {steps:,} steps are too few to train on and to hold a fifth of them out"
            + (f" for --horizon {last}" if last > 1 else "")
        )
    return Numbers(table, wanted, places, horizons, split)


def read(path: str, option: str, columns: list[str] | None = None) -> Table:
    """A table out of a file, or these columns of it. Raises UserError."""
    try:
        return load_series(WEATHER if path == WEATHER_NAME else path, columns=columns)
    except ValueError as error:
        raise UserError(f"{option} {error}".replace("columns=", "--columns")) from None
    except ModuleNotFoundError as error:
        raise UserError(f"{option} {path}: {error}") from None


def _is_file(text: str) -> bool:
    return is_numbers(text) or Path(text).is_file()


def _places(text: str, table: Table) -> tuple[int, ...]:
    names = [name.strip() for name in text.split(",")]
    for i, name in enumerate(names):
        if name not in table.columns:
            raise UserError(
                f"--targets {text}: no column {name!r}; there are {', '.join(map(one_line, table.columns))}"
            )
        if name in names[:i]:
            raise UserError(f"--targets {text}: {name} is listed twice")
    return tuple(table.columns.index(name) for name in names)


def lanes_of(batch: int | None, found: Numbers) -> int:
    """Lanes to read side by side: as many as are asked for, or 32, or so many that none is short."""
    return batch or max(1, min(BATCH, found.split // LANE_LEAST))


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


class SeriesSource:
    """Lanes over the training part of `found`, and what comes after it.

    rows: lanes of training. convert: what is made of inputs and targets of a chunk.
    several: targets get an axis of horizons behind the lanes'. flat: inputs and targets are (T, B), one column.
    """

    unit = "step"

    def __init__(
        self,
        found: Numbers,
        rows: int,
        convert: Callable[[torch.Tensor], torch.Tensor],
        several: bool = True,
        flat: bool = False,
    ) -> None:
        self.found, self.rows, self._convert, self._several, self._flat = found, rows, convert, several, flat
        self._ahead = max(found.horizons)
        least = 2 + self._ahead
        if found.split // rows < least:
            raise UserError(
                f"--batch {rows}: lanes of {found.split // rows:,} steps are too short for --horizon {self._ahead}; "
                f"give at most {found.split // least:,}"
            )
        self.steps = found.split // rows - self._ahead
        self.context = min(CONTEXT, found.split)
        middle = found.split + (found.steps - found.split) // 2
        self.validation = Stretch.of(found.split, middle - self._ahead, rows)
        self.test = Stretch.of(middle, found.steps - self._ahead, rows)
        self.held_out_rows = self.validation.rows

    @functools.cached_property
    def digest(self) -> str:
        """Of all values, which are read for it."""
        return self.found.table.sha256 + (self.found.wanted.sha256 if self.found.paired else "")

    def _part(self, table: Table, start: int, stop: int, columns: Sequence[int] | None = None) -> Part:
        return Part(table.values, start, stop, columns, self._flat)

    def stream(self, length: int, epochs: int | None) -> Converted:
        """Chunks of the training part."""
        return self._lanes(0, self.found.split, self.rows, length, epochs)

    def _lanes(self, start: int, stop: int, rows: int, length: int, epochs: int | None) -> Converted:
        found = self.found
        with user_errors(prefix=f"--batch {rows}: "):
            lanes = Lanes(
                self._part(found.table, start, stop),
                rows,
                length,
                targets=self._part(found.wanted, start, stop, found.places),
                horizon=found.horizons if self._several else found.horizons[0],
                epochs=epochs,
                missing=True,
            )
        return Converted(lanes, self._convert)

    def measured(self, steps: int | None, rows: int | None) -> Chunk:
        """The first steps of lanes of what is held out."""
        found = self.found
        count = found.steps - found.split - self._ahead
        batch = rows or max(1, min(MEASURED[1], count // (steps or MEASURED[0])))
        most = (found.steps - found.split) // batch - self._ahead
        length = min(MEASURED[0], most) if steps is None else steps
        if not 1 <= length <= most:
            raise UserError(
                f"--length {length}: the {found.steps - found.split:,} steps kept for validation make {batch} "
                f"lane{'s' * (batch > 1)} of only {max(0, most):,} to predict; give that or less"
            )
        return next(self._lanes(found.split, found.steps, batch, length, 1))._replace(is_start=None)

    def held_out(self) -> Iterator[Chunk]:
        """Chunks of the lanes that weights are chosen by."""
        return self.over(self.validation)

    def over(self, stretch: Stretch) -> Iterator[Chunk]:
        """Chunks of the lanes of a stretch, each after some steps that don't count."""
        found, context, steps = self.found, self.context, self.context + stretch.steps
        inputs = self._part(found.table, 0, found.steps)
        targets = self._part(found.wanted, 0, found.steps, found.places)

        def side_by_side(part: Part, start: int, stop: int) -> torch.Tensor:
            pieces = [
                torch.from_numpy(np.array(part[o - context + start : o - context + stop])) for o in stretch.origins
            ]
            return torch.stack(pieces, 1)

        for start in range(0, steps, CHUNK):
            stop = min(start + CHUNK, steps)
            ahead = [side_by_side(targets, start + h, stop + h) for h in found.horizons]
            wanted = torch.stack(ahead, 2) if self._several else ahead[0]
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


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of columns, missing values left out."""

    mean: np.ndarray
    deviation: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """Columns that never change."""
        return ~(self.deviation > 0)


def scale(values: Any, split: int, option: str) -> Scale:
    """Of the first `split` steps; all are looked at, since an infinite value could be anywhere.

    Raises: UserError for infinite values, and for a column without any number in that part.
    """
    width = values.shape[1]
    count, mean, square = np.zeros(width), np.zeros(width), np.zeros(width)
    for start in range(0, len(values), ROWS):
        stretch = np.asarray(values[start : start + ROWS], np.float64)
        if np.isinf(stretch).any():
            row, column = np.argwhere(np.isinf(stretch))[0]
            raise UserError(
                f"{option}: step {start + row:,} is infinite in column {column + 1}. Put a number there, or NaN"
            )
        stretch = stretch[: max(0, split - start)]
        here = (~np.isnan(stretch)).sum(0)
        middle = np.where(here > 0, np.nansum(stretch, 0) / np.maximum(here, 1), mean)
        apart = np.nansum((stretch - middle) ** 2, 0)  # of the stretch, joined as Chan, Golub and LeVeque (1979)
        total = np.maximum(count + here, 1)
        square += apart + (middle - mean) ** 2 * count * here / total
        mean += (middle - mean) * here / total
        count += here
    if not count.all():
        raise UserError(
            f"{option}: column {int(np.argmin(count)) + 1} has no number in the training part. Leave it out"
        )
    deviation = np.sqrt(square / count)
    return Scale(mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 0.0))


def changes(found: Numbers) -> np.ndarray:
    """How much each target changes over each horizon (H, K), root mean square, on the end of the training part."""
    start = max(0, found.split - HELD_OUT_MOST)
    values = np.asarray(found.wanted.values[start : found.split], np.float64)[:, list(found.places)]
    return np.sqrt([np.nanmean((values[h:] - values[:-h]) ** 2, 0) for h in found.horizons])
