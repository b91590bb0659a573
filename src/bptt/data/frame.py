"""Columns in Arrow batches as one mapped array: the time taken out and checked, missing rows and cells as NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bptt.data.cells import Column, holds_dates, stamps
from bptt.data.clock import Clock, Times
from bptt.data.spool import Spool, needed, stretches

TIME = {"date", "time", "timestamp", "datetime", "__index_level_0__"}
"""Names of a column that is the time, whatever its place; the last is pandas' name for an index without one."""


class Source(NamedTuple):
    """A file of columns: their names, the batches from the start, and how rows and cells are written."""

    names: list[str]
    batches: Callable[[], Iterator[list[Any]]]
    first_row: int = 1
    comma: bool = False
    unnamed: bool = False  # the first column has no name, as an index
    numbered: bool = False  # no column has one


class Frame(NamedTuple):
    """What `Table` holds."""

    values: Any
    columns: tuple[str, ...]
    times: Times | None
    notes: tuple[str, ...]


def framed(source: Source, columns: list[str] | None) -> Frame:
    """All rows of a file as float32, or float64 if a column needs it; ValueError for anything but a series."""
    check_names(source.names, columns)
    time = _time(source, columns)
    chosen = [name for i, name in enumerate(source.names) if i != time] if columns is None else columns
    if not chosen:
        raise ValueError("holds no column beside the time.")
    values, read, clock, points = _read(source, chosen, time, "float32")
    coarse = [column.name for column in read if column.coarse]
    if coarse:
        values, read, clock, points = _read(source, chosen, time, "float64")
    if len(values) < 2:
        raise ValueError(f"holds {len(values)} row{'s' * (len(values) != 1)} of numbers: a series takes at least two.")
    times, gaps = (None, []) if clock is None or time is None else clock.finish()
    notes = []
    if source.numbered:
        notes.append("there is no header: columns are named by their place")
    if times is not None and time is not None:
        notes.append(f"column {source.names[time]} is the time: {times.spacing}, {times.first} to {times.last}")
    if gaps:
        values = _spread(values, gaps)
        notes.append(_gaps([count for _, count in gaps]))
    if "," in points:
        notes.append(f"commas are decimal, as in {points[',']}")
    notes += [_empty(column) for column in read if column.missing]
    notes += [f"true and false of column {column.name} are 1 and 0" for column in read if column.booleans]
    if coarse:
        notes.append(f"values are float64, since float32 would round away much of column {', '.join(coarse)}")
    return Frame(values, tuple(chosen), times, tuple(notes))


def check_names(names: list[str], columns: list[str] | None) -> None:
    """Raise ValueError for a name that occurs twice, or that is asked for and isn't there."""
    for some, what in ((names, "the file has"), (columns or [], "columns= names")):
        twice = next((name for i, name in enumerate(some) if name in some[:i]), None)
        if twice is not None:
            raise ValueError(f"{what} the column {twice} twice: give every column a name of its own.")
    if columns is not None and not columns:
        raise ValueError("columns= names no column.")
    unknown = next((name for name in columns or [] if name not in names), None)
    if unknown is not None:
        there = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise ValueError(f"there is no column {unknown}: there are {there}.")


def _time(source: Source, columns: list[str] | None) -> int | None:
    """The index of the time column."""
    first = next(source.batches(), None)
    if first is None:
        raise ValueError("holds no rows.")
    types = needed("pyarrow.types", "a table")
    found = [
        i
        for i, (name, cells) in enumerate(zip(source.names, first, strict=True))
        if (columns is None or name not in columns)
        and (
            (not source.numbered and name.lower() in TIME)
            or (i == 0 and (source.unnamed or holds_dates(cells)))
            or types.is_timestamp(cells.type)
            or types.is_date(cells.type)
        )
    ]
    if columns is None and len(found) > 1:
        raise ValueError(
            f"columns {' and '.join(source.names[i] for i in found)} hold times: put one time stamp into one column, "
            f"or name the columns of numbers in columns=."
        )
    return found[0] if found else None


def _read(
    source: Source, chosen: list[str], time: int | None, dtype: str
) -> tuple[Any, list[Column], Clock | None, dict[str, str]]:
    """The chosen columns, side by side in a file; what was found in each; and the stamps."""
    np = needed("numpy", "a table")
    points: dict[str, str] = {}
    read = [Column(name, points if source.comma else None) for name in chosen]
    places = [source.names.index(name) for name in chosen]
    spool, clock, row = Spool(dtype, len(chosen)), None, source.first_row
    dates = False
    for batch in source.batches():
        if not len(batch[0]):
            continue
        if time is not None:
            name = source.names[time]
            if clock is None:
                dates = _are_dates(batch[time])
                clock = Clock(name, row, dates)
            clock.add(stamps(batch[time], name, row) if dates else _numbers(batch[time], name, row))
        values = [column.numbers(batch[at], row) for column, at in zip(read, places, strict=True)]
        if len(points) > 1:
            raise ValueError(
                f"{points[',']!r} and {points['.']!r} are in one file, so it isn't clear whether a comma or a "
                f"point is decimal. Write all numbers in one way, without marks between thousands."
            )
        with np.errstate(over="ignore"):  # then the column is coarse
            spool.add(np.stack(values, 1).astype(dtype))
        row += len(batch[0])
    return spool.mapped(), read, clock, points


def _are_dates(cells: Any) -> bool:
    """Whether a time column must hold dates, since it doesn't begin with a number."""
    try:
        return holds_dates(cells) or not math.isfinite(Column("", None).numbers(cells[:1], 0)[0])
    except ValueError:
        return True


def _numbers(cells: Any, name: str, row: int) -> Any:
    """A time column of numbers; raises ValueError if one is missing."""
    values = Column(name, None).numbers(cells, row)
    absent = values != values
    if absent.any():
        raise ValueError(
            f"row {row + int(absent.argmax())} of column {name} is empty: the time needs a number in every row."
        )
    return values


def _spread(values: Any, gaps: list[tuple[int, int]]) -> Any:
    """The rows, with NaN in place of missing rows."""
    np = needed("numpy", "a table")
    spool, start = Spool(str(values.dtype), values.shape[1]), 0
    for after, count in [*gaps, (len(values) - 1, 0)]:
        for rows in stretches(after + 1 - start):
            spool.add(values[start + rows.start : start + rows.stop])
        for rows in stretches(count):
            spool.add(np.full((rows.stop - rows.start, values.shape[1]), np.nan))
        start = after + 1
    return spool.mapped()


def _gaps(counts: list[int]) -> str:
    steps, gaps = sum(counts), len(counts)
    return (
        f"{steps:,} missing step{'s' * (steps > 1)} ({gaps:,} gap{'s' * (gaps > 1)}, the longest of {max(counts):,}) "
        f"stand{'s' * (steps == 1)} as NaN"
    )


def _empty(column: Column) -> str:
    number, first = column.missing, column.first_missing
    return (
        f"{number:,} empty cell{'s' * (number > 1)} of column {column.name} stand{'s' * (number == 1)} as NaN, "
        f"the first in row {first}"
    )
