"""Columns of a table, text or typed, as numbers and time stamps; errors name the row of any other cell."""

from __future__ import annotations

import math
import re
from typing import Any

from bptt.data.spool import needed

MISSING = ["", "na", "n/a", "nan", "null"]
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DATE = re.compile(r"\d{4}-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?)?", re.ASCII)
COARSE = 1e-4  # of a column's spread, the most that rounding may move a value


def is_missing(text: str) -> bool:
    """Whether a cell stands for a missing value."""
    return text.strip().lower() in MISSING


class Column:
    """One column, read in stretches: its numbers as float64, and what was found on the way.

    name: for errors. points: None if a comma can't be decimal; else it is filled with a cell that has a comma, under
    ",", and one that has a point, under ".".
    """

    def __init__(self, name: str, points: dict[str, str] | None) -> None:
        self.name, self._points = name, points
        self.missing, self.first_missing, self.booleans = 0, 0, False
        self._low, self._high, self._off = math.inf, -math.inf, 0.0

    @property
    def coarse(self) -> bool:
        """Whether float32 would round away the column's differences, since its spread is small beside its numbers."""
        return self._off > COARSE * (self._high - self._low) > 0

    def numbers(self, cells: Any, row: int) -> Any:
        """The next cells, an Arrow array whose first is in `row`, as float64, with NaN where a value is missing."""
        np, types = needed("numpy", "a table"), needed("pyarrow.types", "a table")
        kind = cells.type
        if types.is_dictionary(kind):
            cells = cells.dictionary_decode()
            kind = cells.type
        if types.is_string(kind) or types.is_large_string(kind):
            values = self._from_text(cells, row)
        elif types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            self.booleans = self.booleans or types.is_boolean(kind)
            values = _floats(cells.cast("uint8") if types.is_boolean(kind) else cells)
        elif types.is_null(kind):
            values = np.full(len(cells), np.nan)
        else:
            raise self._refused(f"isn't numbers: {kind} stands", row)
        self._look(np, values, row)
        return values

    def _look(self, np: Any, values: Any, row: int) -> None:
        """Track the range and the number of missing values; raises ValueError for infinite ones."""
        endless = np.isinf(values)
        if endless.any():
            raise ValueError(
                f"row {row + int(endless.argmax())} of column {self.name} is infinite: leave the cell empty, or give "
                f"the column a finite value there."
            )
        absent = np.isnan(values)
        if absent.any():
            self.first_missing = self.first_missing if self.missing else row + int(absent.argmax())
            self.missing += int(absent.sum())
            values = values[~absent]
        if len(values):
            self._low, self._high = min(self._low, values.min()), max(self._high, values.max())
            with np.errstate(over="ignore"):
                self._off = max(self._off, abs(values - values.astype("float32")).max())

    def _from_text(self, cells: Any, row: int) -> Any:
        arrow, compute = needed("pyarrow", "a table"), needed("pyarrow.compute", "a table")
        trimmed = compute.utf8_trim_whitespace(cells)
        gone = compute.is_in(compute.utf8_lower(trimmed), value_set=arrow.array(MISSING))
        trimmed = compute.if_else(gone, None, trimmed)
        if self._points is not None:
            for mark in ",.":
                if mark not in self._points:
                    there = trimmed.filter(compute.match_substring(trimmed, mark))
                    self._points.update({mark: there[0].as_py()} if len(there) else {})
            trimmed = compute.replace_substring(trimmed, ",", ".")
        try:
            return _floats(trimmed.cast("float64"))
        except arrow.ArrowInvalid:
            values = [self._number(text, row + i) for i, text in enumerate(trimmed.to_pylist())]
            return needed("numpy", "a table").array(values, dtype="float64")

    def _number(self, text: str | None, row: int) -> float:
        if text is None:
            return math.nan
        if text.lower() in ("true", "false"):
            self.booleans = True
            return float(text.lower() == "true")
        if NUMBER.fullmatch(text):
            return float(text)
        if text.lower().lstrip("+-") in ("inf", "infinity"):
            return math.inf
        raise self._refused(f"isn't numbers: {text[:40]!r} stands", row)

    def _refused(self, what: str, row: int) -> ValueError:
        return ValueError(
            f"column {self.name} {what} in row {row}. Name the columns of numbers in columns=, or turn this one "
            f"into numbers."
        )


def _floats(cells: Any) -> Any:
    return cells.cast("float64", safe=False).fill_null(math.nan).to_numpy(zero_copy_only=False)


def holds_dates(cells: Any) -> bool:
    """Whether the first cell that isn't missing is a date or a time stamp."""
    types = needed("pyarrow.types", "a table")
    if types.is_temporal(cells.type):
        return types.is_timestamp(cells.type) or types.is_date(cells.type)
    if not (types.is_string(cells.type) or types.is_large_string(cells.type)):
        return False
    first = next((text for text in cells.to_pylist() if text is not None and not is_missing(text)), "")
    return DATE.fullmatch(first.strip()) is not None


def stamps(cells: Any, name: str, row: int) -> Any:
    """Dates and time stamps as microseconds since 1970, in UTC if they have an offset; ValueError for other cells."""
    compute, types = needed("pyarrow.compute", "a table"), needed("pyarrow.types", "a table")
    if types.is_string(cells.type) or types.is_large_string(cells.type):
        cells = compute.utf8_trim_whitespace(cells)
        for at, text in enumerate(cells.to_pylist()):
            if text is None or not DATE.fullmatch(text):
                raise _no_stamp(text, name, row + at)
        cells = compute.if_else(compute.equal(compute.utf8_length(cells), 7), _joined(compute, cells), cells)
        cells = _parsed(cells, name, row)
    elif cells.null_count:
        raise _no_stamp(None, name, row + cells.is_null().to_pylist().index(True))
    arrow = needed("pyarrow", "a table")
    moments = cells.cast(arrow.timestamp("us", tz=getattr(cells.type, "tz", None)), safe=False)
    return moments.cast("int64").to_numpy(zero_copy_only=False)


def _joined(compute: Any, cells: Any) -> Any:
    """Months as their first days."""
    return compute.binary_join_element_wise(cells, "01", "-")


def _parsed(cells: Any, name: str, row: int) -> Any:
    """Texts of the form of a date as time stamps; an error names one that isn't a date, such as 30 February."""
    arrow = needed("pyarrow", "a table")
    offset = cells[0].as_py()[10:].endswith("Z") or re.search("[+-]", cells[0].as_py()[10:]) is not None
    kind = arrow.timestamp("us", tz="UTC" if offset else None)
    try:
        return cells.cast(kind)
    except arrow.ArrowInvalid:
        good, bad = 0, len(cells)  # so many are read; so many aren't
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                cells[:middle].cast(kind)
                good = middle
            except arrow.ArrowInvalid:
                bad = middle
        raise _no_stamp(cells[good].as_py(), name, row + good) from None


def _no_stamp(text: str | None, name: str, row: int) -> ValueError:
    """The error for a cell of the time column that isn't a time stamp."""
    shown = "is empty" if text is None or is_missing(text) else f"is {text[:40]!r}"
    return ValueError(
        f"row {row} of column {name} {shown}: the time takes a date or a time stamp in every row, as 2016-02-15 or "
        f"2016-02-15T13:00, all with an offset from UTC or none."
    )
