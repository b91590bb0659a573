"""The time stamps of a table: that they are equally spaced, and where whole rows are missing."""

from __future__ import annotations

from typing import Any, NamedTuple

from bptt.data.spool import ROWS, Spool, needed, stretches

SECOND = 1_000_000  # stamps are whole microseconds
UNITS = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")]
ONCE = {
    "1 second": "every second",
    "1 minute": "every minute",
    "1 hour": "hourly",
    "1 day": "daily",
    "7 days": "weekly",
    "1 month": "monthly",
    "12 months": "yearly",
}
WHAT_TO_DO = (
    "Write the rows at one spacing, with empty cells where nothing was measured, or leave the time out of the file if "
    "the rows count as equally spaced."
)


class Times(NamedTuple):
    """The first and the last time stamp of a table and the spacing of its rows, as text.

    >>> Times("2016-02-15", "2017-03-22", "daily").spacing
    'daily'
    """

    first: str
    last: str
    spacing: str


class Clock:
    """Stamps in the order of their rows: microseconds since 1970 (int64), or numbers of any unit (float64).

    name: of the column, for errors. first_row: the number of the first row, as errors count them.
    """

    def __init__(self, name: str, first_row: int, dates: bool) -> None:
        self._name, self._row, self._dates = name, first_row, dates
        self._stamps, self._rows, self._last = Spool("int64" if dates else "float64"), 0, None
        self._months = [dates, dates]  # still at one day of the month, or always on its last one

    def add(self, stamps: Any) -> None:
        """Add the stamps of the next rows; raises ValueError if one isn't later than the one before."""
        np = needed("numpy", "a table")
        joined = stamps if self._last is None else np.concatenate([[self._last], stamps])
        (late,) = np.nonzero(~(joined[1:] > joined[:-1]))
        if len(late):
            before, after = joined[late[0] : late[0] + 2]
            row = self._row + self._rows + int(late[0]) + (self._last is None)
            what = "repeats the stamp" if before == after else "comes before that"
            raise ValueError(
                f"row {row} of column {self._name}: {self._text(after)} {what} of the row above, "
                f"{self._text(before)}. Sort the rows by time, one for each stamp."
            )
        if self._dates:
            self._months = [kept and same for kept, same in zip(self._months, _by_month(np, joined), strict=True)]
        self._stamps.add(stamps)
        self._rows, self._last = self._rows + len(stamps), stamps[-1]

    def finish(self) -> tuple[Times, list[tuple[int, int]]]:
        """The times, and the gaps: (row after which rows are missing, how many). ValueError for unequal spacing."""
        np = needed("numpy", "a table")
        stamps = self._stamps.mapped()
        head = np.diff(stamps[: ROWS + 1])
        monthly = any(self._months) and head.min() >= 28 * 86_400 * SECOND
        usual = _usual(np, self._axis(stamps[: ROWS + 1], monthly))
        gaps, equal = [], 0
        for rows in stretches(len(stamps), overlap=1):
            spaces = np.diff(self._axis(stamps[rows], monthly))
            times = np.rint(spaces / usual).astype("int64")
            off = spaces != times * usual if self._dates else abs(spaces / usual - times) > 0.01
            if off.any():
                raise self._unequal(stamps, rows.start + int(off.argmax()), usual, monthly)
            gaps += [(rows.start + int(i), int(times[i]) - 1) for i in np.nonzero(times > 1)[0]]
            equal += int((times == 1).sum())
        missing = sum(count for _, count in gaps)
        if 2 * equal < len(stamps) - 1 or missing > len(stamps):
            raise self._unequal(stamps, max(gaps, key=lambda gap: gap[1])[0], usual, monthly)
        spacing = self._length(usual, monthly)
        first, last = self._text(stamps[0]), self._text(stamps[-1])
        if first.endswith(" 00:00") and last.endswith(" 00:00") and (monthly or not int(usual) % (86_400 * SECOND)):
            first, last = first[:10], last[:10]
        return Times(first, last, ONCE.get(spacing, f"every {spacing}")), gaps

    def _axis(self, stamps: Any, monthly: bool) -> Any:
        """The places of the stamps, counted in months if it is the months that are equally spaced."""
        return stamps.astype("M8[us]").astype("M8[M]").astype("int64") if monthly else stamps

    def _unequal(self, stamps: Any, at: int, usual: Any, monthly: bool) -> ValueError:
        between = self._length(stamps[at + 1] - stamps[at], False)
        return ValueError(
            f"row {self._row + at + 1} of column {self._name}: {self._text(stamps[at + 1])} comes {between} after "
            f"{self._text(stamps[at])}, and the usual spacing is {self._length(usual, monthly)}. {WHAT_TO_DO}"
        )

    def _text(self, stamp: Any) -> str:
        if not self._dates:
            return f"{stamp:g}"
        text = str(stamp.astype("M8[us]")).replace("T", " ")
        return text.removesuffix(".000000").removesuffix(":00")

    def _length(self, space: Any, monthly: bool) -> str:
        if not self._dates:
            return f"{space:g}"
        if monthly:
            return _counted(int(space), "month")
        seconds, rest = divmod(int(space), SECOND)
        for size, unit in UNITS:
            if not rest and not seconds % size:
                return _counted(seconds // size, unit)
        return f"{int(space) / SECOND:.6f}".rstrip("0") + " seconds"


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" + ("" if number == 1 else "s")


def _by_month(np: Any, stamps: Any) -> tuple[bool, bool]:
    """Whether all are at the same place in their months; whether all are on the last day, at the same time."""
    moments = stamps.astype("M8[us]")
    days = moments.astype("M8[D]")
    place = moments - moments.astype("M8[M]").astype("M8[us]")
    hour = moments - days.astype("M8[us]")
    tomorrow = days + np.timedelta64(1, "D")
    last = tomorrow == tomorrow.astype("M8[M]").astype("M8[D]")
    return bool((place == place[0]).all()), bool(last.all() and (hour == hour[0]).all())


def _usual(np: Any, stamps: Any) -> Any:
    """The spacing that most stamps have; for numbers, which are rounded, the (lower) median."""
    spaces = np.diff(stamps)
    if spaces.dtype.kind == "f":
        return np.sort(spaces)[(len(spaces) - 1) // 2]
    lengths, counts = np.unique(spaces, return_counts=True)
    return lengths[counts.argmax()]
