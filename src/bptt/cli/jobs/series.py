"""Numbers in order: from the options' words to what `bptt.forecast` takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bptt import Chunk
from bptt.cli.data_options import WEATHER_NAME, DataOptions, is_numbers
from bptt.cli.printing import UserError, one_line
from bptt.data import WEATHER, Table, load_series
from bptt.forecast import Series, Source, series_of
from bptt.forecast.lanes import Stretch


@contextlib.contextmanager
def options(otherwise: str = "", **named: str) -> Iterator[None]:
    """ValueErrors that begin with the name of an argument, told of the option that it comes from.

    otherwise: what is put before all others.
    """
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(": ")
        option = named.get(name.partition("=")[0])
        told = f"{otherwise}{error}" if option is None else f"{option}: {one_line(rest).rstrip('.')}"
        raise UserError(told) from error


def numbers(config: DataOptions, several: bool = True) -> Series:
    """Read the files that the options name.

    several: whether all horizons up to the last are targets, or the last one alone.

    Raises: UserError for files that can't be read, and targets, horizons and lengths that can't be.
    """
    table = read(config.data or "", "--data", _names(config.columns))
    given = config.targets
    if given is not None and (is_numbers(given) or Path(given).is_file()):
        targets: Any = read(given, "--targets")
    else:
        targets = _names(given)
    with options(targets=f"--targets {given}", table=f"--data {config.data}"):
        return series_of(table, targets, config.horizon, each=several)


def _names(columns: str | None) -> list[str] | None:
    return None if columns is None else [name.strip() for name in columns.split(",")]


def read(path: str, option: str, columns: list[str] | None = None) -> Table:
    """A table out of a file, or these columns of it. Raises UserError."""
    try:
        return load_series(WEATHER if path == WEATHER_NAME else path, columns=columns)
    except ValueError as error:
        raise UserError(f"{option} {error}".replace("columns=", "--columns")) from None
    except ModuleNotFoundError as error:
        raise UserError(f"{option} {path}: {error}") from None


class SeriesSource(Source):
    """`bptt.forecast.Source` of the options' words."""

    def __init__(self, series: Series, batch: int | None, convert: Any, **more: Any) -> None:
        with options(rows=f"--batch {batch}"):
            super().__init__(series, batch, convert, **more)

    def measured(self, steps: int | None = None, rows: int | None = None) -> Chunk:
        """The first steps of lanes of what is held out. Raises UserError."""
        with options(f"--batch {rows}: ", steps=f"--length {steps}"):
            return super().measured(steps, rows)

    @property
    def notes(self) -> dict[str, str]:
        """What was found in the files and treated."""
        series = self.series
        return noted([*series.table.notes, *(series.wanted.notes if series.paired else ())])

    def ahead(self, stretch: Stretch) -> str:
        """Where a stretch of what is held out lies."""
        lanes = f" in {stretch.rows} lanes" if stretch.rows > 1 else ""
        return f"{stretch.rows * stretch.steps:,} steps from step {stretch.origins[0]:,} on{lanes}"


def noted(notes: list[str]) -> dict[str, str]:
    """Notes by the names that they are shown under."""
    return {f"note {i + 1}" if len(notes) > 1 else "note": one_line(note) for i, note in enumerate(notes)}
